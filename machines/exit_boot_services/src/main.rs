//! An operating system of a few pages, which does with the firmware what Linux does not.
//!
//! ```text
//! boot     drivers started from the volume; protocols and variables used as by any application
//! left     ExitBootServices; own page tables, stack and exceptions; boot-services memory overwritten, then not mapped any more;
//!          the same calls, at the same addresses
//! moved    SetVirtualAddressMap with its own map; every access to an old address faults; the same calls, at the new ones
//! ```
//!
//! A file `map` on the volume has the word for the map ([`exit_boot_services::map::Change`]); with
//! `none` the last part is left out. Each test is one line on the serial port. An exception ends
//! the test in which it comes, as a failure.
//!
//! | module | content |
//! |---|---|
//! | `app` | from the entry point to the end |
//! | `cpu` | exceptions, page tables, serial port |
//! | `requests` | how many requests MM took |
//! | `site` | the firmware's driver as a site for the conformance suite |
//! | `variables` | the firmware's variable services |
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod app;
#[cfg(target_os = "uefi")]
mod cpu;
#[cfg(target_os = "uefi")]
mod requests;
#[cfg(target_os = "uefi")]
mod site;
#[cfg(target_os = "uefi")]
mod variables;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "this is a program for UEFI; `cargo xtask test --machine exit-boot-services` builds and boots it"
    );
    std::process::exit(2);
}
