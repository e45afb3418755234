//! The page tables: what MM may execute, read and write.
//!
//! Virtual addresses are physical ones. The tables are constants, on pages that MM cannot write; `accessed` and `dirty`
//! are set, so that the processor has nothing to write there either.

use mm_image::layout::REACH;

const ENTRIES: usize = 512;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const TABLE: u64 = PRESENT | WRITE | ACCESSED;
const CODE: u64 = PRESENT | ACCESSED | DIRTY;
const CONSTANTS: u64 = CODE | NO_EXECUTE;
const DATA: u64 = CONSTANTS | WRITE;

/// Where the tables are, by `smram.ld`: the root, the one below it, one for each GiB, and one for the first 2 MiB.
const BASE: u64 = 0xa_1000;
const GIBS: usize = 3;
const _: () = assert!(REACH == (GIBS as u64) << 30);

#[repr(C, align(4096))]
struct Tables {
    root: [u64; ENTRIES],
    gibs: [u64; ENTRIES],
    directories: [[u64; ENTRIES]; GIBS],
    first_pages: [u64; ENTRIES],
}

#[used]
#[unsafe(link_section = ".page_tables")]
static TABLES: Tables = tables();

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "evaluated by the compiler, which would refuse it"
)]
const fn tables() -> Tables {
    let mut tables = Tables {
        root: [0; ENTRIES],
        gibs: [0; ENTRIES],
        directories: [[0; ENTRIES]; GIBS],
        first_pages: [0; ENTRIES],
    };
    tables.root[0] = (BASE + PAGE) | TABLE;
    let mut gib = 0;
    while gib < GIBS {
        tables.gibs[gib] = (BASE + (2 + gib as u64) * PAGE) | TABLE;
        let mut entry = 0;
        while entry < ENTRIES {
            let address = ((gib as u64) << 30) + entry as u64 * LARGE_PAGE;
            tables.directories[gib][entry] = address | DATA | LARGE;
            entry += 1;
        }
        gib += 1;
    }
    tables.directories[0][0] = (BASE + (2 + GIBS as u64) * PAGE) | TABLE;
    let mut page = 0;
    while page < ENTRIES {
        let address = page as u64 * PAGE;
        tables.first_pages[page] = match address {
            // So that a null pointer faults.
            0 => 0,
            0xa_0000 | 0xa_8000..0xb_1000 => address | CODE,
            0xa_1000..0xa_7000 | 0xb_1000..0xb_3000 => address | CONSTANTS,
            // The guard page of the stack.
            0xb_d000 => 0,
            _ => address | DATA,
        };
        page += 1;
    }
    tables
}
