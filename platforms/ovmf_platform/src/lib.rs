//! What a Patina DXE core needs inside stock OVMF, on QEMU's Q35 machine.
//!
//! OVMF was built for edk2's DXE core, which maps all of memory writable and executable. Patina
//! maps only memory that it knows about, and protects it. Each difference is one component here;
//! the others are features of `patina_dxe_core`, and files that the image tool (`tools/ovmf_image`)
//! drops.
//!
//! | module | content |
//! |---|---|
//! | `dxe_core!` | makes a DXE core of a platform's components: its entry point; an unsafe island (`docs/unsafe.md`) |
//! | `flash` | maps the flash, for OVMF's variable store |
//! | `images` | maps OVMF's drivers as they were built to be mapped; an unsafe island |
//! | `dxe_services` | the DXE services table; an unsafe island |
//! | `timer` | the frequency of the time stamp counter, from the ACPI timer |
//! | `devices` | serial port, ACPI timer, end of a run; an unsafe island |
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
pub mod devices;
#[cfg(target_os = "uefi")]
mod dxe_services;
#[cfg(target_os = "uefi")]
mod entry;
#[cfg(target_os = "uefi")]
mod flash;
#[cfg(target_os = "uefi")]
mod images;
#[cfg(target_os = "uefi")]
pub mod timer;

#[cfg(target_os = "uefi")]
pub use {dxe_services::dxe_services, flash::FlashMapping, images::WritableImages};
/// What the macro `dxe_core` uses.
#[cfg(target_os = "uefi")]
#[doc(hidden)]
pub use {log, patina, patina_dxe_core, patina_ffs_extractors};
