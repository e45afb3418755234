//! An allocator that counts, and pages for comm buffers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        FREED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How many allocations were made so far.
pub fn allocations() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Bytes that are allocated now.
pub fn live() -> usize {
    ALLOCATED.load(Ordering::Relaxed) - FREED.load(Ordering::Relaxed)
}

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// Page-aligned memory of `len` bytes, a multiple of 4096, that lives as long as the process.
pub fn pages(len: usize) -> *mut u8 {
    let pages: &'static mut [Page] = Box::leak(vec![Page([0; 4096]); len / 4096].into_boxed_slice());
    pages.as_mut_ptr().cast()
}
