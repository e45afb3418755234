//! A UEFI application that makes a Patina platform run its tests.
//!
//! BDS starts it from the ESP. It looks for the protocols that the platform publishes: the test
//! protocol (`mm_conformance::test_protocol`), and the announcement of the comm buffer that moved.
//! A file `\EFI\BOOT\MODE.TXT` with `demo` makes the platform hold the demo's conversation instead.
//! The exit code says whether all went well.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
mod app;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "platform_self_test is a UEFI application. Build it with\n  \
         cargo build --package platform_self_test --target x86_64-unknown-uefi --release"
    );
    std::process::exit(2);
}
