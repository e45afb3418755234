//! Requests to the MM supervisor (Project Mu
//! `MmSupervisorPkg/Include/Guid/MmSupervisorRequestData.h`).
//!
//! | field | offset | size |
//! |---|---|---|
//! | signature `MSUP` | 0 | 4 |
//! | revision | 4 | 4 |
//! | request | 8 | 4 |
//! | reserved | 12 | 4 |
//! | result, `EFI_STATUS` | 16 | 8 |
//!
//! What follows, from offset 24:
//!
//! | request | in the request | in the response |
//! |---|---|---|
//! | [`REQUEST_UNBLOCK_MEMORY`] | [`UnblockMemory`], 56 bytes | the same |
//! | [`REQUEST_FETCH_POLICY`] | room for the policy, and [`POLICY_SLACK`] bytes more | the policy, which starts with [`PolicyHeader`] |
//! | [`REQUEST_VERSION`] | room for [`VersionInfo`], 16 bytes | [`VersionInfo`]; the response is as long as the request |
//! | [`REQUEST_COMM_UPDATE`] | [`CommUpdate`], 224 bytes; releases up to v23.0.3: [`SharedCommUpdate`], 168 bytes | the same |
//!
//! A request without its room fails: the client sees `EFI_NOT_FOUND`
//! (`MmSupervisorPkg/Core/Request/RequestDispatcher.c`).

use crate::PAGE_LEN;
use crate::hob::CommBufferPlace;
use uguid::{Guid, guid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The GUID under which the supervisor takes requests, `gMmSupervisorRequestHandlerGuid`.
pub const GUID: Guid = guid!("8c633b23-1260-4ea6-830f-7ddc97382111");

/// The first four bytes of every request.
pub const SIGNATURE: [u8; 4] = *b"MSUP";

/// The revision of the request layout.
pub const REVISION: u32 = 1;

/// Let MM reach memory that is not a comm buffer.
pub const REQUEST_UNBLOCK_MEMORY: u32 = 1;
/// Ask for the security policy. After this the supervisor accepts no change of its rules.
pub const REQUEST_FETCH_POLICY: u32 = 2;
/// Move the comm buffers.
pub const REQUEST_COMM_UPDATE: u32 = 4;

/// Ask for the supervisor's version.
pub const REQUEST_VERSION: u32 = 3;

/// How many bytes more than the policy a request for it must have room for: the supervisor counts
/// the request's header twice (`MmSupervisorPkg/Core/Request/FetchPolicy.c`).
pub const POLICY_SLACK: usize = size_of::<RequestHeader>();

/// The shortest request for the version: header and room for [`VersionInfo`].
pub const VERSION_REQUEST_LEN: usize = size_of::<RequestHeader>().saturating_add(size_of::<VersionInfo>());

/// A request for the version, with room for the response.
#[must_use]
pub fn version_request() -> [u8; VERSION_REQUEST_LEN] {
    let mut request = [0; VERSION_REQUEST_LEN];
    let header = RequestHeader::new(REQUEST_VERSION);
    header
        .as_bytes()
        .iter()
        .zip(&mut request)
        .for_each(|(from, to)| *to = *from);
    request
}

/// The fields that every request and every response starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 4],
    /// [`REVISION`]; the supervisor refuses any other.
    pub revision: U32,
    /// What is asked for.
    pub request: U32,
    /// Zero.
    pub reserved: U32,
    /// The `EFI_STATUS` of the request, in the response.
    pub result: U64,
}

impl RequestHeader {
    /// A request of this revision.
    #[must_use]
    pub fn new(request: u32) -> Self {
        Self {
            signature: SIGNATURE,
            revision: REVISION.into(),
            request: request.into(),
            reserved: 0.into(),
            result: 0.into(),
        }
    }
}

/// What the response to [`REQUEST_VERSION`] appends to the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VersionInfo {
    /// The supervisor's version.
    pub version: U32,
    /// Its patch level.
    pub patch_level: U32,
    /// The highest request that it knows.
    pub max_request_level: U64,
}

