//! Messages that are written to a comm buffer by hand: by executors of tests, and by code that
//! simulates MM.

use core::cell::Cell;
use mm_comm::Channel;
use mm_wire::text::Shown;
use mm_wire::{Guid, Header, HeaderError, HeaderFormat, ResponseLength};
use thiserror::Error;

/// Why the header in a comm buffer is not the one that was written to it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MismatchError {
    /// The header has another GUID or another format. The new contents are not in the error: they
    /// may be message bytes.
    #[error("the header in the comm buffer is not the one for {} any more", Shown(*expected))]
    Recipient {
        /// The recipient that was written.
        expected: Guid,
    },
    /// The header has another length.
    #[error("the comm buffer's header claims {found} message bytes, {expected} were written")]
    Length {
        /// The length that was written.
        expected: u64,
        /// The length that is in the buffer.
        found: u64,
    },
    /// The bytes are not a header.
    #[error("the comm buffer's header is damaged: {0}")]
    Damaged(#[from] HeaderError),
}

/// Why nothing was written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WriteError {
    /// No recipient was written before.
    #[error("caller: a message was given before its recipient")]
    NoRecipient,
    /// The recipient is [`mm_wire::header::V3_MARKER`], which a v1 header cannot name.
    #[error("caller: the recipient is the v3 header's marker {}, a v1 header for it would read as v3", Shown(*.0))]
    RecipientIsMarker(Guid),
    /// The message does not fit.
    #[error("caller: the message has {len} bytes, the comm buffer has room for {capacity}")]
    TooLarge {
        /// Bytes of the message.
        len: usize,
        /// Bytes that fit behind the header.
        capacity: usize,
    },
    /// The memory is smaller than the header.
    #[error("platform: the comm buffer has {len} bytes, less than the header's {needed}")]
    NoRoomForHeader {
        /// Bytes of the memory.
        len: usize,
        /// Bytes of the header.
        needed: usize,
    },
}

/// A message that is written by hand. All handles of a comm buffer share it.
///
/// Its header is the channel's [`Channel::tracked`]: at the start of a transaction it becomes the
/// request's.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// The transaction in which something was last written by hand. Transactions are numbered from
    /// 1.
    transaction: Cell<u32>,
}

impl Draft {
    /// Whether an executor wrote a response by hand in the transaction of `channel` that is under
    /// way.
    pub(super) fn is_response(&self, channel: &Channel) -> bool {
        self.transaction.get() == channel.transaction()
    }

    fn write(&self, channel: &Channel, header: Header, message: Option<&[u8]>) {
        let written = channel.write(header, message);
        debug_assert!(written, "the callers checked that header and message fit");
        self.transaction.set(channel.transaction());
    }

    /// Writes a header for `recipient`. The message's length does not change.
    pub(super) fn write_recipient(
        &self,
        channel: &Channel,
        format: HeaderFormat,
        recipient: Guid,
    ) -> Result<(), WriteError> {
        let (len, needed) = (channel.region().len(), format.header_len());
        let no_room = WriteError::NoRoomForHeader { len, needed };
        if len < needed {
            return Err(no_room);
        }
        if !Header::can_name(format, recipient) {
            return Err(WriteError::RecipientIsMarker(recipient));
        }
        let message_len = channel.tracked().map_or(0, |header| header.message_len());
        let header = Header::new(format, recipient, message_len).ok_or(no_room)?;
        self.write(channel, header, None);
        Ok(())
    }

    /// Writes a message for the recipient that was written before.
    pub(super) fn write_message(&self, channel: &Channel, message: &[u8]) -> Result<(), WriteError> {
        let tracked = channel.tracked();
        let len = message.len();
        let capacity = channel.capacity(tracked.map_or(HeaderFormat::V1, |header| header.format()));
        let too_large = WriteError::TooLarge { len, capacity };
        if len > capacity {
            return Err(too_large);
        }
        let tracked = tracked.ok_or(WriteError::NoRecipient)?;
        let header = Header::new(tracked.format(), tracked.recipient(), len as u64).ok_or(too_large)?;
        self.write(channel, header, Some(message));
        Ok(())
    }

    /// Takes the `len` bytes behind the header for the message.
    pub(super) fn accept_in_place(&self, channel: &Channel, len: usize) -> Result<(), MismatchError> {
        let sent = match channel.tracked() {
            Some(sent) if channel.holds_tracked_kind() => sent,
            _ => of_same_kind(channel)?.0,
        };
        let capacity = channel.capacity(sent.format());
        let header = Header::new(sent.format(), sent.recipient(), len as u64);
        let header = header.filter(|_| len <= capacity).ok_or(MismatchError::Length {
            expected: capacity as u64,
            found: len as u64,
        })?;
        let written = channel.write_lengths(header);
        debug_assert!(written, "the header was looked at");
        self.transaction.set(channel.transaction());
        Ok(())
    }

