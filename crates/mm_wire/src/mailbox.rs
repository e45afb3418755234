//! The status mailbox, `MM_COMM_BUFFER_STATUS` (edk2 `MdePkg/Include/Guid/MmCommBuffer.h`).
//!
//! | field | offset | size | meaning |
//! |---|---|---|---|
//! | IsCommBufferValid | 0 | 1 | the client sets it to 1 before the MMI; the MM core clears it once it has processed the request |
//! | TalkToSupervisor | 1 | 1 | with a mailbox that the MM supervisor shares with its users: the request is in the supervisor's comm buffer. Reserved otherwise |
//! | Reserved | 2 | 6 | |
//! | ReturnStatus | 8 | 8 | `EFI_STATUS` |
//! | ReturnBufferSize | 16 | 8 | bytes of the response, **communicate header included** |
//!
//! TalkToSupervisor is how Project Mu's supervisors v20.0.0 to v23.0.3 tell their two channels
//! apart (`MmSupervisorPkg/Core/MmSupervisorCore.c`, `MmEntryPoint`). Later ones have a mailbox for
//! each.

use crate::status::EfiStatus;
use core::mem::offset_of;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of the mailbox in bytes.
pub const MAILBOX_LEN: usize = size_of::<MailboxImage>();

/// The alignment that both sides rely on, in bytes: the mailbox holds 64-bit fields.
pub const MAILBOX_ALIGN: usize = 8;

/// Where `IsCommBufferValid` is, in bytes from the mailbox's start.
pub const VALID_OFFSET: usize = offset_of!(MailboxImage, is_comm_buffer_valid);

/// Where `TalkToSupervisor` is, in bytes from the mailbox's start.
pub const TALK_TO_SUPERVISOR_OFFSET: usize = offset_of!(MailboxImage, talk_to_supervisor);

/// Where the result is, which is `ReturnStatus` and then `ReturnBufferSize`, in bytes from the
/// mailbox's start.
pub const RESULT_OFFSET: usize = offset_of!(MailboxImage, return_status);

/// The value of `IsCommBufferValid` that a client writes. A reader takes any non-zero value for a
/// request.
pub const VALID: u8 = 1;

/// A copy of the mailbox, as it is in memory.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MailboxImage {
    is_comm_buffer_valid: u8,
    talk_to_supervisor: u8,
    reserved: [u8; 6],
    return_status: U64,
    return_buffer_size: U64,
}

impl MailboxImage {
    /// The mailbox of a client that is about to raise an MMI: valid, no result yet.
    #[must_use]
    #[inline]
    pub fn armed() -> Self {
        Self {
            is_comm_buffer_valid: VALID,
            ..Self::default()
        }
    }

    /// Like [`Self::armed`], for a request in the MM supervisor's comm buffer, with a mailbox that
    /// it shares with its users.
    #[must_use]
    #[inline]
    pub fn armed_for_supervisor() -> Self {
        Self {
            talk_to_supervisor: 1,
            ..Self::armed()
        }
    }

    /// The mailbox as an MM core leaves it: not valid, with the result.
    #[must_use]
    pub fn answered(return_status: EfiStatus, return_buffer_size: u64) -> Self {
        Self {
            return_status: return_status.0.into(),
            return_buffer_size: return_buffer_size.into(),
            ..Self::default()
        }
    }

    /// Whether the comm buffer holds a request that MM has not processed yet.
    #[must_use]
    #[inline]
    pub const fn is_pending(&self) -> bool {
        self.is_comm_buffer_valid != 0
    }

    /// Whether a request in a shared mailbox is for the MM supervisor.
    #[must_use]
    pub const fn is_for_supervisor(&self) -> bool {
        self.talk_to_supervisor != 0
    }

    /// MM's status for the request.
    #[must_use]
    #[inline]
    pub fn return_status(&self) -> EfiStatus {
        EfiStatus(self.return_status.get())
    }

    /// The bytes of the response, communicate header included. MM claims this number: check it
    /// against the buffer's size.
    #[must_use]
    #[inline]
    pub fn return_buffer_size(&self) -> u64 {
        self.return_buffer_size.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_edk2() {
        let image = MailboxImage::answered(EfiStatus::NOT_FOUND, 0x1122);
        let mut expected = [0; 24];
        expected[8..16].copy_from_slice(&0x8000_0000_0000_000e_u64.to_le_bytes());
        expected[16..18].copy_from_slice(&[0x22, 0x11]);
        assert_eq!(image.as_bytes(), expected);
        assert_eq!(MAILBOX_LEN, 24);
        let read = MailboxImage::read_from_bytes(&expected).unwrap();
        assert_eq!(read.return_status(), EfiStatus::NOT_FOUND);
        assert_eq!(read.return_buffer_size(), 0x1122);
    }

    #[test]
    fn shared_mailbox_distinguishes_the_supervisors_requests() {
        let image = MailboxImage::armed_for_supervisor();
        assert_eq!(image.as_bytes()[..8], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert!(image.is_pending() && image.is_for_supervisor());
        assert!(!MailboxImage::armed().is_for_supervisor());
    }

    #[test]
    fn any_non_zero_value_is_a_request() {
        assert!(MailboxImage::armed().is_pending());
        let odd = MailboxImage::read_from_bytes(&[0x80; 24]).unwrap();
        assert!(odd.is_pending());
        assert!(!MailboxImage::default().is_pending());
    }
}
