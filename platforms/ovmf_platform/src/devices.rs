//! The devices of the machine that every platform here touches. An unsafe island (`docs/unsafe.md`).

use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;
use log::LevelFilter;
use mm_comm::Ports;
use mm_comm::ports::NativePorts;
use patina::debug::log::{Format, SerialLogger};
use patina::peripheral::serial::SerialIO;
use patina::peripheral::serial::uart::Uart16550;

/// Where the ACPI registers are in I/O space. OVMF sets PMBASE (LPC bridge, register 0x40) to it.
pub const PM_BASE: u16 = 0x600;

/// The ACPI timer (ACPI 6.5, 4.8.3.3).
const PM_TIMER: u16 = PM_BASE + 8;

/// Bits of the ACPI timer that QEMU implements.
const PM_TIMER_MASK: u32 = 0x00ff_ffff;

/// The exit value of a run that failed.
const FAILURE: u8 = 0x11;

/// COM1.
#[must_use]
pub const fn serial() -> Uart16550 {
    // SAFETY: 0x3f8 is COM1 of every PC. OVMF's terminal driver shares it: both only send bytes, which can mix up text
    // and nothing else.
    unsafe { Uart16550::new_io(0x3f8) }
}

/// The core logs less than the components that it runs.
const LEVELS: &[(&str, LevelFilter)] = &[
    ("memory_bin", LevelFilter::Warn),
    ("patina_dxe_core", LevelFilter::Warn),
];

/// Logs to the serial port.
pub type Logger = SerialLogger<'static, Uart16550>;

/// Makes a platform's logger.
#[must_use]
pub const fn logger() -> Logger {
    SerialLogger::new(Format::Standard, LEVELS, LevelFilter::Info, serial())
}

/// Text for the serial port; a line end becomes CR LF.
#[derive(Clone, Copy, Debug)]
pub struct Console;

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
    // SAFETY: a DXE core runs in ring 0. The one port that is used is the ACPI timer's, which can only be read.
    let ports = unsafe { NativePorts::new() };
    ports.read_u32(PM_TIMER) & PM_TIMER_MASK
}

/// Reads the ACPI timer's distance from an earlier reading.
pub(crate) fn pm_ticks_since(start: u32) -> u32 {
    pm_timer().wrapping_sub(start) & PM_TIMER_MASK
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
