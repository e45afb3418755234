//! Why an image or a driver was refused.

use crate::image::FileId;
use patina::BinaryGuid;
use patina_ffs::FirmwareFileSystemError;
use thiserror::Error;

/// Why a flash image was not opened, edited or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The bytes are not a firmware volume that can be read.
    #[error("{volume}: not a readable firmware volume: {cause:?}")]
    Volume {
        /// Which volume.
        volume: &'static str,
        /// The parser's error.
        cause: FirmwareFileSystemError,
    },
    /// A header claims more bytes than there are.
    #[error("{what}: its header claims {claimed} bytes, there are {available}")]
    Length {
        /// The part with the header.
        what: &'static str,
        /// The length in the header, in bytes.
        claimed: u64,
        /// Number of bytes available.
        available: usize,
    },
    /// Reading and writing the unchanged content does not give the same bytes: it has a form that
    /// is not understood.
    #[error("{what}: reading and writing it back changes it, first at offset {offset:#x} of {len:#x}")]
    NotExact {
        /// The part that was read and written.
        what: &'static str,
        /// The first byte that differs.
        offset: usize,
        /// Length of what was read, in bytes.
        len: usize,
    },
    /// The main volume does not hold exactly one LZMA section.
    #[error("FVMAIN_COMPACT holds {found} LZMA sections, one is expected")]
    PayloadSections {
        /// How many were found.
        found: usize,
    },
    /// The payload does not hold exactly one volume with a DXE core.
    #[error("the payload holds {found} volumes with a DXE core, one is expected")]
    DxeVolumes {
        /// How many were found.
        found: usize,
    },
    /// The LZMA stream cannot be decoded.
    #[error("the LZMA section of {len} bytes cannot be decoded: {cause:?}")]
    Decompress {
        /// Bytes of the stream.
        len: usize,
        /// The decoder's error.
        cause: FirmwareFileSystemError,
    },
    /// The LZMA stream's header is not one, or asks for a dictionary that is not accepted.
    #[error(
        "the LZMA section of {len} bytes has no valid header: properties {properties:#04x}, dictionary of {dictionary_len} bytes"
    )]
    LzmaHeader {
        /// Bytes of the stream.
        len: usize,
        /// The properties byte, 0xff if there is none.
        properties: u8,
        /// Bytes of the dictionary, 0 if there is no header.
        dictionary_len: u32,
    },
    /// The content is larger than any that a flash image has.
    #[error("the LZMA section of {len} bytes claims a content of {claimed} bytes, the limit is {limit}")]
    PayloadTooLarge {
        /// Bytes of the stream.
        len: usize,
        /// The length in the stream's header, in bytes.
        claimed: u64,
        /// The largest length accepted, in bytes.
        limit: u64,
    },
    /// The new payload cannot be encoded.
    #[error("{len} bytes cannot be encoded with LZMA: {cause:?}")]
    Compress {
        /// Bytes of the payload.
        len: usize,
        /// The encoder's error.
        cause: lzma_rust2::Error,
    },
    /// The changed content does not fit its volume.
    #[error(
        "{volume} has {capacity} bytes, its new content needs {needed}: drop files that the platform does not need"
    )]
    TooLarge {
        /// Which volume.
        volume: &'static str,
        /// Bytes of the volume.
        capacity: usize,
        /// Bytes that its content needs.
        needed: usize,
    },
    /// There is not exactly one DXE core to replace, or none is left.
    #[error("DXEFV has {found} DXE cores, one is expected")]
    Cores {
        /// How many were found.
        found: usize,
    },
    /// There is not exactly one file to take from another image.
    #[error("the other image's DXEFV has {found} files {name}, one is expected")]
    NoFileToTake {
        /// The name looked for.
        name: BinaryGuid,
        /// How many files have it.
        found: usize,
    },
    /// A new driver cannot be used.
    #[error("the runtime driver: {0}")]
    RuntimeDriver(#[source] PeError),
    /// Another file already has the new file's name.
    #[error("DXEFV has a file {file} already")]
    NameTaken {
        /// The file that has it.
        file: FileId,
    },
    /// A file does not have exactly one PE32 section.
    #[error("{file} has {found} PE32 sections, one is expected")]
    PeSections {
        /// The file.
        file: FileId,
        /// How many were found.
        found: usize,
    },
    /// A file has a section whose content is not understood.
    #[error("{file} has a section of type {section_type:#04x}, which cannot be flattened")]
    UnsupportedSection {
        /// The file.
        file: FileId,
        /// The section type of PI 1.9, volume 3, 2.1.5.1.
        section_type: u8,
    },
    /// A section cannot be built.
    #[error("{what}: {len} bytes make no section: {cause:?}")]
    Section {
        /// The contents of the section.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The builder's error.
        cause: FirmwareFileSystemError,
    },
    /// The new DXE core is not an image that the PEI phase can start.
    #[error("the new DXE core: {0}")]
    Core(PeError),
    /// A driver cannot be flattened.
    #[error("{file}: {cause}")]
    Driver {
        /// The driver's file.
        file: FileId,
        /// What is wrong with it.
        cause: PeError,
    },
}

