//! Why MM in the secure world was not reached, or did not process a request.

use super::codes::{FfaCode, OtherVersion, SpmMmCode};
use mm_wire::EfiStatus;
use thiserror::Error;

/// Why MM could not be reached, or did not process a request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmcError {
    /// An SMC would be undefined. None was made.
    #[error(
        "platform: the processor has no EL3 and PSCI is not called by smc: a secure monitor call would trap"
    )]
    NoConduit,
    /// The secure world has neither interface.
    #[error(
        "platform: the secure world offers neither FF-A 1.2 nor SPM_MM (FFA_VERSION: {ffa_version}; MM_VERSION: \
         {mm_version})"
    )]
    NoMm {
        /// What FFA_VERSION returned.
        ffa_version: OtherVersion,
        /// What MM_VERSION returned.
        mm_version: SpmMmCode,
    },
    /// The platform requires FF-A, which is not available.
    #[error("platform: the secure world does not offer FF-A 1.2 (FFA_VERSION: {0})")]
    NoFfa(OtherVersion),
    /// SPM_MM of another major version.
    #[error("platform: the secure world's SPM_MM is of version {major}.{minor}, 1.x is supported")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// FF-A is available, and no partition has the MM service.
    #[error("platform: FF-A is available, but no partition offers the MM communication service")]
    NoPartition,
    /// The MM partition takes no direct requests.
    #[error("platform: the MM partition {id:#06x} does not take direct requests")]
    NoDirectRequests {
        /// The partition's identifier.
        id: u16,
    },
    /// Another driver has mapped FF-A's RX and TX buffers, and has not said where they are.
    #[error(
        "platform: FFA_RXTX_MAP: DENIED (-6), another driver keeps RX and TX buffers mapped and no HOB \
         says where; name the MM partition in SmcOptions, or let that driver unmap them"
    )]
    RxTxMapped,
    /// Discovery needs two pages, which the platform did not give.
    #[error("platform: no {needed} bytes of page-aligned memory for FF-A's RX and TX buffers")]
    NoRxTxMemory {
        /// Bytes that were needed.
        needed: usize,
    },
    /// This call interrupted another one. The secure world serves one request at a time.
    #[error("caller: the secure world is serving a call that this one interrupted")]
    Busy,
    /// MM_COMMUNICATE failed.
    #[error("MM_COMMUNICATE: {0}")]
    SpmMm(SpmMmCode),
    /// An FF-A call failed.
    #[error("{call}: {code}")]
    Ffa {
        /// The call.
        call: &'static str,
        /// What FFA_ERROR said.
        code: FfaCode,
    },
    /// The partition took the request, and its direct response says that it failed.
    #[error("{call}: the partition's response says {code}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The status in the response.
        code: SpmMmCode,
    },
    /// A call failed with BUSY again and again, or MM was interrupted again and again.
    #[error("{call}: not done after {attempts} attempts")]
    Timeout {
        /// The call.
        call: &'static str,
        /// How often it was made.
        attempts: u32,
    },
    /// MM is in the middle of a request whose call was given up, and has not finished it after
    /// being resumed. The new request was not sent.
    #[error(
        "MM: a request that was given up is still unfinished after {attempts} more resumptions; this one was not sent"
    )]
    EarlierUnfinished {
        /// How often this call has tried to resume it.
        attempts: u32,
    },
    /// MM was in the middle of a request whose call was given up, and has finished it now. The new
    /// request was not sent: MM may have written to shared memory and damaged it. The next one is
    /// sent.
    #[error("MM: a request that was given up has ended only now; this one was not sent, it can be repeated")]
    EarlierEnded,
    /// A response that the interface does not define.
    #[error("secure world: the response to {call} is {response:#x}, which {call} does not have")]
    Protocol {
        /// The call.
        call: &'static str,
        /// The response's function identifier, or the value in it that is wrong.
        response: u32,
    },
}

impl SmcError {
    /// The same as an `EFI_STATUS`.
    ///
    /// A code of the secure world has the status that edk2 gives it, with these exceptions. BUSY is
    /// `EFI_TIMEOUT` (edk2 waits, then says the same). SPM_MM's NOT_SUPPORTED is `EFI_UNSUPPORTED`
    /// (edk2: `EFI_ACCESS_DENIED`), its -5 is TF-A's NO_MEMORY. Unknown codes are
    /// `EFI_DEVICE_ERROR` (edk2: `EFI_ACCESS_DENIED` of SPM_MM, `EFI_UNSUPPORTED` of FF-A).
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::NoConduit | Self::NoMm { .. } | Self::NoFfa(_) | Self::Version { .. } => {
                EfiStatus::UNSUPPORTED
            }
            Self::NoDirectRequests { .. } => EfiStatus::UNSUPPORTED,
            Self::NoPartition => EfiStatus::NOT_FOUND,
            Self::RxTxMapped => EfiStatus::ACCESS_DENIED,
            Self::NoRxTxMemory { .. } => EfiStatus::OUT_OF_RESOURCES,
            Self::Busy => EfiStatus::ALREADY_STARTED,
            Self::EarlierUnfinished { .. } | Self::EarlierEnded => EfiStatus::NOT_READY,
            Self::SpmMm(code) | Self::Refused { code, .. } => code.status(),
            Self::Ffa { code, .. } => code.status(),
            Self::Timeout { .. } => EfiStatus::TIMEOUT,
            Self::Protocol { .. } => EfiStatus::DEVICE_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_efi_status() {
        let ffa_version = OtherVersion::refused(u32::MAX);
        let mm_version = SpmMmCode(-1);
        for (error, status) in [
            (SmcError::NoConduit, EfiStatus::UNSUPPORTED),
            (
                SmcError::NoMm {
                    ffa_version,
                    mm_version,
                },
                EfiStatus::UNSUPPORTED,
            ),
            (SmcError::NoFfa(ffa_version), EfiStatus::UNSUPPORTED),
            (SmcError::Version { major: 2, minor: 0 }, EfiStatus::UNSUPPORTED),
            (SmcError::NoPartition, EfiStatus::NOT_FOUND),
            (SmcError::NoDirectRequests { id: 1 }, EfiStatus::UNSUPPORTED),
            (SmcError::RxTxMapped, EfiStatus::ACCESS_DENIED),
            (
                SmcError::NoRxTxMemory { needed: 8192 },
                EfiStatus::OUT_OF_RESOURCES,
            ),
            (SmcError::Busy, EfiStatus::ALREADY_STARTED),
            (
                SmcError::Refused {
                    call: "",
                    code: SpmMmCode(-3),
                },
                EfiStatus::ACCESS_DENIED,
            ),
            (
                SmcError::Timeout {
                    call: "",
                    attempts: 1,
                },
                EfiStatus::TIMEOUT,
            ),
            (SmcError::EarlierUnfinished { attempts: 1 }, EfiStatus::NOT_READY),
            (SmcError::EarlierEnded, EfiStatus::NOT_READY),
            (
                SmcError::Protocol {
                    call: "",
                    response: 0,
                },
                EfiStatus::DEVICE_ERROR,
            ),
        ] {
            assert_eq!(error.status(), status, "{error}");
        }
    }
}
