//! The comm buffer, as platforms configure it and executors get it.

mod counted;
mod draft;

use alloc::vec::Vec;
use core::fmt;
use core::panic::{RefUnwindSafe, UnwindSafe};
use core::pin::Pin;
use counted::Counted;
use draft::{Draft, MismatchError, WriteError};
use mm_comm::{Channel, ChannelError, Response, ResponseError, SharedRegion, Staged};
use mm_wire::hob::CommBufferPlace;
use mm_wire::{AddressError, AddressRange, Header, HeaderFormat, ResponseLength};
use patina::{Guid, OwnedGuid};
use thiserror::Error;

/// Why memory cannot be a comm buffer, or a message cannot be written to it or read from it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CommunicateBufferStatus {
    /// The memory cannot hold a communicate header.
    #[error("the comm buffer cannot hold the communicate header")]
    TooSmallForHeader,
    /// The memory cannot hold the message, or the header claims another length than was written.
    #[error("the comm buffer cannot hold the message, or its header claims another length than was written")]
    TooSmallForMessage,
    /// No recipient was given, the header cannot name it, or it names another one than was written.
    #[error(
        "the comm buffer has no recipient, or its header cannot name it or names another one than was written"
    )]
    InvalidRecipient,
    /// A null pointer, or no mailbox if one is needed.
    #[error("there is no memory at the comm buffer's or mailbox's address")]
    NoBuffer,
    /// The memory is not aligned: 4096 bytes for the buffer, 8 for the mailbox.
    #[error("the comm buffer or its mailbox is not aligned")]
    NotAligned,
    /// The address cannot be used: it wraps, it is too large, or buffer and mailbox overlap.
    #[error("the comm buffer's or mailbox's address cannot be used")]
    AddressValidationFailed,
}

impl From<ChannelError> for CommunicateBufferStatus {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::TooSmall { .. } => Self::TooSmallForHeader,
            ChannelError::Address(AddressError::Null) => Self::NoBuffer,
            ChannelError::Address(
                AddressError::NotPageAligned { .. } | AddressError::MailboxMisaligned { .. },
            ) => Self::NotAligned,
            // Ends that wrap, other mailbox errors, and future variants.
            _ => Self::AddressValidationFailed,
        }
    }
}

impl From<MismatchError> for CommunicateBufferStatus {
    fn from(error: MismatchError) -> Self {
        match error {
            MismatchError::Recipient { .. } => Self::InvalidRecipient,
            MismatchError::Damaged(mm_wire::HeaderError::Truncated { .. }) => Self::TooSmallForHeader,
            MismatchError::Length { .. } | MismatchError::Damaged(_) => Self::TooSmallForMessage,
        }
    }
}

impl From<WriteError> for CommunicateBufferStatus {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoRecipient | WriteError::RecipientIsMarker(_) => Self::InvalidRecipient,
            WriteError::NoRoomForHeader { .. } => Self::TooSmallForHeader,
            WriteError::TooLarge { .. } => Self::TooSmallForMessage,
        }
    }
}

/// Memory that is shared with MM, tracked by an identifier.
///
/// A clone is a second handle of the same buffer: memory, identifier, message and `disable` are
/// shared. Each handle has its own [`Self::header`].
///
/// The memory is not trusted: recipient and length of the message that was last written are kept
/// outside it, and each read compares them.
///
/// While a call uses the buffer, only the handle that its executor gets, and clones of that, can
/// write to it. With any other handle [`Self::reset`] does nothing, and the functions that write
/// return [`NoBuffer`](CommunicateBufferStatus::NoBuffer).
#[derive(Clone)]
pub struct CommunicateBuffer {
    /// A notification in the middle of a call makes and drops handles, and may keep one.
    shared: Counted<Shared>,
    header: HeaderFormat,
    is_shared_with_firmware: bool,
    /// The number of the transaction during which this handle may write; 0 for none, since they are numbered from 1.
    lent_for: u32,
}

struct Shared {
    channel: Channel,
    draft: Draft,
    id: u8,
}

// A call that panics ends its transaction during the unwinding (`mm_comm::transaction`), and leaves
// nothing half done.
impl UnwindSafe for CommunicateBuffer {}
impl RefUnwindSafe for CommunicateBuffer {}

