use crate::request::{Handler, Request};
use mm_wire::EfiStatus;
use mm_wire::message::supervisor::{REQUEST_VERSION, REVISION, RequestHeader, SIGNATURE, VersionInfo};
use zerocopy::{FromBytes, IntoBytes};

/// Answers the MM supervisor's version request.
///
/// As Project Mu's supervisor does (`MmSupervisorPkg/Core/Request/RequestDispatcher.c`), with the status in the message:
/// a wrong signature or revision is `EFI_INVALID_PARAMETER`, each request other than the version `EFI_UNSUPPORTED`. A
/// message too short for its header fails. The answer to a version request is 40 bytes, whatever the request's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervisor {
    /// The version that it tells.
    pub version: u32,
    /// The patch level that it tells.
    pub patch_level: u32,
}

const HEADER_LEN: usize = size_of::<RequestHeader>();
const ANSWER_LEN: usize = HEADER_LEN.saturating_add(size_of::<VersionInfo>());

impl Handler for Supervisor {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        let Ok((header, _)) = RequestHeader::mut_from_prefix(request.message_mut()) else {
            return Err(EfiStatus::INVALID_PARAMETER);
        };
        let result = if header.signature != SIGNATURE || header.revision != REVISION {
            EfiStatus::INVALID_PARAMETER
        } else if header.request != REQUEST_VERSION {
            EfiStatus::UNSUPPORTED
        } else {
            EfiStatus::SUCCESS
        };
        header.result = result.0.into();
        if result.is_error() {
            return Ok(());
        }
        if request.set_len(ANSWER_LEN).is_err() {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        let info = VersionInfo {
            version: self.version.into(),
            patch_level: self.patch_level.into(),
            max_request_level: u64::from(REQUEST_VERSION).into(),
        };
        if let Some(answer) = request.message_mut().get_mut(HEADER_LEN..) {
            answer.copy_from_slice(info.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ask;
    use super::*;
    use std::vec::Vec;

    const SUPERVISOR: Supervisor = Supervisor {
        version: 0x0001_0002,
        patch_level: 7,
    };

    fn result(message: &RequestHeader) -> u64 {
        let (result, answer) = ask(&mut { SUPERVISOR }, message.as_bytes(), 64);
        assert_eq!(result, Ok(()));
        RequestHeader::ref_from_prefix(&answer).unwrap().0.result.get()
    }

    #[test]
    fn the_version_is_told_in_40_bytes() {
        let request = RequestHeader::new(REQUEST_VERSION);
        let mut padded = request.as_bytes().to_vec();
        padded.extend([0xee; 30]);
        let mut expected = request.as_bytes().to_vec();
        expected.extend([2, 0, 1, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        for message in [request.as_bytes(), &padded] {
            assert_eq!(ask(&mut { SUPERVISOR }, message, 64), (Ok(()), expected.clone()));
        }
    }

    #[test]
    fn what_it_does_not_know_is_told_in_the_result_field() {
        let good = RequestHeader::new(REQUEST_VERSION);
        let bad_signature = RequestHeader {
            signature: *b"PUSM",
            ..good
        };
        let bad_revision = RequestHeader {
            revision: 2.into(),
            ..good
        };
        assert_eq!(result(&bad_signature), EfiStatus::INVALID_PARAMETER.0);
        assert_eq!(result(&bad_revision), EfiStatus::INVALID_PARAMETER.0);
        assert_eq!(result(&RequestHeader::new(1)), EfiStatus::UNSUPPORTED.0);
    }

    #[test]
    fn requests_without_room_fail() {
        let request = RequestHeader::new(REQUEST_VERSION);
        let failed = |message: &[u8], capacity| -> (Result<(), EfiStatus>, Vec<u8>) {
            ask(&mut { SUPERVISOR }, message, capacity)
        };
        let refused = Err(EfiStatus::INVALID_PARAMETER);
        assert_eq!(failed(&request.as_bytes()[..23], 64).0, refused);
        assert_eq!(failed(request.as_bytes(), 39).0, refused);
    }
}
