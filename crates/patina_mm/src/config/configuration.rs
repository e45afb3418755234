//! The configuration that every platform with MM provides.

use super::smc::HAS_SECURE_CALLS;
use crate::config::{AcpiBase, CommunicateBuffer, MmiPort};
use alloc::vec::Vec;
use core::fmt;
use mm_wire::AddressRange;
use patina::writelncrlf;
use thiserror::Error;

/// The platform's MM environment: its ports and its comm buffers.
///
/// Both components wait until the SDK locks this config value, after which it cannot change. If a
/// platform forgets to set it, it has the default, whose ports are refused.
#[derive(Clone, Debug)]
pub struct MmCommunicationConfiguration {
    /// Intel's PMBASE: SMI_EN, 0x30 above it, says whether SMIs reach the processor. If it is not
    /// zero, SMI_EN is checked before each MMI; see [`SmiCheck`](crate::config::SmiCheck).
    ///
    /// It is trusted: 32 bits at the base + 0x30 are read before each MMI, and written with
    /// [`SmiCheck::Enable`](crate::config::SmiCheck::Enable). So it must be the chipset's base,
    /// mapped one to one if it is [`AcpiBase::Mmio`]; at another address this would change memory
    /// that Rust code uses. A value that SMI_EN cannot have (all ones, or reserved bits) is an
    /// error.
    pub acpi_base: AcpiBase,
    /// The port whose write raises the MMI; on AArch64 the secure monitor call, see
    /// [`MmiPort::Smc`].
    pub cmd_port: MmiPort,
    /// The port that is written before the command port, for MM to read. A secure monitor call does
    /// not have one: give the command port's value.
    pub data_port: MmiPort,
    /// The memory for messages. Each buffer has its own identifier.
    pub comm_buffers: Vec<CommunicateBuffer>,
    /// Whether the comm buffer `updatable_buffer_id` may move during boot, announced by the
    /// comm-buffer update protocol.
    pub enable_comm_buffer_updates: bool,
    /// The identifier of the comm buffer that may move.
    pub updatable_buffer_id: Option<u8>,
}

impl Default for MmCommunicationConfiguration {
    fn default() -> Self {
        Self {
            cmd_port: MmiPort::Smi(0xff),
            data_port: MmiPort::Smi(0x00),
            acpi_base: AcpiBase::Mmio(0),
            enable_comm_buffer_updates: false,
            updatable_buffer_id: None,
            comm_buffers: Vec::new(),
        }
    }
}

/// What is wrong with a configuration. The platform's fault, except [`Self::BuffersBusy`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// The ports are those of the default: the configuration was never set.
    #[error("platform: MmCommunicationConfiguration was never set (its ports are the default's)")]
    Unset,
    /// The command port is the default's: it was never set.
    #[error(
        "platform: the command port was never set: it is the default's {command}; the data port is {data}"
    )]
    CommandPortUnset {
        /// The default's command port.
        command: MmiPort,
        /// The configured data port.
        data: MmiPort,
    },
    /// The data port is the default's: it was never set. On PCs that port belongs to a DMA
    /// controller.
    #[error(
        "platform: the data port was never set: it is the default's {data}; the command port is {command}"
    )]
    DataPortUnset {
        /// The configured command port.
        command: MmiPort,
        /// The default's data port.
        data: MmiPort,
    },
    /// One x86 port is configured for both: writing the data would raise an MMI, too.
    #[error("platform: command port and data port are both {port}, so that each call would raise two MMIs")]
    SamePort {
        /// The configured port.
        port: MmiPort,
    },
    /// The ports are those of PCs, swapped.
    #[error(
        "platform: command port {command} and data port {data} are swapped: a write to 0xB2 raises the MMI, 0xB3 carries the data"
    )]
    PortsSwapped {
        /// The configured command port.
        command: MmiPort,
        /// The configured data port.
        data: MmiPort,
    },
    /// Two comm buffers have the same identifier.
    #[error("platform: two comm buffers have the identifier {id}")]
    DuplicateBufferId {
        /// The identifier.
        id: u8,
    },
    /// Two comm buffers, or one and the mailbox of another, share memory. Two buffers may share
    /// their mailbox only if one of them is made with [`CommunicateBuffer::with_shared_mailbox`].
    #[error("platform: comm buffers {first} and {second} share memory: {first_range} and {second_range}")]
    SharedMemory {
        /// The identifier of the first.
        first: u8,
        /// Its addresses.
        first_range: AddressRange,
        /// The identifier of the second.
        second: u8,
        /// Its addresses.
        second_range: AddressRange,
    },
    /// The comm buffers cannot be replaced in the middle of a call that looks at them.
    #[error("caller: a call that this one interrupted looks at the comm buffers")]
    BuffersBusy,
    /// Command and data port are of different kinds.
    #[error("platform: command port {command} and data port {data} are of different kinds")]
    MixedPorts {
        /// The configured command port.
        command: MmiPort,
        /// The configured data port.
        data: MmiPort,
    },
    /// The ports are secure monitor calls, which this build cannot make.
    #[error(
        "platform: command port {command} is a secure monitor call, which this build cannot make; use MmiPort::Smi"
    )]
    SmcUnsupported {
        /// The configured command port.
        command: MmiPort,
    },
    /// The ports are x86 ports, and this build's target does not have port instructions that its
    /// code may use.
    #[error(
        "platform: command port {command} is an x86 I/O port, which this build cannot reach; use MmiPort::Smc on AArch64, \
         SwMmiManager::with_ports in host tests"
    )]
    PortsUnsupported {
        /// The configured command port.
        command: MmiPort,
    },
    /// The ports are two different secure monitor calls. A message needs one only.
    #[error(
        "platform: command port {command} and data port {data} are two secure monitor calls; give one for both"
    )]
    TwoSmcFunctions {
        /// The configured command port.
        command: MmiPort,
        /// The configured data port.
        data: MmiPort,
    },
    /// The command port is a secure monitor call that carries no MM messages.
    #[error("platform: command port {command} carries no MM messages{}", secure_ports())]
    SmcFunction {
        /// The configured command port.
        command: MmiPort,
    },
    /// The configured ACPI base has no SMI_EN.
    #[error(transparent)]
    AcpiBase(#[from] mm_comm::TriggerError),
}

