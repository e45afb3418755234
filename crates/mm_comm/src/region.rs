//! Memory that MM, or another processor in MM, changes while the program runs.
//!
//! An unsafe island (`docs/unsafe.md`): all other code reaches shared memory through it. There is
//! never a reference to the memory, only volatile accesses, each of which copies. What was read is
//! checked in the copy.

mod bulk;

pub use bulk::WORD;

use core::mem::MaybeUninit;
use core::ptr::NonNull;
use mm_wire::{AddressError, AddressRange};
use zerocopy::IntoBytes;

/// Owner of a range of shared memory.
///
/// Invariant: `base .. base + len` is valid for volatile reads and writes for as long as the value
/// lives, does not wrap, is at most `isize::MAX` bytes long, and no Rust reference into it is used.
#[derive(Debug)]
pub struct SharedRegion {
    base: NonNull<u8>,
    len: usize,
}

impl SharedRegion {
    /// Takes over `len` bytes at `base`.
    ///
    /// # Errors
    ///
    /// [`AddressError::Null`] for a null pointer, [`AddressError::Wraps`] if the bytes do not fit
    /// into the address space or exceed `isize::MAX`.
    ///
    /// # Safety
    ///
    /// If this succeeds, then for the rest of the value's life
    ///
    /// 1. the memory is readable and writable through `base`;
    /// 2. no reference to it is used.
    ///
    /// Other code may change it at any moment.
    pub unsafe fn new(base: *mut u8, len: usize) -> Result<Self, AddressError> {
        let address = base.addr();
        let base = NonNull::new(base).ok_or(AddressError::Null)?;
        if isize::try_from(len).is_err() || address.checked_add(len).is_none() {
            return Err(AddressError::Wraps {
                address: address as u64,
                len: len as u64,
            });
        }
        Ok(Self { base, len })
    }

    /// A second value for a region that exists already.
    ///
    /// # Safety
    ///
    /// `base` and `len` are those of a region that [`Self::new`] made, and its contract still holds.
    #[inline]
    pub(crate) const unsafe fn at(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// The first byte.
    pub(crate) const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Takes over memory that this program owns: the exclusive reference is given up for good.
    #[must_use]
    pub fn over_static(memory: &'static mut [u8]) -> Self {
        Self {
            len: memory.len(),
            base: NonNull::from(memory).cast(),
        }
    }

    /// The region's address.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The addresses of the region; `None` if it is empty.
    #[must_use]
    pub fn range(&self) -> Option<AddressRange> {
        AddressRange::new(self.base.addr().get() as u64, self.len as u64)
    }

    /// Copies bytes out, as many as `out` takes; `false`, and nothing is read, if they are not all
    /// in the region.
    #[must_use]
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        self.read_uninit(offset, bulk::as_uninit(out)).is_some()
    }

