//! The client core of Management Mode (MM) communication.
//!
//! Each step of a message is a type:
//!
//! ```text
//! Channel::begin ──► Staged ── (trigger raises the MMI, MM responds in place) ──► Staged::finish ──► Response
//! ```
//!
//! [`Channel`] is a region of memory shared with MM and, if the platform has one, its status
//! mailbox. [`Staged`] and [`Response`] hold the channel; dropping the last of them wipes what the
//! transaction left in shared memory.
//!
//! | module | content |
//! |---|---|
//! | [`region`] | the owner of shared memory, volatile access |
//! | [`mailbox`] | the status mailbox in shared memory |
//! | [`channel`] | region + mailbox + the rule "one transaction at a time" |
//! | [`transaction`] | the checks before and after MM runs, and the timeout of a call |
//! | [`trigger`] | raising the MMI through x86 ports, and the check that SMIs are on |
//! | [`ich9`] | PCI configuration space, and PMBASE in it |
//! | [`c_request`] | requests of drivers in C: what is checked, and what is written back |
//! | [`smc`] | reaching MM by secure monitor calls: SPM_MM and FF-A |
//! | [`ports`] | the machine's I/O, which a simulated machine can replace |
//!
//! This crate does not allocate, does not log, and does not depend on Patina.
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(test)]
extern crate std;

pub mod c_request;
pub mod channel;
pub mod error;
pub mod ich9;
pub mod mailbox;
pub mod ports;
pub mod region;
pub mod smc;
pub mod transaction;
pub mod trigger;

pub use channel::Channel;
pub use error::{BeginError, ChannelError, ResponseError};
pub use ports::Ports;
pub use region::SharedRegion;
pub use transaction::{Response, Staged};
pub use trigger::{PortTrigger, SmiCheck, SmiEnable, SmiEnableRegister, TriggerError};
