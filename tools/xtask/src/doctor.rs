//! Builds `mm_doctor`, and starts it on machines whose state is known: healthy ones, broken ones,
//! and in the UEFI Shell. The Rust that it writes is compiled and run on the machine that it was
//! written for.

mod patients;

use crate::machine::{self, DEBUG_EXIT_SUCCESS, Doctor};
use crate::process;
use crate::report::{Counts, Failed};
use crate::setup::{OVMF, OVMF_WITHOUT_SMM, QEMU_X86, RUST_NONE, RUST_UEFI, Tool};
use crate::target_dir;
use crate::toolchain::{self, AARCH64_UEFI, X86_64_UEFI};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use patients::{BROKEN, Case, PATIENTS, Patient, SHELL};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;
use xshell::Shell;

/// Builds the UEFI application that looks at what a machine has for MM, and prints where it is.
///
/// Start it from the UEFI Shell, or as EFI/BOOT/BOOTX64.EFI or BOOTAA64.EFI of a volume; `mm_doctor
/// -?` prints its options. With --machine it is started on a machine under QEMU, what it says is
/// compared with what the machine is known to have, and the Rust that it writes is compiled and run
/// there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask doctor                       builds it for x86-64 and AArch64
  cargo xtask doctor --machine ovmf-smm    starts it on this machine, under QEMU
  cargo xtask doctor --machine broken      starts it on a machine that is broken in several ways")]
pub(crate) struct Options {
    /// The machine to look at.
    #[arg(long, value_name = "NAME", value_parser = names())]
    machine: Option<String>,
    /// How long each start of the machine may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    deadline: u64,
}

/// The names of the runs that are not in [`PATIENTS`].
const BROKEN_NAME: &str = "broken";
const SHELL_NAME: &str = "shell";

fn names() -> PossibleValuesParser {
    let patients = PATIENTS.iter().map(|patient| patient.name);
    PossibleValuesParser::new(patients.chain([BROKEN_NAME, SHELL_NAME]))
}

