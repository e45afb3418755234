//! Where Q35's chipset has what an SMI needs. An unsafe island (`docs/unsafe.md`).

use mm_comm::ports::NativePorts;
use mm_comm::{Ports, SmiEnable};
use patina::standard::efi;
use patina::uefi::boot_services::BootServices;
use patina::uefi::boot_services::tpl::Tpl;

/// The port whose write raises the SMI, APM_CNT.
pub(crate) const COMMAND_PORT: u16 = 0xb2;
/// The port that an SMI handler may read, APM_STS.
pub(crate) const DATA_PORT: u16 = 0xb3;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Selects PMBASE: register 0x40 of the LPC bridge, PCI 0:1f.0 (Intel ICH9, 13.1.13).
const PMBASE: u32 = 1 << 31 | 0x1f << 11 | 0x40;
const PMBASE_MASK: u16 = 0xff80;

/// How far SMI_EN stands behind the ACPI base (Intel ICH9, 13.8.3.8).
const SMI_EN_OFFSET: u16 = 0x30;

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

    /// The base of the ACPI registers in I/O space; `None` where the firmware has not set it.
    pub(crate) fn acpi_base(&self, boot: &impl BootServices) -> Option<u16> {
        // Address and data are two accesses, and the firmware uses the same pair.
        let _undisturbed = boot.raise_tpl_guarded(Tpl(efi::TPL_HIGH_LEVEL));
        self.ports.write_u32(CONFIG_ADDRESS, PMBASE);
        let [low, high, ..] = self.ports.read_u32(CONFIG_DATA).to_le_bytes();
        Some(u16::from_le_bytes([low, high]) & PMBASE_MASK).filter(|base| *base != 0)
    }

    /// Runs `body` while a write to the command port raises no SMI; `None` where there is no SMI_EN.
    pub(crate) fn without_smis<R>(&self, boot: &impl BootServices, body: impl FnOnce() -> R) -> Option<R> {
        let smi_en = self.acpi_base(boot)?.checked_add(SMI_EN_OFFSET)?;
        // The firmware's own notifications may want an SMI.
        let _undisturbed = boot.raise_tpl_guarded(Tpl::NOTIFY);
        let enabled = self.ports.read_u32(smi_en);
        self.ports.write_u32(smi_en, enabled & !SmiEnable::APMC.bits());
        let result = body();
        self.ports.write_u32(smi_en, enabled);
        Some(result)
    }
}
