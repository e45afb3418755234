//! Management Mode communication after `ExitBootServices`: the reusable part of a DXE runtime
//! driver.
//!
//! A platform's runtime driver calls [`install`] from its entry point and returns. From then on
//! drivers in C find `EFI_MM_COMMUNICATION_PROTOCOL`, `...2` and `...3` and send through them,
//! before `ExitBootServices`, after it, and after `SetVirtualAddressMap`. edk2's
//! `VariableSmmRuntimeDxe` works above them unchanged, if [`Configuration::markers`] says that MM's
//! variable service is ready.
//!
//! ```text
//! entry point ── hobs::find or constants ──► Configuration ─┐
//!                PortEntry or SecureEntry ──────────────────┴─► install ──► three protocols, two events
//!
//!          at boot                    after ExitBootServices        after SetVirtualAddressMap
//! calls    at TPL_NOTIFY              no boot services              comm buffer by its virtual address
//! MM gets  the comm buffer's physical address in each case
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`hobs`] | the comm buffer that the PEI phase announced |
//! | [`entry`] | the ways into MM: x86 ports, secure monitor calls |
//! | `driver` | one call, and the change of addresses |
//! | `install` | protocols, events, memory |
//!
//! # Memory
//!
//! One block of RuntimeServicesData, which [`install`] allocates: the three interfaces, the
//! pointers to comm buffer and mailbox, and room to copy the longest request and the longest
//! response. Nothing is allocated later, and no static changes. When the operating system moves the
//! firmware to virtual addresses, the driver converts the pointers in the block; the firmware
//! relocates the code, like that of every runtime image.
//!
//! # Re-entrant and concurrent calls
//!
//! While boot services last, a call runs at `TPL_NOTIFY`, so that no notification of a driver in C
//! interrupts it. A call that still comes in the middle of another one (from `TPL_HIGH_LEVEL`,
//! another processor, a machine check) gets `EFI_ALREADY_STARTED`, and the other one continues. The
//! same is true after `ExitBootServices`.
//!
//! # Statuses
//!
//! What each parameter may be, and what is written back, is the same as with `patina_mm`'s
//! `MmCommunicationProducer`: both call [`mm_comm::c_request`]. After `SetVirtualAddressMap`
//! physical and virtual address may differ; the virtual one counts.
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(test)]
extern crate std;

mod claim;
mod driver;
pub mod entry;
pub mod hobs;
mod install;
pub mod protocols;

/// The atomics of `claim.rs`; a test compiles that file with loom's.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicU8, Ordering};
}

#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use entry::SecureEntry;
pub use entry::{Entry, PortEntry, Progress};
pub use install::{InstallError, install};

use core::fmt;
use mm_wire::hob::CommBufferPlace;

/// What a platform says about its MM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The comm buffer and its mailbox, for this driver alone. Both are RuntimeServicesData, mapped
    /// one to one at boot, and MM knows the buffer.
    pub buffer: CommBufferPlace,
    /// The timeout: how often the mailbox is polled before a request is withdrawn. Long enough for
    /// MM's slowest handler.
    pub completion_polls: u32,
    /// Whether to install `EFI_MM_COMMUNICATION3_PROTOCOL`. A driver that finds it sends v3
    /// headers, edk2's variable driver of 2026 for one: not for MM that does not know them.
    pub protocol3: bool,
    /// Whether to install the two protocols without an interface that edk2's variable driver waits
    /// for. MM's variable service is asked first: if it does not respond, they are not installed
    /// and the sink gets the reason, because that driver asserts that it responds.
    pub markers: bool,
    /// Whether to add EFI_MEMORY_RUNTIME to the page of a memory-mapped SMI_EN, so that the
    /// operating system maps it. Leave it out if the platform has done so.
    pub map_registers: bool,
}

impl Configuration {
    /// The default of `patina_mm`.
    pub const DEFAULT_POLLS: u32 = 100_000;

    /// A comm buffer, and defaults: all three protocols, no markers, no mapping.
    #[must_use]
    pub const fn new(buffer: CommBufferPlace) -> Self {
        Self {
            buffer,
            completion_polls: Self::DEFAULT_POLLS,
            protocol3: true,
            markers: false,
            map_registers: false,
        }
    }

    /// The same without [`Self::protocol3`].
    #[must_use]
    pub const fn without_protocol3(self) -> Self {
        Self {
            protocol3: false,
            ..self
        }
    }

    /// The same with [`Self::markers`].
    #[must_use]
    pub const fn with_markers(self) -> Self {
        Self {
            markers: true,
            ..self
        }
    }
}

/// Takes a driver's log lines.
///
/// It is also called after `ExitBootServices` and after `SetVirtualAddressMap`. So it must not use
/// boot services, nor memory or registers whose address it has not converted: an I/O port works. A
/// platform without one passes [`Silent`].
pub trait Sink {
    /// Takes one line, which has no bytes of messages in it.
    fn error(&self, line: fmt::Arguments<'_>);

    /// Takes a line for each request that is sent, and for its response: lengths and addresses.
    fn trace(&self, line: fmt::Arguments<'_>) {
        let _ = line;
    }

    /// Takes one line for each event of the operating system's start.
    fn note(&self, line: fmt::Arguments<'_>) {
        let _ = line;
    }
}

/// Writes no log. Callers still get statuses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Sink for Silent {
    fn error(&self, _: fmt::Arguments<'_>) {}
}
