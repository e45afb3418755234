//! A runtime driver for QEMU's Q35 machine: what edk2's `MmCommunicationDxe` is on other platforms.
//!
//! `cargo xtask image patina-q35-runtime` puts it into the flash image, where edk2's
//! `VariableSmmRuntimeDxe` finds its protocols. All that a driver for another machine has to change
//! is in `driver.rs`; an unsafe island (`docs/unsafe.md`).
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
mod driver;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "q35_runtime is a runtime driver. Build it with\n  \
         cargo build --package q35_runtime --target x86_64-unknown-uefi --release\n\
         or the flash image that it is in with\n  \
         cargo xtask image patina-q35-runtime"
    );
    std::process::exit(2);
}
