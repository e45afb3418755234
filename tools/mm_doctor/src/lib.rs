//! Finds out what a machine has for Management Mode (MM) and what is wrong with it, and writes the
//! Rust for it.
//!
//! The application gathers [`facts`]; everything else is decided here, and tested on the host.
//!
//! | module | content |
//! |---|---|
//! | [`facts`] | what was seen, as it goes into the file for a bug report |
//! | [`hobs`] | the HOBs that say where comm buffers and MMRAM are |
//! | [`acpi`] | the tables that say something of SMM: FADT, WSMT, "UEFI" |
//! | [`arm`] | FF-A and its partitions, SPM_MM, how PSCI is called |
//! | [`chipset`] | PMBASE, SMI_EN, SMRAM of Intel's chipsets |
//! | [`findings`] | what is fine, what needs a look, what is broken, and what to do |
//! | [`paging`] | the page tables that are in use |
//! | [`paste`] | the components and the configuration for this machine |
//! | [`report`] | all that as text |
//! | [`options`] | the command line |
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub mod arm;
pub mod chipset;
pub mod facts;
pub mod findings;
pub mod hobs;
pub mod options;
pub mod paging;
pub mod paste;
pub mod report;

/// Physical memory, to be read only.
pub trait Memory {
    /// Copies bytes out; returns `false` if not all of them can be read.
    fn read(&self, address: u64, out: &mut [u8]) -> bool;

    /// Copies a value out.
    fn value<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, address: u64) -> Option<T> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes()).then_some(value)
    }
}