/// Which ports are secure monitor calls that carry messages. x86 firmware does not link the text.
fn secure_ports() -> &'static str {
    if HAS_SECURE_CALLS {
        "; use SMC(0xC4000041) for SPM_MM or FF-A, SMC(0xC400006F) for FF-A only"
    } else {
        ""
    }
}

impl From<ConfigurationError> for patina::error::EfiError {
    fn from(error: ConfigurationError) -> Self {
        match error {
            ConfigurationError::Unset => Self::NotStarted,
            ConfigurationError::BuffersBusy => Self::AlreadyStarted,
            ConfigurationError::SmcUnsupported { .. } | ConfigurationError::PortsUnsupported { .. } => {
                Self::Unsupported
            }
            ConfigurationError::CommandPortUnset { .. }
            | ConfigurationError::DataPortUnset { .. }
            | ConfigurationError::SamePort { .. }
            | ConfigurationError::PortsSwapped { .. }
            | ConfigurationError::TwoSmcFunctions { .. }
            | ConfigurationError::DuplicateBufferId { .. }
            | ConfigurationError::SharedMemory { .. }
            | ConfigurationError::MixedPorts { .. }
            | ConfigurationError::SmcFunction { .. }
            | ConfigurationError::AcpiBase(_) => Self::InvalidParameter,
        }
    }
}

/// Checks that comm buffers have different identifiers and do not share memory. Disabled ones do
/// not count, because a platform that replaces a buffer disables the old one.
///
/// # Errors
///
/// [`ConfigurationError::DuplicateBufferId`] or [`ConfigurationError::SharedMemory`] for the first
/// pair found.
pub(crate) fn check_buffers(buffers: &[CommunicateBuffer]) -> Result<(), ConfigurationError> {
    let enabled = || buffers.iter().filter(|buffer| buffer.is_enabled());
    for (index, second) in enabled().enumerate() {
        for first in enabled().take(index) {
            if first.id() == second.id() {
                return Err(ConfigurationError::DuplicateBufferId { id: first.id() });
            }
            let have_one_mailbox = first.shares_mailbox_with(second);
            if let Some([first_range, second_range]) = first.overlap(second, have_one_mailbox) {
                return Err(ConfigurationError::SharedMemory {
                    first: first.id(),
                    first_range,
                    second: second.id(),
                    second_range,
                });
            }
        }
    }
    Ok(())
}

