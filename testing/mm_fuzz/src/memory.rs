//! Memory that a target shares with the other side, and a trigger that raises nothing. An unsafe
//! island (`docs/unsafe.md`): it makes channels over leaked memory.

use mm_comm::{Channel, ChannelError, SharedRegion};
use mm_core::CommBuffer;
use mm_runtime::hobs::{self, HobError, Source};
use mm_wire::PAGE_LEN;
use mm_wire::hob::{CommBufferPlace, HOB_LIST_GUID};
use patina::component::service::IntoService;
use patina::standard::efi;
use patina_mm::component::sw_mmi_manager::MmiError;
use patina_mm::config::CommunicateBuffer;
use patina_mm::service::{MmProgress, SwMmiTrigger};
use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// Bytes on each side of a block. With the feature `exact` there are none: an access beyond a block is one beyond its
/// allocation, which AddressSanitizer reports even if it only reads.
const GUARD: usize = if cfg!(feature = "exact") { 0 } else { 64 };
/// The value of the guard bytes.
const GUARD_BYTE: u8 = 0xa7;

/// What a block is for. Blocks of different purposes are different memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A comm buffer.
    Region,
    /// The status mailbox.
    Mailbox,
    /// Memory of any other kind.
    Other,
}

/// Memory between guard bytes, aligned to a page. It lives until the process ends and is used again by the next case.
#[derive(Debug)]
pub struct Block {
    inside: SharedRegion,
    whole: SharedRegion,
}

thread_local! {
    static BLOCKS: RefCell<BTreeMap<(Purpose, usize), &'static Block>> = const { RefCell::new(BTreeMap::new()) };
}

impl Block {
    /// The block of this purpose and length, with `fill` in each byte.
    #[must_use]
    pub fn of(purpose: Purpose, len: usize, fill: u8) -> &'static Self {
        let block = BLOCKS.with_borrow_mut(|blocks| {
            *blocks
                .entry((purpose, len))
                .or_insert_with(|| Box::leak(Box::new(Self::allocate(len))))
        });
        let total = block.whole.len();
        assert!(block.whole.write(0, &vec![GUARD_BYTE; total]));
        assert!(block.inside.write(0, &vec![fill; len]));
        block
    }

    fn allocate(len: usize) -> Self {
        let before = GUARD.next_multiple_of(PAGE_LEN);
        let layout = Layout::from_size_align((before + len + GUARD).max(1), PAGE_LEN).unwrap();
        // SAFETY: the layout has at least one byte.
        let base =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let start = base.as_ptr().wrapping_add(before);
        // SAFETY: these bytes were allocated, are never freed, and no reference to them exists.
        let whole = unsafe { SharedRegion::new(start.wrapping_sub(GUARD), len + 2 * GUARD) };
        // SAFETY: the same memory without its guards; both are accessed as volatile, by this thread.
        let inside = unsafe { SharedRegion::new(start, len) };
        Self {
            inside: inside.unwrap(),
            whole: whole.unwrap(),
        }
    }

    /// The memory without its guards.
    #[must_use]
    pub const fn shared(&self) -> &SharedRegion {
        &self.inside
    }

    /// Where it starts.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.inside.as_ptr().addr() as u64
    }

    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.inside.len()];
        assert!(self.inside.read(0, &mut bytes));
        bytes
    }

    /// Writes as many bytes as fit, like the other side.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        let room = self.inside.len().saturating_sub(offset);
        let bytes = &bytes[..bytes.len().min(room)];
        let _nothing_fits = self.inside.write(offset, bytes);
    }

    /// Fails if a byte outside the block was written.
    pub fn check_guards(&self) {
        let mut bytes = vec![0; self.whole.len()];
        assert!(self.whole.read(0, &mut bytes));
        let (before, rest) = bytes.split_at(GUARD);
        let (_, behind) = rest.split_at(self.inside.len());
        let mut guards = before.iter().chain(behind);
        assert!(
            guards.all(|byte| *byte == GUARD_BYTE),
            "a byte outside the block was written"
        );
    }

    /// Another region over the first `len` bytes at most, for code that takes over a region.
    #[must_use]
    pub fn region(&self, len: usize) -> SharedRegion {
        self.region_at(0, len)
    }

    /// The same from `offset` on.
    #[must_use]
    pub fn region_at(&self, offset: usize, len: usize) -> SharedRegion {
        let offset = offset.min(self.inside.len());
        let len = len.min(self.inside.len() - offset);
        // SAFETY: the memory is never freed, and only accessed as volatile, by this thread.
        unsafe { SharedRegion::new(self.inside.as_ptr().wrapping_add(offset), len) }.unwrap()
    }

    /// Makes a channel over this comm buffer.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] if the memory is unfit.
    pub fn channel(&self, mailbox: Option<&Self>) -> Result<Channel, ChannelError> {
        let mailbox = mailbox.map(|mailbox| mailbox.inside.as_ptr());
        // SAFETY: both blocks are never freed, and only accessed as volatile, by this thread.
        let channel = unsafe { Channel::new(self.inside.as_ptr(), self.inside.len(), mailbox) }?;
        channel.take_over();
        Ok(channel)
    }
}

