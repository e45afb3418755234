//! One exchange with MM, from the written request to the copied response.
//!
//! | state | what holds |
//! |---|---|
//! | [`Staged`] | header and message are in shared memory, the mailbox announces them, and the channel is in use |
//! | [`Response`] | MM processed the request; the response's length was read once and fits the region |
//!
//! Dropping either ends the transaction and wipes shared memory, also during a panic. After success
//! the bytes of request and response are wiped; after an error the whole region is, because it is
//! unknown how far MM wrote.

use crate::channel::{Channel, Claim};
use crate::error::{BeginError, LengthSource, ResponseError};
use crate::mailbox::Mailbox;
use core::mem::MaybeUninit;
use mm_wire::{Guid, Header, HeaderFormat, ResponseLength};

impl Channel {
    /// Starts a transaction: takes the channel, writes header and message, resets the mailbox and
    /// announces the request. The caller then raises the MMI and calls [`Staged::finish`].
    ///
    /// # Errors
    ///
    /// A [`BeginError`]. No byte of the message is in shared memory then.
    pub fn begin(
        &self,
        format: HeaderFormat,
        recipient: Guid,
        message: &[u8],
    ) -> Result<Staged<'_>, BeginError> {
        if message.is_empty() {
            return Err(BeginError::EmptyMessage);
        }
        self.begin_sized(format, recipient, message, None)
    }

    /// Like [`Self::begin`], but the message may be empty, and `message_size` is the MessageSize of
    /// a v3 header: less than the length of `message`, if the end of that is only room for the
    /// response. `None` means that length.
    ///
    /// # Errors
    ///
    /// Those of [`Self::begin`]. [`BeginError::MessageSizeBeyondMessage`] for a `message_size` beyond
    /// `message`: MM cores refuse it.
    pub fn begin_sized(
        &self,
        format: HeaderFormat,
        recipient: Guid,
        message: &[u8],
        message_size: Option<u64>,
    ) -> Result<Staged<'_>, BeginError> {
        self.begin_to(format, recipient.to_bytes(), message, message_size)
    }

    /// Like [`Self::begin_sized`], for a recipient as it is in memory.
    ///
    /// # Errors
    ///
    /// Those of [`Self::begin_sized`].
    #[inline]
    pub fn begin_to(
        &self,
        format: HeaderFormat,
        recipient: [u8; 16],
        message: &[u8],
        message_size: Option<u64>,
    ) -> Result<Staged<'_>, BeginError> {
        let capacity = self.capacity(format);
        let too_large = BeginError::MessageTooLarge {
            len: message.len(),
            capacity,
        };
        // An empty message needs room for its header, too.
        if message.len() > capacity || self.region().len() < format.header_len() {
            return Err(too_large);
        }
        let header = Header::for_guid_bytes(format, recipient, message.len() as u64).ok_or(too_large)?;
        if header.would_read_as_v3() {
            return Err(BeginError::RecipientIsMarker(header.recipient()));
        }
        let header = message_size.map_or(header, |size| header.with_message_size(size));
        if header.message_size() > header.message_len() {
            return Err(BeginError::MessageSizeBeyondMessage {
                message_size: header.message_size(),
                len: message.len(),
            });
        }

        let claim = Claim::new(self)?;
        claim.write_request(header, message)?;
        if let Some(mailbox) = self.mailbox() {
            mailbox.write(&self.armed());
        }
        Ok(Staged { claim })
    }
}

/// A request in shared memory that waits for MM.
#[derive(Debug)]
#[must_use = "dropping it withdraws the request"]
pub struct Staged<'c> {
    claim: Claim<'c>,
}

impl<'c> Staged<'c> {
    /// Waits for MM, see [`wait`]. [`Self::finish`] tells whether MM took the request.
    pub fn wait(&self, polls: u32, pause: impl FnMut()) -> u32 {
        wait(self.claim.channel(), polls, pause)
    }

    /// Whether the mailbox says that MM processed the request; `false` without a mailbox.
    #[must_use]
    pub fn is_processed(&self) -> bool {
        let mailbox = self.claim.channel().mailbox();
        mailbox.is_some_and(|mailbox| !mailbox.is_pending())
    }

    /// The number of this transaction, [`Channel::transaction`].
    #[must_use]
    #[inline]
    pub fn number(&self) -> u32 {
        self.claim.channel().transaction()
    }

    /// Checks, before the MMI is raised, that the region still has the header of this request: a
    /// notification may have called a driver of the firmware that uses the same comm buffer. The
    /// length is not compared, because an MMI for another comm buffer may have served this request
    /// already.
    ///
    /// # Errors
    ///
    /// [`BeginError::Overwritten`].
    #[inline]
    pub fn check(&self) -> Result<(), BeginError> {
        let channel = self.claim.channel();
        if channel.holds_tracked_kind() {
            return Ok(());
        }
        Err(overwritten(channel))
    }

