//! What is fine, what needs a look, and what is broken.

use crate::facts::{Arm, Buffer, Chipset, Facts, Mapped, Probe};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use mm_comm::{ResponseError, SmiEnable, TriggerError};
use mm_wire::EfiStatus;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It may be meant so, or not.
    Look,
    /// MM cannot be used like this.
    Broken,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub advice: String,
}

/// Bits of SMI_EN that are reserved on every Intel chipset so far (ICH9 data sheet, 13.8.3.8; 100 Series PCH, volume 2).
const RESERVED_IN_SMI_EN: u32 = 0x0380_0000;

/// The page that the advice is from.
const NO_MMI: &str = "docs/troubleshooting.md, \"No MMI\"";
const NO_RESPONSE: &str = "docs/troubleshooting.md, \"MMI, but no response\"";

/// Judges what was seen.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    findings.ways(facts);
    for (index, buffer) in facts.buffers.iter().enumerate() {
        findings.buffer(index, buffer, facts);
    }
    if let Some(chipset) = &facts.chipset {
        findings.chipset(chipset, facts);
    }
    if let Some(arm) = &facts.arm {
        findings.arm(arm);
    }
    findings.acpi(facts);
    facts.probes.iter().for_each(|probe| findings.probe(probe));
    findings.0
}

/// The worst of them; what is fine if there is none.
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

