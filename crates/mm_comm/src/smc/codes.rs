//! The return codes of both interfaces: their names, and the `EFI_STATUS` of each.

/// Makes a type of a list of return codes.
macro_rules! return_codes {
    ($(#[$about:meta])* $code:ident { $($number:literal $name:literal => $status:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $code(pub i32);

        impl $code {
            /// The code's name and its `EFI_STATUS`; `None` for a code that is not in the list.
            const fn known(self) -> Option<(&'static str, mm_wire::EfiStatus)> {
                match self.0 {
                    $($number => Some(($name, mm_wire::EfiStatus::$status)),)+
                    _ => None,
                }
            }

            /// The same as an `EFI_STATUS`: `EFI_DEVICE_ERROR` for an unknown code.
            #[must_use]
            pub const fn status(self) -> mm_wire::EfiStatus {
                match self.known() {
                    Some((_, status)) => status,
                    None => mm_wire::EfiStatus::DEVICE_ERROR,
                }
            }
        }

        impl core::fmt::Display for $code {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
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
        0 "SUCCESS" => SUCCESS,
        -1 "NOT_SUPPORTED" => UNSUPPORTED,
        -2 "INVALID_PARAMS" => INVALID_PARAMETER,
        -3 "DENIED" => ACCESS_DENIED,
        // edk2's normal world has NO_MEMORY at -4, TF-A at -5.
        -4 "NO_MEMORY" => OUT_OF_RESOURCES,
        -5 "NO_MEMORY" => OUT_OF_RESOURCES,
    }
}

return_codes! {
    /// What FFA_ERROR carries in w2 (Arm DEN0077A, table 12.2).
    FfaCode {
        -1 "NOT_SUPPORTED" => UNSUPPORTED,
        -2 "INVALID_PARAMETERS" => INVALID_PARAMETER,
        -3 "NO_MEMORY" => OUT_OF_RESOURCES,
        -4 "BUSY" => TIMEOUT,
        -5 "INTERRUPTED" => INTERRUPT_PENDING,
        -6 "DENIED" => ACCESS_DENIED,
        -7 "RETRY" => TIMEOUT,
        -8 "ABORTED" => ABORTED,
        -9 "NO_DATA" => NOT_FOUND,
        -10 "NOT_READY" => NOT_READY,
    }
}

impl FfaCode {
    pub(super) const NOT_SUPPORTED: Self = Self(-1);
    pub(super) const INVALID_PARAMETERS: Self = Self(-2);
    pub(super) const BUSY: Self = Self(-4);
    pub(super) const INTERRUPTED: Self = Self(-5);
    pub(super) const DENIED: Self = Self(-6);
    pub(super) const RETRY: Self = Self(-7);
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
