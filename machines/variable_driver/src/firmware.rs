//! The firmware's tables, while boot services last. An unsafe island (`docs/unsafe.md`).

use core::ffi::c_void;
use core::fmt::{self, Write};
use core::ptr;
use mm_wire::PAGE_LEN;
use r_efi::efi;

/// A status that is an error, or nothing.
pub type Result<T> = core::result::Result<T, efi::Status>;

/// A status as a result.
///
/// # Errors
///
/// The status, if it is not success.
pub fn check(status: efi::Status) -> Result<()> {
    match status {
        efi::Status::SUCCESS => Ok(()),
        error => Err(error),
    }
}

/// A handle of the firmware.
#[derive(Clone, Copy, Debug)]
pub struct Handle(efi::Handle);

impl Handle {
    /// A handle that the firmware gave.
    ///
    /// # Safety
    ///
    /// The firmware gave this handle, and keeps it valid.
    #[must_use]
    pub const unsafe fn new(handle: efi::Handle) -> Self {
        Self(handle)
    }

    /// The handle in the firmware's type.
    #[must_use]
    pub const fn as_raw(self) -> efi::Handle {
        self.0
    }
}

/// What an entry point was called with.
///
/// Invariant: both are the firmware's, and boot services last.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    /// The running image.
    pub image: Handle,
    /// The system table.
    pub system: *mut efi::SystemTable,
}

/// The entry point of a program. `$run` is a function that gets the [`Firmware`] and returns a [`Result`].
#[macro_export]
macro_rules! entry_point {
    ($run:path) => {
        #[unsafe(export_name = "efi_main")]
        unsafe extern "efiapi" fn efi_main(
            image: ::r_efi::efi::Handle,
            system: *mut ::r_efi::efi::SystemTable,
        ) -> ::r_efi::efi::Status {
            // SAFETY: what this entry point was called with.
            let firmware = unsafe { $crate::firmware::Firmware::new(image, system) };
            match $run(firmware) {
                Ok(()) => ::r_efi::efi::Status::SUCCESS,
                Err(status) => status,
            }
        }
    };
}

/// A function of the firmware's boot services.
macro_rules! boot {
    ($firmware:expr, $function:ident) => {{
        let services = $firmware.boot_services();
        // SAFETY: the firmware's table, by the type's invariant.
        unsafe { (*services).$function }
    }};
}

impl Firmware {
    /// Takes over what an entry point was called with.
    ///
    /// # Safety
    ///
    /// Both are those arguments, and boot services last while the value is used.
    #[must_use]
    pub const unsafe fn new(image: efi::Handle, system: *mut efi::SystemTable) -> Self {
        let image = Handle(image);
        Self { image, system }
    }

    /// The boot services.
    #[must_use]
    pub fn boot_services(self) -> *mut efi::BootServices {
        // SAFETY: the firmware's table, by the type's invariant.
        unsafe { (*self.system).boot_services }
    }

    /// The runtime services.
    #[must_use]
    pub fn runtime_services(self) -> *mut efi::RuntimeServices {
        // SAFETY: the firmware's table, by the type's invariant.
        unsafe { (*self.system).runtime_services }
    }

    /// Takes pages of a memory type, at an address if one is given.
    ///
    /// # Errors
    ///
    /// The error of AllocatePages.
    pub fn allocate(self, kind: efi::MemoryType, pages: usize, at: Option<u64>) -> Result<*mut u8> {
        let allocate = boot!(self, allocate_pages);
        let (how, mut address) = match at {
            Some(address) => (efi::ALLOCATE_ADDRESS, address),
            None => (efi::ALLOCATE_ANY_PAGES, 0),
        };
        // SAFETY: a function of the firmware, with a place to write to.
        check(unsafe { allocate(how, kind, pages, &raw mut address) })?;
        let address = usize::try_from(address).map_err(|_too_large| efi::Status::OUT_OF_RESOURCES)?;
        let start = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: allocated just now, with that many pages.
        unsafe { start.write_bytes(0, pages.saturating_mul(PAGE_LEN)) };
        Ok(start)
    }

