//! The return codes of both interfaces: their names, and the `EFI_STATUS` of each.

use core::fmt;

/// Makes a type of a list of return codes.
macro_rules! return_codes {
    ($(#[$about:meta])* $code:ident { $($name:ident = $number:literal $(or $other:literal)? => $status:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $code(pub i32);

        impl $code {
            $(#[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: Self = Self($number);)+

            /// The code's name and its `EFI_STATUS`; `None` for a code that is not in the list.
            const fn known(self) -> Option<(&'static str, mm_wire::EfiStatus)> {
                match self.0 {
                    $($number $(| $other)? => Some((stringify!($name), mm_wire::EfiStatus::$status)),)+
                    _ => None,
                }
            }

            /// The `EFI_STATUS` of this code: `EFI_DEVICE_ERROR` for an unknown one.
            #[must_use]
            pub const fn status(self) -> mm_wire::EfiStatus {
                match self.known() {
                    Some((_, status)) => status,
                    None => mm_wire::EfiStatus::DEVICE_ERROR,
                }
            }
        }

        impl fmt::Display for $code {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name = self.known().map_or("unknown code", |(name, _)| name);
                write!(f, "{name} ({})", self.0)
            }
        }
    };
}

return_codes! {
    /// What a call of SPM_MM returns in its low 32 bits (edk2 `ArmMmSvc.h`, TF-A `spm_mm_svc.h`).
    /// Zero is success.
    ///
    /// StandaloneMm uses the same codes in a direct response of FF-A.
    SpmMmCode {
        SUCCESS = 0 => SUCCESS,
        NOT_SUPPORTED = -1 => UNSUPPORTED,
        INVALID_PARAMS = -2 => INVALID_PARAMETER,
        DENIED = -3 => ACCESS_DENIED,
        // edk2's normal world has it at -4, TF-A at -5.
        NO_MEMORY = -4 or -5 => OUT_OF_RESOURCES,
    }
}

return_codes! {
    /// What FFA_ERROR carries in w2 (Arm DEN0077A, table 12.2).
    FfaCode {
        NOT_SUPPORTED = -1 => UNSUPPORTED,
        INVALID_PARAMETERS = -2 => INVALID_PARAMETER,
        NO_MEMORY = -3 => OUT_OF_RESOURCES,
        BUSY = -4 => TIMEOUT,
        INTERRUPTED = -5 => INTERRUPT_PENDING,
        DENIED = -6 => ACCESS_DENIED,
        RETRY = -7 => TIMEOUT,
        ABORTED = -8 => ABORTED,
        NO_DATA = -9 => NOT_FOUND,
        NOT_READY = -10 => NOT_READY,
    }
}

/// What FFA_VERSION returned, instead of a version that a caller of 1.2 can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherVersion {
    /// The result for version 1.2, 32 bits: an older version or another major one, or a negative
    /// number.
    pub response: u32,
    /// The minor version that is accepted instead of 1.2: 1 for 1.1.
    pub accepted: Option<u16>,
}

impl OtherVersion {
    /// No version is accepted.
    #[must_use]
    pub const fn refused(response: u32) -> Self {
        Self {
            response,
            accepted: None,
        }
    }
}

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A version has 15 bits of major and 16 of minor version; bit 31 says that it is an error (Arm DEN0077A, 13.2).
        match self.response >> 31 {
            0 => write!(f, "{}.{}", self.response >> 16, self.response & 0xffff),
            _ => FfaCode(self.response.cast_signed()).fmt(f),
        }?;
        match self.accepted {
            None => Ok(()),
            Some(minor) => write!(
                f,
                " for 1.2, but 1.{minor} is accepted: an earlier caller has settled that version, \
                 or the firmware has no later one"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_wire::EfiStatus;
    use std::string::ToString;

    #[test]
    fn every_ffa_code_has_its_name_and_its_status() {
        for (code, status, name) in [
            (-1, EfiStatus::UNSUPPORTED, "NOT_SUPPORTED (-1)"),
            (-2, EfiStatus::INVALID_PARAMETER, "INVALID_PARAMETERS (-2)"),
            (-3, EfiStatus::OUT_OF_RESOURCES, "NO_MEMORY (-3)"),
            (-4, EfiStatus::TIMEOUT, "BUSY (-4)"),
            (-5, EfiStatus::INTERRUPT_PENDING, "INTERRUPTED (-5)"),
            (-6, EfiStatus::ACCESS_DENIED, "DENIED (-6)"),
            (-7, EfiStatus::TIMEOUT, "RETRY (-7)"),
            (-8, EfiStatus::ABORTED, "ABORTED (-8)"),
            (-9, EfiStatus::NOT_FOUND, "NO_DATA (-9)"),
            (-10, EfiStatus::NOT_READY, "NOT_READY (-10)"),
            (-11, EfiStatus::DEVICE_ERROR, "unknown code (-11)"),
            (0, EfiStatus::DEVICE_ERROR, "unknown code (0)"),
        ] {
            let code = FfaCode(code);
            assert_eq!(code.status(), status);
            assert_eq!(code.to_string(), name);
        }
    }

    #[test]
    fn every_spm_mm_code_has_its_name_and_its_status() {
        for (code, status, name) in [
            (0, EfiStatus::SUCCESS, "SUCCESS (0)"),
            (-1, EfiStatus::UNSUPPORTED, "NOT_SUPPORTED (-1)"),
            (-2, EfiStatus::INVALID_PARAMETER, "INVALID_PARAMS (-2)"),
            (-3, EfiStatus::ACCESS_DENIED, "DENIED (-3)"),
            (-4, EfiStatus::OUT_OF_RESOURCES, "NO_MEMORY (-4)"),
            (-5, EfiStatus::OUT_OF_RESOURCES, "NO_MEMORY (-5)"),
            (-6, EfiStatus::DEVICE_ERROR, "unknown code (-6)"),
            (1, EfiStatus::DEVICE_ERROR, "unknown code (1)"),
            (i32::MIN, EfiStatus::DEVICE_ERROR, "unknown code (-2147483648)"),
        ] {
            let code = SpmMmCode(code);
            assert_eq!(code.status(), status);
            assert_eq!(code.to_string(), name);
        }
    }
}
