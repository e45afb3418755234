//! The fault table: every fault at every step of a transaction, with each header and each kind of
//! comm buffer. An unsafe island (`docs/unsafe.md`): it reads shared memory past the client, and
//! its allocator fails on request.
//!
//! The result of a call is judged by a model that reads the bytes that MM left, at the last moment
//! before the client reads them. After each case no byte of a message is in shared memory, and the
//! next call works.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "this is a test: what is not there fails it"
)]

use log::{LevelFilter, Log, Metadata, Record};
use mm_comm::{Ports, SharedRegion};
use mm_conformance::lab::{BufferSetup, MailboxSetup, Update};
use mm_conformance::mm::ECHO;
use mm_conformance::sim::SimSite;
use mm_conformance::{Abilities, Client, Lab, Setup, Site};
use mm_core::CommBuffer;
use mm_wire::{HeaderFormat, PAGE_LEN, guid};
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::uefi_services::tpl::Tpl;
use patina_mm::component::communicator::{CallOptions, Status};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

/// A step of a transaction at which a fault can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// No call is in progress.
    BeforeCall,
    /// The request is announced, nothing was written to a port.
    Announced,
    /// The data port was written, the command port was not.
    BetweenPorts,
    /// The SMI is pending.
    Pending,
    /// The SMI is taken, MM has read nothing.
    MmEntry,
    /// MM has responded, and the client does not run yet.
    MmExit,
    /// The client has read half of the response.
    Reading,
    /// The call has returned.
    AfterCall,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::BeforeCall,
        Self::Announced,
        Self::BetweenPorts,
        Self::Pending,
        Self::MmEntry,
        Self::MmExit,
        Self::Reading,
        Self::AfterCall,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// No SMI is taken any more.
    NoSmi,
    /// SMIs are switched off at the chipset.
    SmisOff,
    /// The SMI is taken late, but before the timeout.
    LateSmi,
    /// The SMI is taken after the timeout.
    SmiAfterTimeout,
    /// Another driver raises an SMI.
    SmiTwice,
    /// MM has written half of a response, and never runs again.
    MmDies,
    /// Offset in the comm buffer, and what is written there.
    Header(usize, u64),
    /// The header is all zero.
    HeaderWiped,
    /// A whole header of the other format.
    OtherFormat,
    /// ReturnStatus in the mailbox.
    MailboxStatus(u64),
    /// ReturnBufferSize in the mailbox.
    MailboxSize(u64),
    /// IsCommBufferValid, once.
    Valid(u8),
    /// IsCommBufferValid is set again after each SMI.
    ValidStays,
    /// Bytes of the message are overwritten.
    Scribble,
    /// The comm buffer holds another driver's request, which is announced.
    OtherOwner,
    /// The comm buffer's new place is announced.
    Announce,
    /// A notification calls through the same comm buffer.
    Reenter(Tpl),
    /// There is no memory for the response.
    NoMemory,
    /// The log sink panics at each line.
    SinkPanics,
}

/// Bytes of a message. No other allocation has this size.
const MESSAGE_LEN: usize = 613;
const PAGES: usize = 1;
const REGION_LEN: u64 = (PAGES * PAGE_LEN) as u64;
const POLLS: u32 = 40;

const WARNING: u64 = 1;
const DEVICE_ERROR: u64 = 0x8000_0000_0000_0007;
const DEVICE_ERROR_32: u64 = 0x8000_0007;

