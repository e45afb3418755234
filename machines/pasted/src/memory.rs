//! The service `dyn MemoryManager` over boot services. An unsafe island (`docs/unsafe.md`).

use core::alloc::Allocator;
use patina::component::service::IntoService;
use patina::component::service::memory::{
    AccessType, AllocationOptions, CachingType, MemoryError, MemoryManager, PageAllocation,
    PageAllocationStrategy,
};
use patina::uefi::boot_services::allocation::AllocType;
use patina::uefi::boot_services::{BootServices, StandardBootServices};
use patina::uefi::memory::EfiMemoryType;

/// Allocates pages. It has only the functions that components which talk to MM need.
#[derive(Clone, Copy, IntoService)]
#[service(dyn MemoryManager)]
pub(crate) struct BootMemory(pub(crate) &'static StandardBootServices);

impl MemoryManager for BootMemory {
    fn allocate_pages(
        &self,
        pages: usize,
        options: AllocationOptions,
    ) -> Result<PageAllocation, MemoryError> {
        let kind = match options.strategy() {
            PageAllocationStrategy::Any => AllocType::AnyPage,
            PageAllocationStrategy::Address(address) => AllocType::Address(address),
            PageAllocationStrategy::MaxAddress(address) => AllocType::MaxAddress(address),
        };
        let address = self
            .0
            .allocate_pages(kind, options.memory_type(), pages)
            .map_err(|_status| MemoryError::NoAvailableMemory)?;
        let manager = alloc::boxed::Box::leak(alloc::boxed::Box::new(*self));
        // SAFETY: the pages were allocated just now, and the firmware maps them writable.
        unsafe { PageAllocation::new(address, pages, manager) }
    }

    unsafe fn free_pages(&self, address: usize, pages: usize) -> Result<(), MemoryError> {
        // SAFETY: the caller's promise is the same.
        let freed = unsafe { self.0.free_pages(address, pages) };
        freed.map_err(|_status| MemoryError::InvalidAddress)
    }

    fn get_allocator(&self, _kind: EfiMemoryType) -> Result<&'static dyn Allocator, MemoryError> {
        Err(MemoryError::UnsupportedMemoryType)
    }

    unsafe fn set_page_attributes(
        &self,
        _address: usize,
        _pages: usize,
        _access: AccessType,
        _caching: Option<CachingType>,
    ) -> Result<(), MemoryError> {
        Err(MemoryError::UnsupportedAttributes)
    }

    fn get_page_attributes(
        &self,
        _address: usize,
        _pages: usize,
    ) -> Result<(AccessType, CachingType), MemoryError> {
        Err(MemoryError::UnsupportedAttributes)
    }
}