pub(crate) fn run(shell: &Shell, options: &Options) -> Result<ExitCode> {
    let deadline = Duration::from_secs(options.deadline);
    match options.machine.as_deref() {
        None => {
            for target in [X86_64_UEFI, AARCH64_UEFI] {
                println!("{}", build(shell, target)?.display());
            }
        }
        Some(BROKEN_NAME) => drop(broken(shell, deadline, true)?),
        Some(SHELL_NAME) => drop(in_the_shell(shell, deadline, true)?),
        Some(name) => {
            let patient = PATIENTS.iter().find(|patient| patient.name == name);
            look(
                shell,
                patient.context("the machine is not in the table")?,
                deadline,
                true,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at each machine; each line that the doctor must print is a test.
pub(crate) fn stages(
    shell: &Shell,
    deadline: Duration,
    mut stage: impl FnMut(&str, &dyn Fn() -> Result<Counts>),
) {
    for patient in PATIENTS {
        stage(&format!("doctor {}", patient.name), &|| {
            look(shell, patient, deadline, false)
        });
    }
    stage("doctor broken", &|| broken(shell, deadline, false));
    stage("doctor shell", &|| in_the_shell(shell, deadline, false));
}

/// Builds the application. Beside it is the file in which the UEFI Shell looks for the help: the
/// Shell takes `-?` itself.
fn build(shell: &Shell, target: &'static str) -> Result<PathBuf> {
    let application = toolchain::build(shell, target, "mm_doctor", "mm_doctor", |_| {})?;
    let help = mm_doctor::options::manual().replace('\n', "\r\n");
    shell.write_file(application.with_extension("man"), help)?;
    Ok(application)
}

fn require(shell: &Shell, tools: &[&Tool]) -> Result<()> {
    tools
        .iter()
        .try_for_each(|tool| tool.require(shell).map_err(Into::into))
}

fn temporary() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("patina-mm-").tempdir()?)
}

/// Starts a machine, and returns what it printed.
fn boot(name: &str, command: Command, exit_code: i32, deadline: Duration, show: bool) -> Result<String> {
    let mut said = String::new();
    let status = process::run(name, command, Some(deadline), |line| {
        let text = anstream::adapter::strip_str(line).to_string();
        said.push_str(text.trim_end_matches('\r'));
        said.push('\n');
        show.then_some(text)
    })?;
    let code = status.with_context(|| format!("{name} did not end within its deadline"));
    match code.as_ref().map(|code| code.code()) {
        Ok(Some(code)) if code == exit_code => Ok(said),
        _ => {
            if !show {
                said.lines().for_each(|line| println!("  | {line}"));
            }
            anyhow::bail!("{name} ended with {:?}, expected exit code {exit_code}", code?)
        }
    }
}

/// Compares the output with the lines that it must have.
fn compare(said: &str, expected: &[&str], show: bool) -> Result<Counts> {
    let missing: Vec<&str> = expected
        .iter()
        .copied()
        .filter(|words| !said.contains(words))
        .collect();
    let total = u64::try_from(expected.len())?;
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
        let reason = format!("mm_doctor did not print: {}", missing.join("; "));
        return Err(Failed { counts, reason }.into());
    }
    ensure!(total > 0, "nothing is known about this machine");
    Ok(counts)
}

fn look(shell: &Shell, patient: &Patient, deadline: Duration, show: bool) -> Result<Counts> {
    require(shell, patient.tools)?;
    let target = match patient.firmware {
        Doctor::Aarch64(_) | Doctor::Aarch64WithoutEl3 => AARCH64_UEFI,
        _ => X86_64_UEFI,
    };
    let application = build(shell, target)?;
    let dir = temporary()?;
    let command = machine::with_application(shell, patient.firmware, &application, dir.path())?;
    let words = format!("{} -o mm.json -off", patient.words);
    shell.write_file(dir.path().join("esp/EFI/BOOT/DOCTOR.TXT"), words)?;
    let said = boot(patient.name, command, patient.exit_code, deadline, show)?;
    let mut counts = compare(&said, patient.says, show)?;
    // mm_doctor has read the file back. The host cannot read it: QEMU's FAT of a folder mixes up
    // the bytes of new files.
    ensure!(said.contains("written: mm.json"), "mm_doctor wrote no file");
    match rust_in(&said) {
        Some(rust) => counts.add(paste(shell, patient, target, &rust, deadline, show)?),
        None => ensure!(
            said.contains("No Rust for this machine: "),
            "mm_doctor wrote neither Rust nor why there is none"
        ),
    }
    Ok(counts)
}

/// The Rust at the end of the report, up to the brace in the first column.
fn rust_in(said: &str) -> Option<String> {
    let (_, rust) = said.split_once("The Rust for this machine:\n\n")?;
    let (rust, _) = rust.split_once("\n}\n")?;
    Some(format!("{rust}\n}}\n"))
}

/// Compiles the Rust that the doctor wrote, and starts it on the machine that it was written for.
fn paste(
    shell: &Shell,
    patient: &Patient,
    target: &'static str,
    rust: &str,
    deadline: Duration,
    show: bool,
) -> Result<Counts> {
    let file = target_dir()
        .join("doctor")
        .join(patient.name)
        .with_extension("rs");
    shell.write_file(&file, rust)?;
    let application = toolchain::build(shell, target, "pasted", "pasted", |command| {
        command.env("PASTED_RUST", &file);
    })?;
    let dir = temporary()?;
    let command = machine::with_application(shell, patient.firmware, &application, dir.path())?;
    let name = format!("{}, pasted", patient.name);
    let said = boot(&name, command, DEBUG_EXIT_SUCCESS, deadline, show)?;
    ensure!(
        said.contains("PASTED comm buffer ") && said.contains("PASTED ok"),
        "no message was sent"
    );
    println!(
        "  {}: the Rust to paste is compiled, and a message sent with it",
        patient.name
    );
    Ok(Counts::ONE)
}

/// Breaks machine patina-q35 in several ways during one boot.
fn broken(shell: &Shell, deadline: Duration, show: bool) -> Result<Counts> {
    require(shell, &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE])?;
    let doctor = build(shell, X86_64_UEFI)?;
    let application = toolchain::build(shell, X86_64_UEFI, "broken_machine", "broken_machine", |_| {})?;
    let dir = temporary()?;
    let command = machine::with_application(shell, Doctor::PatinaQ35, &application, dir.path())?;
    shell.copy_file(doctor, dir.path().join("esp/EFI/BOOT/DOCTOR.EFI"))?;
    let said = boot("broken machines", command, 0, deadline, show)?;
    let mut counts = Counts::default();
    for Case {
        name,
        says,
        complaints,
    } in BROKEN
    {
        let part = said
            .split_once(&format!("CASE {name}\n"))
            .with_context(|| format!("mm_doctor was not started with the fault: {name}"))?
            .1;
        let part = part.split_once("CASE ").map_or(part, |(part, _)| part);
        counts.add(compare(part, says, show)?);
        let found = (part.lines())
            .filter(|line| line.starts_with("BROKEN ") || line.starts_with("LOOK "))
            .count();
        ensure!(
            found == *complaints,
            "{name}: {found} complaints, and the machine has {complaints}:\n{part}"
        );
        counts.add(Counts::ONE);
    }
    Ok(counts)
}

