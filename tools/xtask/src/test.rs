//! All tests of this repository, stage by stage.

use crate::coverage::{self, Counters};
use crate::machine::{self, Firmware, MACHINES, OWN, OWN_WITH_CORE};
use crate::meanwhile::Meanwhile;
use crate::process::{self, require_success};
use crate::qemu;
use crate::report::{Counts, Failed, NothingToDo, Report};
use crate::scenarios::{Scenarios, Verdict};
use crate::setup;
use crate::verdict::VerdictError;
use crate::{asm, bench, book, demo, doctor, fuzz, image, is_ci, package, page, panics, size};
use anyhow::{Result, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;
use xshell::{Shell, cmd};

/// The name of the stages that run on this host alone.
const HOST: &str = "host";

/// How many tests pass on this host at least, like [`machine::Variant::least`]: a test binary that
/// is no longer built would not be missed otherwise.
const HOST_LEAST: u64 = 2630;

/// The arguments of cargo that run the tests of this host.
pub(crate) const TESTS: [&str; 5] = [
    "test",
    "--workspace",
    "--features",
    "patina_mm/mockall",
    "--no-fail-fast",
];

/// Runs all tests: on this host, then on each machine whose programs are installed.
///
/// A stage that is a single check (formatting, lints, documentation) counts as one test. A stage
/// whose tools are not installed is skipped and named; with CI=true it is a failure. With CI=true
/// the tests of this host count the lines that they run.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask test                       everything
  cargo xtask test --machine host        formatting, lints, tests and documentation, without QEMU
  cargo xtask test --machine ovmf-smm    only what runs on this machine
  cargo xtask test --long                everything, and what takes long: fuzzing, coverage, packages, panics
  cargo xtask test --machine own --code OVMF_CODE.fd --vars OVMF_VARS.fd [--core]
                                         your own firmware, alone or with a Patina DXE core in it")]
pub(crate) struct Test {
    /// Only this machine; can be given more than once.
    #[arg(long, value_name = "NAME", value_parser = machine::names(&[HOST, OWN.name]))]
    machine: Vec<String>,
    /// How long a machine may take from power-on to its verdict, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,
    /// The firmware of machine own: its code.
    #[arg(long, value_name = "FILE", value_parser = crate::file, requires = "vars")]
    code: Option<PathBuf>,
    /// An empty variable store for that firmware.
    #[arg(long, value_name = "FILE", value_parser = crate::file, requires = "code")]
    vars: Option<PathBuf>,
    /// Also puts a Patina DXE core into that firmware, which HOBs configure.
    #[arg(long, requires = "code")]
    core: bool,
    /// Also run what takes long: fuzzing with sanitizers, coverage, packages, and the search for
    /// panics in the machine code. Needs `cargo xtask setup --with-tools`.
    #[arg(long, conflicts_with = "machine")]
    long: bool,
}

pub(crate) fn run(shell: &Shell, options: &Test) -> Result<ExitCode> {
    let wanted =
        |name: &str| options.machine.is_empty() || options.machine.iter().any(|wanted| wanted == name);
    let deadline = Duration::from_secs(options.deadline);
    let mut report = Report::default();
    let mut scenarios = Scenarios::list(shell)?;
    if wanted(HOST) {
        report.stage("format", || check(cmd!(shell, "cargo fmt --all --check").into()));
        let mut counters = None;
        report.stage("tests", || {
            let tests = if is_ci() || options.long {
                let counters = counters.insert(Counters::new(shell)?);
                counters.clear()?;
                counters.tests()
            } else {
                cmd!(shell, "cargo {TESTS...}").into()
            };
            let (counts, verdicts) = cargo_test(tests)?;
            scenarios.add("simulated", &verdicts);
            require_all(counts, &scenarios, &verdicts)
        });
        if let Some(counters) = &counters {
            report.stage("coverage", || coverage::stage(shell, counters));
        }
        report.stage("demo", || {
            demo::simulated_log(shell, true)?;
            Ok(Counts::ONE)
        });
        let lints = cmd!(
            shell,
            "cargo clippy --workspace --all-targets --features patina_mm/mockall -- -D warnings"
        );
        report.stage("lints", || check(lints.into()));
        let docs = cmd!(shell, "cargo doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings");
        report.stage("docs", || check(docs.into()));
    }
    if options.machine.is_empty() {
        report.stage("deny", || {
            setup::DENY.require(shell)?;
            // Not `advisories`: its database is a download that would make the result depend on the
            // day.
            check(cmd!(shell, "cargo deny check bans licenses sources").into())
        });
    }
    let meanwhile = options
        .machine
        .is_empty()
        .then(|| Meanwhile::start(&["lints", "guide", "downstream"]))
        .transpose()?;
    for machine in MACHINES.iter().filter(|machine| wanted(machine.name)) {
        for variant in machine.variants {
            report.stage(&machine.stage_name(variant), || {
                qemu::test(shell, machine, variant, deadline, &mut scenarios, None)
            });
        }
        report.stage(&format!("{} demo", machine.name), || {
            qemu::demo(shell, machine, deadline, false)?;
            Ok(Counts::ONE)
        });
    }
    if wanted(OWN.name) {
        let own = options.code.clone().zip(options.vars.clone());
        let own = own.map(|(code, vars)| Firmware { code, vars });
        let machines = [Some(&OWN), options.core.then_some(&OWN_WITH_CORE)];
        for machine in machines.into_iter().flatten() {
            for variant in machine.variants {
                report.stage(machine.name, || match &own {
                    Some(own) => qemu::test(shell, machine, variant, deadline, &mut scenarios, Some(own)),
                    None => Err(NothingToDo("no firmware named: --code FILE --vars FILE").into()),
                });
            }
        }
    }
    if let Some(meanwhile) = meanwhile {
        doctor::stages(shell, deadline, |name, stage| report.stage(name, stage));
        report.stage("trace page", || page::stage(shell));
        report.stage("firmware lints", || meanwhile.next());
        report.stage("guide, outside crate", || meanwhile.next());
        report.stage("downstream", || meanwhile.next());
        if options.long {
            report.stage("fuzz", || fuzz::stage(shell));
            report.stage("package", || package::stage(shell));
            panics::stages(shell, &mut report);
        }
        report.stage("book", || book::stage(shell));
        report.stage("images", || image::stage(shell));
        report.stage("bench", || bench::stage(shell));
        report.stage("size", || size::stage(shell));
        asm::stages(shell, false, &mut report);
    }
    print!("\n{scenarios}");
    Ok(report.conclude())
}

/// Fails if a scenario of the suite did not run on this host, or fewer tests passed than did
/// before.
fn require_all(
    counts: Counts,
    scenarios: &Scenarios,
    verdicts: &BTreeMap<String, Verdict>,
) -> Result<Counts> {
    let missing = scenarios.missing_in(verdicts);
    let reason = if !missing.is_empty() {
        VerdictError::ScenariosMissing(missing)
    } else if counts.passed < HOST_LEAST {
        VerdictError::TooFew {
            passed: counts.passed,
            least: HOST_LEAST,
        }
    } else {
        return Ok(counts);
    };
    Err(Failed {
        counts,
        reason: reason.to_string(),
    }
    .into())
}

/// A command that succeeds or fails as a whole; its output matters only if it fails.
fn check(command: Command) -> Result<Counts> {
    let label = label(&command);
    process::run_quietly(&label, command)?;
    Ok(Counts::ONE)
}

/// Words of cargo's progress lines, which are not part of a test's output.
const CARGO_PROGRESS: [&str; 10] = [
    "Adding ",
    "Blocking ",
    "Checking ",
    "Compiling ",
    "Downloaded ",
    "Downloading ",
    "Finished ",
    "Fresh ",
    "Locking ",
    "Updating ",
];

/// A run of `cargo test`: its output is shown, and its tests are counted and named.
pub(crate) fn cargo_test(command: Command) -> Result<(Counts, BTreeMap<String, Verdict>)> {
    let label = label(&command);
    let mut verdicts = BTreeMap::new();
    let mut counts = Counts::default();
    let mut summaries: u64 = 0;
    let status = process::run(&label, command, None, |line| {
        if let Some(binary) = parse_summary(line) {
            summaries = summaries.saturating_add(1);
            counts.add(binary);
        }
        verdicts.extend(parse_test(line));
        let is_progress = line.starts_with(' ')
            && CARGO_PROGRESS
                .iter()
                .any(|word| line.trim_start().starts_with(word));
        (!is_progress).then(|| line.to_owned())
    })?;
    if let Err(error) = require_success(&label, status) {
        return Err(Failed {
            counts,
            reason: error.to_string(),
        }
        .into());
    }
    if summaries == 0 {
        bail!("{label} succeeded without a `test result` line");
    }
    Ok((counts, verdicts))
}

/// Name and verdict in a line such as `test a_name ... ok`.
fn parse_test(line: &str) -> Option<(String, Verdict)> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let verdict = match verdict.split_whitespace().next()? {
        "ok" => Verdict::Passed,
        "ignored" => Verdict::Skipped,
        "FAILED" => Verdict::Failed,
        _ => return None,
    };
    Some((name.trim_end().to_owned(), verdict))
}

