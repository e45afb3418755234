//! RAM and MMRAM.
//!
//! This file is an unsafe island (`docs/unsafe.md`): it hands host memory to `SharedRegion` and
//! `Channel`.

use crate::SimError;
use mm_comm::{Channel, SharedRegion};
use mm_core::{CommBuffer, SystemMemory};
use mm_wire::mailbox::MAILBOX_LEN;
use mm_wire::{AddressRange, PAGE_LEN};
use std::cell::{Cell, RefCell};

/// The value of a read that no device answers.
const NOTHING_THERE: u8 = 0xff;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_LEN]);

/// A piece of RAM.
#[derive(Debug)]
struct Ram {
    /// Its physical address.
    start: u64,
    /// The memory in this process. It has the same address, unless a test mapped it twice.
    bytes: SharedRegion,
}

impl Ram {
    fn addresses(&self) -> Option<AddressRange> {
        AddressRange::new(self.start, self.bytes.len() as u64)
    }
}

/// All memory of a machine.
///
/// Invariant: each piece of `ram` is valid until the process ends, also without this.
#[derive(Debug)]
pub(crate) struct Memory {
    ram: RefCell<Vec<Ram>>,
    mmram: AddressRange,
    mmram_bytes: RefCell<Vec<u8>>,
    pub(crate) mmram_open: Cell<bool>,
}

impl Memory {
    pub(crate) fn new(mmram: AddressRange) -> Self {
        Self {
            ram: RefCell::default(),
            mmram,
            mmram_bytes: RefCell::new(vec![0; usize::try_from(mmram.len()).unwrap_or_default()]),
            mmram_open: Cell::new(true),
        }
    }

    /// See [`crate::Machine::allocate_pages`].
    pub(crate) fn allocate(&self, pages: usize) -> *mut u8 {
        let memory = vec![Page([0; PAGE_LEN]); pages].leak();
        let (base, len) = (memory.as_mut_ptr().cast::<u8>(), size_of_val(memory));
        if len == 0 {
            return std::ptr::null_mut();
        }
        // Code under test may get the address as a number.
        base.expose_provenance();
        // SAFETY: the bytes are leaked, so valid for reads and writes until the process ends; the
        // only reference to them was `memory`, which is not used any more.
        let region = unsafe { SharedRegion::new(base, len) };
        // Never an error: an allocation is not null, does not wrap and is at most `isize::MAX`
        // long.
        let start = base.addr() as u64;
        self.ram
            .borrow_mut()
            .extend(region.map(|bytes| Ram { start, bytes }));
        base
    }

    /// See [`crate::Machine::add_ram`].
    pub(crate) fn add(&self, start: u64, bytes: SharedRegion) {
        self.ram.borrow_mut().push(Ram { start, bytes });
    }

    /// A client's view of a comm buffer in this RAM.
    pub(crate) fn channel(&self, buffer: CommBuffer) -> Result<Channel, SimError> {
        let CommBuffer { region, mailbox } = buffer;
        let base = self.pointer(region)?;
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        let mailbox = mailbox
            .and_then(|address| AddressRange::new(address, MAILBOX_LEN as u64))
            .map(|range| self.pointer(range))
            .transpose()?;
        // SAFETY: `pointer` proved that both ranges lie in a region of `ram`, valid until the
        // process ends by this type's invariant; nothing in this crate makes a reference to it.
        let channel = unsafe { Channel::new(base, len, mailbox) }?;
        channel.take_over();
        Ok(channel)
    }

    /// A pointer to the first byte of `range`, all of which lies in one region of RAM.
    fn pointer(&self, range: AddressRange) -> Result<*mut u8, SimError> {
        let mut pointer = Err(SimError::NotRam(range));
        self.in_ram(range, |region, offset| {
            pointer = Ok(region.as_ptr().wrapping_add(offset));
            true
        });
        pointer
    }

    /// Calls `access` with the region that has all of `range`, and the offset in it; `false` if no
    /// region has.
    fn in_ram(&self, range: AddressRange, mut access: impl FnMut(&SharedRegion, usize) -> bool) -> bool {
        self.ram.borrow().iter().any(|ram| {
            ram.addresses()
                .filter(|addresses| addresses.contains(range))
                .and_then(|addresses| usize::try_from(range.start().checked_sub(addresses.start())?).ok())
                .is_some_and(|offset| access(&ram.bytes, offset))
        })
    }

    /// Calls `access` with the bytes of MMRAM at `range`; `false` if not all of them are MMRAM.
    fn in_mmram(&self, range: AddressRange, access: impl FnOnce(&mut [u8])) -> bool {
        let mut bytes = self.mmram_bytes.borrow_mut();
        let start = range.start().checked_sub(self.mmram.start());
        let place = start
            .and_then(|start| usize::try_from(start).ok())
            .zip(usize::try_from(range.len()).ok())
            .and_then(|(start, len)| bytes.get_mut(start..)?.get_mut(..len));
        place.map(access).is_some()
    }

    /// Reads like a processor that is not in MM.
    pub(crate) fn read_outside(&self, address: u64, out: &mut [u8]) {
        for (at, byte) in addresses_from(address).zip(out) {
            *byte = NOTHING_THERE;
            let Some(range) = AddressRange::new(at, 1) else {
                continue;
            };
            let copy = std::slice::from_mut(byte);
            if self.mmram.contains(range) {
                let _ = self.mmram_open.get() && self.in_mmram(range, |from| copy.copy_from_slice(from));
            } else {
                self.in_ram(range, |region, offset| region.read(offset, copy));
            }
        }
    }

    /// Writes like a processor that is not in MM.
    pub(crate) fn write_outside(&self, address: u64, bytes: &[u8]) {
        for (at, byte) in addresses_from(address).zip(bytes) {
            let Some(range) = AddressRange::new(at, 1) else {
                continue;
            };
            let byte = std::slice::from_ref(byte);
            if self.mmram.contains(range) {
                let _ = self.mmram_open.get() && self.in_mmram(range, |to| to.copy_from_slice(byte));
            } else {
                self.in_ram(range, |region, offset| region.write(offset, byte));
            }
        }
    }
}

/// Consecutive addresses, as a bus counts them.
fn addresses_from(address: u64) -> impl Iterator<Item = u64> {
    (0..u64::MAX).map(move |offset| address.wrapping_add(offset))
}

/// The same memory as MM sees it. An access lies in one piece of RAM or in MMRAM, or fails.
pub(crate) struct MmView<'m>(pub(crate) &'m Memory);

impl SystemMemory for MmView<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        AddressRange::new(address, out.len() as u64).is_some_and(|range| {
            self.0.in_mmram(range, |from| out.copy_from_slice(from))
                || self.0.in_ram(range, |region, offset| region.read(offset, out))
        })
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        AddressRange::new(address, bytes.len() as u64).is_some_and(|range| {
            self.0.in_mmram(range, |to| to.copy_from_slice(bytes))
                || self.0.in_ram(range, |region, offset| region.write(offset, bytes))
        })
    }
}
