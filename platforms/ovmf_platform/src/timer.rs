//! The frequency of the time stamp counter, measured against the ACPI timer.
//!
//! QEMU's processors do not report it in CPUID.

use crate::devices;
use patina::arch::get_timer_value;

/// Ticks of the ACPI timer per second (ACPI 6.5, 4.8.2.1).
const PM_TIMER_HZ: u32 = 3_579_545;

/// Ticks to measure over: about 10 ms.
const INTERVAL: u32 = PM_TIMER_HZ / 100;

/// Readings after which a timer that does not advance is given up. One takes about a microsecond.
const MAX_READINGS: u32 = 10_000_000;

/// Measures the frequency of the time stamp counter in Hz; `None` if the ACPI timer does not run.
#[must_use]
pub fn tsc_frequency() -> Option<u64> {
    // Starts at a tick, not somewhere between two.
    let before = devices::pm_timer();
    (0..MAX_READINGS).find(|_| devices::pm_ticks_since(before) != 0)?;
    let (tick, tsc) = (devices::pm_timer(), get_timer_value());
    (0..MAX_READINGS).find(|_| devices::pm_ticks_since(tick) >= INTERVAL)?;
    let (ticks, cycles) = (devices::pm_ticks_since(tick), get_timer_value().wrapping_sub(tsc));
    let frequency = cycles
        .checked_mul(u64::from(PM_TIMER_HZ))?
        .checked_div(u64::from(ticks))?;
    log::info!("time stamp counter: {frequency} Hz");
    Some(frequency)
}
