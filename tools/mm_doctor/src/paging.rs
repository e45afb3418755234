//! The page tables that are in use: is an address mapped to itself, can it be written to, and of
//! which memory type is it?
//!
//! | what | source |
//! |---|---|
//! | 4 and 5 levels, NX, PAT | Intel SDM, volume 3, 5.5 and 13.12 |
//! | stage 1 of EL1 and EL2, 4, 16 and 64 KiB granules, MAIR | Arm ARM (DDI 0487), D8.2, D8.3, D8.6 |

use crate::facts::Pages;
use alloc::string::ToString;

/// No comm buffer has as many pages; the rest is not checked.
const MOST: usize = 1 << 16;
const LAST_LEVEL: u32 = 1;

/// Where an entry of a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// At a physical address.
    Physical(u64),
    /// At an address that the tables' own entry for themselves makes readable.
    Virtual(u64),
}

/// Reads entries of tables.
pub trait Tables {
    /// An entry; `None` if it cannot be read.
    fn entry(&self, at: At) -> Option<u64>;
}

/// Where the page tables are, and their form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// No translation: the MMU is off.
    Off,
    /// x86-64 in long mode.
    X86 {
        /// CR3.
        root: u64,
        /// 4, or 5 with CR4.LA57.
        levels: u32,
        /// IA32_PAT.
        pat: u64,
    },
    /// Stage 1 of AArch64.
    Arm {
        /// TTBR0.
        root: u64,
        /// TCR's T0SZ.
        t0sz: u32,
        /// Bits of an address within a page: 12, 14 or 16.
        granule: u32,
        /// MAIR.
        mair: u64,
    },
}

/// Page tables, and how to read them.
///
/// Firmware need not map its tables at their physical addresses. Patina's does not: an entry of the
/// first table points to that table, and through it each table has a virtual address. The first
/// table itself must be mapped one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// The tables.
    pub paging: Paging,
    /// The index of the entry in the first table that points to that table.
    self_entry: Option<u64>,
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The physical address.
    pub physical: u64,
    /// Bytes from the address to the end of the page, or of the block.
    pub left: u64,
    /// Whether it can be written to.
    pub writable: bool,
    /// The memory type.
    pub memory: &'static str,
}

/// An entry of a table, as both architectures have them.
struct Entry {
    /// Where the next table, or the page, is.
    address: u64,
    is_leaf: bool,
    writable: bool,
}

impl Paging {
    /// Describes the page tables, for the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "none: the MMU is off",
            Self::X86 { levels: 5, .. } => "x86-64, 5 levels",
            Self::X86 { .. } => "x86-64, 4 levels",
            Self::Arm { granule: 12, .. } => "AArch64, pages of 4 KiB",
            Self::Arm { granule: 14, .. } => "AArch64, pages of 16 KiB",
            Self::Arm { .. } => "AArch64, pages of 64 KiB",
        }
    }

    /// The address in canonical form.
    const fn canonical(self, address: u64) -> u64 {
        let (levels, page_bits, bits) = self.form();
        let width = bits.saturating_mul(levels).saturating_add(page_bits);
        match self {
            // The upper bits repeat the highest one.
            Self::X86 { .. } => match 1_u64.checked_shl(width.saturating_sub(1)) {
                Some(sign) if address & sign != 0 => address | !mask(width),
                _ => address,
            },
            // TTBR0 is for addresses whose upper bits are zero.
            Self::Off | Self::Arm { .. } => address,
        }
    }

    /// How many levels there are, bits of an address within a page, and bits of an index.
    const fn form(self) -> (u32, u32, u32) {
        match self {
            Self::Off => (0, 12, 9),
            Self::X86 { levels, .. } => (levels, 12, 9),
            Self::Arm { t0sz, granule, .. } => {
                let bits = granule.saturating_sub(3);
                let translated = 64_u32.saturating_sub(t0sz).saturating_sub(granule);
                (
                    translated.div_ceil(if bits == 0 { 1 } else { bits }),
                    granule,
                    bits,
                )
            }
        }
    }

    const fn root(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::X86 { root, .. } => root & 0x000f_ffff_ffff_f000,
            // Bit 0 is CnP, the upper 16 bits are the ASID.
            Self::Arm { root, .. } => root & 0x0000_ffff_ffff_fffe,
        }
    }

    /// Decodes an entry of a level; `None` if it maps nothing.
    fn entry(self, entry: u64, level: u32) -> Option<Entry> {
        match self {
            Self::Off => None,
            Self::X86 { .. } => (entry & 1 != 0).then_some(Entry {
                address: entry & 0x000f_ffff_ffff_f000,
                is_leaf: level == LAST_LEVEL || entry & 1 << 7 != 0,
                writable: entry & 1 << 1 != 0,
            }),
            Self::Arm { granule, .. } => {
                let is_table = entry & 0b11 == 0b11;
                let is_leaf = if level == LAST_LEVEL {
                    is_table
                } else {
                    entry & 0b11 == 0b01
                };
                // AP[2] of a page or block, APTable[1] of a table.
                let read_only = if is_leaf { entry & 1 << 7 } else { entry & 1 << 62 };
                (is_leaf || is_table && level != LAST_LEVEL).then_some(Entry {
                    address: entry & 0x0000_ffff_ffff_ffff & !mask(granule),
                    is_leaf,
                    writable: read_only == 0,
                })
            }
        }
    }

    /// The memory type that a leaf selects.
    fn memory(self, entry: u64, level: u32) -> &'static str {
        let byte = |register: u64, index: u64| {
            register
                .to_le_bytes()
                .get(usize::try_from(index).unwrap_or(0))
                .copied()
        };
        match self {
            Self::Off => "not translated",
            Self::X86 { pat, .. } => {
                let pat_bit = if level == LAST_LEVEL {
                    entry >> 7
                } else {
                    entry >> 12
                } & 1;
                match byte(pat, pat_bit << 2 | entry >> 3 & 0b11).unwrap_or_default() & 7 {
                    0 => "uncached",
                    1 => "write-combining",
                    4 => "write-through",
                    5 => "write-protected",
                    6 => "write-back",
                    7 => "uncached unless the MTRRs say more",
                    _ => "of a reserved type",
                }
            }
            Self::Arm { mair, .. } => match byte(mair, entry >> 2 & 0b111).unwrap_or_default() {
                // Inner and outer write-back, with any allocation hints.
                attribute if attribute >> 6 == 0b11 && attribute >> 2 & 0b11 == 0b11 => "write-back",
                0x44 => "non-cacheable",
                attribute if attribute & 0xf0 == 0 => "device memory",
                0xf0 => "write-back, tagged",
                _ => "write-through or mixed",
            },
        }
    }
}

