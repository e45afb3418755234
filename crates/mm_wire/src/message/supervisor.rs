//! Requests to the MM supervisor (Project Mu `MmSupervisorPkg/Include/Guid/MmSupervisorRequestData.h`).
//!
//! | field | offset | size |
//! |---|---|---|
//! | signature `MSUP` | 0 | 4 |
//! | revision | 4 | 4 |
//! | request | 8 | 4 |
//! | reserved | 12 | 4 |
//! | result, `EFI_STATUS` | 16 | 8 |
//!
//! The answer to [`REQUEST_VERSION`] appends version u32 @24, patch level u32 @28, highest request level u64 @32.

use uguid::{Guid, guid};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The GUID under which the supervisor takes requests, `gMmSupervisorRequestHandlerGuid`.
pub const GUID: Guid = guid!("8c633b23-1260-4ea6-830f-7ddc97382111");

/// The first four bytes of every request.
pub const SIGNATURE: [u8; 4] = *b"MSUP";

/// The revision of the request layout.
pub const REVISION: u32 = 1;

/// Ask for the supervisor's version.
pub const REQUEST_VERSION: u32 = 3;

/// The fields that every request and every answer starts with.
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
    /// The `EFI_STATUS` of the request, in the answer.
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

/// What the answer to [`REQUEST_VERSION`] appends to the header.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_request_is_24_bytes_and_its_answer_40() {
        let request = RequestHeader::new(REQUEST_VERSION);
        let mut expected = [0; 24];
        expected[..12].copy_from_slice(b"MSUP\x01\0\0\0\x03\0\0\0");
        assert_eq!(request.as_bytes(), expected);
        assert_eq!(size_of::<RequestHeader>() + size_of::<VersionInfo>(), 40);
    }
}
