//! Messages of edk2's SMM variable service (`MdeModulePkg/Include/Guid/SmmVariableCommon.h`).
//!
//! Every message starts with [`FunctionHeader`]: Function u64 @0, ReturnStatus u64 @8. The rest
//! depends on the function:
//!
//! | function | after the header |
//! |---|---|
//! | get, set | [`AccessVariable`], name (UTF-16, with its NUL), data |
//! | get next name | [`NextName`], name |
//! | query info | [`QueryInfo`] |
//! | payload size | [`PayloadSize`] |
//!
//! The C structs end in a one-element array: padding behind it (4 bytes after `Attributes` in
//! [`QueryInfo`]) belongs to the message, and the name starts right behind the last field.

use crate::status::EfiStatus;
use uguid::{Guid, guid};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The GUID of the variable service's handler, `gEfiSmmVariableProtocolGuid`.
pub const GUID: Guid = guid!("ed32d533-99e6-4209-9cc0-2d72cdd998a7");

/// The marker protocol for "variables can be written", `gSmmVariableWriteGuid`. [`GUID`] is also
/// the marker for "variables can be read".
pub const WRITE_READY_GUID: Guid = guid!("93ba1826-dffb-45dd-82a7-e7dcaa3bbdf3");

/// What the message asks for, the value of [`FunctionHeader::function`].
pub mod function {
    /// Read a variable.
    pub const GET_VARIABLE: u64 = 1;
    /// The name that follows a given one; the empty name starts.
    pub const GET_NEXT_VARIABLE_NAME: u64 = 2;
    /// Write or delete a variable.
    pub const SET_VARIABLE: u64 = 3;
    /// The sizes of the store.
    pub const QUERY_VARIABLE_INFO: u64 = 4;
    /// The boot manager is about to start a boot option: variables that only firmware may write
    /// become read-only. Nothing follows the function header.
    pub const READY_TO_BOOT: u64 = 5;
    /// Boot services have ended: later requests come from the operating system. Nothing follows the
    /// function header.
    pub const EXIT_BOOT_SERVICE: u64 = 6;
    /// The largest payload that the handler takes.
    pub const GET_PAYLOAD_SIZE: u64 = 11;
}

bitflags::bitflags! {
    /// The attributes of a variable (UEFI 2.11, 8.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attributes: u32 {
        /// EFI_VARIABLE_NON_VOLATILE.
        const NON_VOLATILE = 1 << 0;
        /// EFI_VARIABLE_BOOTSERVICE_ACCESS.
        const BOOT_SERVICE = 1 << 1;
        /// EFI_VARIABLE_RUNTIME_ACCESS; never without [`Self::BOOT_SERVICE`].
        const RUNTIME = 1 << 2;
        /// EFI_VARIABLE_HARDWARE_ERROR_RECORD.
        const HARDWARE_ERROR_RECORD = 1 << 3;
        /// EFI_VARIABLE_AUTHENTICATED_WRITE_ACCESS, deprecated.
        const AUTHENTICATED = 1 << 4;
        /// EFI_VARIABLE_TIME_BASED_AUTHENTICATED_WRITE_ACCESS.
        const TIME_BASED_AUTHENTICATED = 1 << 5;
        /// EFI_VARIABLE_APPEND_WRITE: add to the data that is there. Never stored.
        const APPEND = 1 << 6;
    }
}

/// `SMM_VARIABLE_COMMUNICATE_HEADER`, 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FunctionHeader {
    /// One of [`function`].
    pub function: U64,
    /// The `EFI_STATUS` of the function, in the response.
    pub return_status: U64,
}

impl FunctionHeader {
    /// Asks for `function`.
    #[must_use]
    pub fn new(function: u64) -> Self {
        Self {
            function: function.into(),
            return_status: 0.into(),
        }
    }
}

/// `SMM_VARIABLE_COMMUNICATE_ACCESS_VARIABLE` up to its name, 36 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AccessVariable {
    /// The variable's vendor.
    pub vendor: [u8; 16],
    /// Bytes of data behind the name; on get, the room there is.
    pub data_size: U64,
    /// Bytes of the name, with its NUL.
    pub name_size: U64,
    /// [`Attributes`].
    pub attributes: U32,
}

/// `SMM_VARIABLE_COMMUNICATE_GET_NEXT_VARIABLE_NAME` up to its name, 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NextName {
    /// The vendor of the current, then of the next variable.
    pub vendor: [u8; 16],
    /// In the request the room for a name in bytes, in the response the name's bytes.
    pub name_size: U64,
}

/// `SMM_VARIABLE_COMMUNICATE_QUERY_VARIABLE_INFO`, 32 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct QueryInfo {
    /// Bytes of the whole store.
    pub maximum_storage: U64,
    /// Bytes still free.
    pub remaining_storage: U64,
    /// The largest single variable, in bytes.
    pub maximum_variable: U64,
    /// The [`Attributes`] that are asked about.
    pub attributes: U32,
    /// The C struct's tail padding.
    pub padding: U32,
}

/// `SMM_VARIABLE_COMMUNICATE_GET_PAYLOAD_SIZE`, 8 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PayloadSize {
    /// The most bytes that may follow the function header.
    pub size: U64,
}

/// The whole message for [`function::GET_PAYLOAD_SIZE`], and its response.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PayloadSizeMessage {
    header: FunctionHeader,
    payload: PayloadSize,
}

impl PayloadSizeMessage {
    /// The request.
    #[must_use]
    pub fn request() -> Self {
        Self {
            header: FunctionHeader::new(function::GET_PAYLOAD_SIZE),
            ..Self::default()
        }
    }

    /// What the response says.
    ///
    /// # Errors
    ///
    /// The function's status, if it is not success.
    pub fn size(&self) -> Result<u64, EfiStatus> {
        match EfiStatus(self.header.return_status.get()).as_error() {
            None => Ok(self.payload.size.get()),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_c_structs_up_to_their_names() {
        assert_eq!(size_of::<FunctionHeader>(), 16);
        assert_eq!(size_of::<AccessVariable>(), 36);
        assert_eq!(size_of::<NextName>(), 24);
        assert_eq!(size_of::<QueryInfo>(), 32);
        assert_eq!(size_of::<PayloadSize>(), 8);
    }

    #[test]
    fn payload_size_is_told_only_with_success() {
        let request = PayloadSizeMessage::request();
        let mut bytes = [0; 24];
        bytes[0] = 11;
        assert_eq!(request.as_bytes(), bytes);
        bytes[16..18].copy_from_slice(&[0xe8, 0x3]);
        let response = |bytes: &[u8]| PayloadSizeMessage::read_from_bytes(bytes).unwrap().size();
        assert_eq!(response(&bytes), Ok(1000));
        bytes[8..16].copy_from_slice(&EfiStatus::UNSUPPORTED.0.to_le_bytes());
        assert_eq!(response(&bytes), Err(EfiStatus::UNSUPPORTED));
    }
}
