//! Mutation testing: which small changes of the code no test notices.

use crate::process;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;
use xshell::{Shell, cmd};

/// The crates that check what crosses the trust boundary.
const PACKAGES: [&str; 4] = ["mm_wire", "mm_comm", "mm_core", "patina_mm"];
/// The scenarios, the fuzz targets' corpus and the model are tests of those crates, too.
const OTHERS: [&str; 3] = ["mm_conformance", "mm_fuzz", "mm_model"];
/// The survivors that are explained.
const EXPLAINED: &str = "docs/mutants.md";
/// Where cargo-mutants writes its results, in a folder for each run.
const OUTPUT: &str = "target/mutants";
/// Seconds after which a mutant's tests are taken to hang, at least; three times their usual time counts, too.
const PATIENCE: u64 = 30;
/// What is not changed: text for people, which is not compared word by word, and code that only firmware targets
/// compile. `.cargo/mutants.toml` says the same.
const LEFT_OUT: &str = "impl (fmt::)?(Debug|Display) for|native::";

/// Changes a crate in small ways with cargo-mutants, and lists each change that no test notices.
///
/// First the crate's own tests run against each change. What they do not notice meets the tests of
/// mm_wire, mm_comm, mm_core, patina_mm, mm_conformance, mm_fuzz and mm_model. It fails if a change survives
/// both and is not explained in docs/mutants.md. A whole crate takes from minutes to hours.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask mutants --package mm_wire                    a whole crate
  cargo xtask mutants --package mm_comm --shard 0/20       every 20th change
  cargo xtask mutants --package mm_core --own-tests        without the tests of other crates
  cargo xtask mutants --package mm_core --matching append  the changes in a function

The fastest way is a tree of its own: git worktree add ../mutants, and --in-place there.
It needs cargo install --locked cargo-mutants@27.1.0")]
pub(crate) struct Mutants {
    /// The crate that is changed.
    #[arg(long, value_name = "CRATE", value_parser = PossibleValuesParser::new(PACKAGES))]
    package: String,
    /// Every N-th change, from the K-th on.
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Runs only the tests of this crate.
    #[arg(long)]
    own_tests: bool,
    /// Only changes whose description matches.
    #[arg(long, value_name = "REGEX")]
    matching: Option<String>,
    /// Changes this tree, whose build is warm, instead of a copy, and undoes each change.
    #[arg(long)]
    in_place: bool,
}

