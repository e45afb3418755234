//! Starts the drivers on the volume that it comes from, then Linux. An unsafe island (`docs/unsafe.md`).
//!
//! The files are beside it: `driver1.efi` and `driver2.efi`, if the flash image does not have them;
//! `vmlinuz`; `cmdline` has the kernel's command line in UTF-16.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod loader {
    use core::fmt::Write;
    use r_efi::efi;
    use r_efi::protocols::loaded_image;
    use variable_driver::files::Volume;
    use variable_driver::firmware::{Firmware, Result, check};

    variable_driver::wait_at_a_panic!();

    variable_driver::entry_point!(run);

    fn run(mut firmware: Firmware) -> Result<()> {
        boot_linux(firmware).map_err(|(what, status)| {
            // The line is lost if the console does not take it.
            let _ = writeln!(firmware, "linux_loader: {what}: {status:?}");
            status
        })
    }

    fn boot_linux(firmware: Firmware) -> core::result::Result<(), (&'static str, efi::Status)> {
        let volume = Volume::of_program(firmware).map_err(|status| ("the volume", status))?;
        // SAFETY: the firmware's table.
        let get_variable = || unsafe { (*firmware.runtime_services()).get_variable } as *const ();
        let firmwares_own = get_variable();
        // On x86 the flash image has the first one.
        for driver in ["driver1.efi", "driver2.efi"] {
            volume.start_driver(driver).map_err(|status| (driver, status))?;
        }
        if get_variable() == firmwares_own {
            return Err(("driver2.efi does not serve variables", efi::Status::NOT_STARTED));
        }
        write_variable(firmware).map_err(|status| ("SetVariable", status))?;
        let kernel = volume.read("vmlinuz").map_err(|status| ("vmlinuz", status))?;
        let line = volume.read("cmdline").map_err(|status| ("cmdline", status))?;
        let image = firmware
            .load_image(kernel)
            .map_err(|status| ("vmlinuz", status))?;
        let loaded = firmware
            .interface_on(image, loaded_image::PROTOCOL_GUID)
            .map_err(|status| ("vmlinuz", status))?
            .cast::<loaded_image::Protocol>();
        // SAFETY: the protocol of the image that was loaded just now. The kernel finds its initrd on this device.
        unsafe { (*loaded).device_handle = volume.device.as_raw() };
        // SAFETY: the same protocol. The line is never freed.
        unsafe { (*loaded).load_options = line.as_mut_ptr().cast() };
        // SAFETY: the same protocol.
        unsafe { (*loaded).load_options_size = u32::try_from(line.len()).unwrap_or(0) };
        firmware.start_image(image).map_err(|status| ("Linux", status))
    }

    /// Writes a variable for Linux to find, with the current SetVariable.
    fn write_variable(firmware: Firmware) -> Result<()> {
        /// Linux's own GUID, whose files any process may change.
        const VENDOR: efi::Guid = efi::Guid::from_fields(
            0xcfc8_fc79,
            0xbe2e,
            0x4ddc,
            0x97,
            0xf0,
            &[0x9f, 0x98, 0xbf, 0xe2, 0x98, 0xa0],
        );
        let mut name = [0_u16; 12];
        name.iter_mut()
            .zip("BeforeLinux".encode_utf16())
            .for_each(|(to, unit)| *to = unit);
        let (mut vendor, mut text) = (VENDOR, *b"loader");
        let runtime = firmware.runtime_services();
        // SAFETY: the firmware's table.
        let set = unsafe { (*runtime).set_variable };
        let attributes =
            efi::VARIABLE_NON_VOLATILE | efi::VARIABLE_BOOTSERVICE_ACCESS | efi::VARIABLE_RUNTIME_ACCESS;
        // SAFETY: a runtime service, with a name that ends in a NUL and as much data as is said.
        check(unsafe {
            set(
                name.as_mut_ptr(),
                &raw mut vendor,
                attributes,
                text.len(),
                text.as_mut_ptr().cast(),
            )
        })
    }
}

#[cfg(not(target_os = "uefi"))]
fn main() {
    variable_driver::main();
}
