//! The memory map, and the virtual addresses that this operating system chooses.

use alloc::vec::Vec;
use mm_wire::{AddressRange, PAGE_LEN};

/// `EfiRuntimeServicesCode`.
pub const RUNTIME_SERVICES_CODE: u32 = 5;
/// `EFI_MEMORY_RUNTIME`: the firmware needs this memory after `ExitBootServices`.
pub const MEMORY_RUNTIME: u64 = 1 << 63;

/// What memory is for (UEFI 2.11, 7.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The operating system: memory that was allocated for this application.
    Ours,
    /// The firmware until `ExitBootServices`, and nothing afterwards.
    Boot,
    /// The firmware, always.
    Runtime,
    /// Free memory, devices, tables.
    Other,
}

/// A descriptor of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The memory type.
    pub kind: u32,
    /// The physical address.
    pub start: u64,
    /// How many pages it has.
    pub pages: u64,
    /// `EFI_MEMORY_...`.
    pub attributes: u64,
    /// The virtual address.
    pub virt: u64,
}

impl Region {
    /// What it is for.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        match self.kind {
            // Memory-mapped I/O can be the firmware's, too.
            _ if self.attributes & MEMORY_RUNTIME != 0 => Owner::Runtime,
            1 | 2 => Owner::Ours,
            3 | 4 => Owner::Boot,
            _ => Owner::Other,
        }
    }

    /// Bytes of it.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.pages.saturating_mul(PAGE_LEN as u64)
    }

    /// Whether it has no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    const fn end(&self) -> u64 {
        self.start.saturating_add(self.len())
    }

    /// The virtual address of a physical address in it.
    fn translate(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.start)?;
        (offset < self.len()).then(|| self.virt.wrapping_add(offset))
    }
}

/// How the operating system changes the firmware's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It never calls `SetVirtualAddressMap`.
    None,
    /// It calls `SetVirtualAddressMap`, and each virtual address is the physical one.
    Identity,
    /// Everything moves up, by the same distance.
    Up,
    /// Each region gets its own 4 GiB, in another order.
    Shuffled,
    /// Only the pages of comm buffer and mailbox move.
    BufferAlone,
}

impl Change {
    /// The change that this word asks for.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "none" => Self::None,
            "identity" => Self::Identity,
            "up" => Self::Up,
            "shuffled" => Self::Shuffled,
            "buffer-alone" => Self::BufferAlone,
            _ => return None,
        })
    }

    /// Chooses virtual addresses. `buffer` is the memory that moves alone; the region that contains
    /// it is split for that.
    #[must_use]
    pub fn apply(self, map: &[Region], buffer: AddressRange) -> Vec<Region> {
        let runtime = map.iter().filter(|region| region.owner() == Owner::Runtime);
        if self == Self::BufferAlone {
            return runtime.flat_map(|region| split(region, buffer)).collect();
        }
        let count = runtime.clone().count() as u64;
        runtime
            .zip(0_u64..)
            .map(|(region, index)| {
                let virt = match self {
                    Self::Up => HIGH.wrapping_add(region.start),
                    Self::Shuffled => {
                        // From the last region to the first.
                        let slot = count.saturating_sub(index);
                        HIGH.wrapping_add(slot << 32) | (region.start & 0xffff_ffff)
                    }
                    _ => region.start,
                };
                Region { virt, ..*region }
            })
            .collect()
    }
}

/// Where virtual addresses start: for x86 in the upper half, for AArch64 in the half that TTBR0 translates.
const HIGH: u64 = if cfg!(target_arch = "aarch64") {
    0x0000_4000_0000_0000
} else {
    0xffff_a000_0000_0000
};

/// The parts of a region before, in and behind `buffer`, of which the second moves up.
fn split(region: &Region, buffer: AddressRange) -> Vec<Region> {
    let first = buffer.start().clamp(region.start, region.end());
    let last = buffer.end().clamp(region.start, region.end());
    [
        (region.start, first, 0),
        (first, last, HIGH),
        (last, region.end(), 0),
    ]
    .into_iter()
    .filter(|(start, end, _)| start < end)
    .map(|(start, end, distance)| Region {
        start,
        pages: end.saturating_sub(start) / PAGE_LEN as u64,
        virt: start.wrapping_add(distance),
        ..*region
    })
    .collect()
}

/// The virtual address of a physical one; `None` if the map does not have it.
#[must_use]
pub fn translate(map: &[Region], address: u64) -> Option<u64> {
    map.iter().find_map(|region| region.translate(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(kind: u32, start: u64, pages: u64) -> Region {
        let attributes = if matches!(kind, 5 | 6 | 11) {
            MEMORY_RUNTIME
        } else {
            0
        };
        Region {
            kind,
            start,
            pages,
            attributes,
            virt: 0,
        }
    }

    fn map() -> Vec<Region> {
        [
            region(4, 0, 16),
            region(2, 0x1_0000, 4),
            region(5, 0x10_0000, 2),
            region(6, 0x10_2000, 8),
            region(11, 0xffc0_0000, 4),
        ]
        .to_vec()
    }

    fn buffer() -> AddressRange {
        AddressRange::new(0x10_4000, 0x2000).unwrap()
    }

    #[test]
    fn only_the_firmwares_own_memory_gets_addresses() {
        let owners: Vec<Owner> = map().iter().map(Region::owner).collect();
        assert_eq!(
            owners,
            [
                Owner::Boot,
                Owner::Ours,
                Owner::Runtime,
                Owner::Runtime,
                Owner::Runtime
            ]
        );
        for change in [Change::Identity, Change::Up, Change::Shuffled] {
            assert_eq!(change.apply(&map(), buffer()).len(), 3, "{change:?}");
        }
    }

    #[test]
    fn each_change_moves_what_it_says() {
        let at = |change: Change, address| translate(&change.apply(&map(), buffer()), address);
        for address in [0x10_0123, 0x10_4000, 0x10_6000, 0xffc0_0001] {
            assert_eq!(at(Change::Identity, address), Some(address));
            assert_eq!(at(Change::Up, address), Some(HIGH + address));
            assert_ne!(at(Change::Shuffled, address), Some(address));
        }
        assert_eq!(at(Change::Up, 0x1_0000), None);
        assert_eq!(at(Change::Up, 0x10_a000), None);
        // The order of regions changes; the bytes of a region stay together.
        assert!(at(Change::Shuffled, 0x10_0000) > at(Change::Shuffled, 0x10_2000));
        assert_eq!(
            at(Change::Shuffled, 0x10_2000).map(|virt| virt + 0x7fff),
            at(Change::Shuffled, 0x10_9fff)
        );
    }

    #[test]
    fn buffer_alone_moves_its_pages_and_no_others() {
        let moved = Change::BufferAlone.apply(&map(), buffer());
        for (address, distance) in [
            (0x10_0000, 0),
            (0x10_3fff, 0),
            (0x10_4000, HIGH),
            (0x10_5fff, HIGH),
            (0x10_6000, 0),
            (0x10_9fff, 0),
            (0xffc0_0000, 0),
        ] {
            assert_eq!(translate(&moved, address), Some(address.wrapping_add(distance)));
        }
        assert_eq!(moved.iter().map(|region| region.pages).sum::<u64>(), 2 + 8 + 4);
    }

    #[test]
    fn words_are_known_or_refused() {
        assert_eq!(Change::of_word("buffer-alone"), Some(Change::BufferAlone));
        assert_eq!(Change::of_word("none"), Some(Change::None));
        assert_eq!(Change::of_word(""), None);
    }
}