/// Logs why something was refused, with the numbers that the status does not have.
fn refused<E>(id: u8) -> impl FnOnce(E) -> CommunicateBufferStatus
where
    E: fmt::Display + Into<CommunicateBufferStatus>,
{
    move |error| {
        log_line!(Error, "mm_comm", "comm buffer {id}: {error}");
        error.into()
    }
}

impl CommunicateBuffer {
    fn over(channel: Channel, id: u8) -> Self {
        Self {
            shared: Counted::new(Shared {
                channel,
                draft: Draft::default(),
                id,
            }),
            header: HeaderFormat::V1,
            is_shared_with_firmware: false,
            lent_for: 0,
        }
    }

    /// Sends messages through this handle with this header, unless a call asks for another one.
    /// Each MM environment supports [`HeaderFormat::V1`]; PI 1.9 added [`HeaderFormat::V3`].
    #[must_use]
    pub fn with_header(self, header: HeaderFormat) -> Self {
        Self { header, ..self }
    }

    /// The header of messages through this handle, unless a call asks for another one.
    #[must_use]
    #[inline]
    pub fn header(&self) -> HeaderFormat {
        self.header
    }

    /// Declares that the firmware may have a driver that uses this memory, too, like edk2's
    /// MmCommunicationDxe, which uses the buffer of the comm-buffer HOB.
    /// [`MmCommunicator`](crate::component::communicator::MmCommunicator) then makes calls through
    /// it at `TPL_NOTIFY`, so that no notification calls that driver in the middle of one.
    /// [`MmHobConfiguration`](crate::component::hob_configuration::MmHobConfiguration) declares
    /// this for each buffer from a HOB.
    #[must_use]
    pub fn shared_with_firmware(self) -> Self {
        Self {
            is_shared_with_firmware: true,
            ..self
        }
    }

    /// Whether [`Self::shared_with_firmware`] was called.
    #[must_use]
    pub fn is_shared_with_firmware(&self) -> bool {
        self.is_shared_with_firmware
    }

    /// The same memory, used like `old`: with its header, and shared with the firmware if `old` is.
    pub(crate) fn in_place_of(self, old: &Self) -> Self {
        Self {
            header: old.header,
            is_shared_with_firmware: old.is_shared_with_firmware,
            ..self
        }
    }

    /// The handle for the executor of a transaction with this header.
    pub(crate) fn lend(&self, transaction: u32, header: HeaderFormat) -> Self {
        Self {
            header,
            lent_for: transaction,
            ..self.clone()
        }
    }

    /// Buffer and transaction that this handle was lent for.
    pub(crate) fn loan(&self) -> (u8, u32) {
        (self.id(), self.lent_for)
    }

