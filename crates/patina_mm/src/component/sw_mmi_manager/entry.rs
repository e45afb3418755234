//! What the configuration's ports mean: x86 ports, or a connection to the secure world.

use super::secure::{self, Connect, Inputs};
use crate::config::{
    AcpiBase, ConfigurationError, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort, SmiCheck,
};
use core::fmt;
use mm_comm::smc::SmcError;
use mm_comm::{PortTrigger, SmiEnableRegister};

/// The way into MM that the configuration asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    /// x86 ports.
    Ports(PortTrigger),
    /// A secure monitor call, and how to make it.
    Smc(secure::Plan),
}

/// The way into MM.
pub(super) enum Entry {
    /// x86 ports: an MMI is raised, and taken some time later.
    Ports(PortTrigger),
    /// Secure monitor calls: MM has run when the call returns.
    Secure(secure::Way),
}

/// The command and data port of PCs, swapped: APM_CNT is 0xB2 and APM_STS 0xB3 (Intel ICH9, 13.7),
/// and so are AMD's ports once coreboot has set them up (`PM_ACPI_SMI_CMD`).
const SWAPPED: (MmiPort, MmiPort) = (MmiPort::Smi(0xb3), MmiPort::Smi(0xb2));

impl Plan {
    /// Checks the configuration's ports. `has_ports` says whether this machine has x86 ports,
    /// `connect` is `None` if it has no secure monitor calls, `inputs` are for these.
    pub(super) fn new(
        config: &MmCommunicationConfiguration,
        options: &MmCommunicationOptions,
        inputs: &Inputs<'_>,
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
                let plan = secure::Plan::new(connect, function, inputs);
                plan.map(Self::Smc)
                    .ok_or(ConfigurationError::SmcFunction { command })
            }
            _ => Err(ConfigurationError::MixedPorts { command, data }),
        }
    }

    /// Connects to the secure world if MM is there.
    pub(super) fn open(self, inputs: &Inputs<'_>) -> Result<Entry, SmcError> {
        match self {
            Self::Ports(trigger) => Ok(Entry::Ports(trigger)),
            Self::Smc(plan) => plan.open(inputs).map(Entry::Secure),
        }
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

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(trigger) => trigger.fmt(f),
            Self::Secure(connection) => connection.fmt(f),
        }
    }
}

/// The text that the log has for a way into MM.
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
