//! Flash images that `ovmf_image` edits or refuses: an accepted image is written in the same
//! length, with all unchanged parts in their place, and can be opened again.

use arbitrary::{Arbitrary, Unstructured};
use common::{TinyPe, ffs_file, leaf, lzma_section_with, sections, volume};
use lzma_rust2::LzmaOptions;
use ovmf_image::{BinaryGuid, Image, guids};
use patina::pi::fw_fs::ffs::{file::raw::r#type as file_type, section::raw_type};
use patina_ffs::file::File;
use patina_ffs::section::Section;
use std::cell::RefCell;
use std::collections::VecDeque;

#[path = "../../../tools/ovmf_image/tests/common/mod.rs"]
mod common;

const PAYLOAD_FILE: BinaryGuid = BinaryGuid::from_string("9E21FD93-9C72-4C15-8C4B-E77F1DB2D792");
const MAIN_LEN: usize = 0x4000;
/// DXEFV has this many pages at least, and up to three more.
const DXE_PAGES: usize = 3;
const SEC_LEN: usize = 0x1000;

/// A flash image that can be opened, unless it is damaged, and edits of it.
#[derive(Arbitrary, Debug)]
struct Case {
    layout: Layout,
    damage: Damage,
    edits: [Option<Edit>; 6],
    files: Vec<FileOf>,
}

/// The parts around DXEFV.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Whether a variable store comes first.
    store: bool,
    /// The sections that are in the payload besides DXEFV, before or behind it.
    sections: [Other; 3],
    /// The stream's own numbers: literal context, literal position and position bits.
    bits: [u8; 3],
    dictionary: u8,
    /// How many pages DXEFV has more than it needs at least.
    spare: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    None,
    Raw,
    Pei,
}

/// Most cases have none, and so reach the edits.
#[derive(Arbitrary, Debug)]
enum Damage {
    None,
    AlsoNone,
    StillNone,
    /// Of DXEFV before it is compressed; the headers may get a right checksum again.
    Inner {
        patches: [Patch; 3],
        repair: bool,
    },
    /// Of the compressed stream.
    Stream([Patch; 2]),
    /// Of the flash.
    Flash([Patch; 2]),
    Cut(u16),
    /// The payload is there twice, or not at all.
    Payloads(bool),
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
    for Patch { at, value } in patches {
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

thread_local! {
    /// Streams that were made last: most inputs differ in their edits alone.
    static STREAMS: RefCell<VecDeque<(Layout, Vec<u8>, Section)>> = const { RefCell::new(VecDeque::new()) };
}

/// The LZMA section around `content`, with the encoding of this layout.
fn stream(layout: Layout, content: Vec<u8>) -> Section {
    const KEPT: usize = 64;
    let known = STREAMS.with_borrow(|streams| {
        let mut known = streams.iter();
        let known = known.find(|(of, other, _)| *of == layout && *other == content);
        known.map(|(.., section)| section.clone())
    });
    known.unwrap_or_else(|| {
        let [context, literal, position] = layout.bits.map(u32::from);
        let options = LzmaOptions {
            lc: context % 9,
            lp: literal % 5,
            pb: position % 5,
            dict_size: 1 << (12 + layout.dictionary % 3),
            ..LzmaOptions::with_preset(0)
        };
        let section = lzma_section_with(&content, &options);
        STREAMS.with_borrow_mut(|streams| {
            streams.truncate(KEPT);
            streams.push_front((layout, content, section.clone()));
        });
        section
    })
}

impl Case {
    /// The types of the files. The first file is the core in half of the cases.
    fn kinds(&self) -> impl Iterator<Item = u8> {
        let files = self.files.iter().take(5).enumerate();
        files.map(|(at, file)| match (file.kind % 8, at) {
            (0..4, 0) | (0, _) => file_type::DXE_CORE,
            (1, _) => file_type::FREEFORM,
            (2, _) => file_type::APPLICATION,
            _ => file_type::DRIVER,
        })
    }

    /// DXEFV; `None` if the files do not fit.
    fn dxe(&self) -> Option<Vec<u8>> {
        let mut room = DXE_PAGES * 0x1000 - 0x100;
        let mut files = Vec::new();
        for (file, kind) in self.files.iter().zip(self.kinds()) {
            let label: String = file
                .label
                .iter()
                .map(|byte| char::from(b'a' + byte % 26))
                .collect();
            let pe = pe(file.pe);
            room = room.checked_sub(pe.len() + 0x80)?;
            files.push(ffs_file(name(file.name), kind, pe, &label));
        }
        let pages = DXE_PAGES + usize::from(self.layout.spare % 4);
        Some(volume(pages * 0x1000, files))
    }

    /// Whether the image is one: without damage, and with one DXE core in its volume.
    fn must_open(&self) -> bool {
        let is_whole = matches!(self.damage, Damage::None | Damage::AlsoNone | Damage::StillNone);
        let cores = self.kinds().filter(|kind| *kind == file_type::DXE_CORE);
        is_whole && cores.count() > 0
    }

    fn build(&self) -> Option<Vec<u8>> {
        let mut dxe = self.dxe()?;
        if let Damage::Inner {
            patches,
            repair: is_repaired,
        } = &self.damage
        {
            patch(&mut dxe, patches);
            if *is_repaired {
                repair(&mut dxe);
            }
        }
        let other = |other| match other {
            Other::None => None,
            Other::Raw => Some(leaf(raw_type::RAW, vec![0; 0x74])),
            Other::Pei => Some(leaf(raw_type::FIRMWARE_VOLUME_IMAGE, volume(0x1000, Vec::new()))),
        };
        let [first, second, last] = self.layout.sections;
        let payload: Vec<Section> = [
            other(first),
            other(second),
            Some(leaf(raw_type::FIRMWARE_VOLUME_IMAGE, dxe)),
            other(last),
        ]
        .into_iter()
        .flatten()
        .collect();
        let stream = stream(self.layout, sections(&payload));
        let mut main = File::new(PAYLOAD_FILE, file_type::FIRMWARE_VOLUME_IMAGE);
        *main.sections_mut() = match self.damage {
            Damage::Payloads(true) => vec![stream.clone(), stream],
            Damage::Payloads(false) => Vec::new(),
            _ => vec![stream],
        };
        let mut flash = volume(MAIN_LEN, vec![main]);
        // Behind the headers of the volume, the file and the section.
        if let Damage::Stream(patches) = &self.damage {
            patch(&mut flash[120..0x400], patches);
        }
        flash.extend(volume(SEC_LEN, Vec::new()));
        if self.layout.store {
            let mut store = volume(0x1000, Vec::new());
            store[16..32].copy_from_slice(guids::VARIABLE_STORE.as_bytes());
            flash.splice(0..0, store);
        }
        match &self.damage {
            Damage::Flash(patches) => patch(&mut flash, patches),
            Damage::Cut(len) => flash.truncate(usize::from(*len)),
            _ => {}
        }
        Some(flash)
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let Some(bytes) = case.build() else { return };
    let Ok(mut image) = Image::open(&bytes) else {
        return assert!(!case.must_open(), "{case:?} was refused");
    };
    let other = Image::open(&bytes).unwrap();
    for edit in case.edits.iter().flatten() {
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
