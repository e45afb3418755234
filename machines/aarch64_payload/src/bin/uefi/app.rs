//! The entry point of the UEFI application. An unsafe island (`docs/unsafe.md`).

extern crate alloc;

use aarch64_monitor::Mode;
use aarch64_monitor::layout::{MODE, SHARED};
use aarch64_payload::Place;
use core::fmt::{self, Write};
use mm_comm::SharedRegion;
use mm_comm::smc::{Call, Smc};
use mm_conformance::report::Report;
use mm_wire::PAGE_LEN;
use patina::uefi::boot_services::BootServices;
use patina::uefi::boot_services::allocation::AllocType;
use patina::uefi::memory::EfiMemoryType;
use uefi_app::Firmware;
use uefi_app::console::Console;
use uefi_app::protocols::BootProtocols;

// Before `Firmware::new` installs another logger.
uefi_app::application!(run, mm_conformance::recorder::install);

/// `true` if everything went as it should.
fn run(firmware: Firmware) -> bool {
    let Some(mode) = mode() else {
        print(format_args!("the monitor does not respond"));
        return false;
    };
    let Some(shared) = reserve_shared(firmware) else {
        return false;
    };
    let protocols: &'static BootProtocols =
        alloc::boxed::Box::leak(alloc::boxed::Box::new(BootProtocols::new(firmware.boot())));
    let (base, len) = (shared.as_ptr(), shared.len());
    let place = Place {
        interface: mode.interface,
        // SAFETY: the reserved pages, as in `reserve_shared`.
        shared: &move || unsafe { SharedRegion::new(base, len) }.ok(),
        protocols: Some(protocols),
        vectors: None,
    };
    if mode.demo {
        let name = "on Debian's UEFI for AArch64: in the secure world runs mm_core";
        let told = aarch64_payload::demo::<Smc>(&place, name, &mut print);
        if let Err(why) = &told {
            print(format_args!("error: {why}"));
        }
        return told.is_ok();
    }
    let mut report = Report::new(Console);
    if mode.soak {
        return aarch64_payload::soak::<Smc>(&place, &mut report, &uefi_app::firmware::free_memory);
    }
    aarch64_payload::run::<Smc>(&place, &mut report)
}

/// Asks the monitor, because the firmware may have overwritten the loader's word.
fn mode() -> Option<Mode> {
    let [word, ..] = Smc::call64(MODE, [0; 17]);
    Mode::of_word(u32::try_from(word).ok()?)
}

/// Allocates the platform's shared region, as a platform's own driver would.
fn reserve_shared(firmware: Firmware) -> Option<SharedRegion> {
    let start = usize::try_from(SHARED.start()).ok()?;
    let len = usize::try_from(SHARED.len()).ok()?;
    let pages = len.checked_div(PAGE_LEN)?;
    let allocated = firmware.boot().allocate_pages(
        AllocType::Address(start),
        EfiMemoryType::RuntimeServicesData,
        pages,
    );
    match allocated {
        Ok(address) => {
            // SAFETY: pages that the firmware has just given away, mapped one to one; they are
            // never freed, and reached with volatile accesses only.
            unsafe { SharedRegion::new(core::ptr::with_exposed_provenance_mut(address), len) }.ok()
        }
        Err(status) => {
            print(format_args!("the shared region at {SHARED} is taken: {status:?}"));
            None
        }
    }
}

fn print(line: fmt::Arguments<'_>) {
    // Only a notification in the middle of a line finds the port taken; the transcript then lacks
    // that line.
    let _ = writeln!(Console, "{line}");
}
