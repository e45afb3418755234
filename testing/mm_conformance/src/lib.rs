//! Scenarios that every client of Management Mode (MM) must pass, written once for every machine,
//! and the lab they run in.
//!
//! ```text
//!   Scenario ── Setup ──► Lab ──► Client ── communicate ──► Result<Vec<u8>, Status>
//!                          │
//!                         Site: the simulated machine, UEFI under QEMU, ...   ConformanceMm: the MM side, if it is ours
//! ```
//!
//! A [`Lab`] brings up clients on the machine of a [`Site`], in any way that a [`Setup`] describes.
//! A [`Client`] is the client under test, with everything that an observer of the hardware can see.
//! The site lists what its machine can do ([`Abilities`]); scenarios that need more are reported as
//! skipped.
//!
//! | module | content |
//! |---|---|
//! | [`scenarios`] | the scenarios, a file per subject |
//! | [`lab`] | sets clients up, on any [`Site`] |
//! | [`mm`] | the MM side, the crate `mm_liar`: its handlers, and the wrong responses that it sends on request |
//! | [`report`] | the lines that say which tests passed |
//! | [`soak`] | many calls, of which a quarter meets a fault |
//! | [`demo`] | a conversation with MM that a person can follow |
//! | [`sim`] | the simulated machine as a site (feature `sim`) |
//! | [`arena`], [`conduit`], [`recorder`] | for sites: memory, counted secure monitor calls, a logger that scenarios read |
//! | [`c_abi`], [`edk2`] | calls the protocols for C; drivers of edk2 in C |
//! | [`test_protocol`] | the protocol by which an application makes a platform run its tests |
//! | [`real_mm`] | tests of MM in firmware that was not built for this suite |
//! | [`variables`] | requests to the variable service's handler |
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod arena;
pub mod c_abi;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub mod conduit;
pub mod demo;
pub mod edk2;
pub mod lab;
pub mod real_mm;
pub mod recorder;
pub mod report;
#[macro_use]
#[forbid(unsafe_code)]
pub mod scenarios;
#[cfg(feature = "sim")]
pub mod sim;
pub mod soak;
pub mod test_protocol;
pub mod variables;

/// The MM side that the scenarios talk to.
pub use mm_liar as mm;

pub use lab::{Abilities, Client, Lab, Setup, SetupFailure, Site};
pub use report::{NotOk, Report};
pub use scenarios::{Scenario, all};
