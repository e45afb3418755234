//! Calls through PI's communication protocols, as a driver in C makes them: what is checked, what the caller gets,
//! and what is in its buffer afterwards. MM is a closure that may also wipe the buffer, as a transaction does if the
//! caller's buffer is the comm buffer.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use mm_comm::SharedRegion;
use mm_comm::c_request::{
    Call, Communication, Communication2, Communication3, Driver, Interfaces, Longest, NoResponse, Request,
    RequestError,
};
use mm_wire::header::V3_MARKER;
use mm_wire::{EfiStatus, Guid, Header, HeaderError, HeaderFormat, ResponseLength, guid};
use r_efi::efi;

const RECIPIENT: Guid = guid!("8d2a4c0e-9f5b-4f0a-8a35-1f6b3e0c7d21");
/// The largest buffer is 124 bytes with either header.
const LONGEST: Longest = Longest { v1: 100, v3: 68 };
const LARGEST: usize = 124;
const INVALID: EfiStatus = EfiStatus::INVALID_PARAMETER;
const BAD_SIZE: EfiStatus = EfiStatus::BAD_BUFFER_SIZE;

type Response = Result<(Vec<u8>, Option<ResponseLength>), NoResponse>;

/// A driver that gives each request the same response.
struct Double {
    response: Response,
    one_to_one: bool,
    /// The caller's buffer, if it is the comm buffer, which a transaction wipes.
    wipes: Option<(*mut u8, usize)>,
    /// Message and room of the last request.
    request: RefCell<Option<(Vec<u8>, usize)>>,
    refused: Cell<Option<RequestError>>,
}

impl Driver for Double {
    fn serve(&self, call: Call<'_>) -> efi::Status {
        call.serve(
            self.one_to_one,
            |given| {
                let request = Request::check(given, LONGEST)?;
                let mut message = vec![0; request.message_len()];
                request.copy_message(&mut message)?;
                if let Some((base, len)) = self.wipes {
                    // SAFETY: the test's buffer, which nothing refers to during the call.
                    let region = unsafe { SharedRegion::new(base, len) }.unwrap();
                    assert!(region.wipe(0, len));
                }
                let response = match &self.response {
                    Ok((response, in_header)) => Ok((response.as_slice(), *in_header)),
                    Err(error) => Err(*error),
                };
                let reply = request.reply(&message, LONGEST, response);
                *self.request.borrow_mut() = Some((message, request.room()));
                reply
            },
            |error| self.refused.set(Some(*error)),
        )
    }
}

/// Which protocol is called. The first has no physical address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    One,
    Two,
    Three,
}

/// A call with usual arguments, which a test changes.
struct Caller {
    protocol: Protocol,
    buffer: Vec<u8>,
    comm_size: Option<usize>,
    response: Response,
    wipes: bool,
}

/// What came of a call.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: efi::Status,
    comm_size: Option<usize>,
    error: Option<RequestError>,
    /// Message and room, if the request reached MM.
    request: Option<(Vec<u8>, usize)>,
}

fn caller(buffer: Vec<u8>) -> Caller {
    Caller {
        protocol: Protocol::Two,
        comm_size: Some(buffer.len()),
        buffer,
        response: Ok((vec![], None)),
        wipes: false,
    }
}

impl Caller {
    fn of_size(self, comm_size: usize) -> Self {
        Self {
            comm_size: Some(comm_size),
            ..self
        }
    }

    fn responds(self, response: Response) -> Self {
        Self { response, ..self }
    }

    fn call(&mut self) -> Outcome {
        let at = self.buffer.as_mut_ptr();
        let wipes = self.wipes.then_some((at, self.buffer.len()));
        self.call_at(at.cast(), at.cast(), true, wipes)
    }

