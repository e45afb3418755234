//! Judges the facts: what is fine, what needs a look, and what is broken.

use crate::facts::{Arm, Buffer, Chipset, Damage, Facts, Mapped, NAMED, Pages, Probe, Range};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use mm_comm::{ResponseError, SmiEnable, TriggerError};
use mm_wire::mailbox::MAILBOX_LEN;
use mm_wire::{EfiStatus, PAGE_LEN};
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It may be intended, or not.
    Look,
    /// MM cannot be used like this.
    Broken,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The subject.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing is to do.
    pub advice: String,
}

/// Bits of SMI_EN that are reserved on every Intel chipset so far (ICH9 data sheet, 13.8.3.8; 100
/// Series PCH, volume 2).
const RESERVED_IN_SMI_EN: u32 = 0x0380_0000;

/// The page that the advice is from.
const NO_MMI: &str = "docs/troubleshooting.md, \"No MMI\"";
const NO_RESPONSE: &str = "docs/troubleshooting.md, \"MMI, but no response\"";

/// Makes findings of the facts.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    findings.ways(facts);
    findings.damage(&facts.damage, "docs/configuration.md");
    for (index, buffer) in facts.buffers.iter().enumerate() {
        findings.buffer(index, buffer, facts);
    }
    if let Some(chipset) = &facts.chipset {
        findings.chipset(chipset, facts);
    }
    findings.regions(facts);
    if let Some(arm) = &facts.arm {
        findings.arm(arm);
    }
    findings.acpi(facts);
    facts.probes.iter().for_each(|probe| findings.probe(probe));
    findings.0
}

/// The worst level; [`Level::Ok`] without findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Ok)
}

/// Whether one of PI's communication protocols is installed.
pub(crate) fn has_communication(facts: &Facts) -> bool {
    let is_it = |name: &str| name.starts_with("MM communication");
    facts.protocols.iter().any(|protocol| is_it(protocol.name))
}

/// Whether MM in the secure world can be reached.
pub(crate) fn secure_world(facts: &Facts) -> bool {
    let mm = facts.arm.as_ref().and_then(|arm| arm.mm.as_ref());
    mm.is_some_and(Result::is_ok)
}

/// Buffers that HOBs announce, and buffers that the command line names, without those that cannot
/// be used.
pub(crate) fn usable(facts: &Facts, named: bool) -> impl Iterator<Item = &Buffer> {
    let buffers = facts.buffers.iter().filter(|buffer| buffer.error.is_none());
    buffers.filter(move |buffer| (buffer.source == NAMED) == named)
}

/// Names of `EFI_MEMORY_*` (UEFI 2.11, 7.2.3).
const ATTRIBUTES: [(u64, &str); 10] = [
    (1 << 0, "UC"),
    (1 << 1, "WC"),
    (1 << 2, "WT"),
    (1 << 3, "WB"),
    (1 << 4, "UCE"),
    (1 << 12, "WP"),
    (1 << 13, "RP"),
    (1 << 14, "XP"),
    (1 << 17, "RO"),
    (1 << 63, "RUNTIME"),
];

/// Bit 5 of SMI_STS, APM_STS: the command port was written to (ICH9 data sheet, 13.8.3.9).
const APM_STS: u32 = 1 << 5;

/// The UUID of MM's service in FF-A, the GUID of `EFI_MM_COMMUNICATION2_PROTOCOL`.
const MM_SERVICE: &str = "378daedc-f06b-4446-8314-40ab933c87a3";

/// The chipset's name of AMD.
pub(crate) const AMD: &str = "AMD";

/// The FADT's SMI_CMD, if there is one.
pub(crate) fn command_port(facts: &Facts) -> Option<u16> {
    let port = facts.acpi.smi_cmd.and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port != 0)
}

/// Bits of the SMRAM control register (82G33 GMCH, 5.1.37): the compatible segment is SMRAM, and so
/// is TSEG; it is locked; MM's own data accesses go to what is behind it; it is open.
const G_SMRAME: u8 = 1 << 3;
const D_LCK: u8 = 1 << 4;
const D_CLS: u8 = 1 << 5;
const D_OPEN: u8 = 1 << 6;

/// Bit 0 of SMI_EN.
const GBL_SMI_EN: u32 = 1;

/// The compatible segment.
const SEGMENT: Range = Range {
    start: 0xa_0000,
    len: 0x2_0000,
};

/// The flags that WSMT defines.
const WSMT_FLAGS: u32 = 7;

fn overlap(a: Range, b: Range) -> bool {
    let end = |range: Range| range.start.saturating_add(range.len);
    a.start < end(b) && b.start < end(a)
}

/// All memory that is MM's own: what HOBs say, and what the chipset says.
fn mmram(facts: &Facts) -> impl Iterator<Item = Range> {
    let chipset = facts.chipset.as_ref();
    let tseg = chipset.and_then(|chipset| chipset.tseg);
    let segment = chipset
        .and_then(|chipset| chipset.smram)
        .filter(|smram| smram & G_SMRAME != 0)
        .map(|_| SEGMENT);
    facts.mmram.iter().copied().chain(tseg).chain(segment)
}