    /// Whether both are handles of one buffer.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.shared.is_same(&other.shared)
    }

    /// The channel, if this handle may write to it by hand now: while a call uses it, only the
    /// handle that was lent for the call may.
    fn writable(&self) -> Result<(&Channel, &Draft), CommunicateBufferStatus> {
        let channel = self.channel();
        if !channel.is_in_use() || self.lent_for == channel.transaction() {
            return Ok((channel, &self.shared.draft));
        }
        log_line!(
            Error,
            "mm_comm",
            "caller: comm buffer {} is in use by a call: only the handle that its executor was given can write to it now",
            self.id()
        );
        Err(CommunicateBufferStatus::NoBuffer)
    }

    /// Whether there is a response to `staged`: the executor wrote one by hand, or MM processed the
    /// request.
    pub(crate) fn is_answered(&self, staged: &Staged<'_>) -> bool {
        self.shared.draft.is_response(self.channel()) || staged.is_processed()
    }

    /// Finishes the transaction for which this handle was lent: with the response that its executor
    /// wrote by hand, or with MM's.
    #[inline(always)]
    pub(crate) fn finish<'c>(
        &self,
        staged: Staged<'c>,
        error: &mut Option<ResponseError>,
    ) -> Option<Response<'c>> {
        if self.shared.draft.is_response(self.channel()) {
            return Some(staged.finish_by_hand());
        }
        staged.finish_or_tell(error)
    }

    /// What the header that MM, or the firmware's driver, left in the buffer says about the
    /// response.
    pub(crate) fn response_in_header(&self) -> Result<ResponseLength, CommunicateBufferStatus> {
        draft::response_in_header(self.channel()).map_err(refused(self.id()))
    }

    /// The header of the message in the buffer; without one, that of new messages.
    fn header_in_use(&self) -> HeaderFormat {
        self.channel()
            .tracked()
            .map_or(self.header, |header| header.format())
    }

    /// Makes this the comm buffer of an MM supervisor that shares its mailbox with its users:
    /// Project Mu's v20.0.0 to v23.0.3.
    ///
    /// Its mailbox is that of the users' comm buffer. Requests through this buffer set
    /// TalkToSupervisor in it, and a call through either buffer in the middle of one through the
    /// other gets [`Status::Busy`](crate::component::communicator::Status::Busy). This applies to
    /// all handles of the buffer.
    ///
    /// [`MmHobConfiguration`](crate::component::hob_configuration::MmHobConfiguration) calls this
    /// itself.
    #[must_use]
    pub fn with_shared_mailbox(self) -> Self {
        self.channel().share_mailbox_as_supervisors();
        self
    }

    /// Whether [`Self::with_shared_mailbox`] made this an MM supervisor's comm buffer.
    #[must_use]
    pub fn has_shared_mailbox(&self) -> bool {
        self.channel().shares_mailbox_as_supervisors()
    }

    /// Whether this buffer and `other` are an MM supervisor's and its users', with one mailbox.
    pub(crate) fn shares_mailbox_with(&self, other: &Self) -> bool {
        let mailbox = |buffer: &Self| {
            buffer
                .channel()
                .mailbox()
                .map(|mailbox| mailbox.region().as_ptr())
        };
        self.has_shared_mailbox() != other.has_shared_mailbox()
            && mailbox(self).is_some()
            && mailbox(self) == mailbox(other)
    }

    /// A buffer over the memory of this one, with the mailbox of `other`; both are left as they
    /// are.
    ///
    /// # Errors
    ///
    /// Those of [`Self::from_firmware_region`].
    pub(crate) fn with_mailbox_of(&self, other: &Self) -> Result<Self, CommunicateBufferStatus> {
        let region = self.channel().region();
        let mailbox = other.channel().mailbox().map(|mailbox| mailbox.region().as_ptr());
        // SAFETY: the makers of the two buffers promised the same for the memory of both.
        let channel =
            unsafe { Channel::new(region.as_ptr(), region.len(), mailbox) }.map_err(refused(self.id()))?;
        let buffer = Self::over(channel, self.id()).in_place_of(self);
        Ok(match self.has_shared_mailbox() {
            true => buffer.with_shared_mailbox(),
            false => buffer,
        })
    }

    /// Takes over memory of this program, without a mailbox, and wipes it. For host tests and for
    /// memory that the caller allocated; MM environments require an alignment of 4096 bytes.
    #[must_use]
    pub fn new(buffer: Pin<&'static mut [u8]>, id: u8) -> Self {
        let channel = Channel::over(SharedRegion::over_static(Pin::into_inner(buffer)));
        channel.take_over();
        Self::over(channel, id)
    }

    /// Takes over `size` bytes at `buffer`, without a mailbox, and wipes them.
    ///
    /// # Errors
    ///
    /// Checked in this order: [`TooSmallForHeader`](CommunicateBufferStatus::TooSmallForHeader)
    /// below 24 bytes, [`NoBuffer`](CommunicateBufferStatus::NoBuffer) for null,
    /// [`NotAligned`](CommunicateBufferStatus::NotAligned) off a 4096-byte boundary,
    /// [`AddressValidationFailed`](CommunicateBufferStatus::AddressValidationFailed) if the end
    /// wraps or the size exceeds `isize::MAX`.
    ///
    /// # Safety
    ///
    /// For the rest of the program
    ///
    /// 1. the memory is readable and writable through `buffer`;
    /// 2. no reference to it is used.
    ///
    /// MM may change it at any time.
    pub unsafe fn from_raw_parts(
        buffer: *mut u8,
        size: usize,
        id: u8,
    ) -> Result<Self, CommunicateBufferStatus> {
        // SAFETY: both functions have the same contract.
        let channel = unsafe { Channel::new(buffer, size, None) }.map_err(refused(id))?;
        channel.take_over();
        Ok(Self::over(channel, id))
    }

    /// Takes over memory that firmware set aside, by physical address, with its status mailbox if
    /// there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Self::from_raw_parts`], but the end is checked first.
    /// [`AddressValidationFailed`](CommunicateBufferStatus::AddressValidationFailed) for a mailbox
    /// at address zero, one that wraps, and one inside the comm buffer;
    /// [`NotAligned`](CommunicateBufferStatus::NotAligned) for one that is not aligned to 8 bytes.
    ///
    /// # Safety
    ///
    /// 1. The contract of [`Self::from_raw_parts`] for the buffer and for the 24 bytes of the
    ///    mailbox.
    /// 2. Both are mapped one to one.
    pub unsafe fn from_firmware_region(
        address: u64,
        size_bytes: usize,
        buffer_id: u8,
        status_mailbox_address: Option<u64>,
    ) -> Result<Self, CommunicateBufferStatus> {
        // SAFETY: both functions have the same contract.
        let buffer =
            unsafe { Self::at_untouched_region(address, size_bytes, buffer_id, status_mailbox_address) }?;
        buffer.take_over();
        Ok(buffer)
    }

    /// Empties the mailbox, wipes the memory, and logs what was in the mailbox.
    pub(crate) fn take_over(&self) {
        let Some(found) = self.channel().take_over() else {
            return;
        };
        let announced = if found.is_pending() {
            "a request"
        } else {
            "no request"
        };
        log_line!(
            Info,
            "mm_comm",
            "comm buffer {}: its status mailbox was not empty: it announced {announced}, ReturnStatus {}, ReturnBufferSize \
             {:#x}; it is now",
            self.id(),
            found.return_status(),
            found.return_buffer_size()
        );
    }

    /// Like [`Self::from_firmware_region`], but leaves the memory as it is.
    ///
    /// # Errors
    ///
    /// Those of [`Self::from_firmware_region`].
    ///
    /// # Safety
    ///
    /// The contract of [`Self::from_firmware_region`].
    unsafe fn at_untouched_region(
        address: u64,
        len: usize,
        id: u8,
        mailbox: Option<u64>,
    ) -> Result<Self, CommunicateBufferStatus> {
        let pointer = |address: u64, error: AddressError| match usize::try_from(address) {
            Ok(address) => Ok(core::ptr::with_exposed_provenance_mut::<u8>(address)),
            Err(_too_large) => Err(error),
        };
        let make = || {
            let wraps = AddressError::Wraps {
                address,
                len: len as u64,
            };
            let buffer = pointer(address, wraps)?;
            if buffer.addr().checked_add(len).is_none() {
                return Err(wraps.into());
            }
            let mailbox = match mailbox {
                Some(address) => Some(pointer(address, AddressError::MailboxWraps { address })?),
                None => None,
            };
            // SAFETY: this function's contract is that of `Channel::new` for the addresses as
            // pointers, because the memory is mapped one to one.
            unsafe { Channel::new(buffer, len, mailbox) }
        };
        make().map(|channel| Self::over(channel, id)).map_err(refused(id))
    }

    /// Describes memory that firmware announced, and leaves it as it is. [`Self::take_over`] comes
    /// before its first use.
    ///
    /// # Errors
    ///
    /// Those of [`Self::from_firmware_region`].
    ///
    /// # Safety
    ///
    /// The contract of [`Self::from_firmware_region`].
    pub(crate) unsafe fn at_place(place: CommBufferPlace, id: u8) -> Result<Self, CommunicateBufferStatus> {
        let region = place.region();
        // The next check refuses a length that does not fit, because it exceeds `isize::MAX`.
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: both functions have the same contract.
        unsafe { Self::at_untouched_region(region.start(), len, id, place.mailbox()) }
    }

    /// A page of memory that is never freed, with a mailbox on the next one.
    #[cfg(test)]
    pub(crate) fn of_a_page(id: u8) -> Self {
        #[repr(C, align(4096))]
        struct Pages([u8; 4096], [u8; 4096]);
        let pages = alloc::boxed::Box::leak(alloc::boxed::Box::new(Pages([0; 4096], [0; 4096])));
        let address = |page: &mut [u8; 4096]| page.as_mut_ptr().expose_provenance() as u64;
        let (buffer, mailbox) = (address(&mut pages.0), address(&mut pages.1));
        // SAFETY: the memory is leaked, and reached through comm buffers only.
        unsafe { Self::from_firmware_region(buffer, 4096, id, Some(mailbox)) }.unwrap()
    }

    /// A page of memory that is never freed, with the mailbox of `users`.
    #[cfg(test)]
    pub(crate) fn of_a_page_beside(id: u8, users: &Self) -> Self {
        let [region, mailbox] = [Self::of_a_page(id).ranges()[0], users.ranges()[1]].map(Option::unwrap);
        // SAFETY: the memory of both is leaked, and reached through comm buffers only.
        unsafe { Self::from_firmware_region(region.start(), 4096, id, Some(mailbox.start())) }.unwrap()
    }

    /// The size of the memory in bytes, header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channel().region().len()
    }

    /// Whether there is no memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The identifier by which callers name the buffer.
    #[must_use]
    #[inline]
    pub fn id(&self) -> u8 {
        self.shared.id
    }

    /// Whether messages may be sent through the buffer.
    #[must_use]
    #[inline]
    pub fn is_enabled(&self) -> bool {
        !self.channel().is_retired()
    }

    /// Takes the buffer out of use for good, for all clones. A platform that moves a buffer adds a
    /// new one.
    pub fn disable(&mut self) {
        log_line!(Debug, "mm_comm", "comm buffer {} is disabled", self.id());
        self.channel().retire();
    }

    /// The memory's address. Reads and writes through it must be volatile, because MM may change it
    /// at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.channel().region().as_ptr()
    }

    /// Announces a request to MM: resets the mailbox and sets `IsCommBufferValid`. A communicator
    /// has done this before an executor is called.
    ///
    /// # Errors
    ///
    /// [`NoBuffer`](CommunicateBufferStatus::NoBuffer) if the buffer has no mailbox.
    pub fn set_comm_buffer_valid(&mut self) -> Result<(), CommunicateBufferStatus> {
        let (channel, _) = self.writable()?;
        channel
            .mailbox()
            .ok_or(CommunicateBufferStatus::NoBuffer)?
            .write(&channel.armed());
        Ok(())
    }

    /// ReturnStatus, and ReturnBufferSize in bytes with the header, from one copy of the mailbox.
    ///
    /// # Errors
    ///
    /// [`NoBuffer`](CommunicateBufferStatus::NoBuffer) if the buffer has no mailbox.
    pub fn get_mm_return_status(&self) -> Result<(u64, u64), CommunicateBufferStatus> {
        let image = self
            .channel()
            .mailbox()
            .ok_or(CommunicateBufferStatus::NoBuffer)?
            .read();
        Ok((image.return_status().0, image.return_buffer_size()))
    }

    /// Whether the platform gave the buffer a status mailbox.
    #[must_use]
    pub fn has_status_mailbox(&self) -> bool {
        self.channel().mailbox().is_some()
    }

    /// Wipes the memory and forgets what was written. If an executor calls this and writes nothing
    /// afterwards, the response is empty.
    pub fn reset(&mut self) {
        // If this handle may not write, `writable` logs why.
        if let Ok((channel, draft)) = self.writable() {
            draft.clear(channel);
        }
    }

    /// Number of message bytes that fit behind the buffer's [`Self::header`]; zero if the header
    /// does not fit.
    #[must_use]
    pub fn message_capacity(&self) -> usize {
        self.channel().capacity(self.header())
    }

    /// Writes a header for `recipient`, of the format of the header in the buffer; the message's
    /// length does not change.
    ///
    /// # Errors
    ///
    /// [`TooSmallForHeader`](CommunicateBufferStatus::TooSmallForHeader), and
    /// [`InvalidRecipient`](CommunicateBufferStatus::InvalidRecipient) for the v3 header's marker
    /// GUID in a v1 header.
    pub fn set_message_info(&mut self, recipient: Guid) -> Result<(), CommunicateBufferStatus> {
        let recipient = mm_wire::Guid::from_bytes(recipient.as_bytes());
        let (channel, draft) = self.writable()?;
        draft
            .write_recipient(channel, self.header_in_use(), recipient)
            .map_err(refused(self.id()))
    }

    /// Writes the message and its length for the recipient that [`Self::set_message_info`] set.
    ///
    /// # Errors
    ///
    /// [`TooSmallForMessage`](CommunicateBufferStatus::TooSmallForMessage) beyond
    /// [`Self::message_capacity`], then
    /// [`InvalidRecipient`](CommunicateBufferStatus::InvalidRecipient) if no recipient was set.
    pub fn set_message(&mut self, message: &[u8]) -> Result<(), CommunicateBufferStatus> {
        let (channel, draft) = self.writable()?;
        draft.write_message(channel, message).map_err(refused(self.id()))
    }

    /// Takes the `len` bytes behind the header for the message. For an executor whose MM responds
    /// in place, and which gets the response's length in another way.
    ///
    /// # Errors
    ///
    /// [`InvalidRecipient`](CommunicateBufferStatus::InvalidRecipient) if the header is not the one
    /// that was written, [`TooSmallForMessage`](CommunicateBufferStatus::TooSmallForMessage) beyond
    /// the memory.
    pub fn accept_in_place(&mut self, len: usize) -> Result<(), CommunicateBufferStatus> {
        let (channel, draft) = self.writable()?;
        draft.accept_in_place(channel, len).map_err(refused(self.id()))
    }

    /// Copies the message, after a check that the header is the one that was written.
    ///
    /// # Errors
    ///
    /// [`InvalidRecipient`](CommunicateBufferStatus::InvalidRecipient),
    /// [`TooSmallForMessage`](CommunicateBufferStatus::TooSmallForMessage) or
    /// [`TooSmallForHeader`](CommunicateBufferStatus::TooSmallForHeader) if the header is not the
    /// one that was written.
    pub fn get_message(&self) -> Result<Vec<u8>, CommunicateBufferStatus> {
        let Some(header) = self.verified()? else {
            return Ok(Vec::new());
        };
        let len = usize::try_from(header.message_len()).unwrap_or(usize::MAX);
        let mut message = Vec::new();
        message.try_reserve_exact(len).map_err(|_no_memory| {
            log_line!(
                Error,
                "mm_comm",
                "comm buffer {}: no memory to copy {len} bytes",
                self.id()
            );
            CommunicateBufferStatus::TooSmallForMessage
        })?;
        message.resize(len, 0);
        let copied = self
            .channel()
            .region()
            .read(header.format().header_len(), &mut message);
        copied
            .then_some(message)
            .ok_or(CommunicateBufferStatus::TooSmallForMessage)
    }

    /// The recipient that was written; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of [`Self::get_message`].
    pub fn get_header_guid(&self) -> Result<Option<Guid<'_>>, CommunicateBufferStatus> {
        Ok(self.verified()?.map(|header| to_patina(header.recipient())))
    }

    /// The length of the message that was written, in bytes, without the header.
    ///
    /// # Errors
    ///
    /// Those of [`Self::get_message`].
    pub fn get_message_length(&self) -> Result<usize, CommunicateBufferStatus> {
        let len = self.verified()?.map_or(0, |header| header.message_len());
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn verified(&self) -> Result<Option<Header>, CommunicateBufferStatus> {
        draft::verify(self.channel()).map_err(refused(self.id()))
    }

    /// The memory, its mailbox, and the state of the current transaction.
    #[inline]
    pub(crate) fn channel(&self) -> &Channel {
        &self.shared.channel
    }

    /// The addresses that the buffer and its mailbox cover.
    pub(crate) fn ranges(&self) -> [Option<AddressRange>; 2] {
        let channel = self.channel();
        [
            channel.region().range(),
            channel.mailbox().and_then(|mailbox| mailbox.region().range()),
        ]
    }

    /// The first range of this buffer or its mailbox that overlaps one of `other` or its mailbox,
    /// and that one. If `have_one_mailbox`, the mailbox of `other` does not count.
    #[inline(never)]
    pub(crate) fn overlap(&self, other: &Self, have_one_mailbox: bool) -> Option<[AddressRange; 2]> {
        let [region, mailbox] = other.ranges();
        let others = [region, mailbox.filter(|_| !have_one_mailbox)];
        for own in self.ranges().into_iter().flatten() {
            for other in others.into_iter().flatten() {
                if own.overlaps(other) {
                    return Some([own, other]);
                }
            }
        }
        None
    }
}

