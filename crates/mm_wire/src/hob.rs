//! Where comm buffers are: the data of the HOBs that announce them, and of the protocol that moves
//! one.
//!
//! | source | GUID | data (offset) | length |
//! |---|---|---|---|
//! | comm-buffer HOB, edk2 `MdeModulePkg/Include/Guid/MmCommBuffer.h` | [`COMM_BUFFER_HOB_GUID`] | PhysicalStart u64 @0, NumberOfPages u64 @8, Status u64 @16 | 24 |
//! | comm-region HOB, Project Mu's Q35 platform | [`COMM_REGION_HOB_GUID`] | type u64 @0, address u64 @8, pages u64 @16, in the newer form status u64 @24 | 24 or 32 |
//! | FF-A RX and TX buffers, edk2 `MdeModulePkg/Include/Guid/ArmFfaRxTxBufferInfo.h` | [`FFA_RX_TX_HOB_GUID`] | TX address u64 @0, size u64 @8, RX address u64 @16, size u64 @24, RemapRequired u8 @32, RemapOffset u64 @40 | 48 |
//! | comm-buffer update protocol, Project Mu `MmCommBufferUpdate.h` | [`UPDATE_PROTOCOL_GUID`] | Version u64 @0, PhysicalStart u64 @8, NumberOfPages u64 @16, Status u64 @24 | 32 |
//!
//! Status is the address of the mailbox (see [`crate::mailbox`]). Pages have 4096 bytes.

use crate::address::{AddressError, AddressRange, check_comm_buffer};
use thiserror::Error;
use uguid::{Guid, guid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The configuration table that points to the HOB list, `gEfiHobListGuid`.
pub const HOB_LIST_GUID: Guid = guid!("7739f24c-93d7-11d4-9a3a-0090273fc14d");
/// `gMmCommBufferHobGuid`.
pub const COMM_BUFFER_HOB_GUID: Guid = guid!("6c2a2520-0131-4aee-a750-cc384aace8c6");
/// The GUID of the comm-region HOB.
pub const COMM_REGION_HOB_GUID: Guid = guid!("d4ffc718-fb82-4274-9afc-aa8b1eef5293");
/// `gArmFfaRxTxBufferInfoGuid`.
pub const FFA_RX_TX_HOB_GUID: Guid = guid!("96fd3d26-6fb1-11ef-8c11-f3c9c50231ab");
/// The GUID of the comm-buffer update protocol.
pub const UPDATE_PROTOCOL_GUID: Guid = guid!("2a22e38f-9d1c-49d0-bdce-7ddac16da45d");

/// The start of each HOB, `EFI_HOB_GENERIC_HEADER` (PI 1.9, volume 3, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HobHeader {
    /// The HOB's type.
    pub kind: U16,
    /// Its bytes, with this header.
    pub len: U16,
    /// Zero.
    pub reserved: U32,
}

impl HobHeader {
    const GUID_EXTENSION: u16 = 4;
    const END_OF_LIST: u16 = 0xffff;

    /// Bytes of this HOB, which is where the next one starts. `None` at the end of the list, and
    /// for a HOB that does not cover this header: then the list is damaged, and the next one cannot
    /// be found.
    #[must_use]
    pub fn hob_len(&self) -> Option<usize> {
        let len = usize::from(self.len.get());
        (self.kind.get() != Self::END_OF_LIST && len >= size_of::<Self>()).then_some(len)
    }

    /// Whether a GUID and data follow: [`guid_and_data`].
    #[must_use]
    pub fn is_guid_hob(&self) -> bool {
        self.kind.get() == Self::GUID_EXTENSION
    }
}

/// GUID and data of a GUID HOB, from all of its bytes; `None` if there are too few.
#[must_use]
pub fn guid_and_data(hob: &[u8]) -> Option<(Guid, &[u8])> {
    let (guid, data) = hob.get(size_of::<HobHeader>()..)?.split_first_chunk()?;
    Some((Guid::from_bytes(*guid), data))
}

