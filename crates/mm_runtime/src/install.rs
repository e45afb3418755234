//! Protocols, events, memory. An unsafe island (`docs/unsafe.md`): it calls the firmware.

use crate::driver::{Driver, Placed, Services, block_len};
use crate::protocols::{
    COMMUNICATION, COMMUNICATION2, COMMUNICATION3, VARIABLES_READABLE, VARIABLES_WRITABLE, guid,
};
use crate::{Configuration, Entry, Sink};
use core::ffi::c_void;
use core::ptr;
use mm_comm::ChannelError;
use mm_comm::c_request::status_for_c;
use mm_wire::PAGE_LEN;
use r_efi::efi;
use thiserror::Error;

/// Why the protocols are not installed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// Another driver has installed one of them.
    #[error("platform: another driver has installed an MM communication protocol")]
    AlreadyInstalled,
    /// The comm buffer is larger than this machine's memory.
    #[error("platform: the comm buffer has {0} bytes, which this processor cannot address twice")]
    TooLarge(u64),
    /// The memory cannot be a comm buffer.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A function of the firmware failed.
    #[error("firmware: {function} returned {status:?}")]
    Firmware {
        /// The function.
        function: &'static str,
        /// What it returned.
        status: efi::Status,
    },
    /// MM's variable service does not respond, so its markers are not installed. Not returned: it
    /// goes to the sink.
    #[error("platform: MM's variable service returned {0:?}, its markers are not installed")]
    NoVariables(efi::Status),
    /// The firmware does not publish its DXE services.
    #[error("platform: there are no DXE services, the page of SMI_EN at {0:#x} cannot be marked")]
    NoDxeServices(usize),
}

/// The error of a function of the firmware, if it failed.
fn check(function: &'static str, status: efi::Status) -> Result<(), InstallError> {
    match status {
        efi::Status::SUCCESS => Ok(()),
        status => Err(InstallError::Firmware { function, status }),
    }
}

/// Installs the three protocols, and what [`Configuration`] asks for. To be called once, from the
/// entry point of a runtime driver. If it fails, nothing is installed.
///
/// # Errors
///
/// [`InstallError`].
///
/// # Safety
///
/// - The running image is a runtime driver, `system_table` is what its entry point was called with,
///   and it is not unloaded later: the protocols live until the next reset.
/// - The comm buffer and the mailbox of `configuration` are as [`Configuration::buffer`] says.
/// - `entry` and `sink` hold no pointers that [`Entry::convert`] does not convert.
pub unsafe fn install<E: Entry, S: Sink>(
    system_table: *mut efi::SystemTable,
    configuration: &Configuration,
    entry: E,
    sink: S,
) -> Result<(), InstallError> {
    // SAFETY: the caller's promise. A copy, because the firmware may change the table.
    let system = unsafe { system_table.read() };
    let firmware = Firmware {
        boot: system.boot_services,
        tables: system.configuration_table,
        table_count: system.number_of_table_entries,
    };
    let guids = [COMMUNICATION, COMMUNICATION2, COMMUNICATION3];
    if guids.iter().any(|guid| firmware.has_protocol(*guid)) {
        return Err(InstallError::AlreadyInstalled);
    }
    let place = configuration.buffer;
    let len = block_len::<E, S>(place).ok_or(InstallError::TooLarge(place.region().len()))?;
    let pages = len.div_ceil(PAGE_LEN);
    let block = firmware.allocate(pages)?;
    let services = Services {
        boot: system.boot_services,
        runtime: system.runtime_services,
    };
    // SAFETY: the block was allocated for this; the rest is the caller's promise.
    let placed = unsafe { Driver::place(block, configuration, entry, sink, &services) };
    let placed = match placed {
        Ok(placed) => placed,
        Err(error) => {
            firmware.free(block, pages);
            return Err(error.into());
        }
    };
    let installed = firmware.install_all(&placed, configuration);
    if installed.is_err() {
        firmware.free(block, pages);
    }
    installed
}

/// A function of the firmware's boot services.
macro_rules! boot_service {
    ($firmware:ident.$function:ident) => {
        // SAFETY: the table that the entry point was given, while boot services last.
        unsafe { (*$firmware.boot).$function }
    };
}

/// The firmware's tables, while boot services last.
struct Firmware {
    boot: *mut efi::BootServices,
    tables: *mut efi::ConfigurationTable,
    table_count: usize,
}

