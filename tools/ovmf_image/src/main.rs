//! Puts a Patina DXE core into an OVMF flash image. `cargo xtask image` calls it.

use anyhow::{Context, Result};
use clap::Parser;
use ovmf_image::{BinaryGuid, FileId, Image, guids};
use std::cell::Cell;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Drivers that do not work with Patina's core, or that it replaces.
const DROPPED: [BinaryGuid; 4] = [
    // Patina's core has the CPU protocol built in.
    guids::CPU_DXE,
    guids::CPU_DXE_FOR_ONE,
    // For S3, which no platform of this repository has.
    guids::BOOT_SCRIPT_EXECUTOR_DXE,
    // Reads at address zero, which Patina does not map. The VGA device stays: it covers SMRAM.
    guids::QEMU_VIDEO_DXE,
];

/// Puts a Patina DXE core into an OVMF flash image.
///
/// The image is Debian's or another build of edk2's OvmfPkg, with or without SMM, of 2 or 4 MiB,
/// with a variable store at its start or without. CpuDxe, BootScriptExecutorDxe and QemuVideoDxe
/// are dropped if they are in it.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  ovmf_image --core q35.efi --output q35.fd
  ovmf_image --ovmf OVMF.fd --core q35.efi --output q35.fd --drop TlsDxe --drop HttpBootDxe --keep QemuVideoDxe")]
struct Options {
    /// The flash image to start from.
    #[arg(long, value_name = "FILE", default_value = "/usr/share/OVMF/OVMF_CODE_4M.fd")]
    ovmf: PathBuf,
    /// The DXE core: a UEFI boot service driver.
    #[arg(long, value_name = "FILE")]
    core: PathBuf,
    /// Another flash image, to take files from.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Takes the file with this GUID from there. Can be given more than once.
    #[arg(long, value_name = "GUID", requires = "from")]
    take: Vec<String>,
    /// Adds a runtime driver under this GUID. Can be given more than once.
    #[arg(long, value_name = "GUID=FILE")]
    runtime_driver: Vec<String>,
    /// Where to write the flash image.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Drops this file too: a GUID, or a name such as TlsDxe. Can be given more than once; one that
    /// is not there is named.
    #[arg(long, value_name = "NAME")]
    drop: Vec<String>,
    /// Keeps this file, also if another option drops it.
    #[arg(long, value_name = "NAME")]
    keep: Vec<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut image = Image::open(&read(&options.ovmf)?).with_context(|| options.ovmf.display().to_string())?;
    image.replace_dxe_core(&read(&options.core)?, guids::PATINA_DXE_CORE)?;
    let stays = |file: &FileId| options.keep.iter().any(|name| file.is(name));
    let mut report = Vec::new();
    for guid in DROPPED {
        image.drop_files(|file| file.guid == guid && !stays(file));
    }
    for name in &options.drop {
        let kept = Cell::new(false);
        let dropped = image.drop_files(|file| {
            let stays = file.is(name) && stays(file);
            kept.set(kept.get() || stays);
            file.is(name) && !stays
        });
        match (dropped, kept.get()) {
            (0, true) => report.push(format!("{name} stays: --keep names it")),
            (0, false) => report.push(format!("nothing to drop: no {name} in this image")),
            _ => {}
        }
    }
    image.flatten_drivers()?;
    if let Some(from) = &options.from {
        let other = Image::open(&read(from)?).with_context(|| from.display().to_string())?;
        for name in &options.take {
            image.take_file(&other, guid(name)?)?;
        }
    }
    for driver in &options.runtime_driver {
        let (name, file) = driver
            .split_once('=')
            .context("--runtime-driver takes GUID=FILE")?;
        image.add_runtime_driver(guid(name)?, &read(Path::new(file))?)?;
    }
    report.extend(image.changes().iter().map(ToString::to_string));
    let bytes = image.finish()?;
    fs::write(&options.output, &bytes).with_context(|| options.output.display().to_string())?;
    report.push(format!(
        "wrote {} bytes to {}",
        bytes.len(),
        options.output.display()
    ));
    match writeln!(io::stdout(), "{}", report.join("\n")) {
        // The image is written; its reader does not want to know how.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("the report cannot be printed"),
    }
}

fn guid(name: &str) -> Result<BinaryGuid> {
    BinaryGuid::try_from_string(name).map_err(|_not_one| anyhow::anyhow!("{name} is not a GUID"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
