//! From reset to the non-secure world, and from its calls back. An unsafe island (`docs/unsafe.md`).
//!
//! The target has no floating point registers: those of the non-secure world stay as they are while
//! the monitor runs, unless it has to change them.

use crate::stage2;
use aarch64_monitor::layout::{DEVICE_TREE, MODE_WORD, PAYLOAD, RAM, SECURE_RAM, SHARED};
use aarch64_monitor::mm::Mm;
use aarch64_monitor::{Effect, Mode, World, device_tree};
use core::arch::{asm, global_asm};
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use linked_list_allocator::LockedHeap;
use mm_comm::SharedRegion;
use mm_core::handlers::VariableStore;
use mm_wire::{AddressRange, Header};

global_asm!(include_str!("el3.s"));

unsafe extern "C" {
    /// Enters the non-secure world at `entry`, in the state `spsr`; calls of it come to `lower_el`
    /// with `world`.
    fn enter_non_secure(entry: u64, spsr: u64, world: *mut c_void) -> !;
    /// Gives all vector registers other values.
    fn spoil_vectors();
}

/// EL1 with its own stack pointer, interrupts masked.
const SPSR_EL1H: u64 = 0x3c5;
/// The exception class of an SMC from AArch64 code.
const SMC64: u64 = 0x17;
/// The largest comm buffer and the variables, as the simulated machine has them.
const SCRATCH_LEN: usize = 0x8_0000;
const VARIABLES_LEN: usize = 0x1_0000;
const MAX_VARIABLE_LEN: usize = 0x2000;

/// The bytes that QEMU reserves for its device tree (`FDT_MAX_SIZE`), and of the memory in which it
/// is changed.
const TREE_LEN: usize = 0x10_0000;
const HEAP_LEN: usize = 0x10_0000;

static mut SCRATCH: [u8; SCRATCH_LEN] = [0; SCRATCH_LEN];
static mut TREE: [u8; TREE_LEN] = [0; TREE_LEN];
static mut HEAP_MEMORY: [u8; HEAP_LEN] = [0; HEAP_LEN];

/// For the device tree alone; no request allocates.
#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();
static mut VARIABLES: [u8; VARIABLES_LEN] = [0; VARIABLES_LEN];

/// The exit code of QEMU, the same as an `isa-debug-exit` device makes of 0x11. Success is for the
/// payload to report.
const FAILURE: u64 = 35;

/// Called by the reset vector, once.
#[unsafe(no_mangle)]
extern "C" fn monitor_main() -> ! {
    let word = ram_word(MODE_WORD);
    let Some(mode) = Mode::of_word(word) else {
        fail(format_args!(
            "the word at {MODE_WORD:#x} is {word:#x}, which is not a mode"
        ));
    };
    let (scratch, variables) = (&raw mut SCRATCH, &raw mut VARIABLES);
    // SAFETY: a static, aligned and initialised. This function runs once, and nothing else names it.
    let scratch = unsafe { &mut *scratch };
    // SAFETY: another such static.
    let variables = unsafe { &mut *variables };
    let entry = if mode.uefi {
        let (heap, tree) = (&raw mut HEAP_MEMORY, &raw mut TREE);
        // SAFETY: a static that is used for nothing else; done once, before anything is allocated.
        unsafe { HEAP.lock().init(heap.cast(), HEAP_LEN) };
        // SAFETY: a static, aligned and initialised. This function runs once, and nothing else
        // names it.
        let tree = unsafe { &mut *tree };
        if let Err(error) = device_tree::prepare(&ram(), DEVICE_TREE, tree) {
            fail(format_args!("the device tree: {error:?}"));
        }
        stage2::enable(&ram());
        0
    } else {
        PAYLOAD
    };
    let variables = VariableStore::new(variables, MAX_VARIABLE_LEN);
    let mut world = World::new(mode, Mm::new(ram(), SHARED, SECURE_RAM, scratch, variables));
    non_secure_interrupts();
    // SAFETY: the loader put a program at the entry. The world stays on this stack, which is never
    // left: the non-secure world's calls find it through the pointer, one at a time.
    unsafe { enter_non_secure(entry, SPSR_EL1H, (&raw mut world).cast()) };
}

