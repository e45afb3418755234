//! What the configuration's ports mean: x86 ports, or a connection to the secure world. An unsafe
//! island (`docs/unsafe.md`).

use crate::config::{
    AcpiBase, ConfigurationError, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort, SmcOptions,
    SmiCheck,
};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use mm_comm::smc::{self, Conduit, Connection, RxTxMemory, SecureMm, ffa, spm_mm};
use mm_comm::{PortTrigger, SharedRegion, SmiEnableRegister};
use mm_wire::AddressRange;

pub use mm_comm::smc::SmcError;

/// Finds MM in the secure world, through a conduit that the function's maker chose.
pub(super) type Connect = fn(smc::Setup, RxTx) -> Result<Box<dyn SecureMm>, SmcError>;

/// The way into MM that the configuration asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    /// x86 ports.
    Ports(PortTrigger),
    /// A secure monitor call, and how to make it.
    Smc(Connect, smc::Setup),
}

/// The way into MM.
pub(super) enum Entry {
    /// x86 ports: an MMI is raised, and taken some time later.
    Ports(PortTrigger),
    /// Secure monitor calls: MM has run when the call returns.
    Secure(Box<dyn SecureMm>),
}

/// The command and data port of PCs, the wrong way round: APM_CNT is 0xB2 and APM_STS 0xB3 (Intel
/// ICH9, 13.7), and so are AMD's ports once coreboot has set them up (`PM_ACPI_SMI_CMD`).
const SWAPPED: (MmiPort, MmiPort) = (MmiPort::Smi(0xb3), MmiPort::Smi(0xb2));

impl Plan {
    /// Checks the configuration's ports. `has_ports` says whether this machine has x86 ports,
    /// `connect` is `None` if it has no secure monitor calls.
    pub(super) fn new(
        config: &MmCommunicationConfiguration,
        options: &MmCommunicationOptions,
        smc: &SmcOptions,
        has_ports: bool,
        connect: Option<Connect>,
    ) -> Result<Self, ConfigurationError> {
        let unset = MmCommunicationConfiguration::default();
        let (command, data) = (config.cmd_port, config.data_port);
        match (command == unset.cmd_port, data == unset.data_port) {
            (true, true) => return Err(ConfigurationError::Unset),
            (true, false) => return Err(ConfigurationError::CommandPortUnset { command, data }),
            (false, true) => return Err(ConfigurationError::DataPortUnset { command, data }),
            (false, false) => {}
        }
        match (command, data) {
            (MmiPort::Smi(_), MmiPort::Smi(_)) if !has_ports => {
                Err(ConfigurationError::PortsUnsupported { command })
            }
            (MmiPort::Smi(_), MmiPort::Smi(_)) if command == data => {
                Err(ConfigurationError::SamePort { port: command })
            }
            SWAPPED => Err(ConfigurationError::PortsSwapped { command, data }),
            (MmiPort::Smi(command), MmiPort::Smi(data)) => {
                port_trigger(command, data, config.acpi_base, options).map(Self::Ports)
            }
            (MmiPort::Smc(_), MmiPort::Smc(_)) if command != data => {
                Err(ConfigurationError::TwoSmcFunctions { command, data })
            }
            (MmiPort::Smc(function), MmiPort::Smc(_)) => {
                let connect = connect.ok_or(ConfigurationError::SmcUnsupported { command })?;
                let (interface, request) =
                    interface(function).ok_or(ConfigurationError::SmcFunction { command })?;
                let setup = smc::Setup {
                    psci: smc.psci,
                    interface,
                    patience: smc.patience,
                    time_limit: smc.time_limit,
                    partition: smc.partition.map(|id| ffa::NamedPartition { id, request }),
                };
                Ok(Self::Smc(connect, setup))
            }
            _ => Err(ConfigurationError::MixedPorts { command, data }),
        }
    }

    /// Opens the way. `rx_tx` is for FF-A.
    pub(super) fn open(self, rx_tx: RxTx) -> Result<Entry, SmcError> {
        match self {
            Self::Ports(trigger) => Ok(Entry::Ports(trigger)),
            Self::Smc(connect, setup) => connect(setup, rx_tx).map(Entry::Secure),
        }
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

fn port_trigger(
    command_port: u16,
    data_port: u16,
    acpi_base: AcpiBase,
    options: &MmCommunicationOptions,
) -> Result<PortTrigger, ConfigurationError> {
    let smi_enable = match acpi_base {
        _ if options.smi_check == SmiCheck::Off => None,
        AcpiBase::Io(0) | AcpiBase::Mmio(0) => None,
        AcpiBase::Io(base) => Some(SmiEnableRegister::behind_io_base(base)?),
        AcpiBase::Mmio(base) => Some(SmiEnableRegister::behind_mmio_base(base)?),
    };
    Ok(PortTrigger {
        command_port,
        data_port,
        smi_enable,
        check: options.smi_check,
    })
}

/// Why SMI_EN is not read.
pub(super) const fn why_unread(trigger: &PortTrigger) -> &'static str {
    match trigger.check {
        SmiCheck::Off => "not read: SmiCheck::Off",
        _ => "not read: no ACPI base was given",
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
    /// No other driver has announced buffers.
    #[cfg(test)]
    pub(super) const NONE: Self = Self { mapped_rx: None };

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

/// The secure monitor calls of this processor; `None` if the target has none that this code may make.
#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
pub(super) const NATIVE: Option<Connect> = Some(connect::<smc::Smc>);

/// The secure monitor calls of this processor; `None` if the target has none that this code may make.
#[cfg(not(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none"))))]
pub(super) const NATIVE: Option<Connect> = None;

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(trigger) => trigger.fmt(f),
            Self::Secure(connection) => connection.fmt(f),
        }
    }
}

/// For the log.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(trigger) => {
                let (command, data) = (trigger.command_port, trigger.data_port);
                write!(f, "command port {command:#06x}, data port {data:#06x}, SMI_EN ")?;
                match trigger.checked_register() {
                    Some(register) => write!(f, "checked at {:#x}", register.address()),
                    None => f.write_str(why_unread(trigger)),
                }
            }
            Self::Secure(connection) => write!(f, "secure monitor calls: {connection}"),
        }
    }
}
