//! The file that `mm_doctor` writes: its findings, and its probes with their responses.

use crate::decode::{self, Direction};
use crate::dump::{self, Dump};
use crate::guids;
use crate::input::Damage;
use mm_wire::Guid;
use serde::Deserialize;

/// The mark by which the file is recognised, in its first lines.
pub(crate) const MARK: &str = "\"tool\": \"mm_doctor\"";

#[derive(Deserialize)]
struct File {
    arch: String,
    firmware: String,
    verdict: String,
    findings: Vec<Finding>,
    probes: Vec<Probe>,
}

#[derive(Deserialize)]
struct Finding {
    level: String,
    about: String,
    found: String,
}

#[derive(Deserialize)]
struct Probe {
    way: String,
    question: String,
    recipient: String,
    request: String,
    response: Result<String, String>,
    us: Option<u64>,
}

/// Reads the file: the findings, then each probe with its response.
///
/// # Errors
///
/// [`Damage`] if it is not such a file.
pub fn read(text: &[u8]) -> Result<Vec<Dump>, Damage> {
    let file: File = serde_json::from_slice(text).map_err(|error| Damage {
        line: u64::try_from(error.line()).unwrap_or(u64::MAX),
        column: error.column(),
        what: error.to_string(),
    })?;
    let mut all = Dump {
        title: format!("mm_doctor on {}, {}: {}", file.arch, file.firmware, file.verdict),
        ..Dump::default()
    };
    for Finding { level, about, found } in file.findings {
        if level == "ok" {
            all.fields.push((about, found));
        } else {
            all.problems.push(format!("{level}: {about}: {found}"));
        }
    }
    let probes = file.probes.into_iter().map(Probe::dump);
    Ok(std::iter::once(all).chain(probes).collect())
}

impl Probe {
    fn dump(self) -> Dump {
        let mut dump = Dump {
            title: format!("{}: {}", self.way, self.question),
            ..Dump::default()
        };
        let recipient: Option<Guid> = self.recipient.parse().ok();
        if let Some(recipient) = recipient {
            let name = guids::name(recipient);
            dump.fields
                .push(("recipient".to_owned(), format!("{name} ({recipient})")));
        }
        dump.recipient = Some(self.recipient);
        dump.fields.push(("request".to_owned(), self.request));
        if let Some(us) = self.us {
            dump.fields.push(("took".to_owned(), format!("{us} us")));
        }
        match self.response {
            Ok(response) => {
                let bytes = dump::parse(&response);
                let damage = bytes
                    .as_ref()
                    .err()
                    .map(|damage| format!("the response is damaged: {damage}"));
                let bytes = bytes.unwrap_or_default();
                dump.message = recipient.map(|recipient| {
                    decode::message(recipient, Direction::Response, &bytes, bytes.len() as u64)
                });
                let problems = dump.message.iter().flat_map(|message| &message.problems);
                dump.problems = problems.cloned().chain(damage).collect();
                dump.bytes = response;
            }
            Err(why) => dump.problems.push(why),
        }
        dump
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_doctor::facts::{self, Facts};
    use mm_doctor::{findings, report};

    #[test]
    fn the_doctors_file_is_read() {
        let probe = |response| facts::Probe {
            way: "communication protocol 2".to_owned(),
            question: "the variable service's payload size",
            may_be_missing: false,
            unknown: false,
            recipient: mm_wire::message::variable::GUID.to_string(),
            request: "0b".to_owned(),
            response,
            us: Some(35),
        };
        let response = "0b000000000000000000000000000000f4ff030000000000".to_owned();
        let facts = Facts {
            tool: "mm_doctor",
            arch: "x86_64",
            firmware: "EDK II".to_owned(),
            probes: vec![probe(Ok(response)), probe(Err("EFI_NOT_FOUND".to_owned()))],
            ..Facts::default()
        };
        let json = report::json(&facts, &findings::judge(&facts), Err("none")).unwrap();
        assert!(json.contains(MARK));
        let dumps = read(json.as_bytes()).unwrap();
        assert_eq!(dumps[0].title, "mm_doctor on x86_64, EDK II: broken");
        assert!(
            dumps[0].problems[0].starts_with("broken: ways to MM: "),
            "{:?}",
            dumps[0]
        );
        let said = dumps[1].message.as_ref().unwrap();
        assert_eq!(said.what, "GET_PAYLOAD_SIZE");
        assert!(
            said.fields
                .contains(&("payload size".to_owned(), "262132 bytes".to_owned()))
        );
        assert_eq!(dumps[2].problems, ["EFI_NOT_FOUND"]);
        let damaged = json.replace("\"0b0000", "\"0bx000");
        let problems = &read(damaged.as_bytes()).unwrap()[1].problems;
        assert!(
            problems
                .iter()
                .any(|problem| problem.starts_with("the response is damaged: line 1, column 1: ")),
            "{problems:?}"
        );
        let damage = read(b"{\n  \"tool\": \"mm_doctor\",\n  nonsense").unwrap_err();
        assert_eq!((damage.line, damage.column), (3, 3), "{damage}");
    }
}
