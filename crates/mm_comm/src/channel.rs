//! One comm buffer: its region, its mailbox, and the rule that it serves one transaction at a time.

use crate::error::{BeginError, ChannelError};
use crate::mailbox::Mailbox;
use crate::region::{SharedRegion, WORD};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering, compiler_fence};
use mm_wire::address::check_comm_buffer;
use mm_wire::header::{LENGTH_OFFSET, V3_WORDS};
use mm_wire::mailbox::MailboxImage;
use mm_wire::{Header, HeaderError, HeaderFormat};
use zerocopy::IntoBytes;

/// The smallest region that can carry a header.
const MIN_REGION_LEN: usize = HeaderFormat::V1.header_len();

/// Words of a v1 header.
const V1_WORDS: usize = HeaderFormat::V1.header_len() / WORD;

/// The channel was taken out of use.
const RETIRED: u8 = 1;

/// The mailbox is shared with another channel, and requests here are for the MM supervisor.
const SUPERVISORS: u8 = 2;

/// A comm buffer, with its mailbox if it has one.
///
/// It keeps a copy of the header that was last written in memory that MM cannot reach
/// ([`Self::tracked`]). The header in shared memory is not trusted: it is compared with the copy.
#[derive(Debug)]
pub struct Channel {
    region: SharedRegion,
    mailbox: Option<Mailbox>,
    in_use: AtomicBool,
    /// [`RETIRED`] and [`SUPERVISORS`], set once. One byte: with two, a channel would take 8 bytes
    /// more.
    flags: AtomicU8,
    /// Counts the transactions from 1: the number of the one under way, or of the last one.
    transaction: Cell<u32>,
    tracked: Tracked,
    /// The format of the header in `tracked`; `None` if no header is tracked.
    tracked_format: Cell<Option<HeaderFormat>>,
    /// The end of the longest message that was written since the region was last wiped.
    reached: Cell<usize>,
    /// Whether the end of the transaction wipes the whole region, or only the first `reached`
    /// bytes.
    wipes_all: Cell<bool>,
}

/// A header, without its format, as separate cells: the processor waits if memory is written field by field and soon
/// after read as a whole.
#[derive(Debug)]
struct Tracked {
    recipient: [Cell<u64>; 2],
    message_len: Cell<u64>,
    message_size: Cell<u64>,
}

impl Tracked {
    const fn none() -> Self {
        Self {
            recipient: [Cell::new(0), Cell::new(0)],
            message_len: Cell::new(0),
            message_size: Cell::new(0),
        }
    }

    #[inline]
    fn set(&self, header: &Header) {
        let [first, second] = &self.recipient;
        let [low, high] = header.recipient_words();
        first.set(low);
        second.set(high);
        self.message_len.set(header.message_len());
        self.message_size.set(header.message_size());
    }

    #[inline]
    fn get(&self, format: HeaderFormat) -> Option<Header> {
        let [first, second] = &self.recipient;
        let recipient = [first.get(), second.get()];
        let header = Header::of_words(format, recipient, self.message_len.get())?;
        Some(header.with_message_size(self.message_size.get()))
    }
}

/// The use of a channel by one transaction, which ends when this is dropped. It is one pointer, so that it fits a
/// register; the channel keeps the rest of the transaction's state.
#[derive(Debug)]
pub(crate) struct Claim<'c>(&'c Channel);

