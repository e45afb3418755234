//! The monitor as a program: see the library for what it does, `el3` for how it gets there.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod el3;
#[cfg(target_os = "none")]
mod stage2;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "aarch64_monitor runs at EL3 of QEMU's virt machine. Build it with\n  \
         cargo build --package aarch64_monitor --target aarch64-unknown-none-softfloat --release"
    );
    std::process::exit(2);
}
