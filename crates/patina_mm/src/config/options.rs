//! Settings beyond the six fields that every platform writes.

pub use mm_comm::SmiCheck;

/// How MMIs are raised, and the timeout. A second config value; without it a platform has the
/// defaults.
///
/// ```
/// use patina_mm::config::{MmCommunicationOptions, SmiCheck};
///
/// // edk2's own callers use command 0; let the trigger switch SMIs on if the firmware left them off.
/// let options =
///     MmCommunicationOptions { command_value: 0x00, smi_check: SmiCheck::Enable, ..Default::default() };
/// assert_eq!(options.data_value, 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmCommunicationOptions {
    /// The value for the command port that enters MM for a message. Default 0xFF, like Project Mu's
    /// platforms; edk2's callers use 0. On Q35 under QEMU 0x02 and 0x03 are ACPI enable and
    /// disable, and raise no SMI.
    pub command_value: u8,
    /// The value for the data port, which is written before. Default 0.
    pub data_value: u8,
    /// What to do if the configuration gives an ACPI base and SMI_EN says that SMIs are off.
    /// Default: an error. For a message SMI_EN 0 means that SMIs are off;
    /// [`SwMmiTrigger::trigger_sw_mmi`](crate::service::SwMmiTrigger::trigger_sw_mmi) raises its
    /// MMI then, with a warning at dispatch. [`SmiCheck::Enable`] writes to SMI_EN, which with a
    /// wrong ACPI base is another register. [`SmiCheck::Off`] is for chipsets whose SMI_EN is not
    /// at Intel's PMBASE + 0x30: the ACPI base is not used then.
    pub smi_check: SmiCheck,
    /// The timeout of a call: how often the status mailbox is polled, with a `pause` before each
    /// poll, until a request counts as not processed. Default 100,000. Processors stop while MM
    /// runs, so this bounds only the wait for MM's entry.
    pub completion_polls: u32,
}

impl MmCommunicationOptions {
    /// The defaults, in a form that constants can use.
    pub const DEFAULT: Self = Self {
        command_value: 0xff,
        data_value: 0,
        smi_check: SmiCheck::Require,
        completion_polls: 100_000,
    };
}

impl Default for MmCommunicationOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}
