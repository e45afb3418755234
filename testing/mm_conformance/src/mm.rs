//! The MM side of the suite: handlers to talk to, and the lies that MM can tell.
//!
//! [`ConformanceMm`] is the real [`MmCore`] with a few handlers of its own. What a scenario wants of it is in the
//! message, so that the same scenario works where the MM side is in another address space. It does not allocate.
//!
//! | GUID | answers |
//! |---|---|
//! | [`ECHO`] | the message |
//! | [`STRETCH`] | as many bytes as the message, a u64, says: 1, 2, ... 251, 1, ... |
//! | [`FAIL`] | nothing: the handler fails |
//! | [`PORTS`] | two bytes: the values of the command port and of the data port |
//! | [`LIAR`] | the message; then MM tells the [`Lie`] that the message asks for |
//! | [`HEADER`] | the communicate header of the request, at the start of the message |
//! | [`PROJECT_MU`] | nothing; from then on comm buffers are served as by Project Mu's supervisor: one request at an MMI, the users' before the supervisor's, and that with a v1 header |
//! | the MM supervisor's | as `mm_core`'s handler does; memory is unblocked where it starts on a page and names who asks, comm buffers are moved as Project Mu's supervisor does, and the policy is [`POLICY`] |
//! | the variable service's | as `mm_core`'s handler does |

use core::cell::Cell;
use mm_core::handlers::{Echo, Supervisor, VariableStore};
use mm_core::{
    CommBuffer, Handler, MAX_BUFFERS, MmCore, Mmi, Outcome, Request, SetupError, SystemMemory, Visit,
};
use mm_wire::header::{HeaderFormat, LENGTH_OFFSET, MAX_HEADER_LEN, MESSAGE_SIZE_OFFSET, V3_MARKER};
use mm_wire::message::supervisor::{CommUpdate, RequestHeader, UnblockMemory};
use mm_wire::message::{supervisor, variable};
use mm_wire::{AddressRange, EfiStatus, Guid, Header, MailboxImage, guid};
use zerocopy::{FromBytes, IntoBytes};

/// Answers what it is sent.
pub const ECHO: Guid = Echo::GUID;
/// Answers as many bytes as it is asked for.
pub const STRETCH: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a02");
/// Fails.
pub const FAIL: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a03");
/// Answers what was written to the ports.
pub const PORTS: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a04");
/// Answers what it is sent, then lies about it.
pub const LIAR: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a05");

/// Has comm buffers served as by Project Mu's supervisor.
pub const PROJECT_MU: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a06");

/// Answers the communicate header that it found, at the start of a message of at least that length.
pub const HEADER: Guid = guid!("5d3c0e7a-9f0b-4e63-8a55-0d7f4d1c1a07");

/// The comm buffers of Project Mu's supervisor, as indices of those that MM was told of.
///
/// One MMI serves one request: the users', else the supervisor's, which must have a v1 header (`MmSupervisorCore.c`). All
/// other buffers, and those that were moved away from, are not looked at.
#[derive(Clone, Copy, Debug)]
struct Channels {
    /// `None` where the supervisor has moved its buffer and not its mailbox, so that nobody can reach it.
    supervisor: Option<usize>,
    users: usize,
}

impl Channels {
    const FIRST: Self = Self {
        supervisor: Some(0),
        users: 1,
    };
}

/// What the MM side keeps from one MMI to the next, for as long as it is told of the same comm buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// `None` for all buffers at once, as an MM core serves them.
    channels: Option<Channels>,
    was_moved: bool,
    late: LateResponse,
}

impl State {
    /// That of an MM side that was just told of its comm buffers.
    pub const NEW: Self = Self {
        channels: None,
        was_moved: false,
        late: LateResponse(None),
    };
}

/// The request that has [`STRETCH`] response `len` bytes.
#[must_use]
pub fn stretch(len: usize) -> [u8; 8] {
    (len as u64).to_le_bytes()
}

/// What MM says wrongly, once it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The request still stands, as if MM had never looked.
    Ignore,
    /// The mailbox's ReturnStatus is this.
    Status(u64),
    /// The mailbox's ReturnBufferSize is this.
    Size(u64),
    /// The header's GUID is another one.
    Recipient,
    /// The header's MessageLength is this. In a v3 header it is what BufferSize counts behind the header.
    MessageLength(u64),
    /// The MessageSize of a v3 header is this. A v1 header has no such field, and stays as it is.
    MessageSize(u64),
    /// The header is all zeroes.
    WipeHeader,
    /// The header is of the other format.
    OtherFormat,
    /// The request still stands, as with [`Self::Ignore`]. But MM has kept it, and ends the next request in this buffer with
    /// the response to this one: header, message and mailbox.
    Late,
    /// The same, with the next request's header left as it is.
    LateMessage,
}