    /// Reads what MM left, once, and checks it: the mailbox, the header, the length. Without a
    /// mailbox this also clears the header's length before the response is read, so that MM does
    /// not take the response for a request if another MMI comes.
    ///
    /// # Errors
    ///
    /// A [`ResponseError`], which ends the transaction and wipes the whole region.
    pub fn finish(self) -> Result<Response<'c>, ResponseError> {
        let mut error = None;
        let response = self.finish_or_tell(&mut error);
        response.ok_or(error.unwrap_or(ResponseError::NotProcessed))
    }

    /// Like [`Self::finish`], but puts the error into `error`. A result that is a response or an
    /// error makes the compiler assemble each response byte by byte, in some hundred instructions.
    // Inlined: otherwise the response is written field by field and then copied as a whole, for
    // which the processor waits.
    #[inline(always)]
    pub fn finish_or_tell(self, error: &mut Option<ResponseError>) -> Option<Response<'c>> {
        let channel = self.claim.channel();
        // Not written by hand, so this is the header that `begin` wrote.
        let Some(format) = channel.tracked_format() else {
            *error = Some(ResponseError::NotProcessed);
            return None;
        };
        let in_mailbox = match claimed_by_mailbox(channel, format) {
            Ok(len) => len,
            Err(why) => {
                *error = Some(why);
                return None;
            }
        };
        let words = channel.region().read_words(0);
        let left = match channel.usual_length(words) {
            Some(len) => Left {
                message_len: in_mailbox.unwrap_or(len),
                counted: len as u64,
                message_size: len as u64,
            },
            None => match look_at_header(channel, words, in_mailbox) {
                Ok(left) => left,
                Err(why) => {
                    *error = Some(why);
                    return None;
                }
            },
        };
        channel.withdraw_from_region();

        let header_len = format.header_len();
        // What the header counts is wiped, too.
        let counted = usize::try_from(left.counted).unwrap_or(usize::MAX);
        self.claim
            .wipe_reached(left.message_len.max(counted).saturating_add(header_len));
        Some(Response {
            claim: self.claim,
            header_len: short(header_len),
            is_by_hand: false,
            message_len: left.message_len,
            taken: 0,
            counted: left.counted,
            message_size: left.message_size,
        })
    }

    /// Takes what was last written with [`Channel::write`], or [`Channel::clear`], for the
    /// response, and reads neither mailbox nor header. For executors of tests, whose response is
    /// trusted.
    pub fn finish_by_hand(self) -> Response<'c> {
        let channel = self.claim.channel();
        let written = channel.tracked();
        channel.withdraw_from_region();
        self.claim.wipe_reached(0);
        let message_len = written.map_or(0, |header| header.message_len());
        Response {
            claim: self.claim,
            header_len: written.map_or(0, |header| short(header.format().header_len())),
            is_by_hand: true,
            message_len: usize::try_from(message_len).unwrap_or(usize::MAX),
            taken: 0,
            counted: 0,
            message_size: 0,
        }
    }
}

/// A header's length, which is 24 or 56.
fn short(header_len: usize) -> u32 {
    u32::try_from(header_len).unwrap_or(u32::MAX)
}

#[cold]
#[inline(never)]
fn overwritten(channel: &Channel) -> BeginError {
    BeginError::Overwritten {
        recipient: channel
            .tracked()
            .map_or(Guid::ZERO, |request| request.recipient()),
    }
}

/// What MM left.
struct Left {
    message_len: usize,
    /// The lengths in the header.
    counted: u64,
    message_size: u64,
}

/// Looks at the header that MM left, whose first words are `words` if the region is aligned.
#[cold]
#[inline(never)]
fn look_at_header(
    channel: &Channel,
    words: Option<[u64; 3]>,
    in_mailbox: Option<usize>,
) -> Result<Left, ResponseError> {
    let request = channel.tracked().ok_or(ResponseError::NotProcessed)?;
    let found = channel.header_from(words).map_err(ResponseError::HeaderDamaged)?;
    if !request.is_of_same_kind(&found) {
        return Err(ResponseError::RecipientChanged {
            sent: request.recipient(),
        });
    }
    let capacity = channel.capacity(found.format());
    let fits = |len: u64| {
        let fitting = usize::try_from(len).ok().filter(|len| *len <= capacity);
        fitting.ok_or(ResponseError::ResponseBeyondBuffer {
            told_by: LengthSource::Header,
            claimed: len.saturating_add(found.format().header_len() as u64),
            capacity: channel.region().len(),
        })
    };
    // The header's length has to fit even if a mailbox tells the response's.
    fits(found.message_len())?;
    let in_header = request.response_length(&found);
    Ok(Left {
        message_len: match in_mailbox {
            Some(len) => len,
            None => fits(in_header.map_err(ResponseError::HeaderDamaged)?.len)?,
        },
        counted: found.message_len(),
        message_size: found.message_size(),
    })
}

/// The response's message length according to the mailbox; `None` if there is none.
#[inline]
fn claimed_by_mailbox(channel: &Channel, format: HeaderFormat) -> Result<Option<usize>, ResponseError> {
    let Some(mailbox) = channel.mailbox() else {
        return Ok(None);
    };
    let image = mailbox.read();
    if image.is_pending() {
        return Err(ResponseError::NotProcessed);
    }
    if image.return_status().as_error().is_some() {
        return Err(ResponseError::Mm(image.return_status()));
    }
    let claimed = image.return_buffer_size();
    let capacity = channel.region().len();
    let total = usize::try_from(claimed)
        .ok()
        .filter(|total| *total <= capacity)
        .ok_or(ResponseError::ResponseBeyondBuffer {
            told_by: LengthSource::Mailbox,
            claimed,
            capacity,
        })?;
    let minimum = format.header_len();
    let message_len = total
        .checked_sub(minimum)
        .ok_or(ResponseError::ResponseBelowHeader { claimed, minimum })?;
    Ok(Some(message_len))
}

/// How often [`wait`] pauses if there is no mailbox. One pause was enough on every machine that was
/// tried; the others together cost less than a microsecond.
pub const PAUSES_WITHOUT_MAILBOX: u32 = 16;

