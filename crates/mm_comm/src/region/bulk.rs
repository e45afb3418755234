//! Runs of aligned words between shared memory and memory of this program. An unsafe island
//! (`docs/unsafe.md`).
//!
//! Every byte of shared memory is accessed once, in words. The order within a run does not matter:
//! a word that must come first or last, such as the length that announces a request, is written
//! separately.
//!
//! On x86 a long run is one string instruction. For a loop the compiler emits a load and a store
//! per word, because the accesses are volatile and firmware targets have no SSE; processors with
//! ERMS move 32 bytes a cycle or more with the string instruction, and an emulator that counts
//! instructions counts one per word instead of two. Intel's manual (volume 1, 7.3.9.3) lets its
//! stores become visible in any order among themselves, but not after later stores. On AArch64 two
//! words are one `ldp` or `stp`, on targets with SSE2, such as hosts, one `movaps`.

use core::mem::MaybeUninit;

/// Bytes of a word.
pub const WORD: usize = size_of::<u64>();

/// A word in memory of this program, which need not be aligned.
pub(super) type Word = [u8; WORD];

/// From this many words on the string instruction is faster: it takes some 50 cycles to start.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LONG_RUN: usize = if cfg!(target_feature = "sse2") { 384 } else { 96 };

/// What the address of a pair of words is a multiple of.
const PAIR_ALIGN: usize = if cfg!(all(target_feature = "sse2", not(miri))) {
    2 * WORD
} else {
    WORD
};

/// Whether a word comes before the first pair.
fn is_odd(address: usize) -> bool {
    PAIR_ALIGN != WORD && !address.is_multiple_of(PAIR_ALIGN)
}

/// The same memory as uninitialised bytes: to write, not to read.
pub(super) fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let len = bytes.len();
    // SAFETY: the same memory for the same time, of a type with the same layout. `SharedRegion`
    // writes bytes there, and so leaves each with a value.
    unsafe { core::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
}

/// Copies words out of shared memory. Returns the address behind the last.
///
/// # Safety
///
/// The words at `from` are readable, all of them, and aligned.
#[inline]
pub(super) unsafe fn load(mut from: *const u8, out: &mut [[MaybeUninit<u8>; WORD]]) -> *const u8 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if out.len() >= LONG_RUN {
        // SAFETY: `from` is readable by the contract, `out` is writable and as long. The ABI keeps
        // the direction flag clear. Not `nomem`: the compiler keeps the order with other accesses
        // to memory.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") out.len() => _,
                inout("rsi") from,
                inout("rdi") out.as_mut_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
        return from;
    }
    let (first, out) = out.split_at_mut(out.len().min(is_odd(from.addr()).into()));
    for word in first {
        // SAFETY: one word is left by the contract.
        *word = unsafe { load_word(from) }.to_ne_bytes().map(MaybeUninit::new);
        from = from.wrapping_add(WORD);
    }
    let (pairs, rest) = out.as_chunks_mut();
    for pair in pairs {
        // SAFETY: as many words are left by the contract.
        *pair = unsafe { load_pair(from) }.map(|word| word.map(MaybeUninit::new));
        from = from.wrapping_add(2 * WORD);
    }
    for word in rest {
        // SAFETY: as many words are left by the contract.
        *word = unsafe { load_word(from) }.to_ne_bytes().map(MaybeUninit::new);
        from = from.wrapping_add(WORD);
    }
    from
}

/// Copies words into shared memory. Returns the address behind the last.
///
/// # Safety
///
/// The words at `to` are writable, all of them, and aligned.
#[inline]
pub(super) unsafe fn store(mut to: *mut u8, words: &[Word]) -> *mut u8 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if words.len() >= LONG_RUN {
        // SAFETY: `to` is writable by the contract, `words` is readable and as long. The ABI keeps
        // the direction flag clear. Not `nomem`: the compiler keeps the order with other accesses
        // to memory.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") words.len() => _,
                inout("rsi") words.as_ptr() => _,
                inout("rdi") to,
                options(nostack, preserves_flags),
            );
        }
        return to;
    }
    let (first, words) = words.split_at(words.len().min(is_odd(to.addr()).into()));
    for word in first {
        // SAFETY: one word is left by the contract.
        unsafe { store_word(to, u64::from_ne_bytes(*word)) };
        to = to.wrapping_add(WORD);
    }
    let (pairs, rest) = words.as_chunks();
    for pair in pairs {
        // SAFETY: as many words are left by the contract.
        unsafe { store_pair(to, *pair) };
        to = to.wrapping_add(2 * WORD);
    }
    for word in rest {
        // SAFETY: as many words are left by the contract.
        unsafe { store_word(to, u64::from_ne_bytes(*word)) };
        to = to.wrapping_add(WORD);
    }
    to
}