fn faults() -> Vec<Fault> {
    use Fault::*;
    let sent = MESSAGE_LEN as u64;
    let mut all = vec![
        None,
        NoSmi,
        SmisOff,
        LateSmi,
        SmiAfterTimeout,
        SmiTwice,
        MmDies,
        HeaderWiped,
        OtherFormat,
        ValidStays,
        Scribble,
        OtherOwner,
        Announce,
        NoMemory,
        SinkPanics,
    ];
    // The recipient, and the v3 header's own: the fields are at 0 and 32.
    all.extend([0, 8, 32, 40].map(|at| Header(at, 0x0123_4567_89ab_cdef)));
    // MessageLength or BufferSize, and a v3 header's MessageSize.
    for at in [16, 48] {
        all.extend(
            [
                0,
                1,
                sent - 1,
                sent + 1,
                sent + 56,
                REGION_LEN - 24,
                REGION_LEN,
                REGION_LEN + 1,
                u64::MAX,
            ]
            .map(|len| Header(at, len)),
        );
    }
    all.extend([0, WARNING, DEVICE_ERROR_32, DEVICE_ERROR, 1 << 63, u64::MAX].map(MailboxStatus));
    all.extend(
        [
            0,
            1,
            23,
            24,
            25,
            55,
            56,
            57,
            sent + 24,
            sent + 56,
            REGION_LEN,
            REGION_LEN + 1,
            1 << 32,
            u64::MAX,
        ]
        .map(MailboxSize),
    );
    all.extend([0, 1, 2, 0x80, 0xff].map(Valid));
    all.extend([Tpl::Callback, Tpl::Notify, Tpl::HighLevel].map(Reenter));
    all
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mailbox,
    NoMailbox,
    /// Three buffers; the call goes through the second one.
    Several,
    /// A buffer that was announced to have moved.
    Moved,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Mailbox, Self::NoMailbox, Self::Several, Self::Moved];

    const fn id(self) -> u8 {
        match self {
            Self::Several => 1,
            _ => 0,
        }
    }

    fn setup(self) -> Setup {
        let buffer = |id| BufferSetup {
            pages: PAGES,
            mailbox: match self {
                Self::NoMailbox => MailboxSetup::None,
                _ => MailboxSetup::OwnPage,
            },
            ..BufferSetup::new(id)
        };
        let ids: &[u8] = match self {
            Self::Several => &[0, 1, 2],
            _ => &[0],
        };
        Setup {
            buffers: ids.iter().map(|id| buffer(*id)).collect(),
            updatable: Some(self.id()),
            polls: POLLS,
            ..Setup::default()
        }
    }
}

/// A comm buffer and its mailbox, as MM and other drivers see them.
struct Place {
    region: SharedRegion,
    mailbox: Option<SharedRegion>,
}

impl Place {
    fn of(buffer: CommBuffer) -> Self {
        let view = |address: u64, len: usize| {
            let base = std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
            // SAFETY: memory of the simulated machine, which is never freed and only accessed as
            // volatile.
            unsafe { SharedRegion::new(base, len) }.unwrap()
        };
        Self {
            region: view(
                buffer.region.start(),
                usize::try_from(buffer.region.len()).unwrap(),
            ),
            mailbox: buffer.mailbox.map(|mailbox| view(mailbox, 24)),
        }
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(self.region.write(offset, bytes));
    }

    fn put_in_mailbox(&self, offset: usize, bytes: &[u8]) {
        assert!(
            self.mailbox
                .as_ref()
                .is_none_or(|mailbox| mailbox.write(offset, bytes))
        );
    }

    fn bytes(&self) -> Vec<u8> {
        bytes(&self.region)
    }

    fn is_pending(&self) -> bool {
        self.mailbox
            .as_ref()
            .is_some_and(|mailbox| bytes(mailbox)[0] != 0)
    }
}

fn bytes(region: &SharedRegion) -> Vec<u8> {
    let mut copy = vec![0; region.len()];
    assert!(region.read(0, &mut copy));
    copy
}

/// The code that runs at a step.
type Act = Box<dyn FnOnce()>;
/// The result of a call that a notification makes.
type Inner = Rc<RefCell<Option<Result<Vec<u8>, Status>>>>;

/// The current fault of the machine, and the next one.
#[derive(Default)]
struct Bad {
    /// The step at which the fault comes, and the fault.
    next: RefCell<Option<(Step, Act)>>,
    /// SMIs are neither raised nor taken.
    no_smi: Cell<bool>,
    /// Pauses that do not reach the machine.
    withheld: Cell<u32>,
    /// MM does nothing.
    dead: Cell<bool>,
    valid_stays: Cell<bool>,
    /// The comm buffer of the call.
    place: RefCell<Option<Rc<Place>>>,
    /// What the client finds when it reads the response: comm buffer and mailbox.
    left: RefCell<(Vec<u8>, Option<Vec<u8>>)>,
    /// Whether a hook runs, which hooks do not interrupt.
    nested: Cell<bool>,
}

