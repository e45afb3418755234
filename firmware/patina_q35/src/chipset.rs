//! The chipset's registers that decide about SMIs and SMRAM. An unsafe island (`docs/unsafe.md`).

use mm_comm::Ports;
use mm_comm::ports::NativePorts;

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
        let dword = self.select().read_u32(CONFIG_DATA);
        let [b0, b1, b2, b3] = dword.to_le_bytes();
        match self.register & 3 {
            0 => b0,
            1 => b1,
            2 => b2,
            _ => b3,
        }
    }

    /// Only the two registers above can be named: one locks SMIs, the other decides what is at 0xa0000, where no program
    /// of this firmware has memory.
    pub(crate) fn write(self, value: u8) {
        let port = CONFIG_DATA | u16::from(self.register & 3);
        self.select().write_u8(port, value);
    }
}