/// Writes zeroes over `count` words of shared memory. Returns the address behind the last.
///
/// # Safety
///
/// The words at `to` are writable, all of them, and aligned.
#[inline]
pub(super) unsafe fn wipe(mut to: *mut u8, count: usize) -> *mut u8 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if count >= LONG_RUN {
        // SAFETY: `to` is writable by the contract. The ABI keeps the direction flag clear. Not
        // `nomem`: the compiler keeps the order with other accesses to memory.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rcx") count => _,
                inout("rdi") to,
                in("rax") 0_u64,
                options(nostack, preserves_flags),
            );
        }
        return to;
    }
    let mut count = count;
    if count != 0 && is_odd(to.addr()) {
        // SAFETY: one word is left by the contract.
        unsafe { store_word(to, 0) };
        to = to.wrapping_add(WORD);
        count = count.wrapping_sub(1);
    }
    for _ in 0..count / 2 {
        // SAFETY: as many words are left by the contract.
        unsafe { store_pair(to, [[0; WORD]; 2]) };
        to = to.wrapping_add(2 * WORD);
    }
    if !count.is_multiple_of(2) {
        // SAFETY: one word is left by the contract.
        unsafe { store_word(to, 0) };
        to = to.wrapping_add(WORD);
    }
    to
}

/// # Safety
///
/// The word at `from` is readable and aligned.
#[inline]
pub(super) unsafe fn load_word(from: *const u8) -> u64 {
    // SAFETY: readable and aligned by the contract; every value is a `u64`.
    unsafe { from.cast::<u64>().read_volatile() }
}

/// # Safety
///
/// The word at `to` is writable and aligned.
#[inline]
pub(super) unsafe fn store_word(to: *mut u8, word: u64) {
    // SAFETY: writable and aligned by the contract.
    unsafe { to.cast::<u64>().write_volatile(word) };
}

/// # Safety
///
/// Two words at `from` are readable and aligned to [`PAIR_ALIGN`].
#[cfg(all(target_feature = "sse2", not(miri)))]
#[inline]
unsafe fn load_pair(from: *const u8) -> [Word; 2] {
    // SAFETY: readable and aligned by the contract.
    let pair = unsafe { from.cast::<core::arch::x86_64::__m128i>().read_volatile() };
    // SAFETY: every value of one is a value of the other.
    unsafe { core::mem::transmute::<core::arch::x86_64::__m128i, [Word; 2]>(pair) }
}

/// # Safety
///
/// Two words at `to` are writable and aligned to [`PAIR_ALIGN`].
#[cfg(all(target_feature = "sse2", not(miri)))]
#[inline]
unsafe fn store_pair(to: *mut u8, pair: [Word; 2]) {
    // SAFETY: every value of one is a value of the other.
    let pair = unsafe { core::mem::transmute::<[Word; 2], core::arch::x86_64::__m128i>(pair) };
    // SAFETY: writable and aligned by the contract.
    unsafe { to.cast::<core::arch::x86_64::__m128i>().write_volatile(pair) };
}

/// # Safety
///
/// Two words at `from` are readable and aligned.
#[cfg(any(not(any(target_arch = "aarch64", target_feature = "sse2")), miri))]
#[inline]
unsafe fn load_pair(from: *const u8) -> [Word; 2] {
    // SAFETY: readable and aligned by the contract.
    let first = unsafe { load_word(from) };
    // SAFETY: as before.
    let second = unsafe { load_word(from.wrapping_add(WORD)) };
    [first.to_ne_bytes(), second.to_ne_bytes()]
}

/// # Safety
///
/// Two words at `to` are writable and aligned.
#[cfg(any(not(any(target_arch = "aarch64", target_feature = "sse2")), miri))]
#[inline]
unsafe fn store_pair(to: *mut u8, [first, second]: [Word; 2]) {
    // SAFETY: writable and aligned by the contract.
    unsafe { store_word(to, u64::from_ne_bytes(first)) };
    // SAFETY: as before.
    unsafe { store_word(to.wrapping_add(WORD), u64::from_ne_bytes(second)) };
}

/// # Safety
///
/// Two words at `from` are readable and aligned.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline]
unsafe fn load_pair(from: *const u8) -> [Word; 2] {
    let (first, second): (u64, u64);
    // SAFETY: readable by the contract, and aligned to what the instruction needs in memory of any
    // type.
    unsafe {
        core::arch::asm!(
            "ldp {first}, {second}, [{from}]",
            from = in(reg) from,
            first = lateout(reg) first,
            second = lateout(reg) second,
            options(nostack, preserves_flags, readonly),
        );
    }
    [first.to_ne_bytes(), second.to_ne_bytes()]
}

/// # Safety
///
/// Two words at `to` are writable and aligned.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline]
unsafe fn store_pair(to: *mut u8, [first, second]: [Word; 2]) {
    let (first, second) = (u64::from_ne_bytes(first), u64::from_ne_bytes(second));
    // SAFETY: writable by the contract, and aligned to what the instruction needs in memory of any
    // type.
    unsafe {
        core::arch::asm!(
            "stp {first}, {second}, [{to}]",
            to = in(reg) to,
            first = in(reg) first,
            second = in(reg) second,
            options(nostack, preserves_flags),
        );
    }
}
