//! The MM side of the suite: its handlers, and the wrong responses that it sends on request.
//!
//! [`ConformanceMm`] is the real [`MmCore`] with a few more handlers. A scenario's message says
//! what it should do, so that the same scenario works if the MM side is in another address space.
//! It does not allocate, and does not know Patina: `platforms/q35_mm` runs it in SMRAM,
//! `machines/aarch64_monitor` in the secure world.
//!
//! | GUID | response |
//! |---|---|
//! | [`ECHO`] | the message |
//! | [`STRETCH`] | as many bytes as the message says in its first 8, a u64: 1, 2, ... 251, 1, ... |
//! | [`FAIL`] | nothing: the handler fails |
//! | [`PORTS`] | two bytes: the values of the command port and of the data port |
//! | [`LIAR`] | the message; MM then makes it wrong, as the [`Lie`] in the message says |
//! | [`HEADER`] | the communicate header of the request, at the start of the message |
//! | [`PROJECT_MU`] | nothing; from then on comm buffers 0 and 1 are served by a double of Project Mu's supervisor ([`project_mu`]), of the [`Release`] that the message names |
//! | the MM supervisor's | as `mm_core`'s handler does |
//! | the variable service's | as `mm_core`'s handler does |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod project_mu;

use crate::project_mu::{ProjectMu, Serving};
use core::cell::Cell;
use mm_core::handlers::{Echo, Supervisor, VariableStore};
use mm_core::{
    CommBuffer, MAX_BUFFERS, MmCore, Mmi, Outcome, Registration, Request, SetupError, SystemMemory, Visit,
};
use mm_wire::header::{HeaderFormat, LENGTH_OFFSET, MAX_HEADER_LEN, MESSAGE_SIZE_OFFSET, V3_MARKER};
use mm_wire::message::{supervisor, variable};
use mm_wire::{AddressRange, EfiStatus, Guid, Header, MailboxImage, guid};
use zerocopy::IntoBytes;

pub use crate::project_mu::{POLICY, Release};

/// Responds with the message.
pub const ECHO: Guid = Echo::GUID;
/// Responds with as many bytes as it is asked for.
pub const STRETCH: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a02");
/// Fails.
pub const FAIL: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a03");
/// Responds with the values of the ports.
pub const PORTS: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a04");
/// Responds with what it was sent, which MM then makes wrong.
pub const LIAR: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a05");

/// `gEfiDxeMmReadyToLockProtocolGuid`.
const READY_TO_LOCK: Guid = mm_wire::protocol::READY_TO_LOCK;
/// `gEfiEventExitBootServicesGuid`.
const EXIT_BOOT_SERVICES: Guid = guid!("27abf055-b1b8-4c26-8048-748f37baa2df");

/// Makes MM serve comm buffers like Project Mu's supervisor.
pub const PROJECT_MU: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a06");

/// Responds with the communicate header that it found, at the start of a message of at least that
/// length.
pub const HEADER: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a07");

/// What the MM side keeps from one MMI to the next, as long as it has the same comm buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// `None` for all buffers at once, as an MM core serves them.
    project_mu: Option<ProjectMu>,
    late: LateResponse,
}

impl State {
    /// The state of an MM side that has just learned about its comm buffers.
    pub const NEW: Self = Self {
        project_mu: None,
        late: LateResponse(None),
    };
}

/// The request to [`STRETCH`] for a response of `len` bytes.
#[must_use]
pub fn stretch(len: usize) -> [u8; 8] {
    (len as u64).to_le_bytes()
}

/// How MM makes its response wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The request is still there, as if MM had not run.
    Ignore,
    /// The mailbox's ReturnStatus is this.
    Status(u64),
    /// The mailbox's ReturnBufferSize is this.
    Size(u64),
    /// The header's GUID is another one.
    Recipient,
    /// The header's MessageLength is this. In a v3 header it is what BufferSize counts behind the
    /// header.
    MessageLength(u64),
    /// The MessageSize of a v3 header is this. A v1 header has no such field, and stays as it is.
    MessageSize(u64),
    /// The header is all zeroes.
    WipeHeader,
    /// The header is of the other format.
    OtherFormat,
    /// The request is still there, like with [`Self::Ignore`]. But MM has kept it, and ends the
    /// next request in this buffer with the response to this one: header, message and mailbox.
    Late,
    /// The same, with the next request's header left as it is.
    LateMessage,
}

