//! Reads the firmware's tables, protocols, images and memory map. An unsafe island
//! (`docs/unsafe.md`).

use super::path;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;
use mm_doctor::Memory;
use mm_doctor::facts::{Mapped, Protocol};
use mm_doctor::paging::{At, Map, Paging, Tables};
use mm_wire::message::variable;
use mm_wire::{Guid, protocol};
use uefi::boot::{self, MemoryType, SearchType};
use uefi::fs::FileSystem;
use uefi::mem::memory_map::MemoryMap as _;
use uefi::proto::device_path::text::{AllowShortcuts, DisplayOnly};
use uefi::proto::loaded_image::LoadedImage;
use uefi::{Handle, Status, system, table};

/// `EFI_MM_COMMUNICATION_PROTOCOL`, `...2` and `...3`.
pub(super) const COMMUNICATION: [Guid; 3] = [
    protocol::COMMUNICATION,
    protocol::COMMUNICATION2,
    protocol::COMMUNICATION3,
];

/// The protocols for MM (MdePkg/MdePkg.dec, MdeModulePkg/MdeModulePkg.dec; the supervisor's:
/// Project Mu).
const PROTOCOLS: [(&str, Guid); 11] = [
    ("MM communication", COMMUNICATION[0]),
    ("MM communication 2", COMMUNICATION[1]),
    ("MM communication 3", COMMUNICATION[2]),
    ("MM control", protocol::CONTROL),
    ("MM access", protocol::ACCESS),
    ("MM base", protocol::BASE),
    ("comm-buffer update", mm_wire::hob::UPDATE_PROTOCOL_GUID),
    (
        "MM supervisor's communication",
        protocol::SUPERVISOR_COMMUNICATION,
    ),
    ("variable service in MM", variable::GUID),
    ("variable writes in MM", variable::WRITE_READY_GUID),
    ("DXE MM ready to lock", protocol::READY_TO_LOCK),
];

/// The address of a configuration table.
pub(super) fn configuration_table(guid: Guid) -> Option<u64> {
    system::with_config_table(|tables| {
        let found = tables.iter().find(|table| table.guid == guid)?;
        Some(found.address.expose_provenance() as u64)
    })
}

/// The first interface of a protocol; null for one without an interface, `None` if it is not
/// installed.
pub(super) fn interface(protocol: Guid) -> Option<*mut c_void> {
    let handles = boot::locate_handle_buffer(SearchType::ByProtocol(&protocol)).ok()?;
    let handle = *handles.first()?;
    let mut interface = ptr::null_mut();
    let system_table = table::system_table_raw()?;
    // SAFETY: the system table is valid while boot services are, which an application does not end.
    let services = unsafe { (*system_table.as_ptr()).boot_services };
    // SAFETY: the table of boot services is valid as long as the system table is.
    let handle_protocol = unsafe { (*services).handle_protocol };
    // SAFETY: a handle that was located just now, a GUID, and room for one pointer.
    let status = unsafe { handle_protocol(handle.as_ptr(), &raw const protocol, &raw mut interface) };
    (status == Status::SUCCESS).then_some(interface)
}

/// A loaded image: its name and its addresses.
struct Image {
    name: String,
    start: u64,
    len: u64,
}

fn images() -> Vec<Image> {
    let handles = boot::find_handles::<LoadedImage>().unwrap_or_default();
    handles.into_iter().filter_map(image).collect()
}

fn image(handle: Handle) -> Option<Image> {
    let parameters = boot::OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: it is only read, and nothing unloads the image meanwhile: the application does not
    // return in between.
    let image =
        unsafe { boot::open_protocol::<LoadedImage>(parameters, boot::OpenProtocolAttributes::GetProtocol) }
            .ok()?;
    let (base, len) = image.info();
    let name = image
        .file_path()
        .and_then(|path| path.to_string16(DisplayOnly(true), AllowShortcuts(true)).ok())
        .map_or_else(
            || "an image without a path, such as the DXE core".to_string(),
            |path| path.to_string(),
        );
    Some(Image {
        name,
        start: base.expose_provenance() as u64,
        len,
    })
}

