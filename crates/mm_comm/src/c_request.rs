//! Requests that drivers in C make through PI's MM communication protocols.
//!
//! ```text
//! Interfaces ──► Driver::serve ──► Call::serve ── reads CommSize ──► Request::check ──► copy_message
//!                                                                                          │
//!            writes CommSize back ◄── Reply ◄── Request::reply ◄─── (a transaction) ◄─────┘
//! ```
//!
//! The caller's buffer may be the comm buffer itself, as with some of edk2's drivers. So it is only
//! ever accessed through [`SharedRegion`]; the message is copied out before the transaction, and
//! the response copied in after it. The transaction wipes the comm buffer, so the caller's header
//! is written back then, and after an error the message, too.
//!
//! Two drivers offer the protocols and use this: the Patina component until `ExitBootServices`, and
//! the runtime driver.
//!
//! The C interfaces are here since both need them. `r-efi` does not have them; the SDK's own types
//! pass `CommSize` by value, but the specification and every firmware pass a pointer to it.

mod interface;

pub use interface::{Call, Communication, Communication2, Communication3, Driver, Interfaces, status_for_c};

use crate::region::SharedRegion;
use core::marker::PhantomData;
use mm_wire::header::{LENGTH_OFFSET, MAX_HEADER_LEN, MESSAGE_SIZE_OFFSET, V3_MARKER};
use mm_wire::{EfiStatus, Header, HeaderError, HeaderFormat, ResponseLength};
use thiserror::Error;

/// The arguments of a call.
pub struct Given<'c> {
    comm_size: Option<usize>,
    only: Option<HeaderFormat>,
    /// Private: only [`Request::check`] knows how many bytes there are.
    memory: &'c dyn Fn(usize) -> Option<SharedRegion>,
}

impl<'c> Given<'c> {
    /// The arguments are CommSize, if the protocol has it and it is not null, and the one format
    /// that the protocol takes. `memory` gives access to this many bytes of the caller's buffer;
    /// `None` if they exceed the address space.
    #[must_use]
    pub const fn new(
        comm_size: Option<usize>,
        only: Option<HeaderFormat>,
        memory: &'c dyn Fn(usize) -> Option<SharedRegion>,
    ) -> Self {
        Self {
            comm_size,
            only,
            memory,
        }
    }

    fn memory(&self, len: usize) -> Result<SharedRegion, Refused> {
        (self.memory)(len).ok_or_else(|| wraps(len))
    }
}

/// The longest message that MM takes, for each header format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Longest {
    /// Behind a v1 header.
    pub v1: usize,
    /// Behind a v3 header.
    pub v3: usize,
}

impl Longest {
    const fn of(self, format: HeaderFormat) -> usize {
        match format {
            HeaderFormat::V1 => self.v1,
            HeaderFormat::V3 => self.v3,
        }
    }

    /// The size of the largest buffer, header included.
    const fn buffer(self) -> usize {
        self.v1.saturating_add(HeaderFormat::V1.header_len())
    }
}

/// What the function returns, and what it writes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The function's result.
    pub status: EfiStatus,
    /// To `CommSize`, if the caller gave it.
    pub comm_size: Option<usize>,
}

impl Reply {
    /// A result without a CommSize to write back.
    #[must_use]
    pub const fn status(status: EfiStatus) -> Self {
        Self {
            status,
            comm_size: None,
        }
    }
}

