//! MM communication through secure monitor calls (SMC), as AArch64 platforms have it.
//!
//! ```text
//! connect ── is there an EL3? ── FFA_VERSION ─┬─ 1.2 or later: own id, the MM partition ──► FF-A direct requests
//!                                             └─ otherwise: MM_VERSION ──────────────────► MM_COMMUNICATE
//! ```
//!
//! The conduit is a type ([`Conduit`], over [`smccc::Call`]), so that a test can put a secure world of its own behind
//! it. A request stands in shared memory as it does on x86 ([`crate::Channel`]); [`SecureMm::communicate`] is what takes the
//! place of the port write. It is synchronous: when it returns, MM has answered in the buffer or has said why not.
//!
//! | module | content | source |
//! |---|---|---|
//! | [`spm_mm`] | MM_VERSION, MM_COMMUNICATE | Arm DEN0060A; edk2 `MdePkg/Include/IndustryStandard/ArmStdSmc.h` |
//! | [`ffa`] | FF-A 1.2: version, discovery, direct requests | Arm DEN0077A; edk2 `MdePkg/Include/IndustryStandard/ArmFfaSvc.h` |

pub mod ffa;
pub mod spm_mm;
#[cfg(test)]
mod world;

use crate::region::SharedRegion;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering, fence};
use ffa::FfaCode;
use mm_wire::EfiStatus;
pub use smccc::Call;
/// The `smc` instruction of this processor.
#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
pub use smccc::Smc;
use spm_mm::SpmMmCode;
use thiserror::Error;

/// The instruction that reaches the secure world, and whether there is one to reach.
pub trait Conduit: Call {
    /// Whether the processor implements EL3 (`ID_AA64PFR0_EL1`, bits 15:12, are not zero).
    fn el3_is_implemented() -> bool;
}

/// How the platform calls PSCI (device tree `/psci` `method`; ACPI FADT `ARM_BOOT_ARCH`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PsciConduit {
    /// Nobody said. An SMC is then made only where the processor has an EL3.
    #[default]
    Unknown,
    /// By `smc`: whoever takes PSCI calls takes every SMC, an EL3 or a hypervisor that hides it.
    Smc,
    /// By `hvc`. Without an EL3 an SMC is then undefined.
    Hvc,
}

/// Which interface to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// FF-A where FFA_VERSION says 1.2 or later, else SPM_MM.
    #[default]
    Discover,
    /// FF-A or nothing.
    Ffa,
}

/// How patient a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often a call is made that is answered with BUSY.
    pub busy: u32,
    /// How often an interrupted or yielding partition is resumed within one call. Each interrupt of the non-secure world
    /// costs one.
    pub resumes: u32,
}

/// As patient as edk2, which takes 500,000 answers of BUSY for some five seconds; its patience with interrupts has no end.
impl Default for Patience {
    fn default() -> Self {
        Self {
            busy: 500_000,
            resumes: 1_000_000,
        }
    }
}

/// What a platform says about its secure world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// How PSCI is called.
    pub psci: PsciConduit,
    /// Which interface to use.
    pub interface: Interface,
    /// How patient to be.
    pub patience: Patience,
}

