//! Tells the linker what kind of UEFI image this is, and lays the MM image out as it will be in SMRAM.

use object::{Object, ObjectSegment};
use q35_mm::layout::{HANDOFF, HANDOFF_LEN, SAVE_STATE, SMRAM_BASE, SMRAM_LEN};
use std::path::PathBuf;
use std::{env, fs};

/// Names the program `q35_mm`, built for `x86_64-unknown-none`.
const MM_IMAGE: &str = "PATINA_Q35_MM_IMAGE";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={MM_IMAGE}");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "uefi") {
        // The linker's default is an application; OVMF's PEI phase starts the DXE core as a driver.
        println!("cargo::rustc-link-arg-bins=/subsystem:efi_boot_service_driver");
        if let Err(why) = embed_mm_image() {
            println!("cargo::error={why}");
        }
    }
}

fn embed_mm_image() -> Result<(), String> {
    let path = env::var(MM_IMAGE).map_err(|_unset| {
        format!("set {MM_IMAGE} to the program q35_mm; `cargo xtask image patina-q35` does all of it")
    })?;
    println!("cargo::rerun-if-changed={path}");
    let elf = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let smram = lay_out(&elf).map_err(|why| format!("{path}: {why}"))?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("smram.bin");
    fs::write(&out, smram).map_err(|error| format!("{}: {error}", out.display()))
}

/// SMRAM from its first byte to the last that is not zero.
fn lay_out(elf: &[u8]) -> Result<Vec<u8>, String> {
    let file = object::File::parse(elf).map_err(|error| error.to_string())?;
    let mut smram = vec![0; SMRAM_LEN];
    for segment in file.segments() {
        let (start, len) = (segment.address(), segment.size());
        let end = start.checked_add(len).ok_or("a segment wraps")?;
        let kept = [HANDOFF..HANDOFF + HANDOFF_LEN as u64, SAVE_STATE];
        if let Some(kept) = kept.iter().find(|kept| start < kept.end && kept.start < end) {
            return Err(format!(
                "the segment {start:#x}..{end:#x} reaches into {kept:#x?}"
            ));
        }
        let bytes = segment.data().map_err(|error| error.to_string())?;
        let at = start
            .checked_sub(SMRAM_BASE)
            .and_then(|at| usize::try_from(at).ok());
        let room = at.and_then(|at| smram.get_mut(at..)?.get_mut(..usize::try_from(len).ok()?));
        let room = room.ok_or_else(|| format!("the segment {start:#x}..{end:#x} is not in SMRAM"))?;
        room.get_mut(..bytes.len())
            .ok_or("a segment has more bytes than memory")?
            .copy_from_slice(bytes);
    }
    if file.entry() != SMRAM_BASE {
        return Err(format!(
            "it starts at {:#x}, an SMI at {SMRAM_BASE:#x}",
            file.entry()
        ));
    }
    let used = smram
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    smram.truncate(used);
    Ok(smram)
}
