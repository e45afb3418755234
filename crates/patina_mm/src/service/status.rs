//! Why a call has no response. "Which test shows a given `Status`" in `docs/testing.md` lists a
//! test for each.

use super::efi::{efi_error, efi_status, error_of, secure_text};
use super::sw_mmi_trigger::MmiError;
use crate::config::{CommunicateBufferStatus, HAS_SECURE_CALLS};
use core::fmt;
use mm_comm::error::LengthSource;
use mm_comm::smc::SmcError;
use mm_comm::{BeginError, ResponseError, TriggerError};
use mm_wire::EfiStatus;
use patina::error::EfiError;
use patina::standard::efi;
use thiserror::Error;

/// Why [`MmCommunication::communicate`](super::MmCommunication::communicate) has no response.
///
/// Each message names the side at fault. Numbers that a variant does not carry are in the log
/// (target `mm_comm`); `docs/troubleshooting.md` says for each variant what to check first.
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The platform configured no comm buffer, or the communicator was not dispatched yet.
    #[error("platform: no comm buffer is configured")]
    NoCommBuffer,
    /// No comm buffer has this identifier. The log lists those that exist.
    #[error("caller: no comm buffer has this identifier")]
    CommBufferNotFound,
    /// The message does not fit into the comm buffer.
    #[error("caller: the message does not fit into the comm buffer")]
    CommBufferTooSmall,
    /// The comm buffer does not hold what is written to it.
    #[error("platform: the comm buffer does not hold what is written to it")]
    CommBufferInitError,
    /// The message is empty, or shorter than the MessageSize that the call asks for.
    #[error("caller: the message is empty, or shorter than its MessageSize")]
    InvalidDataBuffer,
    /// The component has no way to enter MM yet.
    #[error("platform: the software MMI trigger is not available")]
    SwMmiServiceNotAvailable,
    /// The platform's own MMI trigger failed.
    #[error("platform: the software MMI trigger failed")]
    SwMmiFailed,
    /// MM left a header that does not belong to this request, or whose length is beyond the buffer.
    #[error(
        "MM: the header in the comm buffer does not belong to this request, or its length is beyond the buffer"
    )]
    InvalidResponse,
    /// The recipient is the marker GUID of v3 headers: a v1 header for it would read as v3.
    #[error("caller: the recipient is the v3 header's marker GUID, which a v1 header cannot name")]
    InvalidRecipient,
    /// The comm buffer was taken out of use.
    #[error("caller: the comm buffer is disabled")]
    CommBufferDisabled,
    /// The comm buffer is in use by a call that this one interrupted, or the only way into MM is:
    /// secure monitor calls on AArch64, the firmware's driver.
    #[error("caller: the comm buffer, or the way into MM, is in use by an outer call")]
    Busy,
    /// The mailbox announces another driver's request, which was left alone.
    #[error("platform: the status mailbox already announces another driver's request")]
    MailboxInUse,
    /// A driver of the firmware that uses the same comm buffer was called in the middle of this
    /// call, before the MMI was raised, and overwrote the request. See
    /// [`CommunicateBuffer::shared_with_firmware`](crate::config::CommunicateBuffer::shared_with_firmware).
    #[error("platform: another driver overwrote the request in the comm buffer before the MMI was raised")]
    RequestOverwritten,
    /// The machine does not deliver MMIs; nothing was sent.
    #[error(transparent)]
    MmiNotRaised(TriggerError),
    /// The secure monitor call did not reach MM, or did not return in time.
    #[error("{}{}", whose(.0), secure_text(.0))]
    SecureCall(SmcError),
    /// The MMI was raised, and MM did not take the request until the timeout. It was withdrawn. The
    /// log has the ports, the values, the number of polls and SMI_EN.
    #[error("MM did not process the request; it has been withdrawn")]
    NotProcessed,
    /// MM says that the request failed: `NOT_FOUND` if no handler took it, or its handler failed.
    /// Each status but success is a failure, also one without the error bit: a warning, or an error
    /// of a 32-bit MM core.
    #[error("MM returned {}{}", EfiStatus(.0.as_usize() as u64), meaning(*.0))]
    MmReturned(efi::Status),
    /// The mailbox claims a response of fewer bytes than the header has.
    #[error("MM: ReturnBufferSize is {claimed} bytes, less than the {minimum}-byte header that it includes")]
    ResponseBelowHeader {
        /// The mailbox's ReturnBufferSize.
        claimed: u64,
        /// Bytes of the header.
        minimum: usize,
    },
    /// A response beyond the buffer: the mailbox claims more bytes than the comm buffer has.
    #[error("MM: ReturnBufferSize is {claimed} bytes, the comm buffer has {capacity}")]
    ResponseBeyondBuffer {
        /// The mailbox's ReturnBufferSize.
        claimed: u64,
        /// Bytes of the comm buffer.
        capacity: usize,
    },
    /// The response does not fit into the caller's memory. MM has processed the request.
    #[error("caller: the response has {needed} bytes, there was room for {room}")]
    ResponseTooLong {
        /// Bytes of the response.
        needed: usize,
        /// Bytes of the caller's memory.
        room: usize,
    },
    /// The response does not have the size of the expected type.
    #[error("MM returned {returned} bytes, the expected type has {expected}")]
    ResponseSize {
        /// Bytes of the type.
        expected: usize,
        /// Bytes of the response.
        returned: usize,
    },
    /// This implementation of the service does not offer what the call asks for.
    #[error("caller: this MM communication service does not offer what the call asks for")]
    Unsupported,
    /// Memory is short for a copy of the message or the response, or for a callback.
    #[error("platform: no memory for {needed} bytes")]
    OutOfMemory {
        /// Number of bytes.
        needed: usize,
    },
}

