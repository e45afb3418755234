//! How long a caller waits for MM: by the clock, or in calls on a processor without one.

use core::time::Duration;

/// The timeout in calls. It counts only if the processor has no counter, or the platform has set
/// no [`TimeLimit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often a call that fails with BUSY is made.
    pub busy: u32,
    /// How often an interrupted or yielding partition is resumed within one call. Each interrupt of
    /// the non-secure world costs one.
    pub resumes: u32,
}

/// For a busy partition the 500,000 calls of edk2 (`MAX_BUSY_RETRIES`), which does not limit
/// resumptions.
impl Default for Patience {
    fn default() -> Self {
        Self {
            busy: 500_000,
            resumes: 1_000_000,
        }
    }
}

/// The timeout in time. Used if the processor has a counter (`Conduit::counter`), instead of
/// [`Patience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit {
    /// How long a call that fails with BUSY is repeated.
    pub busy: Duration,
    /// How long an interrupted or yielding partition is resumed within one call. It covers the
    /// whole request.
    pub request: Duration,
}

/// Five seconds for a busy partition, a minute for a request.
impl Default for TimeLimit {
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(5),
            request: Duration::from_secs(60),
        }
    }
}
