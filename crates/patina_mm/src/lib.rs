//! Management Mode (MM) communication for Patina components.
//!
//! MM (on x86: SMM) is code that lives in memory of its own, is entered by an interrupt, and owns what must not be
//! touched from outside: variables, flash, the TPM. This crate is how a Patina component talks to its handlers.
//!
//! | you want to | use |
//! |---|---|
//! | send a message and get the answer | [`service::MmCommunication`] |
//! | raise a software MMI | [`service::SwMmiTrigger`] |
//! | prepare the hardware before MMIs are used | [`service::PlatformMmControl`] |
//! | set a platform up | [`config::MmCommunicationConfiguration`], [`component`] |
//! | test a component on the host | [`component::communicator::MmExecutor`], feature `mockall` |
//!
//! # Logs
//!
//! Targets `mm_comm` (buffers, transactions, updates) and `sw_mmi` (the trigger). A transaction is one line at debug.
//! No message byte is logged above trace, and at most 64 bytes of request and answer there.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

extern crate alloc;

pub mod component;
pub mod config;
pub mod service;
