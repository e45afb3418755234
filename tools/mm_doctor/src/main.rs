//! The application. Its decisions are in the library, which is tested on the host.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod app;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("mm_doctor is a UEFI application. Build it with `cargo xtask doctor`");
    std::process::exit(2);
}
