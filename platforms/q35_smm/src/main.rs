//! A Patina DXE core inside stock OVMF with traditional SMM, whose handlers are edk2's.
//!
//! `cargo xtask image patina-smm` puts it into OVMF's flash image.
//!
//! | module | content |
//! |---|---|
//! | `platform` | what the machine is made of: the one list of configurations, components and services |
//! | `smm` | what edk2's SMM drivers expect of a DXE core, and Patina's does not do |
//! | `self_test` | the tests of the components in this firmware (feature `conformance`) |
//! | `own` | the same for firmware that the command line names, whose HOBs configure MM (feature `own`) |
//!
//! What else stock OVMF needs is in the crate `ovmf_platform`.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(all(target_os = "uefi", feature = "conformance"))]
extern crate alloc;

#[cfg(all(target_os = "uefi", feature = "own"))]
mod own;
#[cfg(target_os = "uefi")]
mod platform;
#[cfg(all(target_os = "uefi", feature = "conformance", not(feature = "own")))]
mod self_test;
#[cfg(target_os = "uefi")]
mod smm;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "q35_smm is a DXE core. Build it and put it into OVMF's flash image with\n  \
         cargo xtask image patina-smm"
    );
    std::process::exit(2);
}