/// Why MM could not be reached, or did not do what it was asked to.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmcError {
    /// An SMC would be undefined. None was made.
    #[error("platform: there is no EL3 and PSCI is not called by smc, a secure monitor call would trap")]
    NoConduit,
    /// Nobody knows MM_VERSION.
    #[error("platform: the secure world offers neither FF-A 1.2 nor SPM_MM (MM_VERSION: {0})")]
    NoMm(SpmMmCode),
    /// The platform insists on FF-A, which is not there.
    #[error("platform: the secure world does not offer FF-A 1.2 (FFA_VERSION: {response:#x})")]
    NoFfa {
        /// What FFA_VERSION answered, 32 bits.
        response: u32,
    },
    /// SPM_MM of another major version.
    #[error("platform: the secure world's SPM_MM is of version {major}.{minor}, 1.x is supported")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// FF-A is there, and no partition has the MM service.
    #[error("platform: FF-A is there, but no partition offers the MM communication service")]
    NoPartition,
    /// The MM partition takes no direct requests.
    #[error("platform: the MM partition {id:#06x} does not take direct requests")]
    NoDirectRequests {
        /// The partition's identifier.
        id: u16,
    },
    /// Discovery needs two pages, and there are none.
    #[error("platform: no {needed} bytes of page-aligned memory for FF-A's RX and TX buffers")]
    NoRxTxMemory {
        /// Bytes that were needed.
        needed: usize,
    },
    /// An outer call has not returned. The secure world serves one request at a time.
    #[error("caller: the secure world is serving a call that this one interrupted")]
    Busy,
    /// MM_COMMUNICATE failed.
    #[error("MM_COMMUNICATE: {0}")]
    SpmMm(SpmMmCode),
    /// An FF-A call failed.
    #[error("{call}: {code}")]
    Ffa {
        /// The call.
        call: &'static str,
        /// What FFA_ERROR said.
        code: FfaCode,
    },
    /// A call was answered with BUSY again and again, or MM was interrupted again and again.
    #[error("{call}: not done after {attempts} attempts")]
    Timeout {
        /// The call.
        call: &'static str,
        /// How often it was made.
        attempts: u32,
    },
    /// MM stands in the middle of a request whose call was given up, and was resumed without coming to its end. The new
    /// request was not sent.
    #[error(
        "MM: a request that was given up is still unfinished after {attempts} more resumptions; this one was not sent"
    )]
    EarlierUnfinished {
        /// How often this call has tried to resume it.
        attempts: u32,
    },
    /// MM was in the middle of a request whose call was given up, and has now come to its end. The new request was not sent:
    /// what MM still wrote to shared memory may have damaged it. The next one will be.
    #[error("MM: a request that was given up has ended only now; this one was not sent, it can be repeated")]
    EarlierEnded,
    /// A response that the interface does not know.
    #[error("secure world: {call} was answered with {response:#x}, which is no response to it")]
    Protocol {
        /// The call.
        call: &'static str,
        /// The response's function identifier, or what it carries in the place where it is wrong.
        response: u32,
    },
}

impl SmcError {
    /// The same as an `EFI_STATUS`.
    ///
    /// A code that the secure world gave has the status that edk2 gives it, but for these. BUSY is `EFI_TIMEOUT` (edk2 waits,
    /// then says the same). SPM_MM's NOT_SUPPORTED is `EFI_UNSUPPORTED` (edk2: `EFI_ACCESS_DENIED`), its -5 is TF-A's
    /// NO_MEMORY. Codes that nobody knows are `EFI_DEVICE_ERROR` (edk2: `EFI_ACCESS_DENIED` of SPM_MM, `EFI_UNSUPPORTED` of
    /// FF-A).
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::NoConduit | Self::NoMm(_) | Self::NoFfa { .. } | Self::Version { .. } => {
                EfiStatus::UNSUPPORTED
            }
            Self::NoDirectRequests { .. } => EfiStatus::UNSUPPORTED,
            Self::NoPartition => EfiStatus::NOT_FOUND,
            Self::NoRxTxMemory { .. } => EfiStatus::OUT_OF_RESOURCES,
            Self::Busy => EfiStatus::ALREADY_STARTED,
            Self::EarlierUnfinished { .. } | Self::EarlierEnded => EfiStatus::NOT_READY,
            Self::SpmMm(code) => code.status(),
            Self::Ffa { code, .. } => code.status(),
            Self::Timeout { .. } => EfiStatus::TIMEOUT,
            Self::Protocol { .. } => EfiStatus::DEVICE_ERROR,
        }
    }
}

/// An MM environment that is entered by secure monitor calls.
pub trait SecureMm: fmt::Debug + fmt::Display {
    /// Has MM process the request that stands in the comm buffer at a physical address. When it returns, MM has answered
    /// there or has said why not.
    ///
    /// Success does not mean that a handler ran: what stands in the buffer has to be checked.
    ///
    /// # Errors
    ///
    /// [`SmcError`] with what the secure world said; [`SmcError::Busy`], with no call made, inside another call;
    /// [`SmcError::EarlierUnfinished`] or [`SmcError::EarlierEnded`], with the request not sent, after [`SmcError::Timeout`] in
    /// the middle of a request.
    fn communicate(&self, buffer: u64) -> Result<(), SmcError>;
}

/// The interface that was found, and how to talk to it.
#[derive(Debug)]
enum Found {
    SpmMm(spm_mm::Version),
    Ffa(ffa::Partition),
}

/// MM behind the conduit `C`. Transactions are serial: there is one buffer, and the MM partition has one processor.
pub struct Connection<C> {
    found: Found,
    patience: Patience,
    in_call: AtomicBool,
    conduit: PhantomData<fn() -> C>,
}

