//! Firmware images of this repository's platforms.

use crate::process;
use crate::setup::{OVMF_CODE_WITHOUT_SMM, ovmf_file};
use crate::target_dir;
use crate::toolchain::{Toolchain, X86_64_NONE, X86_64_UEFI};
use anyhow::{Result, ensure};
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// The only platform that there is.
pub(crate) const PATINA_Q35: &str = "patina-q35";

/// Tells the DXE core's build script where the MM image is.
const MM_IMAGE: &str = "PATINA_Q35_MM_IMAGE";

/// Builds a firmware image.
///
/// Into OVMF's flash image go a Patina DXE core with this repository's components and, inside it, an MM core in Rust.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask image patina-q35                  the platform
  cargo xtask image patina-q35 --conformance    with the tests that `cargo xtask test` runs in it")]
pub(crate) struct Image {
    /// The platform.
    #[arg(value_parser = [PATINA_Q35])]
    platform: String,
    /// With the test bench, and an MM core that serves it.
    #[arg(long)]
    conformance: bool,
    /// Where to write the image [default: target/firmware/patina-q35.fd, or patina-q35-conformance.fd].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(shell: &Shell, options: &Image) -> Result<ExitCode> {
    let image = patina_q35(shell, options.conformance, options.output.as_deref())?;
    println!("{}: {}", options.platform, image.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the image of platform `patina-q35`.
pub(crate) fn patina_q35(shell: &Shell, conformance: bool, output: Option<&Path>) -> Result<PathBuf> {
    let mm_image = build(shell, X86_64_NONE, "mm_image", conformance, None)?;
    let core = build(shell, X86_64_UEFI, "patina_q35", conformance, Some(&mm_image))?;
    let name = if conformance {
        "patina-q35-conformance.fd"
    } else {
        "patina-q35.fd"
    };
    let output = output.map_or_else(|| target_dir().join("firmware").join(name), Path::to_path_buf);
    let ovmf = ovmf_file(OVMF_CODE_WITHOUT_SMM);
    let tool = cmd!(
        shell,
        "cargo run --quiet --package ovmf_image -- --ovmf {ovmf} --core {core} --output {output}"
    );
    process::run_quietly("flash image", tool.into())?;
    Ok(output)
}

/// Builds the program of `firmware/PACKAGE`.
fn build(
    shell: &Shell,
    target: &'static str,
    package: &str,
    conformance: bool,
    mm_image: Option<&Path>,
) -> Result<PathBuf> {
    let toolchain = Toolchain::find(shell, target)?;
    let mut command = toolchain.cargo("build");
    command
        .args(["--package", package])
        .current_dir(shell.current_dir());
    if conformance {
        command.args(["--features", "conformance"]);
    }
    if let Some(mm_image) = mm_image {
        command.env(MM_IMAGE, mm_image);
    }
    let what = format!("build of {package}");
    println!("  {what}: {}", toolchain.describe());
    process::run_quietly(&what, command)?;
    let extension = if target == X86_64_UEFI { "efi" } else { "" };
    let program = toolchain.products().join(package).with_extension(extension);
    ensure!(program.is_file(), "the {what} left no {}", program.display());
    Ok(program)
}