/// Explains a status of MM whose name is not enough.
fn meaning(status: efi::Status) -> &'static str {
    match status {
        // edk2 `StandaloneMmPkg/Core/Mmi.c` and `MdeModulePkg/Core/PiSmmCore/Smi.c`, MmiManage and
        // SmiManage; the core turns a handler's failure into this status.
        efi::Status::NOT_FOUND => ": it has no handler for the GUID, or the handler failed",
        _ => "",
    }
}

impl fmt::Debug for Status {
    /// Like the derived form, but with the name of MM's status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MmReturned(status) => write!(f, "MmReturned({})", EfiStatus(status.as_usize() as u64)),
            Self::MmiNotRaised(error) => write!(f, "MmiNotRaised({error:?})"),
            Self::SecureCall(error) => write!(f, "SecureCall({error:?})"),
            Self::ResponseBelowHeader { claimed, minimum } => {
                write!(
                    f,
                    "ResponseBelowHeader {{ claimed: {claimed}, minimum: {minimum} }}"
                )
            }
            Self::ResponseBeyondBuffer { claimed, capacity } => {
                write!(
                    f,
                    "ResponseBeyondBuffer {{ claimed: {claimed}, capacity: {capacity} }}"
                )
            }
            Self::ResponseTooLong { needed, room } => {
                write!(f, "ResponseTooLong {{ needed: {needed}, room: {room} }}")
            }
            Self::ResponseSize { expected, returned } => {
                write!(f, "ResponseSize {{ expected: {expected}, returned: {returned} }}")
            }
            Self::OutOfMemory { needed } => write!(f, "OutOfMemory {{ needed: {needed} }}"),
            Self::NoCommBuffer => f.write_str("NoCommBuffer"),
            Self::CommBufferNotFound => f.write_str("CommBufferNotFound"),
            Self::CommBufferTooSmall => f.write_str("CommBufferTooSmall"),
            Self::CommBufferInitError => f.write_str("CommBufferInitError"),
            Self::InvalidDataBuffer => f.write_str("InvalidDataBuffer"),
            Self::SwMmiServiceNotAvailable => f.write_str("SwMmiServiceNotAvailable"),
            Self::SwMmiFailed => f.write_str("SwMmiFailed"),
            Self::InvalidResponse => f.write_str("InvalidResponse"),
            Self::InvalidRecipient => f.write_str("InvalidRecipient"),
            Self::CommBufferDisabled => f.write_str("CommBufferDisabled"),
            Self::Busy => f.write_str("Busy"),
            Self::MailboxInUse => f.write_str("MailboxInUse"),
            Self::NotProcessed => f.write_str("NotProcessed"),
            Self::RequestOverwritten => f.write_str("RequestOverwritten"),
            Self::Unsupported => f.write_str("Unsupported"),
        }
    }
}

