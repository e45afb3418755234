//! PE images that a loader with page protection can load.
//!
//! edk2 builds boot-service drivers with sections on 64-byte boundaries: code and data share pages.
//! A loader that maps code read-only and data non-executable, as Patina's does, refuses them.
//! [`flatten`] gives such an image one section over everything, headers included. Code and data are
//! then not separate, so the platform has to map all pages writable and executable; a first section
//! at address 0, which no linker makes, marks the image for it.

use crate::error::PeError;
use object::{
    LittleEndian as LE, U32,
    pe::{
        IMAGE_DIRECTORY_ENTRY_DEBUG, IMAGE_DIRECTORY_ENTRY_RESOURCE, IMAGE_DIRECTORY_ENTRY_SECURITY,
        IMAGE_FILE_MACHINE_AMD64, IMAGE_SCN_CNT_CODE, IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_EXECUTE,
        IMAGE_SCN_MEM_READ, IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER, IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER,
        ImageDataDirectory, ImageDebugDirectory, ImageDosHeader, ImageFileHeader, ImageNtHeaders64,
        ImageResourceDataEntry, ImageResourceDirectory, ImageResourceDirectoryEntry, ImageSectionHeader,
        SectionFlags, Subsystem,
    },
    pod::{self, Pod},
    read::pe::{PeFile64, ResourceDirectory, ResourceDirectoryEntryData, ResourceDirectoryTable},
};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a page, and the section alignment of a flattened image.
pub const PAGE_LEN: u32 = 0x1000;

/// The largest SizeOfImage accepted: a section of a file can have no more bytes than this (PI 1.9,
/// volume 3, 2.1.5.1).
const MAX_IMAGE_LEN: u32 = 0x100_0000;

/// Bytes of the signature and the file header, which come before the optional header.
const OPTIONAL_HEADER_AT: usize = size_of::<u32>() + size_of::<ImageFileHeader>();

/// Where a data directory is, from the start of the NT headers, which it follows.
const fn directory_at(directory: usize) -> usize {
    size_of::<ImageNtHeaders64>().saturating_add(directory.saturating_mul(size_of::<ImageDataDirectory>()))
}

/// Type, name, language.
const RESOURCE_LEVELS: usize = 3;

const TEXT: [u8; 8] = *b".text\0\0\0";
const RESOURCES: [u8; 8] = *b".rsrc\0\0\0";

/// A PE image that was laid out anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flattened {
    /// The file, which is also the image as a loader puts it into memory: each byte is at its own
    /// address.
    pub bytes: Vec<u8>,
    /// Whether its resources got a separate section.
    pub resources_moved: bool,
}

/// Lays out a PE32+ image whose sections do not start on pages; `None` if they do.
///
/// The new file is the loaded image, with SectionAlignment 0x1000 and
///
/// | section | address and offset | characteristics |
/// |---|---|---|
/// | `.text` | 0 | code, execute, read |
/// | `.rsrc`, if the image has resources | the page behind `.text`; a copy, with its addresses adjusted | data, read |
///
/// No address inside the image changes, so code and relocations stay as they are. The symbol table
/// and signatures, which the headers find by their place in the old file, are left out; the places
/// of debug information in the file become its addresses. Resources need their own section because a loader finds the HII package list by the
/// section's name.
///
/// # Errors
///
/// [`PeError`] if the image is damaged, or not for x86-64.
pub fn flatten(file: &[u8]) -> Result<Option<Flattened>, PeError> {
    let pe = PeFile64::parse(file).map_err(PeError::Parse)?;
    require_machine(pe.nt_headers())?;
    if alignment(&pe).is_multiple_of(PAGE_LEN) {
        return Ok(None);
    }
    let mut bytes = load(file, &pe)?;
    correct_debug_offsets(&mut bytes, &pe)?;
    let text_len = len_u32(&bytes)?;
    let resources = append_resources(&mut bytes, &pe)?;

    let mut sections = vec![section(
        TEXT,
        0,
        text_len,
        IMAGE_SCN_CNT_CODE | IMAGE_SCN_MEM_EXECUTE | IMAGE_SCN_MEM_READ,
    )];
    if let Some(len) = resources {
        sections.push(section(
            RESOURCES,
            text_len,
            len,
            IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ,
        ));
    }
    write_headers(&mut bytes, &sections, pe.section_table().len())?;
    Ok(Some(Flattened {
        bytes,
        resources_moved: resources.is_some(),
    }))
}

