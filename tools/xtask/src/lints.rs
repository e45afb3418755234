//! Runs Clippy on the code that only firmware targets compile, which the lints of this host never
//! see.

use crate::image::{self, MM_IMAGE};
use crate::process;
use crate::report::{Counts, Report};
use crate::setup::CLIPPY;
use crate::toolchain::{AARCH64_BARE, AARCH64_UEFI, Toolchain, X86_64_NONE, X86_64_UEFI};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use xshell::Shell;

/// Programs of one target, compiled together. Libraries of this workspace are read with them.
struct Programs {
    target: &'static str,
    arguments: &'static [&'static str],
    /// Whether the MM image of q35 has to be built before, and whether with its tests.
    q35_mm: Option<bool>,
}

const PROGRAMS: [Programs; 22] = [
    plain(X86_64_UEFI, &["-p", "mm_doctor"]),
    plain(AARCH64_UEFI, &["-p", "mm_doctor"]),
    plain(
        X86_64_UEFI,
        &["-p", "patina_mm", "-p", "mm_comm", "--example", "asm_probe"],
    ),
    plain(X86_64_UEFI, &["-p", "ovmf_smm", "-p", "platform_self_test"]),
    plain(X86_64_UEFI, &["-p", "pasted", "-p", "broken_machine"]),
    plain(X86_64_UEFI, &["-p", "q35_runtime", "-p", "mm_runtime"]),
    Programs {
        target: X86_64_UEFI,
        arguments: &["-p", "q35", "--features", "runtime_driver"],
        q35_mm: Some(false),
    },
    plain(X86_64_UEFI, &["-p", "q35_smm"]),
    plain(X86_64_UEFI, &["-p", "q35_smm", "--features", "conformance"]),
    plain(X86_64_UEFI, &["-p", "q35_smm", "--features", "own"]),
    plain(X86_64_NONE, &["-p", "q35_mm", "--features", "conformance"]),
    Programs {
        target: X86_64_UEFI,
        arguments: &["-p", "q35"],
        q35_mm: Some(false),
    },
    Programs {
        target: X86_64_UEFI,
        arguments: &["-p", "q35", "--features", "conformance"],
        q35_mm: Some(true),
    },
    plain(
        AARCH64_UEFI,
        &["-p", "patina_mm", "-p", "mm_comm", "--example", "asm_probe"],
    ),
    plain(AARCH64_UEFI, &["-p", "aarch64_payload", "--bin", "aarch64_app"]),
    plain(AARCH64_UEFI, &["-p", "variable_driver"]),
    plain(AARCH64_UEFI, &["-p", "pasted"]),
    plain(X86_64_UEFI, &["-p", "variable_driver"]),
    plain(AARCH64_UEFI, &["-p", "exit_boot_services"]),
    plain(X86_64_UEFI, &["-p", "exit_boot_services"]),
    plain(
        AARCH64_BARE,
        &["-p", "aarch64_payload", "--bin", "aarch64_payload"],
    ),
    plain(
        AARCH64_BARE,
        &["-p", "aarch64_monitor", "--bin", "aarch64_monitor"],
    ),
];

const fn plain(target: &'static str, arguments: &'static [&'static str]) -> Programs {
    Programs {
        target,
        arguments,
        q35_mm: None,
    }
}

/// Runs Clippy on the code that only firmware targets compile.
///
/// The lints of the host never see it. A warning is a failure.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask lints    each program of each target, one after the other")]
pub(crate) struct Lints {}

pub(crate) fn run(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    report.stage("firmware lints", || stage(shell));
    report.conclude()
}

/// Reads all of them; each is one test.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    CLIPPY.require(shell)?;
    let mut counts = Counts::default();
    for programs in &PROGRAMS {
        read(shell, programs)?;
        counts.add(Counts::ONE);
    }
    Ok(counts)
}

fn read(shell: &Shell, programs: &Programs) -> Result<()> {
    let mut command = Toolchain::find(shell, programs.target)?.clippy()?;
    command
        .args(programs.arguments)
        .args(["--", "-D", "warnings"])
        .current_dir(shell.current_dir());
    if let Some(conformance) = programs.q35_mm {
        command.env(MM_IMAGE, image::q35_mm(shell, conformance)?);
    }
    let label = format!("clippy {} for {}", programs.arguments.join(" "), programs.target);
    process::run_quietly(&label, command)?;
    println!("  {label}: ok");
    Ok(())
}
