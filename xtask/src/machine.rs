//! The table of machines that can be booted.

use crate::setup::{OVMF, OVMF_CODE, OVMF_VARS, QEMU_X86, RUST_UEFI, Tool, ovmf_file};
use crate::toolchain::{Toolchain, X86_64_UEFI};
use crate::{process, qemu, root};
use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};
use std::process::Command;
use xshell::{Shell, cmd};

/// What the guest is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Run the tests and say so in the protocol of [`crate::verdict`].
    Test,
    /// Show something to people.
    Demo,
}

impl Mode {
    /// The word by which a guest is told.
    const fn word(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Demo => "demo",
        }
    }
}

/// A machine under QEMU with the firmware and the code that it boots.
pub(crate) struct Machine {
    /// Its name on the command line and in the table.
    pub(crate) name: &'static str,
    /// What must be installed to build and to boot it.
    pub(crate) tools: &'static [&'static Tool],
    /// Builds what it boots; the result is a file for `command`.
    pub(crate) build: fn(&Shell) -> Result<PathBuf>,
    /// Puts the files of one run into a fresh directory and names QEMU's arguments. The guest's serial line is QEMU's
    /// standard output.
    pub(crate) command: fn(&Shell, image: &Path, dir: &Path, mode: Mode) -> Result<Command>,
    /// QEMU's exit code after a success.
    pub(crate) exit_code: i32,
    /// Where the machine has SMIs: the end of the serial text with which the firmware starts our code. Those before are the
    /// firmware's own. Such a machine has the arguments [`qemu::log_smis`].
    pub(crate) smis_since: Option<&'static str>,
}

/// All of them.
pub(crate) const MACHINES: &[Machine] = &[Machine {
    name: "ovmf-smm",
    tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
    build: |shell| build_uefi(shell, "ovmf_smm"),
    command: ovmf_smm,
    exit_code: DEBUG_EXIT_SUCCESS,
    smis_since: Some("BdsDxe: starting "),
}];

/// The machine of this name.
pub(crate) fn find(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|machine| machine.name == name)
}

/// What can be named on the command line: one word for no machine of the table, and all that are in it.
pub(crate) fn names(first: &'static str) -> PossibleValuesParser {
    PossibleValuesParser::new(std::iter::once(first).chain(MACHINES.iter().map(|machine| machine.name)))
}

/// What the guest writes to QEMU's `isa-debug-exit` after a success is 0x10; QEMU ends with twice that, plus one.
const DEBUG_EXIT_SUCCESS: i32 = 0x10 << 1 | 1;

/// Builds the application `firmware/NAME` for x86-64 UEFI.
fn build_uefi(shell: &Shell, name: &str) -> Result<PathBuf> {
    let manifest = root().join("firmware").join(name).join("Cargo.toml");
    ensure!(manifest.is_file(), "there is no firmware/{name} in this tree");
    let toolchain = Toolchain::find(shell, X86_64_UEFI)?;
    let mut command = toolchain.cargo("build");
    command
        .arg("--manifest-path")
        .arg(manifest)
        .current_dir(shell.current_dir());
    let what = format!("build of {name}");
    println!("  {what}: {}", toolchain.describe());
    process::run_quietly(&what, command)?;
    let image = toolchain.products().join(format!("{name}.efi"));
    ensure!(image.is_file(), "the {what} left no {}", image.display());
    Ok(image)
}

/// Debian's OVMF with edk2's own SMM core. The application starts by itself from the removable-media path.
fn ovmf_smm(shell: &Shell, image: &Path, dir: &Path, mode: Mode) -> Result<Command> {
    let boot = shell.create_dir(dir.join("esp/EFI/BOOT"))?;
    shell.copy_file(image, boot.join("BOOTX64.EFI"))?;
    shell.write_file(boot.join("MODE.TXT"), mode.word())?;
    let vars = dir.join("vars.fd");
    shell.copy_file(ovmf_file(OVMF_VARS), &vars)?;

    let path = |path: &Path| -> Result<String> {
        let text = path
            .to_str()
            .with_context(|| format!("QEMU cannot be given the path {}", path.display()))?;
        // QEMU's way to write a comma inside an option's value.
        Ok(text.replace(',', ",,"))
    };
    let code = format!(
        "if=pflash,format=raw,unit=0,readonly=on,file={}",
        path(&ovmf_file(OVMF_CODE))?
    );
    let vars = format!("if=pflash,format=raw,unit=1,file={}", path(&vars)?);
    let esp = format!("format=raw,file=fat:rw:{}", path(&dir.join("esp"))?);
    let secure_flash = "driver=cfi.pflash01,property=secure,value=on";
    Ok(
        cmd!(shell, "qemu-system-x86_64 -machine q35,smm=on,accel=tcg -m 256")
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .args(["-global", secure_flash, "-global", "ICH9-LPC.disable_s3=1"])
            .args(["-drive", &code, "-drive", &vars, "-drive", &esp])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            .args(qemu::log_smis(dir))
            .into(),
    )
}
