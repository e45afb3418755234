//! Cost by number of buffers, depth of nesting and number of callbacks, memory at rest, and log lines.

use crate::clients::{Client as _, RECIPIENT};
use crate::measure::median;
use crate::memory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// The cost of a message of 16 bytes through a comm buffer of 4 KiB.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Growth {
    /// Number of buffers; ns through the last one, ours and published.
    pub buffers: Vec<(usize, f64, f64)>,
    /// Number of buffers; bytes of heap at rest, ours and published.
    pub heap: Vec<(usize, usize, usize)>,
    /// Depth of nesting; ns of the outermost call, ours. The published crate panics on nested calls.
    pub nesting: Vec<(usize, f64)>,
    /// Number of `after_calls` callbacks; ns, ours.
    pub callbacks: Vec<(usize, f64)>,
    /// What log lines cost.
    #[serde(default)]
    pub logs: Logs,
}

/// What log lines cost a call of ours.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Logs {
    /// ns with [`log::max_level`] off.
    pub off_ns: f64,
    /// ns with the level at trace, and a logger that refuses the target.
    pub filtered_ns: f64,
    /// ns by which the second is more, as the median of pairs of turns.
    pub more_ns: f64,
    /// The second against the first, as the median of pairs of turns.
    #[serde(default)]
    pub ratio: f64,
    /// Bytes of text at trace, by bytes of message and response.
    pub text: Vec<(usize, usize)>,
}

const MESSAGE: &[u8] = b"sixteen bytes ok";

fn time(mut call: impl FnMut()) -> f64 {
    let batch = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..500).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / 500.0
    };
    median((0..41).map(|_| batch(&mut call)).collect())
}

macro_rules! growth {
    ($name:ident, $krate:ident) => {
        mod $name {
            use super::*;
            use ::$krate::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
            use ::$krate::config::CommunicateBuffer;
            use std::cell::Cell;

            thread_local! {
                static OUTER: Cell<Option<&'static MmCommunicator<Nest>>> = const { Cell::new(None) };
                static LEFT: Cell<u8> = const { Cell::new(0) };
            }

            /// Makes another call through the next buffer, until `LEFT` calls are nested.
            pub struct Nest;

            impl MmExecutor for Nest {
                fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
                    let left = LEFT.get();
                    if left == 0 {
                        return Ok(());
                    }
                    LEFT.set(left - 1);
                    let outer = OUTER.get().ok_or(Status::NoCommBuffer)?;
                    outer
                        .communicate(left, MESSAGE, RECIPIENT.as_guid())
                        .map(drop)
                }
            }

            pub fn communicator(buffers: u8) -> (&'static MmCommunicator<Nest>, usize) {
                let before = memory::live();
                let communicator = Box::leak(Box::new(MmCommunicator::with_executor(Nest)));
                let buffers: Vec<_> = (0..buffers)
                    .map(|id| crate::clients::$name::buffer(4096, id, None))
                    .collect();
                let pages = buffers.len() * 4096;
                communicator.set_test_comm_buffers(buffers);
                OUTER.set(Some(communicator));
                (communicator, memory::live() - before - pages)
            }

            pub fn call(communicator: &MmCommunicator<Nest>, id: u8, depth: u8) -> f64 {
                time(|| {
                    LEFT.set(depth);
                    let response = communicator.communicate(id, MESSAGE, RECIPIENT.as_guid());
                    assert!(response.is_ok_and(|response| response.len() == MESSAGE.len()));
                })
            }
        }
    };
}

growth!(ours, patina_mm);
growth!(published, patina_mm_published);

/// Counts the text of what it accepts.
struct Logger;

static ACCEPTS: AtomicBool = AtomicBool::new(false);
static TEXT: AtomicUsize = AtomicUsize::new(0);

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        ACCEPTS.load(Ordering::Relaxed)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // A line of a platform's logger: level, target, text.
            let line = format!("{} - {}: {}\n", record.level(), record.target(), record.args());
            TEXT.fetch_add(line.len(), Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Measures log lines.
pub fn logs() -> Logs {
    static LOGGER: Logger = Logger;
    // Another measurement may have set it already.
    let _ = log::set_logger(&LOGGER);
    ACCEPTS.store(false, Ordering::Relaxed);
    let (mine, _) = ours::communicator(1);
    let turn = |level| {
        log::set_max_level(level);
        ours::call(mine, 0, 0)
    };
    let turns: Vec<_> = (0..15)
        .map(|_| (turn(log::LevelFilter::Off), turn(log::LevelFilter::Trace)))
        .collect();
    let mut logs = Logs {
        off_ns: median(turns.iter().map(|(off, _)| *off).collect()),
        filtered_ns: median(turns.iter().map(|(_, filtered)| *filtered).collect()),
        more_ns: median(turns.iter().map(|(off, filtered)| filtered - off).collect()),
        ratio: median(turns.iter().map(|(off, filtered)| filtered / off).collect()),
        text: Vec::new(),
    };
    ACCEPTS.store(true, Ordering::Relaxed);
    log::set_max_level(log::LevelFilter::Trace);
    for len in [16, 1024, 65512] {
        let client = crate::clients::ours::Communicate(crate::clients::ours::communicator(65536, len, true));
        let before = TEXT.load(Ordering::Relaxed);
        client.call(&vec![0xff; len], &mut []);
        logs.text.push((len, TEXT.load(Ordering::Relaxed) - before));
    }
    log::set_max_level(log::LevelFilter::Off);
    logs
}

/// Measures all of it.
pub fn run() -> Growth {
    let mut growth = Growth {
        logs: logs(),
        ..Growth::default()
    };
    for count in [1, 2, 4, 8] {
        let (mine, my_heap) = ours::communicator(count);
        let (theirs, their_heap) = published::communicator(count);
        let last = count - 1;
        let figures = (ours::call(mine, last, 0), published::call(theirs, last, 0));
        growth.buffers.push((count.into(), figures.0, figures.1));
        growth.heap.push((count.into(), my_heap, their_heap));
    }
    let (mine, _) = ours::communicator(8);
    for depth in [0, 1, 2, 4, 7] {
        growth.nesting.push((depth.into(), ours::call(mine, 0, depth)));
    }
    for count in [0, 1, 2, 4, 8, 16] {
        use patina_mm::service::MmCommunication;
        let (mine, _) = ours::communicator(1);
        for _ in 0..count {
            // A limit on callbacks is not a failure of the benchmark: the plot ends there.
            let _ = mine.after_calls(std::rc::Rc::new(|| {
                std::hint::black_box(());
            }));
        }
        growth.callbacks.push((count, ours::call(mine, 0, 0)));
    }
    growth
}
