//! A logger that a test can read.

use alloc::string::String;
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};
use ovmf_platform::machine::Logger;
use spin::Mutex;

/// What is recorded, and up to which level.
static RECORD: Mutex<Option<(Level, String)>> = Mutex::new(None);

/// The targets of the crate under test.
const TARGETS: [&str; 2] = ["mm_comm", "sw_mmi"];

/// Passes records on to the serial port, and those of the crate under test to a test that records them.
pub(crate) struct Recorder(pub(crate) Logger);

impl Log for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if TARGETS.contains(&record.target())
            // Taken: a notification logs while something is being recorded.
            && let Some(mut recording) = RECORD.try_lock()
            && let Some((level, text)) = &mut *recording
        {
            if record.level() <= *level {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{} {}: {}", record.level(), record.target(), record.args());
            }
            return;
        }
        self.0.log(record);
    }

    fn flush(&self) {}
}

/// Records what the crate under test logs while `run` runs.
pub(super) fn with_log(level: Level, run: &mut dyn FnMut()) -> String {
    let before = log::max_level();
    *RECORD.lock() = Some((level, String::new()));
    log::set_max_level(LevelFilter::Trace);
    run();
    log::set_max_level(before);
    RECORD.lock().take().map_or_else(String::new, |(_, text)| text)
}
