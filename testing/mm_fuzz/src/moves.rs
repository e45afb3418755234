//! Announcements that a comm buffer moves, between calls and in the middle of them, and what
//! `patina_mm`'s communicator makes of them: a call uses the place that was announced last if that is
//! right, the one before if not, and no memory that an interrupted call uses. No byte of a message
//! stays where a buffer was.

use crate::memory::{self, Block, Purpose, Trigger};
use crate::places::{FILL, Memory, PAGE, PAGES};
use crate::wire::is_place;
use arbitrary::{Arbitrary, Unstructured};
use mm_core::CommBuffer;
use mm_wire::AddressRange;
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolPtr, ProtocolServices};
use patina::management_mode::protocol::mm_comm_buffer_update::{
    MmCommBuffer, MmCommBufferUpdateProtocol, PROTOCOL_GUID,
};
use patina_mm::component::communicator::{MmCommunicator, Status};
use patina_mm::config::{MmCommunicationConfiguration, MmCommunicationOptions};
use patina_mm::service::MmCommunication;
use patina_mm_test::Dispatcher;
use patina_mm_test::protocols::{HostProtocols, SharedProtocols};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What is set up is replaced after this many cases, because the protocol database keeps all
/// announcements.
const CASES: u32 = 2000;
/// The message: bytes that are nowhere else.
const MESSAGE: [u8; 100] = [0x5b; 100];
const RECIPIENT: BinaryGuid = BinaryGuid::from_bytes(&[0x5b; 16]);

#[derive(Arbitrary, Debug)]
struct Case {
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Announce(Announcement),
    Call { id: bool, during: Vec<During> },
}

/// What a notification does in the middle of a call.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum During {
    Announce(Announcement),
    Call { id: bool },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Announcement {
    /// Most have the only version.
    version: u8,
    memory: Memory,
}

/// Address, pages, mailbox.
type Place = [u64; 3];

/// A comm buffer and its mailbox as ranges.
fn ranges([start, pages, mailbox]: Place) -> [AddressRange; 2] {
    let region = AddressRange::new(start, pages * PAGE as u64).unwrap();
    [region, AddressRange::new(mailbox, 24).unwrap()]
}

fn overlap(one: Place, other: Place) -> bool {
    let all = ranges(other);
    ranges(one)
        .iter()
        .any(|range| all.iter().any(|other| range.overlaps(*other)))
}

/// Where the buffers are at first.
fn first_places(base: u64) -> [Place; 2] {
    let page = |page: usize| base + (page * PAGE) as u64;
    [[page(0), 2, page(10)], [page(4), 2, page(10) + 64]]
}

/// What the components share with the model.
struct Shared {
    mm: Cell<Option<Service<dyn MmCommunication>>>,
    protocols: &'static HostProtocols,
    base: u64,
    /// Where buffer 0 may be, and what was announced last. Buffer 1 stays.
    possible: RefCell<Vec<Place>>,
    pending: Cell<Option<Announcement>>,
    /// What happens in the middle of the next call.
    during: RefCell<Vec<During>>,
    /// The calls in progress, by their places.
    inside: RefCell<Vec<Vec<Place>>>,
}

impl Shared {
    fn place_of(&self, announcement: Announcement) -> Option<Place> {
        let place = announcement.memory.fields(self.base);
        let [start, pages, mailbox] = place;
        let is_right = announcement.version < 224 && is_place(start, pages, Some(mailbox));
        (is_right && !overlap(place, first_places(self.base)[1])).then_some(place)
    }

    fn announce(&self, announcement: Announcement) {
        // The one before may have been applied.
        let before = self.pending.replace(Some(announcement));
        let before = before.and_then(|before| self.place_of(before));
        self.possible.borrow_mut().extend(before);
        let [physical_start, number_of_pages, status] = announcement.memory.fields(self.base);
        self.install(announcement.version, [physical_start, number_of_pages, status]);
    }

    fn install(&self, version: u8, [physical_start, number_of_pages, status]: Place) {
        let version = if version < 224 {
            1
        } else {
            u64::from(version) - 222
        };
        let interface = Box::leak(Box::new(MmCommBufferUpdateProtocol {
            version,
            updated_comm_buffer: MmCommBuffer {
                physical_start,
                number_of_pages,
                status,
            },
        }));
        let interface = ProtocolPtr::from_raw((&raw mut *interface).cast()).unwrap();
        let installed = self.protocols.install_interface(None, PROTOCOL_GUID, interface);
        installed.unwrap();
    }

    fn call(&self, id: bool) -> Status {
        let mm = self.mm.take().unwrap();
        self.mm.set(Some(mm));
        let result = mm.communicate(u8::from(id), &MESSAGE, RECIPIENT.as_guid());
        result.unwrap_err()
    }
}

