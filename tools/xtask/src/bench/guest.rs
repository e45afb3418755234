//! Instructions of calls in a guest, as `tools/bench/guest` counts them, and the stack that they
//! take.

use crate::machine::{self, DEBUG_EXIT_SUCCESS};
use crate::process;
use crate::setup::{OVMF, OVMF_WITHOUT_SMM, QEMU_X86, RUST_NONE, RUST_UEFI};
use crate::toolchain::{Toolchain, X86_64_UEFI};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xshell::Shell;

const MANIFEST: &str = "tools/bench/guest/Cargo.toml";

/// How long a machine may take: counting makes it slower.
const DEADLINE: Duration = Duration::from_secs(300);

/// By how many percent a count may become worse before the check fails.
const TOLERANCE: u64 = 20;

/// Where the counts of a machine are committed.
fn committed(machine: &str) -> PathBuf {
    PathBuf::from(format!("tools/bench/counts-{machine}.txt"))
}

/// Whether there are counts of a machine to compare with.
pub(super) fn is_committed(machine: &str) -> bool {
    committed(machine).is_file()
}

/// The parts of a call, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    before: u64,
    mm: u64,
    after: u64,
}

impl Parts {
    const fn outside(self) -> u64 {
        self.before.saturating_add(self.after)
    }
}

/// The counts of a guest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    /// By call and bytes of the message, in the order of the guest.
    calls: Vec<((String, usize), Parts)>,
    /// Bytes of stack, by call.
    stack: BTreeMap<String, u64>,
}

impl Counted {
    /// Takes a line of the guest or of a committed file.
    fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["COUNT", name, bytes, "failed"] => bail!("the guest's call {name} of {bytes} bytes failed"),
            ["COUNT", name, bytes, before, mm, after] => {
                let parts = Parts {
                    before: before.parse()?,
                    mm: mm.parse()?,
                    after: after.parse()?,
                };
                self.calls.push(((name.to_owned(), bytes.parse()?), parts));
            }
            ["STACK", name, bytes] => drop(self.stack.insert(name.to_owned(), bytes.parse()?)),
            _ => {}
        }
        Ok(())
    }

    fn read(text: &str) -> Result<Self> {
        let mut counted = Self::default();
        for line in text.lines() {
            counted.take(line)?;
        }
        Ok(counted)
    }

    fn get(&self, name: &str, bytes: usize) -> Option<Parts> {
        let mut calls = self.calls.iter();
        let found = calls.find(|((call, size), _)| call == name && *size == bytes);
        found.map(|(_, parts)| *parts)
    }

    /// Instructions of a call through the firmware's protocol outside MM: MM's part is that of the
    /// same message through ours.
    fn protocol(&self, bytes: usize) -> Option<u64> {
        let whole = self.get("protocol", bytes)?.outside();
        Some(whole.saturating_sub(self.get("into", bytes)?.mm))
    }

    /// The counts that became worse by more than [`TOLERANCE`] percent.
    fn worse_than(&self, before: &Self) -> Vec<String> {
        let mut worse = Vec::new();
        let mut compare = |what: String, now: Option<u64>, then: u64| match now {
            None => worse.push(format!("{what}: not counted any more")),
            Some(now) if now.saturating_mul(100) > then.saturating_mul(100 + TOLERANCE) => {
                worse.push(format!("{what}: {now}, committed {then}"));
            }
            Some(_) => {}
        };
        for ((name, bytes), then) in &before.calls {
            // The other counts are not those of this tree.
            if !name.starts_with("published") && name != "copies" && name != "protocol" {
                let now = self.get(name, *bytes).map(Parts::outside);
                compare(format!("{name}, {bytes} bytes"), now, then.outside());
            }
        }
        for (name, then) in before.stack.iter().filter(|(name, _)| name.starts_with("ours")) {
            compare(format!("stack of {name}"), self.stack.get(name).copied(), *then);
        }
        worse
    }
}

/// Builds the guest, boots it, and returns its lines.
fn count(shell: &Shell, name: &str) -> Result<(Counted, String)> {
    for tool in [&QEMU_X86, &OVMF, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE] {
        tool.require(shell)?;
    }
    let toolchain = Toolchain::find(shell, X86_64_UEFI)?;
    let mut build = toolchain.cargo("build");
    build
        .args(["--manifest-path", MANIFEST])
        .current_dir(shell.current_dir());
    process::run_quietly("build of bench_guest", build)?;
    let application = toolchain.products().join("bench_guest.efi");
    let dir = tempfile::Builder::new().prefix("patina-mm-").tempdir()?;
    let command = machine::counting(shell, name, &application, dir.path())?;
    let mut counted = Ok(Counted::default());
    let mut lines = String::new();
    let mut is_done = false;
    let status = process::run(name, command, Some(DEADLINE), |line| {
        let line = anstream::adapter::strip_str(line).to_string();
        is_done |= line.starts_with("DONE");
        let is_count = ["COUNT ", "STACK "].iter().any(|word| line.starts_with(word));
        if is_count {
            lines.push_str(line.trim_end());
            lines.push('\n');
            if let Ok(all) = &mut counted
                && let Err(error) = all.take(&line)
            {
                counted = Err(error);
            }
        }
        (line.starts_with("no MM") || line.starts_with("PANIC")).then_some(line)
    })?;
    let status = status.context("the guest did not end in time")?;
    ensure!(
        is_done && status.code() == Some(DEBUG_EXIT_SUCCESS),
        "the guest on {name} ended with {status}, and not as it should"
    );
    Ok((counted?, lines))
}

