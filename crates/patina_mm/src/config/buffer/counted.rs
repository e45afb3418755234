//! Counted handles of one value, like `Arc` without atomic (`lock`-prefixed) instructions. An
//! unsafe island (`docs/unsafe.md`).
//!
//! The handles stay on one thread: only a notification on the same processor can come in the middle
//! of an access. It makes and drops handles, and may keep one, so a count must change in one
//! instruction; no other processor reads it. That excludes `Rc`: its count may be loaded, changed and
//! stored. A call makes and drops two handles. On the machine of `docs/performance.md` that takes
//! 1.6 ns, and 23.6 ns with `Arc`: 40 % of a small `communicate_into`.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

/// A handle of a value, which is dropped with its last handle. Neither `Send` nor `Sync`.
pub(super) struct Counted<T> {
    /// Invariant: from [`Box::into_raw`], and alive while a handle exists.
    inner: NonNull<Inner<T>>,
    owns: PhantomData<Inner<T>>,
}

struct Inner<T> {
    /// The number of handles.
    count: AtomicUsize,
    value: T,
}

impl<T> Counted<T> {
    pub(super) fn new(value: T) -> Self {
        let count = AtomicUsize::new(1);
        Self {
            inner: NonNull::from(Box::leak(Box::new(Inner { count, value }))),
            owns: PhantomData,
        }
    }

    /// Whether both are handles of one value.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: alive by the invariant, and there are shared references only.
        unsafe { self.inner.as_ref() }
    }
}

impl<T> Clone for Counted<T> {
    #[inline]
    fn clone(&self) -> Self {
        // It cannot overflow: live handles have 8 bytes each, and to forget 2^64 of them takes
        // centuries.
        increment(&self.inner().count);
        Self { ..*self }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T> Drop for Counted<T> {
    #[inline]
    fn drop(&mut self) {
        if decrement(&self.inner().count) {
            free(self.inner);
        }

        /// Never inlined, so that code that drops a handle does not grow by it.
        #[cold]
        #[inline(never)]
        fn free<T>(inner: NonNull<Inner<T>>) {
            // SAFETY: from `Box::into_raw` by the invariant, and this was the last handle.
            drop(unsafe { Box::from_raw(inner.as_ptr()) });
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn increment(count: &AtomicUsize) {
    // SAFETY: one instruction on a number that may change through a shared reference.
    unsafe { core::arch::asm!("inc qword ptr [{}]", in(reg) count.as_ptr(), options(nostack)) };
}

/// Whether it is zero now.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn decrement(count: &AtomicUsize) -> bool {
    let is_zero: u8;
    // SAFETY: one instruction on a number that may change through a shared reference. `setz` reads the flags of
    // `dec`: an interrupt between the two restores them.
    unsafe {
        core::arch::asm!(
            "dec qword ptr [{}]",
            "setz {}",
            in(reg) count.as_ptr(),
            lateout(reg_byte) is_zero,
            options(nostack),
        );
    }
    is_zero != 0
}

#[cfg(any(not(target_arch = "x86_64"), miri))]
#[inline]
fn increment(count: &AtomicUsize) {
    count.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
}

/// Whether it is zero now.
#[cfg(any(not(target_arch = "x86_64"), miri))]
#[inline]
fn decrement(count: &AtomicUsize) -> bool {
    count.fetch_sub(1, core::sync::atomic::Ordering::AcqRel) == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::vec::Vec;

    #[test]
    fn the_value_is_dropped_once_with_its_last_handle() {
        let seen = Rc::new(());
        let first = Counted::new(Rc::clone(&seen));
        let more: Vec<_> = (0..5).map(|_| first.clone()).collect();
        assert!(more.iter().all(|handle| handle.is_same(&first)));
        assert!(!first.is_same(&Counted::new(Rc::clone(&seen))));
        drop(first);
        assert_eq!(Rc::strong_count(&seen), 2);
        for handle in more {
            assert_eq!(Rc::strong_count(&handle), 2);
            drop(handle);
        }
        assert_eq!(Rc::strong_count(&seen), 1);
    }
}