    fn call_at(
        &mut self,
        physical: *mut c_void,
        virt: *mut c_void,
        one_to_one: bool,
        wipes: Option<(*mut u8, usize)>,
    ) -> Outcome {
        let block = Box::into_raw(Box::new(Interfaces::new(Double {
            response: self.response.clone(),
            one_to_one,
            wipes,
            request: RefCell::default(),
            refused: Cell::new(None),
        })));
        // SAFETY: the block is freed at the end of this function, after the last call.
        let [(_, one), (_, two), (_, three)] = unsafe { Interfaces::to_install(block) };
        let size = self.comm_size.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let status = match self.protocol {
            Protocol::One => {
                // SAFETY: an interface of the block.
                let protocol = unsafe { one.cast::<Communication>().read() };
                // SAFETY: the buffer has as many bytes as CommSize and the header count, and
                // nothing refers to it during the call.
                unsafe { (protocol.communicate)(one.cast(), virt, size) }
            }
            Protocol::Two => {
                // SAFETY: an interface of the block.
                let protocol = unsafe { two.cast::<Communication2>().read() };
                // SAFETY: the same as for the first protocol.
                unsafe { (protocol.communicate)(two.cast(), physical, virt, size) }
            }
            Protocol::Three => {
                // SAFETY: an interface of the block.
                let protocol = unsafe { three.cast::<Communication3>().read() };
                // SAFETY: the same as for the first protocol.
                unsafe { (protocol.communicate)(three.cast(), physical, virt) }
            }
        };
        // SAFETY: it came from a box, and nothing refers to it any more.
        let block = unsafe { Box::from_raw(block) };
        Outcome {
            status,
            comm_size: self.comm_size,
            error: block.driver().refused.get(),
            request: block.driver().request.take(),
        }
    }
}

fn native(status: EfiStatus) -> efi::Status {
    efi::Status::from_usize(status.to_native())
}

/// The message of `len` bytes in [`v1`] and [`v3`].
fn message(len: usize) -> Vec<u8> {
    (1..=len).map(|byte| u8::try_from(byte).unwrap()).collect()
}

/// A buffer with a v1 header that claims `claimed` bytes, and room for `len`.
fn v1(claimed: u64, len: usize) -> Vec<u8> {
    [&RECIPIENT.to_bytes()[..], &claimed.to_le_bytes(), &message(len)].concat()
}

/// A buffer with a v3 header that claims `claimed` bytes, `message_size` of them as the message, and room for `len`.
fn v3(claimed: u64, message_size: u64, len: usize) -> Vec<u8> {
    let header = Header::new(HeaderFormat::V3, RECIPIENT, claimed).unwrap();
    let header = header.with_message_size(message_size).encode();
    [header.as_ref(), &message(len)].concat()
}

#[test]
fn response_is_behind_the_callers_header() {
    for (before, header_len) in [(v1(8, 16), 24), (v3(8, 8, 16), 56)] {
        for protocol in [Protocol::One, Protocol::Two] {
            for len in [0, 7, 12, 16] {
                let response = vec![0xa5; len];
                let mut caller = caller(before.clone()).responds(Ok((response.clone(), None)));
                caller.protocol = protocol;
                let outcome = caller.call();
                assert_eq!(outcome.status, efi::Status::SUCCESS, "{protocol:?}");
                assert_eq!(outcome.comm_size, Some(header_len + len));
                assert_eq!(outcome.request, Some((message(8), 16)));
                assert_eq!(outcome.error, None);
                let (header, rest) = before.split_at(header_len);
                assert_eq!(caller.buffer, [header, &response, &rest[len..]].concat());
            }
        }
    }
}

#[test]
fn response_that_does_not_fit_gets_the_needed_size_and_changes_nothing() {
    for (before, header_len) in [(v1(16, 16), 24), (v3(16, 16, 16), 56)] {
        for response in [Ok((vec![0xa5; 17], None)), Err(NoResponse::TooLong(17))] {
            let mut caller = caller(before.clone()).responds(response);
            caller.wipes = true;
            let outcome = caller.call();
            assert_eq!(outcome.status, native(EfiStatus::BUFFER_TOO_SMALL));
            assert_eq!(outcome.comm_size, Some(header_len + 17));
            let error = RequestError::ResponseTooLong { needed: 17, room: 16 };
            assert_eq!(outcome.error, Some(error));
            assert_eq!(caller.buffer, before);
        }
    }
}

