//! The newest of several values, handed from the code that announces them to the code that applies
//! them.
//!
//! Both may interrupt each other, and themselves, at any instruction, and so cannot wait for each
//! other. Putting a value is one swap. Only the code that has the lock applies; code that does not
//! get it continues without.
//!
//! In every interleaving the value that was put last is applied last, none is applied twice, no
//! place is lost, and none is applied while other code has the lock.
//! `tests/announcement_interleavings.rs` compiles this file against loom's atomics and checks that.
//!
//! Values are put in notifications, so there is no allocation: the places are for a value that
//! waits, one that is being applied, and two that are being put. More puts that interrupt each
//! other are refused; notifications of one TPL do not interrupt each other.

use super::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Number of places for values.
const PLACES: usize = 4;

/// The index of no place.
const NONE: u8 = u8::MAX;

/// A place for one value. Code that changes `is_taken` from false to true owns it, and so does code
/// that swaps its index out of [`Slot::newest`].
#[derive(Debug)]
struct Place<const N: usize> {
    is_taken: AtomicBool,
    words: [AtomicU64; N],
}

impl<const N: usize> Place<N> {
    /// Takes the place; `false` if it is taken.
    fn take(&self) -> bool {
        self.is_taken
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }
}

/// Holds the newest value of `N` words that was put and not applied yet.
#[derive(Debug)]
pub(crate) struct Slot<const N: usize> {
    /// The index of its place, or [`NONE`].
    newest: AtomicU8,
    places: [Place<N>; PLACES],
    /// Whether there is a [`Lock`].
    is_locked: AtomicBool,
}

impl<const N: usize> Slot<N> {
    pub(crate) fn new() -> Self {
        Self {
            newest: AtomicU8::new(NONE),
            places: core::array::from_fn(|_| Place {
                is_taken: AtomicBool::new(false),
                words: core::array::from_fn(|_| AtomicU64::new(0)),
            }),
            is_locked: AtomicBool::new(false),
        }
    }

    /// Leaves a value to be applied, instead of an older one that was not applied yet. `false` if no
    /// place is free, which can only happen if puts interrupt each other; the older one stays then.
    pub(crate) fn put(&self, value: [u64; N]) -> bool {
        let mut places = (0..NONE).zip(&self.places);
        let free = places.find(|(_, place)| place.take());
        let Some((index, place)) = free else {
            return false;
        };
        for (to, word) in place.words.iter().zip(value) {
            to.store(word, Ordering::Release);
        }
        let older = self.newest.swap(index, Ordering::AcqRel);
        if let Some(older) = self.places.get(usize::from(older)) {
            older.give_back();
        }
        true
    }

    /// Takes the lock; `None` if this call interrupted the code that has it.
    pub(crate) fn lock(&self) -> Option<Lock<'_, N>> {
        self.is_locked
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            .then(|| Lock(self))
    }

    /// Number of places that hold a value.
    #[cfg(test)]
    #[allow(dead_code, reason = "for the tests that compile this file again")]
    pub(crate) fn taken(&self) -> usize {
        let is_taken = |place: &&Place<N>| place.is_taken.load(Ordering::Acquire);
        self.places.iter().filter(is_taken).count()
    }
}

/// The right to apply values, until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock<'a, const N: usize>(&'a Slot<N>);

impl<const N: usize> Lock<'_, N> {
    /// Applies what was put, until nothing is left. A value for which `apply` returns `false` stays
    /// for the next time, unless a newer one was put meanwhile.
    ///
    /// Returns whether everything that was put is applied.
    pub(crate) fn apply(&self, mut apply: impl FnMut([u64; N]) -> bool) -> bool {
        let Self(slot) = self;
        loop {
            let index = slot.newest.swap(NONE, Ordering::AcqRel);
            let Some(place) = slot.places.get(usize::from(index)) else {
                return true;
            };
            let value = place.words.each_ref().map(|word| word.load(Ordering::Acquire));
            let is_applied = apply(value);
            let is_kept = !is_applied
                && slot
                    .newest
                    .compare_exchange(NONE, index, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok();
            if !is_kept {
                place.give_back();
            }
            if !is_applied {
                return false;
            }
        }
    }
}

impl<const N: usize> Drop for Lock<'_, N> {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}
