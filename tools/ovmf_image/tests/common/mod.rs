//! Small images and PE files made by hand.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may panic")]
#![allow(dead_code, reason = "each test file uses a part")]

use lzma_rust2::{LzmaOptions, LzmaWriter, Write};
use object::{
    LittleEndian as LE, U16, U32,
    pe::{self, ImageDosHeader, ImageNtHeaders64, ImageSectionHeader, SectionFlags},
    pod,
    read::pe::PeFile64,
};
use ovmf_image::{BinaryGuid, guids};
use patina::pi::fw_fs::{
    ffs::file::raw::r#type as file_type,
    ffs::section::{self, raw_type},
    fv::BlockMapEntry,
    guid::LZMA_SECTION_GUID,
};
use patina_ffs::{
    file::File,
    section::{Section, SectionHeader},
    volume::{Volume, VolumeRef},
};

pub(crate) const CODE: u32 = 0x6000_0020;
pub(crate) const DATA: u32 = 0xc000_0040;
pub(crate) const RESOURCES: u32 = 0x4000_0040;

/// Where the headers of [`TinyPe`] end and its first section may start, as in edk2's drivers.
pub(crate) const HEADERS_LEN: u32 = 0x240;

const NT_AT: usize = 0x80;
const DIRECTORIES: usize = 16;

/// A section of a [`TinyPe`].
pub(crate) struct TinySection {
    pub(crate) name: &'static [u8],
    pub(crate) address: u32,
    pub(crate) content: Vec<u8>,
    pub(crate) memory_len: u32,
    pub(crate) characteristics: u32,
}

impl TinySection {
    fn new(name: &'static [u8], address: u32, content: Vec<u8>, characteristics: u32) -> Self {
        let memory_len = u32::try_from(content.len()).unwrap();
        Self {
            name,
            address,
            content,
            memory_len,
            characteristics,
        }
    }
}

/// A PE32+ file whose sections have the same offset in the file and in memory, as edk2's drivers
/// have.
pub(crate) struct TinyPe {
    pub(crate) machine: u16,
    pub(crate) subsystem: u16,
    pub(crate) alignment: u32,
    pub(crate) sections: Vec<TinySection>,
    pub(crate) size_of_image: u32,
    /// Data directory 2: address and length.
    pub(crate) resources: (u32, u32),
}

impl TinyPe {
    /// A driver with a code and a data section that share a page.
    pub(crate) fn driver() -> Self {
        Self {
            machine: pe::IMAGE_FILE_MACHINE_AMD64.0,
            subsystem: pe::IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER.0,
            alignment: 0x40,
            sections: vec![
                TinySection::new(b".text", 0x240, vec![0xc3; 0x100], CODE),
                TinySection::new(b".data", 0x340, (0..0xc0).collect(), DATA),
            ],
            size_of_image: 0x400,
            resources: (0, 0),
        }
    }

    /// A driver that also has resources.
    pub(crate) fn driver_with_resources() -> Self {
        let mut driver = Self::driver();
        let rva = driver.size_of_image;
        let section = resource_section(rva, b"a package list");
        let len = u32::try_from(section.len()).unwrap();
        driver
            .sections
            .push(TinySection::new(b".rsrc", rva, section, RESOURCES));
        driver.resources = (rva, len);
        driver.size_of_image += len.next_multiple_of(0x40);
        driver
    }

