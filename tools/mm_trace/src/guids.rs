//! Names of GUIDs that occur in messages, each with the file that says so.

use mm_wire::{Guid, guid};

/// The kind of thing that a GUID names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A handler in MM: messages are sent to it.
    Handler,
    /// An event of the boot that is sent to MM. The GUID is all that the message says.
    Event,
    /// The vendor of variables.
    Vendor,
    /// Marks something in memory, such as a header.
    Marker,
}

/// A GUID that has a name.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The GUID.
    pub guid: Guid,
    /// Its name for people.
    pub name: &'static str,
    /// The kind of thing that it names.
    pub kind: Kind,
    /// Its name in C, and where that is declared or used. Files are edk2's unless another
    /// repository is named.
    pub source: &'static str,
}

/// Looks a GUID up.
#[must_use]
pub fn find(guid: Guid) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.guid == guid)
}

/// The name of a GUID, or its digits.
#[must_use]
pub fn name(guid: Guid) -> String {
    find(guid).map_or_else(|| guid.to_string(), |known| known.name.to_owned())
}

macro_rules! known {
    ($($kind:ident $guid:literal $name:literal, $source:literal;)+) => {
        /// All known GUIDs.
        pub const KNOWN: &[Known] = &[$(Known {
            guid: guid!($guid),
            name: $name,
            kind: Kind::$kind,
            source: $source,
        }),+];
    };
}

