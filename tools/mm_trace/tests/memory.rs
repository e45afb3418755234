//! Memory does not grow with the input.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may panic")]

use mm_trace::page::Page;
use mm_trace::read::{Format, read};
use mm_trace::transcript::Transcript;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the allocated bytes, and their maximum.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Repeats a boot's log; no two rounds are kept.
struct Repeated {
    round: Vec<u8>,
    at: usize,
    left: usize,
}

impl Repeated {
    fn new(rounds: usize) -> Self {
        let guid = "ed32d533-99e6-4209-9cc0-2d72cdd998a7";
        let mut round = String::new();
        for call in 1..=20 {
            round += &format!(
                "firmware: something else that is of no use here\r\n\
                 TRACE mm_comm: call {call} at {call}00 us, comm buffer 0: request to {guid}, V1 header, 3 of 900 bytes: [01, 02, 03]\r\n\
                 TRACE sw_mmi: MMI raised: command 0xff, data 0x00\r\n\
                 ERROR mm_comm: comm buffer 0: a note\r\n\
                 TRACE mm_comm: call {call} at {call}50 us, comm buffer 0: response, 1 of 1 bytes: [00]\r\n"
            );
            // Every third call has no end.
            if call % 3 != 0 {
                round += &format!(
                    "DEBUG mm_comm: call {call}, comm buffer 0: 900 bytes to {guid}, 1 bytes back\r\n"
                );
            }
        }
        round += &format!("{}\r\n", "a line without an end ".repeat(5000));
        Self {
            round: round.into_bytes(),
            at: 0,
            left: rounds,
        }
    }
}

impl Read for Repeated {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let rest = &self.round[self.at..];
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        if self.at == self.round.len() {
            self.at = 0;
            self.left -= 1;
        }
        Ok(len)
    }
}

/// The most memory that reading this many rounds takes, and the length of the input.
fn most_memory(rounds: usize) -> (usize, usize) {
    let input = Repeated::new(rounds);
    let bytes = input.round.len() * rounds;
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut transcript = Transcript::new(io::sink(), None);
    let mut page = Page::new(io::sink(), None, 100).unwrap();
    let mut sink = |event: &mm_trace::calls::Event<'_>| {
        use mm_trace::calls::Sink as _;
        transcript.event(event)?;
        page.event(event)
    };
    read(BufReader::new(input), "log", Some(Format::Log), None, &mut sink).unwrap();
    transcript.finish().unwrap();
    page.finish().unwrap();
    (MOST.load(Ordering::Relaxed) - before, bytes)
}

#[test]
fn a_log_that_is_a_hundred_times_as_long_takes_no_more_memory() {
    let (short, _) = most_memory(1);
    let (long, bytes) = most_memory(100);
    assert!(bytes > 10_000_000, "{bytes}");
    assert!(short > 1000, "{short} bytes: nothing was counted");
    // Some bytes more, because numbers have more digits.
    assert!(
        long <= short + 4096,
        "{short} bytes for one round, {long} for a hundred"
    );
}