/// Checks that `file` is a DXE core as OVMF's PEI phase can start one: PE32+, x86-64, a boot
/// service driver, with sections on pages, because Patina protects its own image too.
///
/// # Errors
///
/// [`PeError`] with the header field that is wrong.
pub fn require_dxe_core(file: &[u8]) -> Result<(), PeError> {
    require_driver(file, IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER)
}

/// Checks that `file` is a runtime driver that a core can protect: PE32+, x86-64, with sections on
/// pages. Runtime drivers are not flattened: the operating system maps their code and their data in
/// different ways.
///
/// # Errors
///
/// [`PeError`] with the header field that is wrong.
pub fn require_runtime_driver(file: &[u8]) -> Result<(), PeError> {
    require_driver(file, IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER)
}

fn require_driver(file: &[u8], expected: Subsystem) -> Result<(), PeError> {
    let pe = PeFile64::parse(file).map_err(PeError::Parse)?;
    let headers = pe.nt_headers();
    require_machine(headers)?;
    let found = headers.optional_header.subsystem.get(LE);
    if found != expected {
        return Err(PeError::Subsystem {
            found: found.0,
            expected: expected.0,
        });
    }
    let found = alignment(&pe);
    if !found.is_multiple_of(PAGE_LEN) {
        return Err(PeError::Alignment {
            found,
            expected: PAGE_LEN,
        });
    }
    load(file, &pe)?;
    Ok(())
}

fn require_machine(headers: &ImageNtHeaders64) -> Result<(), PeError> {
    let (found, expected) = (headers.file_header.machine.get(LE), IMAGE_FILE_MACHINE_AMD64);
    if found == expected {
        return Ok(());
    }
    Err(PeError::Machine {
        found: found.0,
        expected: expected.0,
    })
}

/// Checks that all headers are where a loader has them in memory: behind the DOS header, within
/// SizeOfHeaders.
fn require_headers(pe: &PeFile64<'_>) -> Result<(), PeError> {
    let headers = pe.nt_headers();
    let sections = pe
        .section_table()
        .len()
        .saturating_mul(size_of::<ImageSectionHeader>());
    let start = pe.dos_header().e_lfanew.get(LE);
    let len = OPTIONAL_HEADER_AT
        .saturating_add(usize::from(headers.file_header.size_of_optional_header.get(LE)))
        .saturating_add(sections);
    let end = u64::from(start).saturating_add(wide(len));
    let size_of_headers = headers.optional_header.size_of_headers.get(LE);
    if index(start) < size_of::<ImageDosHeader>() || end > u64::from(size_of_headers) {
        return Err(PeError::HeadersOutside {
            start: u64::from(start),
            end,
            size_of_headers,
        });
    }
    Ok(())
}

/// The alignment of the sections: that of the header, or a lower one if a section does not keep it.
fn alignment(pe: &PeFile64<'_>) -> u32 {
    let claimed = pe.nt_headers().optional_header.section_alignment.get(LE);
    let addresses = pe
        .section_table()
        .iter()
        .map(|section| section.virtual_address.get(LE));
    let lowest_bit = |address: u32| 1_u32.checked_shl(address.trailing_zeros());
    let lower = addresses
        .filter(|address| !address.is_multiple_of(PAGE_LEN))
        .filter_map(lowest_bit);
    // Zero is a multiple of every number.
    lower.chain([claimed.max(1)]).min().unwrap_or(claimed)
}

