//! Many transactions with random faults, on the simulated machine or on one under QEMU.

use crate::machine::{self, MACHINES};
use crate::report::Report;
use crate::{process, qemu, target_dir};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use std::process::{Command, ExitCode};
use std::time::Duration;
use xshell::{Shell, cmd};

/// Makes millions of transactions on the simulated machine, of which a quarter meets a fault in MM.
///
/// Each result is checked, and that no byte stays in the comm buffer. It also fails if the process
/// needs more memory at the end than after the first part. `cargo test -p mm_fuzz` does the same
/// with 20,000 transactions.
///
/// With --machine a machine under QEMU raises 100,000 MMIs instead. Of the calls a quarter meets a
/// fault: MM that sends wrong responses, mistakes of the caller, SMIs that are off, a call in the
/// middle of a call. It fails if a call has another result than it should, leaves bytes behind,
/// raises another number of MMIs, or if the firmware has less free memory at the end.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask soak                                 10 million transactions with a new seed, which is printed
  cargo xtask soak --seed 4711                     the same transactions again
  cargo xtask soak --transactions 1000000000       overnight
  cargo xtask soak --machine ovmf-smm              100,000 MMIs on a machine under QEMU
  cargo xtask soak --machine all                   on each of them")]
pub(crate) struct Soak {
    /// How many transactions.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    transactions: u64,
    /// The seed for the choice of transactions and faults; by default the time.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A machine under QEMU that raises 100,000 MMIs; `all` for each one that can.
    #[arg(long, value_name = "NAME", value_parser = machine::names(&[ALL]), conflicts_with_all = ["transactions", "seed"])]
    machine: Option<String>,
    /// How long one boot of a machine may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
}

/// Names all machines.
const ALL: &str = "all";

pub(crate) fn run(shell: &Shell, options: &Soak) -> Result<ExitCode> {
    if let Some(name) = &options.machine {
        return on_machines(shell, name, Duration::from_secs(options.timeout));
    }
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

/// Boots each way of a machine that can make so many calls.
fn on_machines(shell: &Shell, name: &str, deadline: Duration) -> Result<ExitCode> {
    let mut report = Report::default();
    let mut ways: usize = 0;
    let wanted = |machine: &&machine::Machine| name == ALL || machine.name == name;
    for machine in MACHINES.iter().filter(wanted) {
        for variant in machine.variants.iter().filter(|variant| variant.soaks) {
            ways = ways.saturating_add(1);
            report.stage(&machine.stage_name(variant), || {
                qemu::soak(shell, machine, variant, deadline)
            });
        }
    }
    ensure!(ways > 0, "machine {name} cannot run a soak");
    Ok(report.conclude())
}
