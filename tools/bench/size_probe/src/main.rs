//! A minimal platform, to weigh `patina_mm` with.
//!
//! It uses only what the published crate has: ports, a comm buffer with a mailbox, buffers that
//! move, and a component that sends one message. With the feature `fixed` they do not move. Without the features `ours` and `published` it has
//! a component of the same shape that only logs: the difference in size is the crate.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod platform;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("this program is for UEFI: `cargo xtask size` builds and weighs it");
}