/// A GUID in the SDK's type.
pub(crate) fn to_patina(guid: mm_wire::Guid) -> OwnedGuid {
    Guid::from_bytes(&guid.to_bytes())
}

impl fmt::Debug for CommunicateBuffer {
    /// Prints the buffer's properties, never its contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommunicateBuffer")
            .field("id", &self.id())
            .field("address", &self.as_ptr())
            .field("len", &self.len())
            .field("enabled", &self.is_enabled())
            .field(
                "mailbox",
                &self.channel().mailbox().map(|mailbox| mailbox.region().as_ptr()),
            )
            .field("in_use", &self.channel().is_in_use())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::{format, vec};

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

    fn buffer(len: usize) -> CommunicateBuffer {
        let memory: &'static mut [u8] = Box::leak(vec![0xee; len].into_boxed_slice());
        CommunicateBuffer::new(Pin::new(memory), 9)
    }

    #[test]
    fn a_new_buffer_is_wiped_and_empty() {
        let buffer = buffer(64);
        assert_eq!(
            (buffer.len(), buffer.message_capacity(), buffer.id()),
            (64, 40, 9)
        );
        assert_eq!(buffer.get_message(), Ok(vec![]));
        assert_eq!(buffer.get_header_guid(), Ok(None));
        assert_eq!(buffer.get_message_length(), Ok(0));
        assert_eq!(
            buffer.get_mm_return_status(),
            Err(CommunicateBufferStatus::NoBuffer)
        );
    }

