//! x86-64. An unsafe island (`docs/unsafe.md`).

use super::Fault;
use alloc::format;
use alloc::string::String;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use exit_boot_services::paging::{Format, X86_64};

global_asm!(include_str!("x86_64.s"), options(att_syntax));

unsafe extern "efiapi" {
    fn load_segments();
    fn exception_stubs();
}

/// The page tables of this processor.
pub(crate) const FORMAT: Format = X86_64;

/// Pages of devices that this program uses: the serial line is in the I/O space.
pub(crate) const DEVICES: &[u64] = &[];

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const DEBUG_EXIT: u16 = 0xf4;

/// A table that only the processor reads.
#[repr(C, align(16))]
struct Descriptors<const N: usize>(UnsafeCell<[u64; N]>);

// SAFETY: written once, before the processor gets its address; one processor runs.
unsafe impl<const N: usize> Sync for Descriptors<N> {}

/// 64-bit code and data.
static GDT: Descriptors<3> = Descriptors(UnsafeCell::new([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]));
static IDT: Descriptors<64> = Descriptors(UnsafeCell::new([0; 64]));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

impl Pointer {
    fn to<const N: usize>(table: &'static Descriptors<N>) -> Self {
        Self {
            limit: u16::try_from(size_of::<[u64; N]>().saturating_sub(1)).unwrap_or(0),
            base: table.0.get().expose_provenance() as u64,
        }
    }
}

/// Takes interrupts, exceptions and segments from the firmware.
///
/// # Safety
///
/// Boot services have ended: nothing needs the firmware's.
pub(crate) unsafe fn take_over() {
    const STUB_LEN: u64 = 16;
    let stubs = exception_stubs as *const () as u64;
    let mut gates = [0; 64];
    for (vector, gate) in (0..).zip(gates.as_chunks_mut::<2>().0) {
        let at = stubs.saturating_add(STUB_LEN.saturating_mul(vector));
        // An interrupt gate to the code segment 8.
        *gate = [
            at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48,
            at >> 32,
        ];
    }
    // SAFETY: the processor does not know this table yet.
    unsafe { IDT.0.get().write(gates) };
    let (gdt, idt) = (Pointer::to(&GDT), Pointer::to(&IDT));
    // SAFETY: both tables are statics with descriptors that the processor takes.
    unsafe {
        asm!("cli", "lgdt [{}]", "lidt [{}]", in(reg) &raw const gdt, in(reg) &raw const idt, options(nostack));
    }
    // SAFETY: the segments are in the table that was loaded just now.
    unsafe { load_segments() };
}

/// Makes the processor use page tables.
///
/// # Safety
///
/// That of `super::use_tables`.
pub(super) unsafe fn use_tables(root: u64) {
    // SAFETY: EFER.NXE is a bit of long mode that only gives bit 63 of an entry its meaning; the
    // tables are the caller's.
    unsafe {
        asm!(
            "rdmsr", "or eax, 0x800", "wrmsr",
            "mov cr3, {root}",
            root = in(reg) root, in("ecx") 0xc000_0080_u32, out("eax") _, out("edx") _, options(nostack)
        );
    }
}

/// Fills words of memory.
///
/// # Safety
///
/// Nothing is in them.
pub(crate) unsafe fn fill(start: u64, words: u64, value: u64) {
    // SAFETY: the caller's promise. The first word may be at address 0, which is why this is not Rust.
    unsafe {
        asm!("rep stosq", inout("rdi") start => _, inout("rcx") words => _, in("rax") value, options(nostack));
    }
}

pub(super) fn fault(what: u64, [error, at, address]: [u64; 3]) -> Fault {
    Fault {
        what: what | error << 32,
        at,
        address,
    }
}

pub(super) fn describe(fault: Fault) -> String {
    let Fault { what, at, address } = fault;
    let (vector, error) = (what & 0xff, what >> 32);
    match vector {
        14 => {
            let access = match (error & 2, error & 16) {
                (_, 16) => "executing",
                (2, _) => "writing",
                _ => "reading",
            };
            format!("a page fault: code at {at:#x} was {access} {address:#x}")
        }
        _ => format!("exception {vector} (error code {error:#x}) of code at {at:#x}"),
    }
}

fn write_port(port: u16, value: u8) {
    // SAFETY: the serial line and QEMU's exit device have no access to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: the serial line has no access to memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

pub(super) fn write_serial(byte: u8) {
    while read_port(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    write_port(COM1, byte);
}

pub(super) fn end(value: u8) {
    write_port(DEBUG_EXIT, value);
}
