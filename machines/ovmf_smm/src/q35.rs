//! The registers of Q35's chipset that an SMI needs. An unsafe island (`docs/unsafe.md`).

use mm_comm::ich9::{self, Ich9Error};
use mm_comm::ports::NativePorts;
use mm_comm::{SmiEnable, SmiEnableRegister};
use patina::uefi::boot_services::BootServices;
use patina::uefi::boot_services::tpl::Tpl;

/// The port whose write raises the SMI, APM_CNT.
pub(crate) const COMMAND_PORT: u16 = 0xb2;
/// The port that an SMI handler may read, APM_STS.
pub(crate) const DATA_PORT: u16 = 0xb3;

/// The chipset.
pub(crate) struct Q35 {
    ports: NativePorts,
}

impl Q35 {
    /// The chipset of the machine that runs this.
    pub(crate) fn new() -> Self {
        // SAFETY: a UEFI image runs in ring 0 (UEFI 2.11, 2.3.4). The ports stay in this type, which reads PCI
        // configuration space and changes one bit of SMI_EN: neither has access to memory.
        let ports = unsafe { NativePorts::new() };
        Self { ports }
    }

    /// The base of the ACPI registers in I/O space.
    pub(crate) fn acpi_base(&self) -> Result<u16, Ich9Error> {
        ich9::pm_base(Some(&self.ports))
    }

    /// Runs `body` while a write to the command port raises no SMI; `None` if there is no SMI_EN.
    pub(crate) fn without_smis<R>(&self, boot: &impl BootServices, body: impl FnOnce() -> R) -> Option<R> {
        let smi_en = SmiEnableRegister::behind_io_base(self.acpi_base().ok()?).ok()?;
        // The firmware's own notifications may want an SMI.
        let _undisturbed = boot.raise_tpl_guarded(Tpl::NOTIFY);
        let enabled = smi_en.read(&self.ports);
        smi_en.write(&self.ports, enabled & !SmiEnable::APMC.bits());
        let result = body();
        smi_en.write(&self.ports, enabled);
        Some(result)
    }
}