    #[test]
    fn clones_share_message_and_state() {
        let mut first = buffer(64);
        let mut second = first.clone();
        first.set_message_info(RECIPIENT.as_guid()).unwrap();
        first.set_message(b"from the first").unwrap();
        assert_eq!(second.get_message().unwrap(), b"from the first");
        second.set_message(b"from the second").unwrap();
        assert_eq!(first.get_message().unwrap(), b"from the second");
        second.disable();
        assert!(!first.is_enabled());
        first.reset();
        assert_eq!(second.get_header_guid(), Ok(None));
    }

    #[test]
    fn each_handle_has_its_own_header() {
        let original = buffer(4096);
        let clone = original.clone().with_header(HeaderFormat::V3);
        assert_eq!(clone.header(), HeaderFormat::V3);
        assert_eq!(original.header(), HeaderFormat::V1);
        assert_eq!(
            (original.message_capacity(), clone.message_capacity()),
            (4096 - 24, 4096 - 56)
        );
    }

    #[test]
    fn handle_for_a_new_place_is_used_like_the_old_one() {
        let old = buffer(4096).with_header(HeaderFormat::V3).shared_with_firmware();
        let new = buffer(4096).in_place_of(&old);
        assert_eq!(
            (new.header(), new.is_shared_with_firmware()),
            (HeaderFormat::V3, true)
        );
        assert!(!new.is_same(&old));
        let exclusive = old.in_place_of(&buffer(4096));
        assert_eq!(
            (exclusive.header(), exclusive.is_shared_with_firmware()),
            (HeaderFormat::V1, false)
        );
    }

