//! The comm buffer that the PEI phase announced in a HOB. An unsafe island (`docs/unsafe.md`): it
//! walks the HOB list.

use crate::protocols::guid;
use core::ffi::c_void;
use mm_wire::Guid;
use mm_wire::hob::{
    COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, CommBufferPlace, CommRegion, HOB_LIST_GUID, HobHeader, Owner,
    PlaceError, guid_and_data,
};
use r_efi::efi;
use thiserror::Error;

/// Which HOB announces the driver's comm buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One with the data of edk2's comm-buffer HOB, under this GUID: [`COMM_BUFFER_HOB_GUID`], or a
    /// platform's own, if edk2's HOB announces the Patina components' buffer.
    Buffer(Guid),
    /// Project Mu's comm-region HOB with this owner.
    Region(Owner),
}

impl Source {
    /// edk2's comm-buffer HOB.
    pub const EDK2: Self = Self::Buffer(COMM_BUFFER_HOB_GUID);
}

/// Why no comm buffer was found.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HobError {
    /// The firmware does not publish its HOB list.
    #[error("platform: there is no HOB list among the configuration tables")]
    NoList,
    /// No HOB announces the buffer.
    #[error("platform: no HOB announces a comm buffer for the runtime driver")]
    NotFound,
    /// Two HOBs announce different buffers.
    #[error("platform: two HOBs announce different comm buffers for the runtime driver")]
    Ambiguous,
    /// The announced memory cannot be a comm buffer.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// Looks the comm buffer up.
///
/// # Errors
///
/// [`HobError`].
///
/// # Safety
///
/// `system_table` is what the entry point of the running image was called with, and boot services
/// have not ended.
pub unsafe fn find(
    system_table: *const efi::SystemTable,
    source: Source,
) -> Result<CommBufferPlace, HobError> {
    // SAFETY: the caller's promise. A copy, because the firmware may change the table.
    let system = unsafe { system_table.read() };
    let list = (0..system.number_of_table_entries)
        .map(|index| system.configuration_table.wrapping_add(index))
        // SAFETY: the firmware keeps as many entries there as it says.
        .map(|entry| unsafe { entry.read() })
        .find(|entry| entry.vendor_guid == guid(HOB_LIST_GUID))
        .map(|entry| entry.vendor_table.cast_const())
        .filter(|list| !list.is_null())
        .ok_or(HobError::NoList)?;
    // SAFETY: the table with this GUID is a HOB list, which the firmware keeps.
    unsafe { find_in(list, source) }
}

/// Looks the comm buffer up in a HOB list.
///
/// # Safety
///
/// `list` is a HOB list that is valid while the call lasts.
unsafe fn find_in(list: *const c_void, source: Source) -> Result<CommBufferPlace, HobError> {
    let mut found: Option<CommBufferPlace> = None;
    let mut at = list.cast::<u8>();
    loop {
        // SAFETY: a HOB starts here: the first one, or the one after a HOB that was not the last.
        let header = unsafe { at.cast::<HobHeader>().read() };
        let Some(len) = header.hob_len() else {
            break;
        };
        if header.is_guid_hob() {
            // SAFETY: the HOB has that many bytes, and the list is not written after the PEI phase.
            let hob = unsafe { core::slice::from_raw_parts(at, len) };
            if let Some(place) = place(hob, source)? {
                match found {
                    Some(other) if other != place => return Err(HobError::Ambiguous),
                    _ => found = Some(place),
                }
            }
        }
        at = at.wrapping_add(len);
    }
    found.ok_or(HobError::NotFound)
}

/// What a GUID HOB announces; `None` if it is another HOB.
fn place(hob: &[u8], source: Source) -> Result<Option<CommBufferPlace>, PlaceError> {
    let Some((guid, data)) = guid_and_data(hob) else {
        return Ok(None);
    };
    match source {
        Source::Buffer(wanted) if guid == wanted => CommBufferPlace::of_buffer_hob(data).map(Some),
        Source::Region(owner) if guid == COMM_REGION_HOB_GUID => {
            let region = CommRegion::of_hob(data)?;
            Ok((region.owner == owner).then_some(region.place))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn guid_hob(guid: Guid, fields: &[u64]) -> Vec<u8> {
        let data: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        let len = u16::try_from(24 + data.len()).unwrap();
        let mut hob = [4, 0].to_vec();
        hob.extend(len.to_le_bytes());
        hob.extend([0; 4]);
        hob.extend(guid.to_bytes());
        hob.extend(data);
        hob
    }

    fn find_among(hobs: &[Vec<u8>], source: Source) -> Result<CommBufferPlace, HobError> {
        let phit = [[1, 0, 16, 0, 0, 0, 0, 0], [0; 8]].concat();
        let end = [0xff, 0xff, 8, 0, 0, 0, 0, 0].to_vec();
        let list = [&[phit], hobs, &[end]].concat().concat();
        // SAFETY: a list with an end.
        unsafe { find_in(list.as_ptr().cast(), source) }
    }

    #[test]
    fn requested_hob_is_found_among_others() {
        let own = mm_wire::guid!("3f1b7f05-6c4e-4f0e-a9a4-4f3f2a3a5b10");
        let hobs = [
            guid_hob(COMM_BUFFER_HOB_GUID, &[0x1000, 1, 0x9000]),
            guid_hob(COMM_REGION_HOB_GUID, &[0, 0x2000, 1, 0x9100]),
            guid_hob(own, &[0x3000, 2, 0x9200]),
            guid_hob(COMM_REGION_HOB_GUID, &[1, 0x5000, 1, 0x9300]),
        ];
        for (source, start) in [
            (Source::EDK2, 0x1000),
            (Source::Region(Owner::Supervisor), 0x2000),
            (Source::Buffer(own), 0x3000),
            (Source::Region(Owner::User), 0x5000),
        ] {
            assert_eq!(find_among(&hobs, source).unwrap().region().start(), start);
        }
        assert_eq!(find_among(&hobs[1..], Source::EDK2), Err(HobError::NotFound));
    }

    #[test]
    fn ambiguous_or_unusable_hobs_are_an_error() {
        let one = guid_hob(COMM_BUFFER_HOB_GUID, &[0x1000, 1, 0x9000]);
        let other = guid_hob(COMM_BUFFER_HOB_GUID, &[0x1000, 1, 0x9100]);
        assert!(find_among(&[one.clone(), one.clone()], Source::EDK2).is_ok());
        assert_eq!(find_among(&[one, other], Source::EDK2), Err(HobError::Ambiguous));
        let null = guid_hob(COMM_BUFFER_HOB_GUID, &[0, 1, 0x9000]);
        assert_eq!(
            find_among(&[null], Source::EDK2),
            Err(HobError::Place(PlaceError::Address(mm_wire::AddressError::Null)))
        );
        let damaged = [[9, 0, 4, 0], [0; 4]].concat();
        assert_eq!(find_among(&[damaged], Source::EDK2), Err(HobError::NotFound));
    }
}