impl Lie {
    /// The message that has [`LIAR`] tell this lie.
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
    /// Ends the request that stands in the response's buffer now, which is another one.
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
            // Still the same one, with another MMI: it has to wait.
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

/// An MM core that answers, and lies on request.
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
    /// As [`MmCore::new`].
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

/// Serves an MMI with a core of the caller's, made for `buffers`: what [`ConformanceMm::enter`] does, for MM sides that are
/// told of one buffer with each call. `state` is what the last call left there.
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
    let is_project_mu = Cell::new(false);
    let moved = Cell::new(None);
    let served = state.channels.map(|channels| channels.choose(buffers, memory));
    let mut supervisor = Supervisor {
        version: 1,
        patch_level: 0,
    };
    let update = |update: &CommUpdate| {
        let channels = state.channels.unwrap_or(Channels::FIRST);
        let (result, how_far) = match state.was_moved {
            true => (EfiStatus::ACCESS_DENIED, None),
            false => channels.move_to(update, buffers),
        };
        moved.set(how_far);
        result
    };
    let mut supervisor = |request: &mut Request<'_>| supervise(request, &mut supervisor, &update);
    let mut project_mu = |_: &mut Request<'_>| {
        is_project_mu.set(true);
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
    let mut view = View {
        memory,
        buffers,
        served,
        moved: &moved,
    };
    let visit = core.enter(
        &mut view,
        mmi,
        &mut [
            (ECHO, &mut Echo),
            (STRETCH, &mut response_at_length),
            (FAIL, &mut fail),
            (PORTS, &mut response_ports),
            (LIAR, &mut liar),
            (PROJECT_MU, &mut project_mu),
            (HEADER, &mut Echo),
            (supervisor::GUID, &mut supervisor),
            (variable::GUID, variables),
        ],
        &mut [],
    );
    if let Some(moved) = moved.get() {
        moved.copy_header(memory);
        state.channels = Some(moved.channels);
        state.was_moved = moved.mailbox.is_some();
    }
    if is_project_mu.get() {
        state.channels = Some(Channels::FIRST);
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

/// The request that an MMI serves.
#[derive(Clone, Copy)]
struct Served(Option<usize>);

impl Channels {
    /// Which request is served now. A v3 header in the supervisor's buffer is answered here.
    fn choose(self, buffers: &[CommBuffer], memory: &mut dyn SystemMemory) -> Served {
        let pending = |index: &usize| {
            let mut valid = [0];
            let mailbox = buffers.get(*index).and_then(|buffer| buffer.mailbox);
            mailbox.is_some_and(|mailbox| memory.read(mailbox, &mut valid)) && valid != [0]
        };
        let users = Some(self.users).filter(pending);
        let Some(index) = users.or(self.supervisor.filter(pending)) else {
            return Served(None);
        };
        let buffer = buffers.get(index).filter(|_| users.is_none());
        let mut marker = [0; 16];
        if let Some(CommBuffer {
            region,
            mailbox: Some(mailbox),
        }) = buffer
            && memory.read(region.start(), &mut marker)
            && marker == V3_MARKER.to_bytes()
        {
            let unsupported = MailboxImage::answered(EfiStatus::UNSUPPORTED, 0);
            memory.write(*mailbox, unsupported.as_bytes());
            return Served(None);
        }
        Served(Some(index))
    }

    /// Moves the buffers and then the mailboxes as long as nothing is wrong (`UpdateCommBuffer.c`). Returns the result, and
    /// how far it came where that is anywhere.
    fn move_to(self, update: &CommUpdate, buffers: &[CommBuffer]) -> (EfiStatus, Option<Move>) {
        let fit = |memory: &UnblockMemory, pages: u64| {
            if memory.pages.get() != pages
                || memory.attributes.get() != supervisor::COMM_BUFFER_ATTRIBUTES
                || memory.memory_type != 6
                || !memory.physical_start.get().is_multiple_of(4096)
            {
                Err(EfiStatus::SECURITY_VIOLATION)
            } else if memory.identifier == [0; 16] {
                Err(EfiStatus::INVALID_PARAMETER)
            } else {
                Ok(memory.physical_start.get())
            }
        };
        let arrived = |start: u64| buffers.iter().position(|buffer| buffer.region.start() == start);
        let [new_supervisor, new_users] = &update.buffers;
        let [supervisor_mailbox, users_mailbox] = &update.mailboxes;
        let pages = |buffer: &CommBuffer| buffer.region.len() / 4096;
        let old = self.supervisor.and_then(|index| buffers.get(index));
        let (Some(old), Some(old_users)) = (old, buffers.get(self.users)) else {
            return (EfiStatus::ACCESS_DENIED, None);
        };
        let start = match fit(new_supervisor, pages(old)) {
            Ok(start) => start,
            Err(refusal) => return (refusal, None),
        };
        let mut moved = Move {
            region: (old.region, start),
            mailbox: None,
            channels: Channels {
                supervisor: None,
                ..self
            },
        };
        let rest = fit(new_users, pages(old_users))
            .and_then(|users| Ok((users, fit(users_mailbox, 1)?, fit(supervisor_mailbox, 1)?)));
        let (users, users_mailbox, mailbox) = match rest {
            Ok(rest) => rest,
            Err(refusal) => return (refusal, Some(moved)),
        };
        // This MM side serves only what it was told of.
        let at = |start, mailbox| {
            arrived(start).filter(|index| buffers.get(*index).and_then(|new| new.mailbox) == Some(mailbox))
        };
        let (Some(supervisor), Some(users)) = (at(start, mailbox), at(users, users_mailbox)) else {
            return (EfiStatus::SECURITY_VIOLATION, Some(moved));
        };
        moved.mailbox = old.mailbox.map(|old| (old, mailbox));
        moved.channels = Channels {
            supervisor: Some(supervisor),
            users,
        };
        (EfiStatus::SUCCESS, Some(moved))
    }
}

/// Where the response to the request goes that had the buffers moved.
#[derive(Clone, Copy)]
struct Move {
    /// The supervisor's buffer, and where it starts now.
    region: (AddressRange, u64),
    /// Its mailbox before and now; `None` where that did not move.
    mailbox: Option<(u64, u64)>,
    channels: Channels,
}

impl Move {
    fn place(&self, address: u64) -> u64 {
        let (region, start) = self.region;
        if let Some(offset) = address
            .checked_sub(region.start())
            .filter(|offset| *offset < region.len())
        {
            return start.saturating_add(offset);
        }
        match self.mailbox {
            Some((old, new)) if (old..old.saturating_add(24)).contains(&address) => {
                new.saturating_add(address.saturating_sub(old))
            }
            _ => address,
        }
    }

    fn copy_header(&self, memory: &mut dyn SystemMemory) {
        let mut header = [0; HeaderFormat::V1.header_len()];
        let (region, start) = self.region;
        if memory.read(region.start(), &mut header) {
            memory.write(start, &header);
        }
    }
}

/// Memory as the MM core sees it: of the requests only the one that is served, and the response in its place.
struct View<'v> {
    memory: &'v mut dyn SystemMemory,
    buffers: &'v [CommBuffer],
    /// `None` for all.
    served: Option<Served>,
    moved: &'v Cell<Option<Move>>,
}

impl SystemMemory for View<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let is_read = self.memory.read(address, out);
        if let Some(Served(served)) = self.served {
            let is_mailbox = |buffer: &CommBuffer| buffer.mailbox == Some(address);
            let mailbox_of = self.buffers.iter().position(is_mailbox);
            if mailbox_of.is_some() && mailbox_of != served {
                out.fill(0);
            }
        }
        is_read
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let address = self.moved.get().map_or(address, |moved| moved.place(address));
        self.memory.write(address, bytes)
    }
}

