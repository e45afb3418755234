//! Many transactions with random faults, on the simulated machine.

use crate::{process, target_dir};
use anyhow::{Context as _, Result};
use clap::Args;
use std::process::{Command, ExitCode};
use xshell::{Shell, cmd};

/// Makes millions of transactions on the simulated machine, of which a quarter meets a fault in MM.
///
/// Each result is checked, and that no byte stays in the comm buffer. It also fails if the process
/// needs more memory at the end than after the first part. `cargo test -p mm_fuzz` does the same
/// with 20,000 transactions, and the machines under QEMU make 10,000 to 100,000 calls each
/// (scenario many_calls_work).
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask soak                                 10 million transactions with a new seed, which is printed
  cargo xtask soak --seed 4711                     the same transactions again
  cargo xtask soak --transactions 1000000000       overnight")]
pub(crate) struct Soak {
    /// How many transactions.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    transactions: u64,
    /// The seed for the choice of transactions and faults; by default the time.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(crate) fn run(shell: &Shell, options: &Soak) -> Result<ExitCode> {
    let build = cmd!(shell, "cargo build --release --package mm_fuzz --bin soak");
    process::run_quietly("build of the machine", build.into())?;
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = options
        .seed
        .unwrap_or_else(|| since_1970.map_or(0, |time| time.as_secs()));
    let mut command = Command::new(target_dir().join("release/soak"));
    command.args([options.transactions, seed].map(|number| number.to_string()));
    let status = process::run("soak", command, None, |line| Some(format!("  {line}")))?;
    let status = status.context("the machine has no deadline")?;
    println!("{}", if status.success() { "passed" } else { "failed" });
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
