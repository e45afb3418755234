//! Converts errors to the SDK's types, and to text.

use crate::config::HAS_SECURE_CALLS;
use core::fmt;
use mm_comm::smc::SmcError;
use mm_wire::EfiStatus;
use patina::error::EfiError;
use patina::standard::efi;

/// The error for a status of MM, even if it does not have the error bit: an `EfiError` of a warning
/// would be success to C.
pub(super) fn error_of(status: EfiStatus) -> EfiError {
    let error = status.as_error().and_then(|error| usize::try_from(error.0).ok());
    let status = error.map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize);
    EfiError::status_to_result(status)
        .err()
        .unwrap_or(EfiError::Unknown(status))
}

/// An SDK error in the form that log lines print. [`EfiStatus`] is linked anyway; the SDK's own
/// text would be linked in addition.
pub(crate) fn shown(error: EfiError) -> EfiStatus {
    EfiStatus(efi::Status::from(error).as_usize() as u64)
}

/// An error of secure monitor calls as an SDK error.
pub(super) fn efi_error(error: SmcError) -> EfiError {
    if HAS_SECURE_CALLS {
        error_of(error.status())
    } else {
        EfiError::Unsupported
    }
}

/// The status as the SDK's type.
pub(super) fn efi_status(status: EfiStatus) -> efi::Status {
    usize::try_from(status.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
}

/// The text of an error of secure monitor calls.
pub(super) fn secure_text(error: &SmcError) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        if HAS_SECURE_CALLS {
            fmt::Display::fmt(error, f)
        } else {
            f.write_str("secure monitor call")
        }
    })
}
