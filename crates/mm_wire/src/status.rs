//! `EFI_STATUS` as the 64-bit value that crosses the boundary.

use core::fmt;

/// An `EFI_STATUS` of a 64-bit machine (UEFI 2.11, appendix D). Errors have the highest bit set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EfiStatus(pub u64);

const ERROR_BIT: u64 = 1 << 63;

macro_rules! statuses {
    ($($name:ident = $value:expr, $text:literal;)+) => {
        impl EfiStatus {
            $(#[doc = concat!("`EFI_", stringify!($name), "`: ", $text, ".")]
            pub const $name: Self = Self($value);)+

            /// The specification's name without the `EFI_` prefix, if this crate knows it.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0, "the operation completed";
    LOAD_ERROR = ERROR_BIT | 1, "the image failed to load";
    INVALID_PARAMETER = ERROR_BIT | 2, "a parameter was incorrect";
    UNSUPPORTED = ERROR_BIT | 3, "the operation is not supported";
    BAD_BUFFER_SIZE = ERROR_BIT | 4, "the buffer does not have the proper size";
    BUFFER_TOO_SMALL = ERROR_BIT | 5, "the buffer cannot hold the data";
    NOT_READY = ERROR_BIT | 6, "no data is pending";
    DEVICE_ERROR = ERROR_BIT | 7, "the device reported an error";
    WRITE_PROTECTED = ERROR_BIT | 8, "the device cannot be written to";
    OUT_OF_RESOURCES = ERROR_BIT | 9, "a resource has run out";
    NOT_FOUND = ERROR_BIT | 14, "the item was not found";
    ACCESS_DENIED = ERROR_BIT | 15, "access was denied";
    NO_RESPONSE = ERROR_BIT | 16, "no response";
    NO_MAPPING = ERROR_BIT | 17, "the memory is not mapped, or not all of it";
    TIMEOUT = ERROR_BIT | 18, "the time ran out";
    NOT_STARTED = ERROR_BIT | 19, "the protocol was not started";
    ALREADY_STARTED = ERROR_BIT | 20, "the protocol was started already";
    ABORTED = ERROR_BIT | 21, "the operation was aborted";
    INCOMPATIBLE_VERSION = ERROR_BIT | 25, "the version does not fit";
    PROTOCOL_ERROR = ERROR_BIT | 24, "the other side broke the protocol";
    SECURITY_VIOLATION = ERROR_BIT | 26, "a security rule forbids the operation";
    COMPROMISED_DATA = ERROR_BIT | 33, "the data cannot be trusted";
    INTERRUPT_PENDING = ERROR_BIT | 1 << 61, "an interrupt has to be handled first (PI 1.9, volume 1, status codes)";
}

impl EfiStatus {
    /// Whether the highest bit marks this value as an error.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR_BIT != 0
    }

    /// The value as this processor's `EFI_STATUS` has it, a `UINTN`; [`Self::DEVICE_ERROR`] if it
    /// does not fit into that.
    #[must_use]
    pub fn to_native(self) -> usize {
        const DEVICE_ERROR: usize = 1 << (usize::BITS - 1) | 7;
        usize::try_from(self.0).unwrap_or(DEVICE_ERROR)
    }

    /// The value of this processor's `EFI_STATUS`.
    #[must_use]
    pub const fn from_native(status: usize) -> Self {
        Self(status as u64)
    }

    /// The error that this value means if only [`Self::SUCCESS`] comes with a response; `None` for
    /// success itself.
    ///
    /// Every other value means that there is no response, with or without the error bit: edk2's MM
    /// cores turn any status of `MmiManage` but success into `EFI_NOT_FOUND` (`MmEntryPoint` in
    /// StandaloneMmCore.c, `SmmEntryPoint` in PiSmmCore.c), and Project Mu's driver sets the error
    /// bit of any `ReturnStatus` that is not zero (`SmmCommunicationCommunicateWorker` in
    /// MmIplCommon.c). A caller that only looks at the error bit, as `EFI_ERROR` does, would take
    /// its own request for the response.
    ///
    /// | value | error |
    /// |---|---|
    /// | 0 | none |
    /// | bit 63 is set | the value itself |
    /// | bit 31 is set, and none above: an error of a 32-bit MM core | the same error in 64 bits |
    /// | any other: a warning (`EFI_WARN_*`), or an unknown code | [`Self::NOT_FOUND`] |
    #[must_use]
    #[inline]
    pub const fn as_error(self) -> Option<Self> {
        /// The bits that say whether the code is an error or a warning, and whether UEFI, PI or a
        /// vendor defined it.
        const CLASS_BITS_32: u64 = 0b111 << 29;
        match self.0 {
            0 => None,
            _ if self.is_error() => Some(self),
            code @ 0x8000_0000..=0xffff_ffff => {
                Some(Self((code & CLASS_BITS_32) << 32 | code & !CLASS_BITS_32))
            }
            _ => Some(Self::NOT_FOUND),
        }
    }
}

impl fmt::Display for EfiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "EFI_{name} ({:#x})", self.0),
            None => write!(f, "EFI status {:#x}", self.0),
        }
    }
}

