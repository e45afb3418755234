//! The application: calls with MM played, then calls to the machine's own.

use crate::{played, real};
use core::fmt::Write as _;
use uefi_app::Firmware;
use uefi_app::console::Console;

uefi_app::application!(run);

/// `true` if MM responded.
fn run(firmware: Firmware) -> bool {
    log::set_max_level(log::LevelFilter::Off);
    played::run(firmware);
    let is_good = real::run(firmware);
    let _ = writeln!(Console, "DONE");
    is_good
}
