//! Flash images that `ovmf_image` edits or refuses: an accepted image is written in the same
//! length, with all unchanged parts in their place, and can be opened again.

use arbitrary::{Arbitrary, Unstructured};
use common::{TinyPe, ffs_file, leaf, lzma_section, sections, volume};
use ovmf_image::{BinaryGuid, Image, guids};
use patina::pi::fw_fs::ffs::{file::raw::r#type as file_type, section::raw_type};
use patina_ffs::file::File;

#[path = "../../../tools/ovmf_image/tests/common/mod.rs"]
mod common;

const PAYLOAD_FILE: BinaryGuid = BinaryGuid::from_string("9E21FD93-9C72-4C15-8C4B-E77F1DB2D792");
const MAIN_LEN: usize = 0x4000;
const SEC_LEN: usize = 0x1000;

#[derive(Arbitrary, Debug)]
struct Case {
    files: Vec<FileOf>,
    /// Changes of DXEFV before it is compressed, of the compressed stream, and of the flash.
    inner: Vec<Patch>,
    stream: Vec<Patch>,
    flash: Vec<Patch>,
    /// Whether the headers of DXEFV get a right checksum again.
    repair: bool,
    cut: Option<u16>,
    edits: Vec<Edit>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct FileOf {
    name: u8,
    kind: u8,
    pe: u8,
    label: [u8; 4],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Patch {
    at: u16,
    value: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Edit {
    ReplaceCore { name: u8, pe: u8 },
    Drop(u8),
    Flatten,
    AddDriver { name: u8, pe: u8 },
    TakeFile(u8),
}

fn name(number: u8) -> BinaryGuid {
    match number % 6 {
        0 => guids::PATINA_DXE_CORE,
        1 => guids::CPU_DXE,
        number => BinaryGuid::from_bytes(&[number; 16]),
    }
}

fn pe(number: u8) -> Vec<u8> {
    match number % 5 {
        0 => TinyPe::driver().build(),
        1 => TinyPe::driver_with_resources().build(),
        2 => TinyPe::core().build(),
        3 => TinyPe {
            subsystem: 12,
            ..TinyPe::core()
        }
        .build(),
        _ => vec![number; usize::from(number)],
    }
}

fn patch(bytes: &mut [u8], patches: &[Patch]) {
    for Patch { at, value } in patches.iter().take(8) {
        if let Some(len) = bytes.len().checked_sub(1) {
            bytes[usize::from(*at) % (len + 1)] ^= value;
        }
    }
}

/// Makes the sum of a volume header's words zero again, and that of each file header's bytes.
fn repair(volume: &mut [u8]) {
    let header_len = usize::from(u16::from_le_bytes([volume[48], volume[49]]));
    if header_len > volume.len() {
        return;
    }
    volume[50..52].fill(0);
    let words = volume[..header_len].as_chunks::<2>().0.iter();
    let sum = words.fold(0u16, |sum, word| sum.wrapping_add(u16::from_le_bytes(*word)));
    volume[50..52].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
    let mut at = header_len.next_multiple_of(8);
    while at + 24 <= volume.len() {
        let len = u32::from_le_bytes([volume[at + 20], volume[at + 21], volume[at + 22], 0]) as usize;
        if !(24..=volume.len() - at).contains(&len) {
            return;
        }
        let header = &mut volume[at..at + 24];
        header[16] = 0;
        // Without the file's own checksum and its state.
        let sum = header[..17]
            .iter()
            .chain(&header[18..23])
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        header[16] = 0u8.wrapping_sub(sum);
        at = (at + len).next_multiple_of(8);
    }
}

impl Case {
    fn build(&self) -> Vec<u8> {
        let files: Vec<File> = self
            .files
            .iter()
            .take(5)
            .map(|file| {
                let kind = match file.kind % 4 {
                    0 => file_type::DXE_CORE,
                    3 => file_type::FREEFORM,
                    _ => file_type::DRIVER,
                };
                let label: String = file
                    .label
                    .iter()
                    .map(|byte| char::from(b'a' + byte % 26))
                    .collect();
                ffs_file(name(file.name), kind, pe(file.pe), &label)
            })
            .collect();
        let mut dxe = volume(0x8000, files);
        patch(&mut dxe, &self.inner);
        if self.repair {
            repair(&mut dxe);
        }
        let pei = volume(0x1000, Vec::new());
        let payload = [
            leaf(raw_type::RAW, vec![0; 0x74]),
            leaf(raw_type::FIRMWARE_VOLUME_IMAGE, pei),
            leaf(raw_type::RAW, vec![0; 4]),
            leaf(raw_type::FIRMWARE_VOLUME_IMAGE, dxe),
        ];
        let mut main = File::new(PAYLOAD_FILE, file_type::FIRMWARE_VOLUME_IMAGE);
        *main.sections_mut() = vec![lzma_section(&sections(&payload))];
        let mut flash = volume(MAIN_LEN, vec![main]);
        // Behind the headers of the volume, the file and the section.
        patch(&mut flash[120..0x400], &self.stream);
        flash.extend(volume(SEC_LEN, Vec::new()));
        patch(&mut flash, &self.flash);
        if let Some(len) = self.cut {
            flash.truncate(len.into());
        }
        flash
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let bytes = case.build();
    let Ok(mut image) = Image::open(&bytes) else {
        return;
    };
    let other = Image::open(&bytes).unwrap();
    for edit in case.edits.iter().take(6) {
        let before = image.changes().len();
        let failed = match edit {
            Edit::ReplaceCore {
                name: guid,
                pe: number,
            } => image.replace_dxe_core(&pe(*number), name(*guid)).is_err(),
            Edit::Drop(number) => {
                let dropped = image.drop_files(|file| file.guid == name(*number));
                assert_eq!(image.changes().len(), before + dropped);
                false
            }
            Edit::Flatten => image.flatten_drivers().is_err(),
            Edit::AddDriver {
                name: guid,
                pe: number,
            } => image.add_runtime_driver(name(*guid), &pe(*number)).is_err(),
            Edit::TakeFile(number) => image.take_file(&other, name(*number)).is_err(),
        };
        if failed {
            return;
        }
    }
    let is_changed = !image.changes().is_empty();
    let Ok(written) = image.finish() else {
        assert!(is_changed, "an image without a change could not be written");
        return;
    };
    assert_eq!(written.len(), bytes.len());
    assert!(
        is_changed || written == bytes,
        "an image without a change was written differently"
    );
    let sec = bytes.len() - SEC_LEN;
    assert_eq!(written[sec..], bytes[sec..], "SECFV has changed");
    let again = Image::open(&written).map(Image::finish);
    assert!(
        matches!(again, Ok(Ok(again)) if again == written),
        "what was written is not read back"
    );
}
