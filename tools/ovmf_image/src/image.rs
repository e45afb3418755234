//! The flash image, and what can be changed in it.

mod files;

use crate::{
    error::ImageError,
    guids,
    lzma::{self, Encoding},
    pe,
    volume::{ExactVolume, require_same},
};
use core::{fmt, ops::Range};
use patina::{
    BinaryGuid,
    pi::fw_fs::{
        ffs::{file::raw::r#type as file_type, section::raw_type as section_type},
        guid::LZMA_SECTION_GUID,
    },
};
use patina_ffs::{
    file::File,
    section::{Section, SectionHeader, SectionIterator},
    volume::VolumeRef,
};

const MAIN: &str = "FVMAIN_COMPACT";
const DXE: &str = "DXEFV";
const SEC: &str = "SECFV";
const PAYLOAD: &str = "the content of the LZMA section";

/// Sections start at multiples of this many bytes (PI 1.9, volume 3, 2.1.5).
const SECTION_ALIGN: usize = 4;

/// Where a volume's header has the GUID of its file system, its length and its signature (PI 1.9,
/// volume 3, 3.2.1).
const FILE_SYSTEM_AT: Range<usize> = 16..32;
const LENGTH_AT: Range<usize> = 32..40;
const SIGNATURE_AT: Range<usize> = 40..44;

/// A flash image whose DXE files can be changed. It keeps its length.
pub struct Image {
    original: Vec<u8>,
    /// Bytes of the variable store before `main`.
    before: usize,
    main: ExactVolume,
    /// Where in `main` the LZMA section is: index of the file, index of the section in it.
    payload_at: (usize, usize),
    encoding: Encoding,
    payload: Vec<Section>,
    /// Index of DXEFV in `payload`.
    dxe_at: usize,
    dxe: ExactVolume,
    changes: Vec<Change>,
}

impl Image {
    /// Reads a flash image: FVMAIN_COMPACT, then SECFV up to the end. A variable store may precede
    /// them, as in an image that is both code and variables; it stays as it is.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if the image is damaged, or of a form that this crate would not write back
    /// unchanged.
    pub fn open(bytes: &[u8]) -> Result<Self, ImageError> {
        let before = variable_store_len(bytes);
        let flash = bytes.get(before..).unwrap_or_default();
        let main = ExactVolume::open(flash, MAIN)?;
        require_one_volume(flash.get(main.len()..).unwrap_or_default(), SEC)?;
        let (payload_at, section) = find_payload(&main)?;
        let (content, encoding) = lzma::decompress(section)?;
        let payload = SectionIterator::new(&content)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| ImageError::Section {
                what: PAYLOAD,
                len: content.len(),
                cause,
            })?;
        require_same(PAYLOAD, &content, &join(&payload)?)?;
        let (dxe_at, dxe) = find_dxe(&payload)?;
        Ok(Self {
            original: bytes.to_vec(),
            before,
            main,
            payload_at,
            encoding,
            payload,
            dxe_at,
            dxe,
            changes: Vec::new(),
        })
    }

    /// Replaces the DXE core with `core`, in a file called `name`.
    ///
    /// # Errors
    ///
    /// [`ImageError::Core`] if `core` is not a PE32+ boot service driver for x86-64 with sections
    /// on pages; [`ImageError::Cores`] if there are several DXE cores to choose from,
    /// [`ImageError::NameTaken`] if another file has the name; [`ImageError::PeSections`] if the
    /// file that holds the DXE core has none or several PE32 sections.
    pub fn replace_dxe_core(&mut self, core: &[u8], name: BinaryGuid) -> Result<&mut Self, ImageError> {
        pe::require_dxe_core(core).map_err(ImageError::Core)?;
        let at = only(self.dxe.files(), |file| {
            file.file_type_raw() == file_type::DXE_CORE
        })
        .map_err(|found| ImageError::Cores { found })?;
        let mut files = self.dxe.files().enumerate();
        let taken = files.find(|(other, file)| *other != at && file.name() == name);
        if let Some((_, file)) = taken {
            return Err(ImageError::NameTaken {
                file: FileId::of(file),
            });
        }
        drop(files);
        if let Some(file) = self.dxe.files_mut().get_mut(at) {
            let old = FileId::of(file);
            let mut new = File::new(name, file_type::DXE_CORE);
            new.set_data_checksum(file.is_data_checksum());
            *new.sections_mut() = file.sections().clone();
            replace_pe32(&mut new, &old, core.to_vec())?;
            *file = new;
            self.changes.push(Change::CoreReplaced {
                old,
                new: name,
                len: core.len(),
            });
        }
        Ok(self)
    }

    /// Takes the files that are `wanted` out of DXEFV, and returns their number. A build may lack a
    /// file, or have it twice: edk2 builds CpuDxe once for one processor and once for several, for
    /// instance.
    pub fn drop_files(&mut self, wanted: impl Fn(&FileId) -> bool) -> usize {
        let changes = &mut self.changes;
        let before = changes.len();
        self.dxe.files_mut().retain(|file| {
            let file = FileId::of(file);
            let stays = !wanted(&file);
            if !stays {
                changes.push(Change::Dropped { file });
            }
            stays
        });
        changes.len().saturating_sub(before)
    }

    /// Lays out every driver and application of DXEFV whose sections do not start on pages, with
    /// [`pe::flatten`].
    ///
    /// # Errors
    ///
    /// [`ImageError::Driver`] if a driver cannot be laid out; [`ImageError::PeSections`] and
    /// [`ImageError::UnsupportedSection`] if its file is not understood.
    pub fn flatten_drivers(&mut self) -> Result<&mut Self, ImageError> {
        for file in self.dxe.files_mut() {
            let dispatched = matches!(
                file.file_type_raw(),
                file_type::DRIVER
                    | file_type::APPLICATION
                    | file_type::COMBINED_PEIM_DRIVER
                    | file_type::COMBINED_MM_DXE
            );
            if !dispatched {
                continue;
            }
            let id = FileId::of(file);
            let old = pe32(file, &id)?;
            let from = old.len();
            let flat = pe::flatten(old).map_err(|cause| ImageError::Driver {
                file: id.clone(),
                cause,
            })?;
            if let Some(flat) = flat {
                let to = flat.bytes.len();
                replace_pe32(file, &id, flat.bytes)?;
                self.changes.push(Change::Flattened {
                    file: id,
                    from,
                    to,
                    resources_moved: flat.resources_moved,
                });
            }
        }
        Ok(self)
    }

    /// The changes so far, in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Writes the image. Without changes it is the one that was opened, byte for byte.
    ///
    /// # Errors
    ///
    /// [`ImageError::Cores`] if the DXE core was dropped: such an image does not boot.
    /// [`ImageError::TooLarge`] if the new contents do not fit.
    pub fn finish(mut self) -> Result<Vec<u8>, ImageError> {
        if self.changes.is_empty() {
            return Ok(self.original);
        }
        if !has_core(&self.dxe) {
            return Err(ImageError::Cores { found: 0 });
        }
        if let Some(section) = self.payload.get_mut(self.dxe_at) {
            *section = new_section(DXE, section.header().clone(), self.dxe.serialize()?)?;
        }
        let stream = lzma::compress(&join(&self.payload)?, self.encoding)?;
        let (file_at, section_at) = self.payload_at;
        let file = self.main.files_mut().get_mut(file_at);
        if let Some(section) = file.and_then(|file| file.sections_mut().get_mut(section_at)) {
            *section = new_section("the LZMA section", section.header().clone(), stream)?;
        }
        let (start, len) = (self.before, self.main.len());
        let mut bytes = self.original;
        if let Some(main) = bytes.get_mut(start..).and_then(|flash| flash.get_mut(..len)) {
            main.copy_from_slice(&self.main.serialize()?);
        }
        Ok(bytes)
    }
}