impl MmCommunicationConfiguration {
    /// For the log: what [`fmt::Display`] writes, and which comm buffers have a mailbox or may
    /// move.
    pub(crate) fn summary(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| {
            writelncrlf!(
                f,
                "MM communication: command {}, data {}, ACPI base {}",
                self.cmd_port,
                self.data_port,
                self.acpi_base
            )?;
            match (self.enable_comm_buffer_updates, self.updatable_buffer_id) {
                (true, Some(id)) => writelncrlf!(f, "  comm buffer {id} may move")?,
                (true, None) => {
                    writelncrlf!(f, "  announced moves are enabled, but no comm buffer may move")?
                }
                (false, _) => {}
            }
            if self.comm_buffers.is_empty() {
                writelncrlf!(f, "  no comm buffer")?;
            }
            for buffer in &self.comm_buffers {
                let (id, len, at) = (buffer.id(), buffer.len(), buffer.as_ptr());
                let mailbox = match (buffer.has_status_mailbox(), buffer.has_shared_mailbox()) {
                    (true, false) => "with mailbox",
                    (true, true) => "with the mailbox of the supervisor's users",
                    (false, _) => "without mailbox",
                };
                let shared = match buffer.is_shared_with_firmware() {
                    true => ", shared with the firmware",
                    false => "",
                };
                writelncrlf!(f, "  comm buffer {id}: {len} bytes at {at:p}, {mailbox}{shared}")?;
            }
            Ok(())
        })
    }
}

/// The text is the same as the published crate's, for consumers that compare it.
impl fmt::Display for MmCommunicationConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: [(&str, &dyn fmt::Display); 3] = [
            ("ACPI Base", &self.acpi_base),
            ("Command Port", &self.cmd_port),
            ("Data Port", &self.data_port),
        ];
        writelncrlf!(f, "MM Communication Configuration:")?;
        for (name, value) in fields {
            writelncrlf!(f, "  {name}: {value}")?;
        }
        let buffers = &self.comm_buffers;
        writelncrlf!(f, "  Communication Buffers ({}):", buffers.len())?;
        if buffers.is_empty() {
            writelncrlf!(f, "    <none>")?;
        }
        for buffer in buffers {
            let (id, at, len) = (buffer.id(), buffer.as_ptr(), buffer.len());
            writelncrlf!(f, "    Buffer {id:#04X}: ptr={at:p}, len=0x{len:X}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::string::ToString;
    use alloc::vec;
    use core::pin::Pin;

    fn buffer(id: u8) -> CommunicateBuffer {
        CommunicateBuffer::new(Pin::new(Box::leak(vec![0; 64].into_boxed_slice())), id)
    }

    #[test]
    fn buffers_with_one_id_are_refused() {
        let buffers = [buffer(1), buffer(2), buffer(1)];
        assert_eq!(
            check_buffers(&buffers),
            Err(ConfigurationError::DuplicateBufferId { id: 1 })
        );
        assert_eq!(check_buffers(&buffers[..2]), Ok(()));
    }

    #[test]
    fn one_mailbox_for_two_buffers_is_refused_unless_one_is_the_supervisors() {
        let users = CommunicateBuffer::of_a_page(1);
        let supervisors = |id| CommunicateBuffer::of_a_page_beside(id, &users);
        let shared_memory = |buffers: &[CommunicateBuffer]| {
            matches!(
                check_buffers(buffers),
                Err(ConfigurationError::SharedMemory { .. })
            )
        };
        assert!(shared_memory(&[supervisors(0), users.clone()]));
        let supervisor = supervisors(0).with_shared_mailbox();
        assert_eq!(check_buffers(&[supervisor.clone(), users.clone()]), Ok(()));
        assert_eq!(check_buffers(&[users.clone(), supervisor.clone()]), Ok(()));
        // A platform can have only one supervisor.
        let two = [supervisor, users.clone(), supervisors(2).with_shared_mailbox()];
        assert!(shared_memory(&two));
    }

    #[test]
    fn a_configuration_prints_ports_and_buffers() {
        let config = MmCommunicationConfiguration {
            acpi_base: AcpiBase::Io(0x600),
            cmd_port: MmiPort::Smi(0xb2),
            data_port: MmiPort::Smi(0xb3),
            comm_buffers: vec![buffer(7)],
            enable_comm_buffer_updates: true,
            updatable_buffer_id: Some(7),
        };
        let text = config.summary().to_string();
        assert!(
            text.contains("command SMI(0x00B2), data SMI(0x00B3), ACPI base IO(0x0600)"),
            "{text}"
        );
        assert!(text.contains("comm buffer 7 may move"), "{text}");
        assert!(text.contains("comm buffer 7: 64 bytes at 0x"), "{text}");
        assert!(
            MmCommunicationConfiguration::default()
                .summary()
                .to_string()
                .contains("no comm buffer")
        );
    }
}