/// A memory region and the GUID of the driver that asks for it,
/// `MM_SUPERVISOR_UNBLOCK_MEMORY_PARAMS`: an `EFI_MEMORY_DESCRIPTOR` (40 bytes), then a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnblockMemory {
    /// `EFI_MEMORY_TYPE`.
    pub memory_type: U32,
    /// Padding of the C struct.
    pub padding: U32,
    /// Where the memory starts.
    pub physical_start: U64,
    /// Not used.
    pub virtual_start: U64,
    /// Its length in 4096-byte pages.
    pub pages: U64,
    /// `EFI_MEMORY_...` attributes.
    pub attributes: U64,
    /// The GUID of the driver that asks.
    pub identifier: [u8; 16],
}

impl UnblockMemory {
    /// Describes memory of the type `EfiRuntimeServicesData`, for `identifier`.
    #[must_use]
    pub fn runtime_data(physical_start: u64, pages: u64, identifier: Guid) -> Self {
        const EFI_RUNTIME_SERVICES_DATA: u32 = 6;
        Self {
            memory_type: EFI_RUNTIME_SERVICES_DATA.into(),
            padding: 0.into(),
            physical_start: physical_start.into(),
            virtual_start: 0.into(),
            pages: pages.into(),
            attributes: 0.into(),
            identifier: identifier.to_bytes(),
        }
    }
}

/// The attributes that the supervisor wants comm buffers and mailboxes to have: `EFI_MEMORY_XP` and
/// `EFI_MEMORY_SP`.
pub const COMM_BUFFER_ATTRIBUTES: u64 = 0x4000 | 0x4_0000;

/// New places for the comm buffers and their mailboxes, `MM_SUPERVISOR_COMM_UPDATE_BUFFER`: the
/// supervisor's first, then the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommUpdate {
    /// The mailboxes.
    pub mailboxes: [UnblockMemory; 2],
    /// The buffers.
    pub buffers: [UnblockMemory; 2],
}

impl CommUpdate {
    /// Describes the move of both buffers as the supervisor wants it: runtime services data with
    /// [`COMM_BUFFER_ATTRIBUTES`], a page for each mailbox. `None` if one has no mailbox at the
    /// start of a page.
    ///
    /// The supervisor takes only buffers as large as those that they replace.
    #[must_use]
    pub fn to(supervisor: CommBufferPlace, users: CommBufferPlace, identifier: Guid) -> Option<Self> {
        Some(Self {
            mailboxes: [
                mailbox_at(supervisor, identifier)?,
                mailbox_at(users, identifier)?,
            ],
            buffers: [buffer_at(supervisor, identifier), buffer_at(users, identifier)],
        })
    }
}

/// New places for the comm buffers and the mailbox that both share,
/// `MM_SUPERVISOR_COMM_UPDATE_BUFFER` of the releases v20.0.0 to v23.0.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SharedCommUpdate {
    /// The mailbox.
    pub mailbox: UnblockMemory,
    /// The buffers: the supervisor's, then the users'.
    pub buffers: [UnblockMemory; 2],
}

impl SharedCommUpdate {
    /// Like [`CommUpdate::to`], with the mailbox of `users` for both. `None` if it is not at the
    /// start of a page, or not the mailbox of `supervisor` too.
    #[must_use]
    pub fn to(supervisor: CommBufferPlace, users: CommBufferPlace, identifier: Guid) -> Option<Self> {
        (supervisor.mailbox() == users.mailbox()).then_some(())?;
        Some(Self {
            mailbox: mailbox_at(users, identifier)?,
            buffers: [buffer_at(supervisor, identifier), buffer_at(users, identifier)],
        })
    }
}

/// The memory of a comm buffer or mailbox, as the supervisor wants it described.
fn comm_memory(address: u64, pages: u64, identifier: Guid) -> UnblockMemory {
    UnblockMemory {
        virtual_start: address.into(),
        attributes: COMM_BUFFER_ATTRIBUTES.into(),
        ..UnblockMemory::runtime_data(address, pages, identifier)
    }
}