fn response_at_length(request: &mut Request<'_>) -> Result<(), EfiStatus> {
    let bytes = request.message().try_into().ok().map(u64::from_le_bytes);
    let len = bytes
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

/// The policy that the supervisor tells: version 1.0, 16 bytes.
pub const POLICY: [u8; 16] = [
    0, 0, 1, 0, 16, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
];

/// Answers the requests that `mm_core`'s supervisor leaves out, as Project Mu's does
/// (`MmSupervisorPkg/Core/Request/RequestDispatcher.c`): too short a message fails, everything else is told in the result.
fn supervise(
    request: &mut Request<'_>,
    version: &mut Supervisor,
    update: &dyn Fn(&CommUpdate) -> EfiStatus,
) -> Result<(), EfiStatus> {
    let (header, body) = RequestHeader::ref_from_prefix(request.message())
        .map_err(|_too_short| EfiStatus::INVALID_PARAMETER)?;
    let is_known = header.signature == supervisor::SIGNATURE && header.revision == supervisor::REVISION;
    let result = match header.request.get() {
        supervisor::REQUEST_UNBLOCK_MEMORY if is_known => {
            let (memory, _) =
                UnblockMemory::ref_from_prefix(body).map_err(|_too_short| EfiStatus::INVALID_PARAMETER)?;
            if memory.physical_start.get() % 4096 != 0 {
                EfiStatus::SECURITY_VIOLATION
            } else if memory.identifier == [0; 16] {
                EfiStatus::INVALID_PARAMETER
            } else {
                EfiStatus::SUCCESS
            }
        }
        supervisor::REQUEST_COMM_UPDATE if is_known => {
            let (new, _) =
                CommUpdate::ref_from_prefix(body).map_err(|_too_short| EfiStatus::INVALID_PARAMETER)?;
            update(new)
        }
        supervisor::REQUEST_FETCH_POLICY if is_known => match body.len() {
            ..8 => EfiStatus::BUFFER_TOO_SMALL,
            8..16 => EfiStatus::OUT_OF_RESOURCES,
            _ => {
                let policy_at = size_of::<RequestHeader>();
                request
                    .set_len(policy_at + POLICY.len())
                    .map_err(|_no_room| EfiStatus::INVALID_PARAMETER)?;
                let policy = request.message_mut().iter_mut().skip(policy_at);
                policy.zip(POLICY).for_each(|(to, from)| *to = from);
                EfiStatus::SUCCESS
            }
        },
        _ => return version.handle(request),
    };
    if let Ok((header, _)) = RequestHeader::mut_from_prefix(request.message_mut()) {
        header.result = result.0.into();
    }
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

/// Changes what the client will see. An address that cannot be written stays as it is: the client then sees the truth,
/// and its scenario fails. Returns the format of the header that stood there.
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
