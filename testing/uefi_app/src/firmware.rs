//! The arguments of a UEFI application, and its runtime: allocator, panic handler, end. An unsafe
//! island (`docs/unsafe.md`).

use crate::console::{self, Console};
use crate::devices;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use patina::BinaryGuid;
use patina::UEFI_PAGE_SIZE;
use patina::error::EfiError;
use patina::standard::efi;
use patina::standard::efi::protocols::{file, loaded_image, simple_file_system};
use patina::uefi::boot_services::allocation::AllocType;
use patina::uefi::boot_services::global_allocator::BootServicesGlobalAllocator;
use patina::uefi::boot_services::protocol_handler::HandleSearchType;
use patina::uefi::boot_services::{BootServices, StandardBootServices};
use patina::uefi::memory::EfiMemoryType;
use patina::uefi::runtime_services::StandardRuntimeServices;
use patina::{Char16Array, Char16Str, Char16String, protocol::ProtocolInterface, string::ucs2_capacity};

static BOOT: StandardBootServices = StandardBootServices::new_uninit();
static RUNTIME: StandardRuntimeServices = StandardRuntimeServices::new_uninit();
/// What `BOOT` has, which does not show it.
static TABLE: AtomicPtr<efi::BootServices> = AtomicPtr::new(ptr::null_mut());

#[global_allocator]
static ALLOCATOR: BootServicesGlobalAllocator<StandardBootServices> = BootServicesGlobalAllocator(&BOOT);

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    // If the port was taken during the panic, it stays taken, and this line is lost; the exit value
    // is not.
    let _ = writeln!(Console, "PANIC {info}");
    exit(false)
}

/// Ends the machine. QEMU's process status is 33 for success, 35 otherwise.
///
/// On a machine without QEMU's exit device the power goes off.
pub fn exit(success: bool) -> ! {
    devices::end_run(if success {
        devices::SUCCESS
    } else {
        devices::FAILURE
    });
    if RUNTIME.is_init() {
        let table = RUNTIME.as_mut_ptr();
        // SAFETY: `Firmware::new` took the pointer from the system table, where it stays until the
        // end of the boot.
        let reset = unsafe { (*table).reset_system };
        // SAFETY: a reset without data, which UEFI 2.11, 8.5.1 allows at any time.
        unsafe { reset(efi::RESET_SHUTDOWN, efi::Status::SUCCESS, 0, ptr::null_mut()) };
    }
    loop {
        core::hint::spin_loop();
    }
}

/// The entry point of an application. `$run` is a function that gets the [`Firmware`] and returns
/// whether all went well. `$before` runs before that, for instance to install another logger.
#[macro_export]
macro_rules! application {
    ($run:path) => {
        $crate::application!($run, || {});
    };
    ($run:path, $before:expr) => {
        #[unsafe(export_name = "efi_main")]
        extern "efiapi" fn efi_main(
            image: $crate::efi::Handle,
            system_table: *mut $crate::efi::SystemTable,
        ) -> $crate::efi::Status {
            ($before)();
            // SAFETY: the firmware called this entry point with these arguments; nothing here
            // leaves boot services.
            let firmware = unsafe { $crate::Firmware::new(image, system_table) };
            $crate::firmware::exit($run(firmware))
        }
    };
}

const MODE_FILE: Char16Array<{ ucs2_capacity(MODE_PATH) }> = Char16Array::from_str(MODE_PATH);
const MODE_PATH: &str = "\\EFI\\BOOT\\MODE.TXT";

/// A loaded image, as its LoadedImage protocol describes it.
#[derive(Clone, Copy, Debug)]
pub struct LoadedImage {
    /// The image's handle.
    pub handle: efi::Handle,
    /// The handle of the device that it was loaded from; null if it was not loaded from a device.
    pub device: efi::Handle,
    /// Its first address.
    pub base: usize,
    /// Its bytes in memory.
    pub len: usize,
}

impl LoadedImage {
    /// Whether an address lies in the image.
    #[must_use]
    pub fn contains(&self, address: usize) -> bool {
        address
            .checked_sub(self.base)
            .is_some_and(|offset| offset < self.len)
    }
}

/// The tables that the firmware handed to the application.
///
/// Invariant: `system_table` is the firmware's system table, and boot services have not been left.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    image: efi::Handle,
    system_table: *mut efi::SystemTable,
}