impl Firmware {
    fn install_all<E: Entry, S: Sink>(
        &self,
        placed: &Placed<E, S>,
        configuration: &Configuration,
    ) -> Result<(), InstallError> {
        // SAFETY: made just now; it is freed only if this fails.
        let driver = unsafe { &*placed.block }.driver();
        if let Some(address) = driver.register().filter(|_| configuration.map_registers) {
            self.mark_runtime(address)?;
        }
        let context = placed.block.cast();
        let left = self.create_event(
            efi::EVT_SIGNAL_EXIT_BOOT_SERVICES,
            Driver::<E, S>::on_exit_boot_services,
            context,
        )?;
        let moved = self
            .create_event(
                efi::EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE,
                Driver::<E, S>::on_address_change,
                context,
            )
            .inspect_err(|_| self.close_event(left))?;
        let mut protocols = placed
            .interfaces
            .map(|(protocol, interface)| (guid(protocol), interface));
        let count = if configuration.protocol3 { 3 } else { 2 };
        let wanted = protocols.get_mut(..count).unwrap_or_default();
        self.install_protocols(wanted).inspect_err(|_| {
            self.close_event(moved);
            self.close_event(left);
        })?;
        if configuration.markers {
            self.mark_variables(driver);
        }
        Ok(())
    }

    /// Installs the markers, or logs why not. The protocols work in any case.
    fn mark_variables<E: Entry, S: Sink>(&self, driver: &Driver<E, S>) {
        let error = match driver.variable_payload_size() {
            Ok(1..) => {
                let null = ptr::null_mut();
                let mut markers = [(VARIABLES_READABLE, null), (VARIABLES_WRITABLE, null)];
                // Installed last: the driver that waits for the markers calls at once.
                let Err(error) = self.install_protocols(&mut markers) else {
                    return;
                };
                error
            }
            Ok(0) => InstallError::NoVariables(efi::Status::NOT_READY),
            Err(error) => InstallError::NoVariables(status_for_c(error)),
        };
        let line = format_args!("edk2's variable driver will wait for its markers for ever: {error}");
        driver.sink().error(line);
    }

    /// Installs protocols on one handle, or none of them.
    fn install_protocols(&self, protocols: &mut [(efi::Guid, *mut c_void)]) -> Result<(), InstallError> {
        let mut handle: efi::Handle = ptr::null_mut();
        for at in 0..protocols.len() {
            let (done, rest) = protocols.split_at_mut(at);
            let Some((guid, interface)) = rest.first_mut() else {
                break;
            };
            let install = boot_service!(self.install_protocol_interface);
            // SAFETY: a function of the firmware; the interface lives until the next reset.
            let status = unsafe { install(&raw mut handle, guid, efi::NATIVE_INTERFACE, *interface) };
            check("InstallProtocolInterface", status).inspect_err(|_| {
                for (guid, interface) in done.iter_mut().rev() {
                    let uninstall = boot_service!(self.uninstall_protocol_interface);
                    // SAFETY: a function of the firmware. If it fails, nothing can be done.
                    let _ = unsafe { uninstall(handle, guid, *interface) };
                }
            })?;
        }
        Ok(())
    }

    fn has_protocol(&self, mut guid: efi::Guid) -> bool {
        let mut interface = ptr::null_mut();
        let locate = boot_service!(self.locate_protocol);
        // SAFETY: a function of the firmware, with places to read from and to write to.
        let status = unsafe { locate(&raw mut guid, ptr::null_mut(), &raw mut interface) };
        status == efi::Status::SUCCESS
    }

    fn allocate(&self, pages: usize) -> Result<*mut c_void, InstallError> {
        let mut address: efi::PhysicalAddress = 0;
        let (allocate, kind) = (boot_service!(self.allocate_pages), efi::RUNTIME_SERVICES_DATA);
        // SAFETY: a function of the firmware, with a place to write to.
        let status = unsafe { allocate(efi::ALLOCATE_ANY_PAGES, kind, pages, &raw mut address) };
        check("AllocatePages", status)?;
        let address = usize::try_from(address).unwrap_or(0);
        let block = ptr::with_exposed_provenance_mut::<c_void>(address);
        if block.is_null() {
            let status = efi::Status::OUT_OF_RESOURCES;
            return Err(InstallError::Firmware {
                function: "AllocatePages",
                status,
            });
        }
        // SAFETY: allocated just now, with that many pages.
        unsafe { block.cast::<u8>().write_bytes(0, pages.saturating_mul(PAGE_LEN)) };
        Ok(block)
    }

    fn free(&self, block: *mut c_void, pages: usize) {
        let free = boot_service!(self.free_pages);
        // SAFETY: they were allocated by `allocate`, and nothing uses them. If it fails, they stay
        // allocated.
        let _ = unsafe { free(block.addr() as u64, pages) };
    }

