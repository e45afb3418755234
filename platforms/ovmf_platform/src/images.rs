//! Maps OVMF's drivers as they were built to be mapped. An unsafe island (`docs/unsafe.md`).

use crate::dxe_services::dxe_services;
use object::LittleEndian as LE;
use object::read::pe::PeFile64;
use patina::UEFI_PAGE_SIZE;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolServices, ProtocolServicesExt, Tpl,
};
use patina::error::{EfiError, Result};
use patina::pi::dxe_services::DxeServicesTable;
use patina::pi::protocol::firmware_volume;
use patina::standard::efi::{self, protocols::loaded_image};

/// Maps the images that `ovmf_image` flattened writable and executable.
///
/// Code and data share pages there, under one section at address 0, which Patina maps read-only and executable. The
/// core installs an image's LoadedImage protocol when it has protected it, and before it starts it: that is when this
/// gives the image its pages back.
///
/// Only images from a firmware volume get them: an image from a disk, a network or an option ROM
/// stays as Patina protects it, even if its sections look flattened. The boot manager starts
/// applications from the volume until late, so this component stays active.
#[derive(Clone, Copy, Debug)]
pub struct WritableImages;

#[component]
impl WritableImages {
    fn entry_point(
        self,
        protocols: Service<dyn ProtocolServices>,
        tables: Service<dyn ConfigurationTableServices>,
    ) -> Result<()> {
        let services = dxe_services(&**tables)?;
        protocols.on_protocol_installed::<loaded_image::Protocol>(Tpl::Notify, move |image| {
            if let Err(error) = make_writable(&**protocols, services, image) {
                log::error!("image {image:?} cannot be made writable: {error}");
            }
        })?;
        Ok(())
    }
}

fn make_writable(protocols: &dyn ProtocolServices, services: &DxeServicesTable, image: Handle) -> Result<()> {
    let found = protocols.with_protocol_on::<loaded_image::Protocol, _>(image, |image| {
        let base = image.image_base.cast::<u8>().cast_const();
        (Handle::from_raw(image.device_handle), base, image.image_size)
    });
    let (device, base, len) = found?;
    let is_volume = |device| {
        protocols
            .interface_on_handle(device, firmware_volume::PROTOCOL_GUID)
            .is_ok()
    };
    if device.is_some_and(is_volume) && is_flattened(base, len) {
        let set_attributes = services.set_memory_space_attributes;
        EfiError::status_to_result(set_attributes(base.addr() as u64, len, efi::MEMORY_WB))?;
    }
    Ok(())
}

/// Whether the image's first section covers its headers. No linker makes such an image.
fn is_flattened(base: *const u8, len: u64) -> bool {
    if base.is_null() || len < UEFI_PAGE_SIZE as u64 {
        return false;
    }
    // SAFETY: the core keeps `len` bytes at `base` for this image, which are at least a page, and
    // mapped the page readable. Nothing writes it while the slice lives: the caller runs when the
    // protocol is installed, before the image is started; the only image that runs by then is the
    // core itself, whose sections start behind its first page.
    let headers = unsafe { core::slice::from_raw_parts(base, UEFI_PAGE_SIZE) };
    let Ok(pe) = PeFile64::parse(headers) else {
        return false;
    };
    pe.section_table()
        .iter()
        .next()
        .is_some_and(|section| section.virtual_address.get(LE) == 0)
}