    /// Wipes the memory, and forgets what was written.
    pub(super) fn clear(&self, channel: &Channel) {
        channel.clear();
        self.transaction.set(channel.transaction());
    }
}

/// What the header in shared memory says about the response, see [`Header::response_length`]. It is
/// read once, and has to be for the recipient that was written.
pub(super) fn response_in_header(channel: &Channel) -> Result<ResponseLength, MismatchError> {
    let (sent, found) = of_same_kind(channel)?;
    Ok(sent.response_length(&found)?)
}

/// The header that was written, if the one in shared memory is the same. `None` if none was
/// written; the memory then starts with a zero GUID and no length.
#[inline]
pub(super) fn verify(channel: &Channel) -> Result<Option<Header>, MismatchError> {
    if channel.holds_tracked() {
        return Ok(channel.tracked());
    }
    verify_each_field(channel)
}

#[cold]
#[inline(never)]
fn verify_each_field(channel: &Channel) -> Result<Option<Header>, MismatchError> {
    let Some(sent) = channel.tracked() else {
        let found = channel.read_header()?;
        return match (found.recipient(), found.message_len()) {
            (Guid::ZERO, 0) => Ok(None),
            (Guid::ZERO, found) => Err(MismatchError::Length { expected: 0, found }),
            _ => Err(MismatchError::Recipient { expected: Guid::ZERO }),
        };
    };
    let (_, found) = of_same_kind(channel)?;
    if found.message_len() != sent.message_len() {
        return Err(MismatchError::Length {
            expected: sent.message_len(),
            found: found.message_len(),
        });
    }
    Ok(Some(sent))
}

