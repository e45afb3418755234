//! The processor after the firmware: exceptions, page tables, the serial line, the end. An unsafe
//! island (`docs/unsafe.md`).

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

pub(crate) use arch::{DEVICES, FORMAT, fill, take_over};

use core::ffi::c_void;
use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use exit_boot_services::paging::PageTables;

unsafe extern "efiapi" {
    fn guarded(function: extern "efiapi" fn(*mut c_void), argument: *mut c_void) -> u64;
    fn enter(stack: *mut u8, function: extern "efiapi" fn(*mut c_void) -> !, argument: *mut c_void) -> !;
}

unsafe extern "C" {
    /// The stack pointer of the guard, or 0.
    static guarded_stack: AtomicU64;
}

/// The last exception: its kind, the address of the code, and the address that it accessed.
static LAST: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: u64,
    pub(crate) at: u64,
    pub(crate) address: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", arch::describe(*self))
    }
}

/// Called by the exceptions' code. Returns if there is a guard.
#[unsafe(no_mangle)]
extern "efiapi" fn on_exception(what: u64, first: u64, second: u64, third: u64) {
    let fault = arch::fault(what, [first, second, third]);
    for (slot, value) in LAST.iter().zip([fault.what, fault.at, fault.address]) {
        slot.store(value, Ordering::SeqCst);
    }
    // SAFETY: a word that only the guard's code and this function access.
    if unsafe { guarded_stack.load(Ordering::SeqCst) } == 0 {
        let _ = writeln!(Console, "exit_boot_services: {fault}");
        end(false);
    }
}

/// Runs code, and ends it at an exception, without its destructors. Guards do not nest.
pub(crate) fn guard(run: &mut dyn FnMut()) -> Result<(), Fault> {
    extern "efiapi" fn call(argument: *mut c_void) {
        let run = argument.cast::<&mut dyn FnMut()>();
        // SAFETY: the pointer that `guard` passes, whose referent is used by nothing else meanwhile.
        let run = unsafe { &mut *run };
        run();
    }
    let mut run = run;
    // SAFETY: `call` gets the pointer that it expects. After an exception no frame below this one is used any more, and
    // what they own stays allocated.
    match unsafe { guarded(call, (&raw mut run).cast()) } {
        0 => Ok(()),
        _ => {
            let [what, at, address] = &LAST;
            Err(Fault {
                what: what.load(Ordering::SeqCst),
                at: at.load(Ordering::SeqCst),
                address: address.load(Ordering::SeqCst),
            })
        }
    }
}

/// Reads a byte of memory that may not be there.
pub(crate) fn probe(address: u64) -> Result<(), Fault> {
    let address = usize::try_from(address).unwrap_or(0);
    guard(&mut || {
        // SAFETY: a byte of memory that the firmware has, or an exception, which the guard takes.
        let _ = unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() };
    })
}

/// Continues with another stack, for good.
///
/// # Safety
///
/// `stack` is the end of memory that is used for nothing else; `function` takes `argument`.
pub(crate) unsafe fn go_on(
    stack: *mut u8,
    function: extern "efiapi" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> ! {
    // SAFETY: the caller's promise.
    unsafe { enter(stack, function, argument) }
}

/// Makes the processor use page tables, for as long as it uses no others.
///
/// # Safety
///
/// They are never freed, and map all that this program uses where it is.
pub(crate) unsafe fn use_tables(tables: &PageTables) {
    // SAFETY: the caller's promise.
    unsafe { arch::use_tables(tables.root()) };
}

/// Text for the serial line; a line end becomes CR LF.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                arch::write_serial(b'\r');
            }
            arch::write_serial(byte);
        }
        Ok(())
    }
}

/// Ends QEMU.
pub(crate) fn end(success: bool) -> ! {
    arch::end(if success { 0x10 } else { 0x11 });
    loop {
        core::hint::spin_loop();
    }
}
