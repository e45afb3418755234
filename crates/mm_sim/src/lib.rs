//! A simulated machine that takes Management Mode interrupts (MMIs).
//!
//! It models only hardware: I/O ports, RAM, MMRAM. A real MM core runs in MM, or a closure that
//! sends the wrong responses that a test wants.
//!
//! | part | what is modelled |
//! |---|---|
//! | RAM | pages of the host, identity mapped: a physical address is a host address, so that code under test can reach it by pointer |
//! | MMRAM | a range of addresses that MM can always access, other code only until it is closed; then reads return 0xFF and writes are lost. It is not host memory, and MM's own variables are not in it: they are Rust values of the MM side |
//! | ports | command and data port, SMI_EN in I/O space and, on request, memory-mapped, PMBASE in PCI configuration space; all other writes are recorded and do nothing |
//! | SMI | a write to the command port makes one pending if SMI_EN has GBL_SMI_EN and APMC_EN; it is taken at a later `pause`, because on real machines it is not synchronous with the `out`. Pending SMIs merge |
//!
//! ```
//! use mm_comm::{Ports, SmiCheck};
//! use mm_core::handlers::Echo;
//! use mm_sim::{Config, Machine};
//! use mm_wire::HeaderFormat;
//!
//! let (machine, buffers) = Machine::with_standard_handlers(Config::default(), &[4])?;
//! let channel = machine.channel(buffers[0])?;
//!
//! let staged = channel.begin(HeaderFormat::V1, Echo::GUID, b"hello")?;
//! machine.trigger(SmiCheck::Require).raise(&machine, 0xff, 0)?;
//! staged.wait(10, || machine.pause());
//! let mut response = [0; 5];
//! assert_eq!(staged.finish()?.copy_to(&mut response).as_deref(), Some(b"hello".as_slice()));
//! assert_eq!(machine.smis_taken(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod hardware;
mod memory;
mod standard;

pub use hardware::{Config, IoWrite, Machine};
pub use standard::{MAX_VARIABLE_LEN, SUPERVISOR, StandardMm, VARIABLE_STORE_LEN};

use mm_comm::ChannelError;
use mm_core::SetupError;
use mm_wire::AddressRange;
use thiserror::Error;

/// Why a simulated machine cannot be set up as asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimError {
    /// A comm buffer without memory.
    #[error("simulation: a comm buffer needs at least one page")]
    NoPages,
    /// Memory that the machine has not allocated.
    #[error("simulation: {0} is not in one piece of this machine's RAM")]
    NotRam(AddressRange),
    /// The MM core refuses the buffers.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The client refuses the buffer.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}
