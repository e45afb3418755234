//! A clock for host tests that moves when it is read.

use core::sync::atomic::{AtomicU64, Ordering};
use patina::component::service::IntoService;
use patina::component::service::perf_timer::ArchTimerFunctionality;

/// A clock of one MHz that moves by a microsecond each time it is read, so that waits end and every
/// run is the same.
#[derive(Debug, Default, IntoService)]
#[service(dyn ArchTimerFunctionality)]
pub struct HostClock(AtomicU64);

impl ArchTimerFunctionality for HostClock {
    fn cpu_count(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn perf_frequency(&self) -> u64 {
        1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_moves_each_time_it_is_read() {
        let clock = HostClock::default();
        assert!(clock.cpu_count() < clock.cpu_count());
        assert_eq!(clock.perf_frequency(), 1_000_000);
    }
}
