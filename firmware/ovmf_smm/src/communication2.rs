//! `EFI_MM_COMMUNICATION2_PROTOCOL`: the firmware raises the MMI. An unsafe island (`docs/unsafe.md`).

use core::ffi::c_void;
use mm_wire::EfiStatus;
use patina::BinaryGuid;
use patina::protocol::ProtocolInterface;
use patina::standard::efi;
use thiserror::Error;

/// The protocol's interface (PI 1.9, volume 4, 5.7.4).
///
/// The SDK has one under `patina::pi::protocol::communication2`, but passes `comm_size` by value; the specification
/// and every firmware take a pointer to it, through which the answer's size comes back.
#[repr(C)]
pub(crate) struct Communication2 {
    communicate: unsafe extern "efiapi" fn(
        this: *const Communication2,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
        comm_size: *mut usize,
    ) -> efi::Status,
}

// SAFETY: PI 1.9, volume 4, 5.7.4 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication2 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("378daedc-f06b-4446-8314-40ab933c87a3");
}

/// Why the protocol has no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Communication2Error {
    /// The firmware, or MM behind it, returned an error.
    #[error("the communication protocol answered {0}")]
    Status(EfiStatus),
}

impl Communication2 {
    /// Sends what stands at `buffer`: `len` bytes with their header. Returns the size of the answer in the same place,
    /// header included: a claim.
    ///
    /// # Errors
    ///
    /// [`Communication2Error::Status`].
    ///
    /// # Safety
    ///
    /// `buffer` is identity-mapped memory for MM to read and write, which no Rust reference points into: all of the
    /// comm buffer, however long the answer is.
    pub(crate) unsafe fn communicate(
        &self,
        buffer: *mut u8,
        len: usize,
    ) -> Result<usize, Communication2Error> {
        let mut comm_size = len;
        let buffer = buffer.cast::<c_void>();
        // SAFETY: `self` is the interface that the function belongs to. The caller vouches for the buffer, whose
        // physical and virtual address are the same before the operating system remaps runtime services.
        let status = unsafe { (self.communicate)(self, buffer, buffer, &raw mut comm_size) };
        if status.is_error() {
            return Err(Communication2Error::Status(EfiStatus(status.as_usize() as u64)));
        }
        Ok(comm_size)
    }
}
