//! The machines that the doctor looks at, and what it must print.

use crate::machine::{DEBUG_EXIT_FAILURE, Doctor};
use crate::setup::{
    ARM_UEFI, OVMF, OVMF_WITHOUT_SMM, QEMU_ARM, QEMU_X86, RUST_ARM, RUST_NONE, RUST_UEFI, Tool,
};

/// A machine, and what is known about it.
pub(super) struct Patient {
    pub(super) name: &'static str,
    pub(super) tools: &'static [&'static Tool],
    pub(super) firmware: Doctor,
    /// The command line, without the options for the file and the end.
    pub(super) words: &'static str,
    /// QEMU's exit code when the power goes off.
    pub(super) exit_code: i32,
    /// Texts that the doctor must print, each a part of a line.
    pub(super) says: &'static [&'static str],
}

/// The comm buffer that MM has at first, in the region that the monitor shares with it
/// (`machines/aarch64_monitor/src/layout.rs`).
const ARM_WORDS: &str = "probe-all -r 0x50000000,0x10000";

const ARM_TOOLS: &[&Tool] = &[&QEMU_ARM, &ARM_UEFI, &RUST_ARM];

/// Lines that each report of the monitor's machines has.
const ARM_REGION: &str =
    "LOOK    comm buffer 0 (region of -r): 65536 bytes at 0x50000000: Conventional, free for every driver";

