//! Builds `mm_doctor`, and has it look at the machines whose state is known.

use crate::machine::{self, DEBUG_EXIT_FAILURE, Doctor};
use crate::process;
use crate::report::{Counts, Failed};
use crate::setup::{
    ARM_UEFI, OVMF, OVMF_WITHOUT_SMM, QEMU_ARM, QEMU_X86, RUST_ARM, RUST_NONE, RUST_UEFI, Tool,
};
use crate::toolchain::{self, AARCH64_UEFI, X86_64_UEFI};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xshell::Shell;

/// Builds the UEFI application that looks at a machine, and shows where it is.
///
/// It is started from the UEFI Shell, or as EFI/BOOT/BOOTX64.EFI or BOOTAA64.EFI of a volume.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask doctor                       builds it for x86-64 and AArch64
  cargo xtask doctor --machine ovmf-smm    has it look at this machine, under QEMU")]
pub(crate) struct Options {
    /// The machine to look at.
    #[arg(long, value_name = "NAME", value_parser = names())]
    machine: Option<String>,
    /// How long the machine may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,
}

/// The words that the doctor gets: everything, and then the power goes off.
const WORDS: &str = "probe -o mm.json -off";

/// A machine that the doctor looks at, and what is known of it.
struct Patient {
    name: &'static str,
    tools: &'static [&'static Tool],
    firmware: Doctor,
    /// QEMU's exit code when the power goes off.
    exit_code: i32,
    /// What the doctor has to say, in part of a line.
    says: &'static [&'static str],
}

const PATIENTS: [Patient; 4] = [
    Patient {
        name: "ovmf-smm",
        tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
        firmware: Doctor::OvmfSmm,
        exit_code: 0,
        says: &[
            "OK      ways to MM: by the firmware's communication protocol",
            "OK      MM communication 2: installed by ",
            "OK      chipset: Intel Q35, as QEMU has it; host bridge 8086:29c0, LPC 8086:2918",
            "OK      ACPI base: 0x600, from PMBASE, PCI 0:1F.0 0x40",
            "OK      SMIs: on: SMI_EN at 0x630 is 0x",
            "OK      SMRAM: closed and locked",
            "OK      FADT: SMI_CMD is port 0xb2",
            "OK      probe, communication protocol 2: the variable service's payload size: 24 bytes back",
            "OK      probe, communication protocol 2: a GUID that no handler has: no handler: EFI_NOT_FOUND",
            "VERDICT nothing to complain of",
            "add.component(FirmwareMmCommunication::new(0, 16));",
        ],
    },
    Patient {
        name: "ovmf-without-mm",
        tools: &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI],
        firmware: Doctor::OvmfWithoutMm,
        exit_code: 0,
        says: &[
            "BROKEN  ways to MM: no HOB announces a comm buffer, no communication protocol is installed",
            "LOOK    SMIs: SMI_EN at 0x630 is 0: SMIs are off, or it is not there",
            "VERDICT MM cannot be used like this",
            "No Rust for this machine: ",
        ],
    },
    Patient {
        name: "patina-q35",
        tools: &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
        firmware: Doctor::PatinaQ35,
        exit_code: 0,
        says: &[
            "OK      ways to MM: 2 comm buffers from HOBs",
            "OK      MM communication 3: ",
            "OK      comm buffer 0 (comm-region HOB, supervisor): 16384 bytes at 0x",
            "OK      comm buffer 1 (comm-region HOB, user): status mailbox at 0x",
            "OK      SMIs: on: SMI_EN at 0x630 is 0x",
            "OK      SMRAM: closed and locked",
            "OK      probe, communication protocol 3: the variable service's payload size: 24 bytes back",
            "OK      probe, comm buffer 0 and ports: the supervisor's version: 40 bytes back",
            "OK      probe, comm buffer 1 and ports: a GUID that no handler has: no handler: MM returned EFI_NOT_FOUND",
            "VERDICT nothing to complain of",
            "MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9)",
        ],
    },
    Patient {
        name: "aarch64",
        tools: &[&QEMU_ARM, &ARM_UEFI, &RUST_ARM],
        firmware: Doctor::Aarch64,
        // The monitor ends the machine so unless a test says otherwise.
        exit_code: DEBUG_EXIT_FAILURE,
        says: &[
            "LOOK    ways to MM: by secure monitor calls; no HOB announces a comm buffer",
            "OK      processor: UEFI runs at EL1",
            "OK      FF-A: version 1.",
            "OK      SPM_MM: function 0x84000040 is not there",
            "VERDICT usable",
        ],
    },
];

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(PATIENTS.iter().map(|patient| patient.name))
}

pub(crate) fn run(shell: &Shell, options: &Options) -> Result<ExitCode> {
    let Some(name) = &options.machine else {
        for target in [X86_64_UEFI, AARCH64_UEFI] {
            println!("{}", build(shell, target)?.display());
        }
        return Ok(ExitCode::SUCCESS);
    };
    let patient = PATIENTS.iter().find(|patient| patient.name == name);
    let patient = patient.context("the machine is not in the table")?;
    look(shell, patient, Duration::from_secs(options.deadline), true)?;
    Ok(ExitCode::SUCCESS)
}

/// Has it look at each machine; each line that it has to say is a test.
pub(crate) fn stages(
    shell: &Shell,
    deadline: Duration,
    mut stage: impl FnMut(&str, &dyn Fn() -> Result<Counts>),
) {
    for patient in &PATIENTS {
        stage(&format!("doctor {}", patient.name), &|| {
            look(shell, patient, deadline, false)
        });
    }
}

fn build(shell: &Shell, target: &'static str) -> Result<PathBuf> {
    toolchain::build(shell, target, "mm_doctor", "mm_doctor", |_| {})
}

fn look(shell: &Shell, patient: &Patient, deadline: Duration, show: bool) -> Result<Counts> {
    for tool in patient.tools {
        tool.require(shell)?;
    }
    let target = match patient.firmware {
        Doctor::Aarch64 => AARCH64_UEFI,
        _ => X86_64_UEFI,
    };
    let application = build(shell, target)?;
    let dir = tempfile::Builder::new().prefix("patina-mm-").tempdir()?;
    let command = machine::with_doctor(shell, patient.firmware, &application, dir.path(), WORDS)?;
    let mut said = String::new();
    let status = process::run(patient.name, command, Some(deadline), |line| {
        let text = anstream::adapter::strip_str(line).to_string();
        said.push_str(&text);
        said.push('\n');
        show.then_some(text)
    })?;
    let code = status.with_context(|| format!("{} did not end within its deadline", patient.name))?;
    ensure!(
        code.code() == Some(patient.exit_code),
        "{} ended with {code}, and the power was to go off",
        patient.name
    );
    let missing: Vec<&str> = (patient.says.iter().copied())
        .filter(|words| !said.contains(words))
        .collect();
    // It has read the file back. Here it is of no use: QEMU's FAT of a folder mixes up the bytes of new files.
    ensure!(said.contains("written: mm.json"), "the doctor wrote no file");
    let total = u64::try_from(patient.says.len())?;
    let failed = u64::try_from(missing.len())?;
    let counts = Counts {
        passed: total.saturating_sub(failed),
        failed,
        skipped: 0,
    };
    if failed > 0 {
        if !show {
            said.lines().for_each(|line| println!("  | {line}"));
        }
        let reason = format!("the doctor did not say: {}", missing.join("; "));
        return Err(Failed { counts, reason }.into());
    }
    ensure!(total > 0, "nothing is known of this machine");
    Ok(counts)
}
