//! The protocols that are installed: their interfaces, and their GUIDs in the type of `r-efi`.

pub use mm_comm::c_request::{Communication, Communication2, Communication3};
use mm_wire::message::variable;
use mm_wire::{Guid, protocol};
use r_efi::efi;

/// `EFI_MM_COMMUNICATION_PROTOCOL`.
pub const COMMUNICATION: efi::Guid = guid(protocol::COMMUNICATION);

/// `EFI_MM_COMMUNICATION2_PROTOCOL`.
pub const COMMUNICATION2: efi::Guid = guid(protocol::COMMUNICATION2);

/// `EFI_MM_COMMUNICATION3_PROTOCOL`.
pub const COMMUNICATION3: efi::Guid = guid(protocol::COMMUNICATION3);

/// `gEfiSmmVariableProtocolGuid`: variables can be read. Without an interface here.
pub const VARIABLES_READABLE: efi::Guid = guid(variable::GUID);

/// `gSmmVariableWriteGuid`: variables can be written. Without an interface here.
pub const VARIABLES_WRITABLE: efi::Guid = guid(variable::WRITE_READY_GUID);

/// A GUID in the type of `r-efi`.
pub(crate) const fn guid(guid: Guid) -> efi::Guid {
    efi::Guid::from_bytes(&guid.to_bytes())
}
