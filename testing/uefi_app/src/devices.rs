//! The serial port's place and the way to end a run. An unsafe island (`docs/unsafe.md`).

use patina::peripheral::serial::uart as driver;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{Uart, end_run, uart};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Uart, end_run, uart};

/// The exit value of a run in which everything passed; QEMU ends with status 33.
pub const SUCCESS: u8 = 0x10;
/// The exit value of any other run; QEMU ends with status 35.
pub const FAILURE: u8 = 0x11;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::driver::Uart16550;
    use core::arch::asm;

    pub(crate) type Uart = Uart16550;

    /// COM1.
    pub(crate) const fn uart() -> Uart {
        // SAFETY: 0x3f8 is COM1 of every PC. The firmware's console may share it: both only send
        // bytes, which can mix up text and nothing else.
        unsafe { Uart16550::new_io(0x3f8) }
    }

    /// Writes to QEMU's `isa-debug-exit` device at port 0xf4: QEMU ends with status `2 * value +
    /// 1`. Without the device nothing happens.
    pub(crate) fn end_run(value: u8) {
        // SAFETY: a UEFI application runs in ring 0. No PC device but this one decodes port 0xf4,
        // and QEMU's has no access to memory.
        unsafe { asm!("out dx, al", in("dx") 0xf4_u16, in("al") value, options(nostack, preserves_flags)) };
    }
}

/// QEMU's `virt`.
#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::driver::UartPl011;
    use core::arch::asm;

    pub(crate) type Uart = UartPl011;

    /// The semihosting call SYS_EXIT_EXTENDED, and its reason ADP_Stopped_ApplicationExit.
    const EXIT_EXTENDED: u64 = 0x20;
    const APPLICATION_EXIT: u64 = 0x2_0026;

    /// The first PL011.
    pub(crate) const fn uart() -> Uart {
        // SAFETY: QEMU's `virt` has a PL011 at this address. The firmware's console may share it:
        // both only send bytes, which can mix up text and nothing else.
        unsafe { UartPl011::new(0x0900_0000) }
    }

    /// Asks the debugger, which QEMU simulates with `-semihosting-config enable=on`, to end the
    /// run, with the status that `isa-debug-exit` would make of `value`. Without a debugger the
    /// instruction is undefined, and the firmware's exception handler stops the machine.
    pub(crate) fn end_run(value: u8) {
        let block = [APPLICATION_EXIT, u64::from(value) << 1 | 1];
        // SAFETY: the call reads the two words of `block` and changes no memory.
        unsafe {
            asm!("hlt #0xf000", inout("x0") EXIT_EXTENDED => _, in("x1") &raw const block, options(nostack));
        }
    }
}
