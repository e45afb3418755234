//! The entry point. An unsafe island (`docs/unsafe.md`).

use crate::{played, real};
use core::fmt::Write as _;
use patina::standard::efi;
use uefi_app::Firmware;
use uefi_app::console::Console;

#[unsafe(export_name = "efi_main")]
extern "efiapi" fn efi_main(image: efi::Handle, system_table: *mut efi::SystemTable) -> efi::Status {
    // SAFETY: the firmware calls its entry point with these arguments; nothing here leaves boot services.
    let firmware = unsafe { Firmware::new(image, system_table) };
    log::set_max_level(log::LevelFilter::Off);
    played::run(firmware);
    let is_good = real::run(firmware);
    let _ = writeln!(Console, "DONE");
    uefi_app::firmware::exit(is_good)
}
