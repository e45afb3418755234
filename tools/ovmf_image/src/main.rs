//! Puts a Patina DXE core into OVMF's flash image. `cargo xtask image patina-q35` calls it.

use anyhow::{Context, Result};
use clap::Parser;
use ovmf_image::{Image, guids};
use std::fs;
use std::path::{Path, PathBuf};

/// Puts a Patina DXE core into a stock OVMF flash image.
#[derive(Debug, Parser)]
struct Options {
    /// The flash image to start from, without SMM.
    #[arg(long, value_name = "FILE", default_value = "/usr/share/OVMF/OVMF_CODE_4M.fd")]
    ovmf: PathBuf,
    /// The DXE core: a UEFI boot service driver.
    #[arg(long, value_name = "FILE")]
    core: PathBuf,
    /// Where to write the flash image.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut image = Image::open(&read(&options.ovmf)?).with_context(|| options.ovmf.display().to_string())?;
    image
        .replace_dxe_core(&read(&options.core)?, guids::PATINA_DXE_CORE)?
        // Patina's core has the CPU protocol built in.
        .drop_file(guids::CPU_DXE)?
        // S3, which this platform does not have.
        .drop_file(guids::BOOT_SCRIPT_EXECUTOR_DXE)?
        // Reads at address zero, which Patina does not map. The VGA device stays: it covers SMRAM.
        .drop_file(guids::QEMU_VIDEO_DXE)?
        .flatten_drivers()?;
    for change in image.changes() {
        println!("{change}");
    }
    let bytes = image.finish()?;
    fs::write(&options.output, &bytes).with_context(|| options.output.display().to_string())?;
    println!("wrote {} bytes to {}", bytes.len(), options.output.display());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