impl Bad {
    fn reach(&self, step: Step) {
        let is_due = self.next.borrow().as_ref().is_some_and(|(due, _)| *due == step);
        if is_due && let Some((_, act)) = self.next.take() {
            self.nested.set(true);
            act();
            self.nested.set(false);
        }
    }

    fn look(&self) {
        if let Some(place) = self.place.borrow().clone().filter(|_| !self.nested.get()) {
            *self.left.borrow_mut() = (place.bytes(), place.mailbox.as_ref().map(bytes));
        }
    }

    fn heal(&self) {
        self.next.take();
        self.no_smi.set(false);
        self.withheld.set(0);
        self.dead.set(false);
        self.valid_stays.set(false);
        NO_MEMORY.set(false);
        SINK_PANICS.set(false);
    }
}

/// The machine's ports, with the steps of a call.
struct BadPorts {
    machine: mm_sim::Machine,
    bad: Rc<Bad>,
}

const COMMAND: u16 = 0xb2;
const DATA: u16 = 0xb3;

impl Ports for BadPorts {
    fn write_u8(&self, port: u16, value: u8) {
        match port {
            DATA => self.bad.reach(Step::Announced),
            COMMAND => self.bad.reach(Step::BetweenPorts),
            _ => {}
        }
        if !self.bad.no_smi.get() || port != COMMAND {
            self.machine.write_u8(port, value);
        }
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.machine.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        self.machine.write_u32(port, value);
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.machine.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.machine.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        self.bad.reach(Step::Pending);
        match self.bad.withheld.get() {
            0 if !self.bad.no_smi.get() => self.machine.pause(),
            left => self.bad.withheld.set(left.saturating_sub(1)),
        }
        self.bad.look();
    }
}

/// The simulated machine with these ports.
struct BadSite {
    sim: Rc<SimSite>,
    bad: Rc<Bad>,
}

impl Site for BadSite {
    fn abilities(&self) -> Abilities {
        self.sim.abilities()
    }
    fn power_on(&self, latency: u32) {
        self.sim.power_on(latency);
    }
    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        self.sim.allocate(pages)
    }
    fn ports(&self) -> Box<dyn Ports> {
        Box::new(BadPorts {
            machine: self.sim.machine(),
            bad: Rc::clone(&self.bad),
        })
    }
    fn pm_base(&self) -> u16 {
        self.sim.pm_base()
    }
    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.sim.protocols()
    }
    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        self.sim.tell_mm(buffers)
    }
    fn many_calls(&self) -> u32 {
        self.sim.many_calls()
    }
}

// An allocator that fails on request.

thread_local! {
    static NO_MEMORY: Cell<bool> = const { Cell::new(false) };
    static SINK_PANICS: Cell<bool> = const { Cell::new(false) };
}

struct Allocator;

// SAFETY: every call goes to the system's allocator unchanged, or is refused with a null pointer.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() == MESSAGE_LEN && NO_MEMORY.try_with(Cell::get).unwrap_or(false) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

struct Sink;

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        assert!(!SINK_PANICS.get(), "{}", record.args());
    }
    fn flush(&self) {}
}

// The model: what a client may make of the bytes that MM left. It reads them by the offsets of PI
// 1.9, volume 4, 5.7, and of Project Mu's MM_COMM_BUFFER_STATUS.

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// The response at this offset, and the end of what the call has to wipe.
    Response {
        at: usize,
        len: usize,
        end: usize,
    },
    NotProcessed,
    Mm(u64),
    Below,
    Beyond,
    Invalid,
    MailboxInUse,
    NoSmi,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `gEfiMmCommunicateHeaderV3Guid`, and how a header is read.
