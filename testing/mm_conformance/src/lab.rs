//! What a host of the suite provides.

use crate::mm::Release;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::message::supervisor::UnblockMemory;
use mm_wire::{EfiStatus, Guid, HeaderFormat, MailboxImage};
use patina_mm::component::communicator::Status;
use patina_mm::config::CommunicateBufferStatus;
use patina_mm::service::SupervisorError;
use thiserror::Error;

bitflags::bitflags! {
    /// What a lab can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Abilities: u32 {
        /// The MM side is [`ConformanceMm`](crate::mm::ConformanceMm): its handlers answer, and it lies on request.
        const CONTROLLED_MM = 1 << 0;
        /// edk2's variable service, or one that answers like it, is behind its GUID.
        const VARIABLES = 1 << 1;
        /// Comm buffers can have a status mailbox.
        const MAILBOX = 1 << 2;
        /// SMIs can be switched off and on at the chipset.
        const SMI_SWITCH = 1 << 3;
        /// Code can run in the middle of a call.
        const CALLBACKS = 1 << 4;
        /// The client's log can be read.
        const LOGS = 1 << 5;
        /// The time between the port write and MM's entry can be set.
        const LATENCY = 1 << 6;
        /// A comm buffer can be moved by the update protocol.
        const UPDATES = 1 << 7;
        /// MM understands v3 communicate headers.
        const V3_HEADERS = 1 << 8;
        /// The configuration can come from HOBs.
        const HOBS = 1 << 9;
        /// MMIs are raised through x86 ports.
        const PORTS = 1 << 10;
        /// MM is entered by secure monitor calls, one request at a time.
        const SECURE_CALLS = 1 << 11;
        /// Somebody in MM takes requests.
        const MM = 1 << 12;
        /// Nobody does, and the machine says so.
        const NO_MM = 1 << 13;
        /// The client's protocols for C can be called.
        const PRODUCED_PROTOCOLS = 1 << 14;
        /// A client can be set up over the firmware's protocols, or those of another client.
        const FIRMWARE_PROTOCOLS = 1 << 15;
        /// The boot\'s events can be signalled.
        const EVENTS = 1 << 16;
        /// The client of the MM supervisor can be asked.
        const SUPERVISOR = 1 << 17;
        /// edk2's variable driver can wait for its markers: [`Setup::variable_driver`].
        const VARIABLE_DRIVER = 1 << 18;
        /// MM says if no handler took a request, or its handler failed.
        const NO_HANDLER_STATUS = 1 << 19;
        /// A response may be longer than its request.
        const LONGER_RESPONSES = 1 << 20;
    }
}

impl Abilities {
    /// The names of the abilities, for a report.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        self.iter_names().map(|(name, _)| name).collect()
    }
}

/// What an observer sees of a client that did not come up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Whether somebody offers to raise MMIs.
    pub offers_mmis: bool,
    /// Whether somebody offers to carry messages.
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
        /// What there is nevertheless.
        remains: Remains,
    },
    /// A component never got what it waits for.
    #[error("{component} was not dispatched; what remains: {remains:?}")]
    NotDispatched {
        /// Its name.
        component: String,
        /// What there is nevertheless.
        remains: Remains,
    },
    /// The lab cannot do this.
    #[error("the lab cannot set this up: {0}")]
    Impossible(&'static str),
}

/// The ports in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortSetup {
    /// The machine's own.
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
    /// On a page of its own.
    #[default]
    OwnPage,
    /// There is none.
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
    /// Nobody has a configuration.
    Absent,
}

/// Which HOB announces a comm buffer, in a [`HobSetup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HobKind {
    /// edk2's comm-buffer HOB.
    CommBuffer,
    /// Project Mu's comm-region HOB of three fields, for this owner.
    Region3(u64),
    /// The same of four fields.
    Region4(u64),
}

/// One HOB that announces a comm buffer of the [`Setup`], with whatever is to be wrong with it.
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
    /// Bytes of data that there are, instead of all of them.
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

/// Who offers the platform's hook, in a [`Setup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControlSetup {
    /// The platform registers it before anything is dispatched.
    #[default]
    Early,
    /// A component that is dispatched after the trigger would be. The platform declares that there is one.
    LateAndDeclared,
    /// Nobody, although the platform declares that there is one.
    MissingAndDeclared,
}