/// The client's side of a comm buffer of the simulated machine.
#[must_use]
pub fn comm_buffer(buffer: CommBuffer, id: u8) -> CommunicateBuffer {
    let len = buffer.region.len() as usize;
    // SAFETY: the simulated machine allocated region and mailbox for this buffer, and never frees them.
    unsafe { CommunicateBuffer::from_firmware_region(buffer.region.start(), len, id, buffer.mailbox) }
        .unwrap()
}

/// Another view of a comm buffer of the simulated machine.
#[must_use]
pub fn view(buffer: CommBuffer) -> SharedRegion {
    let base = std::ptr::with_exposed_provenance_mut(buffer.region.start() as usize);
    // SAFETY: the simulated machine allocated the region, and never frees it; all accesses are
    // volatile, by this thread.
    unsafe { SharedRegion::new(base, buffer.region.len() as usize) }.unwrap()
}

/// What `mm_runtime` finds in a HOB list, of which the last HOB ends the list. It is behind `others`
/// configuration tables; `None` if it is not among them, `Some(None)` if its address is null.
///
/// # Errors
///
/// Those of [`hobs::find`].
pub fn find_in_hobs(
    list: Option<Option<&[u8]>>,
    others: usize,
    source: Source,
) -> Result<CommBufferPlace, HobError> {
    // No more memory than the list has, so that AddressSanitizer guards its end.
    let list = list.map(|list| list.map(Box::<[u8]>::from));
    let table = |vendor_guid, vendor_table: *const u8| efi::ConfigurationTable {
        vendor_guid,
        vendor_table: vendor_table.cast_mut().cast(),
    };
    let other = efi::Guid::from_bytes(&[0x5a; 16]);
    let mut tables: Vec<_> = (0..others).map(|_| table(other, ptr::null())).collect();
    if let Some(list) = &list {
        let list_guid = efi::Guid::from_bytes(&HOB_LIST_GUID.to_bytes());
        tables.push(table(
            list_guid,
            list.as_deref().map_or(ptr::null(), <[u8]>::as_ptr),
        ));
    }
    // SAFETY: numbers and pointers, all of which may be zero.
    let mut system: efi::SystemTable = unsafe { MaybeUninit::zeroed().assume_init() };
    system.number_of_table_entries = tables.len();
    system.configuration_table = tables.as_mut_ptr();
    // SAFETY: the table and the list, which has an end, live until this returns.
    unsafe { hobs::find(&raw const system, source) }
}

/// A trigger that calls code with the address of the request, and raises nothing.
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
pub struct Trigger(Box<dyn Fn(u64)>);

impl Trigger {
    /// Calls this code.
    #[must_use]
    pub fn new(code: impl Fn(u64) + 'static) -> Self {
        Self(Box::new(code))
    }
}

// SAFETY: nothing is raised at all.
unsafe impl SwMmiTrigger for Trigger {
    fn trigger_sw_mmi(&self, _: u8, _: u8) -> patina::error::Result<()> {
        Ok(())
    }

    fn enter_mm(&self, comm_buffer: u64, _: u8, _: u8) -> Result<MmProgress, MmiError> {
        (self.0)(comm_buffer);
        Ok(MmProgress::Raised)
    }
}
