//! What can go wrong, whose fault it is, and with which numbers.

use mm_wire::{AddressRange, EfiStatus, Guid};
use thiserror::Error;

/// Why memory cannot serve as a comm buffer or mailbox. The platform's fault.
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
    /// The region starts at address zero.
    #[error("platform: the comm buffer's address is null")]
    Null,
    /// The region does not start on a page.
    #[error("platform: the comm buffer at {address:#x} is not aligned to 4096 bytes")]
    NotPageAligned {
        /// Where the region starts.
        address: usize,
    },
    /// The region goes past the end of the address space, or is larger than any object may be.
    #[error("platform: {len} bytes from {address:#x} go past the end of the address space")]
    Wraps {
        /// Where the region starts.
        address: usize,
        /// Its claimed length.
        len: usize,
    },
    /// The mailbox stands at address zero.
    #[error("platform: the status mailbox's address is null")]
    MailboxNull,
    /// The mailbox is not aligned for its 64-bit fields.
    #[error("platform: the status mailbox at {address:#x} is not aligned to {align} bytes")]
    MailboxMisaligned {
        /// Where the mailbox starts.
        address: usize,
        /// The alignment it needs.
        align: usize,
    },
    /// The mailbox goes past the end of the address space.
    #[error("platform: the status mailbox at {address:#x} goes past the end of the address space")]
    MailboxWraps {
        /// Where the mailbox starts.
        address: usize,
    },
    /// The mailbox lies in the memory that messages are written to.
    #[error("platform: the status mailbox {mailbox} overlaps the comm buffer {region}")]
    MailboxInRegion {
        /// The mailbox's addresses.
        mailbox: AddressRange,
        /// The region's addresses.
        region: AddressRange,
    },
}

/// Why a transaction was not started. No MMI was raised and nothing was left in shared memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeginError {
    /// An outer call uses this channel.
    #[error("caller: the comm buffer is in use by a call that has not finished")]
    Busy,
    /// The channel was taken out of use.
    #[error("caller: the comm buffer is out of use")]
    Retired,
    /// There is nothing to send.
    #[error("caller: the message is empty")]
    EmptyMessage,
    /// The message does not fit.
    #[error("caller: the message has {len} bytes, the comm buffer has room for {capacity}")]
    MessageTooLarge {
        /// Bytes of the message.
        len: usize,
        /// Bytes that the buffer can hold behind the header.
        capacity: usize,
    },
    /// The recipient is [`mm_wire::header::V3_MARKER`], which no v1 header can name.
    #[error("caller: the recipient is the v3 header's marker {0}, a v1 header for it would read as v3")]
    RecipientIsMarker(Guid),
    /// The mailbox already announces a request that is not ours.
    #[error("platform: the status mailbox already announces a request that MM has not taken")]
    MailboxInUse,
    /// The request was overwritten before the MMI was raised.
    #[error(
        "platform: another driver overwrote the request for {recipient} in the comm buffer before the MMI: it uses the same \
         buffer, and a notification called it meanwhile"
    )]
    Overwritten {
        /// The recipient of the request.
        recipient: Guid,
    },
    /// What was written could not be read back.
    #[error("platform: the comm buffer at {address:#x} does not hold what is written to it")]
    NotMemory {
        /// Where the region starts.
        address: usize,
    },
}

/// Why what MM left behind is no response. The request has been wiped from shared memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseError {
    /// The mailbox still announces the request.
    #[error("MM did not process the request: the status mailbox still announces it")]
    NotProcessed,
    /// MM says that the request failed.
    #[error("MM answered {0}")]
    Mm(EfiStatus),
    /// The mailbox claims a response that does not even cover the header.
    #[error("MM: ReturnBufferSize is {claimed} bytes, less than the {minimum}-byte header that it includes")]
    SizeBelowHeader {
        /// The value of ReturnBufferSize.
        claimed: u64,
        /// Bytes of the header.
        minimum: usize,
    },
    /// A response beyond the buffer: the mailbox claims more bytes than the comm buffer has.
    #[error("MM: ReturnBufferSize is {claimed} bytes, the comm buffer has {capacity}")]
    SizeBeyondBuffer {
        /// The value of ReturnBufferSize.
        claimed: u64,
        /// Bytes of the region.
        capacity: usize,
    },
    /// The header in the buffer has another GUID now, or another format. What is there instead may be anything, message bytes
    /// included, and so is not told.
    #[error("MM: the communicate header in the comm buffer is not the one for {sent} any more")]
    RecipientChanged {
        /// The recipient of the request.
        sent: Guid,
    },
    /// The header's length does not fit the buffer.
    #[error("MM: the header claims {claimed} message bytes, the comm buffer has room for {capacity}")]
    LengthBeyondBuffer {
        /// The header's length field, without the header.
        claimed: u64,
        /// Bytes that the buffer can hold behind the header.
        capacity: usize,
    },
    /// The bytes at the start of the buffer are no header any more.
    #[error("MM: the communicate header is damaged: {0}")]
    HeaderDamaged(mm_wire::HeaderError),
}

/// What C is told: the statuses that `patina_mm` gives its callers for the same.
impl BeginError {
    /// The same as an `EFI_STATUS`.
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::Busy => EfiStatus::ALREADY_STARTED,
            Self::Retired | Self::MailboxInUse => EfiStatus::ACCESS_DENIED,
            Self::EmptyMessage | Self::RecipientIsMarker(_) => EfiStatus::INVALID_PARAMETER,
            Self::MessageTooLarge { .. } => EfiStatus::BAD_BUFFER_SIZE,
            Self::NotMemory { .. } => EfiStatus::DEVICE_ERROR,
            Self::Overwritten { .. } => EfiStatus::ABORTED,
        }
    }
}

impl ResponseError {
    /// The same as an `EFI_STATUS`, which is an error: MM's own, or that MM did not take the request or broke the protocol.
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::NotProcessed => EfiStatus::NO_RESPONSE,
            Self::Mm(status) => match status.as_error() {
                Some(error) => error,
                None => EfiStatus::PROTOCOL_ERROR,
            },
            Self::SizeBelowHeader { .. }
            | Self::SizeBeyondBuffer { .. }
            | Self::RecipientChanged { .. }
            | Self::LengthBeyondBuffer { .. }
            | Self::HeaderDamaged(_) => EfiStatus::PROTOCOL_ERROR,
        }
    }
}