/// What is wrong with a request. The caller's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The buffer's address is null.
    #[error("caller: the buffer's address is null")]
    NullBuffer,
    /// Physical and virtual address differ while all memory is mapped one to one.
    #[error("caller: the buffer's physical address is {physical:#x}, its virtual one {virt:#x}")]
    Addresses {
        /// The physical address.
        physical: usize,
        /// The virtual address.
        virt: usize,
    },
    /// CommSize 0, or more than MM takes: the driver gets `EFI_BAD_BUFFER_SIZE` with the maximum
    /// written back.
    #[error("caller: CommSize is {size}, MM takes up to {largest} bytes, header included")]
    CommSize {
        /// The value of CommSize.
        size: usize,
        /// The largest buffer.
        largest: usize,
    },
    /// CommSize does not cover the header.
    #[error("caller: CommSize is {size}, a header has {} bytes", HeaderFormat::V1.header_len())]
    BelowHeader {
        /// The value of CommSize.
        size: usize,
    },
    /// The buffer does not start with a header.
    #[error("caller: {0}")]
    Header(HeaderError),
    /// A header of another format than the protocol's.
    #[error("caller: the header does not start with the GUID of v3 headers")]
    NotV3,
    /// The message is longer than MM takes.
    #[error(
        "caller: the message has {message_size} bytes, its header claims {claimed}; MM takes {longest} bytes at most"
    )]
    MessageLength {
        /// MessageLength, or MessageSize.
        message_size: u64,
        /// MessageLength, or what BufferSize counts behind the header.
        claimed: u64,
        /// The longest message.
        longest: usize,
    },
    /// Header and message are longer than the buffer.
    #[error(
        "caller: a message of {message_size} bytes does not fit into the {claimed} bytes that its header claims, \
         or these do not fit into CommSize {comm_size:?}"
    )]
    BufferSize {
        /// MessageLength, or MessageSize.
        message_size: u64,
        /// MessageLength, or what BufferSize counts behind the header.
        claimed: u64,
        /// The value of CommSize, if there is one.
        comm_size: Option<usize>,
    },
    /// The buffer exceeds the address space.
    #[error("caller: {0} bytes of buffer exceed the address space")]
    Wraps(usize),
    /// The response does not fit into the buffer: the driver gets `EFI_BUFFER_TOO_SMALL`.
    #[error("caller: the response has {needed} bytes, there was room for {room}")]
    ResponseTooLong {
        /// Bytes of the response.
        needed: usize,
        /// Bytes that it may have.
        room: usize,
    },
}

/// Why there is no response for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResponse {
    /// The request has no message bytes, and MM does not take empty messages.
    Empty,
    /// The response has this many bytes, more than [`Request::room`].
    TooLong(usize),
    /// What the driver gets.
    Status(EfiStatus),
}

/// A rejected request: why, and what is returned and written to CommSize. If the maximum belongs in
/// the header's length field, it was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why it was rejected.
    pub error: RequestError,
    /// What the caller gets.
    pub reply: Reply,
}

impl Refused {
    const fn invalid(error: RequestError) -> Self {
        let reply = Reply::status(EfiStatus::INVALID_PARAMETER);
        Self { error, reply }
    }

    const fn bad_size(error: RequestError, longest: Longest) -> Self {
        Self {
            error,
            reply: Reply {
                comm_size: Some(longest.buffer()),
                ..Reply::status(EfiStatus::BAD_BUFFER_SIZE)
            },
        }
    }
}

/// A request whose numbers were checked. It cannot outlive the call that it belongs to:
///
/// ```compile_fail,E0521
/// use mm_comm::c_request::{Call, Longest, Reply, Request};
/// use mm_wire::EfiStatus;
///
/// fn keep(call: Call<'_>, kept: &mut Option<Request<'_>>) {
///     let respond = |given: &_| {
///         *kept = Request::check(given, Longest { v1: 100, v3: 68 }).ok();
///         Ok(Reply::status(EfiStatus::SUCCESS))
///     };
///     call.serve(true, respond, |_| ());
/// }
/// ```
#[derive(Debug)]
pub struct Request<'c> {
    header: Header,
    /// The header as it is in the caller's buffer.
    raw: RawHeader,
    /// The caller's buffer.
    region: SharedRegion,
    message_len: usize,
    lasts: PhantomData<&'c ()>,
}

/// The field of a header that the maximum is written to: MessageLength, or MessageSize.
const fn maximum_offset(format: HeaderFormat) -> usize {
    match format {
        HeaderFormat::V1 => LENGTH_OFFSET,
        HeaderFormat::V3 => MESSAGE_SIZE_OFFSET,
    }
}

/// The lengths that a header claims.
#[derive(Clone, Copy)]
struct Claims {
    format: HeaderFormat,
    /// MessageLength, or what BufferSize counts behind the header.
    len: u64,
    /// MessageLength, or MessageSize.
    message_size: u64,
}

impl Claims {
    /// Number of bytes behind the header, and with it. A number beyond `usize` becomes
    /// `usize::MAX`, which is refused.
    fn lengths(self) -> (usize, usize) {
        let message_len = usize::try_from(self.len).unwrap_or(usize::MAX);
        (message_len, message_len.saturating_add(self.format.header_len()))
    }

