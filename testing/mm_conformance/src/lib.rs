//! Scenarios that every client of Management Mode (MM) must pass, written once for every machine.
//!
//! ```text
//!            Scenario ── bring_up(Setup) ──► Lab ──► Machine ── communicate ──► Result<Vec<u8>, Status>
//!                                             │
//!            the simulated machine, UEFI under QEMU, ...       ConformanceMm: the MM side, where we control it
//! ```
//!
//! A [`Lab`] is a place where the client under test can be set up, as often as wanted and in any way that [`Setup`]
//! describes; a [`Machine`] is one such client with everything an observer of the hardware can see. What a lab cannot do
//! it does not list in its [`Abilities`], and the scenarios that need it are reported as skipped.
//!
//! | module | content |
//! |---|---|
//! | [`lab`] | the traits that a host implements, and the words that client and suite share |
//! | [`mm`] | the MM side, the crate `mm_liar`: handlers to talk to, and the lies that MM can tell |
//! | [`scenarios`] | the scenarios, a file per subject |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod lab;
pub mod scenarios;

/// The MM side that the scenarios talk to.
pub use mm_liar as mm;

pub use lab::{Abilities, Lab, Machine, Setup, SetupFailure};
pub use scenarios::{Outcome, Scenario, all};
