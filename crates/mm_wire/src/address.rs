//! Ranges of physical addresses whose end is known to be representable.

use core::fmt;

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