/// Finds MM in the secure world.
///
/// `rx_tx` is asked for two pages of shared memory, mapped one to one, where an FF-A without PARTITION_INFO_GET_REGS makes
/// them necessary. They are the secure world's until it has unmapped them, which the call does before it returns; where
/// that fails they must never be used for anything else.
///
/// # Errors
///
/// [`SmcError::NoConduit`] without a call made; every other [`SmcError`] as its text says, but those of requests: `Busy`,
/// `SpmMm`, `EarlierUnfinished`, `EarlierEnded`.
pub fn connect<C: Conduit>(
    setup: Setup,
    rx_tx: &mut dyn FnMut() -> Option<SharedRegion>,
) -> Result<Connection<C>, SmcError> {
    if !C::el3_is_implemented() && setup.psci != PsciConduit::Smc {
        return Err(SmcError::NoConduit);
    }
    let found = match (ffa::version::<C>(), setup.interface) {
        (Ok(()), _) => Found::Ffa(ffa::find_mm::<C>(setup.patience.busy, rx_tx)?),
        (Err(response), Interface::Ffa) => return Err(SmcError::NoFfa { response }),
        (Err(_), Interface::Discover) => Found::SpmMm(spm_mm::version::<C>()?),
    };
    Ok(Connection {
        found,
        patience: setup.patience,
        in_call: AtomicBool::new(false),
        conduit: PhantomData,
    })
}

impl<C: Conduit> SecureMm for Connection<C> {
    fn communicate(&self, buffer: u64) -> Result<(), SmcError> {
        if self.in_call.swap(true, Ordering::AcqRel) {
            return Err(SmcError::Busy);
        }
        let _end = EndOfCall(&self.in_call);
        // Whatever was put into shared memory is there before MM looks.
        fence(Ordering::SeqCst);
        let result = match &self.found {
            Found::SpmMm(_) => spm_mm::communicate::<C>(buffer),
            Found::Ffa(partition) => partition.communicate::<C>(buffer, self.patience),
        };
        fence(Ordering::SeqCst);
        result
    }
}

impl<C> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.found.fmt(f)
    }
}

/// What was found, for a log.
impl<C> fmt::Display for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Found::SpmMm(version) => write!(f, "SPM_MM {version}"),
            Found::Ffa(partition) => write!(f, "FF-A, {partition}"),
        }
    }
}

/// Frees the connection for the next call.
struct EndOfCall<'a>(&'a AtomicBool);

impl Drop for EndOfCall<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Makes a call with registers x0 to x17.
///
/// Also for identifiers of 32-bit calls: [`Call::call32`] would let the compiler keep values in x8 to x17, which the older
/// calling convention lets the callee change.
fn call<C: Call>(registers: [u64; 18]) -> [u64; 18] {
    let [function, arguments @ ..] = registers;
    C::call64(low(function), arguments)
}

/// The low 32 bits. Answers are compared by these alone: an unknown identifier is answered with all ones in 64 bits, other
/// failures have them in 32 only.
const fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
mod native {
    use super::Conduit;
    use core::arch::asm;

    /// The bits of `ID_AA64PFR0_EL1` that tell of EL3.
    const EL3_SHIFT: u32 = 12;

