//! The chipset's registers that decide about SMIs and SMRAM, and what QEMU tells of the machine. An unsafe island
//! (`docs/unsafe.md`).

use core::arch::asm;
use mm_comm::ports::NativePorts;
use mm_comm::{Ports, SmiEnable};
use ovmf_platform::machine::PM_BASE;
use q35_mm::chipset::Chipset;

/// SMI_EN.
pub(crate) const SMI_EN: u16 = PM_BASE + 0x30;

/// QEMU's fw_cfg: the selector, 16 bits, and the data, byte by byte.
const FW_CFG_SELECTOR: u16 = 0x510;
const FW_CFG_DATA: u16 = 0x511;

/// PCI configuration space, mechanism 1.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The processor's ports.
pub(crate) fn ports() -> NativePorts {
    // SAFETY: a DXE core runs in ring 0. The ports passed to this value in this crate are the SMI's command and data port
    // and SMI_EN, for which it was made; and configuration space, see `PciByte`.
    unsafe { NativePorts::new() }
}

/// A byte in the configuration space of a device on PCI bus 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PciByte {
    device: u8,
    function: u8,
    register: u8,
}

impl PciByte {
    /// SMRAM: which memory is behind the compatible segment, and for whom (82G33 GMCH, 5.1.37; MCH 0:0.0, 0x9d).
    pub(crate) const SMRAM: Self = Self {
        device: 0,
        function: 0,
        register: 0x9d,
    };
    /// The low byte of GEN_PMCON_1, with SMI_LOCK (ICH9, 13.8.1.1; LPC bridge 0:1f.0, 0xa0).
    pub(crate) const GEN_PMCON_1: Self = Self {
        device: 0x1f,
        function: 0,
        register: 0xa0,
    };

    /// The low byte of PMBASE (ICH9, 13.1.13; LPC bridge, 0x40).
    const PMBASE: Self = Self {
        device: 0x1f,
        function: 0,
        register: 0x40,
    };

    /// Selects the dword; nobody may do the same until the byte was accessed.
    fn select(self) -> NativePorts {
        let ports = ports();
        let address = 1 << 31
            | u32::from(self.device) << 11
            | u32::from(self.function) << 8
            | u32::from(self.register & !3);
        ports.write_u32(CONFIG_ADDRESS, address);
        ports
    }

    pub(crate) fn read(self) -> u8 {
        let dword = self.read_dword();
        let [b0, b1, b2, b3] = dword.to_le_bytes();
        match self.register & 3 {
            0 => b0,
            1 => b1,
            2 => b2,
            _ => b3,
        }
    }

    /// The dword that the byte is in.
    fn read_dword(self) -> u32 {
        self.select().read_u32(CONFIG_DATA)
    }

    /// Only the first two registers above can be named outside of this module: one locks SMIs, the other decides what is at 0xa0000, where no program
    /// of this firmware has memory.
    pub(crate) fn write(self, value: u8) {
        let port = CONFIG_DATA | u16::from(self.register & 3);
        self.select().write_u8(port, value);
    }
}

/// PMBASE, as the LPC bridge has it.
pub(crate) fn pm_base() -> u16 {
    // Bits 7 to 15 are the address, the rest is reserved.
    let [low, high, ..] = PciByte::PMBASE.read_dword().to_le_bytes();
    u16::from_le_bytes([low & 0x80, high])
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
    // SAFETY: a DXE core runs in ring 0. Only page-fault handlers look at CR2, which the processor sets for them.
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
        let enabled = ports.read_u32(SMI_EN);
        ports.write_u32(SMI_EN, enabled | SmiEnable::all().bits());
    }

    /// Not for good: QEMU takes an SMI where APMC_EN alone is set, which nothing locks. Looks for SMI_EN where it is, because
    /// the launcher also refuses a PMBASE that it does not expect.
    fn switch_smis_off(&self) {
        let (ports, pm_base) = (ports(), pm_base());
        // Without a base SMI_EN is nowhere, and SMIs are off as a reset leaves them.
        if pm_base != 0 {
            let smi_en = pm_base.saturating_add(SMI_EN.saturating_sub(PM_BASE));
            let enabled = ports.read_u32(smi_en);
            ports.write_u32(smi_en, enabled & !SmiEnable::all().bits());
        }
    }

    fn fw_cfg(&self, item: u16, out: &mut [u8]) {
        // SAFETY: a DXE core runs in ring 0. The port selects an item of fw_cfg, or is nobody's; neither touches memory.
        unsafe {
            asm!("out dx, ax", in("dx") FW_CFG_SELECTOR, in("ax") item,
                options(nomem, nostack, preserves_flags));
        }
        for byte in out {
            // SAFETY: as above. Reading the next byte of the item has no other effect.
            unsafe {
                asm!("in al, dx", in("dx") FW_CFG_DATA, out("al") *byte,
                    options(nomem, nostack, preserves_flags));
            }
        }
    }
}
