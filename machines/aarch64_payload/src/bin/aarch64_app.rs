//! The suite in a UEFI application above the monitor.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
#[path = "uefi/app.rs"]
mod app;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "aarch64_app is a UEFI application. Build it with\n  \
         cargo build --package aarch64_payload --bin aarch64_app --target aarch64-unknown-uefi --release"
    );
    std::process::exit(2);
}
