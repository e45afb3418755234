//! One secure monitor call at a time.
//!
//! `tests/call_interleavings.rs` compiles this file against loom's atomics, and checks every
//! interleaving of two calls.

use super::sync::{AtomicBool, Ordering};

/// Whether a call is in progress.
#[derive(Debug)]
pub(crate) struct InCall(AtomicBool);

impl InCall {
    /// Takes the flag, `false` at first.
    pub(crate) const fn of(flag: AtomicBool) -> Self {
        Self(flag)
    }

    /// Takes the right to make a call; `None` if one is in progress.
    ///
    /// What the last call wrote is visible to this one: acquire and release.
    pub(crate) fn begin(&self) -> Option<Call<'_>> {
        (!self.0.swap(true, Ordering::AcqRel)).then_some(Call(&self.0))
    }
}

/// The right to make a call; ends when dropped.
pub(crate) struct Call<'a>(&'a AtomicBool);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
