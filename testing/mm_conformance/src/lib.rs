//! Scenarios that every client of Management Mode (MM) must pass, written once for every machine.
//!
//! ```text
//!            Scenario ── bring_up(Setup) ──► Lab ──► Machine ── communicate ──► Result<Vec<u8>, Failure>
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
//! | [`mm`] | the MM side: handlers to talk to, and the lies that MM can tell |
//! | [`project_mu`] | a double of Project Mu's MM supervisor |
//! | [`scenarios`] | the scenarios, a file per subject |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "client")]
extern crate alloc;

#[cfg(feature = "client")]
pub mod lab;
pub mod mm;
pub mod project_mu;
#[cfg(feature = "client")]
pub mod scenarios;

#[cfg(feature = "client")]
pub use lab::{Abilities, Failure, Lab, Machine, Setup, SetupFailure};
#[cfg(feature = "client")]
pub use scenarios::{Outcome, Scenario, all, run};
