//! The block that edk2's SMM IPL shares with its SMM core: how a request reaches traditional SMM without the firmware's
//! help (edk2 `MdeModulePkg/Core/PiSmmCore/PiSmmCorePrivateData.h`). An unsafe island (`docs/unsafe.md`).
//!
//! The request's address and size are written into the block, then an SMI is raised through the chipset's ports. The
//! SMM core, on every SMI, looks whether there is a request; when it has served it, it sets the address to null and
//! writes the response's size and status.
//!
//! No table has the block's address. It is part of the image that installed `EFI_MM_COMMUNICATION_PROTOCOL`, and
//! starts with a signature; the rest of its fields distinguish it from other memory with the same bytes.

use alloc::vec::Vec;
use core::ptr;
use mm_comm::SharedRegion;
use mm_wire::{AddressError, EfiStatus};
use patina::BinaryGuid;
use patina::component::service::uefi_services::protocol::{ProtocolError, ProtocolServices};
use patina::error::EfiError;
use patina::uefi::boot_services::BootServices;
use patina::uefi::boot_services::tpl::Tpl;
use thiserror::Error;
use uefi_app::Firmware;
use uefi_app::firmware::LoadedImage;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `EFI_MM_COMMUNICATION_PROTOCOL` (PI 1.9, volume 4, 5.7.1).
const COMMUNICATION: BinaryGuid = BinaryGuid::from_bytes(&mm_wire::protocol::COMMUNICATION.to_bytes());

/// How often `pause` is executed before a request counts as not taken. Under QEMU's TCG one is enough.
const MAX_PAUSES: u32 = 100_000;

/// The fields of `SMM_CORE_PRIVATE_DATA` that every edk2 since 2012 has, 104 bytes.
#[derive(Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Block {
    /// [`Block::SIGNATURE`].
    signature: U64,
    /// The handle of the image that the block is in.
    ipl_image_handle: U64,
    smram_range_count: U64,
    smram_ranges: U64,
    smm_entry_point: U64,
    /// A C `BOOLEAN`: the SMM core can be reached.
    entry_point_registered: u8,
    /// A C `BOOLEAN`: the SMM core runs.
    in_smm: u8,
    padding: [u8; 6],
    smst: U64,
    communication_buffer: U64,
    buffer_size: U64,
    return_status: U64,
    core_image_base: U64,
    core_image_size: U64,
    core_entry_point: U64,
}

impl Block {
    /// `smmc`.
    const SIGNATURE: u64 = 0x636d_6d73;

    const COMMUNICATION_BUFFER: usize = core::mem::offset_of!(Self, communication_buffer);
    const BUFFER_SIZE: usize = core::mem::offset_of!(Self, buffer_size);
    const RETURN_STATUS: usize = core::mem::offset_of!(Self, return_status);

    /// Whether these bytes are the block of the image `ipl`, and no request is in progress.
    fn belongs_to(&self, ipl: &LoadedImage) -> bool {
        let core_offset = self
            .core_entry_point
            .get()
            .checked_sub(self.core_image_base.get());
        self.signature == Self::SIGNATURE
            && self.ipl_image_handle == ipl.handle.addr() as u64
            && (1..=64).contains(&self.smram_range_count.get())
            && [self.smram_ranges, self.smm_entry_point, self.smst]
                .iter()
                .all(|pointer| *pointer != 0)
            && self.entry_point_registered == 1
            && self.in_smm == 0
            && self.communication_buffer == 0
            && core_offset.is_some_and(|offset| offset < self.core_image_size.get())
    }
}

/// Why the SMM core cannot be reached.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum FindError {
    /// The firmware has no traditional SMM.
    #[error("platform: no EFI_MM_COMMUNICATION_PROTOCOL: {0:?}")]
    NoProtocol(ProtocolError),
    /// Boot services do not say which images are loaded.
    #[error("platform: the loaded images are unknown: {0:?}")]
    NoImages(EfiError),
    /// The protocol is not part of an image.
    #[error("platform: the interface of EFI_MM_COMMUNICATION_PROTOCOL at {0:#x} is in no loaded image")]
    NoOwner(usize),
    /// The image does not contain the block, or contains several that look like it.
    #[error(
        "platform: the image at {base:#x} ({len} bytes) has {found} blocks like edk2's SMM_CORE_PRIVATE_DATA"
    )]
    NotOneBlock {
        /// Where the image starts.
        base: usize,
        /// Its bytes.
        len: usize,
        /// How many places look like the block.
        found: usize,
    },
    /// The block cannot be used.
    #[error(transparent)]
    Region(#[from] AddressError),
}

/// Why a request has no response.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum RequestError<E> {
    /// The SMI could not be raised.
    #[error("the SMI was not raised: {0}")]
    Trigger(E),
    /// The SMI was raised, and the SMM core did not take the request.
    #[error("MM did not process the request: it is still announced after {MAX_PAUSES} pauses")]
    NotTaken,
    /// The SMM core refused the request, or no handler served it.
    #[error("MM returned {0}")]
    Mm(EfiStatus),
}

