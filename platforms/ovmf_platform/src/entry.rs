//! The entry point of a DXE core, and what it tells the core about OVMF. An unsafe island (`docs/unsafe.md`).

/// Makes a type the platform of a Patina DXE core inside OVMF, and this program that core.
///
/// The type has its components in [`ComponentInfo`](patina_dxe_core::ComponentInfo) and its processor in
/// [`CpuInfo`](patina_dxe_core::CpuInfo). The rest is the same in each core here:
///
/// - nothing is left to extract, because OVMF's PEI phase decompresses the volumes;
/// - the default places of memory;
/// - the entry point `efi_main`: it installs `logger`, calls `before` with the HOB list, and starts the core.
#[macro_export]
macro_rules! dxe_core {
    (platform: $platform:ty, logger: $logger:expr, before: $before:expr $(,)?) => {
        impl $crate::patina_dxe_core::MemoryInfo for $platform {}

        impl $crate::patina_dxe_core::PlatformInfo for $platform {
            type ComponentInfo = Self;
            type CpuInfo = Self;
            type Extractor = $crate::patina_ffs_extractors::NullSectionExtractor;
            type MemoryInfo = Self;

            const UEFI_SPEC_VERSION: $crate::patina::UefiSpecVersion = $crate::patina::UefiSpecVersion::V2_7;
        }

        #[unsafe(export_name = "efi_main")]
        extern "efiapi" fn efi_main(hob_list: *const ::core::ffi::c_void) -> ! {
            static CORE: $crate::patina_dxe_core::Core<$platform> =
                $crate::patina_dxe_core::Core::new($crate::patina_ffs_extractors::NullSectionExtractor);
            // It fails only if a logger is installed already, and this is the first code that runs.
            let _ = $crate::log::set_logger($logger);
            $crate::log::set_max_level($crate::log::LevelFilter::Info);
            let before: fn(*const ::core::ffi::c_void) = $before;
            before(hob_list);
            CORE.entry_point(hob_list)
        }
    };
}
