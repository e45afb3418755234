//! One call at a time through one driver of the firmware.
//!
//! `tests/notification_interleavings.rs` compiles this file against atomics that a notification may
//! interrupt before each access, and checks every such order.

use super::sync::{AtomicUsize, Ordering};

/// How many different drivers can be in use at the same time. A machine has one; host tests run
/// several at once.
const DRIVERS: usize = 32;

/// The drivers that are serving a call, each as the address of its interface; zero is a free entry.
static IN_USE: [AtomicUsize; DRIVERS] = [const { AtomicUsize::new(0) }; DRIVERS];

/// The right to call a driver; ends when it is dropped.
///
/// The lock belongs to the driver, not to an executor: two communicators, or a communicator and a
/// component of the platform, may send through one driver.
#[must_use = "the driver is free again when this is dropped"]
pub(crate) struct DriverLock(&'static AtomicUsize);

impl DriverLock {
    /// Locks the driver whose interface is at this address. `None` if a call that this one
    /// interrupted is in it.
    ///
    /// A notification between the check and the change ends before this continues, and has released
    /// what it took.
    pub(crate) fn take(interface: usize) -> Option<Self> {
        if IN_USE
            .iter()
            .any(|place| place.load(Ordering::SeqCst) == interface)
        {
            return None;
        }
        let free = |place: &&AtomicUsize| {
            let taken = place.compare_exchange(0, interface, Ordering::SeqCst, Ordering::SeqCst);
            taken.is_ok()
        };
        IN_USE.iter().find(free).map(Self)
    }
}

impl Drop for DriverLock {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_driver_is_locked_and_others_are_not() {
        // No interface can be at these addresses.
        let first = DriverLock::take(1).unwrap();
        let second = DriverLock::take(3).unwrap();
        assert!(DriverLock::take(1).is_none());
        drop(first);
        let again = DriverLock::take(1).unwrap();
        assert!(DriverLock::take(3).is_none());
        drop((second, again));
        drop(DriverLock::take(3).unwrap());
    }
}