/// The shared block of a running SMM core.
#[derive(Debug)]
pub(crate) struct SmmCorePrivate {
    /// Invariant: as long as [`Block`], so that no access to a field can fail.
    region: SharedRegion,
}

impl SmmCorePrivate {
    /// Finds the block.
    ///
    /// # Errors
    ///
    /// [`FindError`] says where the search failed.
    pub(crate) fn find(firmware: Firmware, protocols: &dyn ProtocolServices) -> Result<Self, FindError> {
        let interface = protocols
            .locate_interface(COMMUNICATION)
            .map_err(FindError::NoProtocol)?
            .as_raw()
            .addr();
        let images = firmware.loaded_images().map_err(FindError::NoImages)?;
        let ipl = images
            .iter()
            .find(|image| image.contains(interface))
            .ok_or(FindError::NoOwner(interface))?;
        let content = copy(ipl);
        let offsets: Vec<usize> = (0..content.len())
            .step_by(align_of::<u64>())
            .filter(|offset| {
                content
                    .get(*offset..)
                    .and_then(|bytes| Block::ref_from_prefix(bytes).ok())
                    .is_some_and(|(block, _)| block.belongs_to(ipl))
            })
            .collect();
        let [offset] = offsets[..] else {
            return Err(FindError::NotOneBlock {
                base: ipl.base,
                len: ipl.len,
                found: offsets.len(),
            });
        };
        let block = ptr::with_exposed_provenance_mut::<u8>(ipl.base).wrapping_add(offset);
        // SAFETY: the bytes are a variable of the IPL, which writes to it too, and were read a moment ago. The image is
        // a runtime driver's, which stays loaded. No Rust reference into it exists.
        let region = unsafe { SharedRegion::new(block, size_of::<Block>()) }?;
        log::debug!("SMM_CORE_PRIVATE_DATA at {block:p}, {offset:#x} behind the IPL's start");
        Ok(Self { region })
    }

    /// Makes the SMM core serve the request at `buffer`, `len` bytes with their header. Returns the
    /// size of the response in the same place, header included, as the SMM core reports it: it is
    /// not checked.
    ///
    /// `raise` raises one SMI and `pause` lets it be taken. Nothing else runs meanwhile: a
    /// notification that sends a message would put its request into the same block.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; the request is withdrawn if the SMM core did not take it.
    pub(crate) fn request<E>(
        &self,
        boot: &impl BootServices,
        buffer: *mut u8,
        len: usize,
        raise: impl FnOnce() -> Result<(), E>,
        pause: impl Fn(),
    ) -> Result<u64, RequestError<E>> {
        let _undisturbed = boot.raise_tpl_guarded(Tpl::NOTIFY);
        self.request_alone(buffer, len, raise, pause)
    }

    /// Like [`Self::request`], at the TPL of now: for callers that know that no notification talks to MM.
    pub(crate) fn request_alone<E>(
        &self,
        buffer: *mut u8,
        len: usize,
        raise: impl FnOnce() -> Result<(), E>,
        pause: impl Fn(),
    ) -> Result<u64, RequestError<E>> {
        self.write(Block::BUFFER_SIZE, len as u64);
        self.write(Block::COMMUNICATION_BUFFER, buffer.expose_provenance() as u64);
        let raised = raise().map_err(RequestError::Trigger);
        let taken = raised.and_then(|()| self.await_response(pause));
        self.write(Block::COMMUNICATION_BUFFER, 0);
        taken?;
        let status = EfiStatus(self.read(Block::RETURN_STATUS));
        if status.as_error().is_some() {
            return Err(RequestError::Mm(status));
        }
        Ok(self.read(Block::BUFFER_SIZE))
    }

    fn await_response<E>(&self, pause: impl Fn()) -> Result<(), RequestError<E>> {
        for _ in 0..MAX_PAUSES {
            pause();
            if self.read(Block::COMMUNICATION_BUFFER) == 0 {
                return Ok(());
            }
        }
        Err(RequestError::NotTaken)
    }

    fn read(&self, offset: usize) -> u64 {
        let word = self.region.read_words(offset);
        debug_assert!(
            word.is_some(),
            "the region is as long as the block, whose fields are aligned"
        );
        let [word] = word.unwrap_or_default();
        word
    }

    fn write(&self, offset: usize, value: u64) {
        let written = self.region.write_words(offset, &[value]);
        debug_assert!(
            written,
            "the region is as long as the block, whose fields are aligned"
        );
    }
}

/// Copies an image out of memory, up to its last whole word.
fn copy(image: &LoadedImage) -> Vec<u8> {
    let start = ptr::with_exposed_provenance::<u64>(image.base);
    (0..image.len.checked_div(size_of::<u64>()).unwrap_or(0))
        .map(|index| start.wrapping_add(index))
        // SAFETY: the firmware says that the image takes these bytes, which are mapped readable: at most its code is
        // protected against writes and its data against execution. An image starts on a page, so words are aligned.
        .map(|word| unsafe { word.read_volatile() })
        .flat_map(u64::to_ne_bytes)
        .collect()
}
