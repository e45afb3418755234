//! What can be tested without a machine: the memory map with the addresses that are chosen for it, and page tables.
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod map;
pub mod paging;