/// The only version of the update protocol.
pub const UPDATE_VERSION: u64 = 1;

/// Why announced memory cannot be a comm buffer. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaceError {
    /// The data does not have the length of any known form.
    #[error("platform: the data that announces a comm buffer has {found} bytes, not {expected}")]
    Length {
        /// Number of bytes found.
        found: usize,
        /// Number of bytes that the longest form has.
        expected: usize,
    },
    /// The type of a comm-region HOB is neither 0 (supervisor) nor 1 (user).
    #[error("platform: a comm-region HOB has the type {found}, which is neither 0 (supervisor) nor 1 (user)")]
    UnknownOwner {
        /// The type.
        found: u64,
    },
    /// The update protocol has another version.
    #[error("platform: the update protocol has version {found}, not {UPDATE_VERSION}")]
    Version {
        /// The version.
        found: u64,
    },
    /// The buffer has no pages.
    #[error("platform: the announced comm buffer at {address:#x} has no pages")]
    NoPages {
        /// Where it starts.
        address: u64,
    },
    /// The buffer exceeds the address space.
    #[error("platform: {pages} pages from {address:#x} go past the end of the address space")]
    TooManyPages {
        /// Where the buffer starts.
        address: u64,
        /// Its pages.
        pages: u64,
    },
    /// The addresses cannot be those of a comm buffer.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// A comm buffer's memory, as announced.
///
/// Holding one proves that the buffer starts on a page, has at least one, and that neither it nor
/// its mailbox wraps or overlaps the other. It says nothing about what is mapped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommBufferPlace {
    region: AddressRange,
    mailbox: Option<u64>,
}

impl CommBufferPlace {
    /// Checks an announced comm buffer.
    ///
    /// # Errors
    ///
    /// Each [`PlaceError`] names the number that is wrong.
    pub fn new(address: u64, pages: u64, mailbox: Option<u64>) -> Result<Self, PlaceError> {
        if pages == 0 {
            return Err(PlaceError::NoPages { address });
        }
        let len = pages
            .checked_mul(crate::PAGE_LEN as u64)
            .ok_or(PlaceError::TooManyPages { address, pages })?;
        let region = check_comm_buffer(address, len, mailbox)?;
        Ok(Self { region, mailbox })
    }

    /// Where the buffer is.
    #[must_use]
    pub const fn region(&self) -> AddressRange {
        self.region
    }

    /// The mailbox's address, if one was announced.
    #[must_use]
    pub const fn mailbox(&self) -> Option<u64> {
        self.mailbox
    }

    /// Reads the data of a comm-buffer HOB.
    ///
    /// # Errors
    ///
    /// Those of [`Self::new`], and [`PlaceError::Length`] unless there are 24 bytes.
    pub fn of_buffer_hob(data: &[u8]) -> Result<Self, PlaceError> {
        let [address, pages, mailbox] = fields(data)?;
        Self::new(address, pages, Some(mailbox))
    }

    /// Reads the interface of the update protocol.
    ///
    /// # Errors
    ///
    /// Those of [`Self::new`], [`PlaceError::Length`] unless there are 32 bytes, and
    /// [`PlaceError::Version`].
    pub fn of_update(data: &[u8]) -> Result<Self, PlaceError> {
        Self::of_update_words(fields(data)?.map(u64::to_le))
    }

    /// Like [`Self::of_update`], for an interface as the words that it has in memory.
    ///
    /// # Errors
    ///
    /// Those of [`Self::new`], and [`PlaceError::Version`].
    pub fn of_update_words(words: [u64; 4]) -> Result<Self, PlaceError> {
        let [version, address, pages, mailbox] = words.map(u64::from_le);
        if version != UPDATE_VERSION {
            return Err(PlaceError::Version { found: version });
        }
        Self::new(address, pages, Some(mailbox))
    }
}

/// Who owns a comm region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Type 0: requests to the MM supervisor itself.
    Supervisor,
    /// Type 1: messages to handlers.
    User,
}