impl Firmware {
    /// Takes over what the entry point was called with; the allocator works from here on.
    ///
    /// # Safety
    ///
    /// `image` and `system_table` are the arguments of the running application's entry point, and
    /// `ExitBootServices` is not called while the application runs.
    #[must_use]
    pub unsafe fn new(image: efi::Handle, system_table: *mut efi::SystemTable) -> Self {
        // SAFETY: the firmware hands a valid system table to an entry point.
        let boot = unsafe { (*system_table).boot_services };
        // SAFETY: the same system table.
        let runtime = unsafe { (*system_table).runtime_services };
        TABLE.store(boot, Ordering::Relaxed);
        BOOT.init(boot);
        RUNTIME.init(runtime);
        console::log_to_serial(log::LevelFilter::Info);
        Self { image, system_table }
    }

    /// The boot services.
    #[must_use]
    pub fn boot(&self) -> &'static StandardBootServices {
        &BOOT
    }

    /// The runtime services.
    #[must_use]
    pub fn runtime(&self) -> &'static StandardRuntimeServices {
        &RUNTIME
    }

    /// The handle of the running application.
    #[must_use]
    pub fn image(&self) -> efi::Handle {
        self.image
    }

    /// The address of a configuration table (UEFI 2.11, 4.6), for instance of the HOB list.
    #[must_use]
    pub fn configuration_table(&self, guid: &BinaryGuid) -> Option<*mut c_void> {
        // SAFETY: valid by the type's invariant. A copy, since the firmware changes the table as it
        // likes.
        let table = unsafe { self.system_table.read() };
        (0..table.number_of_table_entries)
            .map(|index| table.configuration_table.wrapping_add(index))
            // SAFETY: the firmware keeps as many entries there as it says.
            .map(|entry| unsafe { entry.read() })
            .find(|entry| *guid == entry.vendor_guid)
            .map(|entry| entry.vendor_table)
    }

    /// Takes pages of runtime services data, the memory type that MM accepts comm buffers in.
    ///
    /// # Errors
    ///
    /// The error of `AllocatePages`.
    pub fn allocate_runtime_pages(&self, pages: usize) -> Result<*mut u8, EfiError> {
        let address = BOOT.allocate_pages(AllocType::AnyPage, EfiMemoryType::RuntimeServicesData, pages)?;
        Ok(ptr::with_exposed_provenance_mut(address))
    }

    /// Every loaded image.
    ///
    /// # Errors
    ///
    /// The error of boot services.
    pub fn loaded_images(&self) -> Result<Vec<LoadedImage>, EfiError> {
        let search = HandleSearchType::ByProtocol(&loaded_image::PROTOCOL_GUID);
        let handles = BOOT.locate_handle_buffer(search)?;
        handles.iter().map(|handle| loaded_image(*handle)).collect()
    }

    /// What the application is to do, in the file `\EFI\BOOT\MODE.TXT` on its volume; empty without the file.
    #[must_use]
    pub fn mode(&self) -> Vec<u8> {
        self.read_file(&MODE_FILE).unwrap_or_default()
    }

    /// The bytes of a file on the volume that the application was loaded from.
    fn read_file(&self, path: &Char16Str) -> Result<Vec<u8>, EfiError> {
        let device = loaded_image(self.image)?.device;
        let volume = interface::<simple_file_system::Protocol>(device)?;
        // SAFETY: the interface is installed, and the volume that this application runs from is not
        // removed.
        let open_volume = unsafe { (*volume).open_volume };
        let mut root = ptr::null_mut();
        // SAFETY: `volume` is the interface that the function belongs to, `root` takes one pointer.
        EfiError::status_to_result(unsafe { open_volume(volume, &raw mut root) })?;
        File(root).open(path)?.read()
    }
}

/// How many bytes the firmware has left. `None` if it does not tell.
///
/// The SDK's `get_memory_map` takes descriptors to be as long as its own type. edk2's are longer.
#[must_use]
pub fn free_memory() -> Option<u64> {
    const WORD: usize = size_of::<u64>();
    let table = TABLE.load(Ordering::Relaxed);
    if table.is_null() {
        return None;
    }
    // SAFETY: `Firmware::new` took the pointer from the system table, where it stays until the end of the boot.
    let get = unsafe { (*table).get_memory_map };
    let mut words = alloc::vec![0_u64; 0x2000];
    let (mut size, mut key, mut stride, mut version) = (words.len().saturating_mul(WORD), 0, 0_usize, 0);
    // SAFETY: `words` has `size` bytes, and the others take what the function returns.
    let status = unsafe {
        get(
            &raw mut size,
            words.as_mut_ptr().cast(),
            &raw mut key,
            &raw mut stride,
            &raw mut version,
        )
    };
    let descriptors = words
        .get(..size.checked_div(WORD)?)?
        .chunks_exact(stride.checked_div(WORD)?.max(5));
    // Type and padding, physical and virtual address, pages, attributes (UEFI 2.11, 7.2.3).
    let free = descriptors.filter_map(|descriptor| match *descriptor {
        [kind, _, _, pages, ..] if kind & 0xffff_ffff == efi::CONVENTIONAL_MEMORY.into() => Some(pages),
        _ => None,
    });
    let pages = free.fold(0_u64, u64::saturating_add);
    (status == efi::Status::SUCCESS)
        .then(|| pages.checked_mul(UEFI_PAGE_SIZE as u64))
        .flatten()
}

