//! The devices of the machine that this platform touches itself. An unsafe island (`docs/unsafe.md`).

use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use mm_comm::Ports;
use mm_comm::ports::NativePorts;
use patina::peripheral::serial::SerialIO;
use patina::peripheral::serial::uart::Uart16550;

/// Where the ACPI registers are. OVMF sets PMBASE (LPC bridge, register 0x40) to it.
pub(crate) const PM_BASE: u16 = 0x600;

/// The ACPI timer (ACPI 6.5, 4.8.3.3).
const PM_TIMER: u16 = PM_BASE + 8;

/// Bits of the ACPI timer that QEMU implements.
const PM_TIMER_MASK: u32 = 0x00ff_ffff;

/// PCI configuration space, mechanism 1.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The exit value of a run that failed.
const FAILURE: u8 = 0x11;

/// The processor's ports.
pub(crate) fn ports() -> NativePorts {
    // SAFETY: a DXE core runs in ring 0. The ports passed to this value in this crate are the SMI's command and data port
    // and SMI_EN, for which it was made; the ACPI timer, which can only be read; and configuration space, see `PciByte`.
    unsafe { NativePorts::new() }
}

/// COM1.
pub(crate) const fn serial() -> Uart16550 {
    // SAFETY: 0x3f8 is COM1 of every PC. OVMF's terminal driver shares it: both only send bytes, which can mix up text
    // and nothing else.
    unsafe { Uart16550::new_io(0x3f8) }
}

/// Text for the serial port; a line end becomes CR LF.
#[cfg_attr(
    not(feature = "conformance"),
    expect(dead_code, reason = "for the tests' lines")
)]
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut port = serial();
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    port.write(line.as_bytes());
                    port.write(b"\r\n");
                }
                None => port.write(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Reads the ACPI timer, which counts 24 bits up.
pub(crate) fn pm_timer() -> u32 {
    ports().read_u32(PM_TIMER) & PM_TIMER_MASK
}

/// Reads the ACPI timer's distance from an earlier reading.
pub(crate) fn pm_ticks_since(start: u32) -> u32 {
    pm_timer().wrapping_sub(start) & PM_TIMER_MASK
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

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log::error!("{info}");
    // SAFETY: a DXE core runs in ring 0. No PC device but QEMU's `isa-debug-exit`, which ends the run, decodes port
    // 0xf4, and it has no access to memory.
    unsafe { asm!("out dx, al", in("dx") 0xf4_u16, in("al") FAILURE, options(nostack, preserves_flags)) };
    loop {
        core::hint::spin_loop();
    }
}