/// The side at fault, if the error's own text does not name it.
fn whose(error: &SmcError) -> &'static str {
    match error {
        SmcError::SpmMm(_)
        | SmcError::Ffa { .. }
        | SmcError::Refused { .. }
        | SmcError::Timeout { .. }
        | SmcError::Protocol { .. } => "MM: ",
        _ => "",
    }
}

impl From<BeginError> for Status {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Busy => Self::Busy,
            BeginError::Retired => Self::CommBufferDisabled,
            BeginError::EmptyMessage | BeginError::MessageSizeBeyondMessage { .. } => Self::InvalidDataBuffer,
            BeginError::MessageTooLarge { .. } => Self::CommBufferTooSmall,
            BeginError::RecipientIsMarker(_) => Self::InvalidRecipient,
            BeginError::MailboxInUse => Self::MailboxInUse,
            BeginError::Overwritten { .. } => Self::RequestOverwritten,
            // NotMemory, and future variants.
            _ => Self::CommBufferInitError,
        }
    }
}

impl From<ResponseError> for Status {
    fn from(error: ResponseError) -> Self {
        match error {
            ResponseError::NotProcessed => Self::NotProcessed,
            ResponseError::Mm(status) => Self::MmReturned(efi_status(status)),
            ResponseError::ResponseBelowHeader { claimed, minimum } => {
                Self::ResponseBelowHeader { claimed, minimum }
            }
            ResponseError::ResponseBeyondBuffer {
                told_by: LengthSource::Mailbox,
                claimed,
                capacity,
            } => Self::ResponseBeyondBuffer { claimed, capacity },
            // ResponseBeyondBuffer by the header (as in 24.1.1), RecipientChanged, HeaderDamaged,
            // and future variants.
            _ => Self::InvalidResponse,
        }
    }
}

/// For the `?` of executors that respond by hand.
impl From<CommunicateBufferStatus> for Status {
    fn from(status: CommunicateBufferStatus) -> Self {
        match status {
            CommunicateBufferStatus::TooSmallForHeader | CommunicateBufferStatus::TooSmallForMessage => {
                Self::CommBufferTooSmall
            }
            CommunicateBufferStatus::InvalidRecipient => Self::InvalidResponse,
            CommunicateBufferStatus::NoBuffer
            | CommunicateBufferStatus::NotAligned
            | CommunicateBufferStatus::AddressValidationFailed => Self::CommBufferInitError,
        }
    }
}

impl From<MmiError> for Status {
    fn from(error: MmiError) -> Self {
        match error {
            MmiError::NotConfigured => Self::SwMmiServiceNotAvailable,
            MmiError::Trigger(error) => Self::MmiNotRaised(error),
            MmiError::Smc(SmcError::Busy) => Self::Busy,
            MmiError::Smc(
                refused @ (SmcError::SpmMm(_) | SmcError::Ffa { .. } | SmcError::Refused { .. }),
            ) if HAS_SECURE_CALLS => Self::MmReturned(efi_status(refused.status())),
            MmiError::Smc(error) => Self::SecureCall(error),
            // NeedsCommBuffer does not come from here: a call has a buffer.
            MmiError::NeedsCommBuffer | MmiError::Failed(_) => Self::SwMmiFailed,
        }
    }
}

