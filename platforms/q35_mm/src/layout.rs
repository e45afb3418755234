//! The layout of SMRAM.
//!
//! ```text
//! 0xa0000  entry code, IDT                        execute
//! 0xa1000  page tables                            read
//! 0xa7000  GDT, TSS                               write
//! 0xa7100    hand-off block
//! 0xa7300    fault stack, down from 0xa7c00
//! 0xa7c00    the processor's save state
//! 0xa8000  code                                   execute
//! 0xb1000  constants                              read
//! 0xb3000  data: message copy, variables, state   write
//! 0xbd000  guard page                             none
//! 0xbe000  stack, down from 0xc0000               write
//! ```
//!
//! The fault stack does not have a guard page. The report of a fault took 632 of its 2304 bytes
//! (release build, measured by the lowest byte that was not zero afterwards). A deeper stack would
//! overwrite the hand-off block, which is not used any more by then, and the descriptors, and end
//! at the page tables, which cannot be written.
//!
//! The same addresses are in `smram.ld`. Outside SMRAM, memory below [`REACH`] is mapped for data only; page 0 is not.

use core::ops::Range;
use mm_wire::AddressRange;

/// The first address of the compatible SMRAM segment (82G33 GMCH, SMRAM register; also called ASEG).
pub const SMRAM_BASE: u64 = 0xa_0000;

/// Bytes of it.
pub const SMRAM_LEN: usize = 0x2_0000;

/// The MMRAM of the MM core.
pub const SMRAM: AddressRange = match AddressRange::new(SMRAM_BASE, SMRAM_LEN as u64) {
    Some(range) => range,
    None => unreachable!(),
};

/// SMBASE, by which the processor finds its entry at + 0x8000 and its save state up to + 0x10000.
pub const SMBASE: u32 = 0x9_8000;

/// Where the hand-off block is.
pub const HANDOFF: u64 = 0xa_7100;

/// Bytes between the hand-off block and the fault stack.
pub const HANDOFF_LEN: usize = 0x200;

/// Below this address MM reaches all memory: the most that QEMU's Q35 puts below its PCI hole, and where OVMF has PCI
/// configuration space begin.
pub const REACH: u64 = 0xb000_0000;

/// The code: the entry code, on a page with the IDT, and the rest.
pub const CODE: [Range<u64>; 2] = [0xa_0000..0xa_1000, 0xa_8000..0xb_1000];

/// The parts that never change once the image is loaded: the entry code and page tables, code and
/// constants.
pub const CONSTANT: [Range<u64>; 2] = [0xa_0000..0xa_7000, 0xa_8000..0xb_3000];

/// The page below the stack is not mapped.
pub const GUARD_PAGE: Range<u64> = 0xb_d000..0xb_e000;

/// The processor's save state, into which nothing can be loaded.
pub const SAVE_STATE: Range<u64> = 0xa_7c00..0xa_8000;

/// Pages of the largest comm buffer. The suite moves comm buffers to twice as many pages as the
/// platform uses, and needs only a small variable store.
pub const LARGEST_BUFFER: usize = if cfg!(feature = "conformance") { 8 } else { 4 };

/// Bytes of the largest message: all of such a buffer without the shorter header.
pub const SCRATCH_LEN: usize = LARGEST_BUFFER * mm_wire::PAGE_LEN - mm_wire::HeaderFormat::V1.header_len();

/// Whether MM can serve a comm buffer there: memory that the page tables map for data, and that is not MM's own.
#[must_use]
pub fn reaches(range: AddressRange) -> bool {
    // Page 0 is not mapped.
    let page = mm_wire::PAGE_LEN as u64;
    let mapped = AddressRange::new(page, REACH.saturating_sub(page));
    mapped.is_some_and(|mapped| mapped.contains(range)) && !range.overlaps(SMRAM)
}

/// The 64-bit FNV-1a hash of bytes, by which the launcher's copy and MM's are compared.
#[must_use]
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // The vectors of draft-eastlake-fnv.
        assert_eq!(hash([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash(*b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_save_state_ends_where_the_processor_says() {
        assert_eq!(SAVE_STATE.end, u64::from(SMBASE) + 0x1_0000);
        assert_eq!(SMRAM_BASE, u64::from(SMBASE) + 0x8000);
        assert!(HANDOFF + HANDOFF_LEN as u64 <= SAVE_STATE.start);
    }
}
