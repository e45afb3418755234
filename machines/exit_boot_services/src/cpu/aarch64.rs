//! AArch64, at EL1. An unsafe island (`docs/unsafe.md`).

use super::Fault;
use alloc::format;
use alloc::string::String;
use core::arch::{asm, global_asm};
use core::ptr;
use exit_boot_services::paging::{AARCH64, Format};

global_asm!(include_str!("aarch64.s"));

unsafe extern "C" {
    #[link_name = "use_tables"]
    fn switch(root: u64, translation: u64, memory: u64);
    fn vectors();
}

/// The page tables of this processor.
pub(crate) const FORMAT: Format = AARCH64;

/// The first PL011 of `virt`.
const UART: usize = 0x0900_0000;
const UART_FLAGS: usize = UART + 0x18;
const TRANSMITTER_FULL: u32 = 1 << 5;

/// Pages of devices that this program uses.
pub(crate) const DEVICES: &[u64] = &[UART as u64];

/// 48 bits of virtual address by TTBR0, none by TTBR1; 40 of physical address; walks inner shareable, write-back.
const TRANSLATION: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
/// Type 0: a device's; type 3: write-back. The types of edk2 (`ArmPkg/Library/ArmMmuLib`).
const MEMORY: u64 = 0xff_bb_44_00;

/// Takes interrupts and exceptions from the firmware.
///
/// # Safety
///
/// Boot services have ended: nothing needs the firmware's.
pub(crate) unsafe fn take_over() {
    // SAFETY: masks everything that can be masked, and names the vectors of this program.
    unsafe {
        asm!(
            "msr daifset, #15",
            "msr vbar_el1, {}",
            "isb",
            in(reg) vectors as *const () as u64,
            options(nostack),
        );
    }
}

/// Makes the processor use page tables.
///
/// # Safety
///
/// That of `super::use_tables`.
pub(super) unsafe fn use_tables(root: u64) {
    // SAFETY: the caller's promise; this code is mapped one to one before and after.
    unsafe { switch(root, TRANSLATION, MEMORY) };
}

/// Fills words of memory.
///
/// # Safety
///
/// Nothing is in them.
pub(crate) unsafe fn fill(start: u64, words: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "cbz {words}, 3f",
            "str {value}, [{at}], #8",
            "sub {words}, {words}, #1",
            "b 2b",
            "3:",
            at = inout(reg) start => _,
            words = inout(reg) words => _,
            value = in(reg) value,
            options(nostack),
        );
    }
}

pub(super) fn fault(what: u64, [at, address, _]: [u64; 3]) -> Fault {
    Fault { what, at, address }
}

pub(super) fn describe(fault: Fault) -> String {
    let Fault { what, at, address } = fault;
    // DDI 0487, D24.2.40: the class, and for data aborts whether it was a write.
    match what >> 26 & 0x3f {
        0x21 => format!("an instruction abort: code at {at:#x} was executing {address:#x}"),
        0x25 => {
            let access = if what >> 6 & 1 == 1 { "writing" } else { "reading" };
            format!("a data abort: code at {at:#x} was {access} {address:#x}")
        }
        class => format!("an exception of class {class:#x} (ESR {what:#x}) of code at {at:#x}"),
    }
}

pub(super) fn write_serial(byte: u8) {
    let flags = ptr::with_exposed_provenance::<u32>(UART_FLAGS);
    // SAFETY: a register of the UART, which has no access to memory.
    while unsafe { flags.read_volatile() } & TRANSMITTER_FULL != 0 {
        core::hint::spin_loop();
    }
    let data = ptr::with_exposed_provenance_mut::<u32>(UART);
    // SAFETY: a register of the UART, which has no access to memory.
    unsafe { data.write_volatile(byte.into()) };
}

pub(super) fn end(value: u8) {
    // SYS_EXIT_EXTENDED, ADP_Stopped_ApplicationExit, and the status that `isa-debug-exit` would make of it.
    let block = [0x2_0026, u64::from(value) << 1 | 1];
    // SAFETY: the debugger, which QEMU plays, reads the block.
    unsafe { asm!("hlt #0xf000", in("x0") 0x20_u64, in("x1") &raw const block, options(nostack)) };
}
