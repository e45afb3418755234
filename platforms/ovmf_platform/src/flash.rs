//! Maps the flash, for OVMF's variable store.

use crate::dxe_services::dxe_services;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};
use patina::pi::dxe_services::GcdMemoryType;
use patina::standard::efi;

/// Where the flash of a 4 MiB OVMF is (edk2 `OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc`).
const FLASH_BASE: u64 = 0xffc0_0000;
/// Its length in bytes.
const FLASH_LEN: u64 = 0x40_0000;

/// Tells the core about the flash, and makes the core map it.
///
/// OVMF's HOBs do not mention it, but its flash driver (edk2 `OvmfPkg/QemuFlashFvbServicesRuntimeDxe`) reads it before
/// it tells the core about it. Components run before drivers, so this comes in time.
#[derive(Clone, Copy, Debug)]
pub struct FlashMapping;

#[component]
impl FlashMapping {
    fn entry_point(self, tables: Service<dyn ConfigurationTableServices>) -> Result<()> {
        let services = dxe_services(&**tables)?;
        let capabilities = efi::MEMORY_UC | efi::MEMORY_RUNTIME;
        let add = services.add_memory_space;
        EfiError::status_to_result(add(
            GcdMemoryType::MemoryMappedIo,
            FLASH_BASE,
            FLASH_LEN,
            capabilities,
        ))?;
        let set_attributes = services.set_memory_space_attributes;
        EfiError::status_to_result(set_attributes(
            FLASH_BASE,
            FLASH_LEN,
            efi::MEMORY_UC | efi::MEMORY_XP,
        ))
    }
}
