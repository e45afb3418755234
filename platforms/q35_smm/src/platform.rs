//! What the machine is made of.

use crate::smm::{QuietSmis, SmmDispatch};
use core::ffi::c_void;
use log::LevelFilter;
use ovmf_platform::{WritableImages, devices, timer};
use patina::UefiSpecVersion;
#[cfg(not(feature = "own"))]
use patina_dxe_core::Config;
use patina_dxe_core::{Add, Component, ComponentInfo, Core, CpuInfo, MemoryInfo, PlatformInfo};
use patina_ffs_extractors::NullSectionExtractor;
#[cfg(not(feature = "own"))]
use patina_mm::{
    component::{protocols::FirmwareMmCommunication, sw_mmi_manager::SwMmiManager},
    config::{AcpiBase, MmCommunicationConfiguration, MmiPort},
};

static LOGGER: devices::Logger = devices::logger();

/// Its volumes are decompressed by OVMF's PEI phase, so no section is left to extract.
static CORE: Core<Q35Smm> = Core::new(NullSectionExtractor);

/// The comm buffer for messages to edk2's handlers.
#[cfg(not(feature = "own"))]
pub(crate) const BUFFER_ID: u8 = 0;
/// Its pages.
#[cfg(not(feature = "own"))]
const BUFFER_PAGES: usize = 16;

struct Q35Smm;

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

impl MemoryInfo for Q35Smm {}

impl CpuInfo for Q35Smm {
    // edk2's SMM CPU driver waits for the protocol; without it no SMM driver starts, and BDS has no
    // variables.
    const ENABLE_MP_SERVICES: bool = true;

    fn perf_timer_frequency() -> Option<u64> {
        timer::tsc_frequency()
    }
}

impl PlatformInfo for Q35Smm {
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
    #[cfg(feature = "own")]
    crate::own::look_for_hobs(hob_list);
    CORE.entry_point(hob_list)
}