impl From<Status> for EfiError {
    fn from(status: Status) -> Self {
        match status {
            Status::NoCommBuffer | Status::SwMmiServiceNotAvailable => Self::NotReady,
            Status::CommBufferNotFound => Self::NotFound,
            Status::CommBufferTooSmall => Self::BadBufferSize,
            Status::InvalidDataBuffer | Status::InvalidRecipient => Self::InvalidParameter,
            Status::CommBufferInitError | Status::SwMmiFailed => Self::DeviceError,
            Status::InvalidResponse
            | Status::ResponseBelowHeader { .. }
            | Status::ResponseBeyondBuffer { .. }
            | Status::ResponseSize { .. } => Self::ProtocolError,
            Status::ResponseTooLong { .. } => Self::BufferTooSmall,
            Status::Unsupported => Self::Unsupported,
            Status::CommBufferDisabled | Status::MailboxInUse => Self::AccessDenied,
            Status::Busy => Self::AlreadyStarted,
            Status::RequestOverwritten => Self::Aborted,
            Status::MmiNotRaised(error) => MmiError::Trigger(error).into(),
            Status::SecureCall(error) => efi_error(error),
            Status::NotProcessed => Self::NoResponse,
            Status::MmReturned(status) => error_of(EfiStatus(status.as_usize() as u64)),
            Status::OutOfMemory { .. } => Self::OutOfResources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use alloc::{format, vec};

    /// Lists an example of every variant, and the SDK's error for it. It does not compile if a
    /// variant is missing.
    macro_rules! every_status {
        ($($variant:pat => $(($example:expr, $error:expr)),+;)+) => {
            fn every_status() -> Vec<(Status, EfiError)> {
                let all = vec![$($(($example, $error)),+),+];
                for (status, _) in &all {
                    match status {
                        $($variant => {})+
                    }
                }
                all
            }
        };
    }

    every_status! {
        Status::NoCommBuffer => (Status::NoCommBuffer, EfiError::NotReady);
        Status::CommBufferNotFound => (Status::CommBufferNotFound, EfiError::NotFound);
        Status::CommBufferTooSmall => (Status::CommBufferTooSmall, EfiError::BadBufferSize);
        Status::CommBufferInitError => (Status::CommBufferInitError, EfiError::DeviceError);
        Status::InvalidDataBuffer => (Status::InvalidDataBuffer, EfiError::InvalidParameter);
        Status::SwMmiServiceNotAvailable => (Status::SwMmiServiceNotAvailable, EfiError::NotReady);
        Status::SwMmiFailed => (Status::SwMmiFailed, EfiError::DeviceError);
        Status::InvalidResponse => (Status::InvalidResponse, EfiError::ProtocolError);
        Status::InvalidRecipient => (Status::InvalidRecipient, EfiError::InvalidParameter);
        Status::CommBufferDisabled => (Status::CommBufferDisabled, EfiError::AccessDenied);
        Status::Busy => (Status::Busy, EfiError::AlreadyStarted);
        Status::MailboxInUse => (Status::MailboxInUse, EfiError::AccessDenied);
        Status::RequestOverwritten => (Status::RequestOverwritten, EfiError::Aborted);
        Status::MmiNotRaised(_) => (Status::MmiNotRaised(TriggerError::NoPortIo), EfiError::Unsupported);
        Status::SecureCall(_) =>
            (Status::SecureCall(SmcError::NoConduit), EfiError::Unsupported),
            (Status::SecureCall(TIMEOUT), EfiError::Timeout),
            (Status::SecureCall(SmcError::Protocol { call: "FFA_RUN", response: 1 }), EfiError::DeviceError);
        Status::NotProcessed => (Status::NotProcessed, EfiError::NoResponse);
        Status::MmReturned(_) =>
            (Status::MmReturned(efi::Status::NOT_FOUND), EfiError::NotFound),
            (Status::MmReturned(efi::Status::ACCESS_DENIED), EfiError::AccessDenied),
            (Status::MmReturned(STRANGE), EfiError::Unknown(STRANGE)),
            (Status::MmReturned(efi::Status::from_usize(5)), EfiError::NotFound),
            (Status::MmReturned(efi::Status::from_usize(0x8000_000f)), EfiError::AccessDenied),
            (Status::MmReturned(efi::Status::SUCCESS), EfiError::DeviceError);
        Status::ResponseBelowHeader { .. } =>
            (Status::ResponseBelowHeader { claimed: 1, minimum: 24 }, EfiError::ProtocolError);
        Status::ResponseBeyondBuffer { .. } =>
            (Status::ResponseBeyondBuffer { claimed: 9, capacity: 8 }, EfiError::ProtocolError);
        Status::ResponseTooLong { .. } => (Status::ResponseTooLong { needed: 2, room: 1 }, EfiError::BufferTooSmall);
        Status::ResponseSize { .. } => (Status::ResponseSize { expected: 2, returned: 1 }, EfiError::ProtocolError);
        Status::Unsupported => (Status::Unsupported, EfiError::Unsupported);
        Status::OutOfMemory { .. } => (Status::OutOfMemory { needed: 1 }, EfiError::OutOfResources);
    }

    const STRANGE: efi::Status = efi::Status::from_usize(1 << 63 | 0x7777);
    const TIMEOUT: SmcError = SmcError::Timeout {
        call: "FFA_RUN",
        attempts: 1,
    };

    #[test]
    fn every_status_has_its_efi_error() {
        for (status, expected) in every_status() {
            let error = EfiError::from(status);
            assert_eq!(error, expected, "{status:?}");
            assert!(efi::Status::from(error).is_error(), "{status:?} is success to C");
        }
    }

    #[test]
    fn every_status_names_the_side_at_fault() {
        for (status, _) in every_status() {
            let text = status.to_string();
            let whose = ["caller: ", "platform: ", "MM: ", "MM "];
            assert!(whose.iter().any(|whose| text.starts_with(whose)), "{text}");
        }
        assert_eq!(
            Status::SecureCall(TIMEOUT).to_string(),
            "MM: FFA_RUN: not done after 1 attempts"
        );
    }

    #[test]
    fn message_size_beyond_the_message_is_the_callers_fault() {
        let error = BeginError::MessageSizeBeyondMessage {
            message_size: 2,
            len: 1,
        };
        assert_eq!(Status::from(error), Status::InvalidDataBuffer);
    }

    #[test]
    fn each_reason_not_to_begin_has_its_status() {
        let recipient = mm_wire::Guid::ZERO;
        for (error, status) in [
            (BeginError::Busy, Status::Busy),
            (BeginError::Retired, Status::CommBufferDisabled),
            (BeginError::EmptyMessage, Status::InvalidDataBuffer),
            (
                BeginError::MessageTooLarge { len: 2, capacity: 1 },
                Status::CommBufferTooSmall,
            ),
            (BeginError::RecipientIsMarker(recipient), Status::InvalidRecipient),
            (BeginError::MailboxInUse, Status::MailboxInUse),
            (BeginError::Overwritten { recipient }, Status::RequestOverwritten),
        ] {
            assert_eq!(Status::from(error), status, "{error:?}");
        }
    }

    #[test]
    fn each_wrong_response_has_its_status() {
        let beyond = |told_by| ResponseError::ResponseBeyondBuffer {
            told_by,
            claimed: 9,
            capacity: 8,
        };
        let below = ResponseError::ResponseBelowHeader {
            claimed: 1,
            minimum: 24,
        };
        for (error, status) in [
            (ResponseError::NotProcessed, Status::NotProcessed),
            (
                ResponseError::Mm(EfiStatus::NOT_FOUND),
                Status::MmReturned(efi::Status::NOT_FOUND),
            ),
            (
                below,
                Status::ResponseBelowHeader {
                    claimed: 1,
                    minimum: 24,
                },
            ),
            (
                beyond(LengthSource::Mailbox),
                Status::ResponseBeyondBuffer {
                    claimed: 9,
                    capacity: 8,
                },
            ),
            (beyond(LengthSource::Header), Status::InvalidResponse),
        ] {
            assert_eq!(Status::from(error), status, "{error:?}");
        }
    }

    #[test]
    fn memory_that_does_not_keep_a_request_is_the_platforms_fault() {
        let error = BeginError::NotMemory { address: 0x1000 };
        assert_eq!(Status::from(error), Status::CommBufferInitError);
    }

    #[test]
    fn mm_status_is_shown_by_name() {
        assert_eq!(
            Status::MmReturned(efi::Status::NOT_FOUND).to_string(),
            "MM returned EFI_NOT_FOUND (0x800000000000000e): it has no handler for the GUID, or the handler failed"
        );
        assert_eq!(
            format!("{:?}", Status::MmReturned(efi::Status::ACCESS_DENIED)),
            "MmReturned(EFI_ACCESS_DENIED (0x800000000000000f))"
        );
    }
}
