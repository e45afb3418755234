//! Which memory of the machine is for what, and what QEMU's loader leaves for the programs in it.

use mm_wire::AddressRange;

const fn range(start: u64, len: u64) -> AddressRange {
    match AddressRange::new(start, len) {
        Some(range) => range,
        None => unreachable!(),
    }
}

/// The secure RAM of `virt` with `secure=on`.
pub const SECURE_RAM: AddressRange = range(0x0e00_0000, 0x0100_0000);
/// RAM, with `-m 1024`.
pub const RAM: AddressRange = range(0x4000_0000, 0x4000_0000);
/// The region that MM and its clients share: what a platform's description would call the MM
/// communication buffer.
pub const SHARED: AddressRange = range(0x5000_0000, 0x0080_0000);
/// Where the loader puts a bare payload, which starts at its first byte.
pub const PAYLOAD: u64 = 0x6000_0000;
/// Where the loader puts the [`Mode`], 4 bytes.
pub const MODE_WORD: u64 = 0x5fff_f000;
/// Where the loader puts UEFI, for which this is address 0.
pub const UEFI: AddressRange = range(0x7c00_0000, 0x0200_0000);
/// The device tree that QEMU leaves.
pub const DEVICE_TREE: u64 = RAM.start();

/// The monitor's own call that names comm buffer x1: x2 is its address, x3 its length. Buffer 0
/// forgets all others. Returns 0 or, as SPM_MM does, -2 or -3. In the range of the calling
/// convention that is for OEMs.
pub const SET_BUFFER: u32 = 0xc300_0001;
/// The monitor's own call that returns how many requests the MM core was given.
pub const COUNT_REQUESTS: u32 = 0xc300_0002;
/// The monitor's own call that returns the word at [`MODE_WORD`], which a firmware may have
/// overwritten.
pub const MODE: u32 = 0xc300_0003;

/// How the secure world presents itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// SPM_MM 1.0.
    SpmMm,
    /// FF-A 1.2; the partition takes FFA_MSG_SEND_DIRECT_REQ.
    Ffa,
    /// FF-A 1.2 without PARTITION_INFO_GET_REGS; the partition takes FFA_MSG_SEND_DIRECT_REQ2.
    FfaWithoutRegs,
    /// Neither interface exists.
    NoMm,
    /// There is neither EL3 nor monitor: only the payload, which must not make a call.
    NoEl3,
    /// FF-A 1.3 as Hafnium has it, and in the partition what edk2's StandaloneMm does.
    StandaloneMm,
}

/// The meaning of the loader's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// How the secure world presents itself.
    pub interface: Interface,
    /// Whether UEFI is started, not the bare payload.
    pub uefi: bool,
    /// Whether the payload runs the demo instead of the tests.
    pub demo: bool,
    /// Whether it makes very many calls instead of the tests.
    pub soak: bool,
}

impl Mode {
    /// The bit that starts UEFI.
    pub const UEFI: u32 = 1 << 8;
    /// The bit that asks for the demo.
    pub const DEMO: u32 = 1 << 9;
    /// The bit that asks for very many calls.
    pub const SOAK: u32 = 1 << 10;

    /// The word with this meaning.
    #[must_use]
    pub const fn word(self) -> u32 {
        let interface = match self.interface {
            Interface::SpmMm => 1,
            Interface::Ffa => 2,
            Interface::FfaWithoutRegs => 3,
            Interface::NoMm => 4,
            Interface::NoEl3 => 5,
            Interface::StandaloneMm => 6,
        };
        let uefi = if self.uefi { Self::UEFI } else { 0 };
        let demo = if self.demo { Self::DEMO } else { 0 };
        let soak = if self.soak { Self::SOAK } else { 0 };
        interface | uefi | demo | soak
    }

    /// Reads the word; `None` if it is not a mode.
    #[must_use]
    pub const fn of_word(word: u32) -> Option<Self> {
        let interface = match word & 0xff {
            1 => Interface::SpmMm,
            2 => Interface::Ffa,
            3 => Interface::FfaWithoutRegs,
            4 => Interface::NoMm,
            5 => Interface::NoEl3,
            6 => Interface::StandaloneMm,
            _ => return None,
        };
        Some(Self {
            interface,
            uefi: word & Self::UEFI != 0,
            demo: word & Self::DEMO != 0,
            soak: word & Self::SOAK != 0,
        })
    }
}
