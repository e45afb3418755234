//! When a caller gives up waiting for MM.

use super::conduit::Conduit;
use super::patience::{Patience, TimeLimit};
use core::time::Duration;

/// Both limits of a caller.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pub(super) patience: Patience,
    pub(super) time: Option<TimeLimit>,
}

impl Limits {
    /// For a call that fails with BUSY; the time starts now.
    pub(super) fn busy<C: Conduit>(self) -> Limit {
        Limit::new::<C>(self.patience.busy, self.time.map(|time| time.busy))
    }

    /// For resumptions within one request; the time starts now.
    pub(super) fn resumes<C: Conduit>(self) -> Limit {
        Limit::new::<C>(self.patience.resumes, self.time.map(|time| time.request))
    }
}

/// The end of one wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// This many calls.
    Calls(u32),
    /// This many ticks after the start.
    Ticks { start: u64, len: u64 },
}

impl Limit {
    fn new<C: Conduit>(calls: u32, time: Option<Duration>) -> Self {
        let counter = C::counter().filter(|counter| counter.per_second != 0);
        match (time, counter) {
            (Some(time), Some(counter)) => Self::Ticks {
                start: counter.ticks,
                len: ticks(time, counter.per_second),
            },
            _ => Self::Calls(calls),
        }
    }

    /// Whether the wait is over after `made` calls.
    pub(super) fn is_reached<C: Conduit>(self, made: u32) -> bool {
        match self {
            Self::Calls(calls) => made >= calls,
            // If the counter is gone, the wait ends: nothing else would end it.
            Self::Ticks { start, len } => {
                C::counter().is_none_or(|counter| counter.ticks.wrapping_sub(start) >= len)
            }
        }
    }
}

/// A time in ticks. Saturates at what the counter can measure.
fn ticks(time: Duration, per_second: u64) -> u64 {
    const NANOS_PER_SECOND: u128 = 1_000_000_000;
    let ticks = time
        .as_nanos()
        .checked_mul(per_second.into())
        .and_then(|scaled| scaled.checked_div(NANOS_PER_SECOND))
        .and_then(|ticks| u64::try_from(ticks).ok());
    ticks.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Counter;
    use super::super::world::{self, FakeConduit, World};
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn time_is_rounded_down_to_ticks_and_saturates() {
        for (time, per_second, expected) in [
            (Duration::ZERO, 62_500_000, 0),
            (Duration::from_secs(5), 62_500_000, 312_500_000),
            (Duration::from_millis(1), 1_000_000_000, 1_000_000),
            (Duration::from_nanos(1), 62_500_000, 0),
            (Duration::from_nanos(17), 62_500_000, 1),
            (Duration::MAX, 62_500_000, u64::MAX),
            (Duration::MAX, u64::MAX, u64::MAX),
        ] {
            assert_eq!(ticks(time, per_second), expected, "{time:?} at {per_second}");
        }
    }

    /// A counter that starts at `first`, at 1000 ticks a second, and the cell that moves it on.
    fn counting_from(first: u64) -> (World, Rc<Cell<u64>>) {
        let ticks = Rc::new(Cell::new(first));
        let counter = Rc::clone(&ticks);
        let world = World {
            counter: Rc::new(move || {
                Some(Counter {
                    ticks: counter.get(),
                    per_second: 1000,
                })
            }),
            ..World::default()
        };
        (world, ticks)
    }

    #[test]
    fn with_counter_the_time_ends_a_wait_and_calls_do_not() {
        // Also if the counter wraps.
        for first in [0, u64::MAX - 2] {
            let (world, ticks) = counting_from(first);
            world::with(world, || {
                let limits = Limits {
                    patience: Patience { busy: 1, resumes: 1 },
                    time: Some(TimeLimit {
                        busy: Duration::from_millis(5),
                        request: Duration::from_millis(7),
                    }),
                };
                let (busy, resumes) = (limits.busy::<FakeConduit>(), limits.resumes::<FakeConduit>());
                for passed in 0..10 {
                    ticks.set(first.wrapping_add(passed));
                    assert_eq!(busy.is_reached::<FakeConduit>(u32::MAX), passed >= 5);
                    assert_eq!(resumes.is_reached::<FakeConduit>(u32::MAX), passed >= 7);
                }
            });
        }
    }

    #[test]
    fn calls_are_counted_without_a_counter_and_without_a_time_limit() {
        let stopped = World {
            counter: Rc::new(|| {
                Some(Counter {
                    ticks: 0,
                    per_second: 0,
                })
            }),
            ..World::default()
        };
        let (running, _) = counting_from(0);
        for (world, time) in [
            (World::default(), Some(TimeLimit::default())),
            // CNTFRQ_EL0 was never set.
            (stopped, Some(TimeLimit::default())),
            (running, None),
        ] {
            world::with(world, || {
                let limits = Limits {
                    patience: Patience { busy: 3, resumes: 0 },
                    time,
                };
                let busy = limits.busy::<FakeConduit>();
                let reached = [1, 2, 3, 4].map(|made| busy.is_reached::<FakeConduit>(made));
                assert_eq!(reached, [false, false, true, true]);
                assert!(limits.resumes::<FakeConduit>().is_reached::<FakeConduit>(0));
            });
        }
    }
}
