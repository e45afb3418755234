//! What an MM core does when an MMI enters it.
//!
//! For each comm buffer, in this order (edk2 `StandaloneMmPkg/Core/StandaloneMmCore.c`):
//!
//! 1. The mailbox's `IsCommBufferValid` is read: zero means that there is no request.
//! 2. The header is copied and checked. If it claims more than the region has, nothing is written
//!    back and `IsCommBufferValid` stays set.
//! 3. The message is copied into MMRAM; the handlers of its GUID are called in the order of their
//!    registration until one succeeds, or fails with `EFI_INTERRUPT_PENDING` (`MmiManage` in Mmi.c).
//! 4. The message is copied back behind the header, which stays as it is.
//! 5. The mailbox gets its result, then `IsCommBufferValid` = 0.
//!
//! Then the root handlers run. A comm buffer without a mailbox (traditional SMM, SPM_MM) holds a
//! request if GUID and length in its header are not zero. The response's length goes into
//! MessageLength or, as with edk2's Standalone MM on Arm, into MessageSize
//! (`PiMmCpuTpFwRootMmiHandler` in EventHandle.c). BufferSize changes only if the response is
//! longer than it allows.

use crate::request::{Registration, Request, RootHandler};
use crate::setup::{self, CommBuffer, MAX_BUFFERS, SetupError};
use crate::{AddressRange, Mmi, SystemMemory};
use core::fmt;
use mm_wire::header::{LENGTH_OFFSET, MAX_HEADER_LEN, MESSAGE_SIZE_OFFSET};
use mm_wire::mailbox::{MailboxImage, RESULT_OFFSET, VALID_OFFSET};
use mm_wire::{EfiStatus, Guid, Header, HeaderError, HeaderFormat};
use thiserror::Error;
use zerocopy::IntoBytes;

/// An MM core over the comm buffers of one platform.
#[derive(Debug)]
pub struct MmCore<'a> {
    buffers: &'a [CommBuffer],
    /// Invariant: at least as long as the largest region behind the shorter header.
    scratch: &'a mut [u8],
}

/// Why a request got no response. `IsCommBufferValid` stays set, so that the client notices.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The header cannot be read.
    #[error("client: {0}")]
    Header(#[from] HeaderError),
    /// The header claims more bytes than the region has.
    #[error("client: the request claims {claimed} bytes, header included; the comm buffer has {region}")]
    TooLarge {
        /// What the header claims.
        claimed: u64,
        /// Bytes of the region.
        region: u64,
    },
    /// Memory that the platform named cannot be accessed.
    #[error("platform: MM cannot access {len} bytes at {address:#x}")]
    Inaccessible {
        /// Where the access started.
        address: u64,
        /// Number of bytes of the access.
        len: usize,
    },
}

/// What one comm buffer held, and how the request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It does not hold a request.
    #[default]
    NoRequest,
    /// Its request got no response.
    Refused(Refusal),
    /// No handler is registered for the GUID. The client got `EFI_NOT_FOUND`.
    NoHandler {
        /// The GUID.
        recipient: Guid,
        /// Bytes of the message.
        request_len: usize,
    },
    /// At least one handler was called.
    Dispatched {
        /// The GUID.
        recipient: Guid,
        /// Bytes of the request's message.
        request_len: usize,
        /// Bytes of the response's message.
        response_len: usize,
        /// `EFI_SUCCESS`, or the error of the last handler. [`Outcome::response`] is what the
        /// client got.
        status: EfiStatus,
    },
}

impl Outcome {
    /// The status that the client got, in the mailbox if there is one; `None` if it got no
    /// response.
    ///
    /// An MM core returns one of two: `EFI_SUCCESS`, and `EFI_NOT_FOUND` for a missing handler and
    /// for a failed one.
    #[must_use]
    pub fn response(&self) -> Option<EfiStatus> {
        match self {
            Self::NoRequest | Self::Refused(_) => None,
            Self::Dispatched {
                status: EfiStatus::SUCCESS,
                ..
            } => Some(EfiStatus::SUCCESS),
            Self::NoHandler { .. } | Self::Dispatched { .. } => Some(EfiStatus::NOT_FOUND),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRequest => f.write_str("no request"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::NoHandler {
                recipient,
                request_len,
            } => write!(f, "{recipient}: {request_len} bytes, no handler"),
            Self::Dispatched {
                recipient,
                request_len,
                response_len,
                status,
            } => write!(
                f,
                "{recipient}: {request_len} bytes, response {response_len} bytes, {status}"
            ),
        }
    }
}

/// The results of one MMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    outcomes: [Outcome; MAX_BUFFERS],
    len: usize,
}

