//! Memory that moves. An unsafe island (`docs/unsafe.md`).
//!
//! Each block is mapped twice: for MM and the test under one address, for the code under test under
//! another one, which is the physical address at first. When the block moves, the code's mapping
//! goes to a new address, and only a fault is left at the old one: a stale pointer ends the test.

use mm_comm::SharedRegion;
use mm_wire::PAGE_LEN;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::ptr;

/// A block of pages.
pub(crate) struct Block {
    /// The physical address.
    pub(crate) physical: usize,
    len: usize,
    /// Where the test and MM always reach it.
    alias: *mut u8,
    /// Where the code under test reaches it.
    current: Cell<usize>,
    /// What is mapped.
    file: OwnedFd,
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

fn map(file: &OwnedFd, len: usize) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let mapped = unsafe { mmap(ptr::null_mut(), len, READ_WRITE, MapFlags::SHARED, file, 0) };
    mapped.unwrap().cast()
}

impl Block {
    pub(crate) fn new(pages: usize) -> Self {
        let len = pages * PAGE_LEN;
        let file = memfd_create("block", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len as u64).unwrap();
        let physical = map(&file, len).expose_provenance();
        Self {
            physical,
            len,
            alias: map(&file, len),
            current: Cell::new(physical),
            file,
        }
    }

    /// The bytes as MM and the test see them.
    pub(crate) fn seen_from_outside(&self) -> SharedRegion {
        // SAFETY: mapped until the process ends, and reached through volatile accesses only.
        unsafe { SharedRegion::new(self.alias, self.len) }.unwrap()
    }

    /// The address under which the code under test reaches what is at this physical address; `None`
    /// if it is not in here.
    pub(crate) fn translate(&self, physical: usize) -> Option<usize> {
        let offset = physical
            .checked_sub(self.physical)
            .filter(|offset| *offset < self.len)?;
        Some(self.current.get() + offset)
    }

    /// Chooses another address, which is still free.
    pub(crate) fn announce_move(&self) -> usize {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved =
            unsafe { mmap_anonymous(ptr::null_mut(), self.len, ProtFlags::empty(), MapFlags::PRIVATE) };
        let new = reserved.unwrap().expose_provenance();
        self.current.set(new);
        new
    }

    /// Moves the code's mapping to the address that was chosen.
    ///
    /// Neither range is ever unmapped: another thread could get its memory there before this one
    /// has it back.
    pub(crate) fn finish_move(&self) {
        let old = ptr::with_exposed_provenance_mut(self.physical);
        let new = ptr::with_exposed_provenance_mut(self.current.get());
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range is the one that `announce_move` reserved; nothing of Rust's is in it.
        let moved = unsafe { mmap(new, self.len, READ_WRITE, flags, &self.file, 0) };
        assert_eq!(moved.unwrap(), new);
        // SAFETY: a mapping of this block; nothing of Rust's is in it.
        unsafe { mprotect(old, self.len, MprotectFlags::empty()) }.unwrap();
    }

    /// Takes the code's mapping away.
    pub(crate) fn forbid(&self) {
        let at = ptr::with_exposed_provenance_mut(self.current.get());
        // SAFETY: a mapping of this block; nothing of Rust's is in it.
        unsafe { mprotect(at, self.len, MprotectFlags::empty()) }.unwrap();
    }
}

/// All addresses of this process, for a secure world that checks which of them it uses.
pub(crate) fn all_memory() -> SharedRegion {
    let first_page = ptr::with_exposed_provenance_mut(PAGE_LEN);
    // SAFETY: the secure world accesses only what it checked to be the shared memory, which is the
    // outside view of a block.
    unsafe { SharedRegion::new(first_page, isize::MAX as usize - PAGE_LEN) }.unwrap()
}

/// Reads from an address, which may be anything: for a process whose end is the test.
pub(crate) fn read_byte(address: usize) -> u8 {
    // SAFETY: a byte of a block, or a fault.
    unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() }
}
