//! The benchmark beside the published crate.

use crate::process;
use crate::report::Counts;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// A workspace of its own.
const MANIFEST: &str = "tools/bench/Cargo.toml";

/// Measures calls of this tree and of the published crate, side by side.
///
/// Sizes and allocations come first, then times by criterion. What stands behind `--` goes to criterion.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench                         some minutes
  cargo xtask bench -- --quick              less exact, in half a minute
  cargo xtask bench -- '24 bytes'           only what has this in its name")]
pub(crate) struct Bench {
    /// For criterion.
    #[arg(last = true)]
    criterion: Vec<String>,
}

pub(crate) fn run(shell: &Shell, options: &Bench) -> Result<ExitCode> {
    let criterion = &options.criterion;
    cmd!(
        shell,
        "cargo bench --manifest-path {MANIFEST} --bench communicate -- {criterion...}"
    )
    .quiet()
    .run()?;
    Ok(ExitCode::SUCCESS)
}

/// Formatting, lints, and each benchmark once: it must not rot between two looks at its figures.
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
                "cargo clippy --manifest-path {MANIFEST} --all-targets -- -D warnings"
            ),
        ),
        (
            "bench: each once",
            cmd!(
                shell,
                "cargo bench --manifest-path {MANIFEST} --bench communicate -- --test"
            ),
        ),
    ] {
        process::run_quietly(label, command.into())?;
        println!("  {label}: ok");
        counts.add(Counts::ONE);
    }
    Ok(counts)
}