    impl Conduit for smccc::Smc {
        fn el3_is_implemented() -> bool {
            let features: u64;
            // SAFETY: the register can be read at EL1 and above (Arm ARM, D24.2.76), which is where UEFI images and bare
            // payloads run; the read has no effect but the value.
            unsafe {
                asm!("mrs {}, id_aa64pfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags))
            };
            (features >> EL3_SHIFT) & 0xf != 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::world::{self, FakeConduit, Seen, World};
    use super::*;

    fn connect_to(world: World, setup: Setup) -> (Result<Connection<FakeConduit>, SmcError>, Seen) {
        world::with(world, || connect::<FakeConduit>(setup, &mut world::two_pages))
    }

    #[test]
    fn without_el3_no_call_is_made_unless_psci_is_called_by_smc() {
        for (psci, calls) in [
            (PsciConduit::Unknown, 0),
            (PsciConduit::Hvc, 0),
            (PsciConduit::Smc, 2),
        ] {
            let world = World {
                el3: false,
                ..World::default()
            };
            let setup = Setup {
                psci,
                ..Setup::default()
            };
            let (result, seen) = connect_to(world, setup);
            let expected = match calls {
                0 => SmcError::NoConduit,
                _ => SmcError::NoMm(SpmMmCode(-1)),
            };
            assert_eq!(result.unwrap_err(), expected);
            assert_eq!(expected.status(), EfiStatus::UNSUPPORTED);
            assert_eq!(seen.calls.len(), calls, "{psci:?}");
        }
    }

    #[test]
    fn ffa_is_asked_first_and_spm_mm_is_what_remains() {
        // Absent, too old, of another major version, an error that is not -1: all of them leave SPM_MM.
        for ffa_version in [u64::MAX, 0xffff_ffff, 0x1_0001, 0x2_0000, 0xffff_fffd] {
            let world = World {
                ffa_version,
                mm_version: 0x1_0000,
                ..World::default()
            };
            let (result, seen) = connect_to(world, Setup::default());
            assert_eq!(std::format!("{}", result.unwrap()), "SPM_MM 1.0");
            assert_eq!(seen.functions(), [0x8400_0063, 0x8400_0040]);
            assert_eq!(
                seen.calls[0].1[0], 0x1_0002,
                "the version that FFA_VERSION was given"
            );
        }
    }

    #[test]
    fn a_platform_that_insists_on_ffa_gets_no_spm_mm() {
        let world = World {
            mm_version: 0x1_0000,
            ..World::default()
        };
        let setup = Setup {
            interface: Interface::Ffa,
            ..Setup::default()
        };
        let (result, seen) = connect_to(world, setup);
        assert_eq!(result.unwrap_err(), SmcError::NoFfa { response: u32::MAX });
        assert_eq!(seen.functions(), [0x8400_0063]);
    }

    #[test]
    fn ffa_without_an_mm_partition_does_not_fall_back() {
        let world = World {
            ffa_version: 0x1_0002,
            mm_version: 0x1_0000,
            ..World::default()
        };
        let (result, seen) = connect_to(world, Setup::default());
        assert_eq!(result.unwrap_err(), SmcError::NoPartition);
        assert!(!seen.functions().contains(&0x8400_0040));
    }

    #[test]
    fn a_call_inside_a_call_is_busy_and_reaches_nobody() {
        use std::cell::Cell;
        use std::rc::Rc;
        let world = World {
            mm_version: 0x1_0000,
            ..World::default()
        };
        let (connection, _) = connect_to(world.clone(), Setup::default());
        let connection = Rc::new(connection.unwrap());
        let (inner, inside) = (Rc::new(Cell::new(None)), Rc::clone(&connection));
        let seen_inside = Rc::clone(&inner);
        let world = World {
            communicate: Rc::new(move |_| {
                seen_inside.set(Some(inside.communicate(0x2000)));
                world::answer(&[0])
            }),
            ..world
        };
        let (outer, seen) = world::with(world, || connection.communicate(0x1000));
        assert_eq!(outer, Ok(()));
        assert_eq!(inner.take(), Some(Err(SmcError::Busy)));
        assert_eq!(seen.calls.len(), 1);
        // And afterwards there is room for the next one.
        let (next, _) = world::with(World::default(), || connection.communicate(0x1000));
        assert_eq!(next, Err(SmcError::SpmMm(SpmMmCode(-1))));
    }

    #[test]
    fn every_error_has_its_efi_status() {
        for (error, status) in [
            (SmcError::NoConduit, EfiStatus::UNSUPPORTED),
            (SmcError::NoMm(SpmMmCode(-1)), EfiStatus::UNSUPPORTED),
            (SmcError::NoFfa { response: 0 }, EfiStatus::UNSUPPORTED),
            (SmcError::Version { major: 2, minor: 0 }, EfiStatus::UNSUPPORTED),
            (SmcError::NoPartition, EfiStatus::NOT_FOUND),
            (SmcError::NoDirectRequests { id: 1 }, EfiStatus::UNSUPPORTED),
            (
                SmcError::NoRxTxMemory { needed: 8192 },
                EfiStatus::OUT_OF_RESOURCES,
            ),
            (SmcError::Busy, EfiStatus::ALREADY_STARTED),
            (
                SmcError::Timeout {
                    call: "",
                    attempts: 1,
                },
                EfiStatus::TIMEOUT,
            ),
            (SmcError::EarlierUnfinished { attempts: 1 }, EfiStatus::NOT_READY),
            (SmcError::EarlierEnded, EfiStatus::NOT_READY),
            (
                SmcError::Protocol {
                    call: "",
                    response: 0,
                },
                EfiStatus::DEVICE_ERROR,
            ),
        ] {
            assert_eq!(error.status(), status, "{error}");
        }
    }
}