pub(super) const PATIENTS: &[Patient] = &[
    Patient {
        name: "ovmf-smm",
        tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
        firmware: Doctor::OvmfSmm,
        words: "probe",
        exit_code: 0,
        says: &[
            "OK      ways to MM: by the firmware's communication protocol",
            // PiSmmIpl, SmmControl2Dxe and SmmAccess2Dxe of OvmfPkg and MdeModulePkg.
            "OK      MM communication: installed by FvFile(2FA2A6DA-11D5-4DC3-999A-749648B03C56)",
            "OK      MM communication 2: installed by FvFile(2FA2A6DA-11D5-4DC3-999A-749648B03C56)",
            "OK      MM control: installed by FvFile(1206F7CA-A475-4624-A83E-E6FC9BB38E49)",
            "OK      MM access: installed by FvFile(AC95AD3D-4366-44BF-9A62-E4B29D7A2206)",
            "OK      MM base: installed by FvFile(2FA2A6DA-11D5-4DC3-999A-749648B03C56)",
            "OK      variable service in MM: installed, without an interface",
            "OK      page tables: x86-64, 4 levels",
            "OK      chipset: Intel Q35, as QEMU has it; host bridge 8086:29c0, LPC 8086:2918",
            "OK      ACPI base: 0x600, from PMBASE, PCI 0:1F.0 0x40",
            "OK      SMIs: on: SMI_EN at 0x630 is 0x",
            "OK      SMI_STS: 0x00000000 at 0x634: no MMI is waiting",
            "OK      SMI_LOCK: set",
            "OK      SMRAM: closed and locked",
            "OK      TSEG: 0x1000000 bytes at 0xf000000",
            "OK      FADT: SMI_CMD is port 0xb2",
            "OK      WSMT: not there",
            "OK      SMM communication table: not there",
            "OK      probe, communication protocol 1: the variable service's payload size: 24 bytes back",
            "OK      probe, communication protocol 2: the variable service's payload size: 24 bytes back",
            "OK      probe, communication protocol 2: a GUID that no handler has: no handler: EFI_NOT_FOUND",
            "VERDICT all is as it should be",
            "add.component(FirmwareMmCommunication::new(0, 16));",
        ],
    },
    Patient {
        name: "ovmf-without-mm",
        tools: &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI],
        firmware: Doctor::OvmfWithoutMm,
        words: "probe",
        exit_code: 0,
        says: &[
            "BROKEN  ways to MM: no HOB announces a comm buffer, no communication protocol is installed",
            "LOOK    SMIs: SMI_EN at 0x630 is 0: SMIs are off, or it is not there",
            "VERDICT MM cannot be used like this",
            "No Rust for this machine: ",
        ],
    },
    Patient {
        name: "patina-q35",
        tools: &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
        firmware: Doctor::PatinaQ35,
        words: "probe",
        exit_code: 0,
        says: &[
            "OK      ways to MM: 2 comm buffers from HOBs",
            // Patina's components are in the DXE core.
            "OK      MM communication: installed by an image without a path, such as the DXE core",
            "OK      MM communication 3: installed by an image without a path, such as the DXE core",
            "OK      comm buffer 0 (comm-region HOB, supervisor): 16384 bytes at 0x",
            ": RuntimeServicesData (UC WC WT WB RUNTIME), mapped one to one, write-back",
            "OK      comm buffer 0 (comm-region HOB, supervisor): the last request: EFI_SUCCESS (0x0), 52 bytes",
            "OK      comm buffer 1 (comm-region HOB, user): status mailbox at 0x",
            "OK      comm buffer 1 (comm-region HOB, user): the status mailbox is empty",
            "OK      page tables: x86-64, 4 levels",
            "OK      SMIs: on: SMI_EN at 0x630 is 0x",
            "OK      SMI_LOCK: set",
            "OK      SMRAM: closed and locked",
            "OK      probe, communication protocol 3: the variable service's payload size: 24 bytes back",
            "OK      probe, comm buffer 0 and ports: the supervisor's version: 40 bytes back",
            "OK      probe, comm buffer 1 and ports: a GUID that no handler has: no handler: MM returned EFI_NOT_FOUND",
            "VERDICT all is as it should be",
            "MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9)",
        ],
    },
    Patient {
        name: "patina-smm",
        tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
        firmware: Doctor::PatinaSmm,
        words: "probe",
        exit_code: 0,
        says: &[
            "OK      ways to MM: by the firmware's communication protocol",
            "OK      MM communication 2: installed by FvFile(2FA2A6DA-11D5-4DC3-999A-749648B03C56)",
            "OK      MM control: installed by FvFile(1206F7CA-A475-4624-A83E-E6FC9BB38E49)",
            "OK      SMIs: on: SMI_EN at 0x630 is 0x",
            "OK      SMRAM: closed and locked",
            "OK      TSEG: 0x1000000 bytes at 0x",
            "OK      probe, communication protocol 2: the variable service's payload size: 24 bytes back",
            "VERDICT all is as it should be",
            "add.component(FirmwareMmCommunication::new(0, 16));",
        ],
    },
    Patient {
        name: "aarch64",
        tools: ARM_TOOLS,
        firmware: Doctor::Aarch64("uefi"),
        words: ARM_WORDS,
        // The monitor ends the machine with this code unless a test says otherwise.
        exit_code: DEBUG_EXIT_FAILURE,
        says: &[
            "OK      ways to MM: by secure monitor calls, through the region of -r",
            "OK      page tables: AArch64, pages of 4 KiB",
            ARM_REGION,
            "OK      processor: UEFI runs at EL1; there is an EL3; neither FADT nor device tree says how PSCI is called",
            "OK      MM in the secure world: FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ",
            "OK      FF-A: version 1.2",
            "OK      SPM_MM: function 0x84000040 returned -1",
            "OK      FF-A partition: 0x8002: 3 execution contexts, properties 0x101, service MM",
            "(FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ): the variable service's payload size: 24 bytes back",
            "(FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ): a GUID that no handler has: ",
            "VERDICT usable",
            "CommunicateBuffer::from_firmware_region(0x50000000, 0x10000, 0, None)",
        ],
    },
    Patient {
        name: "aarch64-spm-mm",
        tools: ARM_TOOLS,
        firmware: Doctor::Aarch64("uefi-spm-mm"),
        words: "probe -r 0x50000000,0x10000",
        exit_code: DEBUG_EXIT_FAILURE,
        says: &[
            "OK      ways to MM: by secure monitor calls, through the region of -r",
            ARM_REGION,
            "OK      MM in the secure world: SPM_MM 1.0",
            "OK      SPM_MM: version 1.0",
            "OK      FF-A: function 0x84000063 returned -1",
            "the variable service's payload size: 24 bytes back",
            "VERDICT usable",
        ],
    },
    Patient {
        name: "aarch64-rx-tx",
        tools: ARM_TOOLS,
        firmware: Doctor::Aarch64("uefi-ffa-without-get-regs"),
        words: ARM_WORDS,
        exit_code: DEBUG_EXIT_FAILURE,
        says: &[
            "OK      MM in the secure world: FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ2",
            "OK      FF-A partition: 0x8002: 3 execution contexts, properties 0x300, service MM",
            "the variable service's payload size: 24 bytes back",
            "VERDICT usable",
        ],
    },
    Patient {
        name: "aarch64-without-mm",
        tools: ARM_TOOLS,
        firmware: Doctor::Aarch64("uefi-no-mm"),
        words: "probe",
        exit_code: DEBUG_EXIT_FAILURE,
        says: &[
            "BROKEN  ways to MM: no HOB announces a comm buffer",
            "LOOK    MM in the secure world: platform: the secure world offers neither FF-A 1.2 nor SPM_MM",
            "OK      FF-A: function 0x84000063 returned -1",
            "OK      SPM_MM: function 0x84000040 returned -1",
            "VERDICT MM cannot be used like this",
            "No Rust for this machine: MM in the secure world does not respond",
        ],
    },
    Patient {
        name: "aarch64-without-el3",
        tools: ARM_TOOLS,
        firmware: Doctor::Aarch64WithoutEl3,
        words: "probe",
        exit_code: 0,
        says: &[
            "BROKEN  ways to MM: no HOB announces a comm buffer",
            "OK      processor: UEFI runs at EL1; the processor shows no EL3; PSCI is called by hvc",
            "LOOK    secure world: there is no EL3 and PSCI is not called by smc",
            "VERDICT MM cannot be used like this",
        ],
    },
];