impl fmt::Debug for EfiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::EfiStatus;
    use std::string::ToString;

    #[test]
    fn values_are_those_that_mm_cores_return() {
        assert_eq!(EfiStatus::NOT_FOUND.0, 0x8000_0000_0000_000e);
        assert_eq!(
            EfiStatus::NOT_FOUND.to_string(),
            "EFI_NOT_FOUND (0x800000000000000e)"
        );
        assert_eq!(EfiStatus(0x77).to_string(), "EFI status 0x77");
        // The MM supervisor's status for memory that is only partly mapped.
        assert_eq!(
            EfiStatus(1 << 63 | 17).to_string(),
            "EFI_NO_MAPPING (0x8000000000000011)"
        );
    }

    #[test]
    fn warnings_and_success_are_not_errors() {
        assert!(EfiStatus::NOT_FOUND.is_error());
        assert!(!EfiStatus::SUCCESS.is_error());
        assert!(!EfiStatus(4).is_error());
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn native_status_of_a_64_bit_processor_is_the_value_itself() {
        for value in [0, 2, 1 << 63 | 14, u64::MAX] {
            let native = EfiStatus(value).to_native();
            assert_eq!(native.to_le_bytes(), value.to_le_bytes());
            assert_eq!(EfiStatus::from_native(native), EfiStatus(value));
        }
    }

    #[test]
    fn every_value_but_success_is_an_error_to_a_caller() {
        assert_eq!(EfiStatus::SUCCESS.as_error(), None);
        for (value, error) in [
            // Errors of UEFI, PI and a vendor stay as they are; so do unknown ones.
            (EfiStatus::NOT_FOUND.0, EfiStatus::NOT_FOUND),
            (EfiStatus::INTERRUPT_PENDING.0, EfiStatus::INTERRUPT_PENDING),
            (0xc000_0000_0000_0001, EfiStatus(0xc000_0000_0000_0001)),
            (0x8000_0000_0000_7777, EfiStatus(0x8000_0000_0000_7777)),
            (u64::MAX, EfiStatus(u64::MAX)),
            // Errors of a 32-bit MM core, zero-extended.
            (0x8000_000e, EfiStatus::NOT_FOUND),
            (0x8000_000f, EfiStatus::ACCESS_DENIED),
            (0xa000_0000, EfiStatus::INTERRUPT_PENDING),
            (0xc000_0001, EfiStatus(0xc000_0000_0000_0001)),
            (0xffff_ffff, EfiStatus(0xe000_0000_1fff_ffff)),
            // Warnings of UEFI, PI and a vendor, in 64 and in 32 bits.
            (1, EfiStatus::NOT_FOUND),
            (5, EfiStatus::NOT_FOUND),
            (0x2000_0000_0000_0000, EfiStatus::NOT_FOUND),
            (0x4000_0000_0000_0001, EfiStatus::NOT_FOUND),
            (0x7fff_ffff_ffff_ffff, EfiStatus::NOT_FOUND),
            (0x2000_0000, EfiStatus::NOT_FOUND),
            (0x7fff_ffff, EfiStatus::NOT_FOUND),
            (0x1_8000_000e, EfiStatus::NOT_FOUND),
        ] {
            assert_eq!(EfiStatus(value).as_error(), Some(error), "{value:#x}");
            assert!(error.is_error());
        }
    }
}
