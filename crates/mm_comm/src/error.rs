//! Errors of the client core. Each names the side at fault and carries the numbers.
//!
//! A length that cannot be true has one name in all crates: `ResponseBelowHeader` if it is less
//! than the header that it counts, `ResponseBeyondBuffer` if it is more than the comm buffer has.

use core::fmt;
use mm_wire::text::Shown;
use mm_wire::{AddressError, EfiStatus, Guid};
use thiserror::Error;

/// Why memory cannot be a comm buffer or mailbox. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelError {
    /// The region cannot hold a header.
    #[error("platform: the comm buffer has {len} bytes, less than the {minimum}-byte communicate header")]
    TooSmall {
        /// Bytes of the region.
        len: usize,
        /// Bytes of the header.
        minimum: usize,
    },
    /// The addresses cannot be those of a comm buffer and its mailbox.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Why a transaction did not start. No MMI was raised, and nothing is left in shared memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeginError {
    /// The channel is in use by a call that this one interrupted.
    #[error("caller: the comm buffer is in use by a call that has not finished")]
    Busy,
    /// The channel was taken out of use.
    #[error("caller: the comm buffer was taken out of use")]
    Retired,
    /// The message is empty.
    #[error("caller: the message is empty")]
    EmptyMessage,
    /// The message does not fit.
    #[error("caller: the message has {len} bytes, the comm buffer has room for {capacity}")]
    MessageTooLarge {
        /// Bytes of the message.
        len: usize,
        /// Bytes that fit behind the header.
        capacity: usize,
    },
    /// MessageSize of a v3 header is more than the message has, which MM cores refuse.
    #[error("caller: MessageSize is {message_size}, more than the message's {len} bytes")]
    MessageSizeBeyondMessage {
        /// The value of MessageSize.
        message_size: u64,
        /// Bytes of the message.
        len: usize,
    },
    /// The recipient is [`mm_wire::header::V3_MARKER`], which no v1 header can name.
    #[error("caller: the recipient is the v3 header's marker {}, a v1 header for it would read as v3", Shown(*.0))]
    RecipientIsMarker(Guid),
    /// The mailbox already announces another driver's request.
    #[error("platform: the status mailbox already announces a request that MM has not taken")]
    MailboxInUse,
    /// The request was overwritten before the MMI was raised.
    #[error(
        "platform: another driver, which a notification called, overwrote the request for {} before the MMI was raised",
        Shown(*recipient)
    )]
    Overwritten {
        /// The recipient of the request.
        recipient: Guid,
    },
    /// What was written could not be read back.
    #[error("platform: the comm buffer at {address:#x} does not hold what is written to it")]
    NotMemory {
        /// The region's address.
        address: usize,
    },
}

/// Where the length of a response comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthSource {
    /// ReturnBufferSize in the status mailbox.
    Mailbox,
    /// The communicate header in the comm buffer.
    Header,
}

impl fmt::Display for LengthSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mailbox => "ReturnBufferSize",
            Self::Header => "the header's length, with the header,",
        })
    }
}

/// Why a request has no response. It was wiped from shared memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseError {
    /// The mailbox still announces the request.
    #[error("MM did not process the request: the status mailbox still announces it")]
    NotProcessed,
    /// MM says that the request failed.
    #[error("MM returned {0}")]
    Mm(EfiStatus),
    /// The mailbox claims a response of fewer bytes than the header has.
    #[error("MM: ReturnBufferSize is {claimed} bytes, less than the {minimum}-byte header that it includes")]
    ResponseBelowHeader {
        /// The value of ReturnBufferSize.
        claimed: u64,
        /// Bytes of the header.
        minimum: usize,
    },
    /// A response beyond the buffer: mailbox or header claims more bytes than the comm buffer has.
    #[error("MM: {told_by} is {claimed} bytes, the comm buffer has {capacity}")]
    ResponseBeyondBuffer {
        /// Whether the mailbox or the header claims it.
        told_by: LengthSource,
        /// Bytes of the response, with the header.
        claimed: u64,
        /// Bytes of the comm buffer.
        capacity: usize,
    },
    /// The header in the buffer has another GUID or another format now. The new contents are not in
    /// the error: they may be message bytes.
    #[error("MM: the communicate header in the comm buffer is not the one for {} any more", Shown(*sent))]
    RecipientChanged {
        /// The recipient of the request.
        sent: Guid,
    },
    /// The bytes at the start of the buffer are not a header any more.
    #[error("MM: the communicate header is damaged: {0}")]
    HeaderDamaged(mm_wire::HeaderError),
}

impl BeginError {
    /// This error as an `EFI_STATUS`, for drivers in C.
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::Busy => EfiStatus::ALREADY_STARTED,
            Self::Retired | Self::MailboxInUse => EfiStatus::ACCESS_DENIED,
            Self::EmptyMessage | Self::MessageSizeBeyondMessage { .. } | Self::RecipientIsMarker(_) => {
                EfiStatus::INVALID_PARAMETER
            }
            Self::MessageTooLarge { .. } => EfiStatus::BAD_BUFFER_SIZE,
            Self::NotMemory { .. } => EfiStatus::DEVICE_ERROR,
            Self::Overwritten { .. } => EfiStatus::ABORTED,
        }
    }
}

impl ResponseError {
    /// This error as an `EFI_STATUS`, for drivers in C: MM's own status, or one for "MM did not
    /// take the request" or "MM broke the protocol".
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::NotProcessed => EfiStatus::NO_RESPONSE,
            Self::Mm(status) => match status.as_error() {
                Some(error) => error,
                None => EfiStatus::PROTOCOL_ERROR,
            },
            Self::ResponseBelowHeader { .. }
            | Self::ResponseBeyondBuffer { .. }
            | Self::RecipientChanged { .. }
            | Self::HeaderDamaged(_) => EfiStatus::PROTOCOL_ERROR,
        }
    }
}
