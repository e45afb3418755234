//! Memory that MM uses or owns. An unsafe island (`docs/unsafe.md`).

use super::launcher::LaunchError;
use mm_comm::SharedRegion;
use mm_wire::PAGE_LEN;
use ovmf_platform::dxe_services;
use patina::component::service::memory::{AllocationOptions, MemoryManager, PageAllocationStrategy};
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};
use patina::standard::efi;
use patina::uefi::memory::EfiMemoryType;
use q35_mm::layout::{REACH, SMRAM_BASE, SMRAM_LEN};

/// Memory that MM reaches. A machine with more than 2 GiB of RAM has some above 4 GiB, which the
/// core gives out first.
pub(crate) fn within_reach() -> AllocationOptions {
    let last = usize::try_from(REACH).map_or(usize::MAX, |reach| reach.saturating_sub(1));
    AllocationOptions::new().with_strategy(PageAllocationStrategy::MaxAddress(last))
}

/// Allocates zeroed memory for a comm buffer, which the operating system leaves alone. Returns its
/// address.
pub(super) fn runtime_pages(memory: &dyn MemoryManager, pages: usize) -> Result<u64> {
    let options = within_reach().with_memory_type(EfiMemoryType::RuntimeServicesData);
    let pages = memory
        .allocate_zero_pages(pages, options)?
        .into_raw_ptr::<u8>()
        .ok_or(EfiError::OutOfResources)?;
    Ok(pages.expose_provenance() as u64)
}

/// Maps the compatible segment, and gives access to what the chipset puts there.
pub(crate) fn smram_window(tables: &dyn ConfigurationTableServices) -> Result<SharedRegion> {
    let set_attributes = dxe_services(tables)?.set_memory_space_attributes;
    let attributes = efi::MEMORY_UC | efi::MEMORY_XP;
    EfiError::status_to_result(set_attributes(SMRAM_BASE, SMRAM_LEN as u64, attributes))?;
    let start = usize::try_from(SMRAM_BASE).map_err(|_too_large| EfiError::Unsupported)?;
    let start = core::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the segment was mapped just now. What is there, SMRAM or the VGA's memory, belongs to
    // no Rust object on this side, and it is never unmapped.
    unsafe { SharedRegion::new(start, SMRAM_LEN) }.map_err(|error| {
        log::error!("{error}");
        EfiError::Unsupported
    })
}

/// The memory that the first SMI uses, allocated until this is dropped.
pub(super) struct FirstSmi {
    pages: SharedRegion,
    memory: &'static dyn MemoryManager,
}

impl FirstSmi {
    /// Where the first SMI's code is, 32 KiB behind the SMBASE that a reset sets.
    pub(super) const ENTRY: usize = 0x3_8000;
    const PAGES: usize = 8;

    /// Takes the pages; fails if they are in use.
    pub(super) fn take(memory: &'static dyn MemoryManager) -> core::result::Result<Self, LaunchError> {
        let options = AllocationOptions::new().with_strategy(PageAllocationStrategy::Address(Self::ENTRY));
        let taken = memory
            .allocate_zero_pages(Self::PAGES, options)
            .map_err(LaunchError::FirstSmiMemory)?;
        let start = taken.into_raw_ptr::<u8>().ok_or(LaunchError::Window)?;
        // SAFETY: allocated just now, and freed when this value is dropped.
        let pages = unsafe { SharedRegion::new(start, Self::PAGES * PAGE_LEN) };
        Ok(Self {
            pages: pages.map_err(|_null_or_wraps| LaunchError::Window)?,
            memory,
        })
    }

    pub(super) fn pages(&self) -> &SharedRegion {
        &self.pages
    }
}

impl Drop for FirstSmi {
    fn drop(&mut self) {
        // The save state has the registers of this program. It covers the pages, so this never fails.
        let _ = self.pages.wipe(0, self.pages.len());
        // SAFETY: allocated in `take`, with as many pages; `self.pages` is not used afterwards.
        if let Err(error) = unsafe { self.memory.free_pages(Self::ENTRY, Self::PAGES) } {
            log::warn!("the memory of the first SMI stays allocated: {error:?}");
        }
    }
}
