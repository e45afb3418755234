use crate::request::{Handler, Request};
use mm_wire::EfiStatus;
use mm_wire::message::supervisor::{
    CommUpdate, REQUEST_COMM_UPDATE, REQUEST_UNBLOCK_MEMORY, REQUEST_VERSION, REVISION, RequestHeader,
    SIGNATURE, UnblockMemory, VERSION_REQUEST_LEN, VersionInfo,
};
use zerocopy::{FromBytes, IntoBytes};

/// Serves the MM supervisor's version request.
///
/// It checks what Project Mu's supervisor checks
/// (`MmSupervisorPkg/Core/Request/RequestDispatcher.c`, `MmSupvRequestHandler`):
///
/// - A message too short for its header, or for what its request must have room for (40 bytes for
///   the version), fails.
/// - Everything else succeeds, with the status in the message: `EFI_INVALID_PARAMETER` for a wrong
///   signature or revision, `EFI_UNSUPPORTED` for a request other than the version.
/// - The response is as long as the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervisor {
    /// The version that it returns.
    pub version: u32,
    /// The patch level that it returns.
    pub patch_level: u32,
}

/// The shortest message that a request may have.
const fn shortest(request: u32) -> usize {
    const HEADER_LEN: usize = size_of::<RequestHeader>();
    match request {
        REQUEST_UNBLOCK_MEMORY => HEADER_LEN.saturating_add(size_of::<UnblockMemory>()),
        REQUEST_VERSION => VERSION_REQUEST_LEN,
        REQUEST_COMM_UPDATE => HEADER_LEN.saturating_add(size_of::<CommUpdate>()),
        _ => HEADER_LEN,
    }
}

impl Handler for Supervisor {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        let len = request.message().len();
        let Ok((header, body)) = RequestHeader::mut_from_prefix(request.message_mut()) else {
            return Err(EfiStatus::INVALID_PARAMETER);
        };
        if header.signature != SIGNATURE || header.revision != REVISION {
            header.result = EfiStatus::INVALID_PARAMETER.0.into();
            return Ok(());
        }
        // The result in a request that is then refused for its length.
        header.result = EfiStatus::ABORTED.0.into();
        if len < shortest(header.request.get()) {
            return Err(EfiStatus::INVALID_PARAMETER);
        }
        let result = match header.request.get() {
            REQUEST_VERSION => {
                let info = VersionInfo {
                    version: self.version.into(),
                    patch_level: self.patch_level.into(),
                    max_request_level: u64::from(REQUEST_VERSION).into(),
                };
                let room = body.iter_mut().zip(info.as_bytes());
                room.for_each(|(to, from)| *to = *from);
                EfiStatus::SUCCESS
            }
            _ => EfiStatus::UNSUPPORTED,
        };
        header.result = result.0.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ask;
    use super::*;

    const SUPERVISOR: Supervisor = Supervisor {
        version: 0x0001_0002,
        patch_level: 7,
    };

    fn result(message: &RequestHeader) -> u64 {
        let (result, response) = ask(&mut { SUPERVISOR }, message.as_bytes(), 64);
        assert_eq!(result, Ok(()));
        RequestHeader::ref_from_prefix(&response).unwrap().0.result.get()
    }

    #[test]
    fn version_response_is_as_long_as_its_request() {
        for len in [40, 41, 64] {
            let mut message = RequestHeader::new(REQUEST_VERSION).as_bytes().to_vec();
            message.resize(len, 0xee);
            let mut expected = message.clone();
            expected[24..40].copy_from_slice(&[2, 0, 1, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(ask(&mut { SUPERVISOR }, &message, 64), (Ok(()), expected));
        }
    }

    #[test]
    fn unknown_request_is_an_error_in_the_result_field() {
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
        assert_eq!(result(&RequestHeader::new(2)), EfiStatus::UNSUPPORTED.0);
    }

    #[test]
    fn requests_without_room_fail() {
        for (request, shortest) in [(1, 80), (2, 24), (3, 40), (4, 248), (5, 24)] {
            let mut message = RequestHeader::new(request).as_bytes().to_vec();
            message.resize(shortest, 0);
            assert_eq!(
                ask(&mut { SUPERVISOR }, &message, 512).0,
                Ok(()),
                "request {request}"
            );
            for len in [0, 23, shortest - 1] {
                let (result, response) = ask(&mut { SUPERVISOR }, &message[..len], 512);
                assert_eq!(
                    result,
                    Err(EfiStatus::INVALID_PARAMETER),
                    "request {request}, {len} bytes"
                );
                if len >= 24 {
                    let header = RequestHeader::ref_from_prefix(&response).unwrap().0;
                    assert_eq!(header.result.get(), EfiStatus::ABORTED.0);
                }
            }
        }
    }
}
