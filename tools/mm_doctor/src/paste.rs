//! The components and the configuration for this machine, as Rust to paste.

use crate::facts::{Arm, Facts, Range};
use crate::findings::{command_port, has_communication, secure_world, usable};
use alloc::format;
use alloc::string::{String, ToString};

/// The command port of Intel's chipsets, which `MmHobConfiguration` takes if none is configured.
const INTEL_COMMAND_PORT: u16 = 0xb2;

/// The Rust for this machine, or what is missing to write it.
///
/// # Errors
///
/// The fact that the machine does not tell.
pub fn rust(facts: &Facts) -> Result<String, &'static str> {
    let has_hob = usable(facts, false).next().is_some();
    let region = usable(facts, true).find_map(|buffer| buffer.region);
    let source = match (&facts.arm, region) {
        (None, _) if has_hob => from_hobs(facts),
        (Some(arm), _) if has_hob && secure_world(facts) => from_hobs_by_secure_calls(arm),
        (Some(arm), Some(region)) if secure_world(facts) => by_secure_calls(arm, region),
        _ if has_communication(facts) => by_protocol(),
        (Some(_), None) if secure_world(facts) => {
            return Err(
                "no HOB announces the region that is shared with the secure world; name it with -r ADDRESS,BYTES",
            );
        }
        (Some(_), _) => return Err("MM in the secure world does not respond: docs/platform-arm.md"),
        (None, _) => {
            return Err("no comm buffer is announced, and no protocol is installed: docs/configuration.md");
        }
    };
    Ok(source.text())
}

/// A platform's components and configuration.
#[derive(Default)]
struct Source {
    /// Paths of `patina_mm`, in order.
    imports: String,
    configs: String,
    components: String,
}

impl Source {
    fn import(mut self, path: &str) -> Self {
        self.imports.push_str(&format!("use patina_mm::{path};\n"));
        self
    }

    fn config(mut self, lines: &str) -> Self {
        self.configs.push_str(&indented(lines));
        self
    }

    fn component(mut self, lines: &str) -> Self {
        self.components.push_str(&indented(lines));
        self
    }

    fn text(self) -> String {
        let configs = match self.configs.as_str() {
            "" => String::new(),
            configs => format!("    fn configs(mut add: Add<Config>) {{\n{configs}    }}\n\n"),
        };
        format!(
            "use patina_dxe_core::*;\n{}\nstruct Board;\n\nimpl ComponentInfo for Board {{\n{configs}    \
             fn components(mut add: Add<Component>) {{\n{}    }}\n}}\n",
            self.imports, self.components
        )
    }
}

/// Lines of the body of a method.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("        {line}\n")).collect()
}

const COMMUNICATOR: &str = "component::communicator::MmCommunicator";
const MANAGER: &str = "component::sw_mmi_manager::SwMmiManager";
const ADD_BOTH: &str = "add.component(SwMmiManager::new());\nadd.component(MmCommunicator::new());";

fn from_hobs(facts: &Facts) -> Source {
    let chipset = facts.chipset.as_ref();
    // Only Intel's chipsets have SMI_EN behind their ACPI base.
    let base = chipset.and_then(|chipset| chipset.acpi_base.filter(|_| chipset.smi_en.is_some()));
    let is_ich9 = chipset.is_some_and(|chipset| chipset.acpi_base_from.starts_with("PMBASE"));
    let source = Source::default().import(COMMUNICATOR);
    let source = match base {
        Some(_) => source.import("component::hob_configuration::{AcpiBaseSource, MmHobConfiguration}"),
        None => source.import("component::hob_configuration::MmHobConfiguration"),
    };
    let source = source.import(MANAGER);
    let port = command_port(facts).filter(|port| base.is_none() && *port != INTEL_COMMAND_PORT);
    let source = match (port, base) {
        (Some(port), _) => {
            let data = port.saturating_add(1);
            source
                .import("config::{MmCommunicationConfiguration, MmiPort}")
                .config(&format!(
                    "add.config(MmCommunicationConfiguration {{\n    \
                     cmd_port: MmiPort::Smi({port:#x}), // SMI_CMD of the FADT\n    \
                     data_port: MmiPort::Smi({data:#x}),\n    \
                     ..Default::default()\n}});"
                ))
        }
        (None, Some(_)) if !is_ich9 => source.import("config::AcpiBase"),
        (None, _) => source,
    };
    let components = match base {
        Some(base) => {
            let from = if is_ich9 {
                "AcpiBaseSource::Ich9".to_string()
            } else {
                format!("AcpiBaseSource::Fixed(AcpiBase::Io({base:#x}))")
            };
            format!(
                "// Takes the comm buffers from the HOBs, and checks SMI_EN behind the ACPI base, {base:#x} here.\n\
                 add.component(MmHobConfiguration::new().with_acpi_base({from}));"
            )
        }
        None => "// Takes the comm buffers from the HOBs. This chipset's SMI_EN is not known, so it is not checked.\n\
                 add.component(MmHobConfiguration::new());"
            .to_string(),
    };
    source.component(&components).component(ADD_BOTH)
}