impl Lie {
    /// The message to [`LIAR`] that asks for this.
    #[must_use]
    pub fn request(self) -> [u8; 16] {
        let (code, value): (u64, u64) = match self {
            Self::Ignore => (1, 0),
            Self::Status(value) => (2, value),
            Self::Size(value) => (3, value),
            Self::Recipient => (4, 0),
            Self::MessageLength(value) => (5, value),
            Self::WipeHeader => (6, 0),
            Self::OtherFormat => (7, 0),
            Self::Late => (8, 0),
            Self::LateMessage => (9, 0),
            Self::MessageSize(value) => (10, value),
        };
        let mut request = [0; 16];
        [code, value]
            .as_bytes()
            .iter()
            .zip(&mut request)
            .for_each(|(from, to)| *to = *from);
        request
    }

    fn of_request(message: &[u8]) -> Option<Self> {
        let (code, value) = message.split_at_checked(8)?;
        let value = u64::from_le_bytes(value.try_into().ok()?);
        Some(match u64::from_le_bytes(code.try_into().ok()?) {
            1 => Self::Ignore,
            2 => Self::Status(value),
            3 => Self::Size(value),
            4 => Self::Recipient,
            5 => Self::MessageLength(value),
            6 => Self::WipeHeader,
            7 => Self::OtherFormat,
            8 => Self::Late,
            9 => Self::LateMessage,
            10 => Self::MessageSize(value),
            _ => return None,
        })
    }

    /// Whether the buffer is left in a state that an honest MM never leaves it in.
    fn spoils(self, buffer: CommBuffer) -> bool {
        match self {
            Self::MessageLength(len) => len > buffer.region.len(),
            Self::MessageSize(_) => false,
            _ => true,
        }
    }
}

/// A response that MM keeps from one MMI to another: [`Lie::Late`] and [`Lie::LateMessage`].
#[derive(Clone, Copy, Debug, Default)]
struct LateResponse(Option<Late>);

#[derive(Clone, Copy, Debug)]
struct Late {
    lie: Lie,
    buffer: CommBuffer,
    format: HeaderFormat,
}

impl LateResponse {
    /// Ends the request that is now in the response's buffer, which is another one.
    fn deliver(&mut self, memory: &mut dyn SystemMemory) {
        let Some(Late { lie, buffer, format }) = self.0 else {
            return;
        };
        let Some(mailbox) = buffer.mailbox else { return };
        let mut image = MailboxImage::default();
        if !memory.read(mailbox, image.as_mut_bytes()) || !image.is_pending() {
            return;
        }
        let (start, message) = (buffer.region.start(), lie.request());
        let mut header = [0; HeaderFormat::V3.header_len()];
        if !memory.read(start, &mut header)
            || Header::parse(&header).is_ok_and(|header| header.recipient() == LIAR)
        {
            // Another MMI for the same request: the kept response has to wait.
            return;
        }
        self.0 = None;
        if lie == Lie::Late
            && let Some(header) = Header::new(format, LIAR, message.len() as u64)
        {
            memory.write(start, header.encode().as_ref());
        }
        memory.write(start + format.header_len() as u64, &message);
        let total = (format.header_len() + message.len()) as u64;
        memory.write(
            mailbox,
            MailboxImage::answered(EfiStatus::SUCCESS, total).as_bytes(),
        );
    }
}

/// An MM core that sends wrong responses on request.
#[derive(Debug)]
pub struct ConformanceMm<'a> {
    core: MmCore<'a>,
    buffers: &'a [CommBuffer],
    variables: VariableStore<'a>,
    state: State,
}

impl<'a> ConformanceMm<'a> {
    /// Makes the MM side of a machine. `scratch` and the variables' memory belong into MMRAM.
    ///
    /// # Errors
    ///
    /// Those of [`MmCore::new`].
    pub fn new(
        mmram: &[AddressRange],
        buffers: &'a [CommBuffer],
        scratch: &'a mut [u8],
        variables: VariableStore<'a>,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            core: MmCore::new(mmram, buffers, scratch)?,
            buffers,
            variables,
            state: State::NEW,
        })
    }

    /// Serves an MMI.
    pub fn enter(&mut self, memory: &mut dyn SystemMemory, mmi: Mmi) -> Visit {
        enter(
            &mut self.core,
            self.buffers,
            &mut self.variables,
            &mut self.state,
            memory,
            mmi,
        )
    }
}