/// All non-secure RAM.
fn ram() -> SharedRegion {
    let base = core::ptr::with_exposed_provenance_mut(0x4000_0000);
    // SAFETY: QEMU has RAM there with `-m 1024`, none of which is the monitor's own: its data is in
    // secure RAM.
    match unsafe { SharedRegion::new(base, 0x4000_0000) } {
        Ok(ram) => ram,
        Err(error) => fail(format_args!("{error}")),
    }
}

fn ram_word(address: u64) -> u32 {
    let mut bytes = [0; 4];
    let offset = usize::try_from(address.saturating_sub(RAM.start())).unwrap_or(usize::MAX);
    if !ram().read(offset, &mut bytes) {
        fail(format_args!("{address:#x} is not in RAM"));
    }
    u32::from_le_bytes(bytes)
}

/// Serves an exception of a lower exception level. Called by the vector with the registers x0 to
/// x30 on the stack.
#[unsafe(no_mangle)]
extern "C" fn lower_el(frame: &mut [u64; 32], world: &mut World<'static>, syndrome: u64, address: u64) {
    if syndrome >> 26 & 0x3f != SMC64 {
        fail(format_args!(
            "exception of the non-secure world: ESR {syndrome:#x} at {address:#x}"
        ));
    }
    let Some(registers) = frame.first_chunk_mut() else {
        return;
    };
    let before = world.shown();
    let effect = world.call(registers);
    show(before, world.shown());
    match effect {
        Effect::Return => {}
        // SAFETY: changes registers that no compiled code of this program uses. The non-secure
        // world expects it of this call.
        Effect::ReturnWithOtherVectors => unsafe { spoil_vectors() },
        Effect::PowerOff => fail(format_args!(
            "the non-secure world ended the machine by PSCI, at {address:#x}"
        )),
    }
}

type Shown = Option<(u64, Option<(AddressRange, Header)>)>;

/// Prints what MM did, in a demo.
fn show(before: Shown, after: Shown) {
    let (Some((before, _)), Some((requests, Some((buffer, header))))) = (before, after) else {
        return;
    };
    if requests != before {
        let (bytes, recipient) = (header.total_len(), header.recipient());
        let at = buffer.start();
        let _ = writeln!(
            Uart,
            "monitor: EL3: MM, in the secure world, took request {requests}: {bytes} bytes for {recipient} at {at:#x}\r"
        );
    }
}

/// An exception at EL3 itself is the monitor's fault.
#[unsafe(no_mangle)]
extern "C" fn own_exception(syndrome: u64, address: u64) -> ! {
    fail(format_args!(
        "exception at EL3: ESR {syndrome:#x} at {address:#x}"
    ))
}

/// Gives all interrupts to the non-secure world (GICv2).
fn non_secure_interrupts() {
    const IGROUPR: usize = 0x0800_0080;
    const GICC_PMR: usize = 0x0801_0004;
    for register in 0..32_usize {
        write_device(IGROUPR.saturating_add(register.saturating_mul(4)), u32::MAX);
    }
    write_device(GICC_PMR, 0xff);
}

fn write_device(address: usize, value: u32) {
    // SAFETY: the callers name registers of the GIC and the UART that `virt` has, which have no
    // access to memory.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) };
}

/// Ends QEMU (semihosting SYS_EXIT_EXTENDED), and says why.
fn fail(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(Uart, "\nmonitor: {why}");
    let block = [0x2_0026, FAILURE];
    // SAFETY: the debugger reads the block; the call does not return.
    unsafe { asm!("hlt #0xf000", in("x0") 0x20_u64, in("x1") &raw const block, options(nostack)) };
    loop {
        core::hint::spin_loop();
    }
}

/// The first PL011.
struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            write_device(0x0900_0000, byte.into());
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
