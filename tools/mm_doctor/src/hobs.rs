//! The HOBs that say where comm buffers, MMRAM, and FF-A's RX and TX pages are (PI 1.9, volume 3),
//! and the table in which edk2's traditional SMM announces its comm buffers.

use crate::Memory;
use crate::facts::{Buffer, Damage, Facts, Range, Region};
use alloc::format;
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
/// The types of the first and of the last HOB (PI 1.9, volume 3, 5.3 and 5.2).
const HANDOFF: u16 = 1;
const END_OF_LIST: u16 = 0xffff;

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
    if let Err(found) = walk(memory, list, facts) {
        facts.damage.push(Damage {
            what: "HOB list".to_string(),
            found: format!("{found}; the HOBs behind it are not seen"),
        });
    }
}

/// Reads it up to its end; if it does not have one, says why.
fn walk(memory: &impl Memory, list: u64, facts: &mut Facts) -> Result<(), String> {
    let mut at = list;
    for index in 0..MOST {
        let header: HobHeader = memory
            .value(at)
            .ok_or_else(|| format!("the list leads to {at:#x}, which cannot be read"))?;
        let kind = header.kind.get();
        if index == 0 && kind != HANDOFF {
            return Err(format!(
                "the first HOB, at {at:#x}, has type {kind:#x}, not {HANDOFF:#x}"
            ));
        }
        let Some(len) = header.hob_len() else {
            return match kind {
                END_OF_LIST => Ok(()),
                _ => Err(format!("the HOB at {at:#x} has {} bytes", header.len)),
            };
        };
        if header.is_guid_hob() {
            extension(memory, at, len, facts).map_err(|found| format!("the HOB at {at:#x}: {found}"))?;
        }
        at = at
            .checked_add(len as u64)
            .ok_or_else(|| format!("the HOB at {at:#x} ends behind the last address"))?;
    }
    Err(format!("the list has more than {MOST} HOBs"))
}

