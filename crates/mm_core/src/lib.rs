//! The MM side of Management Mode (MM) communication.
//!
//! What an MM core does when an MMI enters it: look at each comm buffer, copy a request into MMRAM,
//! call the handlers of its GUID, copy the response back, write the status mailbox. The same code
//! runs in a simulated machine, in SMRAM and in an EL3 monitor. It does not allocate, and accesses
//! memory only through [`SystemMemory`].
//!
//! ```text
//! MmCore::new ── buffers checked against MMRAM ──► MmCore::enter ──► Request ──► Handler ──► Visit
//! ```
//!
//! | module | content | source |
//! |---|---|---|
//! | [`setup`] | comm buffers, and which of them are refused | edk2 `StandaloneMmPkg/Core/StandaloneMmCore.c` |
//! | [`entry`] | the entry algorithm | same file, `MdePkg/Include/Guid/MmCommBuffer.h` |
//! | [`request`] | a request in MMRAM, and what handles it | PI 1.9, volume 4, 4.6 |
//! | [`handlers`] | handlers that platforms have in common | edk2, Project Mu |
//!
//! The side that raises the MMI is not trusted. Each byte that it can change is read once, into
//! memory that it cannot access, and only the copy is checked and used.
//!
//! ```
//! use mm_core::handlers::Echo;
//! use mm_core::{AddressRange, CommBuffer, Mmi, MmCore, SystemMemory};
//! # struct Nothing;
//! # impl SystemMemory for Nothing {
//! #     fn read(&self, _: u64, out: &mut [u8]) -> bool { out.fill(0); true }
//! #     fn write(&mut self, _: u64, _: &[u8]) -> bool { true }
//! # }
//! # let mut memory = Nothing;
//! let mmram = [AddressRange::new(0xa_0000, 0x2_0000).ok_or("MMRAM")?];
//! let region = AddressRange::new(0x10_0000, 0x1000).ok_or("region")?;
//! let buffers = [CommBuffer { region, mailbox: Some(0x10_1000) }];
//! let mut scratch = [0; 0x1000];
//! let mut core = MmCore::new(&mmram, &buffers, &mut scratch)?;
//!
//! let mmi = Mmi { command: 0xff, data: 0 };
//! let visit = core.enter(&mut memory, mmi, &mut [(Echo::GUID, &mut Echo)], &mut []);
//! assert_eq!(visit.outcomes().len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(test)]
extern crate std;

pub mod entry;
pub mod handlers;
pub mod request;
pub mod setup;

pub use entry::{MmCore, Outcome, Refusal, Visit};
pub use mm_wire::AddressRange;
pub use request::{Handler, NoRoom, Registration, Request, RootHandler};
pub use setup::{CommBuffer, MAX_BUFFERS, SetupError};

/// Memory outside MM, as MM reaches it: by physical address. Never asked for zero bytes.
pub trait SystemMemory {
    /// Copies bytes out, as many as `out` takes; `false`, and nothing is read, if not all of them
    /// are accessible.
    fn read(&self, address: u64, out: &mut [u8]) -> bool;
    /// Copies `bytes` in; `false`, and nothing is written, if not all of them are accessible.
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool;
}

/// The values that the software which raised the MMI wrote to the ports, as MM reads them on entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mmi {
    /// The command port (APM_CNT).
    pub command: u8,
    /// The data port (APM_STS).
    pub data: u8,
}