    #[test]
    fn lent_handle_has_the_header_and_the_number_of_its_transaction() {
        let buffer = buffer(4096);
        assert_eq!(buffer.loan(), (9, 0));
        let lent = buffer.lend(5, HeaderFormat::V3);
        assert_eq!((lent.loan(), lent.header()), ((9, 5), HeaderFormat::V3));
        assert!(lent.is_same(&buffer));
        assert_eq!(buffer.header(), HeaderFormat::V1);
    }

    #[test]
    fn only_a_buffer_without_memory_is_empty() {
        assert!(buffer(0).is_empty());
        assert!(!buffer(1).is_empty());
        assert!(!buffer(64).is_empty());
    }

    #[test]
    fn mailbox_with_anything_in_it_is_taken_over() {
        for byte in [0xff, 0xaf, 0x01] {
            #[repr(C, align(4096))]
            struct Pages([u8; 4096], [u8; 4096]);
            let pages = Box::leak(Box::new(Pages([byte; 4096], [byte; 4096])));
            let address = (&raw mut pages.0).expose_provenance() as u64;
            // SAFETY: the memory is leaked, and reached through comm buffers only.
            let buffer =
                unsafe { CommunicateBuffer::from_firmware_region(address, 4096, 0, Some(address + 4096)) }
                    .unwrap();
            assert_eq!(buffer.get_mm_return_status(), Ok((0, 0)));
            assert!(!buffer.channel().mailbox().unwrap().is_pending());
            assert_eq!(buffer.get_message(), Ok(vec![]));
        }
    }

