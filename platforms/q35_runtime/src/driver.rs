//! The driver's entry point, and the facts about this machine. An unsafe island (`docs/unsafe.md`).

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use mm_comm::ports::NativePorts;
use mm_comm::{PortTrigger, Ports, SmiCheck, SmiEnableRegister};
use mm_runtime::hobs::{self, Source};
use mm_runtime::{Configuration, PortEntry, Sink, install};
use q35_mm::chipset::{COMMAND, COMMAND_PORT, DATA_PORT};
use q35_mm::handoff::RUNTIME_BUFFER_HOB;
use r_efi::efi;

/// Where OVMF has the ACPI registers in I/O space.
const PM_BASE: u16 = 0x600;

/// QEMU's debug console (`-debugcon`): a port that takes bytes at any time. Without the device,
/// writes to it do nothing.
const DEBUG_CONSOLE: u16 = 0x402;

/// The processor's ports.
fn ports() -> NativePorts {
    // SAFETY: a runtime driver runs in ring 0, at boot and when the operating system calls it. The
    // ports are those of MMIs, SMI_EN, and the debug console, which has no access to memory.
    unsafe { NativePorts::new() }
}

/// Text for the debug console, which works at any time.
struct DebugConsole;

impl Write for DebugConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let ports = ports();
        text.bytes().for_each(|byte| ports.write_u8(DEBUG_CONSOLE, byte));
        Ok(())
    }
}

/// Writes every line to the debug console.
struct Log;

impl Sink for Log {
    fn error(&self, line: fmt::Arguments<'_>) {
        // The port takes everything.
        let _ = writeln!(DebugConsole, "q35_runtime: {line}");
    }

    fn trace(&self, line: fmt::Arguments<'_>) {
        self.error(line);
    }

    fn note(&self, line: fmt::Arguments<'_>) {
        self.error(line);
    }
}

#[unsafe(export_name = "efi_main")]
unsafe extern "efiapi" fn efi_main(_: efi::Handle, system_table: *mut efi::SystemTable) -> efi::Status {
    // SAFETY: what this entry point was called with, before `ExitBootServices`.
    let place = match unsafe { hobs::find(system_table, Source::Buffer(RUNTIME_BUFFER_HOB)) } {
        Ok(place) => place,
        Err(error) => {
            Log.error(format_args!("{error}"));
            return efi::Status::NOT_FOUND;
        }
    };
    // MM has a variable service, whose driver waits for this.
    let configuration = Configuration::new(place).with_markers();
    let entry = PortEntry {
        ports: ports(),
        trigger: PortTrigger {
            command_port: COMMAND_PORT,
            data_port: DATA_PORT,
            smi_enable: SmiEnableRegister::behind_io_base(PM_BASE).ok(),
            check: SmiCheck::Require,
        },
        command: COMMAND,
        data: 0,
    };
    // SAFETY: this is a runtime driver, which is never unloaded. The HOB's memory was set aside for
    // it as RuntimeServicesData, and MM knows it. Neither entry nor sink has a pointer.
    match unsafe { install(system_table, &configuration, entry, Log) } {
        Ok(()) => efi::Status::SUCCESS,
        Err(error) => {
            Log.error(format_args!("{error}"));
            efi::Status::DEVICE_ERROR
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    Log.error(format_args!("{info}"));
    loop {
        core::hint::spin_loop();
    }
}
