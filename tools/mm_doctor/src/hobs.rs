//! The HOBs that say where comm buffers, MMRAM, and FF-A's RX and TX pages are (PI 1.9, volume 3),
//! and the table in which edk2's traditional SMM announces its comm buffers.

use crate::Memory;
use crate::facts::{Buffer, Facts, Range, Region};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use mm_wire::hob::{
    COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, CommBufferPlace, CommRegion, FFA_RX_TX_HOB_GUID, HobHeader,
    Owner, guid_and_data,
};
use mm_wire::{Guid, PAGE_LEN, guid};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use mm_wire::hob::HOB_LIST_GUID as HOB_LIST;

/// The configuration table `gEdkiiPiSmmCommunicationRegionTableGuid` (edk2
/// MdeModulePkg/Include/Guid/PiSmmCommunicationRegionTable.h).
pub const COMM_REGION_TABLE: Guid = guid!("4e28ca50-d582-44ac-a11f-e3d56526db34");

/// `gEfiSmmSmramMemoryGuid` and `gEfiMmPeiMmramMemoryReserveGuid`: descriptors of MMRAM.
const MMRAM: [Guid; 2] = [
    guid!("6dadf1d1-d4cc-4910-bb6e-82b1fd80ff3d"),
    guid!("0703f912-bf8d-4e2a-be07-ab272525c592"),
];

/// No firmware has as many HOBs.
const MOST: usize = 100_000;
/// No table of comm regions has as many entries.
const MOST_REGIONS: u32 = 64;

/// `EFI_MMRAM_DESCRIPTOR`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MmramDescriptor {
    physical_start: U64,
    cpu_start: U64,
    physical_size: U64,
    region_state: U64,
}

/// Reads the HOB list at `list`.
pub fn gather(memory: &impl Memory, list: u64, facts: &mut Facts) {
    facts.has_hob_list = true;
    let mut at = list;
    for _ in 0..MOST {
        let header = memory.value::<HobHeader>(at);
        let Some((header, len)) = header.and_then(|header| Some((header, header.hob_len()?))) else {
            return;
        };
        if header.is_guid_hob() {
            extension(memory, at, len, facts);
        }
        let Some(next) = at.checked_add(len as u64) else {
            return;
        };
        at = next;
    }
}

fn extension(memory: &impl Memory, at: u64, len: usize, facts: &mut Facts) {
    let mut bytes = alloc::vec![0; len];
    if !memory.read(at, &mut bytes) {
        return;
    }
    let Some((guid, data)) = guid_and_data(&bytes) else {
        return;
    };
    if guid == COMM_BUFFER_HOB_GUID {
        // The HOB's length is a multiple of eight, and so is the data's.
        let place = CommBufferPlace::of_buffer_hob(data);
        facts.buffers.push(buffer(
            "comm-buffer HOB",
            place.map_err(|error| error.to_string()),
        ));
    } else if guid == COMM_REGION_HOB_GUID {
        let region = CommRegion::of_hob(data);
        let source = match region.as_ref().map(|region| region.owner) {
            Ok(Owner::Supervisor) => "comm-region HOB, supervisor",
            Ok(Owner::User) => "comm-region HOB, user",
            Err(_) => "comm-region HOB",
        };
        let place = region
            .map(|region| region.place)
            .map_err(|error| error.to_string());
        facts.buffers.push(buffer(source, place));
    } else if MMRAM.contains(&guid) {
        facts.mmram.extend(mmram(data));
    } else if guid == FFA_RX_TX_HOB_GUID {
        facts.regions.extend(rx_tx(data));
    }
}

/// `ARM_FFA_RX_TX_BUFFER_INFO`: address and bytes of TX, then of RX.
fn rx_tx(data: &[u8]) -> Vec<Region> {
    let words = data.as_chunks::<16>().0.iter().take(2);
    words
        .zip(["FF-A TX page", "FF-A RX page"])
        .map(|([a, b, c, d, e, f, g, h, len @ ..], what)| Region {
            what: what.to_string(),
            range: Range {
                start: u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                len: u64::from_le_bytes(*len),
            },
            memory: None,
        })
        .collect()
}

/// The fields of `EFI_MEMORY_DESCRIPTOR` that are read.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MemoryDescriptor {
    kind: U32,
    padding: U32,
    physical_start: U64,
    virtual_start: U64,
    pages: U64,
}

/// `EDKII_PI_SMM_COMMUNICATION_REGION_TABLE`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RegionTable {
    version: U32,
    entries: U32,
    descriptor_size: U32,
    reserved: U32,
}

/// Reads the table of the memory that edk2's traditional SMM takes messages from.
pub fn region_table(memory: &impl Memory, table: u64, facts: &mut Facts) {
    let Some(header) = memory.value::<RegionTable>(table) else {
        return;
    };
    let mut at = table.checked_add(size_of::<RegionTable>() as u64);
    for _ in 0..header.entries.get().min(MOST_REGIONS) {
        let Some(entry) = at.and_then(|at| memory.value::<MemoryDescriptor>(at)) else {
            return;
        };
        facts.regions.push(Region {
            what: "comm region of edk2's table".to_string(),
            range: Range {
                start: entry.physical_start.get(),
                len: entry.pages.get().saturating_mul(PAGE_LEN as u64),
            },
            memory: None,
        });
        at = at.and_then(|at| at.checked_add(header.descriptor_size.get().into()));
    }
}

