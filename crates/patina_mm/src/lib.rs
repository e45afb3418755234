//! Management Mode (MM) communication for Patina components.
//!
//! MM (on x86: SMM) is code that runs in its own protected memory, is entered by an interrupt, and
//! controls what other code must not touch: variables, flash, the TPM. With this crate Patina
//! components send messages to its handlers.
//!
//! | you want to | use |
//! |---|---|
//! | send a message and get the response | [`service::MmCommunication`] |
//! | raise a software MMI | [`service::SwMmiTrigger`] |
//! | prepare the hardware before MMIs are used | [`service::PlatformMmControl`] |
//! | configure a platform | [`config::MmCommunicationConfiguration`], [`component`] |
//! | configure it from HOBs | [`component::hob_configuration`] |
//! | serve drivers in C, or use theirs | [`component::protocols`] |
//! | send requests to the MM supervisor | [`service::MmSupervisor`], [`component::supervisor`] |
//! | send MM the events of the boot | [`component::events`] |
//! | test a component on the host | [`component::communicator::MmExecutor`], feature `mockall` |
//!
//! # A platform
//!
//! A platform adds one config value, two components and, if its hardware needs preparation, one
//! service.
//!
//! ```
//! use patina::component::service::IntoService;
//! use patina_dxe_core::*;
//! use patina_mm::component::{communicator::MmCommunicator, sw_mmi_manager::SwMmiManager};
//! use patina_mm::config::{AcpiBase, MmCommunicationConfiguration, MmiPort};
//! use patina_mm::service::PlatformMmControl;
//!
//! /// Clears what an earlier boot phase left in the SMI status registers.
//! #[derive(Default, IntoService)]
//! #[service(dyn PlatformMmControl)]
//! struct BoardMmControl;
//!
//! impl PlatformMmControl for BoardMmControl {
//!     fn init(&self) -> patina::error::Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! struct Board;
//!
//! impl ComponentInfo for Board {
//!     fn configs(mut add: Add<Config>) {
//!         add.config(MmCommunicationConfiguration {
//!             // PMBASE; with 0 SMI_EN is not checked.
//!             acpi_base: AcpiBase::Io(0x600),
//!             cmd_port: MmiPort::Smi(0xB2),
//!             data_port: MmiPort::Smi(0xB3),
//!             // Filled in from a HOB by a component that locks the configuration afterwards.
//!             comm_buffers: vec![],
//!             enable_comm_buffer_updates: false,
//!             updatable_buffer_id: None,
//!         });
//!     }
//!
//!     fn components(mut add: Add<Component>) {
//!         add.component(SwMmiManager::new());
//!         add.component(MmCommunicator::new());
//!     }
//!
//!     fn services(mut add: Add<Service>) {
//!         add.service(BoardMmControl);
//!     }
//! }
//! ```
//!
//! # A component
//!
//! It has the service as a parameter, and is dispatched when there is one.
//!
//! ```
//! use patina::component::{component, prelude::Service};
//! use patina_mm::service::MmCommunication;
//! use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};
//!
//! /// A request to the MM supervisor, with room for the response. There is no padding between the fields.
//! #[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
//! #[repr(C)]
//! pub struct VersionRequest {
//!     pub signature: [u8; 4],
//!     pub revision: u32,
//!     pub request: u32,
//!     pub reserved: u32,
//!     pub result: u64,
//!     pub version: u32,
//!     pub patch_level: u32,
//!     pub max_request_level: u64,
//! }
//!
//! #[derive(Default)]
//! pub struct SupervisorVersion;
//!
//! #[component]
//! impl SupervisorVersion {
//!     pub fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
//!         let request = VersionRequest {
//!             signature: *b"MSUP",
//!             revision: 1,
//!             request: 3,
//!             ..VersionRequest::new_zeroed()
//!         };
//!         let supervisor = patina::Guid::from_string("8c633b23-1260-4ea6-830f-7ddc97382111");
//!         let response = mm.communicate(0, request.as_bytes(), supervisor).inspect_err(|status| {
//!             log::error!("no response from the MM supervisor: {status}");
//!         })?;
//!         // The supervisor refuses a request without room for the version.
//!         assert_eq!(response.len(), 40);
//!         log::info!("MM supervisor version {:02x?}", &response[24..28]);
//!         Ok(())
//!     }
//! }
//! # // Runs the component, dispatched beside the real ones, on the simulated machine.
//! # use patina_mm_test::{Machine, handlers::Supervisor};
//! # let supervisor = Supervisor { version: 1, patch_level: 0 };
//! # let guid = patina::BinaryGuid::from_string("8c633b23-1260-4ea6-830f-7ddc97382111");
//! # assert_eq!(Machine::new().mm_handler(guid, supervisor).dispatch(SupervisorVersion), Ok(()));
//! ```
//!
//! # Logs
//!
//! Targets `mm_comm` (buffers, transactions, moves) and `sw_mmi` (the trigger). A transaction is
//! one line at debug. Message bytes are logged at trace only, at most 64 of a request and of a
//! response.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

extern crate alloc;

#[macro_use]
mod log_line;

pub mod component;
pub mod config;
pub mod service;

/// The README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
