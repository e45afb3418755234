//! The platform.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use patina::component::{Component, IntoComponent, Storage, component};
use uefi_app::Firmware;
use uefi_app::protocols::BootProtocols;

#[cfg(feature = "ours")]
use patina_mm as mm;
#[cfg(all(feature = "published", not(feature = "ours")))]
use patina_mm_published as mm;

/// Component: the one consumer.
struct Consumer;

#[cfg(any(feature = "ours", feature = "published"))]
mod with_mm {
    use super::*;
    #[cfg(feature = "fixed")]
    use mm::component::communicator::FixedMmCommunicator as MmCommunicator;
    use mm::component::communicator::MmCommunication;
    #[cfg(not(feature = "fixed"))]
    use mm::component::communicator::MmCommunicator;
    use mm::component::sw_mmi_manager::SwMmiManager;
    use mm::config::{AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmiPort};
    use patina::component::service::Service;
    use patina::error::{EfiError, Result};

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

    #[component]
    impl Consumer {
        fn entry_point(self, mm: Service<dyn MmCommunication>) -> Result<()> {
            match mm.communicate(0, b"a message", RECIPIENT.as_guid()) {
                Ok(response) => {
                    log::info!("{} bytes", response.len());
                    Ok(())
                }
                Err(_status) => Err(EfiError::Aborted),
            }
        }
    }

    pub(super) fn add(storage: &mut Storage, components: &mut Vec<Box<dyn Component>>) {
        // SAFETY: this program is weighed and never run.
        let buffer =
            unsafe { CommunicateBuffer::from_firmware_region(0x7f00_0000, 0x8_0000, 0, Some(0x7f08_0000)) };
        storage.add_config(MmCommunicationConfiguration {
            acpi_base: AcpiBase::Io(0x600),
            cmd_port: MmiPort::Smi(0xb2),
            data_port: MmiPort::Smi(0xb3),
            comm_buffers: buffer.into_iter().collect(),
            enable_comm_buffer_updates: cfg!(not(feature = "fixed")),
            updatable_buffer_id: (!cfg!(feature = "fixed")).then_some(0),
        });
        components.push(SwMmiManager::new().into_component());
        components.push(MmCommunicator::new().into_component());
    }
}

#[cfg(not(any(feature = "ours", feature = "published")))]
mod with_mm {
    use super::*;
    use patina::component::params::Config;

    #[component]
    impl Consumer {
        fn entry_point(self, number: Config<u32>) -> patina::error::Result<()> {
            log::info!("{} bytes", *number);
            Ok(())
        }
    }

    pub(super) fn add(storage: &mut Storage, _: &mut Vec<Box<dyn Component>>) {
        storage.add_config(1_u32);
    }
}

uefi_app::application!(run);

fn run(firmware: Firmware) -> bool {
    let mut storage = Storage::new();
    let mut waiting = Vec::new();
    storage.add_service(BootProtocols::new(firmware.boot()));
    with_mm::add(&mut storage, &mut waiting);
    waiting.push(Consumer.into_component());
    waiting.retain_mut(|component| component.initialize(&mut storage));
    storage.lock_configs();
    let mut ran_all = true;
    for _ in 0..3 {
        for mut component in core::mem::take(&mut waiting) {
            match component.run(&mut storage) {
                Ok(true) => {}
                Ok(false) => waiting.push(component),
                Err(error) => {
                    log::error!("{error:?}");
                    ran_all = false;
                }
            }
        }
    }
    ran_all
}
