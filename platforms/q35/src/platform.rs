//! What the machine is made of.

use crate::example::ExampleComponent;
use crate::mm::{COMMAND, MmLaunch, SmramGuard, comm_buffer_hobs};
#[cfg(feature = "conformance")]
use mm_conformance::recorder::Recorder;
use ovmf_platform::{FlashMapping, WritableImages, devices, timer};
use patina_dxe_core::{Add, Component, ComponentInfo, Config, CpuInfo};
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::MmCommunicationOptions;

#[cfg(not(feature = "conformance"))]
static LOGGER: devices::Logger = devices::logger();
#[cfg(feature = "conformance")]
static LOGGER: Recorder<devices::Logger> = Recorder::over(devices::logger());

struct Q35;

/// There are no `services` to add: the only one, `PlatformMmControl`, needs other services, and
/// comes from [`MmLaunch`].
impl ComponentInfo for Q35 {
    fn configs(mut add: Add<'_, Config>) {
        // `MmHobConfiguration` fills in the rest.
        add.config(MmCommunicationOptions {
            command_value: COMMAND,
            ..MmCommunicationOptions::DEFAULT
        });
    }

    fn components(mut add: Add<'_, Component>) {
        add.component(SmramGuard);
        add.component(FlashMapping);
        add.component(WritableImages);
        add.component(MmLaunch);
        add.component(
            MmHobConfiguration::new()
                .with_acpi_base(AcpiBaseSource::Ich9)
                // This platform made the HOBs itself, and OVMF without SMM has no driver for MM.
                .with_exclusive_buffers()
                .with_updatable_buffer(0),
        );
        add.component(SwMmiManager::new().after_platform_control());
        add.component(MmCommunicator::new());
        // If the runtime driver is in the image, drivers in C call that one.
        #[cfg(not(feature = "runtime_driver"))]
        add.component(patina_mm::component::protocols::MmCommunicationProducer::new(1));
        add.component(ExampleComponent);
        #[cfg(feature = "conformance")]
        add.component(crate::self_test::SelfTest);
    }
}

impl CpuInfo for Q35 {
    fn perf_timer_frequency() -> Option<u64> {
        timer::tsc_frequency()
    }
}

ovmf_platform::dxe_core! {
    platform: Q35,
    logger: &LOGGER,
    before: |hob_list| {
        // SAFETY: the PEI phase called the entry point with its HOB list, and the core gets it only
        // afterwards.
        unsafe { comm_buffer_hobs::add(hob_list) };
    },
}
