//! How often calls allocate: only the call that returns a `Vec` does, once. Calls of drivers in C
//! and the events of the boot do not allocate. A comm buffer that moves leaves nothing allocated.
//! Without memory there is an error.

extern crate alloc;

/// What `slot.rs` takes from its parent module.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
}
/// The hand-over of announcements by itself: a protocol database allocates when a protocol is
/// installed.
#[path = "../src/component/communicator/announced_move/slot.rs"]
mod slot;

use mm_comm::smc::{Call, Conduit};
use mm_conformance::c_abi;
use mm_conformance::lab::{CCall, CProtocol};
use patina::component::component;
use patina::component::service::uefi_services::event::{EventServices, Tpl};
use patina::component::service::uefi_services::protocol::{ProtocolPtr, ProtocolServices};
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use patina::management_mode::protocol::mm_comm_buffer_update::{MmCommBuffer, MmCommBufferUpdateProtocol};
use patina_mm::component::communicator::{
    CallOptions, MmCommunication, MmCommunicationExt, MmCommunicator, MmExecutor, ResponseReader, Status,
};
use patina_mm::component::events::MmEventNotifier;
use patina_mm::component::protocols::MmCommunicationProducer;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{CommunicateBuffer, HeaderFormat, MmCommunicationConfiguration, MmiPort};
use patina_mm::service::SwMmiTrigger;
use patina_mm_test::Dispatcher;
use patina_mm_test::events::{HostEvents, SharedEvents};
use patina_mm_test::protocols::{HostProtocols, SharedProtocols};
use patina_mm_test::tpl::SharedTpl;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
    /// Whether allocations of whole pages fail.
    static NO_PAGES: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count(allocations: usize, allocated: usize, freed: usize) {
    // Fails only while the thread is torn down, when nothing is measured. A thread may free what
    // another one allocated.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + allocations));
    let _ = LIVE_BYTES.try_with(|live| live.set(live.get().wrapping_add(allocated).wrapping_sub(freed)));
}

// SAFETY: every call goes to the system's allocator unchanged, or is refused with a null pointer;
// counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() >= 4096 && NO_PAGES.try_with(Cell::get).unwrap_or_default() {
            return std::ptr::null_mut();
        }
        count(1, layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, 0, layout.size());
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(1, len, layout.size());
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ANSWER: [u8; 1000] = [0x5a; 1000];
const RECIPIENT: patina::BinaryGuid = patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

/// Responds to every message with the same bytes.
struct Answering;

impl MmExecutor for Answering {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        comm_buffer
            .set_message(&ANSWER)
            .map_err(|_too_large| Status::CommBufferTooSmall)
    }
}

fn communicator() -> MmCommunicator<Answering> {
    let communicator = MmCommunicator::with_executor(Answering);
    let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
    communicator.set_test_comm_buffers(vec![CommunicateBuffer::new(Pin::new(memory), 0)]);
    communicator
}

fn allocations_of<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATIONS.get();
    let result = run();
    (ALLOCATIONS.get() - before, result)
}

#[test]
fn communicate_allocates_once() {
    let mm = communicator();
    let (allocations, response) = allocations_of(|| mm.communicate(0, b"x", RECIPIENT.as_guid()));
    assert_eq!(response.unwrap(), ANSWER);
    assert_eq!(allocations, 1);
}

#[test]
fn communicate_into_allocates_nothing() {
    let mm = communicator();
    let mut out = [0; 1000];
    let (allocations, len) = allocations_of(|| mm.communicate_into(0, b"x", RECIPIENT.as_guid(), &mut out));
    assert_eq!((len, out), (Ok(1000), ANSWER));
    assert_eq!(allocations, 0);
}

#[test]
fn communicate_with_allocates_nothing() {
    let mm = communicator();
    let v3 = CallOptions::new().with_header(HeaderFormat::V3);
    let mut sum = 0;
    let (allocations, result) = allocations_of(|| {
        mm.communicate_with(0, b"x", RECIPIENT.as_guid(), v3, &mut |response| {
            let mut chunk = [0; 64];
            while response.remaining() > 0 {
                sum += response
                    .read(&mut chunk)
                    .iter()
                    .map(|byte| usize::from(*byte))
                    .sum::<usize>();
            }
        })
    });
    assert_eq!((result, sum), (Ok(()), 1000 * 0x5a));
    assert_eq!(allocations, 0);
}