/// The header that was written, and the one in shared memory, if they have the same recipient and
/// format.
fn of_same_kind(channel: &Channel) -> Result<(Header, Header), MismatchError> {
    let found = channel.read_header()?;
    let written = channel.tracked();
    match written {
        Some(written) if written.is_of_same_kind(&found) => Ok((written, found)),
        _ => Err(MismatchError::Recipient {
            expected: written.map_or(Guid::ZERO, |written| written.recipient()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::CommunicateBuffer;
    use alloc::vec;
    use alloc::vec::Vec;
    use core::pin::Pin;
    use mm_comm::Staged;
    use mm_wire::header::V3_MARKER;
    use mm_wire::{EfiStatus, Guid, HeaderFormat, MailboxImage, guid};

    const RECIPIENT: Guid = guid!("11111111-2222-3333-4444-555555555555");
    const SECRET: [u8; 32] = [0xc5; 32];
    const LEN: usize = 4096;

    fn without_mailbox() -> CommunicateBuffer {
        let memory: &'static mut [u8] = alloc::boxed::Box::leak(vec![0xee; LEN].into_boxed_slice());
        CommunicateBuffer::new(Pin::new(memory), 0)
    }

    fn contents(buffer: &CommunicateBuffer) -> Vec<u8> {
        let mut all = vec![0; LEN];
        assert!(buffer.channel().region().read(0, &mut all));
        all
    }

    fn assert_clean_and_free(buffer: &CommunicateBuffer) {
        assert!(contents(buffer).iter().all(|byte| *byte == 0), "bytes are left");
        let channel = buffer.channel();
        assert!(!channel.is_in_use());
        assert!(
            !channel
                .mailbox()
                .is_some_and(mm_comm::mailbox::Mailbox::is_pending)
        );
    }

    /// Starts a transaction, and lends the buffer to its executor.
    fn begin(buffer: &CommunicateBuffer) -> (Staged<'_>, CommunicateBuffer) {
        let staged = buffer
            .channel()
            .begin(HeaderFormat::V1, RECIPIENT, &SECRET)
            .unwrap();
        let lent = buffer.lend(staged.number(), HeaderFormat::V1);
        (staged, lent)
    }

    fn to_patina(guid: Guid) -> patina::OwnedGuid {
        super::super::to_patina(guid)
    }

    #[test]
    fn response_by_hand_is_detected_with_and_without_a_mailbox() {
        for buffer in [CommunicateBuffer::of_a_page(0), without_mailbox()] {
            let (staged, mut lent) = begin(&buffer);
            assert!(!lent.is_answered(&staged));
            lent.set_message(b"by hand").unwrap();
            assert!(lent.is_answered(&staged));
        }
    }

    #[test]
    fn response_by_hand_is_wiped_as_far_as_it_ever_reached() {
        let buffer = CommunicateBuffer::of_a_page(0);
        let (staged, mut lent) = begin(&buffer);
        lent.set_message(&[0x77; 3000]).unwrap();
        lent.set_message(b"short").unwrap();
        // Other code that writes to the memory does not change what the executor wrote.
        assert!(buffer.channel().region().write(16, &9u64.to_le_bytes()));
        let response = lent.finish(staged, &mut None).unwrap();
        assert_eq!(response.len(), 5);
        drop(response);
        assert_clean_and_free(&buffer);
    }

    #[test]
    fn message_from_before_the_transaction_is_wiped_with_it() {
        let mut buffer = CommunicateBuffer::of_a_page(0);
        buffer.set_message_info(to_patina(RECIPIENT)).unwrap();
        buffer.set_message(&[0x77; 3000]).unwrap();
        let (staged, lent) = begin(&buffer);
        assert!(!lent.is_answered(&staged));
        assert!(buffer.channel().region().write(24, b"ok"));
        let answered = MailboxImage::answered(EfiStatus::SUCCESS, 24 + 2);
        buffer.channel().mailbox().unwrap().write(&answered);
        drop(lent.finish(staged, &mut None).unwrap());
        assert_clean_and_free(&buffer);
        assert_eq!(buffer.get_message(), Ok(vec![]));
    }

    #[test]
    fn only_the_handle_lent_for_a_transaction_writes_during_it() {
        let mut buffer = CommunicateBuffer::of_a_page(0);
        assert!(buffer.set_message_info(to_patina(RECIPIENT)).is_ok());
        let (first, mut lent) = begin(&buffer);
        assert!(lent.set_message(b"x").is_ok());
        assert!(buffer.clone().set_message(b"x").is_err());
        drop(first);
        let (second, mut lent_again) = begin(&buffer);
        assert!(lent.set_message(b"x").is_err());
        assert!(!lent_again.is_answered(&second));
        assert!(lent_again.set_message(b"x").is_ok());
    }

    #[test]
    fn message_in_place_is_accepted_only_behind_the_header_that_was_written() {
        use crate::config::CommunicateBufferStatus;
        let buffer = CommunicateBuffer::of_a_page(0);
        let (staged, mut lent) = begin(&buffer);
        let region = buffer.channel().region();
        assert!(region.write(24, b"in place"));
        assert_eq!(lent.accept_in_place(8), Ok(()));
        assert_eq!(lent.get_message(), Ok(b"in place".to_vec()));
        for byte in [0, 15] {
            assert!(region.write(byte, &[0x99]));
            let refused = Err(CommunicateBufferStatus::InvalidRecipient);
            assert_eq!(lent.accept_in_place(8), refused, "byte {byte}");
            assert!(region.write(byte, &RECIPIENT.to_bytes()[byte..=byte]));
            assert_eq!(lent.accept_in_place(8), Ok(()));
        }
        drop(staged);
    }

    #[test]
    fn header_may_fill_the_memory() {
        for (len, fits) in [(23, false), (24, true)] {
            let memory = alloc::boxed::Box::leak(vec![0_u8; len].into_boxed_slice());
            let mut buffer = CommunicateBuffer::new(Pin::new(memory), 0);
            assert_eq!(buffer.set_message_info(to_patina(RECIPIENT)).is_ok(), fits);
        }
    }

    #[test]
    fn v1_header_for_the_v3_marker_is_refused() {
        let mut buffer = CommunicateBuffer::of_a_page(0);
        let refused = Err(crate::config::CommunicateBufferStatus::InvalidRecipient);
        assert_eq!(buffer.set_message_info(to_patina(V3_MARKER)), refused);
        assert_clean_and_free(&buffer);
    }

    #[test]
    fn empty_response_by_hand_counts_more_than_the_mailbox() {
        let buffer = CommunicateBuffer::of_a_page(0);
        let (staged, mut lent) = begin(&buffer);
        lent.reset();
        lent.set_message_info(to_patina(RECIPIENT)).unwrap();
        lent.set_message(b"").unwrap();
        let response = lent.finish(staged, &mut None).unwrap();
        assert!(response.is_empty());
        drop(response);
        assert_clean_and_free(&buffer);
    }

    #[test]
    fn response_by_hand_is_trusted_whatever_its_recipient_and_format() {
        let other = || to_patina(guid!("99999999-2222-3333-4444-555555555555"));
        type ByHand<'a> = &'a dyn Fn(&mut CommunicateBuffer);
        let cases: [(ByHand<'_>, &[u8]); 3] = [
            (
                &|lent| {
                    // The format of the message in the buffer is kept, so this is for an empty
                    // buffer.
                    lent.reset();
                    *lent = lent.clone().with_header(HeaderFormat::V3);
                    lent.set_message_info(other()).unwrap();
                    lent.set_message(b"other").unwrap();
                },
                b"other",
            ),
            (&|lent| lent.set_message_info(other()).unwrap(), &SECRET),
            (&|lent| lent.reset(), b""),
        ];
        for (by_hand, expected) in cases {
            for buffer in [CommunicateBuffer::of_a_page(0), without_mailbox()] {
                let (staged, mut lent) = begin(&buffer);
                by_hand(&mut lent);
                assert!(lent.is_answered(&staged));
                let mut out = vec![0; LEN];
                assert_eq!(
                    lent.finish(staged, &mut None).unwrap().copy_to(&mut out).unwrap(),
                    expected
                );
                assert_clean_and_free(&buffer);
            }
        }
    }
}
