//! Firmware images of this repository's platforms.

use crate::process;
use crate::report::Counts;
use crate::setup::{
    OVMF, OVMF_CODE, OVMF_CODE_WITHOUT_SMM, OVMF_WITHOUT_SMM, RUST_NONE, RUST_UEFI, Tool, ovmf_file,
};
use crate::target_dir;
use crate::toolchain::{self, X86_64_NONE, X86_64_UEFI};
use anyhow::{Context as _, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// A Patina DXE core of this repository, and the flash image that it is put into.
pub(crate) struct Platform {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// Its crate in `platforms/`.
    package: &'static str,
    /// The stock flash image.
    ovmf: &'static str,
    /// Whether it contains the MM core of `platforms/q35_mm`.
    has_mm_image: bool,
    /// Whether drivers in C reach MM through the runtime driver of `platforms/q35_runtime`, edk2's
    /// variable driver among them.
    has_runtime_driver: bool,
    /// Whether the MM core has the suite's handlers, also if the DXE core does not have the suite.
    has_suite_in_mm: bool,
    /// The tools that must be installed to build it.
    pub(crate) tools: &'static [&'static Tool],
}

/// The platform with an MM core in Rust.
pub(crate) const PATINA_Q35: Platform = Platform {
    name: "patina-q35",
    package: "q35",
    ovmf: OVMF_CODE_WITHOUT_SMM,
    has_mm_image: true,
    has_runtime_driver: false,
    has_suite_in_mm: false,
    tools: &[&OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
};

/// The same, for an operating system that keeps its variables in MM.
pub(crate) const PATINA_Q35_RUNTIME: Platform = Platform {
    name: "patina-q35-runtime",
    has_runtime_driver: true,
    tools: &[&OVMF, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
    ..PATINA_Q35
};

/// The same for machine exit-boot-services, whose application runs the suite. Nothing else in the
/// firmware sends messages.
pub(crate) const PATINA_Q35_EXIT: Platform = Platform {
    name: "patina-q35-exit",
    has_suite_in_mm: true,
    ..PATINA_Q35_RUNTIME
};

/// The platform with edk2's SMM core.
pub(crate) const PATINA_SMM: Platform = Platform {
    name: "patina-smm",
    package: "q35_smm",
    ovmf: OVMF_CODE,
    has_mm_image: false,
    has_runtime_driver: false,
    has_suite_in_mm: false,
    tools: &[&OVMF, &RUST_UEFI],
};

const PLATFORMS: [&Platform; 3] = [&PATINA_Q35, &PATINA_Q35_RUNTIME, &PATINA_SMM];

/// The name of the runtime driver's file.
const RUNTIME_DRIVER: &str = "4b5f7d10-2f55-4a4e-a5a8-8f8a3d0e6c21";

/// edk2's `VariableSmmRuntimeDxe` (MdeModulePkg), which Debian's OVMF with SMM has.
const VARIABLE_DRIVER: &str = "9f7dcade-11ea-448a-a46f-76e003657dd1";

/// The drivers that OVMF without SMM has instead (MdeModulePkg and OvmfPkg), and a driver that
/// would fill the small store in MM: each attempt is a variable of a KiB, and it makes eight.
const DROPPED_FOR_IT: [&str; 5] = [
    "VariableRuntimeDxe",
    "FaultTolerantWriteDxe",
    "EmuVariableFvbRuntimeDxe",
    "FvbServicesRuntimeDxe",
    "IScsiDxe",
];

/// Tells the DXE core's build script where the MM image is.
pub(crate) const MM_IMAGE: &str = "PATINA_Q35_MM_IMAGE";

/// Builds a firmware image.
///
/// Into OVMF's flash image goes a Patina DXE core with this repository's components: patina-q35 has
/// an MM core in Rust inside it, patina-q35-runtime a runtime driver as well, above which edk2's
/// variable driver serves the operating system; patina-smm keeps edk2's SMM core.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask image patina-q35                  the platform
  cargo xtask image patina-q35 --conformance    with the tests that `cargo xtask test` runs in it
  cargo xtask image patina-q35-runtime          with the variables of the operating system in MM
  cargo xtask image patina-smm                  the platform above edk2's SMM core")]
pub(crate) struct Image {
    /// The platform.
    #[arg(value_parser = PossibleValuesParser::new(PLATFORMS.map(|platform| platform.name)))]
    platform: String,
    /// With its own tests, and an MM core that serves it.
    #[arg(long)]
    conformance: bool,
    /// Where to write the image [default: target/firmware/PLATFORM.fd, or PLATFORM-conformance.fd].
    #[arg(long, value_name = "FILE", value_parser = crate::file)]
    output: Option<PathBuf>,
}

pub(crate) fn run(shell: &Shell, options: &Image) -> Result<ExitCode> {
    let platform = PLATFORMS
        .into_iter()
        .find(|platform| platform.name == options.platform)
        .context("the platform is not in the list")?;
    let image = build(shell, platform, options.conformance, options.output.as_deref())?;
    println!("{}: {}", platform.name, image.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds each platform as its owner would, without tests in it.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    for platform in PLATFORMS {
        for tool in platform.tools {
            tool.require(shell)?;
        }
        let image = build(shell, platform, false, None)?;
        println!("  {}: {}", platform.name, image.display());
        counts.add(Counts::ONE);
    }
    Ok(counts)
}

/// Builds the image of a platform.
pub(crate) fn build(
    shell: &Shell,
    platform: &Platform,
    conformance: bool,
    output: Option<&Path>,
) -> Result<PathBuf> {
    let q35_mm = platform
        .has_mm_image
        .then(|| q35_mm(shell, conformance || platform.has_suite_in_mm))
        .transpose()?;
    let mut features = Vec::new();
    features.extend(conformance.then_some("conformance"));
    features.extend(platform.has_runtime_driver.then_some("runtime_driver"));
    let core = program(shell, X86_64_UEFI, platform.package, &features, q35_mm.as_deref())?;
    let mut files: Vec<String> = Vec::new();
    if platform.has_runtime_driver {
        let driver = program(shell, X86_64_UEFI, "q35_runtime", &[], None)?;
        files.push(format!("--runtime-driver={RUNTIME_DRIVER}={}", driver.display()));
        files.extend(DROPPED_FOR_IT.map(|name| format!("--drop={name}")));
        files.push(format!("--from={}", ovmf_file(OVMF_CODE).display()));
        files.push(format!("--take={VARIABLE_DRIVER}"));
    }
    let suffix = if conformance { "-conformance" } else { "" };
    let output = output.map_or_else(
        || target_dir().join(format!("firmware/{}{suffix}.fd", platform.name)),
        Path::to_path_buf,
    );
    pack(shell, &ovmf_file(platform.ovmf), &core, &output, &files)?;
    Ok(output)
}

/// Puts the core of platform patina-smm, configured by HOBs, into a copy of a user's flash image.
pub(crate) fn build_into(shell: &Shell, ovmf: &Path) -> Result<PathBuf> {
    let core = program(shell, X86_64_UEFI, PATINA_SMM.package, &["own"], None)?;
    let output = target_dir().join("firmware/own.fd");
    pack(shell, ovmf, &core, &output, &[])?;
    Ok(output)
}

/// Puts a DXE core into a copy of a flash image; `files` are further arguments of the image tool.
fn pack(shell: &Shell, ovmf: &Path, core: &Path, output: &Path, files: &[String]) -> Result<()> {
    let tool = cmd!(
        shell,
        "cargo run --package ovmf_image -- --ovmf {ovmf} --core {core} --output {output} {files...}"
    );
    process::run_quietly("flash image", tool.into())
}

/// Builds the MM core that platform patina-q35 puts into SMRAM. Each form has its own path: Cargo
/// builds the DXE core again when the path changes or the file is newer, and a program that Cargo
/// takes from its cache is an old file.
pub(crate) fn q35_mm(shell: &Shell, conformance: bool) -> Result<PathBuf> {
    let (features, name): (&[&str], _) = match conformance {
        true => (&["conformance"], "q35_mm-conformance"),
        false => (&[], "q35_mm"),
    };
    let program = program(shell, X86_64_NONE, "q35_mm", features, None)?;
    let image = target_dir().join("firmware/mm").join(name);
    let bytes = shell.read_binary_file(program)?;
    if shell.read_binary_file(&image).is_ok_and(|old| old == bytes) {
        return Ok(image);
    }
    shell.write_file(&image, bytes)?;
    Ok(image)
}

/// Builds the program of `platforms/PACKAGE`.
fn program(
    shell: &Shell,
    target: &'static str,
    package: &str,
    features: &[&str],
    q35_mm: Option<&Path>,
) -> Result<PathBuf> {
    toolchain::build(shell, target, package, package, |command| {
        if !features.is_empty() {
            command.args(["--features", &features.join(",")]);
        }
        if let Some(q35_mm) = q35_mm {
            command.env(MM_IMAGE, q35_mm);
        }
        if target == X86_64_NONE {
            // Makes the code of the MM image a fifth smaller: its room is short.
            command.env("CARGO_PROFILE_RELEASE_LTO", "fat");
        }
    })
}
