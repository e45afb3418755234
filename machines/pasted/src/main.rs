//! Runs the Rust that `mm_doctor` writes, on the machine that it was written for.
//!
//! The file is included as it is. It is written for a Patina DXE core; the module `app` has what that
//! offers under the same names, for a UEFI application above any firmware. Then a component sends a
//! message through each comm buffer.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
// `MemoryManager` has an allocator in its interface.
#![cfg_attr(target_os = "uefi", feature(allocator_api))]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod app;
#[cfg(target_os = "uefi")]
mod memory;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("pasted is a UEFI application: cargo xtask doctor --machine NAME builds and starts it");
    std::process::exit(2);
}
