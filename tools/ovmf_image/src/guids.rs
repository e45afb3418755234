//! Names of files that platforms use, and of a file system.

use patina::BinaryGuid;

/// The name that Patina expects its DXE core's file to have: it looks itself up in the HOB list by
/// it.
pub const PATINA_DXE_CORE: BinaryGuid = BinaryGuid::from_string("23C9322F-2AF2-476A-BC4C-26BC88266C71");

/// edk2 `UefiCpuPkg/CpuDxe`.
pub const CPU_DXE: BinaryGuid = BinaryGuid::from_string("1A1E4886-9517-440E-9FDE-3BE44CEE2136");

/// The same for one processor, which OVMF has beside it since edk2-stable202205 (`UP_CPU_DXE_GUID`
/// in `OvmfPkgX64.dsc`).
pub const CPU_DXE_FOR_ONE: BinaryGuid = BinaryGuid::from_string("6490F1C5-EBCC-4665-8892-0075B9BB49B7");

/// The file system of a volume for variables, `gEfiSystemNvDataFvGuid`.
pub const VARIABLE_STORE: BinaryGuid = BinaryGuid::from_string("FFF12B8D-7696-4C8B-A985-2747075B4F50");

/// edk2 `MdeModulePkg/Universal/Acpi/BootScriptExecutorDxe`.
pub const BOOT_SCRIPT_EXECUTOR_DXE: BinaryGuid =
    BinaryGuid::from_string("FA20568B-548B-4B2B-81EF-1BA08D4A3CEC");

/// edk2 `OvmfPkg/QemuVideoDxe`.
pub const QEMU_VIDEO_DXE: BinaryGuid = BinaryGuid::from_string("E3752948-B9A1-4770-90C4-DF41C38986BE");

#[cfg(test)]
mod tests {
    #[test]
    fn the_core_has_the_name_that_patina_looks_for() {
        assert_eq!(super::PATINA_DXE_CORE, patina::guid::DXE_CORE_ID);
    }
}
