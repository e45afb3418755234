//! Changing the image that Debian's package `ovmf` installs.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

mod common;

use common::{HEADERS_LEN, TinyPe, loaded};
use object::{LittleEndian as LE, read::pe::PeFile64};
use ovmf_image::{BinaryGuid, Change, Image, guids, pe::flatten};
use patina::pi::fw_fs::ffs::{file::raw::r#type as file_type, section::raw_type};
use patina_ffs::{section::Section, volume::VolumeRef};
use patina_ffs_extractors::LzmaSectionExtractor;
use std::{collections::BTreeMap, io::Write};

const PATH: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Other images of the same package: of 2 MiB, with SMM, with the variable store at the start.
const OTHERS: [&str; 3] = [
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
    "/usr/share/ovmf/OVMF.fd",
];

/// The image that the platforms use.
fn stock() -> Option<Vec<u8>> {
    installed(PATH)
}

#[expect(
    clippy::explicit_write,
    reason = "the test harness swallows what eprintln! prints in a test that passes"
)]
/// An installed image. Without it a test is skipped, which is an error if `CI` is `true`.
fn installed(path: &str) -> Option<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{path}: {error}"),
        Err(error) => {
            writeln!(
                std::io::stderr(),
                "SKIPPED: {path}: {error}: install the package ovmf"
            )
            .unwrap();
            None
        }
    }
}

fn dxe_volume(bytes: &[u8]) -> Vec<u8> {
    let main = VolumeRef::new(bytes).unwrap();
    let payload = main
        .files()
        .next()
        .unwrap()
        .unwrap()
        .sections_with_extractor(&LzmaSectionExtractor)
        .unwrap();
    let volume = |section: &Section| section.section_type_raw() == raw_type::FIRMWARE_VOLUME_IMAGE;
    payload
        .iter()
        .rfind(|section| volume(section))
        .unwrap()
        .try_content_as_slice()
        .unwrap()
        .to_vec()
}

/// The files of DXEFV with a PE32 section: type and PE image by name.
fn pe_files(bytes: &[u8]) -> BTreeMap<[u8; 16], (u8, Vec<u8>)> {
    let dxe = dxe_volume(bytes);
    let volume = VolumeRef::new(&dxe).unwrap();
    let files = volume.files().filter_map(|file| {
        let file = file.unwrap();
        let sections = file.sections().unwrap();
        let pe = sections
            .iter()
            .find(|section| section.section_type_raw() == raw_type::PE32)?;
        Some((
            *file.name().as_bytes(),
            (file.file_type_raw(), pe.try_content_as_slice().unwrap().to_vec()),
        ))
    });
    files.collect()
}

#[test]
fn the_stock_image_is_understood_and_written_byte_for_byte() {
    let Some(bytes) = stock() else { return };
    assert_eq!(Image::open(&bytes).unwrap().finish().unwrap(), bytes);
}

#[test]
fn other_builds_are_understood_too() {
    for path in OTHERS {
        let Some(bytes) = installed(path) else { return };
        let mut image = Image::open(&bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
        image
            .replace_dxe_core(&TinyPe::core().build(), guids::PATINA_DXE_CORE)
            .unwrap();
        assert!(image.drop_files(|file| file.is("CpuDxe")) > 0, "{path}");
        image
            .flatten_drivers()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(image.changes().len() > 50, "{path}");
        // Not written: to encode each of them takes longer than all other tests here.
        assert_eq!(Image::open(&bytes).unwrap().finish().unwrap(), bytes, "{path}");
    }
}

#[test]
fn the_stock_image_cut_or_changed_is_refused() {
    let Some(bytes) = stock() else { return };
    for len in [0, 0x48, 0x1000, bytes.len() / 2, bytes.len() - 1] {
        assert!(Image::open(&bytes[..len]).is_err(), "{len} bytes");
    }
    // 16 bytes from the start of the LZMA stream, and in its first quarter: everything behind
    // decodes differently.
    for at in [0x90 + 16, 0x1_0000, 0x4_0000] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        assert!(Image::open(&bytes).is_err(), "byte {at:#x}");
    }
}

#[test]
fn every_driver_keeps_its_bytes_where_they_were() {
    let Some(bytes) = stock() else { return };
    let mut flattened = 0;
    for (file_type, old) in pe_files(&bytes).into_values() {
        let Some(new) = flatten(&old).unwrap() else {
            continue;
        };
        assert_eq!(loaded(&new.bytes), new.bytes);
        let old_loaded = loaded(&old);
        let headers = HEADERS_LEN as usize;
        assert_eq!(new.bytes[headers..old_loaded.len()], old_loaded[headers..]);

        let (old, new) = (
            PeFile64::parse(old.as_slice()).unwrap(),
            PeFile64::parse(new.bytes.as_slice()).unwrap(),
        );
        assert_eq!(
            new.section_table().len(),
            1 + usize::from(new.data_directory(2).is_some())
        );
        for at in [1, 5, 6] {
            let place = |pe: &PeFile64<'_>| pe.data_directory(at).map(|entry| entry.address_range());
            assert_eq!(place(&new), place(&old), "data directory {at}");
        }
        let entry = |pe: &PeFile64<'_>| pe.nt_headers().optional_header.address_of_entry_point.get(LE);
        assert_eq!(entry(&new), entry(&old));
        flattened += usize::from(file_type != file_type::DXE_CORE);
    }
    assert!(flattened > 0);
}

#[test]
fn the_stock_image_takes_a_core_and_its_drivers_are_flattened() {
    let Some(bytes) = stock() else { return };
    let core = TinyPe::core().build();
    let mut image = Image::open(&bytes).unwrap();
    image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).unwrap();
    for name in ["CpuDxe", "BootScriptExecutorDxe", "QemuVideoDxe"] {
        assert!(image.drop_files(|file| file.is(name)) > 0, "{name}");
    }
    image.flatten_drivers().unwrap();
    let changes = image.changes().to_vec();
    let with_resources = changes.iter().filter(|change| {
        matches!(
            change,
            Change::Flattened {
                resources_moved: true,
                ..
            }
        )
    });
    assert!(
        with_resources.count() > 0,
        "the shell's commands and the logo have resources"
    );

    let written = image.finish().unwrap();
    assert_eq!(written.len(), bytes.len());
    let sec = usize::try_from(VolumeRef::new(&bytes).unwrap().size()).unwrap();
    assert_eq!(written[sec..], bytes[sec..], "SECFV");

    let (old, new) = (pe_files(&bytes), pe_files(&written));
    assert_eq!(
        new[guids::PATINA_DXE_CORE.as_bytes()],
        (file_type::DXE_CORE, core)
    );
    let dropped = [
        guids::CPU_DXE,
        guids::BOOT_SCRIPT_EXECUTOR_DXE,
        guids::QEMU_VIDEO_DXE,
    ];
    for (name, (file_type, pe)) in &old {
        if *file_type == file_type::DXE_CORE || dropped.iter().any(|guid| guid.as_bytes() == name) {
            assert!(!new.contains_key(name), "{}", BinaryGuid::from_bytes(name));
        } else {
            let expected = flatten(pe).unwrap().map_or_else(|| pe.clone(), |flat| flat.bytes);
            assert_eq!(
                new[name],
                (*file_type, expected),
                "{}",
                BinaryGuid::from_bytes(name)
            );
        }
    }
    assert_eq!(new.len(), old.len() - dropped.len());
    let mut again = Image::open(&written).unwrap();
    assert_eq!(again.flatten_drivers().unwrap().changes(), []);
}
