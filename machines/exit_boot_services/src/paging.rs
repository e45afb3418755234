//! Page tables of four levels with pages of 4 KiB: both processors have them, and differ in the bits of an entry.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

/// Entries of a table.
const TABLE_LEN: usize = 512;
const ENTRIES: u64 = TABLE_LEN as u64;
const PAGE: u64 = 0x1000;
/// Number of bytes that a table of the lowest level covers.
const LEAF_LEN: u64 = ENTRIES * PAGE;
/// The bits of an entry that are an address.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// How memory can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is executed, read and written: an image of the firmware is one region, and its parts are relocated.
    Code,
    /// It is read and written.
    Data,
    /// It belongs to a device.
    Device,
}

/// A processor's bits.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    table: u64,
    code: u64,
    data: u64,
    device: u64,
}

/// x86-64 (AMD64 volume 2, 5.4): present, writable, accessed, dirty; caches off for devices; no execution.
pub const X86_64: Format = Format {
    table: 0x23,
    code: 0x63,
    data: 0x63 | 1 << 63,
    device: 0x7b | 1 << 63,
};

/// AArch64 (DDI 0487, D8.3): a table or page, accessed, inner shareable; memory types 3 and 0 as
/// `cpu` sets MAIR; no execution.
pub const AARCH64: Format = Format {
    table: 0x3,
    code: 0x703 | 3 << 2,
    data: 0x703 | 3 << 2 | NEVER,
    device: 0x403 | NEVER,
};
const NEVER: u64 = 3 << 53;

impl Format {
    const fn leaf(&self, used: Use) -> u64 {
        match used {
            Use::Code => self.code,
            Use::Data => self.data,
            Use::Device => self.device,
        }
    }
}

#[repr(align(4096))]
struct Table([u64; TABLE_LEN]);

/// A set of tables, in memory that is mapped one to one.
pub struct PageTables {
    format: Format,
    root: u64,
    tables: BTreeMap<u64, Box<Table>>,
}

impl PageTables {
    /// Tables in which nothing is mapped.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let mut tables = Self {
            format,
            root: 0,
            tables: BTreeMap::new(),
        };
        tables.root = tables.add();
        tables
    }

    /// The physical address of the root.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.root
    }

    fn add(&mut self) -> u64 {
        let table = Box::new(Table([0; TABLE_LEN]));
        let address = (&raw const *table).expose_provenance() as u64;
        self.tables.insert(address, table);
        address
    }

    fn entry(&mut self, table: u64, index: u64) -> Option<&mut u64> {
        let index = usize::try_from(index % ENTRIES).ok()?;
        self.tables.get_mut(&table)?.0.get_mut(index)
    }

    /// The table of the lowest level for an address; made, if it is not there yet.
    fn leaf_table(&mut self, virt: u64) -> u64 {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let next = self.entry(table, virt >> shift).map_or(0, |entry| *entry) & ADDRESS;
            table = if next == 0 {
                let new = self.add();
                let bits = self.format.table;
                if let Some(entry) = self.entry(table, virt >> shift) {
                    *entry = new | bits;
                }
                new
            } else {
                next
            };
        }
        table
    }

    /// Sets the entries of pages. The processor must not use the tables, or be made to forget them afterwards.
    fn set(&mut self, virt: u64, pages: u64, mut entry_of: impl FnMut(u64) -> u64) {
        let mut done = 0_u64;
        while done < pages {
            let at = virt.wrapping_add(done.saturating_mul(PAGE));
            let leaf = self.leaf_table(at);
            let first = at % LEAF_LEN / PAGE;
            let here = ENTRIES.saturating_sub(first).min(pages.saturating_sub(done));
            for page in 0..here {
                let new = entry_of(done.saturating_add(page));
                if let Some(entry) = self.entry(leaf, first.saturating_add(page)) {
                    *entry = new;
                }
            }
            done = done.saturating_add(here);
        }
    }

    /// Maps pages.
    pub fn map(&mut self, virt: u64, physical: u64, pages: u64, used: Use) {
        let bits = self.format.leaf(used);
        self.set(virt, pages, |page| {
            physical.saturating_add(page.saturating_mul(PAGE)) | bits
        });
    }

    /// Makes every access to these addresses fault.
    pub fn unmap(&mut self, virt: u64, pages: u64) {
        self.set(virt, pages, |_| 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl PageTables {
        /// The entry that the processor finds, or 0.
        fn walk(&self, virt: u64) -> u64 {
            let mut entry = self.root;
            for shift in [39, 30, 21, 12] {
                let index = usize::try_from(virt >> shift & 511).unwrap();
                entry = match self.tables.get(&(entry & ADDRESS)) {
                    Some(table) => table.0[index],
                    None => return 0,
                };
            }
            entry
        }
    }

    #[test]
    fn mapped_pages_are_found_and_no_others() {
        for (format, virt) in [
            (X86_64, 0xffff_a000_0000_0000),
            (X86_64, 0),
            (AARCH64, 0x4000_0000_0000),
        ] {
            let mut tables = PageTables::new(format);
            // A range that crosses a table of each level.
            let start = virt + (1 << 30) - 2 * PAGE;
            tables.map(start, 0x7_0000_0000, 5, Use::Data);
            for page in 0..5 {
                let found = tables.walk(start + page * PAGE);
                assert_eq!(found, (0x7_0000_0000 + page * PAGE) | format.data);
            }
            assert_eq!(tables.walk(start - PAGE), 0);
            assert_eq!(tables.walk(start + 5 * PAGE), 0);
            tables.unmap(start + PAGE, 3);
            assert_ne!(tables.walk(start), 0);
            assert_eq!(tables.walk(start + 3 * PAGE), 0);
            assert_ne!(tables.walk(start + 4 * PAGE), 0);
        }
    }

    #[test]
    fn only_code_is_executed() {
        assert_eq!(X86_64.code >> 63, 0);
        assert_eq!((X86_64.data >> 63, X86_64.device >> 63), (1, 1));
        assert_eq!(AARCH64.code & NEVER, 0);
        assert_eq!((AARCH64.data & NEVER, AARCH64.device & NEVER), (NEVER, NEVER));
    }
}