impl<'c> Claim<'c> {
    /// Takes the channel. The end wipes the whole region, unless [`Self::wipe_reached`] is called.
    #[inline]
    pub(crate) fn new(channel: &'c Channel) -> Result<Self, BeginError> {
        channel.take()?;
        let refused = if channel.is_retired() {
            // Checked after `in_use` was set: if code retires a channel and then finds it not in
            // use, no transaction can begin in its memory any more.
            BeginError::Retired
        } else if channel.mailbox.as_ref().is_some_and(Mailbox::is_pending) {
            BeginError::MailboxInUse
        } else {
            channel.transaction.update(|number| number.wrapping_add(1).max(1));
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

    /// Writes header and message, and checks that the memory keeps them.
    #[inline]
    pub(crate) fn write_request(&self, header: Header, message: &[u8]) -> Result<(), BeginError> {
        let Self(channel) = self;
        let is_written = match header.v1_words() {
            Some([first, second, _]) => channel.write_v1(first, second, message),
            None => channel.write(header, Some(message)),
        };
        if !is_written || !channel.holds(&header) {
            let address = channel.region.as_ptr().addr();
            return Err(BeginError::NotMemory { address });
        }
        Ok(())
    }

    /// Makes the end wipe the first `len` bytes, and what was written behind them, instead of the
    /// whole region.
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
    /// Makes a channel over a region without a mailbox, and without the checks of [`Self::new`]. For
    /// host tests, and for MM that does not need aligned memory.
    #[must_use]
    pub const fn over(region: SharedRegion) -> Self {
        Self {
            region,
            mailbox: None,
            in_use: AtomicBool::new(false),
            flags: AtomicU8::new(0),
            transaction: Cell::new(0),
            tracked: Tracked::none(),
            tracked_format: Cell::new(None),
            reached: Cell::new(0),
            wipes_all: Cell::new(true),
        }
    }

    /// Makes a channel over memory that the platform set aside. The checks, in this order: the
    /// region's size, address, alignment and end, then the mailbox.
    ///
    /// The memory stays as it is, because callers may have more to check. [`Self::take_over`] comes
    /// before the first transaction.
    ///
    /// # Errors
    ///
    /// A [`ChannelError`], with the number that is wrong.
    ///
    /// # Safety
    ///
    /// The contract of [`SharedRegion::new`] for the `len` bytes at `base` and for the 24 bytes at
    /// `mailbox`.
    pub unsafe fn new(base: *mut u8, len: usize, mailbox: Option<*mut u8>) -> Result<Self, ChannelError> {
        if len < MIN_REGION_LEN {
            return Err(ChannelError::TooSmall {
                len,
                minimum: MIN_REGION_LEN,
            });
        }
        let mailbox_address = mailbox.map(|address| address.addr() as u64);
        check_comm_buffer(base.addr() as u64, len as u64, mailbox_address)?;
        // SAFETY: this function's contract is that of `new`, for these bytes.
        let region = unsafe { SharedRegion::new(base, len) }?;
        let mailbox = match mailbox {
            // SAFETY: this function's contract is that of `new`, for the 24 bytes of the mailbox.
            Some(address) => Some(unsafe { Mailbox::new(address) }?),
            None => None,
        };
        Ok(Self {
            mailbox,
            ..Self::over(region)
        })
    }

    /// The shared memory for header and message.
    #[must_use]
    pub const fn region(&self) -> &SharedRegion {
        &self.region
    }

    /// The status mailbox, if the platform has one.
    #[must_use]
    pub const fn mailbox(&self) -> Option<&Mailbox> {
        self.mailbox.as_ref()
    }

    /// Number of message bytes that fit behind a header of this format.
    #[must_use]
    pub const fn capacity(&self, format: HeaderFormat) -> usize {
        self.region.len().saturating_sub(format.header_len())
    }

    /// The header that was last written, from memory that MM cannot reach; `None` after the region
    /// was wiped.
    #[must_use]
    #[inline]
    pub fn tracked(&self) -> Option<Header> {
        self.tracked.get(self.tracked_format.get()?)
    }

    /// Whether a transaction holds the channel.
    #[must_use]
    #[inline]
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::SeqCst)
    }

    /// Takes the channel out of use for good: no transaction begins after this returns. A
    /// transaction that is under way finishes; see [`Self::is_in_use`].
    pub fn retire(&self) {
        self.flags.fetch_or(RETIRED, Ordering::SeqCst);
    }

