//! The machine's I/O.
//!
//! A trait, so that a simulated machine can replace the processor's instructions. `NativePorts` has
//! those; it is an unsafe island (`docs/unsafe.md`).

/// Port and memory-mapped I/O of one processor.
pub trait Ports {
    /// Writes a byte to an I/O port.
    fn write_u8(&self, port: u16, value: u8);
    /// Reads 32 bits from an I/O port.
    fn read_u32(&self, port: u16) -> u32;
    /// Writes 32 bits to an I/O port.
    fn write_u32(&self, port: u16, value: u32);
    /// Reads 32 bits from a memory-mapped register.
    fn read_mmio_u32(&self, address: usize) -> u32;
    /// Writes 32 bits to a memory-mapped register.
    fn write_mmio_u32(&self, address: usize, value: u32);
    /// Gives the processor time to take a raised MMI. An MMI is not synchronous with the port write
    /// that raises it: QEMU's TCG takes it at the end of the translation block, which `pause` ends.
    fn pause(&self);
}

#[cfg(all(target_arch = "x86_64", any(target_os = "uefi", target_os = "none")))]
pub use native::NativePorts;

#[cfg(all(target_arch = "x86_64", any(target_os = "uefi", target_os = "none")))]
mod native {
    use super::Ports;
    use core::arch::asm;

    /// The instructions of the processor that runs this code.
    ///
    /// The crate `x86_64` has the same instructions, but declares its port writes `nomem`: the
    /// compiler may then keep what it read from shared memory before the write. Here every access
    /// is a full barrier for the compiler.
    #[derive(Debug)]
    pub struct NativePorts(());

    impl NativePorts {
        /// Takes the processor's ports.
        ///
        /// # Safety
        ///
        /// 1. The code runs at a privilege level that may execute `in` and `out`.
        /// 2. Callers of this value's functions pass only ports and addresses of registers whose
        ///    access cannot break memory safety: those that raise and enable MMIs, PCI
        ///    configuration space. Addresses are aligned to 4 bytes.
        #[must_use]
        pub const unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Ports for NativePorts {
        fn write_u8(&self, port: u16, value: u8) {
            // SAFETY: `new`'s caller promised privilege and ports. No `nomem`: code in MM writes
            // memory of this program.
            unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
        }

        fn read_u32(&self, port: u16) -> u32 {
            let value: u32;
            // SAFETY: `new`'s caller promised privilege and ports.
            unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
            value
        }

        fn write_u32(&self, port: u16, value: u32) {
            // SAFETY: `new`'s caller promised privilege and ports.
            unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
        }

        fn read_mmio_u32(&self, address: usize) -> u32 {
            let register = core::ptr::with_exposed_provenance::<u32>(address);
            // SAFETY: `new`'s caller promised that this is an aligned register, outside of Rust's
            // memory.
            unsafe { register.read_volatile() }
        }

        fn write_mmio_u32(&self, address: usize, value: u32) {
            let register = core::ptr::with_exposed_provenance_mut::<u32>(address);
            // SAFETY: `new`'s caller promised that this is an aligned register, outside of Rust's
            // memory.
            unsafe { register.write_volatile(value) };
        }

        fn pause(&self) {
            core::hint::spin_loop();
        }
    }
}