/// Whether the secure world responds.
fn secure_world(arm: &Arm) -> bool {
    let is_there = |version: &Option<Result<_, _>>| matches!(version, Some(Ok(_)));
    is_there(&arm.ffa) || is_there(&arm.spm_mm)
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

    /// How MM can be reached at all.
    fn ways(&mut self, facts: &Facts) {
        const ABOUT: &str = "ways to MM";
        let usable = facts
            .buffers
            .iter()
            .filter(|buffer| buffer.error.is_none())
            .count();
        let protocols: Vec<&str> = facts.protocols.iter().map(|protocol| protocol.name).collect();
        let secure = facts.arm.as_ref().is_some_and(secure_world);
        match (usable, has_communication(facts), secure) {
            (0, false, false) => self.add(
                Level::Broken,
                ABOUT,
                "no HOB announces a comm buffer, no communication protocol is installed, and no secure world responds",
                "this firmware has no MM, or does not say where; on Patina the platform has to configure the comm buffer \
                 by hand (docs/configuration.md)",
            ),
            (0, true, _) => self.add(
                Level::Ok,
                ABOUT,
                "by the firmware's communication protocol; no HOB announces a comm buffer",
                "a Patina component uses FirmwareMmCommunication (docs/protocols.md)",
            ),
            (0, false, true) => self.add(
                Level::Look,
                ABOUT,
                "by secure monitor calls; no HOB announces a comm buffer",
                "the platform has to configure the region that it shares with the secure world (docs/platform-arm.md)",
            ),
            (buffers, ..) => self.add(Level::Ok, ABOUT, format_args!("{buffers} comm buffers from HOBs"), ""),
        }
        for protocol in &facts.protocols {
            let by = match protocol.image.as_str() {
                "" => "interface in no loaded image".to_string(),
                image => format!("installed by {image}"),
            };
            self.add(Level::Ok, protocol.name, by, "");
        }
        if protocols.contains(&"MM supervisor's communication") && usable > 0 {
            self.add(
                Level::Look,
                "MM supervisor",
                "the firmware has a driver in C for it, which may move the comm buffers itself",
                "do not add MmSupervisorClient beside it (docs/protocols.md)",
            );
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
        let overlaps_mmram = facts.mmram.iter().any(|mmram| {
            let end = |range: crate::facts::Range| range.start.saturating_add(range.len);
            region.start < end(*mmram) && mmram.start < end(region)
        });
        if overlaps_mmram {
            self.add(
                Level::Broken,
                &about,
                format_args!("{place} overlap MMRAM"),
                "a comm buffer has to be outside: MM refuses it, and nothing else can reach it",
            );
        }
        match &buffer.memory {
            Some(memory) => self.memory(&about, &place, memory),
            None => self.add(
                Level::Look,
                &about,
                format_args!("{place}; the memory map cannot be read"),
                "",
            ),
        }
        match (buffer.mailbox, &buffer.mailbox_memory) {
            (None, _) => self.add(
                Level::Look,
                &about,
                "no status mailbox",
                "a request that no handler takes then looks as if its own bytes were the response",
            ),
            (Some(address), Some(memory)) => {
                self.memory(&about, &format!("status mailbox at {address:#x}"), memory)
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

    fn memory(&mut self, about: &str, place: &str, memory: &Mapped) {
        const RUNTIME: &str = "RuntimeServicesData";
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
                self.add(Level::Ok, about, format_args!("{place}: {kind}"), "");
            }
            kind => self.add(
                Level::Broken,
                about,
                format_args!("{place}: {kind}, which does not survive the boot"),
                "allocate it from RuntimeServicesData",
            ),
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
            (None, _) => self.add(
                Level::Look,
                ABOUT,
                "SMI_EN is not known for this chipset",
                "use SmiCheck::Off; AMD's command port is the FADT's SMI_CMD",
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
        if chipset.smi_lock == Some(false) {
            self.add(
                Level::Look,
                "SMI_LOCK",
                "not set: GBL_SMI_EN can be cleared by anybody",
                "firmware sets it at the end of DXE; before that this is as expected",
            );
        }
        if let Some(smram) = chipset.smram {
            let (is_open, is_locked) = (smram & 1 << 6 != 0, smram & 1 << 4 != 0);
            match (is_open, is_locked) {
                (true, _) => self.add(
                    Level::Broken,
                    "SMRAM",
                    format_args!("open: the control register is {smram:#04x}, with D_OPEN"),
                    "anybody can change MM's code; close and lock it before anything that is not the platform's runs",
                ),
                (false, false) => self.add(
                    Level::Look,
                    "SMRAM",
                    format_args!("closed and not locked: the control register is {smram:#04x}"),
                    "lock it (D_LCK) at the end of DXE",
                ),
                (false, true) => {
                    self.add(Level::Ok, "SMRAM", format_args!("closed and locked ({smram:#04x})"), "");
                }
            }
        }
        if let Some(tseg) = chipset.tseg {
            let found = match tseg.len {
                0 => format!("at {:#x}, of a size that its register does not tell", tseg.start),
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
                "without it SMI_EN is not checked: use SmiCheck::Off",
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
                "one of both is wrong; a trigger that checks SMI_EN behind the wrong one reads another register",
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
        if let Some(port) = facts.acpi.smi_cmd.filter(|port| *port != 0) {
            self.add(Level::Ok, "FADT", format_args!("SMI_CMD is port {port:#x}"), "");
        }
        if let Some(flags) = facts.acpi.wsmt {
            let missing = 7 & !flags;
            let (level, advice) = match missing {
                0 => (Level::Ok, ""),
                _ => (
                    Level::Look,
                    "bits 0 to 2 promise that MM checks buffers, pointers in them, and its own resources",
                ),
            };
            self.add(level, "WSMT", format_args!("flags {flags:#x}"), advice);
        }
        if let Some((number, buffer)) = facts.acpi.smm_communication {
            let found = format!("software SMI {number:#x}, the buffer's address is at {buffer:#x}");
            self.add(Level::Ok, "SMM communication table", found, "");
        }
    }

    fn arm(&mut self, arm: &Arm) {
        let found = match arm.conduit {
            "" => format!(
                "UEFI runs at EL{}; ACPI does not say that there is PSCI",
                arm.level
            ),
            conduit => format!("UEFI runs at EL{}; PSCI by {conduit}", arm.level),
        };
        self.add(Level::Ok, "processor", found, "");
        for (name, version) in [("FF-A", &arm.ffa), ("SPM_MM", &arm.spm_mm)] {
            match version {
                Some(Ok((major, minor))) => {
                    self.add(Level::Ok, name, format_args!("version {major}.{minor}"), "")
                }
                // One of both is enough.
                Some(Err(error)) if secure_world(arm) => self.add(Level::Ok, name, error, ""),
                Some(Err(error)) => self.add(Level::Look, name, error, "docs/platform-arm.md"),
                None => {}
            }
        }
    }

    fn probe(&mut self, probe: &Probe) {
        let about = format!("probe, {}: {}", probe.way, probe.question);
        let took = probe.us.map(|us| format!(", {us} us")).unwrap_or_default();
        let not_found = EfiStatus::NOT_FOUND.to_string();
        match (&probe.response, probe.may_be_missing) {
            (Ok(response), _) if probe.nobody && response == &probe.request => self.add(
                Level::Look,
                &about,
                format_args!("its own bytes back{took}"),
                "nothing tells a response from none by this way",
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
    use crate::facts::{Acpi, Mailbox, Protocol, Range};
    use std::vec;

    pub(crate) fn runtime() -> Option<Mapped> {
        Some(Mapped {
            kind: "RuntimeServicesData".to_string(),
            attributes: 0x800_0000_0000_000f,
            whole: true,
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

    /// A machine with nothing to complain of.
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

    /// The one thing that is wrong with a machine that is else healthy.
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
    fn smis_that_are_off_are_told_in_the_words_of_the_trigger() {
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(1)),
            Level::Broken,
            "SMIs are off: SMI_EN at 0x630 is 0x00000001, APMC_EN missing",
        );
        is(
            spoil_chipset(|chipset| chipset.smi_en = Some(0)),
            Level::Look,
            "SMI_EN at 0x630 is 0",
        );
    }

    #[test]
    fn a_wrong_pmbase_is_told_by_what_is_there() {
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
                    attributes: 0,
                    whole,
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
    fn one_interface_of_the_secure_world_is_enough() {
        let absent = || Some(Err("function 0x84000040 is not there".to_string()));
        let arm = |ffa| Facts {
            arm: Some(Arm {
                level: 1,
                ffa,
                spm_mm: absent(),
                ..Arm::default()
            }),
            ..Facts::default()
        };
        let found = complaints(&arm(Some(Ok((1, 2)))));
        assert_eq!(found.len(), 1, "{found:?}");
        is(found[0].clone(), Level::Look, "by secure monitor calls");
        let found = complaints(&arm(absent()));
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0].0, Level::Broken);
    }

    #[test]
    fn smram_that_is_open_is_broken() {
        is(
            spoil_chipset(|chipset| chipset.smram = Some(0x4a)),
            Level::Broken,
            "open",
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
            nobody: false,
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
            nobody: true,
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