const V3: [u8; 16] = guid!("68e8c853-2ba9-4dd7-9ac0-91e16155c935").to_bytes();

fn expected(sent: HeaderFormat, region: &[u8], mailbox: Option<&[u8]>) -> Expected {
    let header_len = match sent {
        HeaderFormat::V3 => 56,
        _ => 24,
    };
    let mut in_mailbox = None;
    if let Some(mailbox) = mailbox {
        let (status, size) = (number(mailbox, 8), number(mailbox, 16));
        match mailbox[0] {
            0 if status != 0 => return Expected::Mm(status),
            0 if size > REGION_LEN => return Expected::Beyond,
            0 if size < header_len as u64 => return Expected::Below,
            0 => in_mailbox = Some(usize::try_from(size).unwrap() - header_len),
            _ => return Expected::NotProcessed,
        }
    }
    let is_v3 = region[..16] == V3;
    let recipient = if is_v3 { &region[32..48] } else { &region[..16] };
    // A v3 header's BufferSize counts the header.
    let counted = match (is_v3, number(region, 16)) {
        (true, size) => match size.checked_sub(56) {
            Some(size) => size,
            None => return Expected::Invalid,
        },
        (false, len) => len,
    };
    if is_v3 != (sent == HeaderFormat::V3) || recipient != ECHO.to_bytes() {
        return Expected::Invalid;
    }
    if counted > REGION_LEN - header_len as u64 {
        // As in 24.1.1: only the mailbox's length has its own error.
        return Expected::Invalid;
    }
    let counted = usize::try_from(counted).unwrap();
    let in_header = match is_v3 && counted == MESSAGE_LEN {
        // MM left BufferSize, so MessageSize is the response's length.
        true => match number(region, 48) {
            size if size > MESSAGE_LEN as u64 => None,
            size => usize::try_from(size).ok(),
        },
        false => Some(counted),
    };
    let Some(len) = in_mailbox.or(in_header) else {
        return Expected::Invalid;
    };
    let end = header_len + len.max(counted).max(MESSAGE_LEN);
    Expected::Response {
        at: header_len,
        len,
        end,
    }
}

fn is_as_expected(found: &Result<Vec<u8>, Status>, expected: &Expected) -> bool {
    match (found, expected) {
        (Ok(found), Expected::Response { len, .. }) => found.len() == *len,
        (Err(Status::NotProcessed), Expected::NotProcessed)
        | (Err(Status::ResponseBelowHeader { .. }), Expected::Below)
        | (Err(Status::ResponseBeyondBuffer { .. }), Expected::Beyond)
        | (Err(Status::InvalidResponse), Expected::Invalid)
        | (Err(Status::MailboxInUse), Expected::MailboxInUse)
        | (Err(Status::MmiNotRaised(_)), Expected::NoSmi) => true,
        (Err(Status::MmReturned(found)), Expected::Mm(status)) => found.as_usize() as u64 == *status,
        _ => false,
    }
}

/// One client, on which the faults come one after the other.
struct Bench {
    bad: Rc<Bad>,
    sim: Rc<SimSite>,
    lab: Lab,
    client: Client,
    kind: Kind,
    header: HeaderFormat,
    /// Each place that the comm buffers ever had.
    places: Vec<Rc<Place>>,
    results: BTreeMap<String, u32>,
}

impl Bench {
    fn new(kind: Kind, header: HeaderFormat) -> Self {
        let (bad, sim) = (Rc::new(Bad::default()), Rc::new(SimSite::new()));
        let around = Rc::clone(&bad);
        sim.around_mm(move |serve| {
            around.reach(Step::MmEntry);
            if !around.dead.get() {
                serve();
            }
            around.reach(Step::MmExit);
            if around.valid_stays.get()
                && let Some(place) = &*around.place.borrow()
            {
                place.put_in_mailbox(0, &[1]);
            }
        });
        let site = BadSite {
            sim: Rc::clone(&sim),
            bad: Rc::clone(&bad),
        };
        let lab = Lab::new(site).unwrap();
        let client = lab.bring_up(&kind.setup()).unwrap();
        let mut bench = Self {
            bad,
            sim,
            lab,
            client,
            kind,
            header,
            places: Vec::new(),
            results: BTreeMap::new(),
        };
        for buffer in kind.setup().buffers {
            bench.places.push(bench.place(buffer.id));
        }
        if kind == Kind::Moved {
            bench.client.announce(Update::to_pages(PAGES as u64));
            assert!(bench.client.communicate(0, b"moves", ECHO).is_ok());
        }
        bench
    }

