//! Makes the HOBs that say where the comm buffers are. An unsafe island (`docs/unsafe.md`).
//!
//! A platform with MM has its PEI phase set comm buffers aside and say so in HOBs. Stock OVMF
//! without SMM does not, so that this does, with PEI's means, before the core takes the HOB list
//! over: memory from the top of PEI's free memory, HOBs at the end of the list (PI 1.9, volume 3,
//! 5).

use core::ffi::c_void;
use mm_wire::PAGE_LEN;
use mm_wire::hob::COMM_REGION_HOB_GUID;
use patina::pi::hob::{
    END_OF_HOB_LIST, GUID_EXTENSION, HANDOFF, MEMORY_ALLOCATION, PhaseHandoffInformationTable,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Pages of each comm buffer, the supervisor's (0) and the user's (1); a page for its mailbox follows.
const BUFFERS: [u64; 2] = [4, 4];
const PAGE: u64 = PAGE_LEN as u64;

/// EfiRuntimeServicesData, which the operating system leaves alone.
const RUNTIME_SERVICES_DATA: u32 = 6;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    hob_type: U16,
    len: U16,
    reserved: U32,
}

impl Header {
    fn of<T>(hob_type: u16) -> Self {
        // The HOBs here have less than 64 KiB.
        let len = u16::try_from(size_of::<T>()).unwrap_or(u16::MAX);
        Self {
            hob_type: hob_type.into(),
            len: len.into(),
            reserved: 0.into(),
        }
    }
}

/// The HOBs of one comm buffer, and the end of the list.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Hobs {
    allocation: Allocation,
    region: CommRegion,
    end: Header,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Allocation {
    header: Header,
    name: [u8; 16],
    base: U64,
    len: U64,
    memory_type: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct CommRegion {
    header: Header,
    name: [u8; 16],
    owner: U64,
    start: U64,
    pages: U64,
    status: U64,
}

/// Adds the HOBs of all comm buffers to the list. If there is no room for all of them the list
/// stays as it is, and MM is not configured.
///
/// # Safety
///
/// `hob_list` is the list that the PEI phase handed to the core, which has not looked at it yet. No
/// other code uses it.
pub(crate) unsafe fn add(hob_list: *const c_void) {
    let phit = hob_list.cast::<PhaseHandoffInformationTable>().cast_mut();
    // SAFETY: a HOB list starts with its PHIT HOB (PI 1.9, volume 3, 4.3).
    let mut table = unsafe { phit.read() };
    if table.header.r#type != HANDOFF {
        return;
    }
    let mut owner = 0;
    let all = BUFFERS.map(|pages| {
        let placed = place(&mut table, owner, pages);
        owner = owner.saturating_add(1);
        placed
    });
    if all.iter().any(Option::is_none) {
        return;
    }
    for Placed { at, hobs, base, len } in all.into_iter().flatten() {
        let at = core::ptr::with_exposed_provenance_mut::<Hobs>(at);
        // SAFETY: `place` found room for it between the end of the list, whose end HOB it replaces,
        // and what it took for the comm buffer: PEI's free memory, which is there to be given.
        unsafe { at.write_unaligned(hobs) };
        let base = core::ptr::with_exposed_provenance_mut::<u8>(base);
        // SAFETY: `place` took these bytes from the end of free memory.
        unsafe { base.write_bytes(0, len) };
    }
    // SAFETY: as for the reading above. The HOBs that it counts are written.
    unsafe { phit.write(table) };
}

/// Where things go.
struct Placed {
    at: usize,
    hobs: Hobs,
    /// The comm buffer and its mailbox.
    base: usize,
    len: usize,
}

/// Takes memory for a comm buffer and its mailbox, and room for HOBs; `None` if there is not enough.
fn place(table: &mut PhaseHandoffInformationTable, owner: u64, pages: u64) -> Option<Placed> {
    let len = pages.checked_add(1)?.checked_mul(PAGE)?;
    let base = (table.free_memory_top & !(PAGE - 1)).checked_sub(len)?;
    // edk2's PEI core has `end_of_hob_list` name the end HOB, and free memory start behind it
    // (`MdeModulePkg/Core/Pei/Hob`).
    let at = table.end_of_hob_list;
    let end = at.checked_add(size_of::<Hobs>() as u64)?;
    if end.max(table.free_memory_bottom) > base {
        return None;
    }
    table.free_memory_top = base;
    table.free_memory_bottom = table.free_memory_bottom.max(end);
    table.end_of_hob_list = end.checked_sub(size_of::<Header>() as u64)?;
    let hobs = Hobs {
        allocation: Allocation {
            header: Header::of::<Allocation>(MEMORY_ALLOCATION),
            name: [0; 16],
            base: base.into(),
            len: len.into(),
            memory_type: RUNTIME_SERVICES_DATA.into(),
            reserved: 0.into(),
        },
        region: CommRegion {
            header: Header::of::<CommRegion>(GUID_EXTENSION),
            name: COMM_REGION_HOB_GUID.to_bytes(),
            owner: owner.into(),
            start: base.into(),
            pages: pages.into(),
            status: base.checked_add(pages.checked_mul(PAGE)?)?.into(),
        },
        end: Header::of::<Header>(END_OF_HOB_LIST),
    };
    Some(Placed {
        at: usize::try_from(at).ok()?,
        hobs,
        base: usize::try_from(base).ok()?,
        len: usize::try_from(len).ok()?,
    })
}
