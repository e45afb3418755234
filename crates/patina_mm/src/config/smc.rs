//! Settings of AArch64 platforms, beyond the six fields that every platform writes.

pub use mm_comm::smc::{Patience, PsciConduit, TimeLimit};

/// Whether this build can make secure monitor calls. x86 firmware cannot, and does not link what
/// their errors say and mean.
pub(crate) const HAS_SECURE_CALLS: bool = cfg!(any(target_arch = "aarch64", unix, windows));

/// How MM is reached by secure monitor calls. An optional config value: without it a platform gets
/// the defaults, which fit every machine with an EL3. Not used if the ports are x86 ports.
///
/// ```
/// use core::time::Duration;
/// use patina_mm::config::{PsciConduit, SmcOptions, TimeLimit};
///
/// let options = SmcOptions {
///     // A guest whose hypervisor hides EL3 and takes the guest's secure monitor calls itself.
///     psci: PsciConduit::Smc,
///     // MM erases flash, which takes longer than a minute here.
///     time_limit: Some(TimeLimit { request: Duration::from_secs(300), ..Default::default() }),
///     // Another driver keeps FF-A's RX and TX buffers mapped, so that the partition cannot be looked for.
///     partition: Some(0x8001),
///     ..Default::default()
/// };
/// assert_eq!(options.patience.busy, 500_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmcOptions {
    /// How the platform calls PSCI. If the processor has no EL3 and this is not
    /// [`PsciConduit::Smc`], a secure monitor call would be undefined: none is made, and the
    /// platform gets `EFI_UNSUPPORTED`.
    pub psci: PsciConduit,
    /// How long a busy partition is asked, and an interrupted one resumed, until the call counts as
    /// timed out. `None` to go by [`Self::patience`].
    pub time_limit: Option<TimeLimit>,
    /// The same in numbers of calls, for a processor whose counter does not run (CNTFRQ_EL0 is 0),
    /// or if [`Self::time_limit`] is `None`.
    pub patience: Patience,
    /// The FF-A identifier of the MM partition; `None` to look for it. It takes
    /// FFA_MSG_SEND_DIRECT_REQ, or FFA_MSG_SEND_DIRECT_REQ2 if the command port is
    /// `MmiPort::Smc(0xC400_008D)`.
    pub partition: Option<u16>,
}

impl Default for SmcOptions {
    fn default() -> Self {
        Self {
            psci: PsciConduit::default(),
            time_limit: Some(TimeLimit::default()),
            patience: Patience::default(),
            partition: None,
        }
    }
}
