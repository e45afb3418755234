//! Whether the callbacks run, and whether they run once more.
//!
//! `tests/notification_interleavings.rs` compiles this file against atomics that a notification may
//! interrupt before and after each access, and checks every such order.

use super::sync::{AtomicU8, Ordering};

/// What the callbacks do: [`IDLE`], [`RUNNING`] or [`RUN_AGAIN`].
///
/// Atomic, so that each change is one instruction: a notification that comes before or after it and
/// makes calls itself finds one of the three states, and has restored [`IDLE`] or set [`RUN_AGAIN`]
/// when it returns.
#[derive(Default)]
pub(crate) struct Run(AtomicU8);

/// No callback runs: the call that ends next runs them.
const IDLE: u8 = 0;
/// The callbacks are running.
const RUNNING: u8 = 1;
/// The callbacks are running, and will run once more: a call was rejected after they started.
const RUN_AGAIN: u8 = 2;

impl Run {
    /// Calls `run_all`, unless it runs already; then it is called once more if `again` says so.
    pub(crate) fn start(&self, again: bool, run_all: impl Fn()) {
        loop {
            let was_idle = self
                .0
                .compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Acquire);
            if was_idle.is_err() {
                if again {
                    self.0.store(RUN_AGAIN, Ordering::Release);
                }
                return;
            }
            let running = Running(&self.0);
            run_all();
            if running.end() != RUN_AGAIN {
                return;
            }
        }
    }
}

/// The callbacks are running. If one panics, the call that ends next runs them.
struct Running<'a>(&'a AtomicU8);

impl Running<'_> {
    /// Returns what they did.
    fn end(self) -> u8 {
        let state = self.0.swap(IDLE, Ordering::AcqRel);
        core::mem::forget(self);
        state
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(IDLE, Ordering::Release);
    }
}