/// Lays out the image in whole pages, like a loader.
fn load(file: &[u8], pe: &PeFile64<'_>) -> Result<Vec<u8>, PeError> {
    require_headers(pe)?;
    let optional = &pe.nt_headers().optional_header;
    let size = optional.size_of_image.get(LE);
    if size > MAX_IMAGE_LEN {
        return Err(PeError::ImageTooLarge {
            size,
            limit: MAX_IMAGE_LEN,
        });
    }
    let mut image = vec![0; index(size)];
    part(
        &image,
        optional.address_of_entry_point.get(LE),
        1,
        "the entry point",
    )?;
    let headers = optional.size_of_headers.get(LE);
    part_mut(&mut image, 0, headers, "the headers in memory")?.copy_from_slice(part(
        file,
        0,
        headers,
        "the headers",
    )?);
    // Where the headers or the section before end; the section table is in the order of addresses
    // (PE format, 4).
    let mut free_from = headers;
    for (at, section) in pe.section_table().iter().enumerate() {
        let (raw, virtual_size) = (section.size_of_raw_data.get(LE), section.virtual_size.get(LE));
        // A section without a size in memory has the size of its raw data.
        let in_memory = if virtual_size == 0 { raw } else { virtual_size };
        let start = section.virtual_address.get(LE);
        if start < free_from {
            return Err(PeError::SectionsOverlap {
                at,
                start,
                end: free_from,
            });
        }
        let target = part_mut(&mut image, start, in_memory, "a section in memory")?;
        // Does not saturate: the sum lies in the image.
        free_from = start.saturating_add(in_memory);
        let source = part(
            file,
            section.pointer_to_raw_data.get(LE),
            raw.min(in_memory),
            "a section",
        )?;
        if let Some(start) = target.get_mut(..source.len()) {
            start.copy_from_slice(source);
        }
    }
    // Only now, so that no section may reach beyond SizeOfImage.
    image.resize(index(size.next_multiple_of(PAGE_LEN)), 0);
    Ok(image)
}

/// Makes the places of debug information in the file those of the loaded image. Information that is
/// not loaded is gone.
fn correct_debug_offsets(image: &mut [u8], pe: &PeFile64<'_>) -> Result<(), PeError> {
    let Some(directory) = pe.data_directory(IMAGE_DIRECTORY_ENTRY_DEBUG) else {
        return Ok(());
    };
    let (start, len) = (directory.virtual_address.get(LE), directory.size.get(LE));
    if len == 0 {
        return Ok(());
    }
    let what = "the debug directory behind the headers";
    if start < pe.nt_headers().optional_header.size_of_headers.get(LE) {
        return Err(out_of_range(what, start, len, image.len()));
    }
    let entries = part_mut(image, start, len, what)?;
    for entry in entries.chunks_exact_mut(size_of::<ImageDebugDirectory>()) {
        let entry: &mut ImageDebugDirectory = header_mut(entry, 0, "an entry of the debug directory")?;
        let address = entry.address_of_raw_data.get(LE);
        entry.pointer_to_raw_data.set(LE, address);
        if address == 0 {
            entry.size_of_data.set(LE, 0);
        }
    }
    Ok(())
}

/// Copies the resources behind the image, in whole pages, with the addresses in them adjusted.
/// Gives the copy's length in pages, in bytes; `None` if there are no resources.
fn append_resources(image: &mut Vec<u8>, pe: &PeFile64<'_>) -> Result<Option<u32>, PeError> {
    let Some(directory) = pe.data_directory(IMAGE_DIRECTORY_ENTRY_RESOURCE) else {
        return Ok(None);
    };
    let (rva, len) = (directory.virtual_address.get(LE), directory.size.get(LE));
    if len == 0 {
        return Ok(None);
    }
    let is_section =
        |section: &ImageSectionHeader| section.name == RESOURCES && section.virtual_address.get(LE) == rva;
    if !pe.section_table().iter().any(is_section) {
        return Err(PeError::ResourcesWithoutSection { rva });
    }
    let mut copy = part(image, rva, len, "the resource directory")?.to_vec();
    let mut resources = Resources::new(&copy);
    let root = resources.directory.root().map_err(PeError::Parse)?;
    resources.find(0, &root, RESOURCE_LEVELS)?;
    let Resources { entries, parts, .. } = resources;

    let target = len_u32(image)?;
    for entry in entries {
        let entry: &mut ImageResourceDataEntry =
            header_mut(&mut copy, index(entry), "a resource data entry")?;
        let data = entry.offset_to_data.get(LE);
        let in_directory = data
            .checked_sub(rva)
            .filter(|start| entry.size.get(LE) <= len.saturating_sub(*start));
        let in_directory =
            in_directory.ok_or_else(|| out_of_range("a resource", data, entry.size.get(LE), image.len()))?;
        require_free(&parts, in_directory, entry.size.get(LE))?;
        // Cannot saturate: both are less than MAX_IMAGE_LEN.
        entry.offset_to_data.set(LE, target.saturating_add(in_directory));
    }
    copy.resize(copy.len().next_multiple_of(index(PAGE_LEN)), 0);
    let copy_len = len_u32(&copy)?;
    image.append(&mut copy);
    Ok(Some(copy_len))
}

