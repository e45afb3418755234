//! What the drivers and the loader have in common: the few boot services that they call, files, and
//! their panic handler.
//!
//! | program | what it is |
//! |---|---|
//! | `arm_mm_driver` | a runtime driver over `mm_runtime` that enters MM by secure monitor calls |
//! | `variable_driver` | a runtime driver that answers GetVariable, SetVariable, GetNextVariableName and QueryVariableInfo by messages to MM's variable service, through whatever driver offers PI's protocol 2. edk2's is `VariableSmmRuntimeDxe`, of which Debian has no build for AArch64 |
//! | `linux_loader` | an application that starts both, and then Linux |
//!
//! `machines/exit_boot_services` starts the two drivers as well.
//!
//! Test machinery: none of it ships.
#![cfg_attr(target_os = "uefi", no_std)]
#![cfg_attr(target_os = "uefi", deny(clippy::arithmetic_side_effects))]

#[cfg(target_os = "uefi")]
pub mod files;
#[cfg(target_os = "uefi")]
pub mod firmware;

/// Makes a panic wait for the deadline of the run: a runtime driver has no way to report it.
#[macro_export]
macro_rules! wait_at_a_panic {
    () => {
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {
                core::hint::spin_loop();
            }
        }
    };
}

/// The start of the memory that machine `aarch64` shares with MM (`machines/aarch64_monitor/src/layout.rs`).
pub const SHARED: u64 = 0x5000_0000;

/// Pages of the comm buffer of `arm_mm_driver`, at the start of it.
pub const SHARED_PAGES: usize = 4;

/// The monitor's own call that names a comm buffer.
pub const SET_BUFFER: u32 = 0xc300_0001;

/// The text of a build for the host.
#[cfg(not(target_os = "uefi"))]
pub fn main() {
    eprintln!("this is a program for UEFI; `cargo xtask test --machine linux` builds and boots it");
    std::process::exit(2);
}

#[cfg(test)]
mod tests {
    use aarch64_monitor::layout;

    #[test]
    fn monitor_means_the_same() {
        assert_eq!(super::SHARED, layout::SHARED.start());
        assert_eq!(super::SET_BUFFER, layout::SET_BUFFER);
    }
}
