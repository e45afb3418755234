//! The callbacks that run when a call has ended.

mod run;

/// What a test replaces.
mod sync {
    pub(super) use core::sync::atomic::{AtomicU8, Ordering};
}

use crate::service::Status;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use run::Run;

/// The callbacks that wait for the end of a call.
///
/// A caller that got [`Status::Busy`] may wait for the end of the call that it interrupted. So each
/// call that was not itself rejected runs the callbacks at its end. If it ends while they run, they
/// run once more only if another call was rejected in the middle of it: otherwise a callback that
/// sends would run itself for ever.
#[derive(Default)]
pub(super) struct AfterCalls {
    /// Borrowed only to add one or to look one up, never while one runs.
    callbacks: RefCell<Vec<Rc<dyn Fn()>>>,
    run: Run,
}

/// Which ends of calls run the callbacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wakes {
    /// The end of every call.
    Always,
    /// The end of a call in whose middle another call was rejected.
    IfRejected,
}

impl AfterCalls {
    /// Registers a callback.
    pub(super) fn add(&self, callback: Rc<dyn Fn()>) -> Result<(), Status> {
        let mut callbacks = self
            .callbacks
            .try_borrow_mut()
            .map_err(|_looked_at| Status::Busy)?;
        callbacks
            .try_reserve(1)
            .map_err(|_no_memory| Status::OutOfMemory {
                needed: size_of_val(&callback),
            })?;
        callbacks.push(callback);
        Ok(())
    }

    /// Runs the callbacks at the end of a call. `was_rejected` says whether another call got
    /// [`Status::Busy`] in the middle of it.
    #[inline]
    pub(super) fn call_has_ended(&self, was_rejected: bool, wakes: Wakes) {
        // Usually there is no callback: this saves an atomic instruction, which locks the bus.
        let callbacks = self.callbacks.try_borrow();
        if !callbacks.is_ok_and(|callbacks| callbacks.is_empty()) {
            self.wake(was_rejected, wakes);
        }
    }

    #[inline(never)]
    fn wake(&self, was_rejected: bool, wakes: Wakes) {
        if wakes == Wakes::IfRejected && !was_rejected {
            return;
        }
        self.run.start(was_rejected, || {
            let callback = |index: usize| self.callbacks.try_borrow().ok()?.get(index).cloned();
            (0..).map_while(callback).for_each(|callback| callback());
        });
    }
}
