//! The newest of several values, handed from the code that announces them to the code that applies
//! them.
//!
//! Both may interrupt each other, and themselves, at any instruction, and so cannot wait for each
//! other. Putting a value is one swap. Only the code that has the lock applies; code that does not
//! get it continues without.
//!
//! In every interleaving the value that was put last is applied last, none is applied twice, none
//! leaks, and none is applied while other code has the lock. `tests/announcement_interleavings.rs`
//! compiles this file against loom's atomics and checks that.
//!
//! Values are put in notifications, so their memory is allocated before: for a value that waits,
//! one that is being applied, and one that is being put. Only puts that interrupt each other need
//! more, and that allocation may fail.

use super::sync::{AtomicBool, AtomicPtr, Ordering};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::null_mut;

/// Number of values for which memory is allocated at the start.
const PLACES: usize = 3;

/// Memory for one value.
type Place<T> = [Option<T>; 1];

/// Holds the newest value that was put and not applied yet.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    /// Null, or from `Box::into_raw`, as are those of `free`. Code that swaps a pointer out owns
    /// it.
    newest: AtomicPtr<Place<T>>,
    /// Memory that was allocated and holds no value now.
    free: [AtomicPtr<Place<T>>; PLACES],
    /// Whether there is a [`Lock`].
    is_locked: AtomicBool,
}

impl<T: Send> Slot<T> {
    /// `None` if memory is short.
    pub(crate) fn new() -> Option<Self> {
        let slot = Self {
            newest: AtomicPtr::new(null_mut()),
            free: core::array::from_fn(|_| AtomicPtr::new(null_mut())),
            is_locked: AtomicBool::new(false),
        };
        for _ in 0..PLACES {
            slot.give_back(allocate()?);
        }
        Some(slot)
    }

    /// Leaves a value to be applied, instead of an older one that was not applied yet. Without
    /// memory for it, which can only happen if puts interrupt each other, this returns the value,
    /// and the older one stays.
    pub(crate) fn put(&self, value: T) -> Result<(), T> {
        let mut free = self.free.iter();
        let free = free.find_map(|place| owned(place.swap(null_mut(), Ordering::AcqRel)));
        let Some(mut place) = free.or_else(allocate) else {
            return Err(value);
        };
        *place = [Some(value)];
        if let Some(older) = owned(self.newest.swap(Box::into_raw(place), Ordering::AcqRel)) {
            self.give_back(older);
        }
        Ok(())
    }

    /// Takes the lock; `None` if this call interrupted the code that has it.
    pub(crate) fn lock(&self) -> Option<Lock<'_, T>> {
        self.is_locked
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            .then(|| Lock(self))
    }

    fn put_back(&self, place: Box<Place<T>>) {
        let place = Box::into_raw(place);
        let newer = self
            .newest
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

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        for place in core::iter::once(&self.newest).chain(&self.free) {
            drop(owned(place.swap(null_mut(), Ordering::AcqRel)));
        }
    }
}

/// The right to apply values, until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock<'a, T>(&'a Slot<T>);

impl<T: Send> Lock<'_, T> {
    /// Applies what was put, until nothing is left. A value that `apply` returns stays for the next
    /// time, unless a newer one was put meanwhile.
    ///
    /// Returns whether everything that was put is applied: `false` if `apply` returned a value.
    pub(crate) fn apply(&self, mut apply: impl FnMut(T) -> Result<(), T>) -> bool {
        while let Some(mut place) = owned(self.0.newest.swap(null_mut(), Ordering::AcqRel)) {
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

impl<T> Drop for Lock<'_, T> {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}

/// Takes back what was put into one of the pointers.
fn owned<T>(place: *mut Place<T>) -> Option<Box<Place<T>>> {
    if place.is_null() {
        return None;
    }
    // SAFETY:
    // 1. The pointer is from `Box::into_raw`: nothing else is put into the pointers of a slot.
    // 2. No other copy of it exists: all callers are in this file, and have just swapped it out, or
    //    failed to put it in.
    Some(unsafe { Box::from_raw(place) })
}

/// Allocates memory for one value; `None` if memory is short.
fn allocate<T>() -> Option<Box<Place<T>>> {
    let mut place = Vec::new();
    place.try_reserve_exact(1).ok()?;
    place.push(None);
    Box::<Place<T>>::try_from(place).ok()
}