    /// Whether [`Self::retire`] was called.
    #[must_use]
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & RETIRED != 0
    }

    /// Prepares memory that other code used before: empties the mailbox, so that MM does not take
    /// an old request, then wipes the region. RAM is not zero after a reset, and firmware does not
    /// clear each mailbox that it announces (Project Mu's supervisor did not before
    /// mu_feature_mm_supv#657).
    ///
    /// Returns what was in the mailbox; `None` if it was empty or there is none.
    pub fn take_over(&self) -> Option<MailboxImage> {
        let found = self.mailbox.as_ref().and_then(Mailbox::take_over);
        self.clear();
        found
    }

    /// The number of the transaction that began last.
    #[must_use]
    #[inline]
    pub fn transaction(&self) -> u32 {
        self.transaction.get()
    }

    /// Makes requests say that they are for the MM supervisor, in a mailbox that it shares with its
    /// users (see [`mm_wire::mailbox`]). Code that makes requests through both channels reserves
    /// the other one with [`Self::hold`] meanwhile.
    pub fn share_mailbox_as_supervisors(&self) {
        self.flags.fetch_or(SUPERVISORS, Ordering::SeqCst);
    }

    /// Whether [`Self::share_mailbox_as_supervisors`] was called.
    #[must_use]
    #[inline]
    pub fn shares_mailbox_as_supervisors(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & SUPERVISORS != 0
    }

    /// The contents of a mailbox that announces a request of this channel.
    #[must_use]
    #[inline]
    pub fn armed(&self) -> MailboxImage {
        match self.shares_mailbox_as_supervisors() {
            true => MailboxImage::armed_for_supervisor(),
            false => MailboxImage::armed(),
        }
    }

    /// Reserves the channel: no transaction begins until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`] if a transaction uses it, or it is reserved.
    pub fn hold(&self) -> Result<Hold<'_>, BeginError> {
        self.take()?;
        Ok(Hold(self))
    }

    /// Marks the channel as in use. This needs no atomic read-modify-write: a channel is not shared
    /// between threads, and only a notification on this processor can come between the two
    /// accesses, which ends its transactions before it returns.
    #[inline]
    fn take(&self) -> Result<(), BeginError> {
        if self.in_use.load(Ordering::Relaxed) {
            return Err(BeginError::Busy);
        }
        self.in_use.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Wipes the whole region, and forgets the header that was written. The mailbox stays as it is.
    pub fn clear(&self) {
        self.wipe(self.region.len());
        if !self.is_in_use() {
            self.reached.set(0);
        }
        self.tracked_format.set(None);
    }

    /// Withdraws the request from a region without a mailbox, in which MM looks for a header with a
    /// length. Both formats have the length at the same offset, and it is one aligned word, so that
    /// MM finds the whole request or none.
    #[inline]
    pub(crate) fn withdraw_from_region(&self) {
        if self.mailbox.is_none() && !self.region.write_words(LENGTH_OFFSET, &[0]) {
            self.wipe_odd_length();
        }
    }

    /// Wipes the length in a region that is not aligned. A region that is too small for a header
    /// cannot hold a request.
    #[cold]
    #[inline(never)]
    fn wipe_odd_length(&self) {
        let _ = self.region.wipe(LENGTH_OFFSET, WORD);
    }

    /// Wipes the first `len` bytes, or all if there are fewer. What MM could take for a request is wiped first.
    fn wipe(&self, len: usize) {
        self.withdraw_from_region();
        let wiped = self.region.wipe(0, len.min(self.region.len()));
        debug_assert!(wiped, "the length was limited to the region's");
    }

    /// Whether this header is in shared memory.
    #[inline]
    fn holds(&self, header: &Header) -> bool {
        match (header.v1_words(), self.region.read_words(0)) {
            // Compared word by word: the compiler would compare arrays with vector loads, which
            // wait for the words that were just stored.
            (Some([a, b, c]), Some([x, y, z])) => (a ^ x) | (b ^ y) | (c ^ z) == 0,
            _ => self.read_header() == Ok(*header),
        }
    }

    /// The format of [`Self::tracked`].
    #[inline]
    pub(crate) fn tracked_format(&self) -> Option<HeaderFormat> {
        self.tracked_format.get()
    }

    /// The length in a header that starts with these words of the region, if it and the tracked one are v1, both have the
    /// same recipient, and the message fits.
    #[inline(always)]
    pub(crate) fn usual_length(&self, words: Option<[u64; V1_WORDS]>) -> Option<usize> {
        let ([a, b], [x, y, len]) = (&self.tracked.recipient, words?);
        let is_same = self.tracked_format() == Some(HeaderFormat::V1) && (a.get() ^ x) | (b.get() ^ y) == 0;
        let len = usize::try_from(u64::from_le(len)).ok()?;
        (is_same && len <= self.capacity(HeaderFormat::V1)).then_some(len)
    }

    /// Whether the tracked header is in shared memory, if it is v1 and the region is aligned; `false` otherwise.
    #[must_use]
    #[inline]
    pub fn holds_tracked(&self) -> bool {
        let ([a, b], len) = (&self.tracked.recipient, &self.tracked.message_len);
        match (self.tracked_format(), self.region.read_words(0)) {
            (Some(HeaderFormat::V1), Some([x, y, z])) => {
                (a.get() ^ x) | (b.get() ^ y) | (len.get() ^ u64::from_le(z)) == 0
            }
            _ => false,
        }
    }

    /// Whether a header of the same format and for the same recipient as the tracked one is in shared memory.
    #[must_use]
    #[inline]
    pub fn holds_tracked_kind(&self) -> bool {
        let [a, b] = &self.tracked.recipient;
        match (self.tracked_format(), self.region.read_words(0)) {
            (Some(HeaderFormat::V1), Some([x, y])) => (a.get() ^ x) | (b.get() ^ y) == 0,
            _ => self.holds_odd_kind(),
        }
    }

    #[cold]
    #[inline(never)]
    fn holds_odd_kind(&self) -> bool {
        let sent = self.tracked();
        sent.is_some_and(|sent| matches!(self.read_header(), Ok(found) if sent.is_of_same_kind(&found)))
    }

    /// Copies the header from shared memory, and parses the copy.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn read_header(&self) -> Result<Header, HeaderError> {
        self.header_from(self.region.read_words(0))
    }

    /// Parses the header that starts with these words of the region; `None` if it is not aligned, or
    /// shorter than a header.
    #[inline]
    pub(crate) fn header_from(&self, start: Option<[u64; V1_WORDS]>) -> Result<Header, HeaderError> {
        match start.and_then(Header::parse_v1_words) {
            Some(header) => header,
            None => self.read_odd_header(start),
        }
    }

    /// Like [`Self::header_from`], for a v3 header, or if the region is not aligned, or shorter than
    /// a header.
    #[cold]
    #[inline(never)]
    fn read_odd_header(&self, start: Option<[u64; V1_WORDS]>) -> Result<Header, HeaderError> {
        let start = start.or_else(|| self.region.read_odd_words(0));
        let start @ [a, b, c] = start.ok_or(self.truncated(HeaderFormat::V1))?;
        if let Some(header) = Header::parse_v1_words(start) {
            return header;
        }
        let rest = self.region.read_odd_words(HeaderFormat::V1.header_len());
        let [d, e, f, g] = rest.ok_or(self.truncated(HeaderFormat::V3))?;
        Header::parse_v3_words([a, b, c, d, e, f, g])
    }

    /// The region ends inside the header.
    const fn truncated(&self, format: HeaderFormat) -> HeaderError {
        HeaderError::Truncated {
            needed: format.header_len(),
            available: self.region.len(),
        }
    }

    /// Ends a transaction: withdraws a request that MM has not taken, so that MM does not take one
    /// that is half wiped, wipes the region, and frees the channel.
    fn end(&self) {
        if let Some(mailbox) = &self.mailbox {
            if mailbox.is_pending() {
                mailbox.withdraw();
            }
            // The next request in a shared mailbox may come from a driver that does not write this
            // byte.
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
        self.tracked_format.set(None);
        self.free();
    }

    /// Frees the channel without a change to shared memory.
    fn free(&self) {
        self.in_use.store(false, Ordering::Release);
    }

    /// Writes a header and, if there is one, the message behind it. The length, which announces the
    /// request if there is no mailbox, is written last. `false` if they do not fit the region.
    pub fn write(&self, header: Header, message: Option<&[u8]>) -> bool {
        self.write_here(header, message)
    }

    /// Writes the lengths of a header whose other fields are the tracked one's.
    pub fn write_lengths(&self, header: Header) -> bool {
        let Some([_, _, length]) = header.v1_words() else {
            return self.write(header, None);
        };
        let written = self.region.write_words(LENGTH_OFFSET, &[length]) || self.write_odd_header(&header);
        self.track(&header);
        written
    }

    /// Like [`Self::write`], for a v1 header to the recipient of these two words. They come in registers: a header in memory,
    /// written field by field and then copied as a whole, makes the processor wait.
    #[inline(never)]
    fn write_v1(&self, first: u64, second: u64, message: &[u8]) -> bool {
        let header = Header::of_words(HeaderFormat::V1, [first, second], message.len() as u64);
        header.is_some_and(|header| self.write_here(header, Some(message)))
    }

    #[inline(always)]
    fn write_here(&self, header: Header, message: Option<&[u8]>) -> bool {
        self.withdraw_from_region();
        let offset = header.format().header_len();
        let written =
            message.is_none_or(|message| self.region.write(offset, message)) && self.write_header(&header);
        self.track(&header);
        written
    }

    /// Keeps a header that was written, and how far it and its message reach.
    #[inline]
    fn track(&self, header: &Header) {
        let total = usize::try_from(header.total_len()).unwrap_or(usize::MAX);
        self.reached.update(|reached| reached.max(total));
        self.tracked.set(header);
        self.tracked_format.set(Some(header.format()));
    }

    /// Writes a header, its length last.
    fn write_header(&self, header: &Header) -> bool {
        let Some([first, second, length]) = header.v1_words() else {
            return self.write_odd_header(header);
        };
        self.region.write_words(0, &[first, second]) && self.region.write_words(LENGTH_OFFSET, &[length])
            || self.write_odd_header(header)
    }

    /// Like [`Self::write_header`], for a v3 header, or if the region is not aligned.
    #[cold]
    #[inline(never)]
    fn write_odd_header(&self, header: &Header) -> bool {
        let (words, rest_words) = match header.v1_words() {
            Some([a, b, c]) => ([a, b, c, 0, 0, 0, 0], 0),
            None => (header.v3_words(), V3_WORDS - V1_WORDS),
        };
        let [first, second, length, rest @ ..] = words;
        let rest = rest.get(..rest_words).unwrap_or_default();
        self.region.write(HeaderFormat::V1.header_len(), rest.as_bytes())
            && self.region.write(0, [first, second].as_bytes())
            && self.region.write(LENGTH_OFFSET, length.as_bytes())
    }
}
