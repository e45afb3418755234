//! One call at a time, and no more calls after the addresses changed in the middle of one.
//!
//! `tests/claim_interleavings.rs` compiles this file against loom's atomics, and checks every
//! interleaving of calls and of a change of addresses.

use super::sync::{AtomicU8, Ordering};

/// No call is in progress.
pub(crate) const FREE: u8 = 0;
/// A call is in progress.
const IN_CALL: u8 = 1;
/// The addresses changed in the middle of a call, so that not all pointers could be converted. For
/// good.
const LOST: u8 = 2;

/// Whether a call is in progress.
#[derive(Debug)]
pub(crate) struct State(AtomicU8);

impl State {
    /// Takes a state, [`FREE`] at first.
    pub(crate) const fn of(state: AtomicU8) -> Self {
        Self(state)
    }

    /// Takes the right to make a call, or to change addresses; `None` if a call is in progress, or
    /// if the addresses are lost.
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        let taken = self
            .0
            .compare_exchange(FREE, IN_CALL, Ordering::SeqCst, Ordering::SeqCst);
        taken.is_ok().then_some(Claim(&self.0))
    }

    /// Says that the addresses changed in the middle of a call.
    pub(crate) fn lose(&self) {
        self.0.store(LOST, Ordering::SeqCst);
    }

    /// Whether [`Self::lose`] was called.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Ordering::SeqCst) == LOST
    }
}

/// The right to make a call, or to change addresses; ends when dropped.
pub(crate) struct Claim<'a>(&'a AtomicU8);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Fails if the driver was lost meanwhile, and then stays so.
        let _ = self
            .0
            .compare_exchange(IN_CALL, FREE, Ordering::SeqCst, Ordering::SeqCst);
    }
}