#[test]
fn comm_size_that_mm_does_not_take_is_refused_with_the_largest() {
    for size in [0, LARGEST + 1, usize::MAX] {
        let outcome = caller(v1(8, 200)).of_size(size).call();
        assert_eq!(outcome.status, native(BAD_SIZE), "{size}");
        assert_eq!(outcome.comm_size, Some(LARGEST));
        let error = RequestError::CommSize {
            size,
            largest: LARGEST,
        };
        assert_eq!(outcome.error, Some(error));
        assert_eq!(outcome.request, None);
    }
    for size in [1, 23] {
        let outcome = caller(v1(0, 200)).of_size(size).call();
        assert_eq!(outcome.status, native(INVALID), "{size}");
        assert_eq!(outcome.comm_size, Some(size));
        assert_eq!(outcome.error, Some(RequestError::BelowHeader { size }));
    }
    for (size, claimed) in [(24, 0), (25, 0), (LARGEST, 100)] {
        let outcome = caller(v1(claimed, 200)).of_size(size).call();
        assert_eq!(outcome.status, efi::Status::SUCCESS, "{size}");
        let len = usize::try_from(claimed).unwrap();
        assert_eq!(outcome.request, Some((message(len), size - 24)));
    }
}

#[test]
fn message_that_is_too_long_for_mm_gets_the_maximum_in_size_and_header() {
    let cases = [
        (v1(101, 101), 101, 101, 100, 16),
        (v1(u64::MAX, 100), u64::MAX, u64::MAX, 100, 16),
        (v3(69, 4, 68), 69, 4, 68, 48),
        // Longer than MM takes, and longer than its transaction.
        (v3(69, 70, 68), 69, 70, 68, 48),
    ];
    for (before, claimed, message_size, longest, field) in cases {
        let mut caller = caller(before.clone()).of_size(LARGEST);
        let outcome = caller.call();
        assert_eq!(outcome.status, native(BAD_SIZE), "{claimed}");
        assert_eq!(outcome.comm_size, Some(LARGEST));
        let error = RequestError::MessageLength {
            message_size,
            claimed,
            longest,
        };
        assert_eq!(outcome.error, Some(error));
        let mut expected = before;
        expected[field..field + 8].copy_from_slice(&(longest as u64).to_le_bytes());
        assert_eq!(caller.buffer, expected);
    }
    for buffer in [v1(100, 100), v3(68, 68, 68)] {
        assert_eq!(caller(buffer).call().status, efi::Status::SUCCESS);
    }
}

#[test]
fn message_beyond_its_transaction_or_comm_size_is_refused_and_nothing_changes() {
    let cases = [
        (v1(8, 16), 31, 8, 8),
        (v3(8, 8, 16), 63, 8, 8),
        (v3(8, 9, 16), 72, 8, 9),
    ];
    for (before, size, claimed, message_size) in cases {
        let mut caller = caller(before.clone()).of_size(size);
        let outcome = caller.call();
        assert_eq!(outcome.status, native(INVALID), "{size}");
        assert_eq!(outcome.comm_size, Some(size));
        let error = RequestError::BufferSize {
            message_size,
            claimed,
            comm_size: Some(size),
        };
        assert_eq!(outcome.error, Some(error));
        assert_eq!(caller.buffer, before);
    }
    for (buffer, size) in [(v1(8, 16), 32), (v3(8, 8, 16), 64), (v3(8, 7, 16), 64)] {
        assert_eq!(caller(buffer).of_size(size).call().status, efi::Status::SUCCESS);
    }
}

#[test]
fn header_that_ends_too_early_is_refused() {
    let outcome = caller(v3(0, 0, 0)).of_size(55).call();
    assert_eq!(outcome.status, native(INVALID));
    let truncated = HeaderError::Truncated {
        needed: 56,
        available: 55,
    };
    assert_eq!(outcome.error, Some(RequestError::Header(truncated)));
    let mut short = v3(0, 0, 0);
    short[16..24].copy_from_slice(&55_u64.to_le_bytes());
    let outcome = caller(short).call();
    assert_eq!(outcome.status, native(INVALID));
    assert!(matches!(outcome.error, Some(RequestError::Header(_))));
}