impl Map {
    /// Looks for the first table's entry for itself.
    #[must_use]
    pub fn new(paging: Paging, tables: &impl Tables) -> Self {
        let (levels, _, bits) = paging.form();
        let root = paging.root();
        let is_self = |index: &u64| {
            let entry = tables.entry(At::Physical(root.saturating_add(index.saturating_mul(8))));
            let entry = entry.and_then(|entry| paging.entry(entry, levels));
            entry.is_some_and(|entry| !entry.is_leaf && entry.address == root)
        };
        let self_entry = match levels {
            0 => None,
            // The kernel's half comes last.
            _ => (0..=mask(bits)).rev().find(is_self),
        };
        Self { paging, self_entry }
    }

    /// Where the entry of an address in the table of a level is. `table` is the table's physical
    /// address.
    fn place(self, table: u64, address: u64, level: u32) -> Option<At> {
        let (levels, page_bits, bits) = self.paging.form();
        let shift = |level: u32| {
            bits.checked_mul(level.checked_sub(LAST_LEVEL)?)?
                .checked_add(page_bits)
        };
        let index = |level: u32| Some(address.checked_shr(shift(level)?)? & mask(bits));
        let offset = index(level)?.checked_mul(8)?;
        let Some(self_entry) = self.self_entry else {
            return Some(At::Physical(table.checked_add(offset)?));
        };
        // The table's entry for itself is used once per remaining level; then come the address's
        // own indexes from the top.
        let mut at = offset;
        for place in (LAST_LEVEL..=levels).rev() {
            let passed = levels.checked_sub(place)?;
            let index = if passed < level {
                self_entry
            } else {
                index(place.checked_add(level)?)?
            };
            at |= index.checked_shl(shift(place)?)?;
        }
        Some(At::Virtual(self.paging.canonical(at)))
    }

    /// Translates an address; `None` if it is not mapped, or if the tables cannot be read.
    pub fn page(self, tables: &impl Tables, address: u64) -> Option<Page> {
        if self.paging == Paging::Off {
            return Some(Page {
                physical: address,
                left: u64::MAX.saturating_sub(address),
                writable: true,
                memory: "not translated",
            });
        }
        let (levels, page_bits, bits) = self.paging.form();
        let mut table = self.paging.root();
        let mut writable = true;
        for level in (LAST_LEVEL..=levels).rev() {
            let below = bits
                .checked_mul(level.checked_sub(LAST_LEVEL)?)?
                .checked_add(page_bits)?;
            let entry = tables.entry(self.place(table, address, level)?)?;
            let Entry {
                address: next,
                is_leaf,
                writable: here,
            } = self.paging.entry(entry, level)?;
            writable &= here;
            if is_leaf {
                let within = mask(below);
                return Some(Page {
                    physical: next & !within | address & within,
                    left: within.checked_sub(address & within)?.checked_add(1)?,
                    writable,
                    memory: self.paging.memory(entry, level),
                });
            }
            table = next;
        }
        None
    }

