//! The newest of several values, handed from whoever announces them to whoever applies them.
//!
//! Both may interrupt each other, and themselves, at any instruction: nobody can wait for anybody. So putting is one
//! swap, and applying is for whoever has the turn; whoever comes second is told, and goes its way.
//!
//! Whatever the interleaving: the value that was put last is applied last, none is applied twice, none leaks, and no two
//! are applied at once, nor any while somebody has the turn. `tests/update_interleavings.rs` compiles this file against loom's atomics and shows it.

use super::sync::{AtomicBool, AtomicPtr, Ordering};
use alloc::boxed::Box;
use core::ptr::null_mut;

/// The newest value that was put and not applied yet.
#[derive(Debug)]
pub(crate) struct Latest<T> {
    /// Owned: null, or from `Box::into_raw`. Whoever swaps a pointer out frees it.
    slot: AtomicPtr<T>,
    /// Whether somebody has a [`Turn`].
    applying: AtomicBool,
}

impl<T: Send> Latest<T> {
    pub(crate) fn new() -> Self {
        Self {
            slot: AtomicPtr::new(null_mut()),
            applying: AtomicBool::new(false),
        }
    }

    /// Leaves a value to be applied, in the place of an older one that nobody applied.
    pub(crate) fn put(&self, value: T) {
        let value = Box::into_raw(Box::new(value));
        drop(owned(self.slot.swap(value, Ordering::AcqRel)));
    }

    /// Takes the turn; `None` where this call interrupted whoever has it.
    pub(crate) fn turn(&self) -> Option<Turn<'_, T>> {
        self.applying
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            .then(|| Turn(self))
    }

    fn put_back(&self, value: Box<T>) {
        let value = Box::into_raw(value);
        let newer = self
            .slot
            .compare_exchange(null_mut(), value, Ordering::AcqRel, Ordering::Acquire);
        if newer.is_err() {
            drop(owned(value));
        }
    }
}

impl<T> Drop for Latest<T> {
    fn drop(&mut self) {
        drop(owned(self.slot.swap(null_mut(), Ordering::AcqRel)));
    }
}

/// The right to apply, which ends with this value.
#[derive(Debug)]
pub(crate) struct Turn<'a, T>(&'a Latest<T>);

impl<T: Send> Turn<'_, T> {
    /// Applies what was put, until nothing is left. A value that `apply` gives back stays for the next time, unless a
    /// newer one came meanwhile.
    ///
    /// Returns whether everything that was put before is applied: `false` where `apply` gave a value back.
    pub(crate) fn apply(&self, mut apply: impl FnMut(T) -> Result<(), T>) -> bool {
        while let Some(value) = owned(self.0.slot.swap(null_mut(), Ordering::AcqRel)) {
            if let Err(value) = apply(*value) {
                self.0.put_back(Box::new(value));
                return false;
            }
        }
        true
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.0.applying.store(false, Ordering::Release);
    }
}

/// Takes back what went into the slot.
fn owned<T>(pointer: *mut T) -> Option<Box<T>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: private, and called only with what was just swapped out of a slot, or never got into one: such a pointer
    // is from `Box::into_raw`, and there is no other copy of it.
    Some(unsafe { Box::from_raw(pointer) })
}