fn extension(memory: &impl Memory, at: u64, len: usize, facts: &mut Facts) -> Result<(), String> {
    let mut bytes = alloc::vec![0; len];
    if !memory.read(at, &mut bytes) {
        return Err(format!("its {len} bytes cannot all be read"));
    }
    let mut wrong = |what: &str, found: String| {
        facts.damage.push(Damage {
            what: what.to_string(),
            found: format!("the HOB at {at:#x} {found}"),
        });
    };
    let Some((guid, data)) = guid_and_data(&bytes) else {
        wrong("HOB list", format!("has {len} bytes, too few for a GUID"));
        return Ok(());
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
        let (count, ranges) = mmram(data);
        if u64::from(count) != ranges.len() as u64 {
            wrong(
                "MMRAM",
                format!("announces {count} ranges, and has {}", ranges.len()),
            );
        }
        facts.mmram.extend(ranges);
    } else if guid == FFA_RX_TX_HOB_GUID {
        let pages = rx_tx(data);
        if pages.len() < 2 {
            wrong(
                "FF-A's RX and TX pages",
                format!("has {} bytes of data", data.len()),
            );
        }
        facts.regions.extend(pages);
    }
    Ok(())
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

/// Bytes of a whole one: its attributes follow.
const WHOLE_DESCRIPTOR: u64 = size_of::<MemoryDescriptor>() as u64 + 8;

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
    let mut wrong = |found: String| {
        facts.damage.push(Damage {
            what: "edk2's table of comm regions".to_string(),
            found,
        });
    };
    let (entries, size) = (header.entries.get(), header.descriptor_size.get());
    if u64::from(size) < WHOLE_DESCRIPTOR {
        wrong(format!(
            "its descriptors have {size} bytes, less than {WHOLE_DESCRIPTOR}"
        ));
        return;
    }
    if entries > MOST_REGIONS {
        wrong(format!("it has {entries} entries, more than {MOST_REGIONS}"));
    }
    let mut at = table.checked_add(size_of::<RegionTable>() as u64);
    for index in 0..entries.min(MOST_REGIONS) {
        let Some(entry) = at.and_then(|at| memory.value::<MemoryDescriptor>(at)) else {
            facts.damage.push(Damage {
                what: "edk2's table of comm regions".to_string(),
                found: format!("its entry {index} cannot be read"),
            });
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
/// descriptors. Returns the number, and those that are there.
fn mmram(data: &[u8]) -> (u32, Vec<Range>) {
    let Some((count, rest)) = data.split_first_chunk::<8>() else {
        return (0, Vec::new());
    };
    let [a, b, c, d, ..] = *count;
    let count = u32::from_le_bytes([a, b, c, d]);
    let ranges = rest
        .chunks_exact(size_of::<MmramDescriptor>())
        .take(usize::try_from(count).unwrap_or(usize::MAX))
        .filter_map(|bytes| MmramDescriptor::read_from_bytes(bytes).ok())
        .map(|descriptor| Range {
            start: descriptor.physical_start.get(),
            len: descriptor.physical_size.get(),
        });
    (count, ranges.collect())
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
    fn a_list_without_an_end_ends_and_is_named() {
        for (list, words) in [
            (
                vec![1, 0, 8, 0, 0, 0, 0, 0],
                "leads to 0x1008, which cannot be read",
            ),
            (vec![1, 0, 0, 0, 0, 0, 0, 0], "the HOB at 0x1000 has 0 bytes"),
            (
                vec![4, 0, 8, 0, 0, 0, 0, 0],
                "the first HOB, at 0x1000, has type 0x4, not 0x1",
            ),
            (
                [[1, 0, 8, 0, 0, 0, 0, 0], [4, 0, 48, 0, 0, 0, 0, 0]].concat(),
                "the HOB at 0x1008: its 48 bytes cannot all be read",
            ),
        ] {
            let mut facts = Facts::default();
            gather(&Bytes(0x1000, list), 0x1000, &mut facts);
            let found = &facts.damage[0].found;
            assert!(
                found.contains(words) && found.ends_with("the HOBs behind it are not seen"),
                "{found}"
            );
            assert_eq!((facts.damage.len(), facts.buffers.len()), (1, 0));
        }
        assert_eq!(read(&[]).damage, []);
    }

    #[test]
    fn hobs_that_contradict_themselves_are_named() {
        let damage = |hob| {
            let damage = read(&[hob]).damage.into_iter();
            damage
                .map(|damage| format!("{}: {}", damage.what, damage.found))
                .collect::<Vec<_>>()
        };
        let descriptor = [0x7f00_0000, 0x7f00_0000, 0x10_0000, 0];
        let of = |count: u64| hob(MMRAM[1], &words(&[&[count], &descriptor[..]].concat()));
        assert_eq!(damage(of(1)), [""; 0]);
        assert_eq!(
            damage(of(2)),
            ["MMRAM: the HOB at 0x1010 announces 2 ranges, and has 1"]
        );
        assert_eq!(
            damage(hob(FFA_RX_TX_HOB_GUID, &words(&[0x4000, 0x1000, 0x5000]))),
            ["FF-A's RX and TX pages: the HOB at 0x1010 has 24 bytes of data"]
        );
        let short = vec![4, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            damage(short),
            ["HOB list: the HOB at 0x1010 has 16 bytes, too few for a GUID"]
        );

        let table = |entries: u64, size: u64| {
            let mut facts = Facts::default();
            let table = words(&[1 | entries << 32, size, 7, 0x6000, 0, 4, 0xf, 0]);
            region_table(&Bytes(0x1000, table), 0x1000, &mut facts);
            (
                facts.regions.len(),
                facts
                    .damage
                    .into_iter()
                    .map(|damage| damage.found)
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(table(1, 48), (1, vec![]));
        assert_eq!(table(2, 48), (1, vec!["its entry 1 cannot be read".to_string()]));
        assert_eq!(
            table(1, 32),
            (0, vec!["its descriptors have 32 bytes, less than 40".to_string()])
        );
        assert_eq!(
            table(65, 48).1.first().unwrap(),
            "it has 65 entries, more than 64"
        );
    }
}