/// How a client is to be set up. [`Setup::default`] is a client that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The configured ports.
    pub ports: PortSetup,
    /// Whether MMIs are raised by somebody else's trigger, which always fails.
    pub failing_trigger: bool,
    /// The comm buffers.
    pub buffers: Vec<BufferSetup>,
    /// When the configuration is locked.
    pub lock: LockSetup,
    /// The platform's hook: `None` where it has none, else what it returns.
    pub platform_control: Option<Result<(), EfiStatus>>,
    /// Who offers that hook.
    pub control: ControlSetup,
    /// What is written to the command port; `None` for the machine's usual value.
    pub command_value: Option<u8>,
    /// What is written to the data port.
    pub data_value: u8,
    /// Whether the client is told where SMI_EN is.
    pub acpi_base: bool,
    /// Whether the client is to switch SMIs on where they are off.
    pub enable_smis: bool,
    /// How often the client looks at the mailbox.
    pub polls: u32,
    /// After how many pauses MM is entered. Needs [`Abilities::LATENCY`] where it is not 1.
    pub latency: u32,
    /// The buffer that may move.
    pub updatable: Option<u8>,
    /// Pages of fresh memory that are announced for it before the client comes up.
    pub moved_early: Option<usize>,
    /// The HOBs that the configuration comes from; `None` for a configuration that was made by hand.
    pub hobs: Option<Vec<HobSetup>>,
    /// The buffer that the protocols for C send through; `None` for no such protocols.
    pub produced: Option<u8>,
    /// Whether the client that scenarios see sends through protocols: those that the firmware itself has, where it has some,
    /// else those that are produced here. Without [`Self::produced`] there are none.
    pub through_firmware: bool,
    /// Whether the firmware's protocols are those of edk2's `MmCommunicationDxe`, with a shared buffer of its own. Needs
    /// [`Abilities::PORTS`] and [`Abilities::MAILBOX`].
    pub firmware_is_edk2: bool,
    /// Whether edk2's variable driver waits for its markers before the client comes up: [`Machine::variable_driver`].
    pub variable_driver: bool,
    /// Whether the producer installs these markers.
    pub variable_markers: bool,
    /// The buffer through which MM is told of the boot's events.
    pub events: Option<u8>,
    /// The buffer through which the MM supervisor is told of them, too.
    pub supervisor_events: Option<u8>,
    /// The events that MM's handlers are not told of, because the platform's drivers do that.
    pub events_left_out: Vec<BootEvent>,
    /// Whether Project Mu's own driver is there: its protocol is installed before the client comes up.
    pub supervisors_driver: bool,
    /// Whether `DXE_MM_READY_TO_LOCK` is installed before the client comes up.
    pub locked_early: bool,
    /// The buffer that the MM supervisor's client uses.
    pub supervisor: Option<u8>,
    /// Which of Project Mu's supervisors serves comm buffers 0 and 1; `None` for an MM core that serves all alike.
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

/// Where a call wants its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseTo {
    /// Memory that the client allocates.
    #[default]
    Allocation,
    /// The caller's own memory, of this many bytes.
    Slice(usize),
    /// A closure, which reads this many bytes at a time.
    Closure(usize),
    /// A type of 16 bytes.
    Type16,
}

/// How a call is made. The default is the plain call of [`Machine::communicate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The header; `None` for the comm buffer's own. Needs [`Abilities::V3_HEADERS`] where it is v3.
    pub header: Option<HeaderFormat>,
    /// Where the response goes. Into an allocation and a slice only the comm buffer's own header leads.
    pub response: ResponseTo,
}

/// Where an announced buffer is, in an [`Update`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdatePlace {
    /// In memory that the lab sets aside for it, at most 8 pages.
    #[default]
    Fresh,
    /// Exactly where this buffer is now.
    Over(u8),
    /// Exactly where this buffer was when the client came up.
    Former(u8),
}

/// What is announced through the comm-buffer update protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The protocol's version.
    pub version: u64,
    /// Pages of the new buffer.
    pub pages: u64,
    /// Where it is.
    pub place: UpdatePlace,
    /// A mailbox address instead of a fresh one.
    pub mailbox: Option<u64>,
}

impl Update {
    /// A correct announcement of fresh memory.
    #[must_use]
    pub const fn to_pages(pages: u64) -> Self {
        Self {
            version: 1,
            pages,
            place: UpdatePlace::Fresh,
            mailbox: None,
        }
    }
}

/// How much of the client's log is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything but trace.
    Debug,
    /// Everything.
    Trace,
}

