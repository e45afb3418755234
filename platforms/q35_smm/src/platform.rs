//! What the machine is made of.

use crate::smm::{QuietSmis, SmmDispatch};
use ovmf_platform::{WritableImages, devices, timer};
#[cfg(not(feature = "own"))]
use patina_dxe_core::Config;
use patina_dxe_core::{Add, Component, ComponentInfo, CpuInfo};
#[cfg(not(feature = "own"))]
use patina_mm::{
    component::{protocols::FirmwareMmCommunication, sw_mmi_manager::SwMmiManager},
    config::{AcpiBase, MmCommunicationConfiguration, MmiPort},
};

static LOGGER: devices::Logger = devices::logger();

/// The comm buffer for messages to edk2's handlers.
#[cfg(not(feature = "own"))]
pub(crate) const BUFFER_ID: u8 = 0;
/// Its pages.
#[cfg(not(feature = "own"))]
const BUFFER_PAGES: usize = 16;

struct Q35Smm;

#[cfg(feature = "own")]
use crate::own::look_for_hobs;
/// The comm buffer of this platform does not come from HOBs.
#[cfg(not(feature = "own"))]
fn look_for_hobs(_: *const core::ffi::c_void) {}

#[cfg(feature = "own")]
impl ComponentInfo for Q35Smm {
    fn components(mut add: Add<'_, Component>) {
        add.component(WritableImages);
        add.component(ovmf_platform::FlashMapping);
        add.component(QuietSmis);
        add.component(SmmDispatch);
        crate::own::add_components(&mut add);
    }
}

#[cfg(not(feature = "own"))]
impl ComponentInfo for Q35Smm {
    fn configs(mut add: Add<'_, Config>) {
        add.config(MmCommunicationConfiguration {
            acpi_base: AcpiBase::Io(devices::PM_BASE),
            cmd_port: MmiPort::Smi(0xb2),
            data_port: MmiPort::Smi(0xb3),
            ..Default::default()
        });
    }

    fn components(mut add: Add<'_, Component>) {
        add.component(WritableImages);
        add.component(QuietSmis);
        add.component(SmmDispatch);
        add.component(SwMmiManager::new());
        add.component(FirmwareMmCommunication::new(BUFFER_ID, BUFFER_PAGES));
        #[cfg(feature = "conformance")]
        add.component(crate::self_test::SelfTest);
    }
}

impl CpuInfo for Q35Smm {
    // edk2's SMM CPU driver waits for the protocol; without it no SMM driver starts, and BDS has no
    // variables.
    const ENABLE_MP_SERVICES: bool = true;

    fn perf_timer_frequency() -> Option<u64> {
        timer::tsc_frequency()
    }
}

ovmf_platform::dxe_core! {
    platform: Q35Smm,
    logger: &LOGGER,
    before: look_for_hobs,
}
