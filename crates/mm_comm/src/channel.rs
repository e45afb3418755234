//! One comm buffer: its region, its mailbox, and the rule that it serves one transaction at a time.

use crate::error::{BeginError, ChannelError};
use crate::mailbox::Mailbox;
use crate::region::{SharedRegion, WORD};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use mm_wire::header::{LENGTH_OFFSET, MAX_HEADER_LEN};
use mm_wire::mailbox::MailboxImage;
use mm_wire::{Guid, Header, HeaderError, HeaderFormat, ResponseLength};

/// The smallest region that can carry a header.
const MIN_REGION_LEN: usize = HeaderFormat::V1.header_len();

/// The size of the field at [`LENGTH_OFFSET`].
const LENGTH_LEN: usize = WORD;

/// Words of a v1 header, and of the rest of a v3 header.
const V1_WORDS: usize = HeaderFormat::V1.header_len() / WORD;
const REST_WORDS: usize = MAX_HEADER_LEN / WORD - V1_WORDS;

/// A comm buffer with its mailbox, where it has one.
///
/// Besides the memory it keeps, in memory that MM cannot reach, the header that was last written ([`Self::tracked`]):
/// what stands in shared memory is compared with that and not trusted.
#[derive(Debug)]
pub struct Channel {
    region: SharedRegion,
    mailbox: Option<Mailbox>,
    in_use: AtomicBool,
    retired: AtomicBool,
    /// Counts the transactions: the number of the one under way, or of the last one.
    transaction: Cell<u32>,
    /// Whether the mailbox is shared with another channel, and requests here are for the MM supervisor.
    is_supervisors: AtomicBool,
    tracked: Cell<Option<Header>>,
    written_in_flight: Cell<bool>,
    /// How far header and message reached, of all that were written since the region was last wiped.
    reached: Cell<usize>,
    /// Whether the end of the transaction wipes the whole region, rather than only what was reached.
    wipes_all: Cell<bool>,
}

/// Why what stands in a comm buffer is not what was last written to it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MismatchError {
    /// The header's GUID, or its format, is another one. What is there instead may be anything, message bytes included, and
    /// so is not told.
    #[error("the header in the comm buffer is not the one for {expected} any more")]
    Recipient {
        /// The recipient that was written.
        expected: Guid,
    },
    /// The header's length is another one.
    #[error("the comm buffer's header claims {found} message bytes, {expected} were written")]
    Length {
        /// The length that was written.
        expected: u64,
        /// The length that was found.
        found: u64,
    },
    /// There is no readable header.
    #[error("the comm buffer's header is damaged: {0}")]
    Damaged(HeaderError),
}

/// Why nothing was written to a comm buffer by hand.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// No recipient was written before.
    #[error("caller: a message was given before its recipient")]
    NoRecipient,
    /// The recipient is [`mm_wire::header::V3_MARKER`], which no v1 header can name.
    #[error("caller: the recipient is the v3 header's marker {0}, a v1 header for it would read as v3")]
    RecipientIsMarker(Guid),
    /// The message does not fit.
    #[error("caller: the message has {len} bytes, the comm buffer has room for {capacity}")]
    TooLarge {
        /// Bytes of the message.
        len: usize,
        /// Bytes that the buffer can hold behind the header.
        capacity: usize,
    },
    /// The region cannot even hold the header.
    #[error("platform: the comm buffer has {len} bytes, less than the header's {needed}")]
    NoRoomForHeader {
        /// Bytes of the region.
        len: usize,
        /// Bytes of the header.
        needed: usize,
    },
}

/// The use of a channel by one transaction, which ends when this is dropped. It is one pointer, so that it is moved in a
/// register; what else belongs to the transaction is kept in the channel.
#[derive(Debug)]
pub(crate) struct Claim<'c>(&'c Channel);

impl<'c> Claim<'c> {
    /// Takes the channel. Its whole region is wiped at the end, see [`Self::wipe_reached`].
    pub(crate) fn new(channel: &'c Channel) -> Result<Self, BeginError> {
        if channel.in_use.swap(true, Ordering::SeqCst) {
            return Err(BeginError::Busy);
        }
        let refused = if channel.is_retired() {
            // Looked at only now: code that retires a channel, and then finds it not in use, has its memory to itself.
            BeginError::Retired
        } else if channel.mailbox.as_ref().is_some_and(Mailbox::is_pending) {
            BeginError::MailboxInUse
        } else {
            channel.transaction.update(|number| number.wrapping_add(1));
            channel.wipes_all.set(true);
            return Ok(Self(channel));
        };
        channel.free();
        Err(refused)
    }

