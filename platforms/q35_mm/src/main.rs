//! An MM core that runs in SMRAM.
//!
//! `cargo xtask image patina-q35` builds it and puts it into the platform's DXE core, whose
//! launcher copies it to SMRAM.
//!
//! | module | content |
//! |---|---|
//! | `entry` | from the SMI to Rust and back: 16-bit code, GDT, IDT, TSS; an unsafe island (`docs/unsafe.md`) |
//! | `paging` | puts the page tables into the image |
//! | `machine` | ports, serial line, memory, the one owner of MM's state; an unsafe island |
//! | `mm` | the MM core, its handlers and its comm buffers |
//! | `suite` | the conformance suite's MM side (feature `conformance`) |
//! | `fault` | what happens when MM itself goes wrong |
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod hardware;
#[cfg(target_os = "none")]
mod paging;
#[cfg(target_os = "none")]
mod serve;
#[cfg(all(target_os = "none", feature = "conformance"))]
mod suite;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "q35_mm runs in SMRAM. Build it with\n  \
         cargo build --package q35_mm --target x86_64-unknown-none --release\n\
         and put it into a firmware image with\n  \
         cargo xtask image patina-q35"
    );
    std::process::exit(2);
}