/// The protocols of [`PROTOCOLS`] that are installed.
///
/// The interface is in the image's own data, or, if it was allocated, its first function is in the
/// image's code.
pub(super) fn protocols(memory: &Physical) -> Vec<Protocol> {
    let images = images();
    let owner = |address: u64| {
        let is_in = |image: &&Image| {
            address
                .checked_sub(image.start)
                .is_some_and(|offset| offset < image.len)
        };
        images.iter().find(is_in).map(|image| image.name.clone())
    };
    PROTOCOLS
        .into_iter()
        .filter_map(|(name, guid)| {
            let interface = interface(guid)?;
            let address = interface.expose_provenance() as u64;
            let first_function = || owner(memory.value(address)?);
            let image = owner(address).or_else(first_function);
            Some(Protocol {
                name,
                guid: guid.to_string(),
                is_marker: interface.is_null(),
                image: image.filter(|_| !interface.is_null()).unwrap_or_default(),
            })
        })
        .collect()
}

/// The UEFI memory map as it was when the doctor started.
struct MemoryMap(Vec<Piece>);

struct Piece {
    kind: MemoryType,
    attributes: u64,
    start: u64,
    end: u64,
}

impl MemoryMap {
    fn read() -> Self {
        let Ok(map) = boot::memory_map(MemoryType::LOADER_DATA) else {
            return Self(Vec::new());
        };
        let pieces = map.entries().map(|entry| Piece {
            kind: entry.ty,
            attributes: entry.att.bits(),
            start: entry.phys_start,
            end: entry
                .phys_start
                .saturating_add(entry.page_count.saturating_mul(mm_wire::PAGE_LEN as u64)),
        });
        let mut pieces: Vec<Piece> = pieces.collect();
        pieces.sort_unstable_by_key(|piece| piece.start);
        Self(pieces)
    }

    fn at(&self, address: u64) -> Option<&Piece> {
        self.0
            .iter()
            .find(|piece| (piece.start..piece.end).contains(&address))
    }

    /// What the map says about a range.
    fn mapped(&self, start: u64, len: u64) -> Mapped {
        let Some(first) = self.at(start) else {
            return Mapped::default();
        };
        let end = start.saturating_add(len);
        let mut reached = first.end;
        // Those that all of the range has.
        let mut attributes = first.attributes;
        while reached < end {
            match self.at(reached) {
                Some(next) if next.kind == first.kind => {
                    reached = next.end;
                    attributes &= next.attributes;
                }
                _ => break,
            }
        }
        Mapped {
            kind: name(first.kind),
            attributes,
            whole: reached >= end,
            pages: None,
        }
    }
}

impl Tables for MemoryMap {
    fn entry(&self, at: At) -> Option<u64> {
        match at {
            At::Physical(address) => self.value(address),
            At::Virtual(address) => {
                let at = ptr::with_exposed_provenance::<u64>(usize::try_from(address).ok()?);
                // SAFETY: the entry of the first table for itself maps the tables there, as far as
                // the entries above, which were read before, say that there is a table.
                Some(unsafe { at.read_volatile() })
            }
        }
    }
}

/// Physical memory: the memory of the memory map that the page tables map one to one.
pub(super) struct Physical {
    map: MemoryMap,
    paging: Option<Map>,
}

impl Physical {
    pub(super) fn new(paging: Option<Paging>) -> Self {
        let map = MemoryMap::read();
        let paging = paging.map(|paging| Map::new(paging, &map));
        // Page tables in memory that the map does not have cannot be read.
        let here = (&raw const map).expose_provenance() as u64;
        let is_known = |paging: &Map| paging.page(&map, here).is_some_and(|page| page.physical == here);
        Self {
            paging: paging.filter(is_known),
            map,
        }
    }

    /// Which page tables are in use; empty if they cannot be read.
    pub(super) fn paging(&self) -> String {
        self.paging
            .map_or(String::new(), |map| map.paging.name().to_string())
    }