fn mailbox_of(buffer: &Buffer) -> Option<Range> {
    let start = buffer.mailbox?;
    Some(Range {
        start,
        len: MAILBOX_LEN as u64,
    })
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, about: &str, found: impl ToString, advice: &str) {
        self.0.push(Finding {
            level,
            about: about.to_string(),
            found: found.to_string(),
            advice: advice.to_string(),
        });
    }

    fn damage(&mut self, damage: &[Damage], page: &str) {
        for Damage { what, found } in damage {
            self.add(
                Level::Look,
                what,
                found,
                &format!("the firmware builds it wrong ({page})"),
            );
        }
    }

    /// Whether MM can be reached at all, and how.
    fn ways(&mut self, facts: &Facts) {
        const ABOUT: &str = "ways to MM";
        let hobs = usable(facts, false).count();
        let is_named = usable(facts, true).next().is_some();
        match (hobs, has_communication(facts), secure_world(facts)) {
            (0, false, false) => self.add(
                Level::Broken,
                ABOUT,
                "no HOB announces a comm buffer, no communication protocol is installed, and no MM in a secure world responds",
                "this firmware has no MM, or does not say where; on Patina the platform has to configure the comm buffer \
                 by hand (docs/configuration.md)",
            ),
            (0, true, _) => self.add(
                Level::Ok,
                ABOUT,
                "by the firmware's communication protocol; no HOB announces a comm buffer",
                "a Patina component uses FirmwareMmCommunication (docs/protocols.md)",
            ),
            (0, false, true) if is_named => self.add(
                Level::Ok,
                ABOUT,
                "by secure monitor calls, through the region of -r; no HOB announces a comm buffer",
                "",
            ),
            (0, false, true) => self.add(
                Level::Look,
                ABOUT,
                "by secure monitor calls; no HOB announces a comm buffer",
                "the platform has to configure the region that it shares with the secure world (docs/platform-arm.md); \
                 mm_doctor -r ADDRESS,BYTES looks at it and writes the Rust",
            ),
            (buffers, ..) => self.add(Level::Ok, ABOUT, format_args!("{buffers} comm buffers from HOBs"), ""),
        }
        if !facts.has_hob_list {
            self.add(
                Level::Look,
                "HOB list",
                "not among the configuration tables",
                "PI firmware has one; without it MmHobConfiguration finds no comm buffer (docs/configuration.md)",
            );
        }
        for protocol in &facts.protocols {
            let by = match (protocol.is_marker, protocol.image.as_str()) {
                (true, _) => "installed, without an interface that says by which image".to_string(),
                (false, "") => "installed by code outside the loaded images".to_string(),
                (false, image) => format!("installed by {image}"),
            };
            self.add(Level::Ok, protocol.name, by, "");
        }
        let has = |name: &str| facts.protocols.iter().any(|protocol| protocol.name == name);
        if has("MM supervisor's communication") && hobs > 0 {
            self.add(
                Level::Look,
                "MM supervisor",
                "the firmware has a driver in C for it, which may move the comm buffers itself",
                "do not add MmSupervisorClient beside it (docs/protocols.md)",
            );
        }
        if !facts.paging.is_empty() {
            self.add(Level::Ok, "page tables", &facts.paging, "");
        }
    }

    /// MMRAM, and other memory that firmware sets aside for MM.
    fn regions(&mut self, facts: &Facts) {
        for mmram in &facts.mmram {
            let found = format!("{:#x} bytes at {:#x}", mmram.len, mmram.start);
            match mmram.start.checked_add(mmram.len) {
                Some(end) if end > mmram.start => self.add(Level::Ok, "MMRAM", found, ""),
                _ => self.add(
                    Level::Look,
                    "MMRAM",
                    format_args!("{found}: not a range of addresses"),
                    "the firmware builds the HOB wrong",
                ),
            }
        }
        for region in &facts.regions {
            let place = format!("{} bytes at {:#x}", region.range.len, region.range.start);
            let page = PAGE_LEN as u64;
            if region.range.len == 0
                || !region.range.len.is_multiple_of(page)
                || !region.range.start.is_multiple_of(page)
            {
                self.add(
                    Level::Broken,
                    &region.what,
                    format_args!("{place}: not whole pages"),
                    "the firmware builds it wrong",
                );
                continue;
            }
            match &region.memory {
                Some(memory) => self.memory(&region.what, &place, memory, false),
                None => self.add(
                    Level::Look,
                    &region.what,
                    format_args!("{place}; the memory map cannot be read"),
                    "",
                ),
            }
        }
    }

    fn buffer(&mut self, index: usize, buffer: &Buffer, facts: &Facts) {
        let about = format!("comm buffer {index} ({})", buffer.source);
        if let Some(error) = &buffer.error {
            self.add(
                Level::Broken,
                &about,
                error,
                "the PEI phase, or MM, builds this HOB wrong",
            );
            return;
        }
        let Some(region) = buffer.region else {
            return;
        };
        let place = format!("{} bytes at {:#x}", region.len, region.start);
        let of_mm = |range| mmram(facts).any(|mmram| overlap(range, mmram));
        let refused = "a comm buffer has to be outside: MM refuses it, and nothing else can reach it";
        if of_mm(region) {
            self.add(
                Level::Broken,
                &about,
                format_args!("{place} overlap MMRAM"),
                refused,
            );
        } else if let Some(address) = buffer.mailbox
            && mailbox_of(buffer).is_some_and(of_mm)
        {
            self.add(
                Level::Broken,
                &about,
                format_args!("the status mailbox at {address:#x} is in MMRAM"),
                refused,
            );
        }
        self.shared(index, buffer, &about, facts);
        match &buffer.memory {
            Some(memory) => self.memory(&about, &place, memory, buffer.source == NAMED),
            None => self.add(
                Level::Look,
                &about,
                format_args!("{place}; the memory map cannot be read"),
                "",
            ),
        }
        match (buffer.mailbox, &buffer.mailbox_memory) {
            // Secure monitor calls return a status.
            (None, _) if facts.arm.is_some() => {}
            (None, _) => self.add(
                Level::Look,
                &about,
                "no status mailbox",
                "a request that no handler takes then looks as if its own bytes were the response",
            ),
            (Some(address), Some(memory)) => {
                self.memory(&about, &format!("status mailbox at {address:#x}"), memory, false)
            }
            (Some(_), None) => {}
        }
        match buffer.state {
            Some(state) if state.pending => self.add(
                Level::Broken,
                &about,
                ResponseError::NotProcessed,
                "MM has not taken a request of an earlier boot phase, or the mailbox was never set to zero; patina_mm empties \
                 it when it takes the buffer over, and says so in the log",
            ),
            Some(state) if (state.status, state.size) != (0, 0) => self.add(
                Level::Ok,
                &about,
                format_args!(
                    "the last request: {}, {} bytes with the header",
                    EfiStatus(state.status),
                    state.size
                ),
                "",
            ),
            Some(_) => self.add(Level::Ok, &about, "the status mailbox is empty", ""),
            None => {}
        }
    }

    /// Whether a buffer shares memory with another one. Both may have the same mailbox, as in Project
    /// Mu, and -r may name memory that a HOB announces.
    fn shared(&mut self, index: usize, buffer: &Buffer, about: &str, facts: &Facts) {
        let others = facts.buffers.iter().enumerate().skip(index.saturating_add(1));
        let others = others.filter(|(_, other)| (other.source == NAMED) == (buffer.source == NAMED));
        for (number, other) in others {
            let (own, theirs) = (mailbox_of(buffer), mailbox_of(other));
            let meets = |a: Option<Range>, b: Option<Range>| a.zip(b).is_some_and(|(a, b)| overlap(a, b));
            let is_shared = meets(buffer.region, other.region)
                || meets(buffer.region, theirs)
                || meets(own, other.region)
                || own != theirs && meets(own, theirs);
            if is_shared {
                self.add(
                    Level::Broken,
                    about,
                    format_args!("it shares memory with comm buffer {number}"),
                    "each comm buffer needs memory of its own, and so does its mailbox",
                );
            }
        }
    }

    /// Judges what the memory map and the page tables say about a range. `is_free`: it may be
    /// memory that nothing has reserved.
    fn memory(&mut self, about: &str, place: &str, memory: &Mapped, is_free: bool) {
        const RUNTIME: &str = "RuntimeServicesData";
        let attributes: Vec<&str> = (ATTRIBUTES.iter())
            .filter(|(bit, _)| memory.attributes & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        let attributes = attributes.join(" ");
        match memory.kind.as_str() {
            "" => self.add(
                Level::Look,
                about,
                format_args!("{place}: not in the memory map"),
                "the operating system may use it; MM's drivers want RuntimeServicesData or reserved memory there",
            ),
            kind if !memory.whole => self.add(
                Level::Broken,
                about,
                format_args!("{place}: only in part {kind}"),
                "allocate all of it at once",
            ),
            kind @ (RUNTIME | "Reserved" | "AcpiNonVolatile") => {
                let pages = memory.pages.as_ref();
                let mapped = pages.filter(|pages| pages.elsewhere.is_none());
                let mapped = mapped.map(|pages| format!(", mapped one to one, {}", pages.memory));
                let mapped = mapped.unwrap_or_default();
                self.add(Level::Ok, about, format_args!("{place}: {kind} ({attributes}){mapped}"), "");
            }
            "Conventional" if is_free => self.add(
                Level::Look,
                about,
                format_args!("{place}: Conventional, free for every driver"),
                "report it with a resource descriptor HOB or allocate it, so that nothing else gets it (docs/platform-arm.md)",
            ),
            kind => self.add(
                Level::Broken,
                about,
                format_args!("{place}: {kind}, which does not survive the boot"),
                "allocate it from RuntimeServicesData",
            ),
        }
        if memory.kind == RUNTIME && memory.attributes >> 63 == 0 {
            self.add(
                Level::Look,
                about,
                format_args!("{place}: RuntimeServicesData without the attribute RUNTIME"),
                "the operating system does not map it for runtime drivers",
            );
        }
        if let Some(pages) = &memory.pages {
            self.pages(about, place, pages);
        }
    }

    fn pages(&mut self, about: &str, place: &str, pages: &Pages) {
        match pages.elsewhere {
            Some((address, None)) => self.add(
                Level::Broken,
                about,
                format_args!("{place}: {address:#x} is not mapped, an access faults"),
                "the firmware's page tables must map it, one to one",
            ),
            Some((address, Some(physical))) => self.add(
                Level::Broken,
                about,
                format_args!("{place}: {address:#x} is mapped to {physical:#x}"),
                "MM gets physical addresses: the memory must be mapped one to one",
            ),
            None if !pages.writable => self.add(
                Level::Broken,
                about,
                format_args!("{place}: the page tables make it read-only"),
                "a request must be written there",
            ),
            None if !pages.same_memory
                || !matches!(pages.memory.as_str(), "write-back" | "not translated") =>
            {
                self.add(
                    Level::Look,
                    about,
                    format_args!("{place}: its memory type is {}, in part or whole", pages.memory),
                    "MM maps it as write-back memory; another type here can show old bytes, or be slow",
                )
            }
            None => {}
        }
    }

    fn chipset(&mut self, chipset: &Chipset, facts: &Facts) {
        const ABOUT: &str = "SMIs";
        let name = match chipset.name.as_str() {
            "" => "not known to the doctor",
            name => name,
        };
        let id = |id: Option<(u16, u16)>| {
            id.map_or("none".to_string(), |(vendor, device)| {
                format!("{vendor:04x}:{device:04x}")
            })
        };
        let found = format!(
            "{name}; host bridge {}, LPC {}",
            id(chipset.host_bridge),
            id(chipset.lpc)
        );
        let level = if chipset.name.is_empty() {
            Level::Look
        } else {
            Level::Ok
        };
        self.add(level, "chipset", found, "");
        self.acpi_base(chipset, facts);
        let missing = chipset.smi_en.map(SmiEnable::missing_in);
        let register = usize::from(chipset.acpi_base.unwrap_or_default()).saturating_add(0x30);
        match (chipset.smi_en, missing) {
            (None, _) if chipset.name == AMD && command_port(facts).is_some() => self.add(
                Level::Ok,
                ABOUT,
                "AMD's are not checked; the command port is the FADT's SMI_CMD",
                "",
            ),
            (None, _) => self.add(
                Level::Look,
                ABOUT,
                "SMI_EN is not known for this chipset",
                "without an ACPI base it is not checked; the command port is the FADT's SMI_CMD",
            ),
            (Some(u32::MAX), _) => self.add(
                Level::Broken,
                ABOUT,
                format_args!("SMI_EN at {register:#x} reads 0xffffffff: no device responds there"),
                NO_MMI,
            ),
            (Some(value), _) if value & RESERVED_IN_SMI_EN != 0 => self.add(
                Level::Broken,
                ABOUT,
                format_args!(
                    "SMI_EN at {register:#x} is {value:#010x}, with reserved bits: another register is there"
                ),
                NO_MMI,
            ),
            (Some(0), _) => self.add(
                Level::Look,
                ABOUT,
                format_args!("SMI_EN at {register:#x} is 0: SMIs are off, or it is not there"),
                NO_MMI,
            ),
            (Some(value), Some(missing)) if !missing.is_empty() => {
                let error = TriggerError::SmisDisabled {
                    register,
                    value,
                    missing,
                };
                self.add(Level::Broken, ABOUT, error, NO_MMI);
            }
            (Some(value), _) => self.add(
                Level::Ok,
                ABOUT,
                format_args!("on: SMI_EN at {register:#x} is {value:#010x}"),
                "",
            ),
        }
        if let Some(status) = chipset.smi_sts {
            let port = register.saturating_add(4);
            let (level, found, advice) = match status {
                u32::MAX => (Level::Look, "no device responds there", NO_MMI),
                _ if status & APM_STS != 0 => (
                    Level::Look,
                    "APM_STS is set: the command port was written to, and MM has not cleared it",
                    NO_RESPONSE,
                ),
                _ => (Level::Ok, "no MMI is waiting", ""),
            };
            self.add(
                level,
                "SMI_STS",
                format_args!("{status:#010x} at {port:#x}: {found}"),
                advice,
            );
        }
        let is_off = chipset
            .smi_en
            .is_some_and(|value| value & (GBL_SMI_EN | RESERVED_IN_SMI_EN) == 0);
        match chipset.smi_lock {
            Some(true) if is_off => self.add(
                Level::Broken,
                "SMI_LOCK",
                "set while GBL_SMI_EN is clear: SMIs stay off until the next reset",
                "the firmware has to set GBL_SMI_EN before SMI_LOCK",
            ),
            Some(true) => self.add(Level::Ok, "SMI_LOCK", "set: GBL_SMI_EN cannot be cleared", ""),
            Some(false) => self.add(
                Level::Look,
                "SMI_LOCK",
                "not set: any code can clear GBL_SMI_EN",
                "firmware sets it at the end of DXE; before that this is as expected",
            ),
            None => {}
        }
        if chipset.smram.is_none() {
            self.add(
                Level::Look,
                "SMRAM",
                "the doctor does not know this host bridge's SMRAM control register and TSEG",
                "a tool for security, such as chipsec, tells whether SMRAM is closed and locked",
            );
        }
        if let Some(smram) = chipset.smram {
            let is = |bit: u8| smram & bit != 0;
            if is(D_CLS) {
                self.add(
                    Level::Broken,
                    "SMRAM",
                    format_args!("the control register is {smram:#04x}, with D_CLS: MM's data accesses go elsewhere"),
                    "clear it; any code can set it, also after the lock, so MM has to clear it when it is entered",
                );
            }
            match (is(D_OPEN), is(D_LCK)) {
                (true, _) => self.add(
                    Level::Broken,
                    "SMRAM",
                    format_args!("open: the control register is {smram:#04x}, with D_OPEN"),
                    "any code can change MM's; close and lock it before anything that is not the platform's runs",
                ),
                (false, false) => self.add(
                    Level::Look,
                    "SMRAM",
                    format_args!("closed and not locked: the control register is {smram:#04x}"),
                    "lock it (D_LCK) at the end of DXE",
                ),
                (false, true) if !is(G_SMRAME) => self.add(
                    Level::Look,
                    "SMRAM",
                    format_args!("locked and off: the control register is {smram:#04x}, without G_SMRAME"),
                    "there is no SMRAM until the next reset; a firmware with MM sets G_SMRAME before D_LCK",
                ),
                (false, true) => {
                    self.add(Level::Ok, "SMRAM", format_args!("closed and locked ({smram:#04x})"), "");
                }
            }
        }
        if let Some(tseg) = chipset.tseg {
            let found = match tseg.len {
                0 => format!("at {:#x}, of unknown size", tseg.start),
                len => format!("{len:#x} bytes at {:#x}", tseg.start),
            };
            self.add(Level::Ok, "TSEG", found, "");
        }
    }

    fn acpi_base(&mut self, chipset: &Chipset, facts: &Facts) {
        const ABOUT: &str = "ACPI base";
        let Some(base) = chipset.acpi_base else {
            self.add(
                Level::Look,
                ABOUT,
                "not found",
                "without it SMI_EN is not checked",
            );
            return;
        };
        if let Some(event) = facts
            .acpi
            .pm1a_event
            .filter(|event| *event != u64::from(base) && *event != 0)
        {
            self.add(
                Level::Broken,
                ABOUT,
                format_args!("{base:#x} ({}), and the FADT says {event:#x}", chipset.acpi_base_from),
                "one of them is wrong; a trigger that checks SMI_EN behind the wrong one reads another register",
            );
        } else if chipset.acpi_enabled == Some(false) {
            self.add(
                Level::Broken,
                ABOUT,
                format_args!("{base:#x} is not decoded: ACPI_EN is clear"),
                NO_MMI,
            );
        } else {
            self.add(
                Level::Ok,
                ABOUT,
                format_args!("{base:#x}, from {}", chipset.acpi_base_from),
                "",
            );
        }
    }

    fn acpi(&mut self, facts: &Facts) {
        let acpi = &facts.acpi;
        if !acpi.present {
            let found = "there are no tables of ACPI 2.0 or later";
            self.add(Level::Ok, "ACPI", found, "");
            return;
        }
        self.damage(&acpi.damage, "ACPI 6.5, 5.2; an operating system may ignore it");
        match acpi.smi_cmd {
            Some(port) if u16::try_from(port).is_err() => self.add(
                Level::Look,
                "FADT",
                format_args!("SMI_CMD is {port:#x}, which is not a port"),
                "the firmware builds it wrong; x86 has ports up to 0xffff",
            ),
            Some(0) if facts.arm.is_none() => self.add(
                Level::Look,
                "FADT",
                "SMI_CMD is 0: no SMI command port",
                "hardware-reduced ACPI, or a machine without SMIs",
            ),
            Some(port) if port != 0 => {
                self.add(Level::Ok, "FADT", format_args!("SMI_CMD is port {port:#x}"), "")
            }
            _ => {}
        }
        match acpi.wsmt {
            Some(flags) => {
                let (missing, reserved) = (WSMT_FLAGS & !flags, flags & !WSMT_FLAGS);
                let (level, advice) = match (missing, reserved) {
                    (0, 0) => (Level::Ok, ""),
                    (_, 1..) => (Level::Look, "all but bits 0 to 2 are reserved"),
                    (_, 0) => (
                        Level::Look,
                        "bits 0 to 2 promise that MM checks buffers, pointers in them, and its own resources",
                    ),
                };
                self.add(level, "WSMT", format_args!("flags {flags:#x}"), advice);
            }
            None if facts.arm.is_none() && !acpi.damage.iter().any(|damage| damage.what == "WSMT") => {
                self.add(
                    Level::Ok,
                    "WSMT",
                    "not there: the firmware promises no checks in MM",
                    "",
                );
            }
            None => {}
        }
        match acpi.smm_communication {
            Some((number, buffer)) => {
                let found = format!("software SMI {number:#x}, the buffer's address is at {buffer:#x}");
                self.add(Level::Ok, "SMM communication table", found, "");
            }
            None if facts.arm.is_none() => self.add(Level::Ok, "SMM communication table", "not there", ""),
            None => {}
        }
    }

    fn arm(&mut self, arm: &Arm) {
        let el3 = if arm.el3 {
            "there is an EL3"
        } else {
            "the processor shows no EL3"
        };
        let psci = match (arm.conduit, arm.conduit_from) {
            ("", _) => "neither FADT nor device tree says how PSCI is called".to_string(),
            (conduit, from) => format!("PSCI is called by {conduit} ({from})"),
        };
        self.add(
            Level::Ok,
            "processor",
            format_args!("UEFI runs at EL{}; {el3}; {psci}", arm.level),
            "",
        );
        let Some(mm) = &arm.mm else {
            self.add(
                Level::Look,
                "secure world",
                "there is no EL3 and PSCI is not called by smc: a secure monitor call would trap, none was made",
                "docs/platform-arm.md, \"What each error means\"",
            );
            return;
        };
        match mm {
            Ok(found) => self.add(Level::Ok, "MM in the secure world", found, ""),
            Err(error) => self.add(
                Level::Look,
                "MM in the secure world",
                error,
                "docs/platform-arm.md, \"What each error means\"",
            ),
        }
        for (name, version) in [("FF-A", &arm.ffa), ("SPM_MM", &arm.spm_mm)] {
            match version {
                Some(Ok((major, minor))) => {
                    self.add(Level::Ok, name, format_args!("version {major}.{minor}"), "")
                }
                // One of them is enough, and the line above says if both are missing.
                Some(Err(error)) => self.add(Level::Ok, name, error, ""),
                None => {}
            }
        }
        match &arm.partitions {
            Some(Ok(partitions)) => {
                for partition in partitions {
                    let service = match partition.uuid.as_str() {
                        MM_SERVICE => "MM",
                        uuid => uuid,
                    };
                    let found = format!(
                        "{:#06x}: {} execution contexts, properties {:#x}, service {service}",
                        partition.id, partition.contexts, partition.properties
                    );
                    self.add(Level::Ok, "FF-A partition", found, "");
                }
            }
            Some(Err(error)) => self.add(Level::Look, "FF-A partitions", error, "docs/platform-arm.md"),
            None => {}
        }
    }

    fn probe(&mut self, probe: &Probe) {
        let about = format!("probe, {}: {}", probe.way, probe.question);
        let took = probe.us.map(|us| format!(", {us} us")).unwrap_or_default();
        let not_found = EfiStatus::NOT_FOUND.to_string();
        match (&probe.response, probe.may_be_missing) {
            (Ok(response), _) if probe.unknown && response == &probe.request => self.add(
                Level::Look,
                &about,
                format_args!("its own bytes back{took}"),
                "this way does not distinguish a response from a request that no handler took",
            ),
            (Ok(response), _) => {
                let bytes = response.len().checked_div(2).unwrap_or_default();
                self.add(Level::Ok, &about, format_args!("{bytes} bytes back{took}"), "");
            }
            (Err(why), true) if why.contains(&not_found) => {
                self.add(Level::Ok, &about, format_args!("no handler: {why}{took}"), "");
            }
            (Err(why), _) => self.add(Level::Look, &about, format_args!("{why}{took}"), NO_RESPONSE),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::facts::{Acpi, Mailbox, Protocol, Region};
    use std::vec;

    pub(crate) fn runtime() -> Option<Mapped> {
        Some(Mapped {
            kind: "RuntimeServicesData".to_string(),
            attributes: 1 << 63 | 0xf,
            whole: true,
            pages: Some(Pages {
                elsewhere: None,
                writable: true,
                memory: "write-back".to_string(),
                same_memory: true,
            }),
        })
    }

    pub(crate) fn buffer() -> Buffer {
        Buffer {
            source: "comm-buffer HOB".to_string(),
            region: Some(Range {
                start: 0x7f00_0000,
                len: 0x8_0000,
            }),
            mailbox: Some(0x7f08_0000),
            memory: runtime(),
            mailbox_memory: runtime(),
            state: Some(Mailbox {
                pending: false,
                status: 0,
                size: 0,
            }),
            ..Buffer::default()
        }
    }

    /// A machine on which everything is as it should be.
    pub(crate) fn healthy() -> Facts {
        Facts {
            arch: "x86_64",
            has_hob_list: true,
            buffers: vec![buffer()],
            acpi: Acpi {
                present: true,
                smi_cmd: Some(0xb2),
                pm1a_event: Some(0x600),
                wsmt: Some(7),
                ..Acpi::default()
            },
            chipset: Some(Chipset {
                host_bridge: Some((0x8086, 0x29c0)),
                lpc: Some((0x8086, 0x2918)),
                name: "Intel Q35, as QEMU has it".to_string(),
                acpi_base_from: "PMBASE, PCI 0:1F.0 0x40".to_string(),
                acpi_base: Some(0x600),
                acpi_enabled: Some(true),
                smi_en: Some(0x23),
                smi_sts: Some(0),
                smi_lock: Some(true),
                smram: Some(0x1a),
                tseg: None,
            }),
            ..Facts::default()
        }
    }

    fn complaints(facts: &Facts) -> Vec<(Level, String)> {
        judge(facts)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| (finding.level, format!("{}: {}", finding.about, finding.found)))
            .collect()
    }

    /// The only finding on a machine that is healthy otherwise.
    fn complaint(spoil: impl FnOnce(&mut Facts)) -> (Level, String) {
        let mut facts = healthy();
        spoil(&mut facts);
        let complaints = complaints(&facts);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        complaints[0].clone()
    }

    fn spoil_chipset(spoil: impl FnOnce(&mut Chipset)) -> (Level, String) {
        complaint(|facts| spoil(facts.chipset.as_mut().unwrap()))
    }

    fn is(found: (Level, String), level: Level, words: &str) {
        assert_eq!(found.0, level, "{}", found.1);
        assert!(found.1.contains(words), "{}", found.1);
    }

    #[test]
    fn a_healthy_machine_has_no_complaints() {
        assert_eq!(complaints(&healthy()), []);
        assert_eq!(worst(&judge(&healthy())), Level::Ok);
    }

    #[test]
    fn switched_off_smis_have_the_triggers_text() {
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(1)),
            Level::Broken,
            "SMIs are off: SMI_EN at 0x630 is 0x00000001, APMC_EN missing",
        );
        is(
            spoil_chipset(|chipset| (chipset.smi_en, chipset.smi_lock) = (Some(0), None)),
            Level::Look,
            "SMI_EN at 0x630 is 0",
        );
    }

    #[test]
    fn smis_that_are_locked_off_are_broken() {
        for smi_en in [0, 0x20] {
            let mut facts = healthy();
            facts.chipset.as_mut().unwrap().smi_en = Some(smi_en);
            let found = complaints(&facts);
            let lock = found
                .iter()
                .find(|(_, words)| words.starts_with("SMI_LOCK"))
                .unwrap();
            is(lock.clone(), Level::Broken, "stay off until the next reset");
        }
        // Another register's value says nothing about GBL_SMI_EN.
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(0x0280_0020)),
            Level::Broken,
            "another register is there",
        );
    }

    #[test]
    fn buffers_that_share_memory_are_broken() {
        let with = |spoil: &dyn Fn(&mut Buffer)| {
            let mut facts = healthy();
            let mut other = buffer();
            other.region = Some(Range {
                start: 0x7e00_0000,
                len: 0x8_0000,
            });
            other.mailbox = Some(0x7e08_0000);
            spoil(&mut other);
            facts.buffers.push(other);
            complaints(&facts)
        };
        assert_eq!(with(&|_| {}), []);
        // Project Mu's supervisor has one mailbox for both.
        assert_eq!(with(&|other| other.mailbox = Some(0x7f08_0000)), []);
        let shared: [&dyn Fn(&mut Buffer); 4] = [
            &|other| other.region.as_mut().unwrap().len = 0x1000_0000,
            &|other| other.region.as_mut().unwrap().start = 0x7f08_0000,
            &|other| other.mailbox = Some(0x7f07_fff8),
            &|other| other.mailbox = Some(0x7f08_0008),
        ];
        for spoil in shared {
            let found = with(spoil);
            assert_eq!(found.len(), 1, "{found:?}");
            is(
                found[0].clone(),
                Level::Broken,
                "it shares memory with comm buffer 1",
            );
        }
        // A region that the command line names, too.
        assert_eq!(
            with(&|other| {
                other.region = Some(Range {
                    start: 0x7f00_0000,
                    len: 0x1000,
                });
                other.source = NAMED.to_string();
            }),
            []
        );
    }

    #[test]
    fn memory_of_mm_is_known_from_the_chipset_too() {
        let in_tseg = |facts: &mut Facts| {
            facts.chipset.as_mut().unwrap().tseg = Some(Range {
                start: 0x7f00_0000,
                len: 0x1000,
            });
        };
        is(complaint(in_tseg), Level::Broken, "overlap MMRAM");
        let mailbox = |facts: &mut Facts| facts.buffers[0].mailbox = Some(0xa_0000);
        is(
            complaint(mailbox),
            Level::Broken,
            "the status mailbox at 0xa0000 is in MMRAM",
        );
        // Without G_SMRAME there is no SMRAM.
        let mut facts = healthy();
        mailbox(&mut facts);
        facts.chipset.as_mut().unwrap().smram = Some(0x12);
        let found = complaints(&facts);
        assert_eq!(found.len(), 1, "{found:?}");
        is(found[0].clone(), Level::Look, "locked and off");
    }

    #[test]
    fn damaged_lists_and_tables_are_looked_at() {
        let damage = |what: &str| Damage {
            what: what.to_string(),
            found: "the checksum is wrong".to_string(),
        };
        is(
            complaint(|facts| facts.damage.push(damage("HOB list"))),
            Level::Look,
            "HOB list: the checksum is wrong",
        );
        let found = complaint(|facts| {
            facts.acpi.wsmt = None;
            facts.acpi.damage.push(damage("WSMT"));
        });
        is(found, Level::Look, "WSMT: the checksum is wrong");
        let mut facts = healthy();
        facts.acpi.wsmt = None;
        facts.acpi.damage.push(damage("WSMT"));
        assert!(
            !judge(&facts)
                .iter()
                .any(|finding| finding.found.contains("not there: the firmware"))
        );
        is(
            complaint(|facts| facts.acpi.wsmt = Some(0xf)),
            Level::Look,
            "WSMT: flags 0xf",
        );
        is(
            complaint(|facts| facts.acpi.smi_cmd = Some(0x1_00b2)),
            Level::Look,
            "SMI_CMD is 0x100b2, which is not a port",
        );
    }

    #[test]
    fn mmram_is_a_range_of_addresses() {
        for (start, len) in [(0x8000_0000, 0), (u64::MAX, 2)] {
            let found = complaint(|facts| facts.mmram = vec![Range { start, len }]);
            is(found, Level::Look, "not a range of addresses");
        }
    }

    #[test]
    fn regions_are_whole_pages() {
        for (start, len) in [(0x4000, 0), (0x4000, 0x800), (0x4008, 0x1000)] {
            let found = complaint(|facts| {
                facts.regions = vec![Region {
                    what: "FF-A RX page".to_string(),
                    range: Range { start, len },
                    memory: runtime(),
                }];
            });
            is(found, Level::Broken, "not whole pages");
        }
    }

    #[test]
    fn a_wrong_pmbase_is_detected_by_the_registers_value() {
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(u32::MAX)),
            Level::Broken,
            "no device responds",
        );
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(0x0280_0021)),
            Level::Broken,
            "another register is there",
        );
        is(
            spoil_chipset(|chipset| chipset.acpi_base = Some(0x400)),
            Level::Broken,
            "0x400 (PMBASE, PCI 0:1F.0 0x40), and the FADT says 0x600",
        );
        is(
            spoil_chipset(|chipset| chipset.acpi_enabled = Some(false)),
            Level::Broken,
            "not decoded",
        );
    }

    #[test]
    fn a_machine_without_hobs_and_protocols_has_no_way_to_mm() {
        is(
            complaint(|facts| facts.buffers.clear()),
            Level::Broken,
            "no HOB announces",
        );
        let mut facts = healthy();
        facts.buffers.clear();
        facts.protocols.push(Protocol {
            name: "MM communication 2",
            guid: String::new(),
            is_marker: false,
            image: "PiSmmIpl".to_string(),
        });
        assert_eq!(complaints(&facts), []);
    }

    #[test]
    fn a_mailbox_that_announces_a_request_is_stale() {
        let stale = |facts: &mut Facts| {
            facts.buffers[0].state = Some(Mailbox {
                pending: true,
                status: 0,
                size: 0,
            });
        };
        is(complaint(stale), Level::Broken, "still announces it");
    }

    #[test]
    fn memory_that_does_not_last_is_broken() {
        let memory = |kind: &str, whole| {
            complaint(|facts| {
                facts.buffers[0].memory = Some(Mapped {
                    kind: kind.to_string(),
                    attributes: 1 << 63,
                    whole,
                    pages: None,
                });
            })
        };
        is(
            memory("BootServicesData", true),
            Level::Broken,
            "does not survive the boot",
        );
        is(
            memory("RuntimeServicesData", false),
            Level::Broken,
            "only in part",
        );
        is(memory("", true), Level::Look, "not in the memory map");
        is(
            complaint(|facts| {
                facts.mmram = vec![Range {
                    start: 0x7f07_0000,
                    len: 0x10_0000,
                }];
            }),
            Level::Broken,
            "overlap MMRAM",
        );
    }

    #[test]
    fn addresses_that_are_not_mapped_one_to_one_are_broken() {
        let pages = |spoil: &dyn Fn(&mut Pages)| {
            complaint(|facts| spoil(facts.buffers[0].memory.as_mut().unwrap().pages.as_mut().unwrap()))
        };
        is(
            pages(&|pages| pages.elsewhere = Some((0x7f00_1000, None))),
            Level::Broken,
            "0x7f001000 is not mapped, an access faults",
        );
        is(
            pages(&|pages| pages.elsewhere = Some((0x7f00_0000, Some(0x5000)))),
            Level::Broken,
            "0x7f000000 is mapped to 0x5000",
        );
        is(pages(&|pages| pages.writable = false), Level::Broken, "read-only");
        is(
            pages(&|pages| pages.memory = "uncached".to_string()),
            Level::Look,
            "uncached",
        );
        is(
            pages(&|pages| pages.same_memory = false),
            Level::Look,
            "in part or whole",
        );
        is(
            complaint(|facts| facts.buffers[0].memory.as_mut().unwrap().attributes = 0xf),
            Level::Look,
            "without the attribute RUNTIME",
        );
        let found = judge(&healthy());
        let words = "524288 bytes at 0x7f000000: RuntimeServicesData (UC WC WT WB RUNTIME), mapped one to one, write-back";
        assert!(found.iter().any(|finding| finding.found == words), "{found:?}");
    }

    #[test]
    fn other_memory_for_mm_is_compared_with_the_memory_map() {
        let mut facts = healthy();
        facts.mmram = vec![Range {
            start: 0x8000_0000,
            len: 0x1000,
        }];
        let region = |memory| Region {
            what: "FF-A RX page".to_string(),
            range: Range {
                start: 0x4000,
                len: 0x1000,
            },
            memory,
        };
        facts.regions = vec![region(runtime())];
        assert_eq!(complaints(&facts), []);
        let about = |facts: &Facts, about: &str| judge(facts).iter().any(|finding| finding.about == about);
        assert!(about(&facts, "MMRAM") && about(&facts, "FF-A RX page"));
        let memory = Mapped {
            kind: "LoaderData".to_string(),
            whole: true,
            ..Mapped::default()
        };
        facts.regions = vec![region(Some(memory))];
        is(
            complaints(&facts)[0].clone(),
            Level::Broken,
            "LoaderData, which does not survive",
        );
    }

    #[test]
    fn a_machine_without_a_hob_list_is_looked_at() {
        is(
            complaint(|facts| facts.has_hob_list = false),
            Level::Look,
            "not among the configuration tables",
        );
    }

    #[test]
    fn an_mmi_that_mm_did_not_take_is_seen_in_smi_sts() {
        is(
            spoil_chipset(|chipset| chipset.smi_sts = Some(1 << 5)),
            Level::Look,
            "APM_STS is set",
        );
        is(
            spoil_chipset(|chipset| chipset.smi_sts = Some(u32::MAX)),
            Level::Look,
            "no device responds",
        );
    }

    #[test]
    fn amds_command_port_is_in_the_fadt() {
        let amd = |smi_cmd| {
            let mut facts = healthy();
            facts.acpi.smi_cmd = Some(smi_cmd);
            facts.chipset = Some(Chipset {
                name: AMD.to_string(),
                acpi_base: Some(0x600),
                ..Chipset::default()
            });
            complaints(&facts)
        };
        // The one finding left is about SMRAM, which is not known here.
        assert_eq!(amd(0xb0).len(), 1, "{:?}", amd(0xb0));
        let found = amd(0);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found
                .iter()
                .any(|(_, words)| words.contains("SMI_EN is not known")),
            "{found:?}"
        );
    }

    fn arm(arm: Arm) -> Facts {
        Facts {
            has_hob_list: true,
            arm: Some(arm),
            ..Facts::default()
        }
    }

    #[test]
    fn one_interface_of_the_secure_world_is_enough() {
        let absent = || Some(Err("function 0x84000040 returned -1".to_string()));
        let facts = arm(Arm {
            level: 1,
            ffa: Some(Ok((1, 2))),
            spm_mm: absent(),
            mm: Some(Ok("FF-A, partition 0x8002".to_string())),
            ..Arm::default()
        });
        let found = complaints(&facts);
        assert_eq!(found.len(), 1, "{found:?}");
        is(found[0].clone(), Level::Look, "by secure monitor calls");
        // If the region is named, nothing needs a look.
        let mut named = facts.clone();
        named.buffers = vec![Buffer {
            source: NAMED.to_string(),
            mailbox: None,
            ..buffer()
        }];
        named.buffers[0].state = None;
        assert_eq!(complaints(&named), []);
        named.buffers[0].memory.as_mut().unwrap().kind = "Conventional".to_string();
        is(
            complaints(&named)[0].clone(),
            Level::Look,
            "free for every driver",
        );

        let facts = arm(Arm {
            ffa: absent(),
            spm_mm: absent(),
            mm: Some(Err("the secure world offers neither".to_string())),
            ..Arm::default()
        });
        let found = complaints(&facts);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].0, Level::Broken);
        is(found[1].clone(), Level::Look, "offers neither");
    }

    #[test]
    fn an_arm_processor_without_el3_has_no_way() {
        let found = complaints(&arm(Arm {
            level: 1,
            conduit: "hvc",
            ..Arm::default()
        }));
        assert_eq!(found.len(), 2, "{found:?}");
        is(found[1].clone(), Level::Look, "none was made");
    }

    #[test]
    fn ffas_partitions_are_named() {
        use crate::facts::Partition;
        let partition = |uuid: &str| Partition {
            id: 0x8002,
            contexts: 1,
            properties: 0x101,
            uuid: uuid.to_string(),
        };
        let mut facts = arm(Arm {
            mm: Some(Ok(String::new())),
            partitions: Some(Ok(vec![partition(MM_SERVICE), partition("0")])),
            ..Arm::default()
        });
        let words: Vec<String> = judge(&facts).into_iter().map(|finding| finding.found).collect();
        assert!(
            words
                .iter()
                .any(|found| found.starts_with("0x8002: 1 exec") && found.ends_with("service MM"))
        );
        facts.arm.as_mut().unwrap().partitions = Some(Err("FFA_RXTX_MAP: -6".to_string()));
        assert!(complaints(&facts).iter().any(|(_, words)| words.contains("-6")));
    }

    #[test]
    fn smram_that_is_open_is_broken() {
        is(
            spoil_chipset(|chipset| chipset.smram = Some(0x4a)),
            Level::Broken,
            "open",
        );
        is(
            spoil_chipset(|chipset| chipset.smram = Some(0x3a)),
            Level::Broken,
            "with D_CLS",
        );
        is(
            spoil_chipset(|chipset| chipset.smram = Some(0x0a)),
            Level::Look,
            "not locked",
        );
        is(
            spoil_chipset(|chipset| chipset.smi_lock = Some(false)),
            Level::Look,
            "SMI_LOCK",
        );
    }

    #[test]
    fn a_probe_is_judged_by_what_may_come_back() {
        let probe = |response| Probe {
            way: "communication protocol 2".to_string(),
            question: "the variable service's payload size",
            may_be_missing: false,
            unknown: false,
            recipient: String::new(),
            request: String::new(),
            response,
            us: Some(35),
        };
        is(
            complaint(|facts| {
                facts.probes = vec![
                    probe(Err("EFI_NOT_FOUND".to_string())),
                    probe(Ok("00".to_string())),
                ]
            }),
            Level::Look,
            "EFI_NOT_FOUND, 35 us",
        );
        let not_found = || Err(EfiStatus::NOT_FOUND.to_string());
        let mut facts = healthy();
        facts.probes = vec![Probe {
            may_be_missing: true,
            unknown: true,
            ..probe(not_found())
        }];
        assert_eq!(complaints(&facts), []);
        facts.probes[0].response = Ok(String::new());
        let (level, words) = &complaints(&facts)[0];
        assert!(
            *level == Level::Look && words.contains("its own bytes back"),
            "{words}"
        );
    }
}
