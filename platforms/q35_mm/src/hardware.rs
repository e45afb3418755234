//! The machine as MM uses it: ports, serial line, memory, and MM's own state. An unsafe island
//! (`docs/unsafe.md`).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use mm_comm::SharedRegion;
use mm_core::{Mmi, SystemMemory};
use mm_wire::AddressRange;
use q35_mm::handoff::{HandOff, STATE_OFFSET, State};
use q35_mm::layout::{CONSTANT, HANDOFF, hash, reaches};
use zerocopy::{FromZeros, IntoBytes};

/// The command port (APM_CNT) and the data port (APM_STS).
const COMMAND: u16 = 0xb2;
const DATA: u16 = 0xb3;

/// COM1, its line status register, and the bit that says that it takes a byte.
const SERIAL: u16 = 0x3f8;
const LINE_STATUS: u16 = SERIAL + 5;
const READY_TO_SEND: u8 = 1 << 5;
/// Readings of the line status after which a byte is given up.
const MAX_READINGS: u32 = 100_000;

fn read_u8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: MM runs in ring 0, and this module reads only ports whose reading has no effect on
    // memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

fn write_u8(port: u16, value: u8) {
    // SAFETY: MM runs in ring 0, and this module writes only the serial port, which has no access
    // to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// The last values of the ports.
pub(crate) fn mmi() -> Mmi {
    Mmi {
        command: read_u8(COMMAND),
        data: read_u8(DATA),
    }
}

/// The serial line that the rest of the firmware writes to as well. A line end becomes CR LF.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r')?;
            }
            send(byte)?;
        }
        Ok(())
    }
}

fn send(byte: u8) -> fmt::Result {
    let ready = (0..MAX_READINGS).any(|_| read_u8(LINE_STATUS) & READY_TO_SEND != 0);
    if !ready {
        return Err(fmt::Error);
    }
    write_u8(SERIAL, byte);
    Ok(())
}

/// Memory outside SMRAM, as far as MM reaches it.
#[derive(Debug)]
pub(crate) struct Outside;

impl SystemMemory for Outside {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        outside(address, out.len()).is_some_and(|region| region.read(0, out))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        outside(address, bytes.len()).is_some_and(|region| region.write(0, bytes))
    }
}

/// Virtual addresses are physical ones here.
#[expect(
    clippy::cast_possible_truncation,
    reason = "this program runs in 64-bit mode only"
)]
fn pointer(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

fn outside(address: u64, len: usize) -> Option<SharedRegion> {
    let range = AddressRange::new(address, u64::try_from(len).ok()?)?;
    if !reaches(range) {
        return None;
    }
    let base = pointer(range.start());
    // SAFETY: `range` is below REACH, where the page tables map all but page 0 for reading and
    // writing. It is outside SMRAM, which holds all of this program, so that no Rust reference
    // points there.
    unsafe { SharedRegion::new(base, len) }.ok()
}

/// Copies the hand-off block.
pub(crate) fn hand_off() -> HandOff {
    let mut block = HandOff::new_zeroed();
    let from = pointer(HANDOFF);
    // SAFETY: the block's page is mapped for reading and writing, and `smram.ld` puts nothing of
    // this program there.
    let region = unsafe { SharedRegion::new(from, size_of::<HandOff>()) };
    // A block that cannot be read stays zeroed, which is not a block.
    let _ = region.is_ok_and(|region| region.read(0, block.as_mut_bytes()));
    block
}

/// Tells the launcher the result of the hand-off.
pub(crate) fn respond_to_hand_off(state: State) {
    let at = pointer(HANDOFF.saturating_add(STATE_OFFSET));
    // SAFETY: the block's page is mapped for reading and writing, and nothing of this program is
    // there.
    let region = unsafe { SharedRegion::new(at, size_of::<u64>()) };
    // If it cannot be written the launcher reads `New`, and refuses to go on.
    let _ = region.is_ok_and(|region| region.write(0, &state.number().to_le_bytes()));
}

/// The hash of what never changes in SMRAM, as it is there now.
pub(crate) fn constant_hash() -> u64 {
    let bytes = CONSTANT.into_iter().flatten().map(|address| {
        let byte = pointer(address);
        // SAFETY: both ranges lie in SMRAM on pages that are mapped for reading and never written.
        unsafe { byte.read_volatile() }
    });
    hash(bytes)
}

/// A value that one SMI at a time uses.
pub(crate) struct Exclusive<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `with` hands out one reference at a time: `taken` says so.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Uses the value; `None` if it is in use, and it stays in use if a fault ended its last use.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `taken` was false, so that no other reference exists; it is true until `f` has
        // returned.
        let result = f(unsafe { &mut *self.value.get() });
        self.taken.store(false, Ordering::Release);
        Some(result)
    }
}

impl<T> Exclusive<T> {
    #[expect(clippy::mut_from_ref, reason = "`taken` lets it happen once")]
    /// Takes the value over, forever; `None` from the second time on.
    pub(crate) fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `taken` was false, so that no other reference exists, and it stays true.
        Some(unsafe { &mut *self.value.get() })
    }
}
