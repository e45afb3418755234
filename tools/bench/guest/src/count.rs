//! Counts instructions, and paints the stack. An unsafe island (`docs/unsafe.md`).

use core::arch::asm;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};
use mm_comm::Ports;
use mm_comm::ports::NativePorts;
use uefi_app::console::Console;

/// The chipset's command port, whose write raises the MMI.
pub(crate) const COMMAND_PORT: u16 = 0xb2;

/// When the call that is under way entered MM, and when it was back; 0 for not yet.
static ENTERED: AtomicU64 = AtomicU64::new(0);
static RETURNED: AtomicU64 = AtomicU64::new(0);

/// How often a call is made; the cheapest one counts, because the firmware's timer interrupts some.
const ROUNDS: u32 = 8;

fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads the time stamp counter, which UEFI applications may, and changes no memory.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Notes that MM is entered now.
pub(crate) fn entered() {
    ENTERED.store(now(), Ordering::Relaxed);
}

/// Notes that MM has returned. Only the first time in a call counts.
pub(crate) fn returned() {
    if RETURNED.load(Ordering::Relaxed) == 0 {
        RETURNED.store(now(), Ordering::Relaxed);
    }
}

/// A call's instructions.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) before: u64,
    pub(crate) mm: u64,
    pub(crate) after: u64,
}

impl Parts {
    fn total(self) -> u64 {
        self.before + self.mm + self.after
    }
}

/// Counts a call, which says whether it went well; `None` if it did not. Without [`entered`] and
/// [`returned`] all is before.
pub(crate) fn count(mut call: impl FnMut() -> bool) -> Option<Parts> {
    let mut best: Option<Parts> = None;
    for _ in 0..ROUNDS {
        ENTERED.store(0, Ordering::Relaxed);
        RETURNED.store(0, Ordering::Relaxed);
        let start = now();
        let is_good = call();
        let end = now();
        if !is_good {
            return None;
        }
        let (entered, returned) = (ENTERED.load(Ordering::Relaxed), RETURNED.load(Ordering::Relaxed));
        let parts = match entered {
            0 => Parts {
                before: end - start,
                mm: 0,
                after: 0,
            },
            entered => Parts {
                before: entered - start,
                mm: returned - entered,
                after: end - returned,
            },
        };
        if best.is_none_or(|best| parts.total() < best.total()) {
            best = Some(parts);
        }
    }
    best
}

/// Writes a line for `tools/xtask/src/bench.rs`. `name` has no spaces.
pub(crate) fn report(name: &str, bytes: usize, parts: Option<Parts>) {
    let _ = match parts {
        Some(Parts { before, mm, after }) => writeln!(Console, "COUNT {name} {bytes} {before} {mm} {after}"),
        None => writeln!(Console, "COUNT {name} {bytes} failed"),
    };
}

/// The value that the stack is painted with.
const PAINT: u64 = 0xa5a5_a5a5_5a5a_5a5a;
/// How far down it is painted: more than a call takes, and less than UEFI gives an application (128 KiB).
const DEPTH: usize = 24 * 1024;
/// Between the stack pointer and the paint.
const GAP: usize = 64;

/// The bytes of stack that a call takes, the fewest of some.
#[inline(never)]
pub(crate) fn stack_of(call: &mut dyn FnMut()) -> usize {
    let mut least = usize::MAX;
    for _ in 0..ROUNDS {
        let top: usize;
        // SAFETY: reads the stack pointer.
        unsafe { asm!("mov {}, rsp", out(reg) top, options(nomem, nostack, preserves_flags)) };
        let low = (top - DEPTH) & !7;
        let words = (top - GAP - low) / 8;
        // SAFETY: the memory below the stack pointer is the stack's, and nothing is in it: there is
        // no red zone on this target.
        unsafe {
            asm!("rep stosq", inout("rdi") low => _, inout("rcx") words => _, in("rax") PAINT, options(nostack, preserves_flags));
        }
        call();
        let is_painted = |at: &usize| {
            // SAFETY: the same address, read as a word.
            unsafe { core::ptr::with_exposed_provenance::<u64>(*at).read_volatile() == PAINT }
        };
        let untouched = (low..top).step_by(8).take_while(is_painted).count() * 8;
        least = least.min(top - low - untouched);
    }
    least
}

/// Writes the bytes of stack of a call.
pub(crate) fn report_stack(name: &str, bytes: usize) {
    let _ = writeln!(Console, "STACK {name} {bytes}");
}

/// The processor's ports, which note when the MMI is raised, and when it was taken.
pub(crate) struct TimedPorts(NativePorts);

impl TimedPorts {
    pub(crate) fn new() -> Self {
        // SAFETY: a UEFI image runs in ring 0. The ports go to the crate's own trigger, which reads
        // SMI_EN and raises MMIs.
        Self(unsafe { NativePorts::new() })
    }
}

impl Ports for TimedPorts {
    fn write_u8(&self, port: u16, value: u8) {
        if port == COMMAND_PORT {
            entered();
        }
        self.0.write_u8(port, value);
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.0.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        self.0.write_u32(port, value);
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.0.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.0.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        self.0.pause();
        returned();
    }
}
