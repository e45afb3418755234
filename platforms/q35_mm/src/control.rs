//! Messages to the image itself.
//!
//! | function | request behind it | response | in which image |
//! |---|---|---|---|
//! | [`STATE`] | nothing | [`StateOfMm`] | each |
//! | [`BUFFERS`] | up to 4 [`BufferEntry`] | u64 EFI status, then why not, as text | feature `conformance` |
//! | [`REPORT`] | nothing | what the last call of the suite led to, as text | feature `conformance` |
//! | [`FAULT`] | nothing | none: MM stops | feature `conformance` |
//!
//! A request starts with the function, a little-endian u64.

use crate::handoff::BufferEntry;
use mm_wire::{Guid, guid};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The recipient of these messages.
pub const GUID: Guid = guid!("e1a7c1c5-0f3b-4f0e-9b5b-6f3c5b3c9d21");

/// Asks for MM's own state.
pub const STATE: u64 = 1;
/// Makes the suite's MM side serve these comm buffers, instead of those of the last such message.
/// They may include comm buffers of the hand-off, which the platform's handlers then do not serve
/// any more.
pub const BUFFERS: u64 = 2;
/// Asks what MM did about the suite's comm buffers.
pub const REPORT: u64 = 3;
/// Makes a handler call itself until the stack ends.
pub const FAULT: u64 = 4;

/// The most comm buffers of [`BUFFERS`].
pub const MAX_BUFFERS: usize = 4;

/// MM's own state. 40 bytes.
#[derive(
    Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq,
)]
#[repr(C)]
pub struct StateOfMm {
    /// @0 SMIs since the image was loaded, this one included.
    pub smis: U64,
    /// @8 How often the root handler ran. It runs after the response to this message: one less than
    /// `smis` once all goes well.
    pub root_calls: U64,
    /// @16 The command port's value at the last run of the root handler.
    pub last_command: U64,
    /// @24 The data port's value then.
    pub last_data: U64,
    /// @32 The hash of [`crate::layout::CONSTANT`] as MM sees it.
    pub constant_hash: U64,
}

/// Splits a request into its function and what follows.
#[must_use]
pub fn split(request: &[u8]) -> Option<(u64, &[u8])> {
    let (function, rest) = U64::read_from_prefix(request).ok()?;
    Some((function.get(), rest))
}

/// The entries of a [`BUFFERS`] request; `None` if they are too many or one is cut off.
#[must_use]
pub fn buffer_entries(body: &[u8]) -> Option<&[BufferEntry]> {
    let entries = <[BufferEntry]>::ref_from_bytes(body).ok()?;
    (entries.len() <= MAX_BUFFERS).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_split() {
        let request = [STATE.as_bytes(), b"rest"].concat();
        assert_eq!(split(&request), Some((STATE, b"rest".as_slice())));
        assert_eq!(split(&request[..7]), None);
    }

    #[test]
    fn entries_are_whole_and_not_too_many() {
        let entries = [BufferEntry::default(); MAX_BUFFERS + 1];
        let bytes = entries.as_bytes();
        let len = size_of::<BufferEntry>();
        assert_eq!(buffer_entries(&bytes[..2 * len]), Some(&entries[..2]));
        assert_eq!(buffer_entries(&[]), Some([].as_slice()));
        assert_eq!(buffer_entries(&bytes[..2 * len + 1]), None);
        assert_eq!(buffer_entries(bytes), None);
    }
}
