//! MM communication through secure monitor calls (SMC), as AArch64 platforms have it.
//!
//! ```text
//! connect ── is there an EL3? ── FFA_VERSION ─┬─ 1.2 or later: own id, the MM partition ──► FF-A direct requests
//!                                             └─ otherwise: MM_VERSION ──────────────────► MM_COMMUNICATE
//! ```
//!
//! The conduit is a type ([`Conduit`], over [`smccc::Call`]), so that a test can simulate the
//! secure world. A request is in shared memory as it is on x86 ([`crate::Channel`]);
//! [`SecureMm::communicate`] takes the place of the port write. It is synchronous: when it returns,
//! MM has responded in the buffer or has said why not.
//!
//! | module | content | source |
//! |---|---|---|
//! | [`spm_mm`] | MM_VERSION, MM_COMMUNICATE | Arm DEN0060A; edk2 `MdePkg/Include/IndustryStandard/ArmStdSmc.h` |
//! | [`ffa`] | FF-A 1.2: direct requests | Arm DEN0077A; edk2 `MdePkg/Include/IndustryStandard/ArmFfaSvc.h` |
//! | [`ffa::discovery`] | FF-A 1.2: the version, and the partition that offers MM | the same |
//! | `codes` | the return codes of both, with their `EFI_STATUS` | the same |
//! | `conduit` | the `smc` instruction | Arm DEN0028 |
//! | `patience`, `limit` | how long a busy or interrupted partition is waited for | edk2 `MmCommunicationDxe` |
//! | `error` | why MM was not reached | |
//! | `connection` | finds MM, and makes one request after the other | |
//!
//! The code that makes calls is compiled for AArch64, and for hosts, whose tests simulate the
//! secure world. x86 firmware contains neither this code nor its dependencies. Errors and options
//! are the same everywhere.
#![cfg_attr(
    not(any(target_arch = "aarch64", unix, windows)),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "x86 firmware does not have what these lines link to"
    )
)]

mod codes;
mod error;
mod patience;

pub use codes::{FfaCode, OtherVersion, SpmMmCode};
pub use error::SmcError;
pub use patience::{Patience, TimeLimit};

#[cfg(any(target_arch = "aarch64", unix, windows))]
mod conduit;
#[cfg(any(target_arch = "aarch64", unix, windows))]
mod connection;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub mod ffa;
#[cfg(any(target_arch = "aarch64", unix, windows))]
mod in_call;
#[cfg(any(target_arch = "aarch64", unix, windows))]
mod limit;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub mod spm_mm;
/// What a test replaces by loom's atomics.
#[cfg(any(target_arch = "aarch64", unix, windows))]
mod sync {
    pub(crate) use core::sync::atomic::{AtomicBool, Ordering};
}
#[cfg(test)]
mod world;

#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
pub use conduit::Smc;
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use conduit::{Call, Conduit, Counter};
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use connection::{Connection, Interface, SecureMm, Setup, connect};
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use ffa::discovery::RxTxMemory;

/// How the platform calls PSCI (device tree `/psci` `method`; ACPI FADT `ARM_BOOT_ARCH`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PsciConduit {
    /// Not known. An SMC is then made only if the processor has an EL3.
    #[default]
    Unknown,
    /// By `smc`: an EL3, or a hypervisor that hides it, then handles every SMC.
    Smc,
    /// By `hvc`. Without an EL3 an SMC is then undefined.
    Hvc,
}
