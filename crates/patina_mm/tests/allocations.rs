//! How often a call allocates: never, but for the one that returns a `Vec`, which does so once.

use patina_mm::component::communicator::{
    CallOptions, MmCommunication, MmCommunicationExt, MmCommunicator, MmExecutor, Status,
};
use patina_mm::config::{CommunicateBuffer, HeaderFormat};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::Pin;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // Fails only while the thread is torn down, when nothing is measured.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ANSWER: [u8; 1000] = [0x5a; 1000];
const RECIPIENT: patina::BinaryGuid = patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

/// Answers every message with the same bytes.
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
    let (allocations, answer) = allocations_of(|| mm.communicate(0, b"x", RECIPIENT.as_guid()));
    assert_eq!(answer.unwrap(), ANSWER);
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
        mm.communicate_with(0, b"x", RECIPIENT.as_guid(), v3, &mut |answer| {
            let mut chunk = [0; 64];
            while answer.remaining() > 0 {
                sum += answer
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
    let (allocations, answer) = allocations_of(|| mm.request::<u16, [u8; 1000]>(0, &7, RECIPIENT.as_guid()));
    assert_eq!(answer, Ok(ANSWER));
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