    /// What the page tables say about a range.
    #[must_use]
    pub fn pages(self, tables: &impl Tables, start: u64, len: u64) -> Pages {
        let first = self.page(tables, start);
        let memory = first.map_or("not mapped", |page| page.memory);
        let mut pages = Pages {
            elsewhere: None,
            writable: true,
            memory: memory.to_string(),
            same_memory: true,
        };
        let end = start.saturating_add(len);
        let mut at = start;
        for _ in 0..MOST {
            let found = self.page(tables, at);
            if found.is_none_or(|page| page.physical != at) {
                pages.elsewhere = Some((at, found.map(|page| page.physical)));
                break;
            }
            let Some(page) = found else { break };
            pages.writable &= page.writable;
            pages.same_memory &= page.memory == memory;
            at = at.saturating_add(page.left);
            if at >= end {
                break;
            }
        }
        pages
    }
}

/// This many one bits.
const fn mask(bits: u32) -> u64 {
    match 1_u64.checked_shl(bits) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Tables by the physical address of each entry.
    #[derive(Default)]
    struct Entries(BTreeMap<u64, u64>);

    impl Tables for Entries {
        fn entry(&self, at: At) -> Option<u64> {
            match at {
                At::Physical(address) => Some(self.0.get(&address).copied().unwrap_or_default()),
                At::Virtual(address) => panic!("{address:#x} is not in use"),
            }
        }
    }

    fn tables(entries: &[(u64, u64)]) -> Entries {
        Entries(entries.iter().copied().collect())
    }

    /// The value after a reset: WB, WT, UC-, UC, and the same again.
    const PAT: u64 = 0x0007_0406_0007_0406;
    const X86: Paging = Paging::X86 {
        root: 0x1000,
        levels: 4,
        pat: PAT,
    };

    #[test]
    fn x86_pages_of_three_sizes_are_translated() {
        let tables = tables(&[
            (0x1000, 0x2000 | 0x23),
            (0x2000, 0x3000 | 0x23),
            // 1 GiB at 0x4000_0000, 2 MiB at 0x20_0000, 4 KiB at 0x40_1000; read-only at 0x40_2000,
            // gone at 0x40_3000.
            (0x2008, 0x4000_0000 | 0x83),
            (0x3008, 0x20_0000 | 0x83),
            (0x3010, 0x4000 | 0x23),
            (0x4000, 0x40_0000 | 0x03),
            (0x4008, 0x40_1000 | 0x03),
            (0x4010, 0x40_2000 | 0x01),
            // Uncached, and mapped to another address.
            (0x4020, 0x40_4000 | 0x1b),
            (0x4028, 0x50_0000 | 0x03),
            (0x4030, 0x40_6000 | 0x03),
            (0x4038, 0x40_7000 | 0x1b),
        ]);
        let x86 = Map::new(X86, &tables);
        let page = |address| x86.page(&tables, address);
        let found = page(0x4000_1234).unwrap();
        assert_eq!(
            (found.physical, found.left, found.memory),
            (0x4000_1234, 0x3fff_edcc, "write-back")
        );
        assert_eq!(page(0x20_0010).unwrap().left, 0x1f_fff0);
        assert!(page(0x40_1000).unwrap().writable && !page(0x40_2000).unwrap().writable);
        assert_eq!(page(0x40_3000), None);
        assert_eq!(page(0x40_4000).unwrap().memory, "uncached");
        let pages = |start, len| x86.pages(&tables, start, len);
        assert_eq!(pages(0x20_0000, 0x20_2000).elsewhere, None);
        assert!(!pages(0x40_1000, 0x2000).writable);
        assert_eq!(pages(0x40_1000, 0x3000).elsewhere, Some((0x40_3000, None)));
        assert!(pages(0x40_6000, 0x1000).same_memory && !pages(0x40_6000, 0x2000).same_memory);
        assert_eq!(
            pages(0x40_4000, 0x2000).elsewhere,
            Some((0x40_5000, Some(0x50_0000)))
        );
        assert_eq!(X86.name(), "x86-64, 4 levels");
    }

    #[test]
    fn arm_blocks_and_pages_are_translated() {
        // 39 bits of address: the first table is that of 1 GiB blocks.
        let arm = Paging::Arm {
            root: 0x1001,
            t0sz: 25,
            granule: 12,
            mair: 0xff44_0c04,
        };
        let tables = tables(&[
            // Attribute 3, write-back.
            (0x1008, 0x4000_0000 | 3 << 2 | 0b01),
            (0x1010, 0x2000 | 0b11),
            (0x2000, 0x3000 | 1 << 62 | 0b11),
            (0x3000, 0x8000_0000 | 3 << 2 | 0b11),
            // Device memory, read-only, at level 3.
            (0x2008, 0x4000 | 0b11),
            (0x4000, 0x8020_0000 | 1 << 7 | 0b11),
            // A block is not valid at the last level.
            (0x4008, 0x8020_1000 | 0b01),
        ]);
        let found = Map::new(arm, &tables).page(&tables, 0x5000_0000).unwrap();
        assert_eq!(
            (found.physical, found.memory, found.writable),
            (0x5000_0000, "write-back", true)
        );
        assert_eq!(found.left, 0x3000_0000);
        assert!(
            !Map::new(arm, &tables)
                .page(&tables, 0x8000_0000)
                .unwrap()
                .writable
        );
        let device = Map::new(arm, &tables).page(&tables, 0x8020_0004).unwrap();
        assert_eq!((device.memory, device.writable), ("device memory", false));
        assert_eq!(Map::new(arm, &tables).page(&tables, 0x8020_1000), None);
        assert_eq!(Map::new(arm, &tables).page(&tables, 0xc000_0000), None);
        // 48 bits of address have one level more.
        let wide = Paging::Arm {
            root: 0x5000,
            t0sz: 16,
            granule: 12,
            mair: 0xff,
        };
        let more = Entries(
            [tables.0, [(0x5000, 0x1000 | 0b11)].into()]
                .into_iter()
                .flatten()
                .collect(),
        );
        assert_eq!(
            Map::new(wide, &more).page(&more, 0x5000_0000).unwrap().physical,
            0x5000_0000
        );
    }

    #[test]
    fn without_an_mmu_every_address_is_its_own() {
        let none = Entries::default();
        let pages = Map::new(Paging::Off, &none).pages(&none, 0x1000, 0x1000);
        assert!(pages.writable && pages.elsewhere.is_none() && pages.same_memory);
        assert_eq!(
            Map::new(X86, &none).pages(&none, 0x1000, 0x1000).elsewhere,
            Some((0x1000, None))
        );
    }

    /// Tables that can be read only through the first table's entry for itself, except the first.
    struct Hidden {
        entries: Entries,
        root: u64,
    }

    impl Tables for Hidden {
        fn entry(&self, at: At) -> Option<u64> {
            match at {
                At::Physical(address) => {
                    assert_eq!(address & !0xfff, self.root, "{address:#x} is not mapped");
                    self.entries.entry(at)
                }
                At::Virtual(address) => {
                    // As the processor translates it: four levels of entries, then the offset in
                    // the page.
                    let mut table = self.root;
                    for level in (1..=4).rev() {
                        let index = address >> (12 + 9 * (level - 1)) & 0x1ff;
                        let entry = self.entries.entry(At::Physical(table + index * 8)).unwrap();
                        assert_eq!(entry & 1, 1, "{address:#x} faults at level {level}");
                        table = entry & 0x000f_ffff_ffff_f000;
                    }
                    self.entries.entry(At::Physical(table | address & 0xfff))
                }
            }
        }
    }

    #[test]
    fn tables_that_only_their_own_entry_shows_are_read_through_it() {
        let hidden = Hidden {
            root: 0x1000,
            entries: tables(&[
                (0x1000, 0x2000 | 0x03),
                (0x1ff8, 0x1000 | 0x03),
                (0x2000, 0x3000 | 0x03),
                (0x3008, 0x20_0000 | 0x83),
                (0x3010, 0x4000 | 0x03),
                (0x4000, 0x40_0000 | 0x03),
            ]),
        };
        let map = Map::new(X86, &hidden);
        assert_eq!(map.page(&hidden, 0x20_1234).unwrap().physical, 0x20_1234);
        assert_eq!(map.page(&hidden, 0x40_0008).unwrap().physical, 0x40_0008);
        assert_eq!(map.page(&hidden, 0x40_1000), None);
        assert_eq!(map.page(&hidden, 0x60_0000), None);
        assert_eq!(map.page(&hidden, 0x80_0000_0000), None);
        // The address of the entry for 0x40_0008 in the last table.
        assert_eq!(
            map.place(0x4000, 0x40_0008, 1),
            Some(At::Virtual(0xffff_ff80_0000_2000))
        );
    }
}