/// The tables of a resource directory, and its entries that hold addresses.
struct Resources<'a> {
    directory: ResourceDirectory<'a>,
    /// Where each table and data entry starts, and ends. They do not overlap, so that they are not
    /// more than fit into the directory, and a changed address changes nothing else.
    parts: BTreeMap<u32, u32>,
    /// Where the data entries are.
    entries: BTreeSet<u32>,
}

impl<'a> Resources<'a> {
    fn new(directory: &'a [u8]) -> Self {
        Self {
            directory: ResourceDirectory::new(directory),
            parts: BTreeMap::new(),
            entries: BTreeSet::new(),
        }
    }

    /// Collects what is in, and below, the table at `start`.
    fn find(&mut self, start: u32, table: &ResourceDirectoryTable<'_>, levels: usize) -> Result<(), PeError> {
        let below = levels.checked_sub(1).ok_or(PeError::ResourcesTooDeep {
            limit: RESOURCE_LEVELS,
        })?;
        let entries = (table.entries.len()).saturating_mul(size_of::<ImageResourceDirectoryEntry>());
        self.claim(start, size_of::<ImageResourceDirectory>().saturating_add(entries))?;
        for entry in table.entries {
            let at = entry.data_offset();
            match entry.data(self.directory).map_err(PeError::Parse)? {
                ResourceDirectoryEntryData::Table(table) => self.find(at, &table, below)?,
                ResourceDirectoryEntryData::Data(_) if self.entries.contains(&at) => {}
                ResourceDirectoryEntryData::Data(_) => {
                    self.claim(at, size_of::<ImageResourceDataEntry>())?;
                    self.entries.insert(at);
                }
            }
        }
        Ok(())
    }

    fn claim(&mut self, start: u32, len: usize) -> Result<(), PeError> {
        // Parts lie in the directory, which is shorter.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        require_free(&self.parts, start, len)?;
        self.parts.insert(start, start.saturating_add(len));
        Ok(())
    }
}

/// Fails if one of the parts, by start and end, has some of these bytes.
fn require_free(parts: &BTreeMap<u32, u32>, start: u32, len: u32) -> Result<(), PeError> {
    let end = start.saturating_add(len);
    match parts.range(..end).next_back() {
        // The parts do not overlap: the last one ends last.
        Some((_, taken)) if *taken > start => Err(PeError::ResourcesOverlap { start, end }),
        _ => Ok(()),
    }
}

fn section(name: [u8; 8], start: u32, len: u32, characteristics: SectionFlags) -> ImageSectionHeader {
    ImageSectionHeader {
        name,
        virtual_size: U32::new(LE, len),
        virtual_address: U32::new(LE, start),
        size_of_raw_data: U32::new(LE, len),
        pointer_to_raw_data: U32::new(LE, start),
        characteristics: U32::new(LE, characteristics),
        ..Default::default()
    }
}

