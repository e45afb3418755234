//! The newest of several values, handed from the code that announces them to the code that applies them.
//!
//! Both may interrupt each other, and themselves, at any instruction, and so cannot wait for each other. Putting a value is
//! one swap, and only the code that has the turn applies; code that comes second learns it and goes on.
//!
//! Whatever the interleaving: the value that was put last is applied last, none is applied twice, none leaks, and no two
//! are applied at once, nor any while other code has the turn. `tests/update_interleavings.rs` compiles this file against
//! loom's atomics and shows it.
//!
//! Values are put in notifications, so the memory for them is allocated before: a value that waits, one that is being
//! applied, and one that is being put. Only puts that interrupt each other need more, and that may fail.

use super::sync::{AtomicBool, AtomicPtr, Ordering};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::null_mut;

/// How many values there is memory for from the start.
const PLACES: usize = 3;

/// Memory for one value.
type Place<T> = [Option<T>; 1];

/// The newest value that was put and not applied yet.
#[derive(Debug)]
pub(crate) struct Latest<T> {
    /// Owned, like those of `free`: null, or from `Box::into_raw`. Code that swaps a pointer out owns it.
    slot: AtomicPtr<Place<T>>,
    /// Places without a value.
    free: [AtomicPtr<Place<T>>; PLACES],
    /// Whether there is a [`Turn`].
    applying: AtomicBool,
}

impl<T: Send> Latest<T> {
    /// `None` if there is no memory.
    pub(crate) fn new() -> Option<Self> {
        let latest = Self {
            slot: AtomicPtr::new(null_mut()),
            free: core::array::from_fn(|_| AtomicPtr::new(null_mut())),
            applying: AtomicBool::new(false),
        };
        for _ in 0..PLACES {
            latest.give_back(allocate()?);
        }
        Some(latest)
    }

    /// Leaves a value to be applied, in the place of an older one that was not applied. If there is no memory for it, which
    /// takes puts that interrupted each other, it comes back, and the older one stays.
    pub(crate) fn put(&self, value: T) -> Result<(), T> {
        let mut free = self.free.iter();
        let free = free.find_map(|place| owned(place.swap(null_mut(), Ordering::AcqRel)));
        let Some(mut place) = free.or_else(allocate) else {
            return Err(value);
        };
        *place = [Some(value)];
        if let Some(older) = owned(self.slot.swap(Box::into_raw(place), Ordering::AcqRel)) {
            self.give_back(older);
        }
        Ok(())
    }

    /// Takes the turn; `None` if this call interrupted the code that has it.
    pub(crate) fn turn(&self) -> Option<Turn<'_, T>> {
        self.applying
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            .then(|| Turn(self))
    }

    fn put_back(&self, place: Box<Place<T>>) {
        let place = Box::into_raw(place);
        let newer = self
            .slot
            .compare_exchange(null_mut(), place, Ordering::AcqRel, Ordering::Acquire);
        if newer.is_err()
            && let Some(place) = owned(place)
        {
            self.give_back(place);
        }
    }

    /// Keeps the memory for the next value. The value in it is dropped.
    fn give_back(&self, mut place: Box<Place<T>>) {
        *place = [None];
        let place = Box::into_raw(place);
        let is_kept = self.free.iter().any(|free| {
            free.compare_exchange(null_mut(), place, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        });
        if !is_kept {
            drop(owned(place));
        }
    }
}

impl<T> Drop for Latest<T> {
    fn drop(&mut self) {
        for place in core::iter::once(&self.slot).chain(&self.free) {
            drop(owned(place.swap(null_mut(), Ordering::AcqRel)));
        }
    }
}

/// The right to apply, which ends with this value.
#[derive(Debug)]
pub(crate) struct Turn<'a, T>(&'a Latest<T>);

impl<T: Send> Turn<'_, T> {
    /// Applies what was put, until nothing is left. A value that `apply` gives back stays for the next time, unless a
    /// newer one came meanwhile.
    ///
    /// Returns whether everything that was put before is applied: `false` if `apply` gave a value back.
    pub(crate) fn apply(&self, mut apply: impl FnMut(T) -> Result<(), T>) -> bool {
        while let Some(mut place) = owned(self.0.slot.swap(null_mut(), Ordering::AcqRel)) {
            let [value] = &mut *place;
            if let Some(Err(kept)) = value.take().map(&mut apply) {
                *value = Some(kept);
                self.0.put_back(place);
                return false;
            }
            self.0.give_back(place);
        }
        true
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.0.applying.store(false, Ordering::Release);
    }
}

/// Takes back what went into the slot, or among the free places.
fn owned<T>(place: *mut Place<T>) -> Option<Box<Place<T>>> {
    if place.is_null() {
        return None;
    }
    // SAFETY: private, and called only with what was just swapped out of one of the pointers, or never got into one: such a
    // pointer is from `Box::into_raw`, and there is no other copy of it.
    Some(unsafe { Box::from_raw(place) })
}

/// Memory for one value; `None` if there is none.
fn allocate<T>() -> Option<Box<Place<T>>> {
    let mut place = Vec::new();
    place.try_reserve_exact(1).ok()?;
    place.push(None);
    Box::<Place<T>>::try_from(place).ok()
}
