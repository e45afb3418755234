//! Breaks what machine `patina-q35` has for MM, one thing after the other, and starts `mm_doctor` each time.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(all(target_os = "uefi", target_arch = "x86_64"))]
mod app;

#[cfg(not(all(target_os = "uefi", target_arch = "x86_64")))]
fn main() {}