    /// What the memory map and the page tables say about a range.
    pub(super) fn mapped(&self, start: u64, len: u64) -> Mapped {
        Mapped {
            pages: self.paging.map(|paging| paging.pages(&self.map, start, len)),
            ..self.map.mapped(start, len)
        }
    }
}

impl Memory for Physical {
    /// Memory that a HOB announces wrongly must not be read: it may not be mapped.
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let is_mapped = self.paging.is_none_or(|paging| {
            let pages = paging.pages(&self.map, address, out.len() as u64);
            pages.elsewhere.is_none() && pages.memory != "device memory"
        });
        is_mapped && self.map.read(address, out)
    }
}

fn name(kind: MemoryType) -> String {
    match kind {
        MemoryType::RESERVED => "Reserved",
        MemoryType::LOADER_CODE => "LoaderCode",
        MemoryType::LOADER_DATA => "LoaderData",
        MemoryType::BOOT_SERVICES_CODE => "BootServicesCode",
        MemoryType::BOOT_SERVICES_DATA => "BootServicesData",
        MemoryType::RUNTIME_SERVICES_CODE => "RuntimeServicesCode",
        MemoryType::RUNTIME_SERVICES_DATA => "RuntimeServicesData",
        MemoryType::CONVENTIONAL => "Conventional",
        MemoryType::UNUSABLE => "Unusable",
        MemoryType::ACPI_RECLAIM => "AcpiReclaim",
        MemoryType::ACPI_NON_VOLATILE => "AcpiNonVolatile",
        MemoryType::MMIO => "Mmio",
        MemoryType::MMIO_PORT_SPACE => "MmioPortSpace",
        other => return alloc::format!("memory type {:#x}", other.0),
    }
    .to_string()
}

impl Memory for MemoryMap {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        // Piece by piece: tables may cross from one into the next.
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = address.checked_add(done as u64) else {
                return false;
            };
            let Some(piece) = self.at(at).filter(|piece| is_memory(piece.kind)) else {
                return false;
            };
            let room = usize::try_from(piece.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let Ok(start) = usize::try_from(at) else {
                return false;
            };
            let len = rest.len().min(room);
            for (offset, byte) in rest.iter_mut().take(len).enumerate() {
                let from = ptr::with_exposed_provenance::<u8>(start.saturating_add(offset));
                // SAFETY: the memory map has this byte as memory that is in use, and the firmware
                // maps such memory one to one while boot services are there (UEFI 2.11, 2.3.4). It
                // is read as volatile: others may write to it.
                *byte = unsafe { from.read_volatile() };
            }
            done = done.saturating_add(len);
        }
        true
    }
}

/// Memory that can be read without effect. Unused memory may be unmapped.
fn is_memory(kind: MemoryType) -> bool {
    !matches!(
        kind,
        MemoryType::CONVENTIONAL | MemoryType::UNUSABLE | MemoryType::MMIO | MemoryType::MMIO_PORT_SPACE
    )
}

fn volume() -> Result<FileSystem, String> {
    boot::get_image_file_system(boot::image_handle())
        .map(FileSystem::new)
        .map_err(|error| error.to_string())
}

/// Reads a file of the application's volume.
pub(super) fn read_file(name: &str) -> Result<Vec<u8>, String> {
    let path = path(name)?;
    volume()?.read(&*path).map_err(|error| error.to_string())
}

/// Writes a file of the application's volume, and reads it back.
pub(super) fn write_file(name: &str, bytes: &[u8]) -> Result<(), String> {
    let path = path(name)?;
    volume()?
        .write(&*path, bytes)
        .map_err(|error| error.to_string())?;
    if read_file(name)? == bytes {
        Ok(())
    } else {
        Err("it is not what was written".to_string())
    }
}

/// Waits for any key. Without a keyboard it returns at once.
pub(super) fn wait_for_key() {
    let event = system::with_stdin(|input| input.wait_for_key_event());
    if let Ok(event) = event
        && boot::wait_for_event(&[event]).is_ok()
    {
        // The key does not matter.
        let _ = system::with_stdin(|input| input.read_key());
    }
}