impl Owner {
    /// The HOB's type, by which platforms also number their comm buffers.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Supervisor => 0,
            Self::User => 1,
        }
    }
}

/// What a comm-region HOB says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommRegion {
    /// Its owner.
    pub owner: Owner,
    /// Where it is. The three-field form does not have a mailbox.
    pub place: CommBufferPlace,
}

impl CommRegion {
    /// Reads the data of a comm-region HOB, of the three-field or of the four-field form.
    ///
    /// # Errors
    ///
    /// Those of [`CommBufferPlace::new`], [`PlaceError::Length`] unless there are 24 or 32 bytes,
    /// and [`PlaceError::UnknownOwner`].
    pub fn of_hob(data: &[u8]) -> Result<Self, PlaceError> {
        let ([owner, address, pages], mailbox) = match fields(data) {
            Ok(three) => (three, None),
            Err(_not_three) => {
                let [owner, address, pages, mailbox] = fields(data)?;
                ([owner, address, pages], Some(mailbox))
            }
        };
        let owner = match owner {
            0 => Owner::Supervisor,
            1 => Owner::User,
            found => return Err(PlaceError::UnknownOwner { found }),
        };
        let place = CommBufferPlace::new(address, pages, mailbox)?;
        Ok(Self { owner, place })
    }
}

/// Where FF-A's RX buffer is, according to the HOB that edk2's `ArmFfaLib` leaves for later phases.
/// It stays mapped in the secure world until the end of the boot.
///
/// `None` if the data is too short, if the buffer was in temporary memory when the HOB was made
/// (`RemapRequired`), or if it is not at least one whole page at an address other than zero.
#[must_use]
pub fn ffa_rx_buffer(data: &[u8]) -> Option<AddressRange> {
    const PAGE_LEN: u64 = crate::PAGE_LEN as u64;
    let (fields, rest) = <[U64; 4]>::read_from_prefix(data).ok()?;
    let [_tx, _tx_len, address, len] = fields.map(U64::get);
    let is_temporary = *rest.first()? != 0;
    let is_page = address != 0 && address.is_multiple_of(PAGE_LEN) && len >= PAGE_LEN;
    AddressRange::new(address, len).filter(|_| is_page && !is_temporary)
}

