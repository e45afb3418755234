//! What runs when a call has ended.

use super::Status;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// The callbacks that wait for the end of a call, and whether they run.
///
/// A caller that gets [`Status::Busy`] may wait for the end of the call that it interrupted. So each call that was not itself
/// refused runs the callbacks at its end. If that happens while they run, they run once more only if another call was refused
/// in the middle of it: otherwise a callback that sends would run itself for ever.
///
/// Each cell is changed by one store, since a notification can come between any two accesses and make calls of its own.
#[derive(Default)]
pub(super) struct AfterCalls {
    /// Borrowed only to add one or to look one up, never while one runs.
    callbacks: RefCell<Vec<Rc<dyn Fn()>>>,
    /// Number of calls that got [`Status::Busy`].
    refusals: Cell<u32>,
    are_running: Cell<bool>,
    run_again: Cell<bool>,
}

/// Which ends run the callbacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wakes {
    Always,
    /// Only if a call was refused meanwhile.
    IfRefused,
}

impl AfterCalls {
    /// Registers a callback.
    pub(super) fn add(&self, callback: Rc<dyn Fn()>) -> Result<(), Status> {
        let mut callbacks = self
            .callbacks
            .try_borrow_mut()
            .map_err(|_looked_at| Status::Busy)?;
        callbacks.push(callback);
        Ok(())
    }

    /// Number of calls that got [`Status::Busy`].
    pub(super) fn refusals(&self) -> u32 {
        self.refusals.get()
    }

    /// A call got [`Status::Busy`].
    pub(super) fn count_refusal(&self) {
        self.refusals.update(|refusals| refusals.wrapping_add(1));
    }

    /// Runs the callbacks at the end of a call. `refusals` are those before the call.
    pub(super) fn call_has_ended(&self, refusals: u32, wakes: Wakes) {
        let was_refused = self.refusals.get() != refusals;
        if wakes == Wakes::IfRefused && !was_refused {
            return;
        }
        if self.are_running.replace(true) {
            if was_refused {
                self.run_again.set(true);
            }
            return;
        }
        loop {
            self.run_again.set(false);
            let callback = |index: usize| self.callbacks.try_borrow().ok()?.get(index).cloned();
            (0..).map_while(callback).for_each(|callback| callback());
            // In this order: a call that comes between runs the callbacks itself.
            self.are_running.set(false);
            if !self.run_again.get() || self.are_running.replace(true) {
                return;
            }
        }
    }
}
