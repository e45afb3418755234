//! The suite at EL1, right above the monitor.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
#[path = "bare/el1.rs"]
mod el1;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "aarch64_payload runs above aarch64_monitor. Build it with\n  \
         cargo build --package aarch64_payload --bin aarch64_payload --target aarch64-unknown-none-softfloat --release"
    );
    std::process::exit(2);
}
