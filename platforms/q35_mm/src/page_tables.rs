//! The page tables: what MM may execute, read and write.
//!
//! Virtual addresses are physical ones. The tables are constants, on pages that MM cannot write;
//! `accessed` and `dirty` are set, so that the processor does not write there either.

use crate::layout::{CODE, CONSTANT, GUARD_PAGE, REACH};
use core::ops::Range;

const ENTRIES: usize = 512;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const TO_TABLE: u64 = PRESENT | WRITE | ACCESSED;
const TO_CODE: u64 = PRESENT | ACCESSED | DIRTY;
const TO_CONSTANTS: u64 = TO_CODE | NO_EXECUTE;
const TO_DATA: u64 = TO_CONSTANTS | WRITE;

/// Where the tables are, by `smram.ld`: the root, the one below it, one for each GiB, and one for
/// the first 2 MiB.
const BASE: u64 = 0xa_1000;
const GIBS: usize = 3;
const _: () = assert!(REACH <= (GIBS as u64) << 30 && REACH.is_multiple_of(LARGE_PAGE));

/// All page tables, as they are in SMRAM.
#[repr(C, align(4096))]
pub struct PageTables {
    root: [u64; ENTRIES],
    gibs: [u64; ENTRIES],
    directories: [[u64; ENTRIES]; GIBS],
    first_pages: [u64; ENTRIES],
}

const fn contains(range: &Range<u64>, address: u64) -> bool {
    range.start <= address && address < range.end
}