/// A change that was made to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The DXE core was replaced.
    CoreReplaced {
        /// The file it was in.
        old: FileId,
        /// The name of the file it is in.
        new: BinaryGuid,
        /// Bytes of the new core.
        len: usize,
    },
    /// A file was dropped.
    Dropped {
        /// The file.
        file: FileId,
    },
    /// A file of another image was added.
    Taken {
        /// The file.
        file: FileId,
    },
    /// A runtime driver was added.
    DriverAdded {
        /// The name of its file.
        name: BinaryGuid,
        /// Bytes of the driver.
        len: usize,
    },
    /// A driver was laid out anew.
    Flattened {
        /// The driver's file.
        file: FileId,
        /// Bytes of its PE image before.
        from: usize,
        /// Bytes of its PE image now.
        to: usize,
        /// Whether its resources got a separate section.
        resources_moved: bool,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CoreReplaced { old, new, len } => {
                write!(f, "replaced {old} with a core of {len} bytes as {new}")
            }
            Self::Dropped { file } => write!(f, "dropped {file}"),
            Self::Taken { file } => write!(f, "took {file} from another image"),
            Self::DriverAdded { name, len } => {
                write!(f, "added a runtime driver of {len} bytes as {name}")
            }
            Self::Flattened {
                file,
                from,
                to,
                resources_moved,
            } => {
                let moved = if *resources_moved {
                    ", resources in a separate section"
                } else {
                    ""
                };
                write!(f, "flattened {file}: {from} to {to} bytes{moved}")
            }
        }
    }
}

