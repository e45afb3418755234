//! Addresses of comm buffers and mailboxes: their ranges, and the one place where they are checked.

use crate::PAGE_LEN;
use crate::mailbox::{MAILBOX_ALIGN, MAILBOX_LEN};
use core::fmt;
use thiserror::Error;

/// A non-empty range of physical addresses that does not wrap around the end of the address space.
///
/// Holding one proves `start + len <= u64::MAX` and `len > 0`; it says nothing about what is mapped
/// there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    start: u64,
    len: u64,
}

impl AddressRange {
    /// Makes the range `start .. start + len`; `None` if it is empty or its end is not a 64-bit
    /// address.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(_) if len > 0 => Some(Self { start, len }),
            _ => None,
        }
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The number of bytes, never zero.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an AddressRange is never empty")]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The first address after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        // Never saturates: `new` proved that the sum is representable.
        self.start.saturating_add(self.len)
    }

    /// Whether the two ranges share at least one address.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether every address of `inner` lies in this range.
    #[must_use]
    pub const fn contains(self, inner: Self) -> bool {
        self.start <= inner.start && inner.end() <= self.end()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why addresses cannot be those of a comm buffer and its mailbox. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// The comm buffer is at address zero.
    #[error("platform: the comm buffer's address is null")]
    Null,
    /// The comm buffer does not start on a page.
    #[error("platform: the comm buffer at {address:#x} is not aligned to 4096 bytes")]
    NotPageAligned {
        /// Its address.
        address: u64,
    },
    /// The comm buffer goes past the end of the address space, or is larger than a Rust object may
    /// be.
    #[error("platform: {len} bytes from {address:#x} go past the end of the address space")]
    Wraps {
        /// Its address.
        address: u64,
        /// Its length.
        len: u64,
    },
    /// The mailbox is at address zero.
    #[error("platform: the status mailbox's address is null")]
    MailboxNull,
    /// The mailbox is not aligned for its 64-bit fields.
    #[error("platform: the status mailbox at {address:#x} is not aligned to 8 bytes")]
    MailboxMisaligned {
        /// Its address.
        address: u64,
    },
    /// The mailbox goes past the end of the address space.
    #[error("platform: the status mailbox at {address:#x} goes past the end of the address space")]
    MailboxWraps {
        /// Its address.
        address: u64,
    },
    /// The mailbox overlaps its comm buffer.
    #[error("platform: the status mailbox {mailbox} overlaps its comm buffer {region}")]
    MailboxInRegion {
        /// The mailbox's addresses.
        mailbox: AddressRange,
        /// The comm buffer's addresses.
        region: AddressRange,
    },
}

/// Checks the addresses of a comm buffer and its mailbox, in this order: the buffer's address, its
/// alignment, its end, then the mailbox, which is outside the buffer. Returns the buffer's
/// addresses.
///
/// # Errors
///
/// An [`AddressError`], with the number that is wrong.
pub fn check_comm_buffer(address: u64, len: u64, mailbox: Option<u64>) -> Result<AddressRange, AddressError> {
    if address == 0 {
        return Err(AddressError::Null);
    }
    if !address.is_multiple_of(PAGE_LEN as u64) {
        return Err(AddressError::NotPageAligned { address });
    }
    let region = AddressRange::new(address, len).ok_or(AddressError::Wraps { address, len })?;
    match mailbox.map(check_mailbox).transpose()? {
        Some(mailbox) if mailbox.overlaps(region) => Err(AddressError::MailboxInRegion { mailbox, region }),
        _ => Ok(region),
    }
}

/// Checks the address of a mailbox, in this order: null, alignment, end. Returns the mailbox's
/// addresses.
///
/// # Errors
///
/// [`AddressError::MailboxNull`], [`AddressError::MailboxMisaligned`],
/// [`AddressError::MailboxWraps`].
pub fn check_mailbox(address: u64) -> Result<AddressRange, AddressError> {
    if address == 0 {
        return Err(AddressError::MailboxNull);
    }
    if !address.is_multiple_of(MAILBOX_ALIGN as u64) {
        return Err(AddressError::MailboxMisaligned { address });
    }
    AddressRange::new(address, MAILBOX_LEN as u64).ok_or(AddressError::MailboxWraps { address })
}

#[cfg(test)]
mod tests {
    use super::AddressRange;

    fn range(start: u64, len: u64) -> AddressRange {
        AddressRange::new(start, len).unwrap()
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        assert_eq!(AddressRange::new(0x1000, 0), None);
        assert_eq!(AddressRange::new(u64::MAX, 1), None);
        assert_eq!(AddressRange::new(u64::MAX - 4095, 4097), None);
        assert!(AddressRange::new(u64::MAX - 1, 1).is_some());
    }

    #[test]
    fn adjacent_ranges_do_not_overlap() {
        assert!(!range(0x1000, 0x1000).overlaps(range(0x2000, 0x1000)));
        assert!(!range(0x2000, 0x1000).overlaps(range(0x1000, 0x1000)));
        assert!(range(0x1000, 0x1001).overlaps(range(0x2000, 0x1000)));
        assert!(range(0x1000, 0x4000).overlaps(range(0x2000, 1)));
    }

    #[test]
    fn range_contains_itself_and_nothing_larger() {
        let outer = range(0x1000, 0x1000);
        assert!(outer.contains(outer));
        assert!(outer.contains(range(0x1fff, 1)));
        assert!(!outer.contains(range(0x1fff, 2)));
        assert!(!outer.contains(range(0xfff, 2)));
    }
}