/// The name and vendor of the variable that follows a given one; `None` behind the last. The empty
/// name starts.
///
/// The SDK's `get_next_variable_name` passes the name's room in characters, but the firmware counts
/// bytes (UEFI 2.11, 8.2.2), and edk2 returns `EFI_INVALID_PARAMETER`.
///
/// # Errors
///
/// The error of the variable service, and [`EfiError::ProtocolError`] if its response is not a
/// name.
pub fn next_variable(
    name: &Char16Str,
    vendor: &efi::Guid,
) -> Result<Option<(Char16String, efi::Guid)>, EfiError> {
    let table = RUNTIME.as_mut_ptr();
    // SAFETY: `Firmware::new` took the pointer from the system table, where it stays until the end
    // of the boot.
    let get_next = unsafe { (*table).get_next_variable_name };
    let mut units = name.as_units_with_nul().to_vec();
    let mut vendor = *vendor;
    loop {
        let mut size = units.len().saturating_mul(size_of::<u16>());
        // SAFETY: `units` has `size` bytes and ends with a NUL, as `name` does or `resize` below
        // has made it.
        let status = unsafe { get_next(&raw mut size, units.as_mut_ptr(), &raw mut vendor) };
        let needed = size.div_ceil(size_of::<u16>());
        match status {
            efi::Status::BUFFER_TOO_SMALL if needed > units.len() => units.resize(needed, 0),
            efi::Status::NOT_FOUND => return Ok(None),
            status => {
                EfiError::status_to_result(status)?;
                let name =
                    Char16Str::from_units_until_nul(&units).map_err(|_no_name| EfiError::ProtocolError)?;
                return Ok(Some((name.into(), vendor)));
            }
        }
    }
}

fn loaded_image(handle: efi::Handle) -> Result<LoadedImage, EfiError> {
    let protocol = interface::<loaded_image::Protocol>(handle)?;
    // SAFETY: the interface was found on the handle just now, and nothing unloads an image in
    // between. A copy, since the firmware owns the original.
    let image = unsafe { protocol.read() };
    Ok(LoadedImage {
        handle,
        device: image.device_handle,
        base: image.image_base.addr(),
        len: usize::try_from(image.image_size).unwrap_or(usize::MAX),
    })
}

/// The interface of protocol `P` on a handle, never null.
fn interface<P: ProtocolInterface>(handle: efi::Handle) -> Result<*mut P, EfiError> {
    // SAFETY: the response has the type that belongs to the GUID, by the contract of
    // `ProtocolInterface`.
    let interface = unsafe { BOOT.handle_protocol_unchecked(handle, &P::PROTOCOL_GUID) }?;
    if interface.is_null() {
        return Err(EfiError::NotFound);
    }
    Ok(interface.cast())
}

/// An open file. Invariant: the pointer is from a file system's open call and was not closed.
struct File(*mut file::Protocol);

impl File {
    fn open(&self, path: &Char16Str) -> Result<Self, EfiError> {
        // SAFETY: open by the type's invariant.
        let open = unsafe { (*self.0).open };
        let mut file = ptr::null_mut();
        // SAFETY: `self.0` is the interface that the function belongs to, `file` takes one pointer,
        // and the path ends with its NUL; the file system does not write to it.
        let status = unsafe {
            open(
                self.0,
                &raw mut file,
                path.as_ptr().cast_mut(),
                file::MODE_READ,
                0,
            )
        };
        EfiError::status_to_result(status).map(|()| Self(file))
    }

    fn read(&self) -> Result<Vec<u8>, EfiError> {
        // SAFETY: open by the type's invariant.
        let read = unsafe { (*self.0).read };
        let mut content = Vec::new();
        loop {
            let mut chunk = [0_u8; 512];
            let mut len = chunk.len();
            // SAFETY: `self.0` is the interface that the function belongs to, and `chunk` has `len`
            // bytes.
            let status = unsafe { read(self.0, &raw mut len, chunk.as_mut_ptr().cast()) };
            EfiError::status_to_result(status)?;
            match chunk.get(..len) {
                Some([]) | None => return Ok(content),
                Some(bytes) => content.extend_from_slice(bytes),
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: open by the type's invariant.
        let close = unsafe { (*self.0).close };
        // SAFETY: the same open file; nothing uses the pointer afterwards. The status is always
        // success (UEFI 2.11, 13.5.3).
        let _ = unsafe { close(self.0) };
    }
}