/// Why a PE image was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PeError {
    /// The bytes are not a PE32+ image.
    #[error("not a PE32+ image: {0}")]
    Parse(object::read::Error),
    /// A header names bytes that are not there.
    #[error("{what} takes bytes {start:#x}..{end:#x} of {len:#x}")]
    OutOfRange {
        /// The part that was read or written.
        what: &'static str,
        /// Its first byte.
        start: u64,
        /// The first byte behind it.
        end: u64,
        /// How many bytes there are.
        len: usize,
    },
    /// The headers are not where a loader has them in memory.
    #[error(
        "NT headers and section table take bytes {start:#x}..{end:#x}; a loader has them behind the DOS header, before SizeOfHeaders {size_of_headers:#x}"
    )]
    HeadersOutside {
        /// Where the NT headers start.
        start: u64,
        /// Where the section table ends.
        end: u64,
        /// The value in the header.
        size_of_headers: u32,
    },
    /// The image is larger than any driver may be.
    #[error("SizeOfImage is {size:#x}, the limit is {limit:#x}")]
    ImageTooLarge {
        /// The value in the header.
        size: u32,
        /// The largest value accepted.
        limit: u32,
    },
    /// A section shares memory with the headers or with another section.
    #[error("section {at} starts at {start:#x}, before the headers or another section end at {end:#x}")]
    SectionsOverlap {
        /// Which section of the section table, from 0.
        at: usize,
        /// Where it starts.
        start: u32,
        /// Where the one below it ends.
        end: u32,
    },
    /// The section table has no room for the sections that the new layout has.
    #[error("{needed} sections do not fit a section table of {room}")]
    NoRoomForSections {
        /// The number of sections needed.
        needed: usize,
        /// The number of sections that there were.
        room: usize,
    },
    /// The resource directory nests deeper than type, name, language.
    #[error("the resource directory has more than {limit} levels")]
    ResourcesTooDeep {
        /// The number of levels that there may be.
        limit: usize,
    },
    /// A table, an entry or the data of the resource directory has bytes of another table or entry.
    #[error(
        "the resource directory has something at {start:#x}..{end:#x}, which overlaps another table or entry"
    )]
    ResourcesOverlap {
        /// Where it starts in the directory.
        start: u32,
        /// The first byte behind it.
        end: u32,
    },
    /// The image has resources but no section named `.rsrc` would lead a loader to them.
    #[error("the resource directory at {rva:#x} is not the section .rsrc")]
    ResourcesWithoutSection {
        /// Where the resource directory is.
        rva: u32,
    },
    /// The image is for another processor.
    #[error("the machine type is {found:#06x}, not {expected:#06x}")]
    Machine {
        /// The value in the header.
        found: u16,
        /// The value expected.
        expected: u16,
    },
    /// The image is of another kind.
    #[error("the subsystem is {found}, not {expected}")]
    Subsystem {
        /// The value in the header.
        found: u16,
        /// The value expected.
        expected: u16,
    },
    /// The sections do not start on pages.
    #[error("the sections are aligned to {found:#x} bytes, {expected:#x} are needed")]
    Alignment {
        /// The value in the header, or less if a section starts elsewhere.
        found: u32,
        /// The smallest value accepted.
        expected: u32,
    },
}