/// Says how PSCI is called, if patina_mm would make no secure monitor call otherwise.
fn psci(source: Source, arm: &Arm, imports: &str) -> Source {
    if arm.el3 {
        return source.import(&format!("config::{{{imports}}}"));
    }
    source
        .import(&format!("config::{{{imports}, PsciConduit, SmcOptions}}"))
        .config("// The processor shows no EL3, and PSCI is called by smc.")
        .config("add.config(SmcOptions { psci: PsciConduit::Smc, ..Default::default() });")
}

fn from_hobs_by_secure_calls(arm: &Arm) -> Source {
    let source = Source::default()
        .import(COMMUNICATOR)
        .import("component::hob_configuration::MmHobConfiguration")
        .import(MANAGER);
    psci(source, arm, "MmCommunicationConfiguration, MmiPort")
        .config(
            "add.config(MmCommunicationConfiguration {\n    \
                 cmd_port: MmiPort::Smc(0xC400_0041), // FF-A if there is 1.2 or later, else SPM_MM\n    \
                 data_port: MmiPort::Smc(0xC400_0041),\n    \
                 ..Default::default()\n});",
        )
        .component("// Takes the comm buffers from the HOBs.\nadd.component(MmHobConfiguration::new());")
        .component(ADD_BOTH)
}

fn by_secure_calls(arm: &Arm, Range { start, len }: Range) -> Source {
    let source = Source::default().import(COMMUNICATOR).import(MANAGER);
    psci(source, arm, "AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmiPort")
        .config(&format!(
            "// SAFETY: the board reserves this region for MM, mapped one to one, and nothing else uses it.\n\
             let buffer = unsafe {{ CommunicateBuffer::from_firmware_region({start:#x}, {len:#x}, 0, None) }};\n\
             add.config(MmCommunicationConfiguration {{\n    \
                 acpi_base: AcpiBase::Mmio(0), // no SMI_EN\n    \
                 cmd_port: MmiPort::Smc(0xC400_0041), // FF-A if there is 1.2 or later, else SPM_MM\n    \
                 data_port: MmiPort::Smc(0xC400_0041),\n    \
                 comm_buffers: buffer.into_iter().collect(),\n    \
                 ..Default::default()\n}});"
        ))
        .component(ADD_BOTH)
}

fn by_protocol() -> Source {
    Source::default()
        .import("component::protocols::FirmwareMmCommunication")
        .component("// The firmware's own driver carries messages: comm buffer 0 of 16 pages is for them.")
        .component("add.component(FirmwareMmCommunication::new(0, 16));")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Buffer, NAMED, Protocol};
    use crate::findings::tests::{buffer, healthy};
    use std::vec;

    fn protocol() -> Protocol {
        Protocol {
            name: "MM communication 2",
            guid: String::new(),
            is_marker: false,
            image: String::new(),
        }
    }

    /// The same texts as those that `tests/pasted.rs` compiles and `cargo xtask doctor --machine
    /// NAME` runs.
    #[test]
    fn rust_for_x86_is_the_rust_that_is_compiled() {
        let mut facts = healthy();
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs.rs"))
        );
        let chipset = facts.chipset.as_mut().unwrap();
        chipset.acpi_base_from = String::from("FADT, PM1a_EVT_BLK");
        chipset.acpi_base = Some(0x1800);
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_fixed.rs"))
        );
        // Another vendor's chipset has an ACPI base, too, with other registers behind it.
        facts.chipset.as_mut().unwrap().smi_en = None;
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_unchecked.rs"))
        );
        facts.acpi.smi_cmd = Some(0xb0);
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_smi_cmd.rs"))
        );
        facts.buffers.clear();
        assert!(rust(&facts).is_err());
        facts.protocols.push(protocol());
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/protocol.rs"))
        );
    }

    #[test]
    fn rust_for_arm_is_the_rust_that_is_compiled() {
        let mut facts = Facts {
            arm: Some(Arm {
                el3: true,
                ..Arm::default()
            }),
            ..Facts::default()
        };
        let fails = |facts: &Facts, words: &str| assert!(rust(facts).unwrap_err().contains(words), "{words}");
        fails(&facts, "does not respond");
        facts.arm.as_mut().unwrap().mm = Some(Ok(String::new()));
        fails(&facts, "-r ADDRESS,BYTES");
        facts.buffers = vec![Buffer {
            source: NAMED.to_string(),
            region: Some(Range {
                start: 0x5000_0000,
                len: 0x80_0000,
            }),
            mailbox: None,
            ..buffer()
        }];
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/secure_calls.rs"))
        );
        facts.arm.as_mut().unwrap().el3 = false;
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/secure_calls_without_el3.rs"))
        );
        facts.arm.as_mut().unwrap().el3 = true;
        facts.buffers.push(buffer());
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_secure_calls.rs"))
        );
        facts.buffers.clear();
        facts.protocols.push(protocol());
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/protocol.rs"))
        );
    }
}