/// Identifies a file: its GUID, and the name in its user interface section if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The file's name in the volume.
    pub guid: BinaryGuid,
    /// The name for people.
    pub name: Option<String>,
}

impl FileId {
    /// Whether `name` is its GUID, or its name for people.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name) || BinaryGuid::try_from_string(name) == Ok(self.guid)
    }

    fn of(file: &File) -> Self {
        let ui = file
            .sections()
            .iter()
            .find(|section| section.section_type_raw() == section_type::USER_INTERFACE);
        let name = ui
            .and_then(|section| section.try_content_as_slice().ok())
            .map(|utf16| {
                let units = utf16
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|unit| u16::from_le_bytes(*unit));
                String::from_utf16_lossy(&units.take_while(|&unit| unit != 0).collect::<Vec<_>>())
            });
        Self {
            guid: file.name(),
            name,
        }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.guid),
            None => write!(f, "{}", self.guid),
        }
    }
}

/// The index of the only file that is `wanted`; as an error, the number of such files.
fn only<'a>(files: impl Iterator<Item = &'a File>, wanted: impl Fn(&File) -> bool) -> Result<usize, usize> {
    let found: Vec<_> = files
        .enumerate()
        .filter(|(_, file)| wanted(file))
        .map(|(at, _)| at)
        .collect();
    match found[..] {
        [at] => Ok(at),
        _ => Err(found.len()),
    }
}

/// Bytes of the volume for variables at the start of `flash`; 0 if another one is there.
fn variable_store_len(flash: &[u8]) -> usize {
    let is = |place, expected: &[u8]| flash.get(place) == Some(expected);
    if !is(SIGNATURE_AT, b"_FVH") || !is(FILE_SYSTEM_AT, guids::VARIABLE_STORE.as_bytes()) {
        return 0;
    }
    let len = flash
        .get(LENGTH_AT)
        .and_then(|len| Some(u64::from_le_bytes(len.try_into().ok()?)));
    len.and_then(|len| usize::try_from(len).ok()).unwrap_or_default()
}

/// Checks that `bytes` are a volume's header and as many bytes as it claims.
fn require_one_volume(bytes: &[u8], what: &'static str) -> Result<(), ImageError> {
    let volume = VolumeRef::new(bytes).map_err(|cause| ImageError::Volume { volume: what, cause })?;
    let claimed = volume.size();
    if u64::try_from(bytes.len()).ok() == Some(claimed) {
        Ok(())
    } else {
        Err(ImageError::Length {
            what,
            claimed,
            available: bytes.len(),
        })
    }
}

