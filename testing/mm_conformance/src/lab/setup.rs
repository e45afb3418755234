//! How a client is set up, and what it needs from its site.

use super::BootEvent;
#[cfg(doc)]
use super::{Abilities, Client};
use crate::mm::Release;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::{EfiStatus, Guid, HeaderFormat};
use thiserror::Error;

/// What a client that did not come up left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Whether there is a service that raises MMIs.
    pub offers_mmis: bool,
    /// Whether there is a service that carries messages.
    pub offers_communication: bool,
    /// What was written to I/O ports.
    pub port_writes: Vec<(u16, u8)>,
}

/// Why a client did not come up.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SetupFailure {
    /// A component of the client refused to start.
    #[error("{component} refused to start: {status}; what remains: {remains:?}")]
    Refused {
        /// Its name.
        component: String,
        /// What it returned.
        status: EfiStatus,
        /// What exists nevertheless.
        remains: Remains,
    },
    /// A component never got what it waits for.
    #[error("{component} was not dispatched; what remains: {remains:?}")]
    NotDispatched {
        /// Its name.
        component: String,
        /// What exists nevertheless.
        remains: Remains,
    },
    /// The lab cannot do this.
    #[error("the lab cannot set this up: {0}")]
    Impossible(&'static str),
}

/// The ports in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortSetup {
    /// The machine's own ports.
    #[default]
    Machine,
    /// The configuration was never set.
    Unset,
    /// Only the command port was set.
    CommandOnly,
    /// Only the data port was set.
    DataOnly,
    /// The command port is both.
    Same,
    /// Secure monitor calls.
    Smc,
    /// The command port is one of the machine's, the data port is a secure monitor call.
    Mixed,
}

/// Where a mailbox is, in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MailboxSetup {
    /// On a separate page.
    #[default]
    OwnPage,
    /// No mailbox.
    None,
    /// In the middle of the first comm buffer.
    InFirstBuffer,
}

/// One comm buffer in a [`Setup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSetup {
    /// Its identifier.
    pub id: u8,
    /// Its size in pages.
    pub pages: usize,
    /// Its mailbox.
    pub mailbox: MailboxSetup,
    /// Whether it starts one page into the buffer before it.
    pub overlaps_previous: bool,
    /// The header of calls that do not ask for another one.
    pub header: HeaderFormat,
}

impl BufferSetup {
    /// A buffer of 4 pages with a mailbox.
    #[must_use]
    pub const fn new(id: u8) -> Self {
        Self {
            id,
            pages: 4,
            mailbox: MailboxSetup::OwnPage,
            overlaps_previous: false,
            header: HeaderFormat::V1,
        }
    }
}

/// When the configuration is locked, in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockSetup {
    /// Before the components are dispatched.
    #[default]
    Before,
    /// By a component that is dispatched after them, and that fills the configuration in first.
    Later,
    /// There is no configuration.
    Absent,
}

/// Which HOB announces a comm buffer, in a [`HobSetup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HobKind {
    /// edk2's comm-buffer HOB.
    CommBuffer,
    /// Project Mu's comm-region HOB of three fields, for this owner.
    Region3(u64),
    /// The comm-region HOB of four fields.
    Region4(u64),
}

/// One HOB that announces a comm buffer of the [`Setup`], and its mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HobSetup {
    /// The HOB.
    pub kind: HobKind,
    /// The index of the comm buffer.
    pub of: usize,
    /// An address instead of the comm buffer's.
    pub address: Option<u64>,
    /// Pages instead of the comm buffer's.
    pub pages: Option<u64>,
    /// A mailbox address instead of the comm buffer's.
    pub mailbox: Option<u64>,
    /// Number of data bytes, if not all of them.
    pub len: Option<usize>,
}

impl HobSetup {
    /// A correct HOB.
    #[must_use]
    pub const fn new(kind: HobKind, of: usize) -> Self {
        Self {
            kind,
            of,
            address: None,
            pages: None,
            mailbox: None,
            len: None,
        }
    }

    /// The HOB's GUID and data, for a comm buffer with this place.
    #[must_use]
    pub fn data(&self, address: u64, pages: u64, mailbox: u64) -> (Guid, Vec<u8>) {
        let address = self.address.unwrap_or(address);
        let pages = self.pages.unwrap_or(pages);
        let mailbox = self.mailbox.unwrap_or(mailbox);
        let (guid, fields) = match self.kind {
            HobKind::CommBuffer => (
                mm_wire::hob::COMM_BUFFER_HOB_GUID,
                [address, pages, mailbox].to_vec(),
            ),
            HobKind::Region3(owner) => (
                mm_wire::hob::COMM_REGION_HOB_GUID,
                [owner, address, pages].to_vec(),
            ),
            HobKind::Region4(owner) => (
                mm_wire::hob::COMM_REGION_HOB_GUID,
                [owner, address, pages, mailbox].to_vec(),
            ),
        };
        let mut data: Vec<u8> = fields.into_iter().flat_map(u64::to_le_bytes).collect();
        data.resize(self.len.unwrap_or(data.len()), 0);
        (guid, data)
    }
}