    fn create_event(
        &self,
        kind: u32,
        function: efi::EventNotify,
        context: *mut c_void,
    ) -> Result<efi::Event, InstallError> {
        let mut event: efi::Event = ptr::null_mut();
        let create = boot_service!(self.create_event);
        // SAFETY: a function of the firmware; function and context are the driver's, which lives
        // until the next reset.
        let status = unsafe { create(kind, efi::TPL_NOTIFY, Some(function), context, &raw mut event) };
        check("CreateEvent", status)?;
        Ok(event)
    }

    fn close_event(&self, event: efi::Event) {
        let close = boot_service!(self.close_event);
        // SAFETY: created by `create_event`. If it fails, nothing can be done.
        let _ = unsafe { close(event) };
    }

    /// Adds EFI_MEMORY_RUNTIME to the page of a register, which is memory-mapped I/O to the
    /// firmware already.
    fn mark_runtime(&self, address: usize) -> Result<(), InstallError> {
        let services = (0..self.table_count)
            .map(|index| self.tables.wrapping_add(index))
            // SAFETY: the firmware keeps as many entries there as it says.
            .map(|entry| unsafe { entry.read() })
            .find(|entry| entry.vendor_guid == DXE_SERVICES)
            .map(|entry| entry.vendor_table.cast::<DxeServices>())
            .filter(|services| !services.is_null())
            .ok_or(InstallError::NoDxeServices(address))?;
        let page = (address as u64) & (PAGE_LEN as u64).wrapping_neg();
        let mut descriptor = MemorySpaceDescriptor::default();
        // SAFETY: the table with this GUID has this layout (PI 1.9, volume 2, 7.2).
        let get = unsafe { (*services).get_memory_space_descriptor };
        // SAFETY: a function of the firmware, with a descriptor to write to.
        let status = unsafe { get(page, &raw mut descriptor) };
        check("GetMemorySpaceDescriptor", status)?;
        if descriptor.attributes & efi::MEMORY_RUNTIME != 0 {
            return Ok(());
        }
        // SAFETY: the table with this GUID has this layout (PI 1.9, volume 2, 7.2).
        let set_capabilities = unsafe { (*services).set_memory_space_capabilities };
        let capabilities = descriptor.capabilities | efi::MEMORY_RUNTIME;
        if capabilities != descriptor.capabilities {
            // SAFETY: a function of the firmware.
            let status = unsafe { set_capabilities(page, PAGE_LEN as u64, capabilities) };
            check("SetMemorySpaceCapabilities", status)?;
        }
        // SAFETY: the table with this GUID has this layout (PI 1.9, volume 2, 7.2).
        let set_attributes = unsafe { (*services).set_memory_space_attributes };
        let attributes = descriptor.attributes | efi::MEMORY_RUNTIME;
        // SAFETY: a function of the firmware.
        check("SetMemorySpaceAttributes", unsafe {
            set_attributes(page, PAGE_LEN as u64, attributes)
        })
    }
}

/// `DXE_SERVICES_TABLE_GUID`.
const DXE_SERVICES: efi::Guid = efi::Guid::from_fields(
    0x05ad_34ba,
    0x6f02,
    0x4214,
    0x95,
    0x2e,
    &[0x4d, 0xa0, 0x39, 0x8e, 0x2b, 0xb9],
);

/// The DXE services table, as far as it is used (PI 1.9, volume 2, 3.3.1).
#[repr(C)]
struct DxeServices {
    header: efi::TableHeader,
    /// AddMemorySpace, AllocateMemorySpace, FreeMemorySpace, RemoveMemorySpace.
    others: [usize; 4],
    get_memory_space_descriptor: unsafe extern "efiapi" fn(u64, *mut MemorySpaceDescriptor) -> efi::Status,
    set_memory_space_attributes: unsafe extern "efiapi" fn(u64, u64, u64) -> efi::Status,
    /// GetMemorySpaceMap, then the same for I/O: Add, Allocate, Free, Remove, GetDescriptor,
    /// GetMap; then Dispatch, Schedule, Trust, ProcessFirmwareVolume.
    more: [usize; 11],
    set_memory_space_capabilities: unsafe extern "efiapi" fn(u64, u64, u64) -> efi::Status,
}

/// `EFI_GCD_MEMORY_SPACE_DESCRIPTOR`.
#[derive(Default)]
#[repr(C)]
struct MemorySpaceDescriptor {
    base: u64,
    len: u64,
    capabilities: u64,
    attributes: u64,
    memory_type: u32,
    image: usize,
    device: usize,
}