#[test]
fn without_comm_size_the_header_counts_the_bytes() {
    for (before, room) in [(v1(8, 8), 8), (v3(8, 8, 8), 8)] {
        let mut caller = caller(before.clone()).responds(Ok((vec![0xa5; 3], None)));
        caller.comm_size = None;
        let outcome = caller.call();
        assert_eq!(outcome.status, efi::Status::SUCCESS);
        assert_eq!(outcome.comm_size, None);
        assert_eq!(outcome.request, Some((message(8), room)));
        let header_len = before.len() - 8;
        assert_eq!(caller.buffer[..header_len], before[..header_len]);
        assert_eq!(caller.buffer[header_len..], [0xa5, 0xa5, 0xa5, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn third_protocol_takes_v3_headers_only() {
    let mut third = caller(v3(8, 8, 8));
    third.protocol = Protocol::Three;
    let outcome = third.call();
    assert_eq!(outcome.status, efi::Status::SUCCESS);
    assert_eq!(outcome.request, Some((message(8), 8)));
    let mut third = caller(v1(8, 8));
    third.protocol = Protocol::Three;
    let outcome = third.call();
    assert_eq!(outcome.status, native(INVALID));
    assert_eq!(outcome.error, Some(RequestError::NotV3));
}

#[test]
fn addresses_are_not_null_and_equal_while_memory_is_mapped_one_to_one() {
    let mut buffer = v1(8, 8);
    let at: *mut c_void = buffer.as_mut_ptr().cast();
    let elsewhere = at.wrapping_byte_add(0x1000);
    let null = ptr::null_mut();
    let differ = |physical: *mut c_void, virt: *mut c_void| RequestError::Addresses {
        physical: physical.addr(),
        virt: virt.addr(),
    };
    for (physical, virt, one_to_one, error) in [
        (at, at, true, None),
        (at, at, false, None),
        (elsewhere, at, true, Some(differ(elsewhere, at))),
        (elsewhere, at, false, None),
        (null, at, true, Some(differ(null, at))),
        (null, at, false, Some(RequestError::NullBuffer)),
        (at, null, true, Some(differ(at, null))),
        (at, null, false, Some(RequestError::NullBuffer)),
        (null, null, true, Some(RequestError::NullBuffer)),
        (null, null, false, Some(RequestError::NullBuffer)),
    ] {
        let outcome = caller(v1(8, 8)).call_at(physical, virt, one_to_one, None);
        let status = error.map_or(efi::Status::SUCCESS, |_| native(INVALID));
        assert_eq!(
            (outcome.status, outcome.error),
            (status, error),
            "{physical:?} {virt:?} {one_to_one}"
        );
    }
    let mut first = caller(v1(8, 8));
    first.protocol = Protocol::One;
    let outcome = first.call_at(null, null, true, None);
    assert_eq!(outcome.error, Some(RequestError::NullBuffer));
}

#[test]
fn buffer_that_the_transaction_wiped_gets_its_content_back() {
    // The longest messages take more than one of the pieces that are compared and restored.
    let cases = [v1(0, 0), v1(8, 16), v1(100, 100), v3(8, 8, 16), v3(68, 60, 68)];
    for before in cases {
        let claimed = Header::parse(&before).unwrap().message_len();
        let claimed = usize::try_from(claimed).unwrap();
        let header_len = Header::parse(&before).unwrap().format().header_len();
        let mut failing = caller(before.clone()).responds(Err(NoResponse::Status(EfiStatus::DEVICE_ERROR)));
        failing.wipes = true;
        let outcome = failing.call();
        assert_eq!(outcome.status, native(EfiStatus::DEVICE_ERROR));
        assert_eq!(outcome.comm_size, Some(before.len()));
        assert_eq!(outcome.error, None);
        let end = header_len + claimed;
        assert_eq!(failing.buffer[..end], before[..end]);

        let mut succeeding = caller(before.clone()).responds(Ok((vec![0xa5; claimed], None)));
        succeeding.wipes = true;
        assert_eq!(succeeding.call().status, efi::Status::SUCCESS);
        assert_eq!(succeeding.buffer[..header_len], before[..header_len]);
        assert_eq!(succeeding.buffer[header_len..end], vec![0xa5; claimed]);
    }
}

#[test]
fn empty_request_that_mm_does_not_take_gets_the_maximum() {
    for (before, longest, field) in [(v1(0, 8), 100_u64, 16), (v3(0, 0, 8), 68, 48)] {
        let mut caller = caller(before.clone()).responds(Err(NoResponse::Empty));
        caller.wipes = true;
        let outcome = caller.call();
        assert_eq!(outcome.status, native(BAD_SIZE));
        assert_eq!(outcome.comm_size, Some(LARGEST));
        let mut header = before[..before.len() - 8].to_vec();
        header[field..field + 8].copy_from_slice(&longest.to_le_bytes());
        assert_eq!(caller.buffer[..header.len()], header);
    }
}

#[test]
fn only_a_length_that_the_buffer_has_is_passed_on_in_the_header() {
    let told = |len, value| {
        Some(ResponseLength {
            len,
            changed: Some((16, value)),
        })
    };
    let unchanged = Some(ResponseLength {
        len: 16,
        changed: None,
    });
    for (in_header, expected) in [
        (told(3, 3_u64), 3_u64),
        (told(16, 16), 16),
        (told(17, 17), 8),
        (unchanged, 8),
        (None, 8),
    ] {
        let mut caller = caller(v1(8, 16)).responds(Ok((vec![0xa5; 3], in_header)));
        assert_eq!(caller.call().status, efi::Status::SUCCESS);
        assert_eq!(caller.buffer[16..24], expected.to_le_bytes(), "{in_header:?}");
        assert_eq!(caller.buffer[24..28], [0xa5, 0xa5, 0xa5, 4]);
    }
}

#[test]
fn marker_alone_is_not_a_v3_header() {
    // CommSize ends behind the length of a v1 header.
    let mut buffer = V3_MARKER.to_bytes().to_vec();
    buffer.extend_from_slice(&64_u64.to_le_bytes());
    let outcome = caller(buffer).call();
    assert_eq!(outcome.status, native(INVALID));
    let truncated = HeaderError::Truncated {
        needed: 56,
        available: 24,
    };
    assert_eq!(outcome.error, Some(RequestError::Header(truncated)));
}

#[test]
fn each_function_of_the_interfaces_is_converted() {
    let driver = Double {
        response: Ok((vec![], None)),
        one_to_one: true,
        wipes: None,
        request: RefCell::default(),
        refused: Cell::new(None),
    };
    let block = Box::into_raw(Box::new(Interfaces::new(driver)));
    // SAFETY: the block is freed at the end of this function.
    let installed = unsafe { Interfaces::to_install(block) };
    let functions = || {
        installed.map(|(_, interface)| {
            // SAFETY: each interface is one pointer to a function.
            unsafe { interface.cast::<usize>().read() }
        })
    };
    let before = functions();
    let mut seen = vec![];
    let mut convert = |address| {
        seen.push(address);
        (address != before[1]).then_some(address + 0x1000)
    };
    // SAFETY: the block is valid, and no function is called any more.
    unsafe { Interfaces::convert(block, &mut convert) };
    assert_eq!(seen, before);
    assert_eq!(functions(), [before[0] + 0x1000, before[1], before[2] + 0x1000]);
    // SAFETY: it came from a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(block) });
}

#[test]
fn null_instead_of_the_interface_is_an_error() {
    let block = Box::into_raw(Box::new(Interfaces::new(Double {
        response: Ok((vec![], None)),
        one_to_one: true,
        wipes: None,
        request: RefCell::default(),
        refused: Cell::new(None),
    })));
    // SAFETY: the block is freed at the end of this function.
    let [(_, one), ..] = unsafe { Interfaces::to_install(block) };
    let mut buffer = v1(8, 8);
    let mut size = buffer.len();
    // SAFETY: an interface of the block.
    let protocol = unsafe { one.cast::<Communication>().read() };
    // SAFETY: null leads to no driver, which is what is tested.
    let status = unsafe { (protocol.communicate)(ptr::null(), buffer.as_mut_ptr().cast(), &raw mut size) };
    assert_eq!(status, efi::Status::INVALID_PARAMETER);
    // SAFETY: it came from a box, and nothing refers to it any more.
    drop(unsafe { Box::from_raw(block) });
}