/// A fault that `machines/broken_machine` puts into machine patina-q35.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Texts that the doctor must print.
    pub(super) says: &'static [&'static str],
    /// How many lines are marked LOOK or BROKEN.
    pub(super) complaints: usize,
}

pub(super) const BROKEN: &[Case] = &[
    Case {
        name: "none",
        says: &["VERDICT all is as it should be", "mm_doctor ended with SUCCESS"],
        complaints: 0,
    },
    Case {
        name: "SMIs are off",
        says: &[
            "BROKEN  SMIs: platform: SMIs are off: SMI_EN at 0x630 is 0x00000001, APMC_EN missing",
            "docs/troubleshooting.md, \"No MMI\"",
            "VERDICT MM cannot be used like this",
            "mm_doctor ended with DEVICE_ERROR",
        ],
        complaints: 1,
    },
    Case {
        name: "stale mailbox",
        says: &[
            "BROKEN  comm buffer 0 (comm-region HOB, supervisor): ",
            "still announces it",
            "mm_doctor ended with DEVICE_ERROR",
        ],
        complaints: 1,
    },
    Case {
        name: "wrong PMBASE",
        says: &[
            "BROKEN  ACPI base: 0x500 (PMBASE, PCI 0:1F.0 0x40), and the FADT says 0x600",
            // QEMU's registers move with PMBASE.
            "OK      SMIs: on: SMI_EN at 0x530 is 0x00000021",
            "mm_doctor ended with DEVICE_ERROR",
        ],
        complaints: 1,
    },
    Case {
        name: "no HOB",
        says: &[
            "OK      ways to MM: by the firmware's communication protocol; no HOB announces a comm buffer",
            "LOOK    HOB list: not among the configuration tables",
            "VERDICT usable",
            "add.component(FirmwareMmCommunication::new(0, 16));",
            "mm_doctor ended with SUCCESS",
        ],
        complaints: 1,
    },
    Case {
        name: "none any more",
        says: &["VERDICT all is as it should be"],
        complaints: 0,
    },
];

/// Command lines in the UEFI Shell on machine ovmf-smm, and what is printed.
pub(super) const SHELL: &[(&str, &[&str])] = &[
    (
        "-?",
        &[
            "mm_doctor [probe | probe-all] [-r ADDRESS,BYTES] [-json] [-o FILE] [-b] [-off]",
            "STATUS 0x0",
        ],
    ),
    (
        "-h",
        &[
            "mm_doctor [probe | probe-all] [-r ADDRESS,BYTES] [-json] [-o FILE] [-b] [-off]",
            "STATUS 0x0",
        ],
    ),
    (
        "nonsense",
        &[
            "mm_doctor: `nonsense` is not known; see mm_doctor -h",
            "STATUS 0x2",
        ],
    ),
    (
        "probe -json",
        &["\"tool\": \"mm_doctor\"", "\"verdict\": \"ok\"", "STATUS 0x0"],
    ),
    (
        "probe -b -o mm.json < keys.txt",
        &[
            "-- any key --",
            "VERDICT all is as it should be",
            "written: mm.json",
            "STATUS 0x0",
        ],
    ),
    (
        "-o no\\such\\folder\\mm.json",
        &["cannot be written: ", "STATUS 0x15"],
    ),
];