    fn check(self, given: &Given<'_>, longest: Longest) -> Result<(), Refused> {
        let Self {
            format,
            len: claimed,
            message_size,
        } = self;
        let comm_size = given.comm_size;
        let (message_len, total) = self.lengths();
        let longest_message = longest.of(format);
        let not_v3 = Refused::invalid(RequestError::NotV3);
        let error = RequestError::MessageLength {
            message_size,
            claimed,
            longest: longest_message,
        };
        let too_long = Refused::bad_size(error, longest);
        let no_room = Refused::invalid(RequestError::BufferSize {
            message_size,
            claimed,
            comm_size,
        });
        first_that_applies([
            (given.only.is_some_and(|only| only != format), not_v3),
            (message_len > longest_message, too_long),
            (message_size > claimed, no_room),
            (comm_size.is_some_and(|size| size < total), no_room),
        ])
        .inspect_err(|refused| {
            if refused.reply.status == EfiStatus::BAD_BUFFER_SIZE {
                // The header was read, so its field is in the caller's buffer.
                let header = given.memory(format.header_len());
                let _ = header.map(|header| write_maximum(&header, format, longest_message));
            }
        })
    }
}

fn check_comm_size(comm_size: Option<usize>, longest: Longest) -> Result<(), Refused> {
    let Some(size) = comm_size else {
        return Ok(());
    };
    let largest = longest.buffer();
    let not_taken = Refused::bad_size(RequestError::CommSize { size, largest }, longest);
    let below_header = Refused::invalid(RequestError::BelowHeader { size });
    first_that_applies([
        (size == 0, not_taken),
        (size > largest, not_taken),
        (size < HeaderFormat::V1.header_len(), below_header),
    ])
}

/// The first refusal whose condition holds.
fn first_that_applies<const N: usize>(table: [(bool, Refused); N]) -> Result<(), Refused> {
    let first = table.into_iter().find(|(applies, _)| *applies);
    first.map_or(Ok(()), |(_, refused)| Err(refused))
}

impl<'c> Request<'c> {
    /// Checks a request.
    ///
    /// # Errors
    ///
    /// [`Refused`]; a message that is too long also has the maximum written to the header's length
    /// field.
    pub fn check(given: &'c Given<'_>, longest: Longest) -> Result<Self, Refused> {
        check_comm_size(given.comm_size, longest)?;
        let raw = RawHeader::read(given)?;
        let damaged = |error| Refused::invalid(RequestError::Header(error));
        let header = Header::parse(raw.bytes());
        let claims = match header {
            Ok(header) => Claims {
                format: header.format(),
                len: header.message_len(),
                message_size: header.message_size(),
            },
            // Header and message exceed 64 bits, so the message is too long.
            Err(HeaderError::LengthOverflows { claimed }) => Claims {
                format: HeaderFormat::V1,
                len: claimed,
                message_size: claimed,
            },
            // BufferSize is less than the header, or CommSize ends inside it.
            Err(error) => return Err(damaged(error)),
        };
        claims.check(given, longest)?;
        let (message_len, total) = claims.lengths();
        Ok(Self {
            header: header.map_err(damaged)?,
            raw,
            region: given.memory(given.comm_size.unwrap_or(total))?,
            message_len,
            lasts: PhantomData,
        })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the message; with a v3 header all that BufferSize covers.
    #[must_use]
    pub const fn message_len(&self) -> usize {
        self.message_len
    }

    /// Bytes that a response may have.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.region.len().saturating_sub(self.header_len())
    }

    const fn header_len(&self) -> usize {
        self.header.format().header_len()
    }

    /// Copies the message out, once. `out` has [`Self::message_len`] bytes.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the buffer has fewer bytes.
    pub fn copy_message(&self, out: &mut [u8]) -> Result<(), Refused> {
        let copied = self.region.read(self.header_len(), out);
        copied.then_some(()).ok_or_else(|| wraps(out.len()))
    }

