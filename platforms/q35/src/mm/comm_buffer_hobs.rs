//! Makes the HOBs that say where the comm buffers are. An unsafe island (`docs/unsafe.md`).
//!
//! On a platform with MM the PEI phase sets comm buffers aside and announces them in HOBs. Stock
//! OVMF without SMM does not, so this code does it as PEI would, before the core takes over the HOB
//! list: memory from the top of PEI's free memory, HOBs at the end of the list (PI 1.9, volume 3,
//! 5).

use core::ffi::c_void;
use mm_wire::PAGE_LEN;
use mm_wire::hob::{COMM_REGION_HOB_GUID, Owner};
use patina::pi::hob::{
    END_OF_HOB_LIST, GUID_EXTENSION, HANDOFF, MEMORY_ALLOCATION, PhaseHandoffInformationTable,
};
use q35_mm::handoff::RUNTIME_BUFFER_HOB;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

/// Pages of each comm buffer; a page for its mailbox follows.
const PAGES: u64 = 4;
const PAGE: u64 = PAGE_LEN as u64;

/// EfiRuntimeServicesData, which the operating system leaves alone.
const RUNTIME_SERVICES_DATA: u32 = 6;

#[derive(IntoBytes, Immutable, Unaligned)]
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

/// The HOBs of all comm buffers, and the end of the list.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Hobs {
    supervisor: Announced<CommRegion>,
    user: Announced<CommRegion>,
    /// The runtime driver's comm buffer.
    runtime: Announced<CommBuffer>,
    end: Header,
}

/// The HOBs of one comm buffer.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Announced<A> {
    allocation: Allocation,
    announcement: A,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Allocation {
    header: Header,
    name: [u8; 16],
    base: U64,
    len: U64,
    memory_type: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct CommRegion {
    header: Header,
    name: [u8; 16],
    owner: U64,
    start: U64,
    pages: U64,
    status: U64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct CommBuffer {
    header: Header,
    name: [u8; 16],
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
    let Some(Placed { at, hobs, base, len }) = place(&mut table) else {
        return;
    };
    let at = core::ptr::with_exposed_provenance_mut::<Hobs>(at);
    // SAFETY: `place` found room for it between the end of the list, whose end HOB it replaces, and
    // what it took for the comm buffers: PEI's free memory, which may be used.
    unsafe { at.write_unaligned(hobs) };
    let base = core::ptr::with_exposed_provenance_mut::<u8>(base);
    // SAFETY: `place` took these bytes from the end of free memory.
    unsafe { base.write_bytes(0, len) };
    // SAFETY: the same PHIT HOB that was read above. The HOBs that it counts are written now.
    unsafe { phit.write(table) };
}

/// The addresses of comm buffers and HOBs.
struct Placed {
    at: usize,
    hobs: Hobs,
    /// The comm buffers and their mailboxes.
    base: usize,
    len: usize,
}

/// One comm buffer's memory.
struct Memory {
    start: u64,
    mailbox: u64,
    len: u64,
}

impl Memory {
    /// Takes it from the end of free memory; `None` if there is not enough.
    fn take(table: &mut PhaseHandoffInformationTable) -> Option<Self> {
        let len = PAGES.checked_add(1)?.checked_mul(PAGE)?;
        let start = (table.free_memory_top & !(PAGE - 1)).checked_sub(len)?;
        table.free_memory_top = start;
        Some(Self {
            start,
            mailbox: start.checked_add(PAGES.checked_mul(PAGE)?)?,
            len,
        })
    }

    fn announced<A>(&self, announcement: A) -> Announced<A> {
        Announced {
            allocation: Allocation {
                header: Header::of::<Allocation>(MEMORY_ALLOCATION),
                name: [0; 16],
                base: self.start.into(),
                len: self.len.into(),
                memory_type: RUNTIME_SERVICES_DATA.into(),
                reserved: 0.into(),
            },
            announcement,
        }
    }

    fn region_of(&self, owner: Owner) -> Announced<CommRegion> {
        self.announced(CommRegion {
            header: Header::of::<CommRegion>(GUID_EXTENSION),
            name: COMM_REGION_HOB_GUID.to_bytes(),
            owner: u64::from(owner.number()).into(),
            start: self.start.into(),
            pages: PAGES.into(),
            status: self.mailbox.into(),
        })
    }

    fn buffer_of_the_runtime_driver(&self) -> Announced<CommBuffer> {
        self.announced(CommBuffer {
            header: Header::of::<CommBuffer>(GUID_EXTENSION),
            name: RUNTIME_BUFFER_HOB.to_bytes(),
            start: self.start.into(),
            pages: PAGES.into(),
            status: self.mailbox.into(),
        })
    }
}

/// Takes memory for the comm buffers and their mailboxes, and room for HOBs; `None` if there is not enough.
fn place(table: &mut PhaseHandoffInformationTable) -> Option<Placed> {
    let top = table.free_memory_top & !(PAGE - 1);
    let [supervisor, user, runtime] = [Memory::take(table)?, Memory::take(table)?, Memory::take(table)?];
    let base = table.free_memory_top;
    // edk2's PEI core has `end_of_hob_list` name the end HOB, and free memory start behind it
    // (`MdeModulePkg/Core/Pei/Hob`).
    let at = table.end_of_hob_list;
    let end = at.checked_add(size_of::<Hobs>() as u64)?;
    if end.max(table.free_memory_bottom) > base {
        return None;
    }
    table.free_memory_bottom = table.free_memory_bottom.max(end);
    table.end_of_hob_list = end.checked_sub(size_of::<Header>() as u64)?;
    Some(Placed {
        at: usize::try_from(at).ok()?,
        hobs: Hobs {
            supervisor: supervisor.region_of(Owner::Supervisor),
            user: user.region_of(Owner::User),
            runtime: runtime.buffer_of_the_runtime_driver(),
            end: Header::of::<Header>(END_OF_HOB_LIST),
        },
        base: usize::try_from(base).ok()?,
        len: usize::try_from(top.checked_sub(base)?).ok()?,
    })
}
