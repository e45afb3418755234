//! Runs Patina components in a UEFI application, over the boot services of any firmware.
//!
//! A Patina DXE core is not needed: `mm_conformance` dispatches the components, and
//! [`protocols::BootProtocols`] is the service `dyn ProtocolServices` that a core would give them.
//! The rest is what every such application needs.
//!
//! | module | content | target |
//! |---|---|---|
//! | [`protocols`] | `ProtocolServices` over boot services | all |
//! | `firmware` | what the application was started with: tables, images, files, memory | UEFI |
//! | `console` | the serial port: lines and the `log` crate | UEFI |
//! | `devices` | the serial port's place and the way to end a run, per architecture | UEFI |
//!
//! The macro `application` makes the entry point. On a UEFI target this crate brings the global
//! allocator and the panic handler.
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod protocols;

#[cfg(target_os = "uefi")]
pub mod console;
#[cfg(target_os = "uefi")]
pub mod devices;
#[cfg(target_os = "uefi")]
pub mod firmware;

#[cfg(target_os = "uefi")]
pub use firmware::Firmware;
#[cfg(target_os = "uefi")]
pub use patina::standard::efi;
