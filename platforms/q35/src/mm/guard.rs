//! Makes sure that SMRAM is locked on Q35 before any driver runs.

use crate::chipset::Q35Chipset;
use alloc::vec::Vec;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolServices, ProtocolServicesExt, Tpl,
};
use patina::error::Result;
use patina::standard::efi::protocols::loaded_image;
use q35_mm::chipset::{is_locked, lock_without_mm};

/// Component: locks SMRAM after the first driver is loaded and before it is started, if it is not
/// locked by then.
///
/// The launcher locks it, even if the launch fails. But the launcher does not run if a
/// HOB is missing or wrong, or if the configuration is never locked. This component depends only on
/// the core.
pub(crate) struct SmramGuard;

#[component]
impl SmramGuard {
    fn entry_point(self, protocols: Service<dyn ProtocolServices>) -> Result<()> {
        // The core has an image, too. If it is not found, it counts as a driver, and SMRAM is
        // locked too early: then there is no MM.
        let known: Vec<Handle> = protocols
            .locate_handles_for::<loaded_image::Protocol>()
            .unwrap_or_default();
        let mut looked = false;
        protocols
            .on_protocol_installed::<loaded_image::Protocol>(Tpl::Notify, move |image| {
                if !looked && !known.contains(&image) {
                    looked = true;
                    require_locked("before the first driver");
                }
            })
            .inspect_err(|_| require_locked("for want of a notification"))?;
        Ok(())
    }
}

fn require_locked(when: &str) {
    if is_locked(&Q35Chipset) {
        return;
    }
    match lock_without_mm(&Q35Chipset) {
        Ok(()) => log::error!("platform: MM was not launched; SMRAM is locked {when}, and SMIs are off"),
        Err(error) => log::error!("platform: MM was not launched, and {error}"),
    }
}