fn buffer(source: &str, place: Result<CommBufferPlace, String>) -> Buffer {
    let source = source.to_string();
    match place {
        Ok(place) => Buffer {
            source,
            region: Some(Range {
                start: place.region().start(),
                len: place.region().len(),
            }),
            mailbox: place.mailbox(),
            ..Buffer::default()
        },
        Err(error) => Buffer {
            source,
            error: Some(error),
            ..Buffer::default()
        },
    }
}

/// `EFI_MMRAM_HOB_DESCRIPTOR_BLOCK`: the number of descriptors in 4 bytes, 4 bytes of padding, the
/// descriptors.
fn mmram(data: &[u8]) -> Vec<Range> {
    let Some((count, rest)) = data.split_first_chunk::<8>() else {
        return Vec::new();
    };
    let [a, b, c, d, ..] = *count;
    let count = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    rest.chunks_exact(size_of::<MmramDescriptor>())
        .take(count)
        .filter_map(|bytes| MmramDescriptor::read_from_bytes(bytes).ok())
        .map(|descriptor| Range {
            start: descriptor.physical_start.get(),
            len: descriptor.physical_size.get(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Memory that starts at an address.
    struct Bytes(u64, Vec<u8>);

    impl Memory for Bytes {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let from = address
                .checked_sub(self.0)
                .and_then(|offset| usize::try_from(offset).ok());
            let bytes = from.and_then(|from| self.1.get(from..from.checked_add(out.len())?));
            bytes.map(|bytes| out.copy_from_slice(bytes)).is_some()
        }
    }

    fn hob(guid: Guid, data: &[u8]) -> Vec<u8> {
        let len = u16::try_from(24 + data.len()).unwrap();
        let header = [4_u16.to_le_bytes(), len.to_le_bytes()].concat();
        [&header, &[0; 4][..], &guid.to_bytes(), data].concat()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn read(hobs: &[Vec<u8>]) -> Facts {
        let other = vec![1, 0, 16, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        let end = vec![0xff, 0xff, 8, 0, 0, 0, 0, 0];
        let list = [&[other], hobs, &[end]].concat().concat();
        let mut facts = Facts::default();
        gather(&Bytes(0x1000, list), 0x1000, &mut facts);
        facts
    }

    #[test]
    fn comm_buffers_and_mmram_are_found_among_other_hobs() {
        let facts = read(&[
            hob(COMM_BUFFER_HOB_GUID, &words(&[0x10_0000, 128, 0x20_0000])),
            hob(COMM_REGION_HOB_GUID, &words(&[0, 0x30_0000, 1])),
            hob(MMRAM[0], &words(&[1, 0x7f00_0000, 0x7f00_0000, 0x10_0000, 0])),
        ]);
        assert!(facts.has_hob_list);
        let seen: Vec<_> = facts
            .buffers
            .iter()
            .map(|buffer| (buffer.source.as_str(), buffer.region, buffer.mailbox))
            .collect();
        let range = |start, len| Some(Range { start, len });
        assert_eq!(
            seen,
            [
                ("comm-buffer HOB", range(0x10_0000, 0x8_0000), Some(0x20_0000)),
                ("comm-region HOB, supervisor", range(0x30_0000, 0x1000), None),
            ]
        );
        assert_eq!(facts.mmram, [range(0x7f00_0000, 0x10_0000).unwrap()]);
    }

    #[test]
    fn rx_and_tx_pages_and_edk2s_table_are_found() {
        let facts = read(&[hob(
            FFA_RX_TX_HOB_GUID,
            &words(&[0x4000, 0x1000, 0x5000, 0x2000, 0, 0]),
        )]);
        let seen = |facts: &Facts| -> Vec<_> {
            let regions = facts.regions.iter();
            regions
                .map(|region| (region.what.clone(), region.range.start, region.range.len))
                .collect()
        };
        assert_eq!(
            seen(&facts),
            [
                ("FF-A TX page".to_string(), 0x4000, 0x1000),
                ("FF-A RX page".to_string(), 0x5000, 0x2000)
            ]
        );
        let mut facts = Facts::default();
        let table = words(&[1 | 2 << 32, 48, 7, 0x6000, 0, 4, 0xf, 0, 7, 0x9000, 0, 1, 0xf, 0]);
        region_table(&Bytes(0x1000, table), 0x1000, &mut facts);
        let what = "comm region of edk2's table".to_string();
        assert_eq!(
            seen(&facts),
            [(what.clone(), 0x6000, 0x4000), (what, 0x9000, 0x1000)]
        );
    }

    #[test]
    fn a_wrong_hob_has_the_text_of_its_error() {
        let facts = read(&[hob(COMM_BUFFER_HOB_GUID, &words(&[0x10_0001, 128, 0x20_0000]))]);
        let error = facts.buffers[0].error.as_deref().unwrap();
        assert!(error.contains("0x100001 is not aligned to 4096 bytes"), "{error}");
    }

    #[test]
    fn a_list_without_an_end_ends() {
        let mut facts = Facts::default();
        gather(&Bytes(0x1000, vec![1, 0, 8, 0, 0, 0, 0, 0]), 0x1000, &mut facts);
        gather(&Bytes(0x1000, vec![1, 0, 0, 0, 0, 0, 0, 0]), 0x1000, &mut facts);
        assert_eq!(facts.buffers, []);
    }
}