/// The counts in a closing line such as `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
fn parse_summary(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in numbers.split("; ") {
        let (number, what) = part.split_once(' ')?;
        match what {
            "passed" => counts.passed = number.parse().ok()?,
            "failed" => counts.failed = number.parse().ok()?,
            "ignored" => counts.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

/// Program and subcommand.
fn label(command: &Command) -> String {
    let first = command.get_args().next().unwrap_or_default();
    format!("{} {}", command.get_program().display(), first.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_cargo_test_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(
            parse_summary(line),
            Some(Counts {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
        let line =
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(parse_summary(line), Some(Counts::default()));
        assert_eq!(parse_summary("test a ... ok"), None);
        assert_eq!(
            parse_test("test a  ... ok"),
            Some(("a".to_owned(), Verdict::Passed))
        );
        assert_eq!(
            parse_test("test b ... FAILED"),
            Some(("b".to_owned(), Verdict::Failed))
        );
        assert_eq!(parse_test(line), None);
    }

    #[test]
    fn a_host_that_runs_less_than_before_fails() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let scenarios = Scenarios::of(names.to_vec());
        let mut verdicts = BTreeMap::from(names.map(|name| (name, Verdict::Passed)));
        let counts = |passed| Counts {
            passed,
            ..Counts::default()
        };
        assert!(require_all(counts(HOST_LEAST), &scenarios, &verdicts).is_ok());
        let reason = require_all(counts(HOST_LEAST - 1), &scenarios, &verdicts)
            .unwrap_err()
            .to_string();
        assert!(reason.contains("did before"), "{reason}");
        let (lost, _) = verdicts.pop_first().unwrap();
        let reason = require_all(counts(HOST_LEAST), &scenarios, &verdicts)
            .unwrap_err()
            .to_string();
        assert!(reason.contains(&lost), "{reason}");
    }

    #[test]
    fn every_machine_can_be_asked_for() {
        for machine in MACHINES {
            assert!(machine::find(machine.name).is_some());
            assert_ne!(machine.name, HOST);
        }
    }
}