fn buffer_at(place: CommBufferPlace, identifier: Guid) -> UnblockMemory {
    let region = place.region();
    // Leaves no remainder: a comm buffer consists of whole pages.
    let pages = region.len().div_ceil(PAGE_LEN as u64);
    comm_memory(region.start(), pages, identifier)
}

fn mailbox_at(place: CommBufferPlace, identifier: Guid) -> Option<UnblockMemory> {
    let address = place.mailbox()?;
    address
        .is_multiple_of(PAGE_LEN as u64)
        .then(|| comm_memory(address, 1, identifier))
}

/// The first fields of a policy, `SMM_SUPV_SECURE_POLICY_DATA_V1_0` (Project Mu
/// `SmmSecurePolicy.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PolicyHeader {
    /// Minor version.
    pub version_minor: U16,
    /// Major version.
    pub version_major: U16,
    /// Bytes of the whole policy.
    pub size: U32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_request_has_room_for_its_response_of_40_bytes() {
        let mut expected = [0; 40];
        expected[..12].copy_from_slice(b"MSUP\x01\0\0\0\x03\0\0\0");
        assert_eq!(version_request(), expected);
        assert_eq!(RequestHeader::new(REQUEST_VERSION).as_bytes(), &expected[..24]);
    }

    #[test]
    fn memory_is_described_by_an_efi_memory_descriptor() {
        let memory = UnblockMemory::runtime_data(0x1122_3000, 5, GUID);
        let mut expected = [0; 56];
        expected[0] = 6;
        expected[8..12].copy_from_slice(&[0x00, 0x30, 0x22, 0x11]);
        expected[24] = 5;
        expected[40..].copy_from_slice(&GUID.to_bytes());
        assert_eq!(memory.as_bytes(), expected);
        assert_eq!(size_of::<CommUpdate>(), 224);
    }

    #[test]
    fn move_describes_buffers_and_mailboxes_with_the_supervisors_attributes() {
        let place = |address, mailbox| CommBufferPlace::new(address, 16, mailbox).unwrap();
        let supervisor = place(0x10_0000, Some(0x20_0000));
        let users = place(0x30_0000, Some(0x40_0000));
        let update = CommUpdate::to(supervisor, users, GUID).unwrap();
        let [[mailbox0, mailbox1], [buffer0, buffer1]] = [update.mailboxes, update.buffers];
        for (memory, address, pages) in [
            (mailbox0, 0x20_0000, 1),
            (mailbox1, 0x40_0000, 1),
            (buffer0, 0x10_0000, 16),
            (buffer1, 0x30_0000, 16),
        ] {
            assert_eq!(
                (memory.physical_start.get(), memory.pages.get()),
                (address, pages)
            );
            // Mapped one to one.
            assert_eq!(memory.virtual_start.get(), address);
            assert_eq!((memory.memory_type.get(), memory.attributes.get()), (6, 0x4_4000));
            assert_eq!(memory.identifier, GUID.to_bytes());
        }
        for mailbox in [None, Some(0x20_0008)] {
            assert_eq!(CommUpdate::to(place(0x10_0000, mailbox), users, GUID), None);
        }
    }

    #[test]
    fn move_of_a_shared_mailbox_names_it_once() {
        let place = |address, mailbox| CommBufferPlace::new(address, 16, Some(mailbox)).unwrap();
        let (supervisor, users) = (place(0x10_0000, 0x40_0000), place(0x30_0000, 0x40_0000));
        let update = SharedCommUpdate::to(supervisor, users, GUID).unwrap();
        let memory = [update.mailbox, update.buffers[0], update.buffers[1]];
        let places = memory.map(|memory| (memory.physical_start.get(), memory.pages.get()));
        assert_eq!(places, [(0x40_0000, 1), (0x10_0000, 16), (0x30_0000, 16)]);
        assert_eq!(size_of::<SharedCommUpdate>(), 168);
        assert_eq!(
            SharedCommUpdate::to(place(0x10_0000, 0x50_0000), users, GUID),
            None
        );
    }
}
