//! A logger that a scenario can read.

use alloc::string::String;
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// The log targets of the crate under test.
const TARGETS: [&str; 2] = ["mm_comm", "sw_mmi"];

/// What is recorded, and up to which level.
type Recording = Option<(Level, String)>;

/// Records what the crate under test logs while [`record`] runs, and passes everything else on.
#[derive(Clone, Copy, Debug)]
pub struct Recorder<L> {
    next: L,
}

impl<L: Log> Recorder<L> {
    /// Passes lines that are not recorded on to `next`.
    pub const fn over(next: L) -> Self {
        Self { next }
    }
}

impl<L: Log> Log for Recorder<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        TARGETS.contains(&metadata.target()) || self.next.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let write = |recording: &mut Recording| match recording {
            Some((level, text)) => {
                if record.level() <= *level {
                    // Writing to a string does not fail.
                    let _ = writeln!(text, "{} {}: {}", record.level(), record.target(), record.args());
                }
                true
            }
            None => false,
        };
        let is_recorded = TARGETS.contains(&record.target()) && recording::try_with(write).unwrap_or(false);
        if !is_recorded {
            self.next.log(record);
        }
    }

    fn flush(&self) {
        self.next.flush();
    }
}

/// A logger that writes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Log for Silent {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn log(&self, _: &Record<'_>) {}

    fn flush(&self) {}
}

/// Makes a recorder the program's logger, unless it has one. Lines that are not recorded are
/// dropped.
pub fn install() {
    static RECORDER: Recorder<Silent> = Recorder::over(Silent);
    // If there is another logger, recordings stay empty, and the scenarios that read the log fail.
    let _ = log::set_logger(&RECORDER);
}

/// Records what the crate under test logs while `run` runs, up to `level`. The program's logger is
/// a [`Recorder`].
pub fn record(level: Level, run: &mut dyn FnMut()) -> String {
    let before = log::max_level();
    let text = |recording: &mut Recording| recording.take().map_or_else(String::new, |(_, text)| text);
    let _ = recording::try_with(|recording| *recording = Some((level, String::new())));
    log::set_max_level(LevelFilter::Trace);
    run();
    recording::restore(before);
    recording::try_with(text).unwrap_or_default()
}

#[cfg(feature = "sim")]
mod recording {
    //! On a host the tests run in parallel, so each thread has its own recording.

    use super::Recording;
    use core::cell::RefCell;
    use log::LevelFilter;
    use std::thread_local;

    thread_local! {
        static RECORDING: RefCell<Recording> = const { RefCell::new(None) };
    }

    /// `None` if a log line is being written: formatting it logs, too.
    pub(super) fn try_with<T>(use_it: impl FnOnce(&mut Recording) -> T) -> Option<T> {
        RECORDING.with(|recording| Some(use_it(&mut *recording.try_borrow_mut().ok()?)))
    }

    /// Does nothing: another thread may be recording.
    pub(super) fn restore(_: LevelFilter) {}
}

#[cfg(not(feature = "sim"))]
mod recording {
    //! Firmware has one thread, which notifications interrupt.

    use super::Recording;
    use log::LevelFilter;
    use spin::Mutex;

    static RECORDING: Mutex<Recording> = Mutex::new(None);

    /// `None` if a notification logs while a log line is being written.
    pub(super) fn try_with<T>(use_it: impl FnOnce(&mut Recording) -> T) -> Option<T> {
        RECORDING.try_lock().map(|mut recording| use_it(&mut recording))
    }

    pub(super) fn restore(level: LevelFilter) {
        log::set_max_level(level);
    }
}