/// An event of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootEvent {
    /// The event group of the end of DXE.
    EndOfDxe,
    /// The protocol that says that MM is to be locked is installed.
    ReadyToLock,
    /// The event group of ready to boot.
    ReadyToBoot,
    /// The event group of exit boot services.
    ExitBootServices,
}

/// A request to the MM supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SupervisorCall {
    /// Its version; the response is version, patch level and highest request, 32 bits each.
    Version,
    /// To unblock memory.
    Unblock(UnblockMemory),
    /// Its policy, into so many bytes.
    Policy(usize),
    /// To move its own comm buffer and the other one, to fresh memory.
    Move(Move),
    /// The same, to fresh memory of 4 pages each that MM does not take, with the two mixed up.
    MoveMixedUp,
}

/// A move of the MM supervisor's comm buffer and the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Pages of the supervisor's new buffer.
    pub supervisor: usize,
    /// Pages of the other one.
    pub users: usize,
    /// Whether MM is told of the memory first, so that it can serve it. It then starts anew.
    pub is_told: bool,
    /// The piece of memory that MM refuses, because it was unblocked before.
    pub refused: Option<Piece>,
    /// What is in the new mailboxes: zeros, or what looks like a request.
    pub are_mailboxes_stale: bool,
}

impl Move {
    /// One that MM takes, of buffers with 4 pages.
    pub const TAKEN: Self = Self {
        supervisor: 4,
        users: 4,
        is_told: true,
        refused: None,
        are_mailboxes_stale: false,
    };
}

/// A piece of the memory that comm buffers move to, in the order in which a supervisor looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The supervisor's buffer.
    Supervisor,
    /// The users' buffer.
    Users,
    /// The users' mailbox.
    UsersMailbox,
}

/// Which of the protocols for C, and the addresses that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CProtocol {
    /// `EFI_MM_COMMUNICATION_PROTOCOL`.
    One,
    /// `EFI_MM_COMMUNICATION2_PROTOCOL`.
    Two,
    /// `EFI_MM_COMMUNICATION3_PROTOCOL`.
    Three,
    /// Protocol 2 with a virtual address 8 bytes behind the physical one.
    TwoApart,
    /// Protocol 3, likewise.
    ThreeApart,
    /// Protocol 2, with the caller's bytes put at the start of this comm buffer, which is what is passed. Without bytes the
    /// comm buffer is passed as it stands.
    TwoInPlace(u8),
    /// Protocol 3, likewise. The header says how long the buffer is.
    ThreeInPlace(u8),
}

/// A call of one of the protocols for C. The machine passes `bytes` in memory of exactly their length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CCall {
    /// The protocol.
    pub protocol: CProtocol,
    /// The caller's buffer; `None` for a null pointer.
    pub bytes: Option<Vec<u8>>,
    /// What CommSize points to; `None` for a null pointer. Protocol 3 has none.
    pub comm_size: Option<usize>,
}

/// What came of a [`CCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CReply {
    /// The function's result.
    pub status: EfiStatus,
    /// The caller's buffer afterwards.
    pub bytes: Vec<u8>,
    /// What CommSize points to afterwards.
    pub comm_size: Option<usize>,
}

/// What is run in the middle of a call.
pub type Callback = Box<dyn FnOnce(&dyn Machine)>;

/// A place where clients can be set up.
pub trait Lab {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Sets a client up.
    ///
    /// # Errors
    ///
    /// [`SetupFailure`] says which part refused.
    fn bring_up(&self, setup: &Setup) -> Result<Box<dyn Machine>, SetupFailure>;

    /// Has the client take over memory as a comm buffer, and give it up again.
    ///
    /// # Errors
    ///
    /// [`CommunicateBufferStatus`] says why it would not.
    fn adopt(&self, address: u64, len: usize, mailbox: Option<u64>) -> Result<(), CommunicateBufferStatus>;

    /// The address of memory that [`Self::adopt`] may be tried with: 8 pages, aligned, mapped one to one.
    fn scratch(&self) -> u64;

    /// How many calls an endurance scenario makes.
    fn many_calls(&self) -> u32;

    /// Records the client's log while `run` runs. Needs [`Abilities::LOGS`].
    fn with_log(&self, level: LogLevel, run: &mut dyn FnMut()) -> String;
}

