//! The report as text, and the file for a bug report.

use crate::facts::Facts;
use crate::findings::{Finding, Level, worst};
use alloc::string::String;
use core::fmt::Write;
use serde::Serialize;

/// Writes the report as plain text, line by line.
#[must_use]
pub fn text(facts: &Facts, findings: &[Finding], pasted: Result<&str, &str>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, facts, findings, pasted);
    out
}

fn write(
    out: &mut String,
    facts: &Facts,
    findings: &[Finding],
    pasted: Result<&str, &str>,
) -> core::fmt::Result {
    writeln!(out, "mm_doctor: {}, {}", facts.arch, facts.firmware)?;
    writeln!(out)?;
    for finding in findings {
        let word = match finding.level {
            Level::Ok => "OK",
            Level::Look => "LOOK",
            Level::Broken => "BROKEN",
        };
        writeln!(out, "{word:6}  {}: {}", finding.about, finding.found)?;
        if !finding.advice.is_empty() {
            writeln!(out, "        -> {}", finding.advice)?;
        }
    }
    writeln!(out)?;
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let verdict = match worst(findings) {
        Level::Ok => "all is as it should be",
        Level::Look => "usable; look at what is marked LOOK",
        Level::Broken => "MM cannot be used like this; see what is marked BROKEN",
    };
    writeln!(
        out,
        "VERDICT {verdict} ({} OK, {} LOOK, {} BROKEN)",
        count(Level::Ok),
        count(Level::Look),
        count(Level::Broken)
    )?;
    writeln!(out)?;
    match pasted {
        Ok(rust) => {
            writeln!(out, "The Rust for this machine:")?;
            writeln!(out)?;
            out.push_str(rust);
        }
        Err(why) => writeln!(out, "No Rust for this machine: {why}")?,
    }
    Ok(())
}

/// The contents of the file.
#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    findings: &'a [Finding],
    verdict: Level,
    rust: Option<&'a str>,
}

/// The file for a bug report, as JSON.
///
/// # Errors
///
/// Never, in practice: the facts have no maps with other keys than text.
pub fn json(
    facts: &Facts,
    findings: &[Finding],
    pasted: Result<&str, &str>,
) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&File {
        facts,
        findings,
        verdict: worst(findings),
        rust: pasted.ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::judge;
    use crate::findings::tests::healthy;
    use crate::paste;

    #[test]
    fn the_text_ends_with_a_verdict_and_rust() {
        let mut facts = healthy();
        facts.firmware = String::from("EDK II 1.0");
        facts.chipset.as_mut().unwrap().smi_en = Some(1);
        let findings = judge(&facts);
        let pasted = paste::rust(&facts).unwrap();
        let text = text(&facts, &findings, Ok(&pasted));
        assert!(text.starts_with("mm_doctor: x86_64, EDK II 1.0\n"), "{text}");
        assert!(text.contains("\nBROKEN  SMIs: platform: SMIs are off"), "{text}");
        assert!(text.contains("-> docs/troubleshooting.md"), "{text}");
        assert!(text.contains("\nVERDICT MM cannot be used like this"), "{text}");
        assert!(text.ends_with("}\n"), "{text}");
        assert!(text.is_ascii(), "the UEFI Shell shows ASCII");
    }

    #[test]
    fn the_file_has_facts_findings_verdict_and_rust() {
        let facts = healthy();
        let findings = judge(&facts);
        let json = json(&facts, &findings, Ok("struct Board;")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["verdict"], "ok");
        assert_eq!(value["buffers"][0]["region"]["start"], 0x7f00_0000);
        assert_eq!(value["chipset"]["acpi_base"], 0x600);
        assert_eq!(value["findings"][0]["level"], "ok");
        assert_eq!(value["rust"], "struct Board;");
    }
}