pub(crate) fn run(shell: &Shell, options: &Mutants) -> Result<ExitCode> {
    let found = cmd!(shell, "cargo mutants --version")
        .quiet()
        .ignore_stderr()
        .read();
    ensure!(
        found.is_ok(),
        "cargo-mutants is missing: cargo install --locked cargo-mutants@27.1.0"
    );
    let package = options.package.as_str();
    if options.in_place {
        // An interrupted run leaves a change behind, which must not mix with anyone's work.
        let changed = cmd!(shell, "git status --porcelain --untracked-files=no").read()?;
        ensure!(
            changed.is_empty(),
            "--in-place needs a tree without changes:\n{changed}"
        );
    }
    let mut own = mutants(options, "own");
    own.args(["--test-package", package]);
    if let Some(shard) = &options.shard {
        own.args(["--sharding", "round-robin", "--shard", shard]);
    }
    if let Some(matching) = &options.matching {
        own.args(["--re", matching]);
    }
    // Without them the mocks of patina_mm are not compiled.
    own.args([
        "--all-features",
        "--timeout-multiplier",
        "3",
        "--",
        "--lib",
        "--tests",
    ]);
    let mut outcome = test(shell, own, package, "own")?;
    if !options.own_tests && !outcome.missed.is_empty() {
        println!(
            "{} changes survived the tests of {package}; now those of other crates",
            outcome.missed.len()
        );
        let mut all = mutants(options, "all");
        for tested in PACKAGES.iter().chain(&OTHERS) {
            all.args(["--test-package", tested]);
        }
        for missed in &outcome.missed {
            all.arg("--re").arg(format!("^{}$", escape(missed)));
        }
        let timeout = seconds_of_all_tests(shell)?.saturating_mul(3).max(PATIENCE);
        all.args(["--baseline", "skip", "--timeout", &timeout.to_string()]);
        all.args(["--", "--lib", "--tests"]);
        let again = test(shell, all, package, "all")?;
        outcome.survives(&again.missed);
    }
    let explained = explained(&shell.read_file(EXPLAINED)?);
    let (known, new): (Vec<_>, Vec<_>) = outcome
        .missed
        .iter()
        .partition(|missed| explained.contains(&without_place(missed)));
    known.iter().for_each(|mutant| println!("explained: {mutant}"));
    new.iter().for_each(|mutant| println!("SURVIVED: {mutant}"));
    let all = outcome.caught.saturating_add(outcome.missed.len());
    println!(
        "{package}: {all} changes that compile ({} do not), {} noticed, {} explained, {} survived: {:.1} % noticed",
        outcome.unviable,
        outcome.caught,
        known.len(),
        new.len(),
        percent(outcome.caught, all)
    );
    Ok(if new.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How long the tests of the second round take, without a mutant. cargo-mutants does not find out: its baseline
/// is the mutated crate's own tests, whatever `--test-package` says. So it would take a long test for a hanging one,
/// and a test that always fails for one that notices each mutant.
fn seconds_of_all_tests(shell: &Shell) -> Result<u64> {
    let mut tests = Command::new("cargo");
    tests.args(["test", "--quiet", "--lib", "--tests"]);
    for tested in PACKAGES.iter().chain(&OTHERS) {
        tests.args(["--package", tested]);
    }
    tests.current_dir(shell.current_dir());
    let start = Instant::now();
    let status = process::run("tests", tests, None, |_| None)?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "a test fails without any change"
    );
    Ok(start.elapsed().as_secs())
}

fn mutants(options: &Mutants, round: &str) -> Command {
    let package = options.package.as_str();
    let mut command = Command::new("cargo");
    command.args([
        "mutants",
        "--no-shuffle",
        "--colors",
        "never",
        "--package",
        package,
    ]);
    command.args(["--no-config", "--exclude-re", LEFT_OUT]);
    command.args(["--minimum-test-timeout", &PATIENCE.to_string()]);
    command.arg("--output").arg(folder(package, round));
    if options.in_place {
        command.arg("--in-place");
    }
    command
}

fn folder(package: &str, round: &str) -> String {
    format!("{OUTPUT}/{package}-{round}")
}

/// What came of the changes.
#[derive(Debug, Default)]
struct Outcome {
    /// Noticed by a failing test, or by one that did not end in time.
    caught: usize,
    /// Does not compile.
    unviable: usize,
    missed: Vec<String>,
}

impl Outcome {
    /// Of the missed changes, these survived the second round, too. That round may also have tested
    /// others: cargo-mutants 27.1.0 does not apply `--re` to deleted fields of structs.
    fn survives(&mut self, again: &[String]) {
        let before = self.missed.len();
        self.missed.retain(|missed| again.contains(missed));
        let noticed = before.saturating_sub(self.missed.len());
        self.caught = self.caught.saturating_add(noticed);
    }
}

fn test(shell: &Shell, mut command: Command, package: &str, round: &str) -> Result<Outcome> {
    shell.create_dir(folder(package, round))?;
    command.current_dir(shell.current_dir());
    let show = |line: &str| {
        let is_news = ["MISSED", "TIMEOUT", "Found", "ok ", "FAILED", "error", "ERROR"];
        is_news
            .iter()
            .any(|word| line.starts_with(word))
            .then(|| line.to_owned())
    };
    let status = process::run("mutants", command, None, show)?;
    let code = status.and_then(|status| status.code());
    // Missed changes are 2, tests that did not end 3.
    ensure!(
        matches!(code, Some(0 | 2 | 3)),
        "cargo mutants ended with {status:?}"
    );
    let lines = |name: &str| -> Result<Vec<String>> {
        let path = Path::new(&folder(package, round)).join("mutants.out").join(name);
        let text = shell
            .read_file(&path)
            .with_context(|| path.display().to_string())?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    Ok(Outcome {
        caught: lines("caught.txt")?
            .len()
            .saturating_add(lines("timeout.txt")?.len()),
        unviable: lines("unviable.txt")?.len(),
        missed: lines("missed.txt")?,
    })
}

/// The changes in the first column of the page's table.
fn explained(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once("` | "))
        .map(|(mutant, _)| mutant.replace(r"\|", "|"))
        .collect()
}

/// A change without its line and column, which move with the code.
fn without_place(mutant: &str) -> String {
    let Some((place, change)) = mutant.split_once(": ") else {
        return mutant.to_owned();
    };
    let file = place.split(':').next().unwrap_or(place);
    format!("{file}: {change}")
}

/// A text as a regular expression that matches it.
fn escape(text: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$#&-~".contains(c);
    let escaped = text
        .chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]));
    escaped.collect()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of changes are small")]
fn percent(part: usize, all: usize) -> f64 {
    if all == 0 {
        100.0
    } else {
        part as f64 * 100.0 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_is_known_wherever_it_moved() {
        let page = "| mutant | why |\n|---|---|\n| `crates/a/src/b.rs: replace < with <= in c` | equal |\n\
                    | `crates/a/src/b.rs: replace \\| with ^ in d` | equal |\n";
        let explained = explained(page);
        assert!(explained.contains(&without_place("crates/a/src/b.rs:12:34: replace < with <= in c")));
        assert!(!explained.contains(&without_place("crates/a/src/b.rs:12:34: replace < with == in c")));
        assert!(explained.contains(&without_place("crates/a/src/b.rs:1:2: replace | with ^ in d")));
    }

    #[test]
    fn second_round_counts_each_survivor_of_the_first_once() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut outcome = Outcome {
            caught: 5,
            unviable: 1,
            missed: names(&["a", "b", "c"]),
        };
        outcome.survives(&names(&["b", "noticed in the first round"]));
        assert_eq!((outcome.caught, outcome.missed), (7, names(&["b"])));
    }

    #[test]
    fn names_of_mutants_are_expressions_that_match_them() {
        assert_eq!(
            escape("a.rs:1:2: replace | with ^"),
            r"a\.rs:1:2: replace \| with \^"
        );
    }

    #[test]
    fn each_explained_survivor_is_in_a_file_of_a_crate_that_is_tested() {
        let page = std::fs::read_to_string(crate::root().join(EXPLAINED)).unwrap();
        for mutant in explained(&page) {
            let (file, _) = mutant.split_once(": ").unwrap();
            assert!(crate::root().join(file).is_file(), "{mutant}");
            assert!(
                PACKAGES
                    .iter()
                    .any(|package| file.starts_with(&format!("crates/{package}/src/"))),
                "{mutant}"
            );
        }
    }
}
