//! Settings of AArch64 platforms, beyond the six fields that every platform writes.

pub use mm_comm::smc::{Patience, PsciConduit};

/// How MM is reached by secure monitor calls. A config value of its own; a platform that adds none gets the defaults, which
/// fit every machine with an EL3. Not looked at where the ports are x86 ports.
///
/// ```
/// use patina_mm::config::{PsciConduit, SmcOptions};
///
/// // A guest whose hypervisor hides EL3 and takes the guest's secure monitor calls itself.
/// let options = SmcOptions { psci: PsciConduit::Smc, ..Default::default() };
/// assert_eq!(options.patience.busy, 500_000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmcOptions {
    /// How the platform calls PSCI. Where the processor has no EL3 and this is not [`PsciConduit::Smc`], a secure monitor
    /// call would be undefined: none is made, and the platform gets `EFI_UNSUPPORTED`.
    pub psci: PsciConduit,
    /// How often a busy partition is asked, and an interrupted one resumed, until the call counts as timed out.
    pub patience: Patience,
}
