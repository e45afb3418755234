//! An MM core in the SMRAM of QEMU's Q35 machine: what it and its launcher have in common.
//!
//! | module | content |
//! |---|---|
//! | [`layout`] | where things are in SMRAM |
//! | [`page_tables`] | what MM may execute, read and write |
//! | [`chipset`] | which registers decide about SMRAM, and the order in which they are locked |
//! | [`handoff`] | what the launcher passes to MM before SMRAM is locked |
//! | [`control`] | messages to the image itself |
//!
//! The image is this package's program, for `x86_64-unknown-none`. `platforms/q35` launches it.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(test)]
extern crate std;

pub mod chipset;
pub mod control;
pub mod handoff;
pub mod layout;
pub mod page_tables;