/// Pauses until the channel's mailbox does not announce a request any more: once at least, and
/// `polls` times at most, which is the timeout. Without a mailbox this pauses
/// [`PAUSES_WITHOUT_MAILBOX`] times.
///
/// Returns the number of pauses.
pub fn wait(channel: &Channel, polls: u32, mut pause: impl FnMut()) -> u32 {
    let Some(mailbox) = channel.mailbox() else {
        (0..PAUSES_WITHOUT_MAILBOX).for_each(|_| pause());
        return PAUSES_WITHOUT_MAILBOX;
    };
    let mut made: u32 = 0;
    loop {
        pause();
        made = made.saturating_add(1);
        if made >= polls || !mailbox.is_pending() {
            return made;
        }
    }
}

/// Number of polls after which another MMI is raised, if the mailbox still announces the request.
const POLLS_UNTIL_ANOTHER_MMI: u32 = 1000;

/// Like [`wait`], but calls `again` once, to raise another MMI, if MM does not take the request for
/// a while: some MM cores serve one request per MMI (Project Mu's supervisor serves its users
/// before itself), and that may have been the request of a call that this one interrupted.
///
/// Returns the number of pauses. If `again` fails, it logs that itself, and the wait continues: MM
/// may take the request at the first MMI.
pub fn wait_and_raise_again(
    channel: &Channel,
    polls: u32,
    again: impl FnOnce(),
    mut pause: impl FnMut(),
) -> u32 {
    let first = POLLS_UNTIL_ANOTHER_MMI.min(polls.div_ceil(2));
    let pauses = wait(channel, first, &mut pause);
    let left = polls.saturating_sub(pauses);
    if left == 0 || !channel.mailbox().is_some_and(Mailbox::is_pending) {
        return pauses;
    }
    again();
    pauses.saturating_add(wait(channel, left, pause))
}

/// MM's response, still in shared memory; its length was read and checked.
///
/// MM may still write there, so there is no reference to it. It is copied out front to back, and no
/// byte twice, so that no byte is read again after it was checked.
#[derive(Debug)]
#[must_use = "dropping it wipes the response from shared memory"]
pub struct Response<'c> {
    claim: Claim<'c>,
    /// Zero if an executor wiped the region and wrote nothing.
    header_len: u32,
    /// Whether an executor responded by hand.
    is_by_hand: bool,
    message_len: usize,
    taken: usize,
    /// The lengths in the header that MM left.
    counted: u64,
    message_size: u64,
}

