//! How often an event came and was not sent yet.
//!
//! `tests/notification_interleavings.rs` compiles this file against atomics that a notification may
//! interrupt before and after each access, and checks every such order.

use super::sync::{AtomicU8, Ordering};

/// How often an event came and was not sent yet.
#[derive(Default)]
pub(crate) struct Unsent(AtomicU8);

impl Unsent {
    /// The event came once more.
    pub(crate) fn add(&self) {
        let add = |count: u8| Some(count.saturating_add(1));
        // Never fails: there is always a new value.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// The event came, and is sent once however often it came.
    pub(crate) fn add_once(&self) {
        self.0.store(1, Ordering::Release);
    }

    /// Takes one of them; `false` if there is none.
    pub(crate) fn take(&self) -> bool {
        let take = |count: u8| count.checked_sub(1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_ok()
    }

    /// Whether there is one.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}
