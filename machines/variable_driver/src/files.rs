//! Files on the volume that a program was loaded from, and drivers in them. An unsafe island (`docs/unsafe.md`).

use crate::firmware::{Firmware, Handle, Result, check};
use core::ptr;
use mm_wire::PAGE_LEN;
use r_efi::efi;
use r_efi::protocols::{file, loaded_image, simple_file_system};

/// The most bytes that are read of a file.
const LARGEST: usize = 48 << 20;

/// A volume.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    firmware: Firmware,
    /// The device that it is on.
    pub device: Handle,
    root: *mut file::Protocol,
}

impl Volume {
    /// The volume that the running program was loaded from.
    ///
    /// # Errors
    ///
    /// The firmware's error.
    pub fn of_program(firmware: Firmware) -> Result<Self> {
        let device = device_of(firmware, firmware.image)?;
        let root = root_of(firmware, device)?;
        Ok(Self {
            firmware,
            device,
            root,
        })
    }

    /// Reads a file into pages that are never freed.
    ///
    /// # Errors
    ///
    /// The firmware's error: `NOT_FOUND`, if there is no such file.
    pub fn read(self, name: &str) -> Result<&'static mut [u8]> {
        read(self.firmware, self.root, name)
    }

    /// Starts the driver in a file; `false` if there is no such file.
    ///
    /// # Errors
    ///
    /// The error of the firmware, or of the driver.
    pub fn start_driver(self, name: &str) -> Result<bool> {
        let bytes = match self.read(name) {
            Err(efi::Status::NOT_FOUND) => return Ok(false),
            bytes => bytes?,
        };
        let image = self.firmware.load_image(bytes)?;
        self.firmware.start_image(image).map(|()| true)
    }
}

/// The device that an image was loaded from.
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
    // SAFETY: an open file.
    let get_position = unsafe { (*opened).get_position };
    // SAFETY: the protocol that the function belongs to. All ones is the end (UEFI 2.11, 13.5.10).
    check(unsafe { set_position(opened, u64::MAX) })?;
    let mut end = 0;
    // SAFETY: the protocol that the function belongs to, and a place to write to.
    check(unsafe { get_position(opened, &raw mut end) })?;
    // SAFETY: the protocol that the function belongs to.
    check(unsafe { set_position(opened, 0) })?;
    usize::try_from(end)
        .ok()
        .filter(|len| *len <= LARGEST)
        .ok_or(efi::Status::BAD_BUFFER_SIZE)
}