/// Starts the doctor from the UEFI Shell, by a script.
fn in_the_shell(shell: &Shell, deadline: Duration, show: bool) -> Result<Counts> {
    require(shell, &[&QEMU_X86, &OVMF, &RUST_UEFI])?;
    let doctor = build(shell, X86_64_UEFI)?;
    let dir = temporary()?;
    let command = machine::with_application(shell, Doctor::OvmfSmm, &doctor, dir.path())?;
    // Without an application at the path for removable media, OVMF starts its shell, which runs the
    // script.
    let esp = dir.path().join("esp");
    shell.remove_path(esp.join("EFI"))?;
    shell.copy_file(&doctor, esp.join("mm_doctor.efi"))?;
    shell.copy_file(doctor.with_extension("man"), esp.join("mm_doctor.man"))?;
    // Keys, as the shell reads them from a file: UCS-2 with a byte order mark.
    let keys: Vec<u8> = std::iter::once(0xfeff)
        .chain("\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n".encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    shell.write_file(esp.join("keys.txt"), keys)?;
    let mut script = String::from("@echo -off\r\nfs0:\r\n");
    for (index, (words, _)) in SHELL.iter().enumerate() {
        script.push_str(&format!(
            "echo CASE {index}\r\nmm_doctor {words}\r\necho STATUS %lasterror%\r\n"
        ));
    }
    script.push_str("echo CASE end\r\nreset -s\r\n");
    shell.write_file(esp.join("startup.nsh"), script)?;
    let said = boot("the UEFI Shell", command, 0, deadline, show)?;
    let mut counts = Counts::default();
    for (index, (words, says)) in SHELL.iter().enumerate() {
        let part = said
            .split_once(&format!("CASE {index}\n"))
            .with_context(|| format!("`mm_doctor {words}` was not started"))?
            .1;
        let part = part.split_once("CASE ").map_or(part, |(part, _)| part);
        counts.add(compare(part, says, show)?);
        if words.contains("-json") {
            let json = part.find('{').zip(part.rfind('}'));
            let json = json.and_then(|(start, end)| part.get(start..=end));
            let json = json.context("no JSON was printed")?.replace(['\r', '\n'], "");
            let dumps = mm_trace::doctor::read(json.as_bytes())?;
            ensure!(dumps.len() > 3, "{} parts in the JSON", dumps.len());
            counts.add(Counts::ONE);
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rust_ends_with_its_last_brace() {
        let said = "VERDICT x\n\nThe Rust for this machine:\n\nuse a::*;\nimpl A {\n    fn b() {\n    }\n}\nwritten: mm.json\n";
        assert_eq!(
            rust_in(said).as_deref(),
            Some("use a::*;\nimpl A {\n    fn b() {\n    }\n}\n")
        );
        assert_eq!(rust_in("No Rust for this machine: x\n"), None);
    }
}
