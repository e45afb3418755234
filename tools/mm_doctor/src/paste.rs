//! The components and the configuration for this machine, as Rust to paste.

use crate::facts::Facts;
use crate::findings::has_communication;
use alloc::format;
use alloc::string::String;

/// The Rust, or what is missing to write some.
///
/// # Errors
///
/// What the machine does not tell.
pub fn rust(facts: &Facts) -> Result<String, &'static str> {
    let has_buffer = facts.buffers.iter().any(|buffer| buffer.error.is_none());
    let base = facts.chipset.as_ref().and_then(|chipset| chipset.acpi_base);
    match (has_buffer, base, has_communication(facts)) {
        (true, Some(base), _) => Ok(from_hobs(facts, base)),
        (true, None, _) if facts.chipset.is_some() => Ok(from_hobs_unchecked()),
        (false, _, true) => Ok(by_protocol()),
        (true, None, _) => {
            Err("the comm buffers are announced; the port's secure monitor call is in docs/platform-arm.md")
        }
        (false, ..) if facts.arm.is_some() => {
            Err("the region that is shared with the secure world is announced nowhere: docs/platform-arm.md")
        }
        (false, ..) => {
            Err("no comm buffer is announced, and no protocol is installed: docs/configuration.md")
        }
    }
}

/// The frame around the components of a platform.
fn platform(imports: &str, components: &str) -> String {
    format!(
        "use patina_dxe_core::*;\n{imports}\nstruct Board;\n\nimpl ComponentInfo for Board {{\n    \
         fn components(mut add: Add<Component>) {{\n{components}    }}\n}}\n"
    )
}

fn from_hobs(facts: &Facts, base: u16) -> String {
    let is_ich9 =
        (facts.chipset.as_ref()).is_some_and(|chipset| chipset.acpi_base_from.starts_with("PMBASE"));
    let (import, source) = if is_ich9 {
        ("", String::from("AcpiBaseSource::Ich9"))
    } else {
        (
            "use patina_mm::config::AcpiBase;\n",
            format!("AcpiBaseSource::Fixed(AcpiBase::Io({base:#x}))"),
        )
    };
    let imports = format!(
        "use patina_mm::component::communicator::MmCommunicator;\n\
         use patina_mm::component::hob_configuration::{{AcpiBaseSource, MmHobConfiguration}};\n\
         use patina_mm::component::sw_mmi_manager::SwMmiManager;\n{import}"
    );
    let components = format!(
        "        // Takes the comm buffers from the HOBs, and checks SMI_EN behind the ACPI base, {base:#x} here.\n        \
         add.component(MmHobConfiguration::new().with_acpi_base({source}));\n        \
         add.component(SwMmiManager::new());\n        \
         add.component(MmCommunicator::new());\n"
    );
    platform(&imports, &components)
}

fn from_hobs_unchecked() -> String {
    let imports = "use patina_mm::component::communicator::MmCommunicator;\n\
                   use patina_mm::component::hob_configuration::MmHobConfiguration;\n\
                   use patina_mm::component::sw_mmi_manager::SwMmiManager;\n";
    let components = "        // Takes the comm buffers from the HOBs. SMI_EN is not known for this chipset, and so not checked.\n        \
                      add.component(MmHobConfiguration::new());\n        \
                      add.component(SwMmiManager::new());\n        \
                      add.component(MmCommunicator::new());\n";
    platform(imports, components)
}

fn by_protocol() -> String {
    let imports = "use patina_mm::component::protocols::FirmwareMmCommunication;\n";
    let components = "        // The firmware's own driver carries messages: comm buffer 0 of 16 pages is for them.\n        \
                      add.component(FirmwareMmCommunication::new(0, 16));\n";
    platform(imports, components)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Arm, Protocol};
    use crate::findings::tests::healthy;

    /// What `tests/pasted.rs` compiles.
    #[test]
    fn what_is_pasted_is_what_is_compiled() {
        let mut facts = healthy();
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs.rs"))
        );
        facts.chipset.as_mut().unwrap().acpi_base_from = String::from("FADT, PM1a_EVT_BLK");
        facts.chipset.as_mut().unwrap().acpi_base = Some(0x1800);
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_fixed.rs"))
        );
        facts.chipset.as_mut().unwrap().acpi_base = None;
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/hobs_unchecked.rs"))
        );
        facts.buffers.clear();
        assert!(rust(&facts).is_err());
        facts.protocols.push(Protocol {
            name: "MM communication 2",
            guid: String::new(),
            image: String::new(),
        });
        assert_eq!(
            rust(&facts).as_deref(),
            Ok(include_str!("../tests/pasted/protocol.rs"))
        );
    }

    #[test]
    fn what_arm_does_not_tell_is_said() {
        let facts = Facts {
            arm: Some(Arm::default()),
            ..Facts::default()
        };
        assert!(rust(&facts).unwrap_err().contains("secure world"));
    }
}