/// Makes the headers in `image` describe `sections` instead of the `old_count` sections that they
/// describe.
fn write_headers(image: &mut [u8], sections: &[ImageSectionHeader], old_count: usize) -> Result<(), PeError> {
    let number = match u16::try_from(sections.len()) {
        Ok(number) if sections.len() <= old_count => number,
        _ => {
            return Err(PeError::NoRoomForSections {
                needed: sections.len(),
                room: old_count,
            });
        }
    };
    let image_len = len_u32(image)?;
    let dos: &mut ImageDosHeader = header_mut(image, 0, "the DOS header")?;
    let nt_at = dos.e_lfanew.get(LE);
    let image = part_mut(image, nt_at, image_len.saturating_sub(nt_at), "the NT headers")?;

    let nt: &mut ImageNtHeaders64 = header_mut(image, 0, "the NT headers")?;
    nt.file_header.number_of_sections.set(LE, number);
    nt.optional_header.section_alignment.set(LE, PAGE_LEN);
    nt.optional_header.size_of_image.set(LE, image_len);
    nt.optional_header.check_sum.set(LE, 0);
    nt.file_header.pointer_to_symbol_table.set(LE, 0);
    nt.file_header.number_of_symbols.set(LE, 0);
    let directories = index(nt.optional_header.number_of_rva_and_sizes.get(LE));
    let optional_len = usize::from(nt.file_header.size_of_optional_header.get(LE));

    if directories > IMAGE_DIRECTORY_ENTRY_SECURITY {
        let at = directory_at(IMAGE_DIRECTORY_ENTRY_SECURITY);
        let signatures: &mut ImageDataDirectory = header_mut(image, at, "a data directory")?;
        *signatures = ImageDataDirectory {
            virtual_address: U32::new(LE, 0),
            size: U32::new(LE, 0),
        };
    }
    if let Some(resources) = sections.iter().find(|section| section.name == RESOURCES) {
        let directory: &mut ImageDataDirectory = header_mut(
            image,
            directory_at(IMAGE_DIRECTORY_ENTRY_RESOURCE),
            "a data directory",
        )?;
        directory.virtual_address = resources.virtual_address;
    }
    let new = sections
        .iter()
        .copied()
        .chain(core::iter::repeat(ImageSectionHeader::default()))
        .take(old_count);
    let slots = (OPTIONAL_HEADER_AT.saturating_add(optional_len)..).step_by(size_of::<ImageSectionHeader>());
    for (at, header) in slots.zip(new) {
        *header_mut(image, at, "the section table")? = header;
    }
    Ok(())
}

fn part<'a>(bytes: &'a [u8], start: u32, len: u32, what: &'static str) -> Result<&'a [u8], PeError> {
    let end = start.checked_add(len);
    let part = end.and_then(|end| bytes.get(index(start)..index(end)));
    part.ok_or_else(|| out_of_range(what, start, len, bytes.len()))
}

fn part_mut<'a>(
    bytes: &'a mut [u8],
    start: u32,
    len: u32,
    what: &'static str,
) -> Result<&'a mut [u8], PeError> {
    let available = bytes.len();
    let end = start.checked_add(len);
    let part = end.and_then(|end| bytes.get_mut(index(start)..index(end)));
    part.ok_or_else(|| out_of_range(what, start, len, available))
}

/// The header of type `T` at `start`. The types of [`object::pe`] have no alignment, so any place
/// works.
fn header_mut<'a, T: Pod>(
    bytes: &'a mut [u8],
    start: usize,
    what: &'static str,
) -> Result<&'a mut T, PeError> {
    let available = bytes.len();
    let header = bytes
        .get_mut(start..)
        .and_then(|rest| pod::from_bytes_mut(rest).ok());
    let (header, _rest) = header.ok_or_else(|| PeError::OutOfRange {
        what,
        start: wide(start),
        end: wide(start).saturating_add(wide(size_of::<T>())),
        len: available,
    })?;
    Ok(header)
}

fn out_of_range(what: &'static str, start: u32, len: u32, available: usize) -> PeError {
    let start = u64::from(start);
    PeError::OutOfRange {
        what,
        start,
        end: start.saturating_add(u64::from(len)),
        len: available,
    }
}

/// The length of an image, which `load` keeps below `MAX_IMAGE_LEN`.
fn len_u32(image: &[u8]) -> Result<u32, PeError> {
    u32::try_from(image.len()).map_err(|_beyond_u32| PeError::ImageTooLarge {
        size: u32::MAX,
        limit: MAX_IMAGE_LEN,
    })
}

/// A 32-bit offset as an index. If `usize` is smaller, an offset that does not fit is out of every
/// range.
fn index(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn wide(offset: usize) -> u64 {
    u64::try_from(offset).unwrap_or(u64::MAX)
}