    /// A file that OVMF's PEI phase could start instead of the DXE core.
    pub(crate) fn core() -> Self {
        Self {
            alignment: 0x1000,
            sections: vec![TinySection::new(
                b".text",
                0x1000,
                b"the new DXE core".to_vec(),
                CODE,
            )],
            size_of_image: 0x2000,
            ..Self::driver()
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut dos: ImageDosHeader = zeroed();
        dos.e_magic.set(LE, pe::IMAGE_DOS_SIGNATURE);
        dos.e_lfanew.set(LE, u32::try_from(NT_AT).unwrap());
        let mut bytes = pod::bytes_of(&dos).to_vec();
        bytes.resize(NT_AT, 0);

        let mut nt: ImageNtHeaders64 = zeroed();
        let directories_len = DIRECTORIES * size_of::<pe::ImageDataDirectory>();
        let optional_len = size_of::<pe::ImageOptionalHeader64>() + directories_len;
        nt.signature.set(LE, pe::IMAGE_NT_SIGNATURE);
        nt.file_header.machine = U16::new(LE, pe::Machine(self.machine));
        nt.file_header.number_of_sections = U16::new(LE, u16::try_from(self.sections.len()).unwrap());
        nt.file_header.size_of_optional_header = U16::new(LE, u16::try_from(optional_len).unwrap());
        nt.optional_header.magic = U16::new(LE, pe::IMAGE_NT_OPTIONAL_HDR64_MAGIC);
        nt.optional_header.section_alignment = U32::new(LE, self.alignment);
        nt.optional_header.file_alignment = U32::new(LE, 0x40);
        nt.optional_header.size_of_image = U32::new(LE, self.size_of_image);
        nt.optional_header.size_of_headers = U32::new(LE, HEADERS_LEN);
        nt.optional_header.check_sum = U32::new(LE, 0x1234_5678);
        nt.optional_header.subsystem = U16::new(LE, pe::Subsystem(self.subsystem));
        nt.optional_header.number_of_rva_and_sizes = U32::new(LE, u32::try_from(DIRECTORIES).unwrap());
        bytes.extend(pod::bytes_of(&nt));
        for at in 0..DIRECTORIES {
            let (rva, len) = if at == pe::IMAGE_DIRECTORY_ENTRY_RESOURCE {
                self.resources
            } else {
                (0, 0)
            };
            bytes.extend(rva.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }

        let mut table = Vec::new();
        let mut contents = Vec::new();
        let first_offset = if self.alignment < 0x1000 {
            HEADERS_LEN
        } else {
            self.alignment
        };
        contents.resize(usize::try_from(first_offset).unwrap(), 0);
        for section in &self.sections {
            let mut header = ImageSectionHeader::default();
            header.name[..section.name.len()].copy_from_slice(section.name);
            header.virtual_address = U32::new(LE, section.address);
            header.virtual_size = U32::new(LE, section.memory_len);
            header.pointer_to_raw_data = U32::new(LE, u32::try_from(contents.len()).unwrap());
            header.size_of_raw_data = U32::new(LE, u32::try_from(section.content.len()).unwrap());
            header.characteristics = U32::new(LE, SectionFlags(section.characteristics));
            table.push(header);
            contents.extend(&section.content);
        }
        bytes.extend(pod::bytes_of_slice(&table));
        contents[..bytes.len()].copy_from_slice(&bytes);
        contents
    }
}

fn zeroed<T: pod::Pod>() -> T {
    *pod::from_bytes(&[0; 512]).unwrap().0
}

/// A resource directory at `rva`: name "HII", an ID, a language, then one data entry.
pub(crate) fn resource_section(rva: u32, data: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0x8000_0000;
    let mut bytes = Vec::new();
    for (named, ids, name, target) in [
        (1u16, 0u16, DIRECTORY | 88, DIRECTORY | 24),
        (0, 1, 1, DIRECTORY | 48),
        (0, 1, 0x409, 72),
    ] {
        bytes.extend([0; 12]);
        bytes.extend(named.to_le_bytes());
        bytes.extend(ids.to_le_bytes());
        bytes.extend(name.to_le_bytes());
        bytes.extend(target.to_le_bytes());
    }
    bytes.extend((rva + 96).to_le_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend([3, 0, b'H', 0, b'I', 0, b'I', 0]);
    assert_eq!(bytes.len(), 96);
    bytes.extend(data);
    bytes
}

/// The PE file as a loader puts it into memory.
pub(crate) fn loaded(file: &[u8]) -> Vec<u8> {
    let pe = PeFile64::parse(file).unwrap();
    let optional = &pe.nt_headers().optional_header;
    let mut memory = vec![0; optional.size_of_image.get(LE) as usize];
    let headers = optional.size_of_headers.get(LE) as usize;
    memory[..headers].copy_from_slice(&file[..headers]);
    for section in pe.section_table().iter() {
        // Like edk2's `PeCoffLoaderLoadImage`: a section without a size in memory has the size of
        // its raw data.
        let (raw, in_memory) = (section.size_of_raw_data.get(LE), section.virtual_size.get(LE));
        let raw = if in_memory == 0 { raw } else { raw.min(in_memory) } as usize;
        let (from, to) = (
            section.pointer_to_raw_data.get(LE) as usize,
            section.virtual_address.get(LE) as usize,
        );
        memory[to..to + raw].copy_from_slice(&file[from..from + raw]);
    }
    memory
}

/// The same with the offsets in the debug directory that the loaded image has as a file: addresses.
pub(crate) fn loaded_as_a_file(file: &[u8]) -> Vec<u8> {
    let mut memory = loaded(file);
    let own = memory.len();
    // The directory may reach into the rest of the last page.
    memory.resize(own.next_multiple_of(0x1000), 0);
    let pe = PeFile64::parse(file).unwrap();
    if let Some(directory) = pe.data_directory(pe::IMAGE_DIRECTORY_ENTRY_DEBUG) {
        let start = directory.virtual_address.get(LE) as usize;
        for entry in (0..directory.size.get(LE) as usize / 28).map(|at| start + at * 28) {
            let address: [u8; 4] = memory[entry + 20..entry + 24].try_into().unwrap();
            memory[entry + 24..entry + 28].copy_from_slice(&address);
            if address == [0; 4] {
                memory[entry + 16..entry + 20].fill(0);
            }
        }
    }
    memory.truncate(own);
    memory
}

/// A file of DXEFV or PEIFV with a PE32 and a user interface section.
pub(crate) fn ffs_file(guid: BinaryGuid, file_type: u8, pe: Vec<u8>, name: &str) -> File {
    let mut file = File::new(guid, file_type);
    let utf16 = name
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    *file.sections_mut() = vec![leaf(raw_type::PE32, pe), leaf(raw_type::USER_INTERFACE, utf16)];
    file
}

pub(crate) fn leaf(section_type: u8, content: Vec<u8>) -> Section {
    let len = u32::try_from(content.len()).unwrap();
    Section::new_from_header_with_data(SectionHeader::Standard(section_type, len), content).unwrap()
}

/// Serialises a volume of `len` bytes with the attributes that OVMF's volumes have.
pub(crate) fn volume(len: usize, files: Vec<File>) -> Vec<u8> {
    let blocks = u32::try_from(len / 0x1000).unwrap();
    let map = vec![BlockMapEntry {
        num_blocks: blocks,
        length: 0x1000,
    }];
    let mut empty = Volume::new(map).serialize().unwrap();
    let header_len = empty.len();
    empty.resize(len, 0xff);
    empty[32..40].copy_from_slice(&u64::try_from(len).unwrap().to_le_bytes());
    empty[44..48].copy_from_slice(&0x0004_feff_u32.to_le_bytes());
    empty[50..52].fill(0);
    let words = empty[..header_len].as_chunks::<2>().0.iter();
    let sum = words.fold(0u16, |sum, word| sum.wrapping_add(u16::from_le_bytes(*word)));
    empty[50..52].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());

    let mut volume = Volume::try_from(&VolumeRef::new(&empty).unwrap()).unwrap();
    *volume.files_mut() = files;
    let bytes = volume.serialize().unwrap();
    assert_eq!(bytes.len(), len);
    bytes
}

/// An LZMA section around `content`.
pub(crate) fn lzma_section(content: &[u8]) -> Section {
    let options = LzmaOptions {
        dict_size: 1 << 16,
        ..LzmaOptions::with_preset(6)
    };
    lzma_section_with(content, &options)
}

/// The same, encoded with these options.
pub(crate) fn lzma_section_with(content: &[u8], options: &LzmaOptions) -> Section {
    let len = u64::try_from(content.len()).unwrap();
    let mut writer = LzmaWriter::new_use_header(Vec::new(), options, Some(len)).unwrap();
    writer.write_all(content).unwrap();
    let stream = writer.finish().unwrap();
    let header = section::header::GuidDefined {
        section_definition_guid: LZMA_SECTION_GUID,
        data_offset: 24,
        attributes: 1,
    };
    let header = SectionHeader::GuidDefined(header, Vec::new(), u32::try_from(stream.len()).unwrap());
    Section::new_from_header_with_data(header, stream).unwrap()
}

/// Sections one behind the other, on 4-byte boundaries.
pub(crate) fn sections(sections: &[Section]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for section in sections {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(section.serialize().unwrap());
    }
    bytes
}

pub(crate) const OLD_CORE: BinaryGuid = BinaryGuid::from_string("D6A2CB7F-6A18-4E2F-B43B-9920A733700A");
pub(crate) const PEI_CORE: BinaryGuid = BinaryGuid::from_string("52C05B14-0B98-496C-BC3B-04B50211D680");
pub(crate) const OTHER: BinaryGuid = BinaryGuid::from_string("00000001-0002-0003-0405-060708090A0B");
pub(crate) const PAYLOAD_FILE: BinaryGuid = BinaryGuid::from_string("9E21FD93-9C72-4C15-8C4B-E77F1DB2D792");

pub(crate) const MAIN_LEN: usize = 0x8000;
pub(crate) const DXE_LEN: usize = 0x8000;
pub(crate) const SEC_LEN: usize = 0x1000;

/// Where the LZMA stream is in an image: behind the headers of the volume, the file and the
/// section.
pub(crate) const STREAM_AT: usize = 72 + 24 + 24;

pub(crate) fn dxe_files() -> Vec<File> {
    vec![
        ffs_file(OLD_CORE, file_type::DXE_CORE, TinyPe::driver().build(), "DxeCore"),
        ffs_file(
            guids::CPU_DXE,
            file_type::DRIVER,
            TinyPe::driver().build(),
            "CpuDxe",
        ),
        ffs_file(
            OTHER,
            file_type::DRIVER,
            TinyPe::driver_with_resources().build(),
            "LogoDxe",
        ),
    ]
}

pub(crate) fn payload(dxe: Vec<File>) -> Vec<Section> {
    let pei = vec![ffs_file(
        PEI_CORE,
        file_type::PEI_CORE,
        TinyPe::driver().build(),
        "PeiCore",
    )];
    vec![
        leaf(raw_type::RAW, vec![0; 0x74]),
        leaf(raw_type::FIRMWARE_VOLUME_IMAGE, volume(0x2000, pei)),
        leaf(raw_type::RAW, vec![0; 4]),
        leaf(raw_type::FIRMWARE_VOLUME_IMAGE, volume(DXE_LEN, dxe)),
    ]
}

pub(crate) fn image_of(lzma: Vec<Section>) -> Vec<u8> {
    let mut file = File::new(PAYLOAD_FILE, file_type::FIRMWARE_VOLUME_IMAGE);
    *file.sections_mut() = lzma;
    let mut bytes = volume(MAIN_LEN, vec![file]);
    bytes.extend(volume(SEC_LEN, Vec::new()));
    bytes
}

pub(crate) fn image() -> Vec<u8> {
    image_of(vec![lzma_section(&sections(&payload(dxe_files())))])
}