/// Acts like MM: looks where the request is, runs what interrupts it, and processes nothing.
fn enter(shared: &Shared, start: u64) {
    let is_here = |place: &Place| place[0] == start;
    let [_, fixed] = first_places(shared.base);
    // More than one place may start there.
    let found = if is_here(&fixed) {
        vec![fixed]
    } else {
        let announced = shared.pending.get().and_then(|last| shared.place_of(last));
        let mut possible = shared.possible.borrow_mut();
        let is_outermost = shared.inside.borrow().is_empty();
        let mut found: Vec<Place> = match announced {
            Some(announced) if is_outermost => vec![announced],
            announced => announced.into_iter().chain(possible.iter().copied()).collect(),
        };
        found.retain(is_here);
        assert!(
            !found.is_empty(),
            "buffer 0 is at {start:#x}; announced {announced:x?}, before {possible:x?}"
        );
        if is_outermost {
            shared.pending.set(None);
        }
        possible.clone_from(&found);
        found
    };
    for other in &*shared.inside.borrow() {
        let is_apart = |one: &Place| other.iter().any(|other| !overlap(*one, *other));
        assert!(
            found.iter().any(is_apart),
            "{found:x?} is in use twice: {other:x?}"
        );
    }
    shared.inside.borrow_mut().push(found);
    for step in shared.during.take() {
        match step {
            During::Announce(announcement) => shared.announce(announcement),
            During::Call { id } => {
                let status = shared.call(id);
                assert!(matches!(status, Status::Busy | Status::NotProcessed), "{status}");
            }
        }
    }
    shared.inside.borrow_mut().pop();
}

struct Find(Rc<Shared>);

#[component]
impl Find {
    #[expect(clippy::unnecessary_wraps, reason = "what a component's entry point returns")]
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.mm.set(Some(mm));
        Ok(())
    }
}

thread_local! {
    static RIG: RefCell<Option<(Rc<Shared>, u32)>> = const { RefCell::new(None) };
}

fn set_up(base: u64) -> Rc<Shared> {
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    let shared = Rc::new(Shared {
        mm: Cell::default(),
        protocols,
        base,
        possible: RefCell::default(),
        pending: Cell::default(),
        during: RefCell::default(),
        inside: RefCell::default(),
    });
    let buffers = [0, 1].map(|id| {
        let place = first_places(base)[id];
        let [region, _] = ranges(place);
        let buffer = CommBuffer {
            region,
            mailbox: Some(place[2]),
        };
        memory::comm_buffer(buffer, id as u8)
    });
    let mut dispatcher = Dispatcher::new();
    let storage = dispatcher.storage();
    storage.add_config(MmCommunicationConfiguration {
        comm_buffers: buffers.to_vec(),
        enable_comm_buffer_updates: true,
        updatable_buffer_id: Some(0),
        ..MmCommunicationConfiguration::default()
    });
    storage.add_service(SharedProtocols(protocols));
    storage.add_config(MmCommunicationOptions {
        completion_polls: 1,
        ..MmCommunicationOptions::DEFAULT
    });
    let entered = Rc::clone(&shared);
    storage.add_service(Trigger::new(move |start| enter(&entered, start)));
    dispatcher.add(MmCommunicator::new());
    dispatcher.add(Find(Rc::clone(&shared)));
    let outcome = dispatcher.run();
    let mm = shared.mm.take().unwrap_or_else(|| panic!("{outcome:?}"));
    shared.mm.set(Some(mm));
    shared
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let ram = Block::of(Purpose::Other, PAGES * PAGE, FILL);
    let base = ram.address();
    let first = first_places(base);
    for [.., mailbox] in first {
        ram.put((mailbox - base) as usize, &[0; 24]);
    }
    // Not put back if the case panics.
    let rig = RIG.take().filter(|(_, cases)| *cases < CASES);
    let (shared, cases) = rig.unwrap_or_else(|| (set_up(base), 0));
    shared.possible.replace([first[0]].to_vec());
    shared.pending.set(None);

    let mut used = first.to_vec();
    let mut note = |announcement: &Announcement| used.extend(shared.place_of(*announcement));
    for step in case.steps.iter().take(8) {
        match step {
            Step::Announce(announcement) => {
                note(announcement);
                shared.announce(*announcement);
            }
            Step::Call { id, during } => {
                let during: Vec<During> = during.iter().take(6).copied().collect();
                for step in &during {
                    if let During::Announce(announcement) = step {
                        note(announcement);
                    }
                }
                shared.during.replace(during);
                assert_eq!(shared.call(*id), Status::NotProcessed);
                shared.during.take();
            }
        }
    }

    // Back to where it was, for the next case.
    shared.install(1, first[0]);
    shared.pending.set(None);
    shared.possible.replace([first[0]].to_vec());
    assert_eq!(shared.call(false), Status::NotProcessed);
    ram.check_guards();
    let mut is_used = vec![false; PAGES * PAGE];
    for range in used.iter().flat_map(|place| ranges(*place)) {
        let first = (range.start() - base) as usize;
        let behind = is_used.len().min(first + range.len() as usize);
        is_used[first..behind].fill(true);
    }
    for (at, (byte, is_used)) in ram.bytes().iter().zip(is_used).enumerate() {
        assert!(
            *byte == FILL || (is_used && *byte == 0),
            "{byte:#x} at {at:#x}: {:x?}",
            case.steps
        );
    }
    RIG.set(Some((shared, cases + 1)));
}