#[test]
fn a_typed_request_allocates_nothing() {
    let mm = communicator();
    let (allocations, response) =
        allocations_of(|| mm.request::<u16, [u8; 1000]>(0, &7, RECIPIENT.as_guid()));
    assert_eq!(response, Ok(ANSWER));
    assert_eq!(allocations, 0);
}

#[test]
fn a_refusal_allocates_nothing() {
    let mm = communicator();
    let message = [0; 5000];
    let (allocations, result) = allocations_of(|| mm.communicate(0, &message, RECIPIENT.as_guid()));
    assert_eq!(result, Err(Status::CommBufferTooSmall));
    assert_eq!(allocations, 0);
}

/// Adds the communicator above, and the level that calls through a C driver's buffer run at.
fn offer(dispatcher: &mut Dispatcher) {
    dispatcher.storage().add_service(communicator());
    dispatcher.storage().add_service(SharedTpl(Rc::default()));
}

#[test]
fn a_c_drivers_call_allocates_nothing() {
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    let mut dispatcher = Dispatcher::new();
    dispatcher.storage().add_service(SharedProtocols(protocols));
    offer(&mut dispatcher);
    dispatcher.add(MmCommunicationProducer::new(0));
    let outcome = dispatcher.dispatch();
    assert_eq!(outcome.succeeded.len(), 1, "{outcome:?}");

    let message = [0x77; 3000];
    for (format, room) in [(HeaderFormat::V1, 0), (HeaderFormat::V3, 100)] {
        let header = mm_wire::Header::new(format, mm_wire::Guid::ZERO, 3000 + room).unwrap();
        let mut bytes = header.encode().as_ref().to_vec();
        bytes.extend_from_slice(&message);
        bytes.resize(bytes.len() + 100, 0);
        let call = |bytes: Vec<u8>| {
            let call = CCall {
                protocol: CProtocol::Two,
                comm_size: Some(bytes.len()),
                bytes: Some(bytes),
            };
            // The lab itself copies the caller's bytes.
            allocations_of(|| c_abi::call(protocols, &call)).0
        };
        // A call that is refused at once shows what the lab itself allocates.
        let lab = call(vec![0; 23]);
        assert_eq!(call(bytes.clone()), lab);
        let reply = c_abi::call(
            protocols,
            &CCall {
                protocol: CProtocol::Two,
                comm_size: Some(bytes.len()),
                bytes: Some(bytes),
            },
        );
        let reply = reply.unwrap();
        assert_eq!(reply.status, mm_wire::EfiStatus::SUCCESS);
        assert_eq!(reply.bytes[format.header_len()..][..1000], ANSWER);
    }
}

#[test]
fn telling_of_an_event_allocates_nothing() {
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    let events: &'static HostEvents = Box::leak(Box::default());
    let mut dispatcher = Dispatcher::new();
    dispatcher.storage().add_service(SharedProtocols(protocols));
    dispatcher.storage().add_service(SharedEvents(events));
    offer(&mut dispatcher);
    dispatcher.add(MmEventNotifier::new(0));
    let outcome = dispatcher.dispatch();
    assert_eq!(outcome.succeeded.len(), 1, "{outcome:?}");
    let signal = |group| allocations_of(|| events.signal_group(group));
    // What the database itself allocates for a group with one member.
    let group = patina::BinaryGuid::from_bytes(&[0; 16]);
    let joined = events.create_event_for_group(group, Tpl::Callback, Box::new(|_event| ()));
    assert!(joined.is_ok());
    let of_the_database = signal(group);
    assert_eq!(
        signal(patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID),
        of_the_database
    );
}