    fn place(&self, id: u8) -> Rc<Place> {
        Rc::new(Place::of(self.client.comm_buffer(id).unwrap()))
    }

    /// What happens at the step.
    fn act(&self, fault: Fault, inner: &Inner) -> Act {
        let (bad, client, id) = (Rc::clone(&self.bad), self.client.clone(), self.kind.id());
        let (machine, header) = (self.sim.machine(), self.header);
        let inner = Rc::clone(inner);
        Box::new(move || {
            let place = bad.place.borrow().clone().unwrap();
            match fault {
                Fault::None => {}
                Fault::NoSmi => bad.no_smi.set(true),
                Fault::SmisOff => client.switch_smis(false),
                Fault::LateSmi => bad.withheld.set(POLLS / 4),
                Fault::SmiAfterTimeout => bad.withheld.set(POLLS + 20),
                Fault::SmiTwice => {
                    machine.write_u8(COMMAND, 0xff);
                    machine.pause();
                }
                Fault::MmDies => {
                    bad.dead.set(true);
                    place.put(24, &[0xdd; MESSAGE_LEN / 2]);
                }
                Fault::Header(at, value) => place.put(at, &value.to_le_bytes()),
                Fault::HeaderWiped => place.put(0, &[0; 56]),
                Fault::OtherFormat => {
                    let other = match header {
                        HeaderFormat::V3 => HeaderFormat::V1,
                        _ => HeaderFormat::V3,
                    };
                    let header = mm_wire::Header::new(other, ECHO, MESSAGE_LEN as u64).unwrap();
                    place.put(0, header.encode().as_ref());
                }
                Fault::MailboxStatus(status) => place.put_in_mailbox(8, &status.to_le_bytes()),
                Fault::MailboxSize(size) => place.put_in_mailbox(16, &size.to_le_bytes()),
                Fault::Valid(valid) => place.put_in_mailbox(0, &[valid]),
                Fault::ValidStays => bad.valid_stays.set(true),
                Fault::Scribble => place.put(60, &[0xee; 500]),
                Fault::OtherOwner => {
                    let recipient = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");
                    let header = mm_wire::Header::new(HeaderFormat::V1, recipient, 16).unwrap();
                    place.put(0, &[header.encode().as_ref(), &[0x77; 16]].concat());
                    place.put_in_mailbox(0, &[1]);
                }
                Fault::Announce => client.announce(Update::to_pages(PAGES as u64)),
                Fault::Reenter(level) => client.notify_at(
                    level,
                    Box::new(move |client| {
                        // It may come when the outer call has ended and its response was checked.
                        let outer = bad.nested.replace(true);
                        *inner.borrow_mut() = Some(client.communicate(id, b"inner", ECHO));
                        bad.nested.set(outer);
                    }),
                ),
                Fault::NoMemory => NO_MEMORY.set(true),
                Fault::SinkPanics => SINK_PANICS.set(true),
            }
        })
    }

    fn call(&self, message: &[u8], without_memory: bool) -> Result<Vec<u8>, Status> {
        let recipient = patina::Guid::from_bytes(&ECHO.to_bytes());
        let mm = self.client.service().unwrap();
        let options = CallOptions::new().with_header(self.header);
        // Of another size than the one that the allocator refuses.
        let mut response = Vec::with_capacity(2 * PAGES * PAGE_LEN);
        let mut result = Ok(());
        mm.communicate_with(self.kind.id(), message, recipient, options, &mut |reader| {
            if without_memory {
                self.bad.reach(Step::Reading);
                match reader.read_to_vec() {
                    Ok(all) => response.extend(all),
                    Err(error) => result = Err(error),
                }
                return;
            }
            let half = reader.remaining() / 2;
            let mut part = vec![0; PAGES * PAGE_LEN];
            response.extend_from_slice(reader.read(&mut part[..half]));
            self.bad.reach(Step::Reading);
            response.extend_from_slice(reader.read(&mut part));
        })?;
        result.map(|()| response)
    }

