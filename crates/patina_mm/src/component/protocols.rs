//! The MM communication protocols of PI, for drivers in C and from drivers in C.
//!
//! | type | protocol | PI 1.9, volume 4 |
//! |---|---|---|
//! | [`Communication`] | `EFI_MM_COMMUNICATION_PROTOCOL` | 5.7.1 |
//! | [`Communication2`] | `EFI_MM_COMMUNICATION2_PROTOCOL` | 5.7.4 |
//! | [`Communication3`] | `EFI_MM_COMMUNICATION3_PROTOCOL` | 5.7.5 |
//!
//! [`MmCommunicationProducer`] installs all three over this crate's communicator; [`FirmwareMmExecutor`] and
//! [`FirmwareMmCommunication`] use those that the firmware has.
//!
//! The SDK's own types for these protocols pass `CommSize` by value, where the specification and every firmware pass a
//! pointer to it; hence these.

mod consumer;
mod driver_lock;
mod producer;

pub use consumer::{FirmwareMmCommunication, FirmwareMmExecutor};
pub use producer::MmCommunicationProducer;

use core::ffi::c_void;
use patina::BinaryGuid;
use patina::protocol::ProtocolInterface;
use patina::standard::efi;

/// `EFI_MM_COMMUNICATION_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication {
    /// Sends what is at `comm_buffer`. `comm_size`, which may be null, points to the bytes with the header, and is
    /// set to the response's.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication,
        comm_buffer: *mut c_void,
        comm_size: *mut usize,
    ) -> efi::Status,
}

/// `EFI_MM_COMMUNICATION2_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication2 {
    /// Like [`Communication::communicate`], with the buffer's physical and virtual address.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication2,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
        comm_size: *mut usize,
    ) -> efi::Status,
}

/// `EFI_MM_COMMUNICATION3_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication3 {
    /// Like [`Communication2::communicate`], for v3 headers, which carry the size.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication3,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
    ) -> efi::Status,
}

// SAFETY: PI 1.9, volume 4, 5.7.1 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("c68ed8e2-9dc6-4cbd-9d94-db65acc5c332");
}

// SAFETY: PI 1.9, volume 4, 5.7.4 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication2 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("378daedc-f06b-4446-8314-40ab933c87a3");
}

// SAFETY: PI 1.9, volume 4, 5.7.5 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication3 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("f7234a14-0df2-46c0-ad28-90e6b883a72f");
}
