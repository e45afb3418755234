//! Writes log lines without module, file and line of the call site.

use core::fmt::Arguments;
use log::{Level, Record};

/// Writes a line to the log, like `log::error!(target: ..., ...)` and its siblings:
/// `log_line!(Error, "mm_comm", "comm buffer {id}: {error}")`.
///
/// Those also store module, file and line of each call site, which took 2.5 KiB of a platform's image.
/// The level that is switched on is compared here only for lines of each call; the others are rare,
/// and that takes bytes.
macro_rules! log_line {
    ($level:ident, $target:expr, $($text:tt)+) => {
        if log::Level::$level <= log::STATIC_MAX_LEVEL
            && (log::Level::$level <= log::Level::Info || log::Level::$level <= log::max_level())
        {
            const KIND: &$crate::log_line::Kind = &$crate::log_line::Kind {
                level: log::Level::$level,
                target: $target,
            };
            $crate::log_line::write(KIND, format_args!($($text)+));
        }
    };
}

/// Level and target of a line.
pub(crate) struct Kind {
    pub(crate) level: Level,
    pub(crate) target: &'static str,
}

/// Whether this build has log lines. Without them it does not link what is only for the log.
pub(crate) const ARE_LINKED: bool = log::STATIC_MAX_LEVEL as usize >= Level::Error as usize;

#[cold]
#[inline(never)]
pub(crate) fn write(kind: &Kind, text: Arguments<'_>) {
    let Kind { level, target } = *kind;
    if level <= log::max_level() {
        let line = Record::builder().level(level).target(target).args(text).build();
        log::logger().log(&line);
    }
}