impl PageTables {
    /// Makes them.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::new_without_default,
        reason = "evaluated by the compiler, which would refuse it"
    )]
    #[must_use]
    pub const fn new() -> Self {
        let mut tables = Self {
            root: [0; ENTRIES],
            gibs: [0; ENTRIES],
            directories: [[0; ENTRIES]; GIBS],
            first_pages: [0; ENTRIES],
        };
        tables.root[0] = (BASE + PAGE) | TO_TABLE;
        let mut gib = 0;
        while gib < GIBS {
            tables.gibs[gib] = (BASE + (2 + gib as u64) * PAGE) | TO_TABLE;
            let mut entry = 0;
            while entry < ENTRIES {
                let address = ((gib as u64) << 30) + entry as u64 * LARGE_PAGE;
                if address < REACH {
                    tables.directories[gib][entry] = address | TO_DATA | LARGE;
                }
                entry += 1;
            }
            gib += 1;
        }
        tables.directories[0][0] = (BASE + (2 + GIBS as u64) * PAGE) | TO_TABLE;
        let mut page = 0;
        while page < ENTRIES {
            let address = page as u64 * PAGE;
            tables.first_pages[page] = if address == 0 || contains(&GUARD_PAGE, address) {
                // A null pointer faults, and so does a stack that ends.
                0
            } else if contains(&CODE[0], address) || contains(&CODE[1], address) {
                address | TO_CODE
            } else if contains(&CONSTANT[0], address) || contains(&CONSTANT[1], address) {
                address | TO_CONSTANTS
            } else {
                address | TO_DATA
            };
            page += 1;
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{SMRAM, reaches};
    use mm_wire::AddressRange;
    use std::vec::Vec;

    /// How the processor may use an address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Leaf {
        start: u64,
        len: u64,
        write: bool,
        execute: bool,
    }

    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    impl PageTables {
        /// The table whose entry in the level above has this address.
        fn at(&self, address: u64) -> &[u64; ENTRIES] {
            let tables = [&self.root, &self.gibs]
                .into_iter()
                .chain(&self.directories)
                .chain([&self.first_pages]);
            let index = usize::try_from((address - BASE) / PAGE).unwrap();
            tables.into_iter().nth(index).unwrap()
        }

        /// Everything below `table`, which the processor reaches with these permissions.
        fn walk(
            &self,
            table: &[u64; ENTRIES],
            base: u64,
            shift: u32,
            write: bool,
            execute: bool,
            out: &mut Vec<Leaf>,
        ) {
            for (at, entry) in (0..).zip(table).filter(|(_, entry)| *entry & PRESENT != 0) {
                let start = base + (at << shift);
                let (write, execute) = (write && entry & WRITE != 0, execute && entry & NO_EXECUTE == 0);
                assert_ne!(entry & ACCESSED, 0, "the processor would set it at {start:#x}");
                if shift > 12 && entry & LARGE == 0 {
                    self.walk(self.at(entry & ADDRESS), start, shift - 9, write, execute, out);
                } else {
                    assert_eq!(
                        entry & ADDRESS,
                        start,
                        "a virtual address that is not the physical one"
                    );
                    assert!(
                        !write || entry & DIRTY != 0,
                        "the processor would set it at {start:#x}"
                    );
                    let len = 1 << shift;
                    out.push(Leaf {
                        start,
                        len,
                        write,
                        execute,
                    });
                }
            }
        }

        fn leaves(&self) -> Vec<Leaf> {
            let mut leaves = Vec::new();
            self.walk(&self.root, 0, 39, true, true, &mut leaves);
            leaves
        }
    }

    fn leaves() -> Vec<Leaf> {
        PageTables::new().leaves()
    }

    fn holding(leaves: &[Leaf], address: u64) -> Option<Leaf> {
        leaves
            .iter()
            .copied()
            .find(|leaf| (leaf.start..leaf.start + leaf.len).contains(&address))
    }

    #[test]
    fn nothing_is_both_writable_and_executable() {
        for leaf in leaves() {
            assert!(!(leaf.write && leaf.execute), "{leaf:x?}");
        }
    }

    #[test]
    fn only_the_code_in_smram_is_executable() {
        let executable: Vec<u64> = leaves()
            .iter()
            .filter(|leaf| leaf.execute)
            .map(|leaf| {
                let range = AddressRange::new(leaf.start, leaf.len).unwrap();
                assert!(SMRAM.contains(range), "{range}");
                leaf.start
            })
            .collect();
        // The same as in the picture in `layout`.
        let drawn: Vec<u64> = [0xa_0000]
            .into_iter()
            .chain((0xa_8000..0xb_1000).step_by(0x1000))
            .collect();
        assert_eq!(executable, drawn);
    }

    #[test]
    fn page_zero_the_guard_page_and_memory_out_of_reach_are_not_mapped() {
        let leaves = leaves();
        let mut expected = 0;
        let mut holes = Vec::new();
        for leaf in &leaves {
            if leaf.start != expected {
                holes.push((expected, leaf.start));
            }
            expected = leaf.start + leaf.len;
        }
        assert_eq!(holes, [(0, 0x1000), (0xb_d000, 0xb_e000)]);
        assert_eq!(expected, REACH);
    }

    #[test]
    fn constant_memory_cannot_be_written() {
        let leaves = leaves();
        let constant = CONSTANT.into_iter().flat_map(|range| range.step_by(0x1000));
        for page in constant {
            let leaf = holding(&leaves, page).unwrap();
            assert!(!leaf.write, "{leaf:x?}");
        }
        // This range includes the tables themselves.
        let end = BASE + size_of::<PageTables>() as u64;
        assert!(CONSTANT[0].contains(&BASE) && CONSTANT[0].end >= end);
    }

    #[test]
    fn memory_in_mms_reach_is_mapped_for_data_only() {
        let leaves = leaves();
        let pages = (0..REACH + 0x1000_0000).step_by(0x1000);
        // Every page of the first 2 MiB, and around each border.
        let near = |page: &u64| {
            *page < LARGE_PAGE || *page % (1 << 28) < 0x2000 || *page % (1 << 28) > (1 << 28) - 0x2000
        };
        for page in pages.filter(near) {
            let leaf = holding(&leaves, page);
            let as_data = leaf.is_some_and(|leaf| leaf.write && !leaf.execute);
            let outside = !SMRAM.contains(AddressRange::new(page, 1).unwrap());
            for at in [page, page + 0xfff] {
                let byte = AddressRange::new(at, 1).unwrap();
                assert_eq!(reaches(byte), as_data && outside, "{byte}");
            }
        }
        let across = |start, len| reaches(AddressRange::new(start, len).unwrap());
        assert!(across(0x1000, 0x9_f000) && across(0xc_0000, REACH - 0xc_0000));
        assert!(!across(0x1000, 0x9_f001) && !across(0xb_ffff, 2) && !across(0xfff, 2));
        assert!(!across(REACH - 1, 2) && !across(0x9_0000, 0x10_0000));
    }
}
