//! How log lines name a call, to tell its lines from those of calls that interrupted it.

use core::fmt;
use patina::component::service::Service;
use patina::component::service::perf_timer::ArchTimerFunctionality;

/// The platform's clock.
pub(crate) type Clock = Service<dyn ArchTimerFunctionality>;

/// Names a call: `call 7 at 1234567 us, comm buffer 0`. The time is missing without a clock, the
/// number if an implementation does not count its calls.
///
/// `tools/mm_trace` parses this: change it there, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallTag {
    pub(crate) number: Option<u32>,
    pub(crate) clock: Option<Clock>,
    pub(crate) buffer: u8,
}

impl CallTag {
    /// A call whose number is not known.
    pub(crate) const fn of_buffer(buffer: u8) -> Self {
        Self {
            number: None,
            clock: None,
            buffer,
        }
    }
}

impl fmt::Display for CallTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(number) = self.number {
            write!(f, "call {number}")?;
            if let Some(now) = self.clock.and_then(|clock| microseconds(&**clock)) {
                write!(f, " at {now} us")?;
            }
            f.write_str(", ")?;
        }
        write!(f, "comm buffer {}", self.buffer)
    }
}

/// The clock's time in microseconds; `None` if its frequency is not known, or it counts backwards.
fn microseconds(clock: &dyn ArchTimerFunctionality) -> Option<u64> {
    const PER_SECOND: u64 = 1_000_000;
    let frequency = clock.perf_frequency();
    let ticks = clock.cpu_count().checked_sub(clock.cpu_count_start())?;
    let seconds = ticks.checked_div(frequency)?;
    let rest = ticks.checked_rem(frequency)?.checked_mul(PER_SECOND)?;
    seconds
        .checked_mul(PER_SECOND)?
        .checked_add(rest.checked_div(frequency)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::string::ToString;

    /// A clock that does not move.
    struct Stopped {
        ticks: u64,
        frequency: u64,
    }

    impl ArchTimerFunctionality for Stopped {
        fn cpu_count(&self) -> u64 {
            self.ticks
        }

        fn perf_frequency(&self) -> u64 {
            self.frequency
        }
    }

    fn tag(number: Option<u32>, clock: Option<Stopped>) -> CallTag {
        CallTag {
            number,
            clock: clock.map(|clock| Clock::mock(Box::new(clock))),
            buffer: 3,
        }
    }

    #[test]
    fn a_call_is_named_by_its_known_parts() {
        let clock = |ticks, frequency| Some(Stopped { ticks, frequency });
        for (number, clock, text) in [
            (
                Some(7),
                clock(2_500, 1_000),
                "call 7 at 2500000 us, comm buffer 3",
            ),
            (
                Some(7),
                clock(u64::MAX, 3_000_000_000),
                "call 7 at 6148914691236517 us, comm buffer 3",
            ),
            (Some(7), clock(2_500, 0), "call 7, comm buffer 3"),
            (Some(7), clock(u64::MAX, 1), "call 7, comm buffer 3"),
            (Some(7), None, "call 7, comm buffer 3"),
            (None, None, "comm buffer 3"),
        ] {
            assert_eq!(tag(number, clock).to_string(), text);
        }
        assert_eq!(CallTag::of_buffer(3).to_string(), "comm buffer 3");
    }
}
