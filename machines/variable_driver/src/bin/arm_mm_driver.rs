//! A runtime driver that enters MM by secure monitor calls. An unsafe island (`docs/unsafe.md`).
#![cfg_attr(all(target_os = "uefi", target_arch = "aarch64"), no_std, no_main)]
#![cfg_attr(all(target_os = "uefi", not(target_arch = "aarch64")), no_std, no_main)]

#[cfg(all(target_os = "uefi", target_arch = "aarch64"))]
mod driver {
    use mm_comm::SharedRegion;
    use mm_comm::smc::{self, Call, Smc};
    use mm_runtime::{Configuration, SecureEntry, Silent, install};
    use mm_wire::PAGE_LEN;
    use mm_wire::hob::CommBufferPlace;
    use r_efi::efi;
    use variable_driver::firmware::{Firmware, Result, check};
    use variable_driver::{SET_BUFFER, SHARED, SHARED_PAGES as PAGES};

    variable_driver::entry_point!(run);

    fn run(firmware: Firmware) -> Result<()> {
        firmware.allocate(efi::RUNTIME_SERVICES_DATA, PAGES, Some(SHARED))?;
        let len = PAGES.saturating_mul(PAGE_LEN) as u64;
        // The monitor's own call, by which this machine's MM learns of a comm buffer.
        let mut arguments = [0; 17];
        arguments[..3].copy_from_slice(&[0, SHARED, len]);
        let [refused, ..] = Smc::call64(SET_BUFFER, arguments);
        if refused != 0 {
            return Err(efi::Status::ACCESS_DENIED);
        }
        let mut rx_tx = || {
            let pages = firmware.allocate(efi::RUNTIME_SERVICES_DATA, 2, None).ok()?;
            // SAFETY: allocated just now, never freed.
            unsafe { SharedRegion::new(pages, 2_usize.saturating_mul(PAGE_LEN)) }.ok()
        };
        let connection = smc::connect::<Smc>(smc::Setup::default(), &mut rx_tx)
            .map_err(|error| status(error.status().0))?;
        let place = CommBufferPlace::new(SHARED, PAGES as u64, None)
            .map_err(|_not_page_aligned| efi::Status::INVALID_PARAMETER)?;
        let configuration = Configuration::new(place);
        let entry = SecureEntry::new(connection);
        // SAFETY: this is a runtime driver, which is never unloaded. The comm buffer was allocated just now, as
        // RuntimeServicesData. Neither entry nor sink has a pointer.
        unsafe { install(firmware.system, &configuration, entry, Silent) }
            .map_err(|_error| efi::Status::DEVICE_ERROR)?;
        check(efi::Status::SUCCESS)
    }

    fn status(value: u64) -> efi::Status {
        usize::try_from(value).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
    }
}

#[cfg(target_os = "uefi")]
variable_driver::wait_at_a_panic!();

/// There are no secure monitor calls here.
#[cfg(all(target_os = "uefi", not(target_arch = "aarch64")))]
mod driver {
    use r_efi::efi;
    use variable_driver::firmware::{Firmware, Result};

    variable_driver::entry_point!(run);

    fn run(_: Firmware) -> Result<()> {
        Err(efi::Status::UNSUPPORTED)
    }
}

#[cfg(not(target_os = "uefi"))]
fn main() {
    variable_driver::main();
}