impl Visit {
    /// One outcome for each comm buffer, in the order of [`MmCore::new`].
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        self.outcomes.get(..self.len).unwrap_or_default()
    }
}

impl<'a> MmCore<'a> {
    /// Makes an MM core for these comm buffers.
    ///
    /// `scratch` is memory in MMRAM, as long as the largest message that a region can hold (the
    /// region without 24 bytes). Messages are copied there before they are read.
    ///
    /// # Errors
    ///
    /// Each [`SetupError`] names the buffer or mailbox that would give the other side access to
    /// MM's memory, or two buffers that share memory.
    pub fn new(
        mmram: &[AddressRange],
        buffers: &'a [CommBuffer],
        scratch: &'a mut [u8],
    ) -> Result<Self, SetupError> {
        setup::check(mmram, buffers, scratch.len())?;
        Ok(Self { buffers, scratch })
    }

    /// Serves the requests in all comm buffers, then calls the root handlers.
    ///
    /// Several handlers may have the same GUID: the first that succeeds, or fails with
    /// `EFI_INTERRUPT_PENDING`, ends the request.
    pub fn enter(
        &mut self,
        memory: &mut dyn SystemMemory,
        mmi: Mmi,
        handlers: &mut [Registration<'_>],
        root_handlers: &mut [&mut dyn RootHandler],
    ) -> Visit {
        let mut visit = Visit {
            outcomes: [Outcome::NoRequest; MAX_BUFFERS],
            len: self.buffers.len(),
        };
        for (buffer, outcome) in self.buffers.iter().zip(&mut visit.outcomes) {
            *outcome = serve(*buffer, self.scratch, memory, mmi, handlers).unwrap_or_else(Outcome::Refused);
        }
        for handler in root_handlers {
            handler.handle(mmi);
        }
        visit
    }
}

/// Serves one comm buffer.
fn serve(
    buffer: CommBuffer,
    scratch: &mut [u8],
    memory: &mut dyn SystemMemory,
    mmi: Mmi,
    handlers: &mut [Registration<'_>],
) -> Result<Outcome, Refusal> {
    let region = buffer.region;
    let Some(header) = pending(buffer, memory)? else {
        return Ok(Outcome::NoRequest);
    };
    let too_large = Refusal::TooLarge {
        claimed: header.total_len(),
        region: region.len(),
    };
    if header.total_len() > region.len() {
        return Err(too_large);
    }
    let header_len = header.format().header_len() as u64;
    // Neither saturates: the region holds the header, and ends within the address space.
    let message_at = region.start().saturating_add(header_len);
    let capacity = usize::try_from(region.len().saturating_sub(header_len)).unwrap_or(usize::MAX);
    let request_len = usize::try_from(header.message_len()).unwrap_or(usize::MAX);
    let room = scratch.get_mut(..capacity).ok_or(too_large)?;
    let recipient = header.recipient();
    let mut request = match Request::new(recipient, mmi, room, request_len) {
        Ok(request) => request,
        Err(_no_room) => return Err(too_large),
    };
    read(memory, message_at, request.message_mut())?;

    let handled = dispatch(handlers, &mut request);
    let response_len = request.message().len();
    if handled.is_some() {
        write(memory, message_at, request.message())?;
    }
    let outcome = match handled {
        None => Outcome::NoHandler {
            recipient,
            request_len,
        },
        Some(status) => Outcome::Dispatched {
            recipient,
            request_len,
            response_len,
            status,
        },
    };
    match (buffer.mailbox, outcome.response()) {
        (Some(mailbox), Some(status)) => {
            let total = header_len.saturating_add(response_len as u64);
            complete(memory, mailbox, &MailboxImage::answered(status, total))?;
        }
        (None, _) if handled.is_some() => {
            write_length(memory, region.start(), &header, response_len as u64)?;
        }
        _ => {}
    }
    Ok(outcome)
}

/// Writes the response's length to the header at `start`, for a client without a mailbox.
fn write_length(memory: &mut dyn SystemMemory, start: u64, header: &Header, len: u64) -> Result<(), Refusal> {
    let mut field = |offset: usize, value: u64| {
        let address = start.saturating_add(offset as u64);
        write(memory, address, &value.to_le_bytes())
    };
    match header.format() {
        HeaderFormat::V1 => field(LENGTH_OFFSET, len),
        HeaderFormat::V3 => {
            // MM leaves the client's BufferSize alone, unless the response is longer than it
            // allows.
            if len > header.message_len() {
                let header_len = header.format().header_len() as u64;
                field(LENGTH_OFFSET, header_len.saturating_add(len))?;
            }
            field(MESSAGE_SIZE_OFFSET, len)
        }
    }
}

/// Copies the header of the request in `buffer`; `None` if it holds none.
fn pending(buffer: CommBuffer, memory: &dyn SystemMemory) -> Result<Option<Header>, Refusal> {
    if let Some(mailbox) = buffer.mailbox {
        let mut valid = [0];
        read(memory, mailbox.saturating_add(VALID_OFFSET as u64), &mut valid)?;
        if valid == [0] {
            return Ok(None);
        }
    }
    let mut bytes = [0; MAX_HEADER_LEN];
    let len = usize::try_from(buffer.region.len()).map_or(MAX_HEADER_LEN, |len| len.min(MAX_HEADER_LEN));
    let copy = bytes.get_mut(..len).unwrap_or_default();
    read(memory, buffer.region.start(), copy)?;
    let header = Header::parse(copy);
    if buffer.mailbox.is_some() {
        return Ok(Some(header?));
    }
    Ok(header
        .ok()
        .filter(|header| header.recipient() != Guid::ZERO && header.message_len() > 0))
}

/// Calls the handlers of the request's GUID until one ends the request. `None` if there are none.
fn dispatch(handlers: &mut [Registration<'_>], request: &mut Request<'_>) -> Option<EfiStatus> {
    let mut failure = None;
    for (guid, handler) in handlers {
        if *guid == request.recipient() {
            match handler.handle(request) {
                Ok(()) => return Some(EfiStatus::SUCCESS),
                Err(EfiStatus::INTERRUPT_PENDING) => return Some(EfiStatus::INTERRUPT_PENDING),
                // A handler that fails with `EFI_SUCCESS` has failed, too.
                Err(EfiStatus::SUCCESS) => failure = Some(EfiStatus::ABORTED),
                Err(status) => failure = Some(status),
            }
        }
    }
    failure
}

/// Writes the result fields, and `IsCommBufferValid` last: when that changes, the result is
/// complete.
fn complete(memory: &mut dyn SystemMemory, mailbox: u64, image: &MailboxImage) -> Result<(), Refusal> {
    let (_, result) = image.as_bytes().split_at(RESULT_OFFSET);
    write(memory, mailbox.saturating_add(RESULT_OFFSET as u64), result)?;
    write(memory, mailbox.saturating_add(VALID_OFFSET as u64), &[0])
}

fn read(memory: &dyn SystemMemory, address: u64, out: &mut [u8]) -> Result<(), Refusal> {
    let len = out.len();
    if len == 0 || memory.read(address, out) {
        Ok(())
    } else {
        Err(Refusal::Inaccessible { address, len })
    }
}

fn write(memory: &mut dyn SystemMemory, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.is_empty() || memory.write(address, bytes) {
        Ok(())
    } else {
        Err(Refusal::Inaccessible {
            address,
            len: bytes.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::Echo;
    use mm_wire::guid;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;

    const BASE: u64 = 0x10_0000;
    const LEN: u64 = 0x400;
    const MAILBOX: u64 = BASE + 0x600;
    const OTHER: Guid = guid!("11111111-2222-3333-4444-555555555555");
    const MMI: Mmi = Mmi {
        command: 0xff,
        data: 0x5a,
    };

    /// 2 KiB of memory at [`BASE`], and no other memory.
    #[derive(Clone)]
    struct Memory {
        bytes: Vec<u8>,
        /// What was written, in order: offset from [`BASE`], length.
        writes: Vec<(usize, usize)>,
        /// From this offset on writes fail.
        read_only: core::ops::Range<u64>,
    }

    impl Memory {
        fn new() -> Self {
            Self {
                bytes: vec![0xee; 0x800],
                writes: vec![],
                read_only: 0..0,
            }
        }

        fn put(&mut self, address: u64, bytes: &[u8]) -> &mut Self {
            let at = usize::try_from(address - BASE).unwrap();
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            self
        }

        fn get(&self, address: u64, len: usize) -> &[u8] {
            let at = usize::try_from(address - BASE).unwrap();
            &self.bytes[at..at + len]
        }

        fn request(&mut self, format: HeaderFormat, recipient: Guid, message: &[u8]) -> &mut Self {
            let header = Header::new(format, recipient, message.len() as u64).unwrap();
            self.put(BASE, header.encode().as_ref())
                .put(BASE + format.header_len() as u64, message)
                .put(MAILBOX, MailboxImage::armed().as_bytes())
        }

        fn mailbox(&self) -> MailboxImage {
            zerocopy::FromBytes::read_from_bytes(self.get(MAILBOX, 24)).unwrap()
        }
    }

    impl SystemMemory for Memory {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let from = address
                .checked_sub(BASE)
                .and_then(|at| self.bytes.get(usize::try_from(at).ok()?..)?.get(..out.len()));
            from.map(|from| out.copy_from_slice(from)).is_some()
        }

        fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
            if self.read_only.contains(&address) || !self.read(address, &mut vec![0; bytes.len()]) {
                return false;
            }
            self.put(address, bytes);
            self.writes
                .push((usize::try_from(address - BASE).unwrap(), bytes.len()));
            true
        }
    }

    fn buffer(mailbox: Option<u64>) -> CommBuffer {
        CommBuffer {
            region: AddressRange::new(BASE, LEN).unwrap(),
            mailbox,
        }
    }

    /// One MMI into a core with one buffer; also checks that the scratch memory is wiped.
    fn enter(memory: &mut Memory, mailbox: Option<u64>, handlers: &mut [Registration<'_>]) -> Outcome {
        let buffers = [buffer(mailbox)];
        let mmram = [AddressRange::new(0xa_0000, 0x2_0000).unwrap()];
        let mut scratch = vec![0; 0x400];
        let mut core = MmCore::new(&mmram, &buffers, &mut scratch).unwrap();
        let visit = core.enter(memory, MMI, handlers, &mut []);
        assert!(
            scratch.iter().all(|byte| *byte == 0),
            "the scratch memory is not wiped"
        );
        let [outcome] = visit.outcomes() else {
            panic!("one buffer, one outcome")
        };
        *outcome
    }

    fn answering(response: &'static [u8]) -> impl FnMut(&mut Request<'_>) -> Result<(), EfiStatus> {
        move |request| {
            request.respond(response).unwrap();
            Ok(())
        }
    }

    #[test]
    fn response_is_behind_the_header_and_its_result_in_the_mailbox() {
        for format in [HeaderFormat::V1, HeaderFormat::V3] {
            let header_len = format.header_len();
            for response in [b"".as_slice(), b"short", b"longer than the request"] {
                let mut memory = Memory::new();
                memory.request(format, OTHER, b"a request");
                let before = memory.clone();
                let mut seen = vec![];
                let mut handler = |request: &mut Request<'_>| {
                    seen.extend_from_slice(request.message());
                    assert_eq!((request.recipient(), request.mmi()), (OTHER, MMI));
                    assert_eq!(request.capacity(), 0x400 - header_len);
                    answering(response)(request)
                };
                let outcome = enter(&mut memory, Some(MAILBOX), &mut [(OTHER, &mut handler)]);
                assert_eq!(seen, b"a request");
                assert_eq!(
                    outcome,
                    Outcome::Dispatched {
                        recipient: OTHER,
                        request_len: 9,
                        response_len: response.len(),
                        status: EfiStatus::SUCCESS
                    }
                );
                let total = (header_len + response.len()) as u64;
                assert_eq!(
                    memory.mailbox(),
                    MailboxImage::answered(EfiStatus::SUCCESS, total)
                );
                let mut expected = before.bytes;
                expected[header_len..header_len + response.len()].copy_from_slice(response);
                assert_eq!(memory.bytes[..0x600], expected[..0x600]);
                // The response, the mailbox's result, and last IsCommBufferValid.
                let mut writes = vec![(header_len, response.len()), (0x608, 16), (0x600, 1)];
                writes.retain(|(_, len)| *len > 0);
                assert_eq!(memory.writes, writes);
            }
        }
    }

    #[test]
    fn any_mailbox_value_but_zero_is_a_request() {
        let mut memory = Memory::new();
        memory
            .request(HeaderFormat::V1, Echo::GUID, b"x")
            .put(MAILBOX, &[0]);
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(outcome, Outcome::NoRequest);
        assert!(memory.writes.is_empty());

        memory.put(MAILBOX, &[0x80]);
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(outcome.response(), Some(EfiStatus::SUCCESS));
    }

    #[test]
    fn without_handler_only_the_mailbox_changes() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V3, OTHER, b"1234");
        let before = memory.clone();
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(
            outcome,
            Outcome::NoHandler {
                recipient: OTHER,
                request_len: 4
            }
        );
        assert_eq!(memory.mailbox(), MailboxImage::answered(EfiStatus::NOT_FOUND, 60));
        assert_eq!(memory.bytes[..0x600], before.bytes[..0x600]);
    }

    #[test]
    fn handler_that_fails_with_success_has_failed() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, OTHER, b"request");
        let mut handler = |_: &mut Request<'_>| Err(EfiStatus::SUCCESS);
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(OTHER, &mut handler)]);
        assert_eq!(outcome.response(), Some(EfiStatus::NOT_FOUND));
        assert_eq!(memory.mailbox().return_status(), EfiStatus::NOT_FOUND);
    }

    #[test]
    fn first_handler_that_succeeds_ends_the_request() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, OTHER, b"1234");
        let mut fails = |request: &mut Request<'_>| {
            request.message_mut()[0] = b'!';
            Err(EfiStatus::DEVICE_ERROR)
        };
        let mut never = |_: &mut Request<'_>| panic!("called after a success");
        let outcome = enter(
            &mut memory,
            Some(MAILBOX),
            &mut [(OTHER, &mut fails), (OTHER, &mut Echo), (OTHER, &mut never)],
        );
        assert_eq!(outcome.response(), Some(EfiStatus::SUCCESS));
        assert_eq!(memory.get(BASE + 24, 4), b"!234");

        memory.request(HeaderFormat::V1, OTHER, b"1234");
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(OTHER, &mut fails)]);
        assert_eq!(
            outcome,
            Outcome::Dispatched {
                recipient: OTHER,
                request_len: 4,
                response_len: 4,
                status: EfiStatus::DEVICE_ERROR
            }
        );
        assert_eq!(memory.mailbox(), MailboxImage::answered(EfiStatus::NOT_FOUND, 28));
        assert_eq!(memory.get(BASE + 24, 4), b"!234");
    }

    /// `MmiManage` in edk2's StandaloneMmPkg/Core/Mmi.c calls no other handler then.
    #[test]
    fn handler_whose_interrupt_is_pending_ends_the_request() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, OTHER, b"1234");
        let mut pending = |_: &mut Request<'_>| Err(EfiStatus::INTERRUPT_PENDING);
        let mut never = |_: &mut Request<'_>| panic!("called after EFI_INTERRUPT_PENDING");
        let outcome = enter(
            &mut memory,
            Some(MAILBOX),
            &mut [(OTHER, &mut pending), (OTHER, &mut never)],
        );
        assert_eq!(
            outcome,
            Outcome::Dispatched {
                recipient: OTHER,
                request_len: 4,
                response_len: 4,
                status: EfiStatus::INTERRUPT_PENDING
            }
        );
        assert_eq!(memory.mailbox(), MailboxImage::answered(EfiStatus::NOT_FOUND, 28));
    }

    #[test]
    fn request_may_fill_the_region_but_not_exceed_it() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, Echo::GUID, &[7; 0x400 - 24]);
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(outcome.response(), Some(EfiStatus::SUCCESS));

        memory
            .put(BASE + LENGTH_OFFSET as u64, &(LEN - 23).to_le_bytes())
            .put(MAILBOX, MailboxImage::armed().as_bytes());
        memory.writes.clear();
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(
            outcome,
            Outcome::Refused(Refusal::TooLarge {
                claimed: LEN + 1,
                region: LEN
            })
        );
        assert!(memory.writes.is_empty());
        assert_eq!(memory.mailbox(), MailboxImage::armed());

        memory.put(BASE + LENGTH_OFFSET as u64, &u64::MAX.to_le_bytes());
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        assert_eq!(
            outcome,
            Outcome::Refused(Refusal::Header(HeaderError::LengthOverflows {
                claimed: u64::MAX
            }))
        );
        assert_eq!(memory.mailbox(), MailboxImage::armed());
    }

    #[test]
    fn without_mailbox_and_handler_nothing_is_written() {
        for format in [HeaderFormat::V1, HeaderFormat::V3] {
            let mut memory = Memory::new();
            memory.request(format, OTHER, b"1234");
            let outcome = enter(&mut memory, None, &mut [(Echo::GUID, &mut Echo)]);
            assert_eq!(outcome.response(), Some(EfiStatus::NOT_FOUND));
            assert_eq!(memory.writes, []);
        }
    }

    #[test]
    fn without_mailbox_buffer_size_is_written_for_a_longer_response_only() {
        for (request, writes) in [
            (b"12345".as_slice(), vec![(56, 6), (16, 8), (48, 8)]),
            (b"123456", vec![(56, 6), (48, 8)]),
            (b"1234567", vec![(56, 6), (48, 8)]),
        ] {
            let mut memory = Memory::new();
            memory.request(HeaderFormat::V3, OTHER, request);
            enter(&mut memory, None, &mut [(OTHER, &mut answering(b"answer"))]);
            assert_eq!(memory.writes, writes);
        }
    }

    #[test]
    fn without_mailbox_the_header_has_the_responses_length() {
        // The field, and its value after a response of six bytes; for a v3 header also BufferSize.
        let cases: [(_, &[u8], _); 3] = [
            (HeaderFormat::V1, b"1234", [(16, 6_u64), (16, 6)]),
            (HeaderFormat::V3, b"1234", [(16, 62), (48, 6)]),
            (HeaderFormat::V3, b"12345678", [(16, 64), (48, 6)]),
        ];
        for (format, request, fields) in cases {
            let mut memory = Memory::new();
            memory.request(format, OTHER, request);
            let outcome = enter(&mut memory, None, &mut [(OTHER, &mut answering(b"answer"))]);
            assert_eq!(outcome.response(), Some(EfiStatus::SUCCESS));
            assert_eq!(memory.get(BASE + format.header_len() as u64, 6), b"answer");
            for (offset, value) in fields {
                assert_eq!(
                    memory.get(BASE + offset, 8),
                    value.to_le_bytes(),
                    "{format:?} at {offset}"
                );
            }
            assert_eq!(memory.mailbox(), MailboxImage::armed());
        }
    }

    #[test]
    fn without_mailbox_wiped_or_damaged_header_is_not_a_request() {
        for (recipient, length) in [(Guid::ZERO, 4u64), (OTHER, 0), (OTHER, u64::MAX)] {
            let mut memory = Memory::new();
            memory
                .put(BASE, &recipient.to_bytes())
                .put(BASE + LENGTH_OFFSET as u64, &length.to_le_bytes());
            let outcome = enter(&mut memory, None, &mut [(recipient, &mut Echo)]);
            assert_eq!(outcome, Outcome::NoRequest);
            assert!(memory.writes.is_empty());
        }
    }

    #[test]
    fn memory_that_mm_cannot_access_is_reported_and_the_request_stays_pending() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, Echo::GUID, b"1234");
        memory.read_only = BASE..BASE + LEN;
        let outcome = enter(&mut memory, Some(MAILBOX), &mut [(Echo::GUID, &mut Echo)]);
        let inaccessible = Refusal::Inaccessible {
            address: BASE + 24,
            len: 4,
        };
        assert_eq!(outcome, Outcome::Refused(inaccessible));
        assert_eq!(memory.mailbox(), MailboxImage::armed());

        let nowhere = BASE + 0x1_0000;
        let outcome = enter(&mut memory, Some(nowhere), &mut []);
        let inaccessible = Refusal::Inaccessible {
            address: nowhere,
            len: 1,
        };
        assert_eq!(outcome, Outcome::Refused(inaccessible));
    }

    /// Memory whose owner rewrites bytes as soon as MM has read them.
    struct Racing(RefCell<Memory>);

    impl SystemMemory for Racing {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let mut memory = self.0.borrow_mut();
            let read = memory.read(address, out);
            let header = Header::new(HeaderFormat::V1, OTHER, u64::from(u16::MAX)).unwrap();
            memory.put(BASE, header.encode().as_ref());
            if address >= BASE + 24 {
                memory.put(address, &vec![b'!'; out.len()]);
            }
            read
        }

        fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
            self.0.get_mut().write(address, bytes)
        }
    }

    #[test]
    fn only_checked_copies_are_used() {
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, Echo::GUID, b"1234");
        let mut racing = Racing(RefCell::new(memory));
        let buffers = [buffer(None)];
        let mmram = [AddressRange::new(0xa_0000, 0x2_0000).unwrap()];
        let mut scratch = [0; 0x400];
        let mut core = MmCore::new(&mmram, &buffers, &mut scratch).unwrap();
        let mut handler = |request: &mut Request<'_>| {
            assert_eq!(request.message(), b"1234");
            Ok(())
        };
        let visit = core.enter(&mut racing, MMI, &mut [(Echo::GUID, &mut handler)], &mut []);
        assert_eq!(visit.outcomes()[0].response(), Some(EfiStatus::SUCCESS));
        assert_eq!(racing.0.borrow().get(BASE + 24, 4), b"1234");
    }

    #[test]
    fn each_buffer_is_served_then_the_root_handlers_run() {
        let second = CommBuffer {
            region: AddressRange::new(BASE + 0x400, 0x100).unwrap(),
            mailbox: None,
        };
        let mut memory = Memory::new();
        memory.request(HeaderFormat::V1, OTHER, b"1234");
        let header = Header::new(HeaderFormat::V1, Echo::GUID, 1).unwrap();
        memory.put(BASE + 0x400, header.encode().as_ref());
        let buffers = [buffer(Some(MAILBOX)), second];
        let mmram = [AddressRange::new(0xa_0000, 0x2_0000).unwrap()];
        let mut scratch = [0; 0x400];
        let mut core = MmCore::new(&mmram, &buffers, &mut scratch).unwrap();

        let calls = RefCell::new(vec![]);
        let mut handler = |_: &mut Request<'_>| {
            calls.borrow_mut().push("handler");
            Ok(())
        };
        let mut root = |mmi: Mmi| {
            assert_eq!(mmi, MMI);
            calls.borrow_mut().push("root");
        };
        let visit = core.enter(
            &mut memory,
            MMI,
            &mut [(OTHER, &mut handler), (Echo::GUID, &mut Echo)],
            &mut [&mut root],
        );
        let answers: Vec<_> = visit.outcomes().iter().map(Outcome::response).collect();
        assert_eq!(answers, [Some(EfiStatus::SUCCESS); 2]);
        assert_eq!(*calls.borrow(), ["handler", "root"]);
    }

    proptest! {
        #[test]
        fn no_header_and_no_handler_reach_memory_outside_region_and_mailbox(
            noise in prop::collection::vec(any::<u8>(), 56),
            v3 in any::<bool>(),
            length in prop_oneof![0..0x500u64, any::<u64>()],
            response_len in 0..0x500usize,
            with_mailbox in any::<bool>(),
        ) {
            let mut memory = Memory::new();
            memory.put(BASE, &noise).put(BASE + LENGTH_OFFSET as u64, &length.to_le_bytes());
            if v3 {
                memory.put(BASE, &mm_wire::header::V3_MARKER.to_bytes());
            }
            let recipient = Header::parse(memory.get(BASE, 56)).map_or(OTHER, |header| header.recipient());
            memory.put(MAILBOX, &[1]);
            let before = memory.clone();
            let mut handler = |request: &mut Request<'_>| {
                let _ = request.set_len(response_len);
                request.message_mut().fill(0x77);
                Ok(())
            };
            let mailbox = with_mailbox.then_some(MAILBOX);
            let outcome = enter(&mut memory, mailbox, &mut [(recipient, &mut handler)]);

            prop_assert_eq!(&memory.bytes[0x400..0x600], &before.bytes[0x400..0x600]);
            prop_assert_eq!(&memory.bytes[0x618..], &before.bytes[0x618..]);
            if with_mailbox {
                let header_len = if v3 { 56 } else { 24 };
                prop_assert_eq!(&memory.bytes[..header_len], &before.bytes[..header_len]);
                prop_assert_eq!(memory.mailbox().is_pending(), outcome.response().is_none());
                let fits = memory.mailbox().return_buffer_size() <= LEN;
                prop_assert!(fits || outcome.response().is_none());
            } else {
                prop_assert_eq!(&memory.bytes[0x600..], &before.bytes[0x600..]);
            }
            if outcome.response().is_none() {
                prop_assert!(memory.writes.is_empty());
            }
        }
    }
}
