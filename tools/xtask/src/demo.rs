//! Demonstrations for people.

use crate::{machine, process, qemu};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use mm_trace::calls::{Event, Sink as _};
use mm_trace::page::{self, Page};
use mm_trace::read::{Format, read};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use xshell::{Shell, cmd};

/// The simulated machine, which is a program of this host.
const SIM: &str = "sim";

/// Shows an exchange with Management Mode, step by step.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask demo                       on the simulated machine
  cargo xtask demo --machine ovmf-smm    on stock UEFI firmware under QEMU, with real SMIs
  cargo xtask demo --machine patina-q35  on a Patina firmware under QEMU, with an MM core in Rust
  cargo xtask demo --machine patina-smm  on a Patina firmware under QEMU, with edk2's SMM core
  cargo xtask demo --machine linux       Linux sets a variable through a runtime driver, with real SMIs
  cargo xtask demo --machine linux-aarch64
                                         the same by secure monitor calls
  cargo xtask demo --html demo.html      draws it, too: a page for a browser
  cargo xtask demo --machine aarch64     on stock UEFI firmware above a secure world, by FF-A")]
pub(crate) struct Demo {
    /// Where to run it.
    #[arg(long, value_name = "NAME", default_value = SIM, value_parser = machine::names(&[SIM]))]
    machine: String,
    /// How long a machine may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,
    /// Draws what was logged, as a page for a browser.
    #[arg(long, value_name = "FILE", value_parser = crate::file)]
    html: Option<PathBuf>,
}

pub(crate) fn run(shell: &Shell, options: &Demo) -> Result<ExitCode> {
    let log = if options.machine == SIM {
        // Built separately first, because it takes minutes if nothing is built yet, and shows its
        // progress.
        let build = cmd!(shell, "cargo build --package mm_conformance --example demo");
        process::run_quietly("build of the demo", build.into())?;
        simulated_log(shell, false)?
    } else {
        let machine = machine::find(&options.machine).context("the machine is not in the table")?;
        qemu::demo(shell, machine, Duration::from_secs(options.deadline), true)?
    };
    if let Some(html) = &options.html {
        draw(&log, &options.machine, html)?;
        println!("drawn: {}", html.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Holds the conversation on the simulated machine. Returns what was logged.
pub(crate) fn simulated_log(shell: &Shell, quietly: bool) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("demo.log");
    let demo = cmd!(
        shell,
        "cargo run --quiet --package mm_conformance --example demo -- {file}"
    );
    if quietly {
        process::run_quietly("demo", demo.into())?;
    } else {
        let status = process::run("demo", demo.into(), None, |line| Some(line.to_owned()))?;
        process::require_success("demo", status)?;
    }
    Ok(std::fs::read_to_string(&file)?)
}

/// Draws a demo's log. It is an error if there is no call in it.
pub(crate) fn draw(log: &str, name: &str, html: &Path) -> Result<()> {
    let file = File::create(html).with_context(|| format!("{} cannot be written", html.display()))?;
    let mut page = Page::new(BufWriter::new(file), None, page::CALLS)?;
    let mut calls: usize = 0;
    let mut sink = |event: &Event<'_>| {
        calls = calls.saturating_add(usize::from(matches!(event, Event::End(_))));
        page.event(event)
    };
    read(log.as_bytes(), name, Some(Format::Log), None, &mut sink)?;
    page.finish()?;
    ensure!(calls > 0, "machine {name} logged no call at trace");
    Ok(())
}