fn find_payload(main: &ExactVolume) -> Result<((usize, usize), &Section), ImageError> {
    let sections = main.files().enumerate().flat_map(|(file_at, file)| {
        let sections = file.sections().iter().enumerate();
        sections.map(move |(section_at, section)| ((file_at, section_at), section))
    });
    let found: Vec<_> = sections
        .filter(|(_, section)| match section.header() {
            SectionHeader::GuidDefined(header, _, _) => header.section_definition_guid == LZMA_SECTION_GUID,
            _ => false,
        })
        .collect();
    match found[..] {
        [one] => Ok(one),
        _ => Err(ImageError::PayloadSections { found: found.len() }),
    }
}

fn find_dxe(payload: &[Section]) -> Result<(usize, ExactVolume), ImageError> {
    let mut found = Vec::new();
    for (at, section) in payload.iter().enumerate() {
        if section.section_type_raw() != section_type::FIRMWARE_VOLUME_IMAGE {
            continue;
        }
        let volume = ExactVolume::open(content(section, DXE)?, DXE)?;
        if has_core(&volume) {
            found.push((at, volume));
        }
    }
    let number = found.len();
    match (number, found.pop()) {
        (1, Some(one)) => Ok(one),
        _ => Err(ImageError::DxeVolumes { found: number }),
    }
}

fn has_core(volume: &ExactVolume) -> bool {
    volume
        .files()
        .any(|file| file.file_type_raw() == file_type::DXE_CORE)
}

/// Writes sections one behind the other.
fn join(sections: &[Section]) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    for section in sections {
        bytes.resize(bytes.len().next_multiple_of(SECTION_ALIGN), 0);
        let len = bytes.len();
        bytes.extend(section.serialize().map_err(|cause| ImageError::Section {
            what: PAYLOAD,
            len,
            cause,
        })?);
    }
    Ok(bytes)
}

/// Makes a section like the one with this header, but with other content.
fn new_section(
    what: &'static str,
    mut header: SectionHeader,
    content: Vec<u8>,
) -> Result<Section, ImageError> {
    let len = content.len();
    let failed = |cause| ImageError::Section { what, len, cause };
    header.set_content_size(len).map_err(failed)?;
    Section::new_from_header_with_data(header, content).map_err(failed)
}

fn content<'a>(section: &'a Section, what: &'static str) -> Result<&'a [u8], ImageError> {
    section
        .try_content_as_slice()
        .map_err(|cause| ImageError::Section { what, len: 0, cause })
}

/// The index of the only PE32 section of a driver's file.
fn pe32_at(file: &File, id: &FileId) -> Result<usize, ImageError> {
    let sections = file.sections();
    let opaque = sections
        .iter()
        .find(|section| section.encapsulation() || section.section_type_raw() == section_type::TE);
    if let Some(opaque) = opaque {
        return Err(ImageError::UnsupportedSection {
            file: id.clone(),
            section_type: opaque.section_type_raw(),
        });
    }
    let pe32 = sections
        .iter()
        .enumerate()
        .filter(|(_, section)| section.section_type_raw() == section_type::PE32);
    let found: Vec<_> = pe32.map(|(at, _)| at).collect();
    match found[..] {
        [at] => Ok(at),
        _ => Err(ImageError::PeSections {
            file: id.clone(),
            found: found.len(),
        }),
    }
}

fn pe32<'a>(file: &'a File, id: &FileId) -> Result<&'a [u8], ImageError> {
    let at = pe32_at(file, id)?;
    file.sections()
        .get(at)
        .map_or(Ok(&[]), |section| content(section, "a PE32 section"))
}

fn replace_pe32(file: &mut File, id: &FileId, pe: Vec<u8>) -> Result<(), ImageError> {
    let at = pe32_at(file, id)?;
    if let Some(section) = file.sections_mut().get_mut(at) {
        *section = new_section("a PE32 section", section.header().clone(), pe)?;
    }
    Ok(())
}