/// How the platform's hook is offered, in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControlSetup {
    /// The platform registers it before anything is dispatched.
    #[default]
    Early,
    /// A component that is dispatched after the trigger would be. The platform declares that there
    /// is one.
    LateAndDeclared,
    /// It is not offered, although the platform declares it.
    MissingAndDeclared,
}

/// How a client is set up. [`Setup::default`] gives a client that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The configured ports.
    pub ports: PortSetup,
    /// Whether a platform's own trigger raises the MMIs, which always fails.
    pub failing_trigger: bool,
    /// The comm buffers.
    pub buffers: Vec<BufferSetup>,
    /// When the configuration is locked.
    pub lock: LockSetup,
    /// The platform's hook: `None` if it has none, else what it returns.
    pub platform_control: Option<Result<(), EfiStatus>>,
    /// How that hook is offered.
    pub control: ControlSetup,
    /// What is written to the command port; `None` for the machine's usual value.
    pub command_value: Option<u8>,
    /// What is written to the data port.
    pub data_value: u8,
    /// Whether the configuration has the address of SMI_EN.
    pub acpi_base: bool,
    /// Whether the client switches SMIs on if they are off.
    pub enable_smis: bool,
    /// The timeout: how often the client polls the mailbox.
    pub polls: u32,
    /// After how many pauses MM is entered. Needs [`Abilities::LATENCY`] unless it is 1.
    pub latency: u32,
    /// The buffer that may move.
    pub updatable: Option<u8>,
    /// Pages of fresh memory that are announced for it before the client comes up.
    pub moved_early: Option<usize>,
    /// The HOBs that the configuration comes from; `None` for a configuration that was made by
    /// hand.
    pub hobs: Option<Vec<HobSetup>>,
    /// The buffer that the protocols for C send through; `None` for no such protocols.
    pub produced: Option<u8>,
    /// Whether the client sends through protocols: those of the firmware itself, if it has any,
    /// otherwise those of [`Self::produced`], if that is set.
    pub through_firmware: bool,
    /// Whether the firmware's protocols are those of edk2's `MmCommunicationDxe`, which has its own
    /// shared buffer. Needs [`Abilities::PORTS`] and [`Abilities::MAILBOX`].
    pub firmware_is_edk2: bool,
    /// Whether edk2's variable driver waits for its markers before the client comes up:
    /// [`Client::variable_driver`].
    pub variable_driver: bool,
    /// Whether the producer installs these markers.
    pub variable_markers: bool,
    /// The buffer through which the boot's events are sent to MM.
    pub events: Option<u8>,
    /// The buffer through which they are sent to the MM supervisor, too.
    pub supervisor_events: Option<u8>,
    /// The events that are not sent to MM's handlers, because the platform's drivers do that.
    pub events_left_out: Vec<BootEvent>,
    /// Whether the platform has Project Mu's driver: its protocol is installed before the client
    /// comes up.
    pub supervisors_driver: bool,
    /// Whether `DXE_MM_READY_TO_LOCK` is installed before the client comes up.
    pub locked_early: bool,
    /// The buffer that the MM supervisor's client uses.
    pub supervisor: Option<u8>,
    /// Which of Project Mu's supervisors serves comm buffers 0 and 1; `None` for an MM core that
    /// serves all alike.
    pub project_mu: Option<Release>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ports: PortSetup::Machine,
            failing_trigger: false,
            buffers: [BufferSetup::new(0), BufferSetup::new(1)].to_vec(),
            lock: LockSetup::Before,
            platform_control: None,
            control: ControlSetup::Early,
            command_value: None,
            data_value: 0,
            acpi_base: true,
            enable_smis: false,
            polls: 1000,
            latency: 1,
            updatable: None,
            moved_early: None,
            hobs: None,
            produced: None,
            through_firmware: false,
            firmware_is_edk2: false,
            variable_driver: false,
            variable_markers: false,
            events: None,
            supervisor_events: None,
            events_left_out: Vec::new(),
            supervisors_driver: false,
            locked_early: false,
            supervisor: None,
            project_mu: None,
        }
    }
}