    /// The channel.
    pub(crate) const fn channel(&self) -> &'c Channel {
        self.0
    }

    /// Writes header and message, and looks whether the memory keeps them.
    pub(crate) fn write_request(&self, header: Header, message: &[u8]) -> Result<(), BeginError> {
        let Self(channel) = self;
        channel.put(header, Some(message));
        channel.written_in_flight.set(false);
        if channel.read_header() != Ok(header) {
            let address = channel.region.as_ptr().addr();
            return Err(BeginError::NotMemory { address });
        }
        Ok(())
    }

    /// From now on the end wipes the first `len` bytes, and what was written behind them.
    pub(crate) fn wipe_reached(&self, len: usize) {
        self.0.reached.update(|reached| reached.max(len));
        self.0.wipes_all.set(false);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A channel that no transaction can begin in.
#[derive(Debug)]
#[must_use = "dropping it lets transactions begin"]
pub struct Hold<'c>(&'c Channel);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.free();
    }
}

impl Channel {
    /// Makes a channel over a region whose owner promises that it is fit for MM; only its memory is checked. For host
    /// tests and for memory whose alignment does not matter. See [`Self::at_firmware_region`] for the real thing.
    #[must_use]
    pub const fn over(region: SharedRegion) -> Self {
        Self {
            region,
            mailbox: None,
            in_use: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            transaction: Cell::new(0),
            is_supervisors: AtomicBool::new(false),
            tracked: Cell::new(None),
            written_in_flight: Cell::new(false),
            reached: Cell::new(0),
            wipes_all: Cell::new(true),
        }
    }

    /// Makes a channel over memory that the platform set aside, and checks all that can be checked about it: in this
    /// order its size, its address, its alignment, its end, then the mailbox. Then it is taken over, see
    /// [`Self::take_over`].
    ///
    /// # Errors
    ///
    /// Each [`ChannelError`] names the number that is wrong.
    ///
    /// # Safety
    ///
    /// The contract of [`SharedRegion::new`] for the `len` bytes at `base` and for the 24 bytes at `mailbox`.
    pub unsafe fn at_firmware_region(
        base: *mut u8,
        len: usize,
        mailbox: Option<*mut u8>,
    ) -> Result<Self, ChannelError> {
        // SAFETY: the caller vouches for the memory, with the same contract.
        let channel = unsafe { Self::at_untouched_region(base, len, mailbox) }?;
        channel.take_over();
        Ok(channel)
    }

    /// Like [`Self::at_firmware_region`], but leaves the memory as it is, for callers that have more to check.
    /// [`Self::take_over`] has to come before the first transaction.
    ///
    /// # Errors
    ///
    /// As [`Self::at_firmware_region`].
    ///
    /// # Safety
    ///
    /// As [`Self::at_firmware_region`].
    pub unsafe fn at_untouched_region(
        base: *mut u8,
        len: usize,
        mailbox: Option<*mut u8>,
    ) -> Result<Self, ChannelError> {
        if len < MIN_REGION_LEN {
            return Err(ChannelError::TooSmall {
                len,
                minimum: MIN_REGION_LEN,
            });
        }
        let address = base.addr();
        if base.is_null() {
            return Err(ChannelError::Null);
        }
        if !address.is_multiple_of(mm_wire::PAGE_LEN) {
            return Err(ChannelError::NotPageAligned { address });
        }
        // SAFETY: the caller vouches for the memory, with the same contract.
        let region = unsafe { SharedRegion::new(base, len) }?;
        let mailbox = match mailbox {
            // SAFETY: the caller vouches for the memory, with the same contract.
            Some(address) => Some(unsafe { Mailbox::new(address) }?),
            None => None,
        };
        if let Some((mailbox, region)) = mailbox
            .as_ref()
            .and_then(|mailbox| mailbox.region().range())
            .zip(region.range())
            && mailbox.overlaps(region)
        {
            return Err(ChannelError::MailboxInRegion { mailbox, region });
        }
        Ok(Self {
            mailbox,
            ..Self::over(region)
        })
    }

    /// The shared memory that messages are written to.
    #[must_use]
    pub const fn region(&self) -> &SharedRegion {
        &self.region
    }