/// Serves an MMI with a core of the caller's, made for `buffers`: what [`ConformanceMm::enter`]
/// does, for MM sides that learn about one buffer with each call. `state` is what the last call
/// left there.
pub fn enter(
    core: &mut MmCore<'_>,
    buffers: &[CommBuffer],
    variables: &mut VariableStore<'_>,
    state: &mut State,
    memory: &mut dyn SystemMemory,
    mmi: Mmi,
) -> Visit {
    state.late.deliver(memory);
    let lie = Cell::new(None);
    let order = Cell::new(None);
    let serving = Cell::new(state.project_mu.and_then(|mu| mu.choose(buffers, memory)));
    let mut project_mu = |request: &mut Request<'_>| {
        order.set(Some(Release::of_request(request.message())));
        Ok(())
    };
    let mut liar = |request: &mut Request<'_>| {
        lie.set(Lie::of_request(request.message()));
        Ok(())
    };
    // The core may write a length to the header: the handler of `HEADER` shows it as it came.
    let mut headers = [[0; MAX_HEADER_LEN]; MAX_BUFFERS];
    for (buffer, header) in buffers.iter().zip(&mut headers) {
        memory.read(buffer.region.start(), header);
    }
    let mut version = Supervisor {
        version: 1,
        patch_level: 0,
    };
    let mut view = View {
        memory,
        buffers,
        is_project_mu: state.project_mu.is_some(),
        serving: &serving,
    };
    let mu = Cell::new(state.project_mu.unwrap_or(ProjectMu::new(Release::Main)));
    let channel = project_mu::Channel {
        mu: &mu,
        serving: &serving,
        buffers,
    };
    let mut lock = |_: &mut Request<'_>| channel.lock();
    let mut close = |_: &mut Request<'_>| channel.close();
    let mut handlers: [Registration<'_>; 12] = [
        (READY_TO_LOCK, &mut lock),
        (EXIT_BOOT_SERVICES, &mut close),
        (supervisor::GUID, &mut { channel }),
        // The handlers of the users' channel follow, without this one.
        (supervisor::GUID, &mut version),
        (ECHO, &mut Echo),
        (STRETCH, &mut response_at_length),
        (FAIL, &mut fail),
        (PORTS, &mut response_ports),
        (LIAR, &mut liar),
        (PROJECT_MU, &mut project_mu),
        (HEADER, &mut Echo),
        (variable::GUID, variables),
    ];
    let handlers = match (state.project_mu, serving.get()) {
        (Some(_), Some(chosen)) if chosen.is_for_supervisor() => handlers.get_mut(..3),
        (Some(_), _) => handlers.get_mut(4..),
        (None, _) => handlers.get_mut(3..),
    };
    let visit = core.enter(&mut view, mmi, handlers.unwrap_or_default(), &mut []);
    state.project_mu = state.project_mu.map(|_| mu.get());
    if let Some(served) = serving.get() {
        served.copy_header(memory);
    }
    if let Some(release) = order.get() {
        state.project_mu = Some(ProjectMu::new(release));
    }
    for ((buffer, outcome), header) in buffers.iter().zip(visit.outcomes()).zip(&headers) {
        if let Outcome::Dispatched {
            recipient: HEADER, ..
        } = outcome
        {
            show_header(*buffer, header, memory);
        }
    }
    if let Some(lie) = lie.get() {
        for (buffer, outcome) in buffers.iter().zip(visit.outcomes()) {
            if let Outcome::Dispatched {
                recipient: LIAR,
                response_len,
                ..
            } = outcome
            {
                let format = tell(lie, *buffer, *response_len, memory);
                if matches!(lie, Lie::Late | Lie::LateMessage) {
                    let buffer = *buffer;
                    state.late.0 = Some(Late { lie, buffer, format });
                }
            }
        }
    }
    visit
}

/// Memory as the MM core sees it. For Project Mu's supervisor that has one request, the one that is
/// served, and the response goes where that says.
struct View<'v> {
    memory: &'v mut dyn SystemMemory,
    buffers: &'v [CommBuffer],
    is_project_mu: bool,
    serving: &'v Cell<Option<Serving>>,
}

