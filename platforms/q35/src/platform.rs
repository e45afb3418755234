//! What the machine is made of.

use crate::example::ExampleComponent;
use crate::mm::{COMMAND, MmLaunch, SmramGuard, comm_buffer_hobs};
use core::ffi::c_void;
use log::LevelFilter;
use ovmf_platform::{FlashMapping, WritableImages, devices, timer};
use patina::UefiSpecVersion;
use patina_dxe_core::{Add, Component, ComponentInfo, Config, Core, CpuInfo, MemoryInfo, PlatformInfo};
use patina_ffs_extractors::NullSectionExtractor;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::MmCommunicationOptions;

#[cfg(not(feature = "conformance"))]
static LOGGER: devices::Logger = devices::logger();
#[cfg(feature = "conformance")]
static LOGGER: mm_conformance::recorder::Recorder<devices::Logger> =
    mm_conformance::recorder::Recorder::over(devices::logger());

/// Its volumes are decompressed by OVMF's PEI phase, so no section is left to extract.
static CORE: Core<Q35> = Core::new(NullSectionExtractor);

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

impl MemoryInfo for Q35 {}

impl CpuInfo for Q35 {
    fn perf_timer_frequency() -> Option<u64> {
        timer::tsc_frequency()
    }
}

impl PlatformInfo for Q35 {
    type ComponentInfo = Self;
    type CpuInfo = Self;
    type Extractor = NullSectionExtractor;
    type MemoryInfo = Self;

    const UEFI_SPEC_VERSION: UefiSpecVersion = UefiSpecVersion::V2_7;
}

#[unsafe(export_name = "efi_main")]
extern "efiapi" fn efi_main(hob_list: *const c_void) -> ! {
    // It fails only if a logger is installed already, and this is the first code that runs.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
    // SAFETY: the PEI phase called this entry point with its HOB list, and the core gets it only
    // afterwards.
    unsafe { comm_buffer_hobs::add(hob_list) };
    CORE.entry_point(hob_list)
}
