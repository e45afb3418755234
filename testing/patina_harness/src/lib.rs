//! Runs Patina components, and the conformance suite on them, where there is no Patina DXE core.
//!
//! | module | content |
//! |---|---|
//! | [`conduit`] | counts secure monitor calls, and runs code in the middle of one |
//! | [`c_abi`] | calls the protocols for C as a driver in C does |
//! | [`demo`] | a conversation with MM that a person can follow |
//! | [`dispatcher`] | dispatches components in the order a DXE core would |
//! | [`edk2`] | drivers of edk2 in C: one that owns MM, one that waits for its variable service |
//! | [`events`] | event groups in memory |
//! | [`lab`] | the conformance suite's lab over `SwMmiManager` and `MmCommunicator`, for any [`Site`] |
//! | [`protocols`] | a protocol database in memory |
//! | [`report`] | the lines by which a run tells its verdict |
//! | [`tap`] | records port writes, and runs code in the middle of a call |
//! | [`test_protocol`] | the protocol by which an application makes a platform run its tests |
//! | [`tpl`] | the task priority level in memory |
//! | [`variables`] | requests to the variable service's handler |
//! | [`sim`] | the simulated machine as a site (feature `sim`) |
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod c_abi;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub mod conduit;
pub mod demo;
pub mod edk2;
pub mod lab;
pub mod report;
#[cfg(feature = "sim")]
pub mod sim;
pub mod test_protocol;
pub mod variables;

pub use lab::{PatinaLab, Site};
pub use patina_mm_test::{Dispatcher, dispatcher, events, protocols, tap, tpl};
