//! What the copies alone cost: message in, response out, and the same with a wipe of what was written.
//!
//! Loops of 16-byte loads and stores. The C library's `memcpy` is not a yardstick: at the header's
//! offset of 24 bytes it is many times slower on some processors.

use crate::clients::Client;
use crate::memory;
use std::hint::black_box;

/// The header that is skipped.
const HEADER: usize = 24;

/// Copies a message into shared memory and out again.
pub struct Floor {
    memory: *mut u8,
    wipes: bool,
}

impl Floor {
    /// Copies in memory of `len` bytes; if `wipes` is set, also wipes it.
    pub fn new(len: usize, wipes: bool) -> Self {
        Self {
            memory: memory::pages(len),
            wipes,
        }
    }
}

impl Client for Floor {
    #[inline(never)]
    fn call(&self, message: &[u8], out: &mut [u8]) -> usize {
        let (len, shared) = (message.len(), black_box(self.memory));
        assert!(out.len() >= len, "the caller has room for an echo");
        // SAFETY: each case has a buffer of at least header and message, and `out` was just looked at.
        unsafe {
            copy(message.as_ptr(), shared.add(HEADER), len);
            copy(black_box(shared).add(HEADER), out.as_mut_ptr(), len);
            if self.wipes {
                wipe(black_box(shared), len + HEADER);
            }
        }
        len
    }
}

#[cfg(target_arch = "x86_64")]
type Chunk = core::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Chunk = [u64; 2];

/// # Safety
///
/// `len` bytes are readable at `from` and writable at `to`, and do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let whole = len - len % size_of::<Chunk>();
    for at in (0..whole).step_by(size_of::<Chunk>()) {
        // SAFETY: `at` and the 15 bytes behind it are below `len`.
        unsafe {
            let chunk = from.add(at).cast::<Chunk>().read_unaligned();
            // Opaque to the optimiser, or it makes a call of `memcpy` of the loop.
            to.add(at).cast::<Chunk>().write_unaligned(keep(chunk));
        }
    }
    for at in whole..len {
        // SAFETY: `at` is below `len`.
        unsafe { to.add(at).write_volatile(from.add(at).read()) };
    }
}

/// # Safety
///
/// `len` bytes are writable at `to`.
unsafe fn wipe(to: *mut u8, len: usize) {
    // SAFETY: zero is a value of both.
    let zero: Chunk = keep(unsafe { core::mem::zeroed() });
    let whole = len - len % size_of::<Chunk>();
    for at in (0..whole).step_by(size_of::<Chunk>()) {
        // SAFETY: `at` and the 15 bytes behind it are below `len`.
        unsafe { to.add(at).cast::<Chunk>().write_unaligned(zero) };
        barrier();
    }
    for at in whole..len {
        // SAFETY: `at` is below `len`.
        unsafe { to.add(at).write_volatile(0) };
    }
}

/// The same value, of which the optimiser knows nothing.
#[inline(always)]
fn keep(chunk: Chunk) -> Chunk {
    #[cfg(target_arch = "x86_64")]
    {
        let mut chunk = chunk;
        // SAFETY: no instruction at all.
        unsafe {
            core::arch::asm!("/* {0} */", inout(xmm_reg) chunk, options(nomem, nostack, preserves_flags))
        };
        chunk
    }
    #[cfg(not(target_arch = "x86_64"))]
    black_box(chunk)
}

/// Keeps stores apart.
#[inline(always)]
fn barrier() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}
