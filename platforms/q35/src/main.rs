//! A Patina DXE core for QEMU's Q35 machine, made to run inside stock OVMF.
//!
//! `cargo xtask image patina-q35` puts it into OVMF's flash image.
//!
//! | module | content |
//! |---|---|
//! | `platform` | what the machine is made of: the one list of configurations and components; an unsafe island (`docs/unsafe.md`) |
//! | `mm` | what MM gets to know: the component that offers the launcher |
//! | `mm::launcher` | copies the MM image into SMRAM, and locks SMRAM |
//! | `mm::guard` | locks SMRAM if the launcher did not run |
//! | `mm::comm_buffer_hobs` | makes the HOBs that say where the comm buffers are; an unsafe island |
//! | `mm::memory` | SMRAM while it is open, and the memory that the first SMI runs in; an unsafe island |
//! | `chipset` | the registers that decide about SMIs and SMRAM; an unsafe island |
//! | `example` | a component that sends a message, as any other component does |
//! | `self_test` | the tests that run in the guest (feature `conformance`) |
//!
//! What else stock OVMF needs is in the crate `ovmf_platform`.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod chipset;
#[cfg(target_os = "uefi")]
mod example;
#[cfg(target_os = "uefi")]
mod mm;
#[cfg(target_os = "uefi")]
mod platform;
#[cfg(all(target_os = "uefi", feature = "conformance"))]
mod self_test;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "q35 is a DXE core. Build it with\n  \
         cargo build --package q35 --target x86_64-unknown-uefi --release\n\
         and put it into OVMF's flash image with\n  \
         cargo xtask image patina-q35"
    );
    std::process::exit(2);
}
