//! The MM communication protocols of PI, for drivers in C and from drivers in C.
//!
//! | type | protocol | PI 1.9, volume 4 |
//! |---|---|---|
//! | [`Communication`] | `EFI_MM_COMMUNICATION_PROTOCOL` | 5.7.1 |
//! | [`Communication2`] | `EFI_MM_COMMUNICATION2_PROTOCOL` | 5.7.4 |
//! | [`Communication3`] | `EFI_MM_COMMUNICATION3_PROTOCOL` | 5.7.5 |
//!
//! [`MmCommunicationProducer`] installs all three over this crate's communicator;
//! [`FirmwareMmExecutor`] and [`FirmwareMmCommunication`] use those that the firmware has.
//!
//! The C interfaces are those of [`mm_comm::c_request`]. The types here wrap them, so that the
//! SDK's services find them under their GUIDs.

mod consumer;
mod driver_lock;
mod producer;

/// What a test replaces.
mod sync {
    pub(super) use core::sync::atomic::{AtomicUsize, Ordering};
}

pub use consumer::{FirmwareMmCommunication, FirmwareMmExecutor};
pub use producer::MmCommunicationProducer;

use mm_comm::c_request;
use mm_wire::protocol;
use patina::BinaryGuid;
use patina::protocol::ProtocolInterface;

/// `EFI_MM_COMMUNICATION_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Communication(pub c_request::Communication);

/// `EFI_MM_COMMUNICATION2_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Communication2(pub c_request::Communication2);

/// `EFI_MM_COMMUNICATION3_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Communication3(pub c_request::Communication3);

// SAFETY: PI 1.9, volume 4, 5.7.1 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_bytes(&protocol::COMMUNICATION.to_bytes());
}

// SAFETY: PI 1.9, volume 4, 5.7.4 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication2 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_bytes(&protocol::COMMUNICATION2.to_bytes());
}

// SAFETY: PI 1.9, volume 4, 5.7.5 gives the protocol exactly this layout.
unsafe impl ProtocolInterface for Communication3 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_bytes(&protocol::COMMUNICATION3.to_bytes());
}