    /// The status mailbox, where the platform has one.
    #[must_use]
    pub const fn mailbox(&self) -> Option<&Mailbox> {
        self.mailbox.as_ref()
    }

    /// How many message bytes fit behind a header of this format.
    #[must_use]
    pub const fn capacity(&self, format: HeaderFormat) -> usize {
        self.region.len().saturating_sub(format.header_len())
    }

    /// The header that was last written, from memory that MM cannot reach.
    #[must_use]
    pub fn tracked(&self) -> Option<Header> {
        self.tracked.get()
    }

    /// Whether a transaction holds the channel.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::SeqCst)
    }

    /// Takes the channel out of use for good: no transaction begins after this returns. One that holds the channel now goes
    /// its way; see [`Self::is_in_use`].
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// Whether [`Self::retire`] was called.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Makes memory that others used before fit for the first transaction: empties the mailbox, so that MM does not take an
    /// old request, then wipes the region. RAM is not zero after a reset, and firmware does not clear each mailbox that it
    /// announces (Project Mu's supervisor did not before mu_feature_mm_supv#657).
    ///
    /// Returns what was in the mailbox; `None` if it was empty or there is none.
    pub fn take_over(&self) -> Option<MailboxImage> {
        let found = self.mailbox.as_ref().and_then(Mailbox::take_over);
        self.clear();
        found
    }

    /// The number of the transaction that has begun last. See [`Self::may_write`].
    #[must_use]
    pub fn transaction(&self) -> u32 {
        self.transaction.get()
    }

    /// Whether a holder may write to the region by hand: while a transaction uses the channel, only one that was told the
    /// number of this transaction.
    #[must_use]
    pub fn may_write(&self, transaction: Option<u32>) -> bool {
        !self.is_in_use() || transaction == Some(self.transaction.get())
    }

    /// From now on requests say that they are for the MM supervisor, in a mailbox that it shares with its users (see
    /// [`mm_wire::mailbox`]). Who makes requests through both channels keeps the other one with [`Self::hold`] meanwhile.
    pub fn share_mailbox_as_supervisors(&self) {
        self.is_supervisors.store(true, Ordering::SeqCst);
    }

    /// Whether [`Self::share_mailbox_as_supervisors`] was called.
    #[must_use]
    pub fn shares_mailbox_as_supervisors(&self) -> bool {
        self.is_supervisors.load(Ordering::SeqCst)
    }

    /// The mailbox with a request of this channel.
    #[must_use]
    pub fn armed(&self) -> MailboxImage {
        match self.shares_mailbox_as_supervisors() {
            true => MailboxImage::armed_for_supervisor(),
            false => MailboxImage::armed(),
        }
    }

    /// Keeps the channel without a request: no transaction begins until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`] if a transaction or another user has it.
    pub fn hold(&self) -> Result<Hold<'_>, BeginError> {
        if self.in_use.swap(true, Ordering::SeqCst) {
            return Err(BeginError::Busy);
        }
        Ok(Hold(self))
    }

    /// Writes a header for `recipient`, keeping the tracked length. What an executor that answers by hand calls first.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoomForHeader`] or [`WriteError::RecipientIsMarker`].
    pub fn write_recipient(&self, format: HeaderFormat, recipient: Guid) -> Result<(), WriteError> {
        let needed = format.header_len();
        let no_room = WriteError::NoRoomForHeader {
            len: self.region.len(),
            needed,
        };
        if self.region.len() < needed {
            return Err(no_room);
        }
        if !Header::can_name(format, recipient) {
            return Err(WriteError::RecipientIsMarker(recipient));
        }
        let message_len = self.tracked.get().map_or(0, |header| header.message_len());
        self.put(Header::new(format, recipient, message_len).ok_or(no_room)?, None);
        Ok(())
    }

    /// Writes a message for the recipient that was written before.
    ///
    /// # Errors
    ///
    /// [`WriteError::TooLarge`] or [`WriteError::NoRecipient`], looked at in this order.
    pub fn write_message(&self, message: &[u8]) -> Result<(), WriteError> {
        let tracked = self.tracked.get();
        let capacity = self.capacity(tracked.map_or(HeaderFormat::V1, |header| header.format()));
        let too_large = WriteError::TooLarge {
            len: message.len(),
            capacity,
        };
        if message.len() > capacity {
            return Err(too_large);
        }
        let tracked = tracked.ok_or(WriteError::NoRecipient)?;
        let header =
            Header::new(tracked.format(), tracked.recipient(), message.len() as u64).ok_or(too_large)?;
        self.put(header, Some(message));
        Ok(())
    }

    /// Takes what stands behind the header for a response of `message_len` bytes. What an executor calls that was told the
    /// length in another way than through header or mailbox.
    ///
    /// # Errors
    ///
    /// [`MismatchError`] where the header is not for the recipient that was written any more, or where so many bytes do
    /// not fit.
    pub fn accept_in_place(&self, message_len: usize) -> Result<(), MismatchError> {
        let found = self.read_header().map_err(MismatchError::Damaged)?;
        let tracked = self.tracked.get();
        let expected =
            tracked
                .filter(|tracked| tracked.is_of_same_kind(&found))
                .ok_or(MismatchError::Recipient {
                    expected: tracked.map_or(Guid::ZERO, |tracked| tracked.recipient()),
                })?;
        let capacity = self.capacity(expected.format());
        let too_long = MismatchError::Length {
            expected: capacity as u64,
            found: message_len as u64,
        };
        if message_len > capacity {
            return Err(too_long);
        }
        let header =
            Header::new(expected.format(), expected.recipient(), message_len as u64).ok_or(too_long)?;
        self.put(header, None);
        Ok(())
    }

    /// What the header in shared memory says about the response to the message that was written: [`Header::response_length`].
    /// It is read once, and has to be for the same recipient.
    ///
    /// # Errors
    ///
    /// [`MismatchError`] says what is wrong with it.
    pub fn response_in_header(&self) -> Result<ResponseLength, MismatchError> {
        let found = self.read_header().map_err(MismatchError::Damaged)?;
        let sent = self.tracked.get().filter(|sent| sent.is_of_same_kind(&found));
        let sent = sent.ok_or(MismatchError::Recipient {
            expected: self.tracked.get().map_or(Guid::ZERO, |sent| sent.recipient()),
        })?;
        sent.response_length(&found).map_err(MismatchError::Damaged)
    }

    /// Compares the header in shared memory with the tracked one. `None` where none was written; then the memory must
    /// start with a zero GUID and no length.
    ///
    /// # Errors
    ///
    /// [`MismatchError`] says what differs.
    pub fn verify(&self) -> Result<Option<Header>, MismatchError> {
        let found = self.read_header().map_err(MismatchError::Damaged)?;
        let Some(expected) = self.tracked.get() else {
            return match (found.recipient(), found.message_len()) {
                (Guid::ZERO, 0) => Ok(None),
                (Guid::ZERO, found) => Err(MismatchError::Length { expected: 0, found }),
                _ => Err(MismatchError::Recipient { expected: Guid::ZERO }),
            };
        };
        if !found.is_of_same_kind(&expected) {
            return Err(MismatchError::Recipient {
                expected: expected.recipient(),
            });
        }
        if found.message_len() != expected.message_len() {
            return Err(MismatchError::Length {
                expected: expected.message_len(),
                found: found.message_len(),
            });
        }
        Ok(Some(expected))
    }

    /// Wipes the whole region and forgets what was written. The mailbox is left alone. During a transaction this is a
    /// response of no bytes, if nothing is written by hand afterwards.
    pub fn clear(&self) {
        self.wipe(self.region.len());
        if !self.is_in_use() {
            self.reached.set(0);
        }
        self.tracked.set(None);
        self.written_in_flight.set(true);
    }

    /// Withdraws the request from a region without a mailbox: there MM looks for a header with a length. Both formats have
    /// their length at the same place, and it is one aligned word: MM finds all of the request, or none.
    pub(crate) fn withdraw_from_region(&self) {
        if self.mailbox.is_none() {
            // Regions that are too small for a header hold no request.
            let _ = self.region.write_words(LENGTH_OFFSET, &[[0; WORD]])
                || self.region.wipe(LENGTH_OFFSET, LENGTH_LEN);
        }
    }

    /// Wipes the first `len` bytes, at most all. Whatever MM could take for a request goes first.
    fn wipe(&self, len: usize) {
        self.withdraw_from_region();
        let wiped = self.region.wipe(0, len.min(self.region.len()));
        debug_assert!(wiped, "the length was limited to the region's");
    }

    /// Copies and parses the header that is in shared memory now. Of a v1 header no more than it has.
    pub(crate) fn read_header(&self) -> Result<Header, HeaderError> {
        match self.region.read_words(0) {
            Some(start) => Header::parse_v1_words(start).unwrap_or_else(|| self.read_v3_header(start)),
            None => self.read_odd_header(),
        }
    }

    /// Reads the rest of a v3 header that starts with these words.
    #[cold]
    fn read_v3_header(&self, start: [[u8; WORD]; V1_WORDS]) -> Result<Header, HeaderError> {
        let Some(rest) = self
            .region
            .read_words::<REST_WORDS>(HeaderFormat::V1.header_len())
        else {
            // The region ends before: as much as there is says so.
            return Header::parse(start.as_flattened());
        };
        let mut bytes = [[0; WORD]; V1_WORDS + REST_WORDS];
        let (first, last) = bytes.split_at_mut(V1_WORDS);
        first.copy_from_slice(&start);
        last.copy_from_slice(&rest);
        Header::parse(bytes.as_flattened())
    }

    /// Like [`Self::read_header`], if the region is not aligned, or shorter than a header.
    #[cold]
    fn read_odd_header(&self) -> Result<Header, HeaderError> {
        let mut bytes = [0; MAX_HEADER_LEN];
        let len = self.region.len().min(MAX_HEADER_LEN);
        let copy = bytes.get_mut(..len).unwrap_or_default();
        let read = self.region.read(0, copy);
        debug_assert!(read, "the copy is no longer than the region");
        Header::parse(copy)
    }

    /// Whether an executor responded by hand since the transaction began, and the header that it wrote; `Some(None)` if it
    /// wiped the region and wrote nothing. It is not read from shared memory.
    pub(crate) fn written_by_hand(&self) -> Option<Option<Header>> {
        self.written_in_flight.get().then_some(self.tracked.get())
    }

    /// Ends a transaction: withdraws a request that MM has not taken, so that MM does not take one that is half wiped; wipes
    /// the region, all of it or what was reached; frees the channel.
    fn end(&self) {
        if let Some(mailbox) = &self.mailbox {
            if mailbox.is_pending() {
                mailbox.withdraw();
            }
            // The next request in a shared mailbox may be of a driver that does not write this byte.
            if self.shares_mailbox_as_supervisors() {
                mailbox.clear_talk_to_supervisor();
            }
        }
        let reached = self.reached.replace(0);
        self.wipe(if self.wipes_all.get() {
            self.region.len()
        } else {
            reached
        });
        self.tracked.set(None);
        self.free();
    }

    /// Frees the channel without a change to shared memory.
    fn free(&self) {
        self.in_use.store(false, Ordering::Release);
    }

    /// Callers checked that header and message fit. Without a mailbox the length, which announces the request, is written
    /// last.
    fn put(&self, header: Header, message: Option<&[u8]>) {
        self.withdraw_from_region();
        let mut written = true;
        if let Some(message) = message {
            written &= self.region.write(header.format().header_len(), message);
        }
        written &= self.write_header(header);
        debug_assert!(written, "the callers checked that header and message fit");
        let total = usize::try_from(header.total_len()).unwrap_or(usize::MAX);
        self.reached.update(|reached| reached.max(total));
        self.tracked.set(Some(header));
        self.written_in_flight.set(true);
    }

    /// Writes a header, its length last.
    fn write_header(&self, header: Header) -> bool {
        let Some([first, second, length]) = header.v1_words() else {
            return self.write_odd_header(header);
        };
        self.region.write_words(0, &[first, second]) && self.region.write_words(LENGTH_OFFSET, &[length])
            || self.write_odd_header(header)
    }

    /// Like [`Self::write_header`], for a v3 header, or if the region is not aligned.
    #[cold]
    fn write_odd_header(&self, header: Header) -> bool {
        let encoded = header.encode();
        let parts = encoded
            .as_ref()
            .split_at_checked(LENGTH_OFFSET)
            .and_then(|(start, rest)| Some((start, rest.split_at_checked(LENGTH_LEN)?)));
        parts.is_some_and(|(start, (length, rest))| {
            self.region.write(LENGTH_OFFSET.saturating_add(LENGTH_LEN), rest)
                && self.region.write(0, start)
                && self.region.write(LENGTH_OFFSET, length)
        })
    }
}
