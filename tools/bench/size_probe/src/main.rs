//! A minimal platform, to weigh `patina_mm` with.
//!
//! It uses what the published crate has: ports, a comm buffer with a mailbox, buffers that move, and a component that sends one
//! message. Without the features `ours` and `published` there is a component of the same shape that only logs: what the other
//! two weigh more is the crate.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod platform;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("this program is for UEFI: `cargo xtask size` builds and weighs it");
}
