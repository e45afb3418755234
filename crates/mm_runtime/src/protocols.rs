//! The protocols that are installed, as C sees them (PI 1.9, volume 4, 5.7).

use core::ffi::c_void;
use r_efi::efi;

/// `gEfiMmCommunicationProtocolGuid`.
pub const COMMUNICATION: efi::Guid = efi::Guid::from_fields(
    0xc68e_d8e2,
    0x9dc6,
    0x4cbd,
    0x9d,
    0x94,
    &[0xdb, 0x65, 0xac, 0xc5, 0xc3, 0x32],
);

/// `gEfiMmCommunication2ProtocolGuid`.
pub const COMMUNICATION2: efi::Guid = efi::Guid::from_fields(
    0x378d_aedc,
    0xf06b,
    0x4446,
    0x83,
    0x14,
    &[0x40, 0xab, 0x93, 0x3c, 0x87, 0xa3],
);

/// `gEfiMmCommunication3ProtocolGuid`.
pub const COMMUNICATION3: efi::Guid = efi::Guid::from_fields(
    0xf723_4a14,
    0x0df2,
    0x46c0,
    0xad,
    0x28,
    &[0x90, 0xe6, 0xb8, 0x83, 0xa7, 0x2f],
);

/// `gEfiSmmVariableProtocolGuid`: variables can be read. Without an interface here.
pub const VARIABLES_READABLE: efi::Guid = efi::Guid::from_fields(
    0xed32_d533,
    0x99e6,
    0x4209,
    0x9c,
    0xc0,
    &[0x2d, 0x72, 0xcd, 0xd9, 0x98, 0xa7],
);

/// `gSmmVariableWriteGuid`: variables can be written. Without an interface here.
pub const VARIABLES_WRITABLE: efi::Guid = efi::Guid::from_fields(
    0x93ba_1826,
    0xdffb,
    0x45dd,
    0x82,
    0xa7,
    &[0xe7, 0xdc, 0xaa, 0x3b, 0xbd, 0xf3],
);

/// `EFI_MM_COMMUNICATION_PROTOCOL`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication {
    /// Sends what stands at `comm_buffer`; `comm_size` may be null.
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
    /// The same, with the buffer's physical and virtual address.
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
    /// The same for v3 headers, which carry the size.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication3,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
    ) -> efi::Status,
}
