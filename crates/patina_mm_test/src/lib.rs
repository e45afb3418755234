//! Tests components that talk to Management Mode (MM).
//!
//! [`Machine`] is a simulated machine: the real `SwMmiManager` and `MmCommunicator` of `patina_mm`,
//! dispatched beside the component under test, RAM, ports and SMIs of `mm_sim`, and the MM core of
//! `mm_core` with handlers that the test writes as closures. Only MM's handlers are mocked, so
//! lengths, headers, mailboxes and errors are those of a real boot.
//!
//! ```
//! use patina::component::{component, service::Service};
//! use patina::{BinaryGuid, error::EfiError};
//! use patina_mm::service::MmCommunication;
//! use patina_mm_test::{Fault, Machine};
//!
//! const TPM: BinaryGuid = BinaryGuid::from_string("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");
//!
//! struct TpmLock;
//!
//! #[component]
//! impl TpmLock {
//!     fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
//!         match mm.communicate(0, b"lock", TPM.as_guid())?.as_slice() {
//!             b"closed" => Ok(()),
//!             _ => Err(EfiError::SecurityViolation),
//!         }
//!     }
//! }
//!
//! let machine = Machine::new().handler(TPM, |_request| Ok(b"closed".to_vec()));
//! assert_eq!(machine.dispatch(TpmLock), Ok(()));
//! assert_eq!(machine.exchanges()[0].request, b"lock");
//!
//! machine.fault(Fault::NoHandler);
//! assert_eq!(machine.dispatch(TpmLock), Err(EfiError::NotFound));
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`machine`] | the simulated machine (feature `sim`, on by default; needs `std`) |
//! | [`clock`] | a clock that moves when it is read |
//! | [`dispatcher`] | dispatches components in the order of a DXE core |
//! | [`events`] | events and their groups in memory |
//! | [`protocols`] | a protocol database in memory |
//! | [`tap`] | records port writes, and runs code in the middle of a call |
//! | [`tpl`] | the task priority level in memory |
//!
//! Memory is leaked, like that of a machine that stays on: for tests.
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(any(test, feature = "sim"))]
extern crate std;

/// The README's example, which is compiled and run like this crate's examples.
#[cfg(all(doctest, feature = "sim"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod clock;
pub mod dispatcher;
pub mod events;
#[cfg(feature = "sim")]
pub mod machine;
pub mod protocols;
pub mod tap;
pub mod tpl;

pub use dispatcher::Dispatcher;
#[cfg(feature = "sim")]
pub use machine::{Exchange, Fault, Machine, Reply};
#[cfg(feature = "sim")]
pub use mm_core::handlers;
