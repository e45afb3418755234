//! The DXE services table, which Patina's components have no service for. An unsafe island (`docs/unsafe.md`).

use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};
use patina::pi::dxe_services::{DXE_SERVICES_TABLE_GUID, DxeServicesTable};

/// Finds the DXE core's own services.
///
/// # Errors
///
/// [`EfiError::NotFound`] if the core has not installed its table.
pub fn dxe_services(tables: &dyn ConfigurationTableServices) -> Result<&'static DxeServicesTable> {
    let table = tables
        .get_table(DXE_SERVICES_TABLE_GUID)
        .ok_or(EfiError::NotFound)?;
    let table = table.as_raw().cast::<DxeServicesTable>().cast_const();
    // SAFETY: the core installs its table, which it never frees or changes, before it dispatches a component, and
    // nothing on this platform replaces it. `DxeServicesTable` is the type that it was built from.
    Ok(unsafe { &*table })
}