impl Response<'_> {
    /// What the header that MM left says about the response; if there is a mailbox, the mailbox
    /// decides. `None` if the header contradicts itself, or after [`Staged::finish_by_hand`].
    #[must_use]
    pub fn in_header(&self) -> Option<ResponseLength> {
        let request = self.claim.channel().tracked().filter(|_| !self.is_by_hand)?;
        let left = Header::new(request.format(), request.recipient(), self.counted)?;
        request
            .response_length(&left.with_message_size(self.message_size))
            .ok()
    }

    /// Number of bytes of the response, without the header.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> usize {
        self.message_len
    }

    /// Whether the response is empty.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.message_len == 0
    }

    /// Number of bytes that have not been copied yet.
    #[must_use]
    #[inline]
    pub const fn remaining(&self) -> usize {
        // Never saturates: `read` takes no more than there is.
        self.message_len.saturating_sub(self.taken)
    }

    /// Copies the next bytes, until `out` is full or none are left. Returns the part of `out` that
    /// was filled.
    #[inline]
    pub fn read<'o>(&mut self, out: &'o mut [u8]) -> &'o mut [u8] {
        let len = out.len().min(self.remaining());
        let out = out.get_mut(..len).unwrap_or_default();
        let offset = self.advance(len);
        let read = self.claim.channel().region().read(offset, out);
        debug_assert!(read, "`finish` checked that header and message are in the region");
        out
    }

    /// Like [`Self::read`], into uninitialised memory.
    #[inline]
    pub fn read_uninit<'o>(&mut self, out: &'o mut [MaybeUninit<u8>]) -> &'o mut [u8] {
        let len = out.len().min(self.remaining());
        let out = out.get_mut(..len).unwrap_or_default();
        let offset = self.advance(len);
        let read = self.claim.channel().region().read_uninit(offset, out);
        debug_assert!(
            read.is_some(),
            "`finish` checked that header and message are in the region"
        );
        read.unwrap_or_default()
    }

    /// Takes the next `len` bytes. Returns where they start.
    const fn advance(&mut self, len: usize) -> usize {
        let offset = (self.header_len as usize).saturating_add(self.taken);
        self.taken = self.taken.saturating_add(len);
        offset
    }

    /// Copies the rest of the response, and ends the transaction. Returns the part of `out` that
    /// was filled; `None`, with nothing copied, if `out` is shorter than [`Self::remaining`].
    pub fn copy_to(mut self, out: &mut [u8]) -> Option<&mut [u8]> {
        (out.len() >= self.remaining()).then(|| self.read(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ChannelError;
    use crate::region::watch;
    use mm_wire::AddressError;
    use mm_wire::mailbox::MailboxImage;
    use mm_wire::{EfiStatus, Guid, HeaderFormat, guid};
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    const RECIPIENT: Guid = guid!("11111111-2222-3333-4444-555555555555");
    const LEN: usize = 4096;
    const SECRET: [u8; 32] = [0xc5; 32];

    #[repr(C, align(4096))]
    struct Memory([u8; LEN], [u8; 4096]);

    /// A channel with a mailbox, over memory that lives as long as the test binary.
    fn channel() -> Channel {
        let memory = Box::leak(Box::new(Memory([0xee; LEN], [0; 4096])));
        let mailbox = (&raw mut memory.1).cast();
        // SAFETY: the memory is leaked, and reached through the channel only.
        let channel = unsafe { Channel::new((&raw mut memory.0).cast(), LEN, Some(mailbox)) }.unwrap();
        channel.take_over();
        channel
    }

    fn without_mailbox() -> Channel {
        let memory = Box::leak(Box::new(Memory([0xee; LEN], [0; 4096])));
        // SAFETY: the memory is leaked, and reached through the channel only.
        let channel = unsafe { Channel::new((&raw mut memory.0).cast(), LEN, None) }.unwrap();
        channel.take_over();
        channel
    }

    fn contents(channel: &Channel) -> Vec<u8> {
        let mut all = vec![0; channel.region().len()];
        assert!(channel.region().read(0, &mut all));
        all
    }

    fn begin(channel: &Channel) -> Staged<'_> {
        channel.begin(HeaderFormat::V1, RECIPIENT, &SECRET).unwrap()
    }

    fn mm_answers(channel: &Channel, response: &[u8]) {
        assert!(channel.region().write(24, response));
        let total = response.len() as u64 + 24;
        channel
            .mailbox()
            .unwrap()
            .write(&MailboxImage::answered(EfiStatus::SUCCESS, total));
    }

    fn assert_clean_and_free(channel: &Channel) {
        assert!(
            contents(channel).iter().all(|byte| *byte == 0),
            "bytes stayed behind"
        );
        assert!(!channel.is_in_use());
        assert!(!channel.mailbox().is_some_and(crate::mailbox::Mailbox::is_pending));
    }

    #[test]
    fn the_response_has_the_length_that_mm_returned_whatever_the_request_had() {
        for len in [0, 1, 31, 32, 33, LEN - 24] {
            let channel = channel();
            let staged = begin(&channel);
            let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
            mm_answers(&channel, &sent);
            let response = staged.finish().unwrap();
            assert_eq!(response.len(), len);
            let mut out = vec![0; LEN];
            assert_eq!(response.copy_to(&mut out).unwrap(), sent);
            assert_clean_and_free(&channel);
        }
    }

    #[test]
    fn a_response_too_long_for_the_caller_copies_nothing_and_leaves_nothing() {
        let channel = channel();
        let staged = begin(&channel);
        mm_answers(&channel, &[1; 40]);
        let mut out = [0; 39];
        assert!(staged.finish().unwrap().copy_to(&mut out).is_none());
        assert_eq!(out, [0; 39]);
        assert_clean_and_free(&channel);
    }

    #[test]
    fn a_response_is_read_front_to_back_and_no_byte_twice() {
        let channel = channel();
        let staged = begin(&channel);
        mm_answers(&channel, b"forward");
        let mut response = staged.finish().unwrap();
        let mut out = [0; 4];
        assert_eq!(response.read(&mut out), b"forw");
        assert!(channel.region().write(24, b"FORWARD"));
        assert_eq!(response.remaining(), 3);
        assert_eq!(response.read(&mut out), b"ARD");
        assert_eq!(response.read(&mut out), b"");
        assert_eq!(response.len(), 7);
        drop(response);
        assert_clean_and_free(&channel);
    }

    #[test]
    fn response_is_detected_by_the_mailbox() {
        let channel = channel();
        let staged = begin(&channel);
        assert!(!staged.is_processed());
        mm_answers(&channel, b"yes");
        assert!(staged.is_processed());
        assert!(!begin(&without_mailbox()).is_processed());
    }

    #[test]
    fn talk_to_supervisor_is_set_in_a_shared_mailbox_until_the_request_ends() {
        let channel = channel();
        channel.share_mailbox_as_supervisors();
        let mailbox = || channel.mailbox().unwrap().read();
        for is_answered in [true, false] {
            let staged = begin(&channel);
            assert_eq!(mailbox(), MailboxImage::armed_for_supervisor());
            if is_answered {
                mm_answers(&channel, b"yes");
                assert_eq!(staged.finish().unwrap().len(), 3);
            } else {
                drop(staged);
            }
            assert!(!mailbox().is_pending() && !mailbox().is_for_supervisor());
        }
        assert_clean_and_free(&channel);
    }

    #[test]
    fn a_channel_that_is_held_begins_nothing_and_one_in_use_is_not_held() {
        let channel = channel();
        let before = contents(&channel);
        let held = channel.hold().unwrap();
        let begun = channel.begin(HeaderFormat::V1, RECIPIENT, &SECRET);
        assert_eq!(begun.err(), Some(BeginError::Busy));
        assert_eq!(channel.hold().err(), Some(BeginError::Busy));
        assert_eq!(contents(&channel), before);
        drop(held);
        let staged = begin(&channel);
        assert_eq!(channel.hold().err(), Some(BeginError::Busy));
        drop(staged);
        assert!(channel.hold().is_ok());
        assert_clean_and_free(&channel);
    }

    #[test]
    fn a_rewritten_message_length_is_accepted_when_it_fits() {
        let channel = channel();
        let staged = begin(&channel);
        mm_answers(&channel, b"answer");
        assert!(channel.region().write(16, &6u64.to_le_bytes()));
        assert_eq!(staged.finish().unwrap().len(), 6);
    }

    #[test]
    fn without_a_mailbox_the_header_has_the_responses_length() {
        let channel = without_mailbox();
        let staged = begin(&channel);
        assert!(channel.region().write(16, &3u64.to_le_bytes()));
        assert!(channel.region().write(24, b"yes"));
        let mut out = [0; 8];
        assert_eq!(staged.finish().unwrap().copy_to(&mut out).unwrap(), b"yes");
        assert_clean_and_free(&channel);
    }

    #[test]
    fn v3_response_without_a_mailbox_has_the_length_in_message_size() {
        // BufferSize and MessageSize as MM leaves them, `None` for unchanged; 32 bytes were sent.
        type Left = [Option<u64>; 2];
        let finish = |left: Left| {
            let channel = without_mailbox();
            let staged = channel.begin(HeaderFormat::V3, RECIPIENT, &SECRET).unwrap();
            assert!(channel.region().write(56, b"0123456789"));
            for (offset, value) in [16, 48].into_iter().zip(left) {
                assert!(value.is_none_or(|value| channel.region().write(offset, &value.to_le_bytes())));
            }
            let response = staged.finish().map(|response| {
                let mut out = vec![0; LEN];
                response.copy_to(&mut out).unwrap().to_vec()
            });
            assert_clean_and_free(&channel);
            response
        };
        let len = |left| finish(left).map(|response| response.len());
        assert_eq!(finish([None, Some(4)]), Ok(b"0123".to_vec()));
        assert_eq!(finish([None, Some(0)]), Ok(vec![]));
        assert_eq!(len([None, None]), Ok(32));
        assert_eq!(finish([Some(60), Some(9)]), Ok(b"0123".to_vec()));
        assert_eq!(len([Some(4096), None]), Ok(LEN - 56));
        for claimed in [33, 4096, u64::MAX] {
            let error = mm_wire::HeaderError::MessageBeyondBufferSize { claimed, room: 32 };
            assert_eq!(
                len([None, Some(claimed)]),
                Err(ResponseError::HeaderDamaged(error))
            );
        }
        assert_eq!(
            len([Some(4097), Some(4)]),
            Err(ResponseError::ResponseBeyondBuffer {
                told_by: LengthSource::Header,
                claimed: 4097,
                capacity: 4096
            })
        );
    }

    #[test]
    fn mailbox_counts_more_than_message_size() {
        for size in [0, 4, 33, u64::MAX] {
            let channel = channel();
            let staged = channel.begin(HeaderFormat::V3, RECIPIENT, &SECRET).unwrap();
            assert!(channel.region().write(48, &size.to_le_bytes()));
            let answered = MailboxImage::answered(EfiStatus::SUCCESS, 56 + 10);
            channel.mailbox().unwrap().write(&answered);
            assert_eq!(staged.finish().unwrap().len(), 10);
            assert_clean_and_free(&channel);
        }
    }

    #[test]
    fn header_and_mailbox_that_disagree_leave_nothing_behind() {
        for (in_header, in_mailbox) in [(3000_usize, 10_usize), (10, 3000), (0, 0)] {
            let channel = channel();
            let staged = begin(&channel);
            mm_answers(&channel, &vec![0x5a; in_header.max(in_mailbox)]);
            assert!(channel.region().write(16, &(in_header as u64).to_le_bytes()));
            let answered = MailboxImage::answered(EfiStatus::SUCCESS, 24 + in_mailbox as u64);
            channel.mailbox().unwrap().write(&answered);
            let response = staged.finish().unwrap();
            assert_eq!(response.len(), in_mailbox);
            drop(response);
            let wiped = in_header.max(in_mailbox).max(SECRET.len()) + 24;
            assert!(contents(&channel)[..wiped].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn status_without_the_error_bit_is_an_error_and_leaves_nothing_behind() {
        for status in [
            1,
            5,
            0x2000_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x8000_000e,
            0xffff_ffff,
        ] {
            let channel = channel();
            let staged = begin(&channel);
            mm_answers(&channel, &SECRET);
            let answered = MailboxImage::answered(EfiStatus(status), 24 + 32);
            channel.mailbox().unwrap().write(&answered);
            assert_eq!(staged.finish().unwrap_err(), ResponseError::Mm(EfiStatus(status)));
            assert_clean_and_free(&channel);
        }
    }

    #[test]
    fn error_about_a_changed_recipient_has_no_bytes_of_the_buffer() {
        let channel = channel();
        let staged = begin(&channel);
        mm_answers(&channel, &[]);
        assert!(channel.region().write(0, &[0x99; 16]));
        let text = std::format!("{0} {0:?}", staged.finish().unwrap_err());
        assert!(!text.contains("99"), "{text}");
    }

    #[test]
    fn each_wrong_response_has_its_error_and_leaves_nothing_behind() {
        type Lie = fn(&Channel);
        fn claim(channel: &Channel, status: EfiStatus, size: u64) {
            channel
                .mailbox()
                .unwrap()
                .write(&MailboxImage::answered(status, size));
        }
        let lies: [(Lie, ResponseError); 8] = [
            (|_| {}, ResponseError::NotProcessed),
            (
                |channel| claim(channel, EfiStatus::NOT_FOUND, 56),
                ResponseError::Mm(EfiStatus::NOT_FOUND),
            ),
            (
                |channel| claim(channel, EfiStatus::SUCCESS, 23),
                ResponseError::ResponseBelowHeader {
                    claimed: 23,
                    minimum: 24,
                },
            ),
            (
                |channel| claim(channel, EfiStatus::SUCCESS, 4097),
                ResponseError::ResponseBeyondBuffer {
                    told_by: LengthSource::Mailbox,
                    claimed: 4097,
                    capacity: 4096,
                },
            ),
            (
                |channel| claim(channel, EfiStatus::SUCCESS, u64::MAX),
                ResponseError::ResponseBeyondBuffer {
                    told_by: LengthSource::Mailbox,
                    claimed: u64::MAX,
                    capacity: 4096,
                },
            ),
            (
                |channel| {
                    mm_answers(channel, &[]);
                    assert!(channel.region().write(0, &[0x99; 16]));
                },
                ResponseError::RecipientChanged { sent: RECIPIENT },
            ),
            (
                |channel| {
                    mm_answers(channel, &[]);
                    assert!(channel.region().write(16, &4073u64.to_le_bytes()));
                },
                ResponseError::ResponseBeyondBuffer {
                    told_by: LengthSource::Header,
                    claimed: 4097,
                    capacity: 4096,
                },
            ),
            (
                |channel| {
                    mm_answers(channel, &[]);
                    assert!(channel.region().write(16, &u64::MAX.to_le_bytes()));
                },
                ResponseError::HeaderDamaged(mm_wire::HeaderError::LengthOverflows { claimed: u64::MAX }),
            ),
        ];
        for (lie, expected) in lies {
            let channel = channel();
            let staged = begin(&channel);
            // This is far behind the request.
            assert!(channel.region().write(2000, &SECRET));
            lie(&channel);
            assert_eq!(staged.finish().unwrap_err(), expected);
            assert_clean_and_free(&channel);
        }
    }

    #[test]
    fn a_call_touches_no_more_than_request_and_response_took() {
        let channel = channel();
        let behind = 24 + 100;
        assert!(channel.region().write(behind, &[0x77; LEN - 124]));
        let staged = begin(&channel);
        mm_answers(&channel, &[1; 100]);
        let mut out = [0; 100];
        assert!(staged.finish().unwrap().copy_to(&mut out).is_some());
        let after = contents(&channel);
        assert!(after[..behind].iter().all(|byte| *byte == 0));
        assert!(after[behind..].iter().all(|byte| *byte == 0x77));
    }

    #[test]
    fn a_request_is_withdrawn_before_it_is_wiped() {
        let channel = channel();
        let staged = begin(&channel);
        watch::take_writes();
        drop(staged);
        let valid = channel.mailbox().unwrap().region().as_ptr().addr();
        let writes = watch::take_writes();
        assert_eq!(writes[0], (valid, 1));
        assert_eq!(writes[1].0, channel.region().as_ptr().addr());
        assert_clean_and_free(&channel);
    }

    /// What an MM core without a mailbox takes for a request (`mm_core`, `pending`), with the
    /// message.
    fn found_by_mm(channel: &Channel) -> Option<(Guid, Vec<u8>)> {
        let bytes = contents(channel);
        let header = Header::parse(&bytes).ok()?;
        let is_request = header.recipient() != Guid::ZERO && header.message_len() > 0;
        let message =
            bytes[header.format().header_len()..usize::try_from(header.total_len()).unwrap()].to_vec();
        is_request.then(|| (header.recipient(), message))
    }

    #[test]
    fn without_a_mailbox_an_mmi_at_any_moment_finds_all_of_the_request_or_none() {
        for format in [HeaderFormat::V1, HeaderFormat::V3] {
            for finish in [true, false] {
                let channel: &Channel = Box::leak(Box::new(without_mailbox()));
                let seen = std::rc::Rc::new(core::cell::RefCell::new(vec![]));
                let mmi = std::rc::Rc::clone(&seen);
                let begin = || channel.begin(format, RECIPIENT, &SECRET).unwrap();
                let staged = watch::interrupted(move || mmi.borrow_mut().push(found_by_mm(channel)), begin);
                // Only the last write announces the request.
                assert!(seen.take().iter().all(Option::is_none));
                assert_eq!(found_by_mm(channel), Some((RECIPIENT, SECRET.to_vec())));

                let mmi = std::rc::Rc::clone(&seen);
                watch::interrupted(
                    move || mmi.borrow_mut().push(found_by_mm(channel)),
                    || {
                        if finish {
                            let mut response = staged.finish().unwrap();
                            assert_eq!(found_by_mm(channel), None);
                            assert_eq!(response.read(&mut [0; 64]), SECRET);
                        } else {
                            drop(staged);
                        }
                    },
                );
                let seen = seen.take();
                let (first, rest) = seen.split_first().unwrap();
                assert_eq!(*first, Some((RECIPIENT, SECRET.to_vec())));
                assert!(rest.iter().all(Option::is_none), "{rest:?}");
                assert_clean_and_free(channel);
            }
        }
    }

    #[test]
    fn request_without_a_mailbox_is_withdrawn_before_it_is_wiped() {
        let channel = without_mailbox();
        let staged = begin(&channel);
        watch::take_writes();
        drop(staged);
        let length = channel.region().as_ptr().addr() + 16;
        assert_eq!(watch::take_writes()[0], (length, 8));
    }

    #[test]
    fn request_in_memory_without_alignment_is_withdrawn_first_too() {
        let channel = Channel::over(crate::SharedRegion::over_static(
            &mut Box::leak(Box::new(Memory([0xee; LEN], [0; 4096]))).0[1..201],
        ));
        let staged = channel.begin(HeaderFormat::V1, RECIPIENT, &SECRET).unwrap();
        watch::take_writes();
        drop(staged);
        let base = channel.region().as_ptr().addr();
        assert_eq!(watch::take_writes(), [(base + 16, 8), (base, 200)]);
    }

    #[test]
    fn taking_over_empties_mailbox_and_region_and_returns_what_was_there() {
        let memory = Box::leak(Box::new(Memory([0xff; LEN], [0xff; 4096])));
        let (base, mailbox): (*mut u8, *mut u8) = ((&raw mut memory.0).cast(), (&raw mut memory.1).cast());
        let take_over = || {
            // SAFETY: the memory is leaked, and reached through this channel only.
            let channel = unsafe { Channel::new(base, LEN, Some(mailbox)) }.unwrap();
            watch::take_writes();
            (channel.take_over(), channel)
        };
        let (found, channel) = take_over();
        // The byte that MM looks at is written first.
        assert_eq!(watch::take_writes()[0], (mailbox.addr(), 1));
        let found = found.unwrap();
        assert!(found.is_pending());
        assert_eq!(found.return_status(), EfiStatus(u64::MAX));
        assert_eq!(channel.mailbox().unwrap().read(), MailboxImage::default());
        assert_clean_and_free(&channel);
        let staged = begin(&channel);
        mm_answers(&channel, b"ok");
        assert_eq!(staged.finish().unwrap().len(), 2);
        assert!(channel.mailbox().unwrap().take_over().is_some());
        assert_eq!(take_over().0, None);
    }

    #[test]
    fn request_that_another_driver_overwrote_is_noticed_before_the_mmi() {
        for channel in [channel(), without_mailbox()] {
            let staged = begin(&channel);
            assert_eq!(staged.check(), Ok(()));
            // An MMI for another comm buffer may have served it.
            assert!(channel.region().write(16, &3u64.to_le_bytes()));
            assert_eq!(staged.check(), Ok(()));
            for (offset, bytes) in [(0, [0x99; 16]), (0, mm_wire::header::V3_MARKER.to_bytes())] {
                assert!(channel.region().write(offset, &bytes));
                assert_eq!(
                    staged.check(),
                    Err(BeginError::Overwritten { recipient: RECIPIENT })
                );
            }
            drop(staged);
            assert_clean_and_free(&channel);
        }
    }

    #[test]
    fn memory_that_does_not_keep_a_request_is_an_error_with_its_address() {
        let channel = channel();
        let error = watch::over_rom(|| channel.begin(HeaderFormat::V1, RECIPIENT, &SECRET).unwrap_err());
        assert_eq!(
            error,
            BeginError::NotMemory {
                address: channel.region().as_ptr().addr()
            }
        );
        assert_clean_and_free(&channel);
    }

    #[test]
    fn memory_that_keeps_a_part_of_a_header_is_an_error() {
        let header = Header::new(HeaderFormat::V1, RECIPIENT, SECRET.len() as u64).unwrap();
        let kept = header.v1_words().unwrap();
        // One word differs, or two in the same bit.
        for differs in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]] {
            let channel = channel();
            let before: [u64; 3] = core::array::from_fn(|word| kept[word] ^ differs[word]);
            assert!(channel.region().write_words(0, &before));
            let begun = watch::over_rom(|| channel.begin(HeaderFormat::V1, RECIPIENT, &SECRET).err());
            assert!(
                matches!(begun, Some(BeginError::NotMemory { .. })),
                "{differs:?} {begun:?}"
            );
        }
    }

    #[test]
    fn a_v1_header_for_the_v3_marker_is_the_callers_mistake() {
        use mm_wire::header::V3_MARKER;
        let channel = channel();
        watch::take_writes();
        let begun = channel.begin(HeaderFormat::V1, V3_MARKER, b"x").map(drop);
        assert_eq!(begun, Err(BeginError::RecipientIsMarker(V3_MARKER)));
        assert!(watch::take_writes().is_empty());
        drop(channel.begin(HeaderFormat::V3, V3_MARKER, b"x").unwrap());
    }

    #[test]
    fn a_dropped_request_is_withdrawn() {
        let channel = channel();
        drop(begin(&channel));
        assert_clean_and_free(&channel);
    }

    #[test]
    fn a_channel_in_use_refuses_a_second_request_and_keeps_the_first() {
        let channel = channel();
        let staged = begin(&channel);
        let before = contents(&channel);
        assert_eq!(
            channel.begin(HeaderFormat::V1, RECIPIENT, b"x").unwrap_err(),
            BeginError::Busy
        );
        assert_eq!(contents(&channel), before);
        mm_answers(&channel, b"ok");
        assert_eq!(staged.finish().unwrap().len(), 2);
        drop(begin(&channel));
    }

    #[test]
    fn a_retired_channel_takes_no_request_and_keeps_the_current_one() {
        let channel = channel();
        let staged = begin(&channel);
        channel.retire();
        assert!(channel.is_in_use());
        mm_answers(&channel, b"ok");
        assert_eq!(staged.finish().unwrap().len(), 2);
        assert!(channel.region().write(0, &[7]));
        assert_eq!(
            channel.begin(HeaderFormat::V1, RECIPIENT, b"x").unwrap_err(),
            BeginError::Retired
        );
        assert_eq!(contents(&channel)[0], 7);
        assert!(!channel.is_in_use());
    }

    #[test]
    fn mailbox_with_a_foreign_request_is_left_alone() {
        let channel = channel();
        let foreign = MailboxImage::armed();
        channel.mailbox().unwrap().write(&foreign);
        assert_eq!(
            channel.begin(HeaderFormat::V1, RECIPIENT, b"x").unwrap_err(),
            BeginError::MailboxInUse
        );
        assert_eq!(channel.mailbox().unwrap().read(), foreign);
        assert!(contents(&channel).iter().all(|byte| *byte == 0));
        assert!(!channel.is_in_use());
    }

    #[test]
    fn a_stale_result_is_cleared_before_the_request_is_announced() {
        let channel = channel();
        channel
            .mailbox()
            .unwrap()
            .write(&MailboxImage::answered(EfiStatus::NOT_FOUND, 99));
        let staged = begin(&channel);
        assert_eq!(channel.mailbox().unwrap().read(), MailboxImage::armed());
        drop(staged);
    }

    #[test]
    fn an_empty_message_needs_room_for_its_header() {
        let channel = Channel::over(crate::SharedRegion::over_static(Box::leak(Box::new([0xee; 55]))));
        let refused = channel.begin_sized(HeaderFormat::V3, RECIPIENT, &[], None);
        let expected = BeginError::MessageTooLarge { len: 0, capacity: 0 };
        assert_eq!(refused.unwrap_err(), expected);
        assert_eq!(contents(&channel), [0xee; 55]);
        assert!(
            channel
                .begin_sized(HeaderFormat::V1, RECIPIENT, &[], None)
                .is_ok()
        );
    }

    #[test]
    fn errors_about_the_message_have_its_numbers() {
        let channel = channel();
        assert_eq!(
            channel.begin(HeaderFormat::V1, RECIPIENT, &[]).unwrap_err(),
            BeginError::EmptyMessage
        );
        assert_eq!(
            channel
                .begin(HeaderFormat::V1, RECIPIENT, &[0; LEN - 23])
                .unwrap_err(),
            BeginError::MessageTooLarge {
                len: LEN - 23,
                capacity: LEN - 24
            }
        );
        assert_eq!(
            channel
                .begin(HeaderFormat::V3, RECIPIENT, &[0; LEN - 55])
                .unwrap_err(),
            BeginError::MessageTooLarge {
                len: LEN - 55,
                capacity: LEN - 56
            }
        );
    }

    #[test]
    fn message_size_beyond_the_message_is_refused_with_both_numbers() {
        let channel = channel();
        let begin = |format, size| {
            channel
                .begin_sized(format, RECIPIENT, &SECRET, Some(size))
                .map(drop)
        };
        for message_size in [33, u64::MAX] {
            let error = BeginError::MessageSizeBeyondMessage {
                message_size,
                len: 32,
            };
            assert_eq!(begin(HeaderFormat::V3, message_size), Err(error));
            assert_eq!(
                std::string::ToString::to_string(&error),
                std::format!("caller: MessageSize is {message_size}, more than the message's 32 bytes")
            );
            // A v1 header does not have the field.
            assert_eq!(begin(HeaderFormat::V1, message_size), Ok(()));
        }
        assert_eq!(begin(HeaderFormat::V3, 32), Ok(()));
        assert_clean_and_free(&channel);
    }

    #[test]
    fn wait_ends_with_the_response_or_with_the_timeout() {
        let channel = channel();
        let staged = begin(&channel);
        assert_eq!(staged.wait(7, || {}), 7);
        let mut pauses = 0;
        let made = staged.wait(100, || {
            pauses += 1;
            if pauses == 3 {
                mm_answers(&channel, b"late");
            }
        });
        assert_eq!(made, 3);
        assert_eq!(staged.finish().unwrap().len(), 4);
    }

    #[test]
    fn another_mmi_is_raised_once_if_the_first_is_not_enough() {
        let channel = channel();
        // Number of polls; that at which MM takes the request; pauses; that before the other MMI.
        for (polls, taken_at, pauses, raised_after) in [
            (1, None, 1, None),
            (2, None, 2, Some(1)),
            (9, None, 9, Some(5)),
            (9, Some(5), 5, None),
            (9, Some(6), 6, Some(5)),
            (1500, None, 1500, Some(750)),
            (3000, None, 3000, Some(1000)),
            (3000, Some(1000), 1000, None),
        ] {
            let staged = begin(&channel);
            let (made, raised) = (core::cell::Cell::new(0), core::cell::Cell::new(None));
            let again = || assert_eq!(raised.replace(Some(made.get())), None);
            let counted = wait_and_raise_again(&channel, polls, again, || {
                made.set(made.get() + 1);
                if Some(made.get()) == taken_at {
                    mm_answers(&channel, b"taken");
                }
            });
            assert_eq!(
                (counted, made.get(), raised.get()),
                (pauses, pauses, raised_after)
            );
            drop(staged);
        }
        let channel = without_mailbox();
        let staged = begin(&channel);
        let counted = wait_and_raise_again(&channel, 100, || panic!("nothing says that MM is late"), || {});
        assert_eq!(counted, PAUSES_WITHOUT_MAILBOX);
        drop(staged);
    }

    #[test]
    fn unfit_memory_is_refused_with_its_numbers() {
        let memory = Box::leak(Box::new(Memory([0; LEN], [0; 4096])));
        let base: *mut u8 = (&raw mut memory.0).cast();
        let make = |base: *mut u8, len, mailbox| {
            // SAFETY: the memory is leaked; the channels that are made are dropped at once.
            unsafe { Channel::new(base, len, mailbox) }.map(drop).unwrap_err()
        };
        let at = |address| core::ptr::without_provenance_mut::<u8>(address);
        assert_eq!(
            make(base, 23, None),
            ChannelError::TooSmall { len: 23, minimum: 24 }
        );
        assert_eq!(make(at(0), LEN, None), ChannelError::Address(AddressError::Null));
        assert_eq!(
            make(at(0x1001), LEN, None),
            ChannelError::Address(AddressError::NotPageAligned { address: 0x1001 })
        );
        let top = usize::MAX & !0xfff;
        assert_eq!(
            make(at(top), LEN, None),
            ChannelError::Address(AddressError::Wraps {
                address: top as u64,
                len: LEN as u64
            })
        );
        assert_eq!(
            make(base, LEN, Some(at(0))),
            ChannelError::Address(AddressError::MailboxNull)
        );
        assert_eq!(
            make(base, LEN, Some(at(0x1004))),
            ChannelError::Address(AddressError::MailboxMisaligned { address: 0x1004 })
        );
        assert_eq!(
            make(base, LEN, Some(at(usize::MAX & !7))),
            ChannelError::Address(AddressError::MailboxWraps { address: !7 })
        );
        assert!(matches!(
            make(base, LEN, Some(base.wrapping_add(8))),
            ChannelError::Address(AddressError::MailboxInRegion { .. })
        ));
        assert!(matches!(
            make(base, LEN, Some(base.wrapping_add(LEN - 8))),
            ChannelError::Address(AddressError::MailboxInRegion { .. })
        ));
    }
}
