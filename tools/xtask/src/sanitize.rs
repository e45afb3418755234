//! The tests of this host under AddressSanitizer, ThreadSanitizer or Miri.

use crate::process;
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use std::path::Path;
use std::process::{Command, ExitCode};
use xshell::{Shell, cmd};

/// The tool that the tests run under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tool {
    /// Accesses outside of allocations, or after their end.
    Address,
    /// Two threads that access the same memory without an order.
    Thread,
    /// Undefined behaviour of any kind. Slow, so only for crates whose tests it can run.
    Miri,
}

/// Runs the host tests of the shipped crates under a sanitizer, or under Miri.
///
/// The standard library is instrumented if the compiler comes with its sources, which the component
/// rust-src of a nightly has. With the stable compiler address works without them, and what the
/// standard library does is then not observed; thread needs them.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask sanitize                      AddressSanitizer, with the active compiler
  cargo xtask sanitize --tool thread        ThreadSanitizer: rustup +nightly component add rust-src
  cargo xtask sanitize --tool miri          Miri: rustup +nightly component add miri rust-src
  cargo xtask sanitize --package mm_comm    only one crate")]
pub(crate) struct Sanitize {
    /// The tool that the tests run under.
    #[arg(long, value_enum, default_value_t = Tool::Address)]
    tool: Tool,
    /// Only this crate; can be given more than once.
    #[arg(long, value_name = "CRATE")]
    package: Vec<String>,
}

/// The crates whose tests run under a sanitizer: those that ship, and those that test them on this
/// host.
const PACKAGES: [&str; 9] = [
    "mm_wire",
    "mm_comm",
    "mm_core",
    "mm_runtime",
    "mm_sim",
    "patina_mm",
    "patina_mm_test",
    "mm_conformance",
    "mm_fuzz",
];
/// The test that races on shared memory on purpose, as a second processor may.
const RACE: &str = "racing_writer_gets_no_access_outside_the_message";
/// Those whose tests Miri can run: they neither map memory nor start programs.
const FOR_MIRI: [&str; 3] = ["mm_wire", "mm_core", "mm_comm"];

pub(crate) fn run(shell: &Shell, options: &Sanitize) -> Result<ExitCode> {
    let version = cmd!(shell, "rustc -vV").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.unwrap_or("x86_64-unknown-linux-gnu");
    let nightly = has_sources(shell);
    let mut command = Command::new("cargo");
    if options.tool != Tool::Address {
        ensure!(
            nightly,
            "this needs a nightly compiler and its sources: `rustup toolchain install nightly --component rust-src,miri`"
        );
        command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]);
    }
    let defaults = if options.tool == Tool::Miri {
        &FOR_MIRI[..]
    } else {
        &PACKAGES
    };
    let packages = match options.package.as_slice() {
        [] => defaults.iter().map(|package| (*package).to_owned()).collect(),
        some => some.to_vec(),
    };
    command.current_dir(shell.current_dir());
    match options.tool {
        Tool::Miri => {
            // Not the models of loom, which Miri would run for days.
            command.args(["miri", "test", "--lib", "--target-dir", "target/miri"]);
            // This project converts addresses to numbers; property tests write files; a case takes
            // a thousand times as long.
            command
                .env(
                    "MIRIFLAGS",
                    "-Zmiri-permissive-provenance -Zmiri-disable-isolation",
                )
                .env("PROPTEST_CASES", "1");
        }
        Tool::Address | Tool::Thread => {
            let name = match options.tool {
                Tool::Thread => "thread",
                _ => "address",
            };
            command.args(["test", "--target", host, "--target-dir"]);
            command.arg(Path::new("target").join(format!("sanitize-{name}")));
            // Memory of simulated machines lives until the process ends.
            command
                .env("RUSTFLAGS", format!("-Zsanitizer={name}"))
                // Some tests start a process that has to end by a fault's signal.
                .env("ASAN_OPTIONS", "detect_leaks=0:handle_segv=0:handle_sigbus=0")
                .env("TSAN_OPTIONS", "handle_segv=0:handle_sigbus=0");
            if options.tool == Tool::Thread {
                command.arg("-Zbuild-std");
            }
            // Documentation tests are linked without the sanitizer's library.
            command.args(["--lib", "--tests"]);
        }
    }
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    if options.tool == Tool::Thread {
        command.args(["--no-fail-fast", "--", "--skip", RACE]);
    }
    let status = process::run("sanitize", command, None, |line| {
        let worth_showing = [
            "test result",
            "ERROR",
            "SUMMARY",
            "error",
            "FAILED",
            "     Running",
        ];
        worth_showing
            .iter()
            .any(|word| line.contains(word))
            .then(|| line.to_owned())
    })?;
    let passed = status.is_some_and(|status| status.success());
    println!("{}", if passed { "passed" } else { "failed" });
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether there is a nightly compiler with the sources of its standard library.
fn has_sources(shell: &Shell) -> bool {
    let sysroot = cmd!(shell, "rustup run nightly rustc --print sysroot")
        .quiet()
        .ignore_stderr()
        .read();
    sysroot.is_ok_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    })
}
