//! An EL3 monitor that runs an MM core in the secure world of QEMU's `virt` machine.
//!
//! It is the part of a secure world that a client of MM can see: SPM_MM, or FF-A with one secure
//! partition, and PSCI. It does not trust the non-secure world: a comm buffer lies in the region
//! that the two worlds share, and is copied before it is looked at. No part of it is for
//! production: the MM core is not isolated in a partition.
//!
//! | module | content |
//! |---|---|
//! | [`layout`] | the machine's memory, and what QEMU's loader leaves in it |
//! | [`world`] | what an SMC leads to |
//! | [`memory`] | non-secure memory as the secure world uses it |
//! | [`mm`] | the MM core, one request at a time |
//! | [`ffa`], [`spm_mm`] | the two interfaces |
//! | [`device_tree`] | tells a UEFI above the monitor about RAM and PSCI |
//!
//! The program around it (`main.rs`) has the vectors and the registers of EL3.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device_tree;
pub mod ffa;
pub mod layout;
pub mod memory;
pub mod mm;
pub mod spm_mm;
pub mod world;

pub use layout::{Interface, Mode};
pub use world::{Effect, Registers, World};