fn compare(counted: &Counted, name: &str) -> Result<()> {
    let file = committed(name);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let worse = counted.worse_than(&Counted::read(&text)?);
    ensure!(
        worse.is_empty(),
        "worse by more than {TOLERANCE} % than in {}:\n  {}",
        file.display(),
        worse.join("\n  ")
    );
    Ok(())
}

/// Fails if a call takes more instructions or stack than when the counts were committed.
pub(super) fn check(shell: &Shell, name: &str) -> Result<()> {
    compare(&count(shell, name)?.0, name)
}

pub(super) fn run(shell: &Shell, name: &str, check: bool, commit: bool) -> Result<ExitCode> {
    let (counted, lines) = count(shell, name)?;
    print!("{}", real(&counted));
    print!("{}", played(&counted));
    if commit {
        let file = committed(name);
        std::fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if check {
        compare(&counted, name)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `a` divided by `b`, with two decimals.
fn ratio(a: u64, b: u64) -> String {
    let percent = a.saturating_mul(100).checked_div(b).unwrap_or_default();
    format!("{}.{:02}", percent / 100, percent % 100)
}

/// Calls to the machine's own MM.
fn real(counted: &Counted) -> String {
    let mut table = String::from(
        "Instructions of a call to the machine's MM.\n\n\
         | message | call | before | MM | after | outside MM | `EFI_MM_COMMUNICATION2` | ratio |\n\
         |---:|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for ((name, bytes), parts) in &counted.calls {
        if !["communicate", "into"].contains(&name.as_str()) {
            continue;
        }
        let Parts { before, mm, after } = *parts;
        let outside = parts.outside();
        let c = counted.protocol(*bytes).unwrap_or_default();
        table += &format!(
            "| {bytes} B | `{}` | {before} | {mm} | {after} | {outside} | {c} | {} |\n",
            form(name),
            ratio(outside, c)
        );
    }
    table
}

/// The function's name for the word that the guest prints.
fn form(word: &str) -> &str {
    match word {
        "into" => "communicate_into",
        "with" => "communicate_with",
        other => other,
    }
}

/// Calls with MM played in the guest, beside the published crate's.
fn played(counted: &Counted) -> String {
    let mut table = String::from(
        "\nInstructions of a call with MM played in the guest; in brackets: divided by the published crate's.\n\n\
         | buffer / message | copies | published | `communicate` | `communicate_into` | `communicate_with` |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for ((name, bytes), parts) in &counted.calls {
        let Some(case) = name.strip_prefix("published/communicate/") else {
            continue;
        };
        let published = parts.outside();
        let (buffer, kind) = case.split_once('/').unwrap_or((case, ""));
        let kind = if kind == "mailbox" { "" } else { ", no mailbox" };
        let copies = counted
            .get("copies", *bytes)
            .map_or_else(String::new, |parts| parts.outside().to_string());
        table += &format!("| {buffer} / {bytes} B{kind} | {copies} | {published} |");
        for call in ["communicate", "into", "with"] {
            table += &match counted.get(&format!("ours/{call}/{case}"), *bytes) {
                Some(parts) => format!(" {} ({}) |", parts.outside(), ratio(parts.outside(), published)),
                None => " |".to_owned(),
            };
        }
        table.push('\n');
    }
    table += "\n| stack of a call | bytes |\n|---|---:|\n";
    for (name, bytes) in &counted.stack {
        table += &format!("| {name} | {bytes} |\n");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "STACK ours/into 1000\nCOUNT into 24 300 1000 200\nCOUNT protocol 24 1100 0 0\n\
                         COUNT published/communicate/4KiB/mailbox 16 400 10 100\nCOUNT ours/into/4KiB/mailbox 16 200 10 50\n";

    #[test]
    fn the_firmwares_protocol_is_counted_without_mm() {
        let counted = Counted::read(GUEST).unwrap();
        assert_eq!(counted.protocol(24), Some(100));
        assert!(
            real(&counted).contains("| 24 B | `communicate_into` | 300 | 1000 | 200 | 500 | 100 | 5.00 |")
        );
        assert!(
            played(&counted).contains("| 500 | | 250 (0.50) | |"),
            "{}",
            played(&counted)
        );
    }

    #[test]
    fn more_instructions_or_stack_are_worse_beyond_the_tolerance() {
        let before = Counted::read(GUEST).unwrap();
        let now = |from: &str, to: &str| {
            Counted::read(&GUEST.replace(from, to))
                .unwrap()
                .worse_than(&before)
        };
        assert!(now("", "").is_empty());
        assert!(now("into 24 300", "into 24 390").is_empty());
        assert!(now("protocol 24 1100", "protocol 24 9000").is_empty());
        for (from, to) in [
            ("into 24 300", "into 24 410"),
            ("ours/into 1000", "ours/into 1300"),
            ("COUNT into 24", "COUNT elsewhere 24"),
        ] {
            assert_eq!(now(from, to).len(), 1, "{to}");
        }
        assert!(Counted::read("COUNT into 24 failed").is_err());
    }
}
