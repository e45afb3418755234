//! A UEFI application that counts what calls to MM cost on the firmware target, for `cargo xtask bench --machine NAME`.
//!
//! QEMU runs it with `-icount shift=0`: one instruction is one tick of the time stamp counter.
//!
//! | module | content |
//! |---|---|
//! | `app` | which measurements this machine allows |
//! | `count` | the counter, and a call's parts: before the port write, in MM, after it |
//! | `played` | calls of both crates with MM played in the guest, and their stack |
//! | `real` | calls to the machine's own MM, beside the firmware's protocol for drivers in C |
//! | `smm_core`, `q35` | edk2's SMM core and the chipset, shared with `machines/ovmf_smm` |
//!
//! It says what it finds in lines that `tools/xtask/src/bench.rs` reads: `COUNT`, `STACK`, `DONE`.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod app;
#[cfg(target_os = "uefi")]
mod count;
#[cfg(target_os = "uefi")]
mod played;
#[cfg(target_os = "uefi")]
#[allow(dead_code, reason = "shared with machines/ovmf_smm, which needs more of it")]
#[path = "../../../../machines/ovmf_smm/src/q35.rs"]
mod q35;
#[cfg(target_os = "uefi")]
mod real;
#[cfg(target_os = "uefi")]
#[allow(dead_code, reason = "shared with machines/ovmf_smm, which needs more of it")]
#[path = "../../../../machines/ovmf_smm/src/smm_core.rs"]
mod smm_core;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("this program is for UEFI: `cargo xtask bench --machine ovmf-smm` builds and boots it");
    std::process::exit(2);
}
