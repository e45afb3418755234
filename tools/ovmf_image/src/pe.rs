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
        IMAGE_DIRECTORY_ENTRY_RESOURCE, IMAGE_FILE_MACHINE_AMD64, IMAGE_SCN_CNT_CODE,
        IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_READ,
        IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER, IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER, ImageDataDirectory,
        ImageDosHeader, ImageFileHeader, ImageNtHeaders64, ImageResourceDataEntry, ImageSectionHeader,
        SectionFlags, Subsystem,
    },
    pod::{self, Pod},
    read::pe::{PeFile64, ResourceDirectory, ResourceDirectoryEntryData, ResourceDirectoryTable},
};
use std::collections::BTreeSet;

/// Bytes of a page, and the section alignment of a flattened image.
pub const PAGE_LEN: u32 = 0x1000;

/// The largest SizeOfImage accepted: a section of a file can have no more bytes than this (PI 1.9,
/// volume 3, 2.1.5.1).
const MAX_IMAGE_LEN: u32 = 0x100_0000;

/// Bytes of the signature and the file header, which come before the optional header.
const OPTIONAL_HEADER_AT: usize = size_of::<u32>() + size_of::<ImageFileHeader>();

/// Where the entry for resources is, from the start of the NT headers: the data directories follow
/// them.
const RESOURCE_DIRECTORY_AT: usize =
    size_of::<ImageNtHeaders64>() + IMAGE_DIRECTORY_ENTRY_RESOURCE * size_of::<ImageDataDirectory>();

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
/// No address inside the image changes, so code, relocations and debug information stay as they
/// are. Resources need their own section because a loader finds the HII package list by the
/// section's name.
///
/// # Errors
///
/// [`PeError`] if the image is damaged, or not for x86-64.
pub fn flatten(file: &[u8]) -> Result<Option<Flattened>, PeError> {
    let pe = PeFile64::parse(file).map_err(PeError::Parse)?;
    require_machine(pe.nt_headers())?;
    if pages_only(pe.nt_headers()) {
        return Ok(None);
    }
    let mut bytes = load(file, &pe)?;
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
    if !pages_only(headers) {
        let found = headers.optional_header.section_alignment.get(LE);
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

fn pages_only(headers: &ImageNtHeaders64) -> bool {
    let alignment = headers.optional_header.section_alignment.get(LE);
    alignment != 0 && alignment.is_multiple_of(PAGE_LEN)
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
    let directory = ResourceDirectory::new(&copy);
    let mut entries = BTreeSet::new();
    find_data_entries(
        directory,
        &directory.root().map_err(PeError::Parse)?,
        RESOURCE_LEVELS,
        &mut entries,
    )?;

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
        // Cannot saturate: both are less than MAX_IMAGE_LEN.
        entry.offset_to_data.set(LE, target.saturating_add(in_directory));
    }
    copy.resize(copy.len().next_multiple_of(index(PAGE_LEN)), 0);
    let copy_len = len_u32(&copy)?;
    image.append(&mut copy);
    Ok(Some(copy_len))
}

/// Collects where in the directory the entries are that hold addresses.
fn find_data_entries(
    directory: ResourceDirectory<'_>,
    table: &ResourceDirectoryTable<'_>,
    levels: usize,
    found: &mut BTreeSet<u32>,
) -> Result<(), PeError> {
    let below = levels.checked_sub(1).ok_or(PeError::ResourcesTooDeep {
        limit: RESOURCE_LEVELS,
    })?;
    for entry in table.entries {
        match entry.data(directory).map_err(PeError::Parse)? {
            ResourceDirectoryEntryData::Table(table) => find_data_entries(directory, &table, below, found)?,
            ResourceDirectoryEntryData::Data(_) => {
                found.insert(entry.data_offset());
            }
        }
    }
    Ok(())
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
    let optional_len = usize::from(nt.file_header.size_of_optional_header.get(LE));

    if let Some(resources) = sections.iter().find(|section| section.name == RESOURCES) {
        let directory: &mut ImageDataDirectory =
            header_mut(image, RESOURCE_DIRECTORY_AT, "a data directory")?;
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
