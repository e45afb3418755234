//! Starts the drivers on the volume that it comes from, then Linux. An unsafe island (`docs/unsafe.md`).
//!
//! The files are beside it: `driver1.efi`, `driver2.efi`, `vmlinuz`; `cmdline` has the kernel's command line in UTF-16.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod loader {
    use core::fmt::Write;
    use core::ptr;
    use mm_wire::PAGE_LEN;
    use r_efi::efi;
    use r_efi::protocols::{file, loaded_image, simple_file_system};
    use variable_driver::firmware::{Firmware, Handle, Result, check};

    /// The most that is read of a file.
    const LARGEST: usize = 48 << 20;

    #[unsafe(export_name = "efi_main")]
    unsafe extern "efiapi" fn efi_main(image: efi::Handle, system: *mut efi::SystemTable) -> efi::Status {
        // SAFETY: what this entry point was called with.
        let mut firmware = unsafe { Firmware::new(image, system) };
        match run(firmware) {
            Ok(()) => efi::Status::SUCCESS,
            Err((what, status)) => {
                // What the console does not take is lost.
                let _ = writeln!(firmware, "linux_loader: {what}: {status:?}");
                status
            }
        }
    }

    fn run(firmware: Firmware) -> core::result::Result<(), (&'static str, efi::Status)> {
        let device = device_of(firmware, firmware.image).map_err(|status| ("the volume", status))?;
        let root = root_of(firmware, device).map_err(|status| ("the file system", status))?;
        for driver in ["driver1.efi", "driver2.efi"] {
            let bytes = read(firmware, root, driver).map_err(|status| (driver, status))?;
            let image = firmware.load_image(bytes).map_err(|status| (driver, status))?;
            firmware.start_image(image).map_err(|status| (driver, status))?;
        }
        write_variable(firmware).map_err(|status| ("SetVariable", status))?;
        let kernel = read(firmware, root, "vmlinuz").map_err(|status| ("vmlinuz", status))?;
        let line = read(firmware, root, "cmdline").map_err(|status| ("cmdline", status))?;
        let image = firmware
            .load_image(kernel)
            .map_err(|status| ("vmlinuz", status))?;
        let loaded = firmware
            .interface_on(image, loaded_image::PROTOCOL_GUID)
            .map_err(|status| ("vmlinuz", status))?
            .cast::<loaded_image::Protocol>();
        // SAFETY: the protocol of the image that was loaded just now. The kernel finds its initrd on this device.
        unsafe { (*loaded).device_handle = device.as_raw() };
        // SAFETY: as above; the line is never freed.
        unsafe { (*loaded).load_options = line.as_mut_ptr().cast() };
        // SAFETY: as above.
        unsafe { (*loaded).load_options_size = u32::try_from(line.len()).unwrap_or(0) };
        firmware.start_image(image).map_err(|status| ("Linux", status))
    }

    /// Writes a variable for Linux to find, through whatever serves SetVariable now.
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

    fn device_of(firmware: Firmware, image: Handle) -> Result<Handle> {
        let loaded = firmware
            .interface_on(image, loaded_image::PROTOCOL_GUID)?
            .cast::<loaded_image::Protocol>();
        // SAFETY: the protocol of this image.
        let device = unsafe { (*loaded).device_handle };
        // SAFETY: the firmware's own, and the volume stays.
        Ok(unsafe { Handle::new(device) })
    }

    fn root_of(firmware: Firmware, device: Handle) -> Result<*mut file::Protocol> {
        let volume = firmware
            .interface_on(device, simple_file_system::PROTOCOL_GUID)?
            .cast::<simple_file_system::Protocol>();
        // SAFETY: the protocol of a volume that stays.
        let open = unsafe { (*volume).open_volume };
        let mut root = ptr::null_mut();
        // SAFETY: the protocol that the function belongs to, and a place to write to.
        check(unsafe { open(volume, &raw mut root) })?;
        Ok(root)
    }

    /// Reads a file into pages that are never freed.
    fn read(firmware: Firmware, root: *mut file::Protocol, name: &str) -> Result<&'static mut [u8]> {
        let mut path = [0_u16; 32];
        path.iter_mut()
            .take(31)
            .zip(name.encode_utf16())
            .for_each(|(to, unit)| *to = unit);
        // SAFETY: an open directory.
        let open = unsafe { (*root).open };
        let mut opened = ptr::null_mut();
        // SAFETY: the protocol that the function belongs to, a path that ends in a NUL, and a place to write to.
        check(unsafe { open(root, &raw mut opened, path.as_mut_ptr(), file::MODE_READ, 0) })?;
        let len = length(opened)?;
        let pages = len.div_ceil(PAGE_LEN).max(1);
        let start = firmware.allocate(efi::LOADER_DATA, pages, None)?;
        // SAFETY: an open file.
        let read = unsafe { (*opened).read };
        let mut size = len;
        // SAFETY: the protocol that the function belongs to, and memory for `size` bytes.
        check(unsafe { read(opened, &raw mut size, start.cast()) })?;
        // SAFETY: allocated above, never freed, and used only here.
        Ok(unsafe { core::slice::from_raw_parts_mut(start, size) })
    }

    /// A file's length: the position at its end.
    fn length(opened: *mut file::Protocol) -> Result<usize> {
        // SAFETY: an open file.
        let set_position = unsafe { (*opened).set_position };
        // SAFETY: as above.
        let get_position = unsafe { (*opened).get_position };
        // SAFETY: the protocol that the function belongs to. All ones is the end (UEFI 2.11, 13.5.10).
        check(unsafe { set_position(opened, u64::MAX) })?;
        let mut end = 0;
        // SAFETY: as above, with a place to write to.
        check(unsafe { get_position(opened, &raw mut end) })?;
        // SAFETY: as above.
        check(unsafe { set_position(opened, 0) })?;
        usize::try_from(end)
            .ok()
            .filter(|len| *len <= LARGEST)
            .ok_or(efi::Status::BAD_BUFFER_SIZE)
    }
}

#[cfg(not(target_os = "uefi"))]
fn main() {
    variable_driver::main();
}
