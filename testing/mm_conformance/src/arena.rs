//! Memory for comm buffers that is reused for each client.

use core::cell::Cell;
use mm_comm::SharedRegion;
use mm_wire::PAGE_LEN;

/// Hands out pages of one region, for a site whose machine does not have more memory that MM
/// accepts.
pub struct Arena {
    region: SharedRegion,
    /// Bytes that are allocated.
    taken: Cell<usize>,
    /// How many of them stay allocated from client to client.
    kept: Cell<Option<usize>>,
}

impl Arena {
    /// Allocates from this region.
    #[must_use]
    pub const fn new(region: SharedRegion) -> Self {
        Self {
            region,
            taken: Cell::new(0),
            kept: Cell::new(None),
        }
    }

    /// Frees everything that was allocated since the first call of this method.
    pub fn restart(&self) {
        let kept = self.kept.get().unwrap_or_else(|| self.taken.get());
        self.kept.set(Some(kept));
        self.taken.set(kept);
    }

    /// Allocates zeroed pages; `None` if too few are left.
    #[must_use]
    pub fn allocate(&self, pages: usize) -> Option<*mut u8> {
        let (start, len) = (self.taken.get(), pages.checked_mul(PAGE_LEN)?);
        if !self.region.wipe(start, len) {
            return None;
        }
        self.taken.set(start.checked_add(len)?);
        Some(self.region.as_ptr().wrapping_add(start))
    }
}