impl SystemMemory for View<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let is_mailbox = |buffer: &CommBuffer| buffer.mailbox == Some(address);
        if !self.is_project_mu || !self.buffers.iter().any(is_mailbox) {
            return self.memory.read(address, out);
        }
        match self.serving.get() {
            Some(serving) => serving.read_mailbox(address, self.memory, out),
            None => {
                out.fill(0);
                true
            }
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        match self.serving.get() {
            Some(serving) => serving.write(address, bytes, self.memory),
            None => self.memory.write(address, bytes),
        }
    }
}

fn response_at_length(request: &mut Request<'_>) -> Result<(), EfiStatus> {
    let len = request.message().first_chunk().copied().map(u64::from_le_bytes);
    let len = len
        .and_then(|len| usize::try_from(len).ok())
        .ok_or(EfiStatus::INVALID_PARAMETER)?;
    if request.set_len(len).is_err() {
        return Err(EfiStatus::BUFFER_TOO_SMALL);
    }
    request
        .message_mut()
        .iter_mut()
        .zip((1..=251).cycle())
        .for_each(|(byte, value)| *byte = value);
    Ok(())
}

/// Copies the header over the start of the message.
fn show_header(buffer: CommBuffer, bytes: &[u8], memory: &mut dyn SystemMemory) {
    if let Ok(header) = Header::parse(bytes) {
        let len = header.format().header_len();
        let message = buffer.region.start() + len as u64;
        memory.write(message, bytes.get(..len).unwrap_or_default());
    }
}

fn fail(_: &mut Request<'_>) -> Result<(), EfiStatus> {
    Err(EfiStatus::DEVICE_ERROR)
}

fn response_ports(request: &mut Request<'_>) -> Result<(), EfiStatus> {
    let Mmi { command, data } = request.mmi();
    request
        .respond(&[command, data])
        .map_err(|_no_room| EfiStatus::BUFFER_TOO_SMALL)
}

/// Changes what the client will see. An address that cannot be written stays as it is: the client
/// then sees the correct response, and its scenario fails. Returns the format of the header that
/// was there.
fn tell(lie: Lie, buffer: CommBuffer, response_len: usize, memory: &mut dyn SystemMemory) -> HeaderFormat {
    let start = buffer.region.start();
    let mut marker = [0; 16];
    let is_v3 = memory.read(start, &mut marker) && marker == V3_MARKER.to_bytes();
    let (format, other) = if is_v3 {
        (HeaderFormat::V3, HeaderFormat::V1)
    } else {
        (HeaderFormat::V1, HeaderFormat::V3)
    };
    let recipient_at = if is_v3 { 32 } else { 0 };
    let total = (response_len + format.header_len()) as u64;
    if lie.spoils(buffer) {
        let mut at = start + total;
        while at < buffer.region.end() {
            memory.write(at, &[0xee]);
            at += 1;
        }
    }
    let mailbox = |image: MailboxImage, memory: &mut dyn SystemMemory| {
        if let Some(address) = buffer.mailbox {
            memory.write(address, image.as_bytes());
        }
    };
    match lie {
        Lie::Ignore | Lie::Late | Lie::LateMessage => mailbox(MailboxImage::armed(), memory),
        Lie::Status(status) => mailbox(MailboxImage::answered(EfiStatus(status), total), memory),
        Lie::Size(size) => mailbox(MailboxImage::answered(EfiStatus::SUCCESS, size), memory),
        Lie::Recipient => {
            memory.write(start + recipient_at, &FAIL.to_bytes());
        }
        Lie::MessageLength(len) => {
            let header_len = if is_v3 { format.header_len() as u64 } else { 0 };
            memory.write(
                start + LENGTH_OFFSET as u64,
                &len.wrapping_add(header_len).to_le_bytes(),
            );
        }
        Lie::MessageSize(size) => {
            if is_v3 {
                memory.write(start + MESSAGE_SIZE_OFFSET as u64, &size.to_le_bytes());
            }
        }
        Lie::WipeHeader => {
            memory.write(start, &[0; MAX_HEADER_LEN]);
        }
        Lie::OtherFormat => {
            if let Some(header) = Header::new(other, LIAR, response_len as u64) {
                memory.write(start, header.encode().as_ref());
            }
        }
    }
    format
}