known! {
    Marker "68e8c853-2ba9-4dd7-9ac0-91e16155c935" "v3 header",
        "gEfiMmCommunicateHeaderV3Guid, MdePkg/MdePkg.dec; PI 1.9, volume 4, 5.7.5";
    Marker "6c2a2520-0131-4aee-a750-cc384aace8c6" "comm-buffer HOB",
        "gMmCommBufferHobGuid, MdeModulePkg/MdeModulePkg.dec";
    Marker "2a22e38f-9d1c-49d0-bdce-7ddac16da45d" "comm-buffer update protocol",
        "patina, management_mode::protocol::mm_comm_buffer_update";

    Handler "ed32d533-99e6-4209-9cc0-2d72cdd998a7" "variable service",
        "gEfiSmmVariableProtocolGuid, MdeModulePkg/Universal/Variable/RuntimeDxe/VariableSmm.c";
    Handler "3868fc3b-7e45-43a7-906c-4ba47de1754d" "fault-tolerant write",
        "gEfiSmmFaultTolerantWriteProtocolGuid, MdeModulePkg/Universal/FaultTolerantWriteDxe/FaultTolerantWriteSmm.c";
    Handler "da1b0d11-d1a7-46c4-9dc9-f3714875c6eb" "variable policy",
        "gVarCheckPolicyLibMmiHandlerGuid, MdeModulePkg/Library/VarCheckPolicyLib/VarCheckPolicyLib.c";
    Handler "2a3cfebd-27e8-4d0a-8b79-d688c2a3e1c0" "lock box",
        "gEfiSmmLockBoxCommunicationGuid, MdeModulePkg/Universal/LockBox/SmmLockBox/SmmLockBox.c";
    Handler "c095791a-3001-47b2-80c9-eac7319f2fa4" "performance records",
        "gEfiFirmwarePerformanceGuid, MdeModulePkg/Library/SmmCorePerformanceLib/SmmCorePerformanceLib.c";
    Handler "49174342-7108-409b-8bbe-65fda85389f5" "profile of SMI handlers",
        "gSmiHandlerProfileGuid, MdeModulePkg/Core/PiSmmCore/SmiHandlerProfile.c";
    Handler "e22bbcca-516a-46a8-80e2-6745e83693bd" "profile of SMM's memory",
        "gEdkiiSmmMemoryProfileGuid, MdeModulePkg/Core/PiSmmCore/SmramProfileRecord.c";
    Handler "c96c76eb-bc78-429c-9f4b-da517828c457" "TPM's ACPI area",
        "gTpmNvsMmGuid, SecurityPkg/Tcg/Tcg2Smm/Tcg2Smm.c";
    Handler "17b862a4-1806-4faf-86b3-089a58353861" "TPM service (FF-A)",
        "gTpm2ServiceFfaGuid, SecurityPkg/SecurityPkg.dec";
    Handler "b65694cc-09e3-4c3b-b5cd-05f44d3cdbff" "dispatch of MM drivers from a volume",
        "gMmFvDispatchGuid, StandaloneMmPkg/StandaloneMmPkg.dec";
    Handler "7e6efffa-69b4-4c1b-a4c7-aff9c9244fee" "dispatch of MM drivers",
        "gEventMmDispatchGuid, StandaloneMmPkg/Core/StandaloneMmCore.c";
    Handler "8c633b23-1260-4ea6-830f-7ddc97382111" "MM supervisor",
        "gMmSupervisorRequestHandlerGuid, Project Mu MmSupervisorPkg/Include/Guid/MmSupervisorRequestData.h";

    Event "02ce967a-dd7e-4ffc-9ee7-810cf0470880" "end of DXE",
        "gEfiEndOfDxeEventGroupGuid, MdePkg/MdePkg.dec";
    Event "60ff8964-e906-41d0-afed-f241e974e08e" "ready to lock",
        "gEfiDxeMmReadyToLockProtocolGuid, MdePkg/MdePkg.dec";
    Event "7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b" "ready to boot",
        "gEfiEventReadyToBootGuid, MdePkg/MdePkg.dec; UEFI 2.11, 7.1";
    Event "27abf055-b1b8-4c26-8048-748f37baa2df" "exit boot services",
        "gEfiEventExitBootServicesGuid, MdePkg/MdePkg.dec; UEFI 2.11, 7.1";
    Event "8be0e274-3970-4b44-80c5-1ab9502f3bfc" "before exit boot services",
        "gEfiEventBeforeExitBootServicesGuid, MdePkg/MdePkg.dec; UEFI 2.11, 7.1";
    Event "13fa7698-c831-49c7-87ea-8f43fcc25196" "virtual address change",
        "gEfiEventVirtualAddressChangeGuid, MdePkg/MdePkg.dec; UEFI 2.11, 7.1";
    Event "2a571201-4966-47f6-8b86-f31e41f32f10" "legacy boot",
        "gEfiEventLegacyBootGuid, MdePkg/MdePkg.dec";
    Event "7081e22f-cac6-4053-9468-675782cf88e5" "DXE dispatch",
        "gEfiEventDxeDispatchGuid, MdePkg/MdePkg.dec; MdeModulePkg/Core/PiSmmCore/PiSmmCore.c";
    Event "96f5296d-05f7-4f3c-8467-e456890e0cb5" "end of S3 resume",
        "gEdkiiEndOfS3ResumeGuid, MdeModulePkg/MdeModulePkg.dec";
    Event "8f9d4825-797d-48fc-8471-845025792ef6" "S3 SMM initialization done",
        "gEdkiiS3SmmInitDoneGuid, MdeModulePkg/MdeModulePkg.dec";

    Vendor "8be4df61-93ca-11d2-aa0d-00e098032b8c" "UEFI's global variables",
        "gEfiGlobalVariableGuid, MdePkg/MdePkg.dec; UEFI 2.11, 3.3";
    Vendor "d719b2cb-3d3a-4596-a3bc-dad00e67656f" "secure boot's databases",
        "gEfiImageSecurityDatabaseGuid, MdePkg/MdePkg.dec";
    Vendor "e20939be-32d4-41be-a150-897f85d49829" "memory overwrite request",
        "gEfiMemoryOverwriteControlDataGuid, MdePkg/MdePkg.dec";
    Vendor "bb983ccf-151d-40e1-a07b-4a17be168292" "lock of the memory overwrite request",
        "gEfiMemoryOverwriteRequestControlLockGuid, MdePkg/MdePkg.dec";
    Vendor "c076ec0c-7028-4399-a072-71ee5c448b9f" "secure boot's custom mode",
        "gEfiCustomModeEnableGuid, SecurityPkg/SecurityPkg.dec";
    Vendor "414e6bdd-e47b-47cc-b244-bb61020cf516" "hardware error records",
        "gEfiHardwareErrorVariableGuid, MdePkg/MdePkg.dec";
    Vendor "eba4e8d2-3858-41ec-a281-2647ba9660d0" "debug port",
        "gEfiDebugPortVariableGuid, MdePkg/MdePkg.dec";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_guid_and_each_name_is_there_once_and_has_a_source() {
        let mut guids = HashSet::new();
        let mut names = HashSet::new();
        for known in KNOWN {
            assert!(guids.insert(known.guid.to_bytes()), "{known:?}");
            assert!(names.insert(known.name), "{known:?}");
            assert!(known.source.contains(", "), "{known:?}");
        }
    }

    #[test]
    fn guids_of_the_wire_crate_are_known_here() {
        for (guid, kind) in [
            (mm_wire::message::variable::GUID, Kind::Handler),
            (mm_wire::message::supervisor::GUID, Kind::Handler),
            (mm_wire::header::V3_MARKER, Kind::Marker),
        ] {
            assert_eq!(find(guid).map(|known| known.kind), Some(kind), "{guid}");
        }
    }
}
