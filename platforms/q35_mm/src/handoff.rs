//! What the launcher passes to MM before SMRAM is locked.
//!
//! The block is in SMRAM at [`crate::layout::HANDOFF`]. MM copies it at the first SMI after the
//! image was loaded, checks the copy, and responds in the field `state`, which the launcher reads
//! while SMRAM is still open. After that MM never looks at the block again.

use mm_core::CommBuffer;
use mm_wire::{AddressRange, Guid, guid};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The HOB that announces the runtime driver's comm buffer. Its data is that of edk2's comm-buffer
/// HOB, under a GUID of this platform: that HOB would make it the Patina components' buffer.
pub const RUNTIME_BUFFER_HOB: Guid = guid!("c8f3a1d6-6a0e-4c38-9b1e-64ab0dc9d1f7");

/// `MMHNDOFF`.
pub const SIGNATURE: u64 = u64::from_le_bytes(*b"MMHNDOFF");

/// The most comm buffers that can be handed over.
pub const MAX_BUFFERS: usize = 4;

/// Where `state` is in the block.
pub const STATE_OFFSET: u64 = 16;

/// The block. 120 bytes, little-endian.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq)]
#[repr(C)]
pub struct HandOff {
    /// @0 [`SIGNATURE`].
    pub signature: U64,
    /// @8 How many of `buffers` are meant.
    pub count: U64,
    /// @16 One of [`State`]'s numbers: [`State::New`] from the launcher, another one from MM.
    pub state: U64,
    /// @24 The comm buffers.
    pub buffers: [BufferEntry; MAX_BUFFERS],
}

/// A comm buffer in a [`HandOff`], and in a message of [`crate::control`]. 24 bytes.
#[derive(
    Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq,
)]
#[repr(C)]
pub struct BufferEntry {
    /// @0 The region's first address.
    pub start: U64,
    /// @8 Bytes of the region.
    pub len: U64,
    /// @16 The address of the status mailbox, or zero if there is none.
    pub mailbox: U64,
}

/// What MM made of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// MM has not run yet.
    New,
    /// MM serves the buffers.
    Ready,
    /// MM does not know the block, or its comm buffers cannot be used.
    Refused,
}

impl State {
    /// The number in the block.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::New => 0,
            Self::Ready => 1,
            Self::Refused => 2,
        }
    }

    /// The state that a number means.
    #[must_use]
    pub fn of_number(number: u64) -> Option<Self> {
        [Self::New, Self::Ready, Self::Refused]
            .into_iter()
            .find(|state| state.number() == number)
    }
}

impl HandOff {
    /// Makes the block; `None` for more than [`MAX_BUFFERS`].
    #[must_use]
    pub fn new(buffers: &[CommBuffer]) -> Option<Self> {
        let mut entries = [BufferEntry::default(); MAX_BUFFERS];
        let used = entries.get_mut(..buffers.len())?;
        for (entry, buffer) in used.iter_mut().zip(buffers) {
            *entry = (*buffer).into();
        }
        Some(Self {
            signature: SIGNATURE.into(),
            count: (buffers.len() as u64).into(),
            state: State::New.number().into(),
            buffers: entries,
        })
    }

    /// The comm buffers; `None` if the block is not one, or an entry is not a range of addresses.
    #[must_use]
    pub fn comm_buffers(&self) -> Option<impl Iterator<Item = CommBuffer>> {
        let count = usize::try_from(self.count.get()).ok()?;
        let used = self.buffers.get(..count)?;
        let sound =
            self.signature.get() == SIGNATURE && used.iter().all(|entry| entry.comm_buffer().is_some());
        sound.then(|| used.iter().filter_map(BufferEntry::comm_buffer))
    }
}

impl BufferEntry {
    /// The comm buffer; `None` if the region is not a range of addresses.
    #[must_use]
    pub fn comm_buffer(&self) -> Option<CommBuffer> {
        Some(CommBuffer {
            region: AddressRange::new(self.start.get(), self.len.get())?,
            mailbox: Some(self.mailbox.get()).filter(|address| *address != 0),
        })
    }
}

impl From<CommBuffer> for BufferEntry {
    fn from(buffer: CommBuffer) -> Self {
        Self {
            start: buffer.region.start().into(),
            len: buffer.region.len().into(),
            mailbox: buffer.mailbox.unwrap_or(0).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HANDOFF_LEN;
    use core::mem::offset_of;

    fn buffer(start: u64) -> CommBuffer {
        CommBuffer {
            region: AddressRange::new(start, 0x4000).unwrap(),
            mailbox: (start == 0x1000).then_some(0x5000),
        }
    }

    #[test]
    fn buffers_are_handed_over_as_they_are() {
        let buffers = [buffer(0x1000), buffer(0x8000)];
        let block = HandOff::new(&buffers).unwrap();
        let read = HandOff::read_from_bytes(block.as_bytes()).unwrap();
        assert!(read.comm_buffers().unwrap().eq(buffers));
        assert_eq!(offset_of!(HandOff, state) as u64, STATE_OFFSET);
        assert!(size_of::<HandOff>() <= HANDOFF_LEN);
    }

    #[test]
    fn an_invalid_hand_off_block_has_no_buffers() {
        let good = HandOff::new(&[buffer(0x1000)]).unwrap();
        for broken in [
            HandOff {
                signature: 1.into(),
                ..good
            },
            HandOff {
                count: 5.into(),
                ..good
            },
            HandOff {
                count: 2.into(),
                ..good
            },
            HandOff {
                count: u64::MAX.into(),
                ..good
            },
        ] {
            assert!(broken.comm_buffers().is_none(), "{broken:?}");
        }
        assert!(HandOff::new(&[buffer(0x1000); MAX_BUFFERS + 1]).is_none());
        assert!(
            HandOff::new(&[])
                .unwrap()
                .comm_buffers()
                .unwrap()
                .next()
                .is_none()
        );
    }
}
