//! Demonstrations for people.

use crate::{machine, process, qemu};
use anyhow::{Context as _, Result};
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;
use xshell::{Cmd, Shell, cmd};

/// The simulated machine, which is a program of this host.
const SIM: &str = "sim";

/// Shows an exchange with Management Mode, step by step.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask demo                       on the simulated machine
  cargo xtask demo --machine ovmf-smm    on stock UEFI firmware under QEMU, with real SMIs
  cargo xtask demo --machine patina-q35  on a Patina firmware under QEMU, with an MM core in Rust
  cargo xtask demo --machine patina-smm  on a Patina firmware under QEMU, with edk2's SMM core
  cargo xtask demo --machine aarch64     on stock UEFI firmware above a secure world, by FF-A")]
pub(crate) struct Demo {
    /// Where to run it.
    #[arg(long, value_name = "NAME", default_value = SIM, value_parser = machine::names(SIM))]
    machine: String,
    /// How long a machine may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,
}

pub(crate) fn run(shell: &Shell, options: &Demo) -> Result<ExitCode> {
    if options.machine == SIM {
        // By itself first, since it takes minutes where nothing is built yet, and says what it is at.
        let build = cmd!(shell, "cargo build --package patina_harness --example demo");
        process::run_quietly("build of the demo", build.into())?;
        simulated(shell).quiet().run()?;
    } else {
        let machine = machine::find(&options.machine).context("the machine is not in the table")?;
        qemu::demo(shell, machine, Duration::from_secs(options.deadline), true)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The demo on the simulated machine.
pub(crate) fn simulated(shell: &Shell) -> Cmd<'_> {
    cmd!(shell, "cargo run --quiet --package patina_harness --example demo")
}