thread_local! {
    /// Runs once, when MM would be entered: in the middle of a call.
    static DURING: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// A trigger that takes every MMI and enters nothing.
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
struct Dead;

// SAFETY: MM is never entered.
unsafe impl SwMmiTrigger for Dead {
    fn trigger_sw_mmi(&self, _: u8, _: u8) -> patina::error::Result<()> {
        if let Some(run) = DURING.take() {
            run();
        }
        Err(EfiError::DeviceError)
    }
}

/// Takes the communication service out of the storage.
struct Catcher(Rc<Cell<Option<Service<dyn MmCommunication>>>>);

#[component]
impl Catcher {
    fn entry_point(self, service: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.set(Some(service));
        Ok(())
    }
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Memory that lives as long as the process, by physical address.
fn page() -> u64 {
    Box::leak(Box::new(Page([0; 4096])))
        .0
        .as_mut_ptr()
        .expose_provenance() as u64
}

fn announcement(buffer: u64, mailbox: u64) -> ProtocolPtr {
    let interface = Box::leak(Box::new(MmCommBufferUpdateProtocol {
        version: 1,
        updated_comm_buffer: MmCommBuffer {
            physical_start: buffer,
            number_of_pages: 1,
            status: mailbox,
        },
    }));
    ProtocolPtr::from_raw((&raw mut *interface).cast()).unwrap_or_else(|| unreachable!("a box is not null"))
}

/// A client whose buffer 0 may move, and the protocols to announce that with.
fn movable() -> (&'static HostProtocols, Service<dyn MmCommunication>) {
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    let caught = Rc::new(Cell::new(None));
    let mut dispatcher = Dispatcher::new();
    let storage = dispatcher.storage();
    storage.add_service(SharedProtocols(protocols));
    storage.add_service(Dead);
    let memory: &'static mut [u8] = Box::leak(vec![0; 9000].into_boxed_slice());
    storage.add_config(MmCommunicationConfiguration {
        comm_buffers: vec![CommunicateBuffer::new(Pin::new(memory), 0)],
        enable_comm_buffer_updates: true,
        updatable_buffer_id: Some(0),
        ..Default::default()
    });
    dispatcher.add(MmCommunicator::new());
    dispatcher.add(Catcher(Rc::clone(&caught)));
    let outcome = dispatcher.dispatch();
    assert_eq!(outcome.succeeded.len(), 2, "{outcome:?}");
    let mm = caught
        .take()
        .unwrap_or_else(|| unreachable!("both components succeeded"));
    (protocols, mm)
}

fn move_to(protocols: &HostProtocols, place: ProtocolPtr) {
    let guid = patina::management_mode::protocol::mm_comm_buffer_update::PROTOCOL_GUID;
    let done = protocols
        .install_interface(None, guid, place)
        .and_then(|handle| protocols.uninstall_interface(handle, guid, place));
    assert_eq!(done, Ok(()));
}

#[test]
fn moves_during_calls_take_constant_memory() {
    let (protocols, mm) = movable();
    let places = [announcement(page(), page()), announcement(page(), page())];
    let call = move || mm.communicate(0, b"x", RECIPIENT.as_guid());
    // Moves away from the place that a call is using and back to it, repeatedly.
    let away_and_back = |n: usize| {
        move_to(protocols, places[n % 2]);
        DURING.set(Some(Box::new(move || {
            move_to(protocols, places[(n + 1) % 2]);
            assert_eq!(call(), Err(Status::SwMmiFailed));
            move_to(protocols, places[n % 2]);
            assert_eq!(call(), Err(Status::Busy));
        })));
        assert_eq!(call(), Err(Status::SwMmiFailed));
    };
    // The first moves let tables grow.
    (0..2).for_each(away_and_back);
    let before = LIVE_BYTES.get();
    (0..1000).for_each(away_and_back);
    assert_eq!(LIVE_BYTES.get(), before);
}

#[test]
fn requested_moves_take_constant_memory() {
    let places = [[page(), page()], [page(), page()]];
    let at = |n: usize| {
        let [buffer, mailbox] = places[n % 2];
        // SAFETY: the pages are leaked, and reached through comm buffers only.
        unsafe { CommunicateBuffer::from_firmware_region(buffer, 4096, 0, Some(mailbox)) }.unwrap()
    };
    let mm = communicator();
    mm.set_test_comm_buffers(vec![at(1)]);
    let move_to = |n| {
        let mut take = |response: &mut ResponseReader<'_>| response.remaining() == ANSWER.len();
        let moved = mm.communicate_and_move(0, b"x", RECIPIENT.as_guid(), &[at(n)], &mut take);
        assert_eq!(moved, Ok(()));
    };
    move_to(0);
    let before = LIVE_BYTES.get();
    (1..1001).for_each(move_to);
    assert_eq!(LIVE_BYTES.get(), before);
}

#[test]
fn moves_take_constant_memory() {
    let (protocols, mm) = movable();
    let places = [announcement(page(), page()), announcement(page(), page())];
    let move_to = |place| move_to(protocols, place);
    // The first moves let the database's own tables grow.
    for place in places {
        move_to(place);
        assert_eq!(
            mm.communicate(0, b"x", RECIPIENT.as_guid()),
            Err(Status::SwMmiFailed)
        );
    }
    assert_eq!(mm.message_capacity(0, CallOptions::new()), Ok(4096 - 24));
    let before = LIVE_BYTES.get();
    for n in 0..1000 {
        move_to(places[n % 2]);
        // Some are replaced by a newer one before a call applies them.
        if n % 3 != 0 {
            assert_eq!(
                mm.communicate(0, b"x", RECIPIENT.as_guid()),
                Err(Status::SwMmiFailed)
            );
        }
    }
    let _ = mm.communicate(0, b"x", RECIPIENT.as_guid());
    assert_eq!(LIVE_BYTES.get(), before);
}

#[test]
fn announcing_in_a_notification_allocates_nothing() {
    let slot = slot::Slot::new();
    let (allocations, applied) = allocations_of(|| {
        let mut applied = [0; 4];
        for (round, last) in (0..).zip(&mut applied) {
            let first = 10 * round;
            assert!(slot.put([first]));
            assert!(slot.put([first + 1]));
            let lock = slot.lock().unwrap();
            let is_done = lock.apply(|[value]| {
                // Notifications while a move is applied: the second announcement replaces the
                // first.
                if value % 10 == 1 {
                    assert!(slot.put([value + 1]));
                    assert!(slot.put([value + 2]));
                }
                *last = value;
                true
            });
            assert!(is_done);
        }
        applied
    });
    assert_eq!((allocations, applied), (0, [3, 13, 23, 33]));
    // A value that has to wait is kept without an allocation, too.
    let (allocations, is_done) = allocations_of(|| {
        assert!(slot.put([7]));
        slot.lock().unwrap().apply(|_| false)
    });
    assert_eq!((allocations, is_done), (0, false));
    assert_eq!(slot.taken(), 1);
}

/// FF-A 1.2 that lists its partitions in pages only.
struct PagesOnly;

impl Call for PagesOnly {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, _: [u64; 17]) -> [u64; 18] {
        let mut response = [0; 18];
        response[0] = match function {
            0x8400_0063 => 0x1_0002,
            0x8400_0069 => 0x8400_0061,
            0xc400_0066 => unreachable!("there are no pages to be mapped"),
            _ => u64::MAX,
        };
        response
    }
}

impl Conduit for PagesOnly {
    fn el3_is_implemented() -> bool {
        true
    }
}

#[test]
fn no_memory_for_the_pages_of_ffa_is_an_error() {
    let mut dispatcher = Dispatcher::new();
    let port = MmiPort::Smc(0xc400_006f);
    dispatcher.storage().add_config(MmCommunicationConfiguration {
        cmd_port: port,
        data_port: port,
        ..Default::default()
    });
    dispatcher.add(SwMmiManager::with_conduit::<PagesOnly>());
    NO_PAGES.set(true);
    let outcome = dispatcher.dispatch();
    NO_PAGES.set(false);
    let errors: Vec<_> = outcome.failed.iter().map(|(_, error)| *error).collect();
    assert_eq!(errors, [EfiError::OutOfResources], "{outcome:?}");
}
