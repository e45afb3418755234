//! PE files that `ovmf_image` flattens or refuses, judged by a separate loader: a flattened file
//! has the same contents in memory as the old one.

use arbitrary::{Arbitrary, Unstructured};
use ovmf_image::pe;

#[derive(Arbitrary, Debug)]
enum Case<'a> {
    Raw(&'a [u8]),
    Made(Made),
}

/// A small driver with any numbers in its headers.
#[derive(Arbitrary, Debug)]
struct Made {
    nt_at: u8,
    machine: Option<u16>,
    subsystem: u8,
    alignment: u8,
    size_of_image: u16,
    size_of_headers: u16,
    optional_len: Option<u16>,
    directories: Option<u32>,
    resource: Option<(u16, u16)>,
    certificates: Option<(u16, u16)>,
    debug: Option<(u16, u8)>,
    sections: Vec<Section>,
    changes: Vec<(u16, u8)>,
    content: [u8; 32],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Section {
    name: u8,
    memory_len: u16,
    address: u16,
    raw_len: u16,
    raw_at: u16,
}

impl Made {
    fn build(&self) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        for (at, byte) in file.iter_mut().enumerate().skip(0x300) {
            *byte = self.content[at % 32] ^ at as u8;
        }
        let nt = usize::from(self.nt_at) * 4;
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = file.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, b"MZ");
        put(0x3c, &(nt as u32).to_le_bytes());
        put(nt, b"PE\0\0");
        put(nt + 4, &self.machine.unwrap_or(0x8664).to_le_bytes());
        let sections = &self.sections[..self.sections.len().min(8)];
        put(nt + 6, &(sections.len() as u16).to_le_bytes());
        put(nt + 20, &self.optional_len.unwrap_or(0xf0).to_le_bytes());
        let optional = nt + 24;
        put(optional, &0x20b_u16.to_le_bytes());
        put(optional + 32, &(1_u32 << (self.alignment % 16)).to_le_bytes());
        put(optional + 36, &0x20_u32.to_le_bytes());
        put(optional + 56, &u32::from(self.size_of_image).to_le_bytes());
        put(optional + 60, &u32::from(self.size_of_headers).to_le_bytes());
        put(optional + 68, &u16::from(self.subsystem % 16).to_le_bytes());
        put(optional + 108, &self.directories.unwrap_or(16).to_le_bytes());
        let debug = self.debug.map(|(address, len)| (address, len.into()));
        for (index, directory) in [(2, self.resource), (4, self.certificates), (6, debug)] {
            if let Some((address, len)) = directory {
                put(optional + 112 + 8 * index, &u32::from(address).to_le_bytes());
                put(optional + 116 + 8 * index, &u32::from(len).to_le_bytes());
            }
        }
        let mut at = optional + usize::from(self.optional_len.unwrap_or(0xf0));
        for section in sections {
            let name: &[u8; 8] = match section.name % 4 {
                0 => b".text\0\0\0",
                1 => b".data\0\0\0",
                2 => b".rsrc\0\0\0",
                _ => b".reloc\0\0",
            };
            put(at, name);
            let fields = [
                section.memory_len,
                section.address,
                section.raw_len,
                section.raw_at,
            ];
            for (index, field) in fields.into_iter().enumerate() {
                put(at + 8 + 4 * index, &u32::from(field).to_le_bytes());
            }
            at += 40;
        }
        for (at, value) in &self.changes {
            put(usize::from(*at) % 0x1000, &[*value]);
        }
        file
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let made;
    let file = match case {
        Case::Raw(raw) => raw,
        Case::Made(case) => {
            made = case.build();
            &made
        }
    };
    let core = pe::require_dxe_core(file);
    let driver = pe::require_runtime_driver(file);
    assert!(
        core.is_err() || driver.is_err(),
        "a core that is a runtime driver"
    );
    let Ok(Some(flat)) = pe::flatten(file) else { return };
    assert!(core.is_err() && driver.is_err(), "both fit and flattened");
    let mut old = Loaded::of(file).unwrap();
    old.correct_debug_offsets();
    let new = Loaded::of(&flat.bytes).unwrap();
    assert_eq!(new.image, flat.bytes, "the new file is not its own image");
    let (headers, len) = (old.size_of_headers, old.image.len());
    // Resources move; all else stays at its address.
    assert_eq!(new.image[headers..len], old.image[headers..]);
    assert!(matches!(pe::flatten(&flat.bytes), Ok(None)));
    assert_eq!(new.alignment, 0x1000);
}

struct Loaded {
    image: Vec<u8>,
    size_of_headers: usize,
    alignment: usize,
    /// Data directory 6: address and length.
    debug: [usize; 2],
}

impl Loaded {
    /// In a file that is its own image an offset is an address, and what has no address is gone.
    fn correct_debug_offsets(&mut self) {
        let [start, len] = self.debug;
        let own = self.image.len();
        // The directory may reach into the rest of the last page.
        self.image.resize(own.next_multiple_of(0x1000), 0);
        for entry in (0..len / 28).map(|index| start + 28 * index) {
            let (before, pointer) = self.image[entry..entry + 28].split_at_mut(24);
            pointer.copy_from_slice(&before[20..]);
            if before[20..] == [0; 4] {
                before[16..20].fill(0);
            }
        }
        self.image.truncate(own);
    }

    /// Loads a file as edk2's `BasePeCoffLib` does (`PeCoffLoaderLoadImage`): headers, then each
    /// section at its address.
    fn of(file: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
        let half = |at: usize| Some(usize::from(u16::from_le_bytes(*file.get(at..)?.first_chunk()?)));
        let nt = word(0x3c)?;
        let optional = nt + 24;
        let size_of_headers = word(optional + 60)?;
        let mut image = vec![0; word(optional + 56)?];
        image
            .get_mut(..size_of_headers)?
            .copy_from_slice(file.get(..size_of_headers)?);
        let table = optional + half(nt + 20)?;
        for index in 0..half(nt + 6)? {
            let at = table + 40 * index;
            let [memory_len, address, raw_len, raw_at] =
                [word(at + 8)?, word(at + 12)?, word(at + 16)?, word(at + 20)?];
            let memory_len = if memory_len == 0 { raw_len } else { memory_len };
            let len = raw_len.min(memory_len);
            if len > 0 {
                image
                    .get_mut(address..address + len)?
                    .copy_from_slice(file.get(raw_at..raw_at + len)?);
            }
        }
        let debug = match word(optional + 108)? {
            0..=6 => [0, 0],
            _ => [word(optional + 160)?, word(optional + 164)?],
        };
        Some(Self {
            image,
            size_of_headers,
            alignment: word(optional + 32)?,
            debug,
        })
    }
}