    /// Like [`Self::read`], into uninitialised memory, which this returns initialised; `None`, and
    /// nothing is read, if the bytes are not all in the region.
    #[must_use]
    pub fn read_uninit<'o>(&self, offset: usize, out: &'o mut [MaybeUninit<u8>]) -> Option<&'o mut [u8]> {
        if !self.holds(offset, out.len()) {
            return None;
        }
        let mut from = self.base.as_ptr().wrapping_add(offset).cast_const();
        let (head, rest) = out.split_at_mut(out.len().min(from.align_offset(WORD)));
        let (words, tail) = rest.as_chunks_mut::<WORD>();
        for byte in head {
            byte.write(load(from));
            from = from.wrapping_add(1);
        }
        // SAFETY: `holds` checked all bytes, of which the words are a part, and they start at a
        // multiple of a word.
        from = unsafe { bulk::load(from, words) };
        for byte in tail {
            byte.write(load(from));
            from = from.wrapping_add(1);
        }
        // SAFETY: head, words and tail are all of it, and each byte was written.
        Some(unsafe { out.assume_init_mut() })
    }

    /// Copies `bytes` in; `false`, and nothing is written, if they do not all lie in the region.
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(mut to) = self.place_to_write(offset, bytes.len()) else {
            return false;
        };
        let (head, rest) = bytes.split_at(bytes.len().min(to.align_offset(WORD)));
        let (words, tail) = rest.as_chunks::<WORD>();
        for byte in head {
            store(to, *byte);
            to = to.wrapping_add(1);
        }
        // SAFETY: `place_to_write` checked all bytes, and the words, which are a part of them, are
        // aligned.
        to = unsafe { bulk::store(to, words) };
        for byte in tail {
            store(to, *byte);
            to = to.wrapping_add(1);
        }
        true
    }

    /// Writes zeroes over `len` bytes; `false`, and nothing is written, if they do not all lie in
    /// the region.
    #[must_use]
    pub fn wipe(&self, offset: usize, len: usize) -> bool {
        let Some(mut to) = self.place_to_write(offset, len) else {
            return false;
        };
        let head = len.min(to.align_offset(WORD));
        let rest = len.saturating_sub(head);
        for _ in 0..head {
            store(to, 0);
            to = to.wrapping_add(1);
        }
        // SAFETY: `place_to_write` checked all bytes, and the words, which are a part of them, are
        // aligned.
        to = unsafe { bulk::wipe(to, rest / WORD) };
        for _ in 0..rest % WORD {
            store(to, 0);
            to = to.wrapping_add(1);
        }
        true
    }

    /// Copies `N` words out, each with one load; `None`, and nothing is read, if they are not all
    /// in the region, or are not aligned to 8 bytes.
    #[must_use]
    #[inline]
    pub fn read_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let from = self.base.as_ptr().wrapping_add(offset).cast_const();
        if !self.holds(offset, size_of::<[u64; N]>()) || !from.addr().is_multiple_of(WORD) {
            return None;
        }
        // SAFETY: all words are in the region, and aligned.
        Some(core::array::from_fn(|index| unsafe {
            bulk::load_word(from.wrapping_add(index.wrapping_mul(WORD)))
        }))
    }

    /// Copies `N` words in, each with one store; `false`, and nothing is written, if they do not
    /// all lie in the region, or are not aligned to 8 bytes.
    #[must_use]
    #[inline]
    pub fn write_words<const N: usize>(&self, offset: usize, words: &[u64; N]) -> bool {
        let at = self.base.as_ptr().wrapping_add(offset);
        if !at.addr().is_multiple_of(WORD) {
            return false;
        }
        let Some(mut to) = self.place_to_write(offset, size_of::<[u64; N]>()) else {
            return false;
        };
        for word in words {
            // SAFETY: all words are in the region, and aligned.
            unsafe { bulk::store_word(to, *word) };
            to = to.wrapping_add(WORD);
        }
        true
    }

    /// Copies `N` words out, which need not be aligned, each byte with one load; `None`, and nothing is read, if they are
    /// not all in the region.
    #[must_use]
    pub fn read_odd_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let mut words = [0; N];
        self.read(offset, words.as_mut_bytes()).then_some(words)
    }

    /// The byte at `offset`, with one load; `None` if it is not in the region.
    #[must_use]
    #[inline]
    pub fn read_byte(&self, offset: usize) -> Option<u8> {
        self.holds(offset, 1)
            .then(|| load(self.base.as_ptr().wrapping_add(offset)))
    }

    /// The address for a write of `len` bytes at `offset`; `None` if they are not all in the
    /// region.
    #[inline]
    fn place_to_write(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if !self.holds(offset, len) {
            return None;
        }
        let to = self.base.as_ptr().wrapping_add(offset);
        #[cfg(test)]
        if watch::swallows(to.addr(), len) {
            return Some(watch::elsewhere(len, to.addr()));
        }
        #[cfg(test)]
        watch::interrupt();
        Some(to)
    }

    #[inline]
    fn holds(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }
}

/// Reads one byte. Private, and called only with addresses that `SharedRegion::holds` accepted.
fn load(from: *const u8) -> u8 {
    // SAFETY: the callers are methods of `SharedRegion`, which checked that the address lies in its
    // region, readable by the type's invariant; a byte has no alignment and every value is a `u8`.
    unsafe { from.read_volatile() }
}

/// Writes one byte. Private, and called only with addresses that `SharedRegion::holds` accepted.
fn store(to: *mut u8, value: u8) {
    // SAFETY: the callers are methods of `SharedRegion`, which checked that the address lies in its
    // region, writable by the type's invariant; a byte has no alignment.
    unsafe { to.write_volatile(value) };
}

/// Shows a test the writes of its thread to shared memory.
#[cfg(test)]
pub(crate) mod watch {
    use std::boxed::Box;
    use std::cell::{Cell, RefCell};
    use std::vec::Vec;

    type Interrupt = Box<dyn FnMut()>;

    std::thread_local! {
        static INTERRUPT: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
        static WRITES: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
        static SWALLOW: Cell<bool> = const { Cell::new(false) };
    }

    /// Memory for writes that must not arrive, aligned like `address`.
    pub(super) fn elsewhere(len: usize, address: usize) -> *mut u8 {
        let memory: &'static mut [u64] = Box::leak(std::vec![0; len / 8 + 2].into_boxed_slice());
        memory.as_mut_ptr().cast::<u8>().wrapping_add(address % 8)
    }

    pub(super) fn swallows(address: usize, len: usize) -> bool {
        WRITES.with_borrow_mut(|writes| writes.push((address, len)));
        SWALLOW.get()
    }

    pub(super) fn interrupt() {
        INTERRUPT.with_borrow_mut(|interrupt| interrupt.as_mut().map(|interrupt| interrupt()));
    }

    /// Runs `run`, and `interrupt` before each write to shared memory.
    pub(crate) fn interrupted<T>(interrupt: impl FnMut() + 'static, run: impl FnOnce() -> T) -> T {
        INTERRUPT.set(Some(Box::new(interrupt)));
        let result = run();
        INTERRUPT.set(None);
        result
    }

    /// Takes the record of all writes since the last call, oldest first: where, and how many bytes.
    pub(crate) fn take_writes() -> Vec<(usize, usize)> {
        WRITES.take()
    }

