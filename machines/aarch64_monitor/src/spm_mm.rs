//! SPM_MM as TF-A offers it (`include/services/spm_mm_svc.h`).

use crate::mm::Mm;

/// MM_VERSION.
pub const VERSION: u32 = 0x8400_0040;
/// MM_COMMUNICATE with a 64-bit address.
pub const COMMUNICATE: u32 = 0xc400_0041;

/// Version 1.0.
const VERSION_1_0: u64 = 0x1_0000;
const INVALID_PARAMETERS: i32 = -2;

/// Serves a call; `None` if SPM_MM does not have it.
pub fn call(mm: &mut Mm<'_>, function: u32, [cookie, buffer, ..]: [u64; 17]) -> Option<u64> {
    match function {
        VERSION => Some(VERSION_1_0),
        // Like in `mm_communicate`, a length is not an error.
        COMMUNICATE if cookie != 0 || buffer == 0 => Some(code(INVALID_PARAMETERS)),
        COMMUNICATE => Some(mm.serve(buffer).map_or_else(|error| code(error.spm_mm()), |()| 0)),
        _ => None,
    }
}

/// An error in the low 32 bits, as TF-A returns it.
pub(crate) const fn code(code: i32) -> u64 {
    code.cast_unsigned() as u64
}