    /// The interface of a protocol.
    ///
    /// # Errors
    ///
    /// The error of LocateProtocol.
    pub fn locate(self, mut guid: efi::Guid) -> Result<*mut c_void> {
        let locate = boot!(self, locate_protocol);
        let mut interface = ptr::null_mut();
        // SAFETY: a function of the firmware, with places to read from and to write to.
        check(unsafe { locate(&raw mut guid, ptr::null_mut(), &raw mut interface) })?;
        Ok(interface)
    }

    /// The interface of a protocol on a handle.
    ///
    /// # Errors
    ///
    /// The error of HandleProtocol.
    pub fn interface_on(self, handle: Handle, mut guid: efi::Guid) -> Result<*mut c_void> {
        let handle_protocol = boot!(self, handle_protocol);
        let mut interface = ptr::null_mut();
        // SAFETY: a function of the firmware, with places to read from and to write to.
        check(unsafe { handle_protocol(handle.0, &raw mut guid, &raw mut interface) })?;
        Ok(interface)
    }

    /// Calls a function at an event: when boot services end, or when addresses change.
    ///
    /// # Errors
    ///
    /// The error of CreateEvent.
    pub fn on_event(self, kind: u32, function: efi::EventNotify) -> Result<()> {
        let create = boot!(self, create_event);
        let mut event: efi::Event = ptr::null_mut();
        // SAFETY: a function of the firmware; the notified function is a runtime driver's.
        check(unsafe {
            create(
                kind,
                efi::TPL_NOTIFY,
                Some(function),
                ptr::null_mut(),
                &raw mut event,
            )
        })
    }

    /// Loads an image from memory.
    ///
    /// # Errors
    ///
    /// The error of LoadImage.
    pub fn load_image(self, bytes: &mut [u8]) -> Result<Handle> {
        let load = boot!(self, load_image);
        let mut handle = ptr::null_mut();
        // SAFETY: a function of the firmware, with an image to read and a place to write to.
        check(unsafe {
            load(
                efi::Boolean::FALSE,
                self.image.0,
                ptr::null_mut(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                &raw mut handle,
            )
        })?;
        Ok(Handle(handle))
    }

    /// Starts an image.
    ///
    /// # Errors
    ///
    /// The error of the image, or of StartImage.
    pub fn start_image(self, image: Handle) -> Result<()> {
        let start = boot!(self, start_image);
        // SAFETY: a function of the firmware, with an image that it loaded.
        check(unsafe { start(image.0, ptr::null_mut(), ptr::null_mut()) })
    }

    /// Computes the checksum of the runtime services' table anew.
    ///
    /// # Errors
    ///
    /// The error of CalculateCrc32.
    pub fn renew_checksum(self) -> Result<()> {
        let calculate = boot!(self, calculate_crc32);
        let table: *mut efi::TableHeader = self.runtime_services().cast();
        // SAFETY: a table of the firmware.
        let len = unsafe { (*table).header_size };
        // SAFETY: the same table. The checksum is computed with this field zero.
        unsafe { (*table).crc32 = 0 };
        let mut sum = 0;
        let len = usize::try_from(len).unwrap_or(0);
        // SAFETY: the table has that many bytes.
        check(unsafe { calculate(table.cast(), len, &raw mut sum) })?;
        // SAFETY: the same table.
        unsafe { (*table).crc32 = sum };
        Ok(())
    }
}

impl Write for Firmware {
    /// To the firmware's console.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: the firmware's table, by the type's invariant.
        let console = unsafe { (*self.system).con_out };
        if console.is_null() {
            return Err(fmt::Error);
        }
        // SAFETY: a protocol of the firmware.
        let output = unsafe { (*console).output_string };
        for unit in text.encode_utf16() {
            let mut units = [unit, 0, 0];
            if unit == 0x0a {
                units = [0x0d, 0x0a, 0];
            }
            // SAFETY: the protocol that the function belongs to, with a string that ends.
            let _ = unsafe { output(console, units.as_mut_ptr()) };
        }
        Ok(())
    }
}