/// Reads data that consists of exactly `N` 64-bit fields.
fn fields<const N: usize>(data: &[u8]) -> Result<[u64; N], PlaceError> {
    <[U64; N]>::read_from_bytes(data)
        .map(|fields| fields.map(U64::get))
        .map_err(|error| PlaceError::Length {
            found: error.into_src().len(),
            expected: size_of::<[U64; N]>(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A comm-buffer HOB as edk2's Standalone MM IPL builds it: type 4 and length 0x30 in front,
    /// then GUID and data.
    const BUFFER_HOB: [u8; 0x30] = [
        0x04, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x20, 0x25, 0x2a, 0x6c, 0x31, 0x01, 0xee, 0x4a, 0xa7, 0x50, 0xcc, 0x38, 0x4a, 0xac, 0xe8,
        0xc6, //
        0x00, 0x00, 0xe2, 0x7e, 0x00, 0x00, 0x00, 0x00, //
        0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x00, 0x10, 0xe2, 0x7d, 0x00, 0x00, 0x00, 0x00,
    ];

    /// A comm-region HOB of the four-field form; the three-field form ends after 0x30 bytes.
    const REGION_HOB: [u8; 0x38] = [
        0x04, 0x00, 0x38, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x18, 0xc7, 0xff, 0xd4, 0x82, 0xfb, 0x74, 0x42, 0x9a, 0xfc, 0xaa, 0x8b, 0x1e, 0xef, 0x52,
        0x93, //
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x00, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x00, //
        0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x00, 0x00, 0x20, 0x00, 0x01, 0x00, 0x00, 0x00,
    ];

    const UPDATE: [u8; 32] = [
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
        0x00, 0x80, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];

    #[test]
    fn buffer_hob_is_read_field_by_field() {
        let (header, _) = HobHeader::read_from_prefix(&BUFFER_HOB).unwrap();
        assert_eq!((header.hob_len(), header.is_guid_hob()), (Some(0x30), true));
        let (guid, data) = guid_and_data(&BUFFER_HOB).unwrap();
        assert_eq!(guid, COMM_BUFFER_HOB_GUID);
        let place = CommBufferPlace::of_buffer_hob(data).unwrap();
        assert_eq!(
            place.region(),
            AddressRange::new(0x7ee2_0000, 512 * 1024).unwrap()
        );
        assert_eq!(place.mailbox(), Some(0x7de2_1000));
    }

    #[test]
    fn only_type_4_is_a_guid_hob() {
        for kind in [0, 3, 5, 0xffff] {
            let header = HobHeader {
                kind: kind.into(),
                len: 24.into(),
                reserved: 0.into(),
            };
            assert!(!header.is_guid_hob(), "type {kind}");
        }
    }

    #[test]
    fn end_and_damage_of_a_hob_list_end_it() {
        let len = |kind: u16, len: u16| {
            let header = HobHeader {
                kind: kind.into(),
                len: len.into(),
                reserved: 0.into(),
            };
            header.hob_len()
        };
        assert_eq!(len(1, 8), Some(8));
        assert_eq!(len(1, 7), None);
        assert_eq!(len(0xffff, 8), None);
        assert_eq!(guid_and_data(&BUFFER_HOB[..23]), None);
        let (_, data) = guid_and_data(&BUFFER_HOB[..24]).unwrap();
        assert!(data.is_empty());
    }

    #[test]
    fn region_hob_is_read_in_both_forms() {
        assert_eq!(REGION_HOB[8..24], COMM_REGION_HOB_GUID.to_bytes());
        let four = CommRegion::of_hob(&REGION_HOB[24..]).unwrap();
        assert_eq!(four.owner, Owner::User);
        assert_eq!(
            four.place.region(),
            AddressRange::new(0x1_0010_0000, 0x1_0000).unwrap()
        );
        assert_eq!(four.place.mailbox(), Some(0x1_0020_0000));
        let three = CommRegion::of_hob(&REGION_HOB[24..48]).unwrap();
        assert_eq!(three.place.region(), four.place.region());
        assert_eq!(three.place.mailbox(), None);
    }

    #[test]
    fn owner_has_the_number_of_its_hob() {
        for (number, owner) in [(0, Owner::Supervisor), (1, Owner::User)] {
            let mut hob = REGION_HOB;
            hob[24] = number;
            assert_eq!(
                CommRegion::of_hob(&hob[24..]).map(|region| region.owner),
                Ok(owner)
            );
            assert_eq!(owner.number(), number);
        }
    }

    #[test]
    fn update_is_read_and_its_version_checked() {
        let place = CommBufferPlace::of_update(&UPDATE).unwrap();
        assert_eq!(place.region(), AddressRange::new(0x30_0000, 0x8000).unwrap());
        assert_eq!(place.mailbox(), Some(0x30_8000));
        let mut newer = UPDATE;
        newer[0] = 2;
        assert_eq!(
            CommBufferPlace::of_update(&newer),
            Err(PlaceError::Version { found: 2 })
        );
    }

    #[test]
    fn rx_buffer_is_read_from_the_ffa_hob() {
        let hob = |rx: u64, rx_len: u64, remap: u8| {
            let mut data = [0; 48];
            let fields = [0x4000_1000, 0x1000, rx, rx_len];
            for (field, value) in data.chunks_exact_mut(8).zip(fields) {
                field.copy_from_slice(&value.to_le_bytes());
            }
            data[32] = remap;
            data
        };
        assert_eq!(
            FFA_RX_TX_HOB_GUID.to_bytes()[..8],
            [0x26, 0x3d, 0xfd, 0x96, 0xb1, 0x6f, 0xef, 0x11]
        );
        let good = hob(0x4000_2000, 0x1000, 0);
        let range = AddressRange::new(0x4000_2000, 0x1000);
        assert_eq!(ffa_rx_buffer(&good), range);
        // The first 33 bytes are enough.
        assert_eq!(ffa_rx_buffer(&good[..33]), range);
        assert_eq!(ffa_rx_buffer(&good[..32]), None);
        assert_eq!(ffa_rx_buffer(&[]), None);
        for (rx, len, remap) in [
            (0x4000_2000, 0x1000, 1),
            (0x4000_2000, 0xfff, 0),
            (0x4000_2000, 0, 0),
            (0x4000_2008, 0x1000, 0),
            (0, 0x1000, 0),
            (u64::MAX - 0xfff, 0x2000, 0),
        ] {
            assert_eq!(
                ffa_rx_buffer(&hob(rx, len, remap)),
                None,
                "{rx:#x} {len:#x} {remap}"
            );
        }
        assert_eq!(
            ffa_rx_buffer(&hob(0x4000_2000, 0x1_0000, 0)),
            AddressRange::new(0x4000_2000, 0x1_0000)
        );
    }

    #[test]
    fn other_lengths_are_refused_with_both_numbers() {
        for found in (0..80).filter(|len| *len != 24) {
            let error = CommBufferPlace::of_buffer_hob(&[0; 80][..found]).unwrap_err();
            assert_eq!(error, PlaceError::Length { found, expected: 24 });
        }
        for found in (0..80).filter(|len| ![24, 32].contains(len)) {
            let error = CommRegion::of_hob(&[0; 80][..found]).unwrap_err();
            assert_eq!(error, PlaceError::Length { found, expected: 32 });
        }
        let error = CommBufferPlace::of_update(&UPDATE[..31]).unwrap_err();
        assert_eq!(
            error,
            PlaceError::Length {
                found: 31,
                expected: 32
            }
        );
    }

    #[test]
    fn unknown_owner_is_refused_with_its_number() {
        let mut hob = REGION_HOB;
        hob[24..32].copy_from_slice(&(1_u64 << 32).to_le_bytes());
        assert_eq!(
            CommRegion::of_hob(&hob[24..]),
            Err(PlaceError::UnknownOwner { found: 1 << 32 })
        );
    }

    #[test]
    fn every_bad_field_is_refused_with_its_number() {
        let last_page = u64::MAX - 4095;
        let cases = [
            ((0, 1, None), PlaceError::Address(AddressError::Null)),
            (
                (0x1008, 1, None),
                PlaceError::Address(AddressError::NotPageAligned { address: 0x1008 }),
            ),
            ((0x1000, 0, None), PlaceError::NoPages { address: 0x1000 }),
            (
                (0x1000, 1 << 52, None),
                PlaceError::TooManyPages {
                    address: 0x1000,
                    pages: 1 << 52,
                },
            ),
            (
                (last_page, 1, None),
                PlaceError::Address(AddressError::Wraps {
                    address: last_page,
                    len: 4096,
                }),
            ),
            (
                (0x1000, 1, Some(0)),
                PlaceError::Address(AddressError::MailboxNull),
            ),
            (
                (0x1000, 1, Some(0x2004)),
                PlaceError::Address(AddressError::MailboxMisaligned { address: 0x2004 }),
            ),
            (
                (0x1000, 1, Some(u64::MAX - 7)),
                PlaceError::Address(AddressError::MailboxWraps {
                    address: u64::MAX - 7,
                }),
            ),
            (
                (0x1000, 1, Some(0x1ff8)),
                PlaceError::Address(AddressError::MailboxInRegion {
                    mailbox: AddressRange::new(0x1ff8, 24).unwrap(),
                    region: AddressRange::new(0x1000, 0x1000).unwrap(),
                }),
            ),
        ];
        for ((address, pages, mailbox), expected) in cases {
            assert_eq!(CommBufferPlace::new(address, pages, mailbox), Err(expected));
        }
        assert!(CommBufferPlace::new(0x1000, 1, Some(0x2000)).is_ok());
    }
}
