//! From the first instruction to the suite. An unsafe island (`docs/unsafe.md`).

use aarch64_monitor::Mode;
use aarch64_monitor::layout::{MODE_WORD, SHARED};
use aarch64_payload::Place;
use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use linked_list_allocator::LockedHeap;
use mm_comm::SharedRegion;
use mm_comm::smc::Smc;
use mm_conformance::report::Report;

global_asm!(include_str!("el1.s"));

unsafe extern "C" {
    /// Gives each vector register another value.
    fn fill_vectors(seed: u64);
    /// How many halves of vector registers do not have the value that `fill_vectors` gave them with
    /// the same seed.
    fn changed_vectors(seed: u64) -> u64;
}

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// RAM behind the payload that nothing else uses.
const HEAP_START: usize = 0x6800_0000;
const HEAP_LEN: usize = 0x0800_0000;

/// The exit codes of QEMU: as an `isa-debug-exit` device makes them of 0x10 and 0x11.
const SUCCESS: u64 = 33;
const FAILURE: u64 = 35;

/// Called by the first instructions, once.
#[unsafe(no_mangle)]
extern "C" fn payload_main() -> ! {
    // SAFETY: RAM that the linker script and the loader leave free; done once, before anything is
    // allocated.
    unsafe {
        HEAP.lock()
            .init(core::ptr::with_exposed_provenance_mut(HEAP_START), HEAP_LEN)
    };
    let Some(mode) = mode() else {
        fail(format_args!("no mode at {MODE_WORD:#x}"));
    };
    let place = Place {
        interface: mode.interface,
        shared: &shared,
        protocols: None,
        vectors: Some(&vectors),
    };
    let succeeded = if mode.demo {
        let place_name = "on a bare AArch64 machine: in the secure world runs mm_core";
        let told = aarch64_payload::demo::<Smc>(&place, place_name, &mut |line| {
            let _ = writeln!(Uart, "{line}");
        });
        told.inspect_err(|why| {
            let _ = writeln!(Uart, "error: {why}");
        })
        .is_ok()
    } else if mode.soak {
        aarch64_payload::soak::<Smc>(&place, &mut Report::new(Uart), &|| {
            u64::try_from(HEAP.lock().free()).ok()
        })
    } else {
        aarch64_payload::run::<Smc>(&place, &mut Report::new(Uart))
    };
    exit(if succeeded { SUCCESS } else { FAILURE })
}

fn mode() -> Option<Mode> {
    let word = core::ptr::with_exposed_provenance::<u32>(usize::try_from(MODE_WORD).ok()?);
    // SAFETY: aligned RAM that the loader has written and that nothing else uses.
    Mode::of_word(unsafe { word.read_volatile() })
}

/// The shared region. The client's buffers and the tests' observers lie in it, all with volatile
/// accesses.
fn shared() -> Option<SharedRegion> {
    let base = core::ptr::with_exposed_provenance_mut(usize::try_from(SHARED.start()).ok()?);
    let len = usize::try_from(SHARED.len()).ok()?;
    // SAFETY: RAM that is set aside for this, mapped one to one since the MMU is off; never
    // referred to.
    unsafe { SharedRegion::new(base, len) }.ok()
}

/// The target has no floating point: between the two calls only the secure world can change the
/// registers.
fn vectors(run: &mut dyn FnMut()) -> u64 {
    const SEED: u64 = 0x5a5a_0000_0000_0000;
    // SAFETY: changes registers that no compiled code of this program uses, and lets EL1 use them.
    unsafe { fill_vectors(SEED) };
    run();
    // SAFETY: reads the same registers, which `fill_vectors` has made accessible.
    unsafe { changed_vectors(SEED) }
}

/// Ends QEMU (semihosting SYS_EXIT_EXTENDED).
fn exit(code: u64) -> ! {
    let block = [0x2_0026, code];
    // SAFETY: the debugger reads the block; the call does not return.
    unsafe { asm!("hlt #0xf000", in("x0") 0x20_u64, in("x1") &raw const block, options(nostack)) };
    loop {
        core::hint::spin_loop();
    }
}

fn fail(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(Uart, "\npayload: {why}");
    exit(FAILURE)
}

#[unsafe(no_mangle)]
extern "C" fn payload_exception(syndrome: u64, address: u64, fault: u64) -> ! {
    fail(format_args!(
        "exception: ESR {syndrome:#x} at {address:#x}, FAR {fault:#x}"
    ))
}

/// The first PL011.
struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let data = core::ptr::with_exposed_provenance_mut::<u32>(0x0900_0000);
        for byte in text.bytes() {
            // SAFETY: the data register of `virt`'s first UART, which has no access to memory.
            unsafe { data.write_volatile(byte.into()) };
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