    /// One case. Returns what is wrong with it.
    fn case(&mut self, fault: Fault, step: Step) -> Result<(), String> {
        // A pattern that occurs nowhere else.
        let message: Vec<u8> = (0x40..0x40 + 61).cycle().step_by(7).take(MESSAGE_LEN).collect();
        let inner = Inner::default();
        *self.bad.place.borrow_mut() = Some(self.place(self.kind.id()));
        self.bad.next.replace(Some((step, self.act(fault, &inner))));
        self.bad.reach(Step::BeforeCall);
        // An announcement from before the call is applied by the call.
        let place = self.place_of_call();
        *self.bad.place.borrow_mut() = Some(Rc::clone(&place));
        let in_use = place.is_pending();
        let smis_are_off = step == Step::BeforeCall && fault == Fault::SmisOff;

        let without_memory = fault == Fault::NoMemory;
        let called = panic::catch_unwind(AssertUnwindSafe(|| self.call(&message, without_memory)));
        let (left, mailbox) = self.bad.left.borrow().clone();
        let after = place.bytes();
        let pending = place.is_pending();
        let wants = match (in_use, smis_are_off) {
            (true, _) => Expected::MailboxInUse,
            (false, true) => Expected::NoSmi,
            _ => expected(self.header, &left, mailbox.as_deref()),
        };
        let mut problems = Vec::new();
        let mut require = |is_right: bool, what: &str| {
            if !is_right {
                problems.push(what.to_owned());
            }
        };
        let name = match &called {
            Err(_) => {
                require(fault == Fault::SinkPanics, "a panic");
                String::from("panic of the log sink")
            }
            Ok(Err(error @ Status::OutOfMemory { needed })) => {
                let is_due = without_memory && matches!(wants, Expected::Response { len: MESSAGE_LEN, .. });
                require(is_due && *needed == MESSAGE_LEN, "out of memory");
                kind_of(error)
            }
            Ok(found) => {
                require(
                    is_as_expected(found, &wants),
                    &format!("the result is {:?}, not {wants:?}", found.as_ref().map(Vec::len)),
                );
                if let (Ok(found), Expected::Response { at, len, .. }) = (found, &wants) {
                    let bytes = &left[*at..*at + len];
                    let half = len / 2;
                    require(
                        found[..half] == bytes[..half],
                        "the response's first half differs",
                    );
                    // Memory that changes while the response is read may change what is still to be
                    // read, and nothing else.
                    let changes = step == Step::Reading;
                    require(
                        changes || found[half..] == bytes[half..],
                        "the response's second half differs",
                    );
                }
                found.as_ref().map_or_else(kind_of, |_| String::from("response"))
            }
        };
        // No stale bytes.
        if !in_use {
            let wiped = match (&called, &wants) {
                (Ok(Ok(_) | Err(Status::OutOfMemory { .. })), Expected::Response { end, .. }) => *end,
                _ => after.len(),
            };
            let stale = after[..wiped].iter().position(|byte| *byte != 0);
            require(stale.is_none(), &format!("byte {stale:?} of {wiped} is stale"));
            require(!pending, "the mailbox announces a request");
        }
        self.bad.reach(Step::AfterCall);
        for place in &self.places {
            let is_there = place.bytes().windows(16).any(|window| window == &message[..16]);
            require(!is_there, "the request is still in shared memory");
        }
        if let Fault::Reenter(level) = fault {
            let in_call = !matches!(step, Step::BeforeCall | Step::AfterCall);
            // Without a mailbox the call runs at TPL_NOTIFY.
            let waits = self.kind == Kind::NoMailbox && level != Tpl::HighLevel;
            let is_right = match &*inner.borrow() {
                Some(Err(Status::Busy)) => in_call && !waits,
                Some(Ok(response)) => (!in_call || waits) && response == b"inner",
                _ => false,
            };
            require(is_right, &format!("the inner call is {:?}", inner.borrow()));
        }
        *self.results.entry(name).or_default() += 1;
        self.recover();
        let next = self.client.communicate(self.kind.id(), b"the next message", ECHO);
        require(
            next.as_deref() == Ok(b"the next message"),
            &format!("the next call is {next:?}"),
        );
        for id in self.kind.setup().buffers.iter().map(|buffer| buffer.id) {
            let is_clean = self.place(id).bytes().iter().all(|byte| *byte == 0);
            require(
                is_clean,
                &format!("comm buffer {id} is not clean after the next call"),
            );
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "{:?}, {:?}, {fault:?} at {step:?}: {}",
                self.kind,
                self.header,
                problems.join("; ")
            )),
        }
    }

    /// The comm buffer's current place. Each place is kept, so that it can be searched later.
    fn place_of_call(&mut self) -> Rc<Place> {
        let place = self.place(self.kind.id());
        let at = |place: &Place| place.region.as_ptr();
        if !self.places.iter().any(|known| at(known) == at(&place)) {
            self.places.push(Rc::clone(&place));
        }
        place
    }

    /// Ends the fault. A request that another driver has announced is served.
    fn recover(&self) {
        self.bad.heal();
        *self.bad.place.borrow_mut() = None;
        self.client.switch_smis(true);
        let machine = self.sim.machine();
        (0..4).for_each(|_| machine.pause());
        let place = self.place(self.kind.id());
        if place.is_pending() {
            machine.write_u8(COMMAND, 0xff);
            (0..4).for_each(|_| machine.pause());
        }
        // Its owner withdraws what MM does not take, and wipes it.
        place.put_in_mailbox(0, &[0; 24]);
        place.put(0, &vec![0; place.bytes().len()]);
        assert!(self.lab.abilities().contains(Abilities::MAILBOX));
    }
}

