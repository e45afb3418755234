//! Functions whose machine code `cargo xtask asm` looks at.
//!
//! An MMI's handler changes memory behind the compiler's back, and a secure monitor call also
//! changes registers. Only the machine code shows whether the compiler has taken this into account,
//! so the functions are small enough to be read there. They are never run.
#![no_std]

#[cfg(all(target_arch = "x86_64", target_os = "uefi"))]
pub mod probes {
    //! The functions.

    use mm_comm::mailbox::Mailbox;
    use mm_comm::ports::NativePorts;
    use mm_comm::{PortTrigger, SharedRegion, SmiCheck};

    const TRIGGER: PortTrigger = PortTrigger {
        command_port: 0xb2,
        data_port: 0xb3,
        smi_enable: None,
        check: SmiCheck::Require,
    };

    /// Reads the mailbox and, if it announces a request, raises an MMI and reads the mailbox again:
    /// true if MM took the request. Without a request it returns early, so that only one path has
    /// port writes.
    #[unsafe(no_mangle)]
    pub fn probe_raise_then_load(ports: &NativePorts, mailbox: &Mailbox) -> bool {
        if !mailbox.is_pending() {
            return false;
        }
        TRIGGER.raise(ports, 0xff, 0x5a).is_ok() && !mailbox.is_pending()
    }

    /// Writes a byte of a message, then raises an MMI, then overwrites the byte.
    #[unsafe(no_mangle)]
    pub fn probe_store_then_raise(ports: &NativePorts, region: &SharedRegion) -> bool {
        region.write(0, &[0x41]) && TRIGGER.raise(ports, 0xff, 0x5a).is_ok() && region.write(0, &[0])
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {
            core::hint::spin_loop();
        }
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "uefi"))]
pub mod probes {
    //! The functions.

    use mm_comm::smc::{Call, Smc};

    /// Makes a secure monitor call, and uses neither memory nor floating point itself.
    #[unsafe(no_mangle)]
    pub fn probe_smc(function: u32) -> u64 {
        let [x0, ..] = Smc::call64(function, [0; 17]);
        x0
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {
            core::hint::spin_loop();
        }
    }
}
