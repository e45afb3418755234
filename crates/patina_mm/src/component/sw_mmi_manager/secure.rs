//! MM in the secure world, which is entered by secure monitor calls. An unsafe island
//! (`docs/unsafe.md`).
//!
//! x86 firmware has `no_secure.rs` instead of this file.

use crate::config::SmcOptions;
use alloc::boxed::Box;
use alloc::vec::Vec;
use mm_comm::SharedRegion;
use mm_comm::smc::{self, Conduit, Connection, RxTxMemory, SecureMm, SmcError, ffa, spm_mm};
use mm_wire::AddressRange;
use patina::BinaryGuid;
use patina::component::hob::{FromHob, Hob, HobParseError};
use patina::component::params::Config;

/// The inputs of the component.
pub(crate) type Inputs<'a> = (Config<'a, SmcOptions>, Option<Hob<'a, FfaRxBufferHob>>);

/// Finds MM in the secure world, through a conduit that the function's maker chose.
pub(super) type Connect = fn(smc::Setup, RxTx) -> Result<Way, SmcError>;

/// The way into MM, which has run when a call returns.
pub(super) type Way = Box<dyn SecureMm>;

/// FF-A's RX buffer that edk2's `ArmFfaLib` has mapped in an earlier phase,
/// `gArmFfaRxTxBufferInfoGuid`; `None` if the HOB names no memory that can be used.
#[derive(Clone, Copy, Debug)]
pub struct FfaRxBufferHob(Option<AddressRange>);

impl FromHob for FfaRxBufferHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_bytes(&mm_wire::hob::FFA_RX_TX_HOB_GUID.to_bytes());

    fn parse(data: &[u8]) -> Result<Self, HobParseError> {
        Ok(Self(mm_wire::hob::ffa_rx_buffer(data)))
    }
}

/// A secure monitor call, and how to make it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    connect: Connect,
    setup: smc::Setup,
}

impl Plan {
    /// Plans calls of this function; `None` if it carries no MM messages.
    pub(super) fn new(connect: Connect, function: u32, (options, _): &Inputs<'_>) -> Option<Self> {
        let (interface, request) = interface(function)?;
        let setup = smc::Setup {
            psci: options.psci,
            interface,
            patience: options.patience,
            time_limit: options.time_limit,
            partition: options.partition.map(|id| ffa::NamedPartition { id, request }),
        };
        Some(Self { connect, setup })
    }

    /// Finds MM.
    pub(super) fn open(self, (_, rx_buffers): &Inputs<'_>) -> Result<Way, SmcError> {
        let mapped_rx = rx_buffers
            .iter()
            .flat_map(|hobs| hobs.iter())
            .find_map(|hob| hob.0);
        // SAFETY: the HOB says that `ArmFfaLib` has mapped this memory as its RX buffer, and has
        // not unmapped it. The library's drivers only read it.
        let rx_tx = unsafe { RxTx::announced(mapped_rx) };
        (self.connect)(self.setup, rx_tx)
    }
}

/// The interfaces that a function identifier asks for, and the call by which a partition that the
/// platform names takes requests; `None` if it carries no MM messages.
fn interface(function: u32) -> Option<(smc::Interface, ffa::DirectRequest)> {
    match function {
        spm_mm::MM_COMMUNICATE | spm_mm::MM_COMMUNICATE_32 => {
            Some((smc::Interface::Discover, ffa::DirectRequest::Req))
        }
        ffa::MSG_SEND_DIRECT_REQ => Some((smc::Interface::Ffa, ffa::DirectRequest::Req)),
        ffa::MSG_SEND_DIRECT_REQ2 => Some((smc::Interface::Ffa, ffa::DirectRequest::Req2)),
        _ => None,
    }
}

/// Finds MM through the conduit `C`.
pub(super) fn connect<C: Conduit + 'static>(
    setup: smc::Setup,
    mut rx_tx: RxTx,
) -> Result<Box<dyn SecureMm>, SmcError> {
    let connection: Connection<C> = smc::connect(setup, &mut rx_tx)?;
    Ok(Box::new(connection))
}

/// Memory for FF-A's RX and TX buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct RxTx {
    mapped_rx: Option<AddressRange>,
}

impl RxTx {
    /// `mapped_rx` is the RX buffer that a HOB announces.
    ///
    /// # Safety
    ///
    /// If the secure world has RX and TX buffers mapped, `mapped_rx` is that RX buffer: memory that
    /// is mapped one to one, and that only the secure world writes to.
    pub(super) const unsafe fn announced(mapped_rx: Option<AddressRange>) -> Self {
        Self { mapped_rx }
    }
}

impl RxTxMemory for RxTx {
    /// Never freed: if unmapping it fails the secure world may still write to it. It is asked for
    /// at most once a boot, and only if the partition manager lacks PARTITION_INFO_GET_REGS.
    fn two_pages(&mut self) -> Option<SharedRegion> {
        #[repr(C, align(4096))]
        struct Pages([u8; 2 * mm_wire::PAGE_LEN]);
        let mut pages = Vec::new();
        pages.try_reserve_exact(1).ok()?;
        pages.push(Pages([0; 2 * mm_wire::PAGE_LEN]));
        let Pages(pages) = pages.leak().first_mut()?;
        Some(SharedRegion::over_static(pages))
    }

    fn mapped_rx(&mut self) -> Option<SharedRegion> {
        let rx = self.mapped_rx?;
        let base = core::ptr::with_exposed_provenance_mut(usize::try_from(rx.start()).ok()?);
        let len = usize::try_from(rx.len()).ok()?;
        // SAFETY: asked for only while the secure world has buffers mapped, so that the promise of
        // `announced` holds: memory that is mapped, and that nothing in this world refers to.
        unsafe { SharedRegion::new(base, len) }.ok()
    }
}

/// The secure monitor calls of this processor; `None` if the target has none that this code may
/// make.
#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
pub(super) const NATIVE: Option<Connect> = Some(connect::<smc::Smc>);

/// The secure monitor calls of this processor; `None` if the target has none that this code may
/// make.
#[cfg(not(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none"))))]
pub(super) const NATIVE: Option<Connect> = None;