    #[test]
    fn a_message_needs_a_recipient_and_room() {
        let mut buffer = buffer(64);
        assert_eq!(
            buffer.set_message(b"x"),
            Err(CommunicateBufferStatus::InvalidRecipient)
        );
        assert_eq!(
            buffer.set_message(&[1; 41]),
            Err(CommunicateBufferStatus::TooSmallForMessage)
        );
        buffer.set_message_info(RECIPIENT.as_guid()).unwrap();
        assert_eq!(
            buffer.set_message(&[1; 41]),
            Err(CommunicateBufferStatus::TooSmallForMessage)
        );
        buffer.set_message(&[1; 40]).unwrap();
        assert_eq!(buffer.get_message_length(), Ok(40));
        assert_eq!(buffer.get_header_guid(), Ok(Some(RECIPIENT.as_guid())));
    }

    #[test]
    fn memory_too_small_for_a_header_takes_no_message() {
        let mut buffer = buffer(23);
        assert_eq!(buffer.message_capacity(), 0);
        assert_eq!(
            buffer.set_message_info(RECIPIENT.as_guid()),
            Err(CommunicateBufferStatus::TooSmallForHeader)
        );
        assert_eq!(
            buffer.get_message(),
            Err(CommunicateBufferStatus::TooSmallForHeader)
        );
    }

