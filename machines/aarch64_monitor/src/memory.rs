//! Non-secure memory as the secure world uses it: copied, without references to it, and within bounds.
//!
//! The monitor runs with its MMU off, so that its accesses are secure ones. They reach non-secure
//! RAM since QEMU's `virt` has its RAM in both address spaces. If a memory controller keeps the two
//! apart (a TZC-400), a secure world must map such memory as non-secure to see what the other world
//! wrote.

use mm_comm::SharedRegion;
use mm_core::SystemMemory;
use mm_wire::AddressRange;

/// A window into non-secure memory. Everything outside it is inaccessible, whatever the other world
/// says.
#[derive(Debug)]
pub struct Window<'a> {
    ram: &'a SharedRegion,
    range: AddressRange,
}

impl<'a> Window<'a> {
    /// Opens a window; `None` if it does not lie in RAM.
    #[must_use]
    pub fn new(ram: &'a SharedRegion, range: AddressRange) -> Option<Self> {
        ram.range()?.contains(range).then_some(Self { ram, range })
    }

    /// The offset of the bytes in RAM; `None` if they are not all in the window.
    fn offset(&self, address: u64, len: usize) -> Option<usize> {
        let bytes = AddressRange::new(address, len as u64)?;
        let start = self.ram.range()?.start();
        self.range
            .contains(bytes)
            .then(|| usize::try_from(address.checked_sub(start)?).ok())?
    }
}

impl SystemMemory for Window<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        self.offset(address, out.len())
            .is_some_and(|offset| self.ram.read(offset, out))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        self.offset(address, bytes.len())
            .is_some_and(|offset| self.ram.write(offset, bytes))
    }
}