    /// Runs `run` over memory that does not keep what is written, such as a ROM.
    pub(crate) fn over_rom<T>(run: impl FnOnce() -> T) -> T {
        SWALLOW.set(true);
        let result = run();
        SWALLOW.set(false);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn with_region(len: usize, test: impl FnOnce(&SharedRegion)) {
        let mut memory: Vec<u64> = vec![0x5a5a_5a5a_5a5a_5a5a; len.div_ceil(8) + 1];
        // SAFETY: the vector outlives the region, is at least `len` bytes long, and is not touched
        // before the test ends.
        let region = unsafe { SharedRegion::new(memory.as_mut_ptr().cast(), len) }.unwrap();
        test(&region);
    }

    #[test]
    fn words_are_accessed_only_if_they_are_aligned_and_all_in_the_region() {
        with_region(20, |region| {
            for offset in 0..24 {
                let (one, two) = (region.read_words::<1>(offset), region.read_words::<2>(offset));
                let is_aligned = offset % 8 == 0;
                assert_eq!(one.is_some(), is_aligned && offset + 8 <= 20, "{offset}");
                assert_eq!(two.is_some(), is_aligned && offset + 16 <= 20, "{offset}");
                assert_eq!(region.write_words(offset, &[1]), one.is_some(), "{offset}");
                assert_eq!(region.write_words(offset, &[1, 2]), two.is_some(), "{offset}");
            }
            assert_eq!(region.read_words(0), Some([1, 1]));
        });
    }

    #[test]
    fn region_tells_its_addresses() {
        with_region(20, |region| {
            let range = region.range().unwrap();
            assert_eq!(range.start(), region.as_ptr().addr() as u64);
            assert_eq!((range.len(), region.len(), region.is_empty()), (20, 20, false));
        });
        with_region(0, |region| {
            assert_eq!((region.range(), region.len(), region.is_empty()), (None, 0, true));
        });
    }

    #[test]
    fn every_alignment_and_length_round_trips_and_touches_nothing_else() {
        // Runs of 96 words or more are copied by a string instruction, 384 with SSE2.
        // Each case takes Miri seconds.
        let step = if cfg!(miri) { 37 } else { 1 };
        let lengths = || {
            (0..40)
                .chain(755..790)
                .chain(3060..3095)
                .chain([1024, 1500])
                .step_by(step)
        };
        for offset in (0..10).step_by(step.min(7)) {
            for len in lengths() {
                with_region(4096, |region| {
                    let bytes: Vec<u8> = (1..=u8::MAX).cycle().take(len).collect();
                    assert!(region.write(offset, &bytes));
                    let mut all = [0; 4096];
                    assert!(region.read(0, &mut all));
                    let mut expected = [0x5a; 4096];
                    expected[offset..offset + len].copy_from_slice(&bytes);
                    assert_eq!(all, expected, "offset {offset}, len {len}");

                    let mut back = vec![0; len];
                    assert!(region.read(offset, &mut back));
                    assert_eq!(back, bytes);

                    assert!(region.wipe(offset, len));
                    assert!(region.read(0, &mut all));
                    expected[offset..offset + len].fill(0);
                    assert_eq!(all, expected);
                });
            }
        }
    }

    #[test]
    fn a_wipe_longer_than_a_chunk_reaches_its_end_and_not_further() {
        with_region(2048, |region| {
            assert!(region.wipe(3, 1500));
            let mut all = vec![0; 2048];
            assert!(region.read(0, &mut all));
            assert!(all[3..1503].iter().all(|byte| *byte == 0));
            assert!(all[..3].iter().chain(&all[1503..]).all(|byte| *byte == 0x5a));
        });
    }

    #[test]
    fn accesses_that_leave_the_region_do_nothing() {
        with_region(64, |region| {
            let mut out = [7; 2];
            assert!(!region.read(63, &mut out));
            assert!(!region.read(usize::MAX, &mut out));
            assert_eq!(out, [7; 2]);
            assert!(!region.write(63, &[1, 2]));
            assert!(!region.wipe(60, 5));
            assert!(region.read(62, &mut out));
            assert_eq!(out, [0x5a; 2]);
        });
    }

    #[test]
    fn impossible_memory_is_refused() {
        let wrapping = usize::MAX & !0xfff;
        // SAFETY: the calls fail, so nothing is taken over.
        let refused = |address: usize, len| unsafe {
            SharedRegion::new(core::ptr::without_provenance_mut(address), len)
        };
        assert_eq!(refused(0, 64).unwrap_err(), AddressError::Null);
        assert_eq!(
            refused(wrapping, 0x1000).unwrap_err(),
            AddressError::Wraps {
                address: wrapping as u64,
                len: 0x1000
            }
        );
        let huge = isize::MAX as usize + 1;
        assert_eq!(
            refused(0x1000, huge).unwrap_err(),
            AddressError::Wraps {
                address: 0x1000,
                len: huge as u64
            }
        );
    }
}
