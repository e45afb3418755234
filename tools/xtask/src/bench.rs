//! The benchmark beside the published crate.

mod guest;
mod profile;

use crate::machine::COUNTING;
use crate::process;
use crate::report::Counts;
use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// A separate workspace.
const MANIFEST: &str = "tools/bench/Cargo.toml";
/// The committed figures, and their plots.
const FIGURES: &str = "tools/bench/figures.json";
const PLOTS: &str = "docs/performance";

/// Measures calls of this tree beside the published crate, in one process.
///
/// The crates take turns; only the ratio within one run counts, never a time.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench             two minutes
  cargo xtask bench --quick     less exact, in seconds
  cargo xtask bench --check     fails if a ratio is worse by more than 20 % than the committed one
  cargo xtask bench --commit    writes the committed figures and their plots anew
  cargo xtask bench --profile   counts a call's instructions by function, with callgrind
  cargo xtask bench --machine ovmf-smm
                                counts instructions in a guest, beside the firmware's EFI_MM_COMMUNICATION2; --check and
                                --commit work as above")]
pub(crate) struct Bench {
    /// Counts instructions on this machine, and paints the stack, instead of measuring times here.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(COUNTING))]
    machine: Option<String>,
    /// Count the instructions of a call here, by function, instead of measuring times.
    #[arg(long, conflicts_with_all = ["machine", "quick", "check", "commit"])]
    profile: bool,
    /// Fewer rounds.
    #[arg(long, conflicts_with = "machine")]
    quick: bool,
    /// Compare with the committed figures.
    #[arg(long)]
    check: bool,
    /// Write figures and plots into the tree.
    #[arg(long, conflicts_with = "check")]
    commit: bool,
}

pub(crate) fn run(shell: &Shell, options: &Bench) -> Result<ExitCode> {
    if options.profile {
        return profile::run(shell);
    }
    if let Some(machine) = &options.machine {
        return guest::run(shell, machine, options.check, options.commit);
    }
    let mut arguments = Vec::new();
    if options.quick {
        arguments.push("--quick");
    }
    if options.check {
        arguments.extend(["--check", FIGURES]);
    }
    if options.commit {
        arguments.extend(["--output", FIGURES, "--plots", PLOTS]);
    }
    let bench = cmd!(
        shell,
        "cargo run --release --quiet --manifest-path {MANIFEST} -- {arguments...}"
    );
    let status = std::process::Command::from(bench).status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Formatting, lints, and the quick form against the committed figures.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    for (label, command) in [
        (
            "bench: format",
            cmd!(shell, "cargo fmt --manifest-path {MANIFEST} --check"),
        ),
        (
            "bench: lints",
            cmd!(
                shell,
                "cargo clippy --release --manifest-path {MANIFEST} -- -D warnings"
            ),
        ),
        (
            "bench: no worse than the committed figures",
            cmd!(
                shell,
                "cargo run --release --quiet --manifest-path {MANIFEST} -- --quick --check {FIGURES}"
            ),
        ),
    ] {
        process::run_quietly(label, command.into())?;
        println!("  {label}: ok");
        counts.add(Counts::ONE);
    }
    for machine in COUNTING
        .into_iter()
        .filter(|machine| guest::is_committed(machine))
    {
        guest::check(shell, machine)?;
        println!("  bench: no more instructions on {machine} than in the committed figures: ok");
        counts.add(Counts::ONE);
    }
    Ok(counts)
}
