//! The facts about a machine. The file for a bug report has all of them: numbers, names and states,
//! but no message bytes except those of the doctor's own probes.

use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// The version of the file's layout.
pub const FORMAT: u32 = 1;

/// All facts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Names the file: `mm_doctor`.
    pub tool: &'static str,
    /// [`FORMAT`].
    pub format: u32,
    /// `x86_64` or `aarch64`.
    pub arch: &'static str,
    /// The firmware's vendor and revision.
    pub firmware: String,
    /// Whether there is a HOB list.
    pub has_hob_list: bool,
    /// What is wrong with the HOB list, and with other lists that the firmware hands over.
    pub damage: Vec<Damage>,
    /// Which page tables translate addresses; empty if they cannot be read.
    pub paging: String,
    /// Comm buffers that HOBs announce, and the regions that the command line names.
    pub buffers: Vec<Buffer>,
    /// Ranges of MMRAM that HOBs announce.
    pub mmram: Vec<Range>,
    /// Other memory that firmware sets aside for MM.
    pub regions: Vec<Region>,
    /// Protocols that are installed.
    pub protocols: Vec<Protocol>,
    /// The facts from ACPI.
    pub acpi: Acpi,
    /// The facts from the chipset; x86 only.
    pub chipset: Option<Chipset>,
    /// The facts from the processor; AArch64 only.
    pub arm: Option<Arm>,
    /// The probes and their responses.
    pub probes: Vec<Probe>,
}

/// A list or a table of the firmware that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Which one.
    pub what: String,
    /// What is wrong.
    pub found: String,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Its start.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// What the UEFI memory map and the page tables say about a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mapped {
    /// The memory type by name; empty if the range is in no descriptor.
    pub kind: String,
    /// The descriptor's attributes.
    pub attributes: u64,
    /// Whether all of the range is in descriptors of that type.
    pub whole: bool,
    /// What the page tables say; `None` if they cannot be read.
    pub pages: Option<Pages>,
}

/// What the page tables say about a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// The first address that is not mapped to the same physical address, and what it is mapped to:
    /// `None` if to nothing.
    pub elsewhere: Option<(u64, Option<u64>)>,
    /// Whether all of the range can be written to.
    pub writable: bool,
    /// The memory type of the range's first page, such as `write-back`.
    pub memory: String,
    /// Whether all of the range has this memory type.
    pub same_memory: bool,
}

/// Memory that firmware sets aside for MM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// The purpose of this memory.
    pub what: String,
    /// Its addresses.
    pub range: Range,
    /// What the memory map and the page tables say about it.
    pub memory: Option<Mapped>,
}

/// The source of a buffer that the command line names.
pub const NAMED: &str = "region of -r";

/// A comm buffer that a HOB announces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// Which HOB: `comm-buffer HOB`, `comm-region HOB, supervisor`, `comm-region HOB, user`; or
    /// [`NAMED`].
    pub source: String,
    /// Its memory.
    pub region: Option<Range>,
    /// The address of its mailbox.
    pub mailbox: Option<u64>,
    /// What is wrong with the HOB, in the words of the error.
    pub error: Option<String>,
    /// What the memory map says about the buffer.
    pub memory: Option<Mapped>,
    /// What the memory map says about the mailbox.
    pub mailbox_memory: Option<Mapped>,
    /// The contents of the mailbox.
    pub state: Option<Mailbox>,
}

/// A status mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mailbox {
    /// Whether it announces a request.
    pub pending: bool,
    /// Its ReturnStatus.
    pub status: u64,
    /// Its ReturnBufferSize.
    pub size: u64,
}

/// A protocol that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// Its name here.
    pub name: &'static str,
    /// Its GUID.
    pub guid: String,
    /// Whether it has no interface, so that nothing tells which image installed it.
    pub is_marker: bool,
    /// The image that installed it: its interface, or the first function in the interface, is in
    /// this image. Empty if in none.
    pub image: String,
}

/// The facts from ACPI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Acpi {
    /// Whether there are ACPI tables.
    pub present: bool,
    /// What is wrong with the tables.
    pub damage: Vec<Damage>,
    /// FADT: the port for SMI commands; 0 for none.
    pub smi_cmd: Option<u32>,
    /// FADT: the PM1a event block, which is at PMBASE on Intel's chipsets.
    pub pm1a_event: Option<u64>,
    /// FADT: ARM_BOOT_ARCH.
    pub arm_boot: Option<u16>,
    /// WSMT: its flags.
    pub wsmt: Option<u32>,
    /// The table `UEFI` of the SMM communication GUID: the software SMI's number, and where the
    /// buffer's address is.
    pub smm_communication: Option<(u32, u64)>,
}

/// The facts from the chipset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chipset {
    /// Vendor and device of PCI 0:0.0.
    pub host_bridge: Option<(u16, u16)>,
    /// Vendor and device of PCI 0:1F.0.
    pub lpc: Option<(u16, u16)>,
    /// The chipset's name; empty if it is not known.
    pub name: String,
    /// Where the ACPI base was read from.
    pub acpi_base_from: String,
    /// The ACPI base.
    pub acpi_base: Option<u16>,
    /// Whether the ACPI base is decoded.
    pub acpi_enabled: Option<bool>,
    /// SMI_EN.
    pub smi_en: Option<u32>,
    /// SMI_STS.
    pub smi_sts: Option<u32>,
    /// SMI_LOCK.
    pub smi_lock: Option<bool>,
    /// The SMRAM control register of the host bridge.
    pub smram: Option<u8>,
    /// TSEG, if it is on.
    pub tseg: Option<Range>,
}

/// The facts from an Arm processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// The exception level that UEFI runs at.
    pub level: u8,
    /// Whether the processor implements EL3.
    pub el3: bool,
    /// `smc`, `hvc`, or empty if neither the FADT nor the device tree says how PSCI is called.
    pub conduit: &'static str,
    /// The source of `conduit`: `FADT` or `device tree`.
    pub conduit_from: &'static str,
    /// FF-A's version, as major and minor, or the error; `None` if no secure monitor call can be
    /// made.
    pub ffa: Option<Result<(u16, u16), String>>,
    /// The partitions of FF-A, or the error; `None` without FF-A.
    pub partitions: Option<Result<Vec<Partition>, String>>,
    /// SPM_MM's version, as major and minor, or the error; `None` if no secure monitor call can be
    /// made.
    pub spm_mm: Option<Result<(u16, u16), String>>,
    /// How patina_mm reaches MM, or why it does not.
    pub mm: Option<Result<String, String>>,
}

/// A partition of FF-A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its identifier.
    pub id: u16,
    /// Its execution contexts.
    pub contexts: u16,
    /// Its properties (FF-A 1.2, table 6.2).
    pub properties: u32,
    /// The UUID of its service; zeros if the partition manager does not tell it.
    pub uuid: String,
}

/// A request to MM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The way into MM.
    pub way: String,
    /// What the request asks for.
    pub question: &'static str,
    /// Whether a machine may have no handler for it.
    pub may_be_missing: bool,
    /// Whether no machine has a handler for it.
    pub unknown: bool,
    /// The handler's GUID.
    pub recipient: String,
    /// The request, in hexadecimal digits.
    pub request: String,
    /// The response in hexadecimal digits, or why there is none.
    pub response: Result<String, String>,
    /// How long it took, in microseconds.
    pub us: Option<u64>,
}