/// One client, and what an observer sees of the machine around it.
pub trait Machine {
    /// Sends a message and waits for the response.
    ///
    /// # Errors
    ///
    /// The client's own error.
    fn communicate(&self, buffer: u8, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status>;

    /// As [`Self::communicate`], made in another way.
    ///
    /// # Errors
    ///
    /// As [`Self::communicate`].
    fn communicate_as(
        &self,
        call: Call,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, Status>;

    /// As [`Self::communicate`], with `callback` run once in the middle of it: the request stands in the buffer, MM has not
    /// been entered. Needs [`Abilities::CALLBACKS`].
    ///
    /// # Errors
    ///
    /// As [`Self::communicate`], of the outer call.
    fn communicate_around(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
        callback: Callback,
    ) -> Result<Vec<u8>, Status>;

    /// Runs `code` as a notification at `TPL_CALLBACK`: at once, or as soon as the TPL is below that. Needs
    /// [`Abilities::CALLBACKS`].
    fn notify(&self, code: Callback);

    /// The markers that edk2's variable driver has found, in order, and with the first one what came of its first call. Empty
    /// without [`Setup::variable_driver`].
    fn variable_driver(&self) -> Vec<(Guid, Option<CReply>)> {
        Vec::new()
    }

    /// Starts Project Mu's MmDxeSupport: it moves both comm buffers, announces the users' alone, and from then on tells the
    /// supervisor of the boot's events. Its MMIs are not counted. Needs [`Abilities::SUPERVISOR`] and [`Abilities::UPDATES`].
    ///
    /// # Errors
    ///
    /// [`Status::NotProcessed`] if it does not start.
    fn start_project_mus_driver(&self) -> Result<(), Status> {
        Err(Status::Unsupported)
    }

    /// Calls one of the protocols for C; `None` where it is not installed. Needs [`Abilities::PRODUCED_PROTOCOLS`].
    fn call_c(&self, call: &CCall) -> Option<CReply>;

    /// Sends a message as the firmware's own driver for this comm buffer does. Needs [`Abilities::PORTS`] and
    /// [`Abilities::MAILBOX`].
    ///
    /// # Errors
    ///
    /// The status that the driver's function returns.
    fn call_firmware_driver(&self, buffer: u8, message: &[u8], recipient: Guid)
    -> Result<Vec<u8>, EfiStatus>;

    /// Signals an event of the boot. Needs [`Abilities::EVENTS`].
    fn signal(&self, event: BootEvent);

    /// Has the MM supervisor's client ask. Needs [`Abilities::SUPERVISOR`].
    ///
    /// # Errors
    ///
    /// The client's own error.
    fn ask_supervisor(&self, call: &SupervisorCall) -> Result<Vec<u8>, SupervisorError>;

    /// Bytes that a message through this buffer can have.
    fn capacity(&self, buffer: u8) -> usize;

    /// Copies the whole comm buffer, as any bus master would see it.
    fn region(&self, buffer: u8) -> Vec<u8>;

    /// Copies the mailbox; `None` where the buffer has none.
    fn mailbox(&self, buffer: u8) -> Option<MailboxImage>;

    /// Writes the mailbox, as somebody else would.
    fn write_mailbox(&self, buffer: u8, image: MailboxImage);

    /// Takes a buffer out of use through one clone of its handle.
    fn disable(&self, buffer: u8);

    /// What was written to I/O ports, byte by byte, since the client came up.
    fn port_writes(&self) -> Vec<(u16, u8)>;

    /// The machine's command port and data port.
    fn ports(&self) -> (u16, u16);

    /// Switches SMIs at the chipset. Needs [`Abilities::SMI_SWITCH`].
    fn switch_smis(&self, on: bool);

    /// Has the chipset ignore what is written to SMI_EN, or no longer ignore it. Needs [`Abilities::SMI_SWITCH`].
    fn lock_smis(&self, locked: bool);

    /// Whether SMIs are on at the chipset. Needs [`Abilities::SMI_SWITCH`].
    fn smis_are_on(&self) -> bool;

    /// How often the platform's hook was called.
    fn platform_control_calls(&self) -> u32;

    /// Announces a new place for the updatable buffer. Needs [`Abilities::UPDATES`].
    fn announce(&self, update: Update);

    /// The debug output of a communicator with the client's comm buffers.
    fn describe(&self) -> String;

    /// The comm buffers in words, a line each.
    fn describe_buffers(&self) -> Vec<String>;

    /// What MM says that it did at the last MMI, a line each; nothing where the MM side is not ours.
    fn mm_report(&self) -> Vec<String>;

    /// How many MMIs the client has raised: the writes to the command port.
    fn mmis(&self) -> usize {
        let (command, _) = self.ports();
        self.port_writes()
            .iter()
            .filter(|(port, _)| *port == command)
            .count()
    }
}
