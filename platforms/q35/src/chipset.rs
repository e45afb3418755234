//! The chipset's registers that control SMIs and SMRAM, and what QEMU says about the machine. An
//! unsafe island (`docs/unsafe.md`).

use core::arch::asm;
use mm_comm::ich9::{self, PciRegister};
use mm_comm::ports::NativePorts;
use mm_comm::{SmiEnable, SmiEnableRegister};
#[cfg(feature = "conformance")]
use ovmf_platform::devices::PM_BASE;
use q35_mm::chipset::Chipset;

/// SMI_EN.
#[cfg(feature = "conformance")]
pub(crate) const SMI_EN: u16 = PM_BASE + 0x30;

/// QEMU's fw_cfg: the selector, 16 bits, and the data, byte by byte.
const FW_CFG_SELECTOR: u16 = 0x510;
const FW_CFG_DATA: u16 = 0x511;

/// The processor's ports.
pub(crate) fn ports() -> NativePorts {
    // SAFETY: a DXE core runs in ring 0. The ports passed to this value in this crate are the SMI's
    // command and data port and SMI_EN, for which it was made; and configuration space, see
    // `PciByte`.
    unsafe { NativePorts::new() }
}

/// A byte register that controls SMIs or SMRAM. Only the two below can be named: one locks SMIs,
/// the other controls what is at 0xa0000, where no program of this firmware has memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PciByte(PciRegister);

impl PciByte {
    /// SMRAM: which memory is behind the compatible segment, and which code can access it (82G33
    /// GMCH, 5.1.37; MCH 0:0.0, 0x9d).
    pub(crate) const SMRAM: Self = Self(PciRegister::new(0, 0, 0x9d));
    /// The low byte of GEN_PMCON_1, with SMI_LOCK (ICH9, 13.8.1.1; LPC bridge 0:1f.0, 0xa0).
    pub(crate) const GEN_PMCON_1: Self = Self(PciRegister::new(0x1f, 0, 0xa0));

    pub(crate) fn read(self) -> u8 {
        self.0.read_u8(&ports())
    }

    pub(crate) fn write(self, value: u8) {
        self.0.write_u8(&ports(), value);
    }
}

/// SMI_EN, if the chipset has an address for it.
fn smi_en(ports: &NativePorts) -> Option<SmiEnableRegister> {
    let base = ich9::pm_base(Some(ports)).ok()?;
    SmiEnableRegister::behind_io_base(base).ok()
}

/// The address of the last page fault.
#[cfg(feature = "conformance")]
pub(crate) fn cr2() -> u64 {
    let cr2;
    // SAFETY: a DXE core runs in ring 0. Reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    cr2
}

/// Sets what [`cr2`] reads.
#[cfg(feature = "conformance")]
pub(crate) fn set_cr2(address: u64) {
    // SAFETY: a DXE core runs in ring 0. Only page-fault handlers look at CR2, which the processor
    // sets for them.
    unsafe { asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags)) };
}

/// The chipset of this machine.
pub(crate) struct Q35Chipset;

impl Chipset for Q35Chipset {
    fn smram(&self) -> u8 {
        PciByte::SMRAM.read()
    }

    fn set_smram(&self, value: u8) {
        PciByte::SMRAM.write(value);
    }

    fn pmcon(&self) -> u8 {
        PciByte::GEN_PMCON_1.read()
    }

    fn set_pmcon(&self, value: u8) {
        PciByte::GEN_PMCON_1.write(value);
    }

    fn switch_smis_on(&self) {
        let ports = ports();
        if let Some(smi_en) = smi_en(&ports) {
            smi_en.write(&ports, smi_en.read(&ports) | SmiEnable::all().bits());
        }
    }

    /// Other code can switch them on again: QEMU takes an SMI if APMC_EN alone is set, and nothing
    /// locks that bit. Reads SMI_EN's address from the chipset, because the launcher refuses an
    /// unexpected PMBASE.
    fn switch_smis_off(&self) {
        let ports = ports();
        // Without a base SMI_EN has no address, and SMIs are off, as after a reset.
        if let Some(smi_en) = smi_en(&ports) {
            smi_en.write(&ports, smi_en.read(&ports) & !SmiEnable::all().bits());
        }
    }

    fn fw_cfg(&self, item: u16, out: &mut [u8]) {
        // SAFETY: a DXE core runs in ring 0. The port selects an item of fw_cfg, or belongs to no
        // device; neither touches memory.
        unsafe {
            asm!("out dx, ax", in("dx") FW_CFG_SELECTOR, in("ax") item,
                options(nomem, nostack, preserves_flags));
        }
        for byte in out {
            // SAFETY: a DXE core runs in ring 0. Reading the next byte of the item has no other effect.
            unsafe {
                asm!("in al, dx", in("dx") FW_CFG_DATA, out("al") *byte,
                    options(nomem, nostack, preserves_flags));
            }
        }
    }
}