    #[test]
    fn header_that_was_changed_in_memory_is_not_trusted() {
        let mut buffer = buffer(64);
        buffer.set_message_info(RECIPIENT.as_guid()).unwrap();
        buffer.set_message(b"abc").unwrap();
        assert!(buffer.channel().region().write(16, &[2]));
        assert_eq!(
            buffer.get_message(),
            Err(CommunicateBufferStatus::TooSmallForMessage)
        );
        assert!(buffer.channel().region().write(0, &[0xff]));
        assert_eq!(
            buffer.get_message(),
            Err(CommunicateBufferStatus::InvalidRecipient)
        );
        assert_eq!(
            buffer.get_header_guid(),
            Err(CommunicateBufferStatus::InvalidRecipient)
        );
    }

    #[test]
    fn length_without_a_recipient_is_not_trusted() {
        let buffer = buffer(64);
        assert!(buffer.channel().region().write(16, &[2]));
        for result in [
            buffer.get_message().map(drop),
            buffer.get_header_guid().map(drop),
            buffer.get_message_length().map(drop),
        ] {
            assert_eq!(result, Err(CommunicateBufferStatus::TooSmallForMessage));
        }
    }

    #[test]
    fn printing_a_buffer_does_not_show_its_contents() {
        let mut buffer = buffer(64);
        buffer.set_message_info(RECIPIENT.as_guid()).unwrap();
        buffer.set_message(b"secret").unwrap();
        let text = format!("{buffer:?}");
        assert!(
            text.starts_with("CommunicateBuffer { id: 9, address: 0x"),
            "{text}"
        );
        assert!(
            text.contains("len: 64, enabled: true, mailbox: None, in_use: false"),
            "{text}"
        );
    }
}
