//! What the client logs, for the scenarios that read it.

use alloc::string::String;
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};
use mm_conformance::lab::LogLevel;
use spin::Mutex;

/// What is recorded, up to which level.
static RECORD: Mutex<Option<(Level, String)>> = Mutex::new(None);

struct Recorder;

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        RECORD
            .lock()
            .as_ref()
            .is_some_and(|(level, _)| metadata.level() <= *level)
    }

    fn log(&self, record: &Record<'_>) {
        if let Some((level, text)) = RECORD.lock().as_mut()
            && record.level() <= *level
        {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Makes the recorder the program's logger, unless it has one.
pub fn install() {
    // An error says that there is one: then the scenarios that read the log say so.
    let _ = log::set_logger(&Recorder);
    log::set_max_level(LevelFilter::Off);
}

/// Records what is logged while `run` runs.
pub(crate) fn record(level: LogLevel, run: &mut dyn FnMut()) -> String {
    let level = match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Trace => Level::Trace,
    };
    *RECORD.lock() = Some((level, String::new()));
    log::set_max_level(LevelFilter::Trace);
    run();
    log::set_max_level(LevelFilter::Off);
    RECORD.lock().take().map_or_else(String::new, |(_, text)| text)
}