/// The name of an error, without its numbers.
fn kind_of(error: &Status) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap().to_owned()
}

#[test]
fn every_fault_at_every_step_has_a_defined_result() {
    log::set_logger(&Sink).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !SINK_PANICS.get() {
            report(info);
        }
    }));
    let faults = faults();
    let headers = [HeaderFormat::V1, HeaderFormat::V3];
    let (mut cases, mut wrong) = (0, Vec::new());
    let mut results = BTreeMap::<String, u32>::new();
    for kind in Kind::ALL {
        for header in headers {
            let mut bench = Bench::new(kind, header);
            for fault in &faults {
                for step in Step::ALL {
                    cases += 1;
                    wrong.extend(bench.case(*fault, step).err());
                }
            }
            for (name, count) in &bench.results {
                *results.entry(name.clone()).or_default() += count;
            }
        }
    }
    println!(
        "fault table: {} faults x {} steps x {} headers x {} kinds of comm buffer = {cases} cases",
        faults.len(),
        Step::ALL.len(),
        headers.len(),
        Kind::ALL.len(),
    );
    results
        .iter()
        .for_each(|(name, count)| println!("  {count:6} {name}"));
    assert_eq!(
        cases,
        faults.len() * Step::ALL.len() * headers.len() * Kind::ALL.len()
    );
    assert!(
        wrong.is_empty(),
        "{} of {cases} cases are wrong:\n{}",
        wrong.len(),
        wrong.iter().take(60).cloned().collect::<Vec<_>>().join("\n")
    );
    // Each kind of result has occurred.
    for name in [
        "response",
        "panic of the log sink",
        "NotProcessed",
        "MmReturned",
        "ResponseBelowHeader",
        "ResponseBeyondBuffer",
        "InvalidResponse",
        "MailboxInUse",
        "MmiNotRaised",
        "OutOfMemory",
    ] {
        assert!(results.contains_key(name), "no case ended in {name}");
    }
}
