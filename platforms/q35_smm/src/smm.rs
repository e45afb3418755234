//! What edk2's SMM drivers expect of a DXE core, and Patina's does not do.

mod control;

pub(crate) use control::QuietSmis;

use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt, Tpl};
use patina::error::Result;
use patina::standard::efi::protocols::loaded_image;

/// `gEfiEventDxeDispatchGuid` (PI 1.9, volume 2, 7.2.8): the DXE core has looked for drivers.
const DXE_DISPATCH: BinaryGuid = BinaryGuid::from_string("7081e22f-cac6-4053-9468-675782cf88e5");

/// Component: makes the SMM core look for SMM drivers.
///
/// edk2's DXE core signals the group after each round of its dispatcher, and the SMM IPL then sends
/// the SMM core to its drivers. Patina's core does not, so this component does, whenever an image
/// is loaded.
pub(crate) struct SmmDispatch;

#[component]
impl SmmDispatch {
    fn entry_point(
        self,
        protocols: Service<dyn ProtocolServices>,
        events: Service<dyn EventServices>,
    ) -> Result<()> {
        protocols.on_protocol_installed::<loaded_image::Protocol>(Tpl::Notify, move |_image| {
            if let Err(error) = events.signal_group(DXE_DISPATCH) {
                log::error!("the SMM core is not told about drivers: {error:?}");
            }
        })?;
        Ok(())
    }
}