    /// Replies. The caller's buffer has the response afterwards, or header and message as before.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the response is longer than [`Self::room`].
    pub fn reply(
        &self,
        message: &[u8],
        longest: Longest,
        result: Result<(&[u8], Option<ResponseLength>), NoResponse>,
    ) -> Result<Reply, Refused> {
        let room = self.room();
        let too_long = |needed: usize| {
            let error = RequestError::ResponseTooLong { needed, room };
            let reply = Reply {
                comm_size: Some(needed.saturating_add(self.header_len())),
                ..self.refuse(message, EfiStatus::BUFFER_TOO_SMALL)
            };
            Err(Refused { error, reply })
        };
        match result {
            Ok((response, in_header)) if response.len() <= room => Ok(self.answer(response, in_header)),
            Ok((response, _)) => too_long(response.len()),
            Err(NoResponse::TooLong(needed)) => too_long(needed),
            Err(NoResponse::Empty) => {
                let format = self.header.format();
                let reply = self.refuse(message, EfiStatus::BAD_BUFFER_SIZE);
                write_maximum(&self.region, format, longest.of(format));
                Ok(Reply {
                    comm_size: Some(longest.buffer()),
                    ..reply
                })
            }
            Err(NoResponse::Status(status)) => Ok(self.refuse(message, status)),
        }
    }

    /// Writes a response that is no longer than [`Self::room`] into the caller's buffer.
    ///
    /// The header there stays as the caller wrote it, so that the caller can send it again.
    /// Exception: the field of `in_header` that MM changed to tell the response's length. edk2's
    /// drivers give their caller the header that MM left, too; its MM cores for x86 leave it as it
    /// was, the one for Arm writes MessageLength or MessageSize.
    fn answer(&self, response: &[u8], in_header: Option<ResponseLength>) -> Reply {
        // The transaction wiped this if the caller's buffer is the comm buffer.
        put_back(&self.region, 0, self.raw.bytes());
        let header_len = self.header_len();
        let mut written = self.region.write(header_len, response);
        let room = self.room() as u64;
        // A length beyond the caller's buffer would make the caller read past its end.
        let changed = in_header
            .filter(|told| told.len <= room)
            .and_then(|told| told.changed);
        if let Some((offset, value)) = changed {
            written &= self.region.write(offset, &value.to_le_bytes());
        }
        debug_assert!(written, "the response was compared with the room for it");
        Reply {
            comm_size: Some(header_len.saturating_add(response.len())),
            ..Reply::status(EfiStatus::SUCCESS)
        }
    }

    /// Puts header and message back, and replies with a status.
    fn refuse(&self, message: &[u8], status: EfiStatus) -> Reply {
        put_back(&self.region, 0, self.raw.bytes());
        put_back(&self.region, self.header_len(), message);
        Reply::status(status)
    }
}

/// Tells the caller the longest message, in the header.
fn write_maximum(header: &SharedRegion, format: HeaderFormat, longest: usize) {
    let written = header.write(maximum_offset(format), &(longest as u64).to_le_bytes());
    debug_assert!(written, "the field is in the header");
}

const fn wraps(len: usize) -> Refused {
    Refused::invalid(RequestError::Wraps(len))
}

/// Restores the bytes at `offset` if they have changed.
fn put_back(region: &SharedRegion, offset: usize, bytes: &[u8]) {
    let mut at = offset;
    for chunk in bytes.chunks(MAX_HEADER_LEN) {
        let mut found = [0; MAX_HEADER_LEN];
        let found = found.get_mut(..chunk.len()).unwrap_or_default();
        let unchanged = region.read(at, found) && found == chunk;
        let done = unchanged || region.write(at, chunk);
        debug_assert!(done, "these bytes were read from there");
        at = at.saturating_add(chunk.len());
    }
}

/// A copy of the header in the caller's buffer.
#[derive(Debug)]
struct RawHeader {
    bytes: [u8; MAX_HEADER_LEN],
    len: usize,
}

impl RawHeader {
    /// Copies as much of the header as CommSize covers.
    fn read(given: &Given<'_>) -> Result<Self, Refused> {
        let copy = |len: usize| {
            let len = len.min(given.comm_size.unwrap_or(len));
            let mut bytes = [0; MAX_HEADER_LEN];
            let copy = bytes.get_mut(..len).unwrap_or_default();
            let is_read = given.memory(len)?.read(0, copy);
            is_read.then_some(Self { bytes, len }).ok_or_else(|| wraps(len))
        };
        // Copies only a v1 header until its GUID says that it is a v3 header.
        let v1 = copy(HeaderFormat::V1.header_len())?;
        if v1.bytes.starts_with(&V3_MARKER.to_bytes()) {
            return copy(MAX_HEADER_LEN);
        }
        Ok(v1)
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
