//! A UEFI application that runs `patina_mm` on stock OVMF and talks to its SMM handlers, which are edk2's C code.
//!
//! No Patina core is there: the application dispatches the components itself. SMM is traditional
//! SMM, without a status mailbox, so the application uses other executors than a platform: one of
//! its own raises the SMI through `SwMmiTrigger`, and `patina_mm`'s `FirmwareMmExecutor` makes the
//! firmware raise it. The rest, configuration, trigger and communicator, is what a platform uses.
//!
//! | module | content |
//! |---|---|
//! | `app` | the entry point, the configuration, the components |
//! | `hobs` | the tests for firmware that announces comm buffers in HOBs: edk2 with Standalone MM, Project Mu |
//! | `executor` | the ways into SMM |
//! | `smm_core` | the block that edk2's SMM IPL shares with its SMM core |
//! | `q35` | the chipset's SMI registers |
//! | `site` | this machine as a site for the conformance suite |
//! | `tests`, `host_tests` | what the application tests besides the suite |
//!
//! A file `\EFI\BOOT\MODE.TXT` with `demo` makes it run the demo instead, with `soak` very many calls.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod app;
#[cfg(target_os = "uefi")]
mod executor;
#[cfg(target_os = "uefi")]
mod hobs;
#[cfg(target_os = "uefi")]
mod host_tests;
#[cfg(target_os = "uefi")]
mod q35;
#[cfg(target_os = "uefi")]
mod site;
#[cfg(target_os = "uefi")]
mod smm_core;
#[cfg(target_os = "uefi")]
mod tests;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!(
        "ovmf_smm is a UEFI application. Build it with\n  \
         cargo build --package ovmf_smm --target x86_64-unknown-uefi --release"
    );
    std::process::exit(2);
}
