//! Drivers in C send through the client.

use super::{Seen, ensure_clean, pattern, up};
use crate::lab::{Abilities, CCall, CProtocol, CReply, Callback, Client, Lab, LogLevel, Setup};
use crate::mm;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use mm_wire::message::variable::{self, FunctionHeader, PayloadSize, function};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat};
use zerocopy::{FromBytes, IntoBytes};

scenarios! {
    c_call_returns_the_response: CONTROLLED_MM | PRODUCED_PROTOCOLS, "all three protocols carry a message and its response";
    c_call_has_room_for_a_longer_response: CONTROLLED_MM | PRODUCED_PROTOCOLS | LONGER_RESPONSES, "a CommSize above the message is room for the response, and becomes its size";
    c_call_with_a_shorter_response: CONTROLLED_MM | PRODUCED_PROTOCOLS, "CommSize is the length of a short response, and the header comes back as MM left it";
    c_call_without_room_is_refused: CONTROLLED_MM | PRODUCED_PROTOCOLS | LONGER_RESPONSES, "a response beyond the caller's buffer is not written, and CommSize becomes its size";
    c_call_of_the_variable_driver: VARIABLES | PRODUCED_PROTOCOLS, "a driver in C gets the variable service's payload size, like a component in Rust";
    variable_driver_finds_its_markers: CONTROLLED_MM | VARIABLES | PRODUCED_PROTOCOLS | V3_HEADERS | VARIABLE_DRIVER, "edk2's variable driver finds both markers, once the protocols work and MM's variable service responds";
    markers_are_installed_on_request_only: VARIABLES | PRODUCED_PROTOCOLS | VARIABLE_DRIVER, "a platform whose other drivers install the markers does not get them twice";
    producing_says_when_it_ends: VARIABLES | PRODUCED_PROTOCOLS | LOGS, "the log says that the protocols end with boot services, and who installs the markers of the variable service";
    c_null_buffer_is_refused: PRODUCED_PROTOCOLS, "a null buffer is INVALID_PARAMETER";
    c_addresses_must_agree: PRODUCED_PROTOCOLS, "physical and virtual address must be the same before the operating system takes over";
    c_comm_size_of_zero_tells_the_maximum: PRODUCED_PROTOCOLS, "a CommSize of zero is set to the largest buffer";
    c_comm_size_too_large_tells_the_maximum: PRODUCED_PROTOCOLS, "a CommSize that is too large is set to the largest buffer";
    c_comm_size_below_its_message_is_refused: PRODUCED_PROTOCOLS, "a CommSize below header and message is INVALID_PARAMETER";
    c_message_without_bytes_is_delivered: PRODUCED_PROTOCOLS | PORTS | MM, "a header without message bytes reaches its handler, as with edk2's drivers for x86";
    c_message_length_of_zero_tells_the_maximum: PRODUCED_PROTOCOLS | SECURE_CALLS, "a MessageLength of zero is set to the longest message, as by edk2's driver for Arm";
    c_message_length_too_large_tells_the_maximum: PRODUCED_PROTOCOLS, "a MessageLength that is too large, or overflows, is set to the longest message";
    c_v3_sizes_are_checked: PRODUCED_PROTOCOLS, "BufferSize covers header and message, MessageSize is not zero, the marker is there";
    c_refusals_raise_no_mmi: PRODUCED_PROTOCOLS | NO_HANDLER_STATUS, "refused requests of drivers in C do not enter MM";
    c_call_in_the_comm_buffer_itself: CONTROLLED_MM | PRODUCED_PROTOCOLS | LONGER_RESPONSES, "a driver may write its message into the comm buffer, as some of edk2's do";
    c_calls_in_the_comm_buffer_leave_the_header: CONTROLLED_MM | PRODUCED_PROTOCOLS | NO_HANDLER_STATUS, "a driver that wrote its header into the comm buffer finds it there after a call, and can call again";
    c_call_in_the_comm_buffer_keeps_a_refused_request: CONTROLLED_MM | PRODUCED_PROTOCOLS | NO_HANDLER_STATUS, "after an error the whole request is in the comm buffer as before";
    c_v3_message_size_reaches_mm: CONTROLLED_MM | PRODUCED_PROTOCOLS | LONGER_RESPONSES, "MM gets the caller's MessageSize";
    c_call_from_a_notification_waits_for_the_call_in_progress: CONTROLLED_MM | PRODUCED_PROTOCOLS | CALLBACKS, "a notification does not come in the middle of a call through the comm buffer that C drivers use";
    c_call_from_above_the_notifications_is_refused: CONTROLLED_MM | PRODUCED_PROTOCOLS | CALLBACKS, "a call above TPL_NOTIFY that interrupts another one is refused, and changes nothing";
    c_header_can_be_sent_again: CONTROLLED_MM | PRODUCED_PROTOCOLS | MAILBOX, "a header without CommSize can be used again and again, after responses of any length";
    c_header_comes_back_as_mm_left_it: CONTROLLED_MM | PRODUCED_PROTOCOLS | MAILBOX, "the caller sees a length that MM changed in the header, unless it exceeds the caller's buffer";
    c_status_without_error_bit_is_an_error: CONTROLLED_MM | PRODUCED_PROTOCOLS | MAILBOX, "a warning, or an error of a 32-bit MM core, is an EFI_ERROR to a driver in C";
    c_call_carries_mms_status: CONTROLLED_MM | PRODUCED_PROTOCOLS | MAILBOX, "the function returns MM's status, and the buffer does not change";
    c_call_reports_every_wrong_response: CONTROLLED_MM | PRODUCED_PROTOCOLS | MAILBOX, "a wrong response is PROTOCOL_ERROR in C, and the buffer does not change";
    c_call_during_a_call_is_refused: CONTROLLED_MM | PRODUCED_PROTOCOLS | CALLBACKS, "the comm buffer in use is not entered a second time";
    c_responses_are_those_of_rust: CONTROLLED_MM | PRODUCED_PROTOCOLS | LONGER_RESPONSES, "a consumer in C gets the same responses as one in Rust";
}

fn ready(lab: &Lab) -> Result<Client, String> {
    up(
        lab,
        &Setup {
            produced: Some(0),
            ..Setup::default()
        },
    )
}

const NO_HANDLER: Guid = super::refusals::NO_HANDLER;

/// A request as it is in memory, with `room` bytes behind it.
fn request(format: HeaderFormat, recipient: Guid, message: &[u8], room: usize) -> Vec<u8> {
    let transaction = match format {
        HeaderFormat::V1 => message.len(),
        // BufferSize covers the room, MessageSize the message.
        HeaderFormat::V3 => message.len() + room,
    };
    let mut bytes = Header::new(format, recipient, transaction as u64)
        .map(|header| header.encode().as_ref().to_vec())
        .unwrap_or_default();
    if format == HeaderFormat::V3 {
        put(&mut bytes, 48, message.len() as u64);
    }
    bytes.extend_from_slice(message);
    bytes.resize(bytes.len() + room, 0);
    bytes
}

/// Overwrites a 64-bit field.
fn put(bytes: &mut [u8], offset: usize, value: u64) {
    if let Some(field) = bytes.get_mut(offset..offset + 8) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn field(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

fn call(
    client: &Client,
    protocol: CProtocol,
    bytes: Vec<u8>,
    comm_size: Option<usize>,
) -> Result<CReply, String> {
    let call = CCall {
        protocol,
        bytes: Some(bytes),
        comm_size,
    };
    client
        .call_c(&call)
        .ok_or_else(|| format!("{protocol:?} is not installed"))
}

fn c_call_returns_the_response(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::ECHO, b"from C", 0);
    let v3 = request(HeaderFormat::V3, mm::ECHO, b"from C", 0);
    for (protocol, bytes, comm_size) in [
        (CProtocol::One, &v1, Some(30)),
        (CProtocol::One, &v1, None),
        (CProtocol::Two, &v1, Some(30)),
        (CProtocol::Two, &v1, None),
        (CProtocol::Three, &v3, None),
        (CProtocol::Two, &v3, Some(62)),
        (CProtocol::One, &v3, None),
    ] {
        let reply = call(&client, protocol, bytes.clone(), comm_size)?;
        ensure_eq!(reply.status, EfiStatus::SUCCESS);
        ensure!(&reply.bytes == bytes, "{protocol:?} returned {reply:02x?}");
        ensure_eq!(reply.comm_size, comm_size);
        ensure_clean(&client, 0)?;
    }
    ensure_eq!(client.mmis(), 7);
    Ok(())
}

fn c_call_has_room_for_a_longer_response(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(100), 200);
    let reply = call(&client, CProtocol::Two, v1.clone(), Some(v1.len()))?;
    ensure_eq!(reply.status, EfiStatus::SUCCESS);
    ensure_eq!(reply.comm_size, Some(124));
    ensure_eq!(reply.bytes.get(24..124), Some(pattern(100).as_slice()));
    // An MM core with a mailbox leaves the header alone; one without has to write the length there.
    let has_mailbox = lab.abilities().contains(Abilities::MAILBOX);
    ensure_eq!(field(&reply.bytes, 16), Some(if has_mailbox { 8 } else { 100 }));
    ensure!(
        reply.bytes.iter().skip(124).all(|byte| *byte == 0),
        "bytes behind the response were written"
    );
    // A v3 message is all that BufferSize covers, so that the handler sees the room, too.
    let v3 = request(HeaderFormat::V3, mm::ECHO, b"four", 60);
    let reply = call(&client, CProtocol::Three, v3.clone(), None)?;
    ensure_eq!(reply.status, EfiStatus::SUCCESS);
    let mut expected = v3;
    if !has_mailbox {
        put(&mut expected, 48, 64);
    }
    ensure!(
        reply.bytes == expected,
        "not the request came back, but {reply:02x?}"
    );
    Ok(())
}

fn c_call_with_a_shorter_response(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    // An MM core with a mailbox leaves the header alone; one without has to write the length there.
    let has_mailbox = lab.abilities().contains(Abilities::MAILBOX);
    for len in [0, 3] {
        let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(len), 0);
        let left = if has_mailbox { 8 } else { len as u64 };
        for comm_size in [Some(32), None] {
            let reply = call(&client, CProtocol::One, v1.clone(), comm_size)?;
            ensure_eq!(reply.status, EfiStatus::SUCCESS);
            ensure_eq!(reply.comm_size, comm_size.map(|_| 24 + len));
            ensure_eq!(reply.bytes.get(24..24 + len), Some(pattern(len).as_slice()));
            ensure_eq!(field(&reply.bytes, 16), Some(left));
        }

        let v3 = request(HeaderFormat::V3, mm::STRETCH, &mm::stretch(len), 0);
        for (protocol, comm_size) in [
            (CProtocol::Three, None),
            (CProtocol::Two, Some(64)),
            (CProtocol::One, None),
        ] {
            let reply = call(&client, protocol, v3.clone(), comm_size)?;
            ensure_eq!(reply.status, EfiStatus::SUCCESS);
            ensure_eq!(reply.comm_size, comm_size.map(|_| 56 + len));
            ensure_eq!(reply.bytes.get(56..56 + len), Some(pattern(len).as_slice()));
            if has_mailbox {
                ensure_eq!(reply.bytes.get(..56), v3.get(..56));
            }
        }
    }
    Ok(())
}

fn c_call_without_room_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(100), 91);
    let reply = call(&client, CProtocol::Two, v1.clone(), Some(v1.len()))?;
    ensure_eq!(reply.status, EfiStatus::BUFFER_TOO_SMALL);
    ensure_eq!(reply.comm_size, Some(124));
    ensure!(reply.bytes == v1, "the caller's buffer was written to");
    let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(9), 0);
    let reply = call(&client, CProtocol::One, v1.clone(), None)?;
    ensure_eq!(reply.status, EfiStatus::BUFFER_TOO_SMALL);
    ensure!(reply.bytes == v1, "the caller's buffer was written to");
    let v3 = request(HeaderFormat::V3, mm::STRETCH, &mm::stretch(9), 0);
    let reply = call(&client, CProtocol::Three, v3.clone(), None)?;
    ensure_eq!(reply.status, EfiStatus::BUFFER_TOO_SMALL);
    ensure!(reply.bytes == v3, "the caller's buffer was written to");
    ensure_clean(&client, 0)
}

fn c_call_of_the_variable_driver(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let mut message = FunctionHeader::new(function::GET_PAYLOAD_SIZE)
        .as_bytes()
        .to_vec();
    message.extend_from_slice(PayloadSize::default().as_bytes());
    let rust = client
        .communicate(0, &message, variable::GUID)
        .map_err(|failure| format!("{failure}"))?;
    for (protocol, format, comm_size) in [
        (CProtocol::One, HeaderFormat::V1, None),
        (CProtocol::Two, HeaderFormat::V1, Some(48)),
        (CProtocol::Three, HeaderFormat::V3, None),
    ] {
        if format == HeaderFormat::V3 && !lab.abilities().contains(Abilities::V3_HEADERS) {
            continue;
        }
        let bytes = request(format, variable::GUID, &message, 0);
        let reply = call(&client, protocol, bytes, comm_size)?;
        ensure_eq!(reply.status, EfiStatus::SUCCESS);
        let response = reply.bytes.get(format.header_len()..).unwrap_or_default();
        ensure_eq!(response, rust);
        let (header, size) =
            FunctionHeader::read_from_prefix(response).map_err(|error| format!("{error}"))?;
        ensure_eq!(header.return_status.get(), 0);
        let size = PayloadSize::read_from_bytes(size).map_err(|error| format!("{error}"))?;
        ensure!(size.size.get() > 0, "the payload size is zero");
    }
    Ok(())
}

fn variable_driver_finds_its_markers(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            produced: Some(0),
            variable_driver: true,
            variable_markers: true,
            ..Setup::default()
        },
    )?;
    let seen = client.variable_driver();
    let markers: Vec<Guid> = seen.iter().map(|(marker, _)| *marker).collect();
    ensure_eq!(markers, [variable::GUID, variable::WRITE_READY_GUID]);
    let reply = seen.into_iter().find_map(|(_, reply)| reply);
    let reply = reply.ok_or("the variable driver found no protocol")?;
    ensure_eq!(reply.status, EfiStatus::SUCCESS);
    // Its header is a v3 one, because protocol 3 is there.
    let size = field(&reply.bytes, HeaderFormat::V3.header_len() + 16);
    ensure!(size.is_some_and(|size| size > 0), "the payload size is {size:?}");
    Ok(())
}

fn markers_are_installed_on_request_only(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            produced: Some(0),
            variable_driver: true,
            ..Setup::default()
        },
    )?;
    ensure_eq!(client.variable_driver(), []);
    Ok(())
}

fn producing_says_when_it_ends(lab: &Lab) -> Seen {
    for variable_markers in [false, true] {
        let log = lab.with_log(LogLevel::Debug, &mut || {
            let setup = Setup {
                produced: Some(0),
                variable_markers,
                ..Setup::default()
            };
            let _ = lab.bring_up(&setup);
        });
        for needle in [
            "until ExitBootServices",
            "GetVariable",
            "runtime driver",
            match variable_markers {
                true => "its markers are installed",
                false => "with_variable_markers",
            },
        ] {
            ensure!(log.contains(needle), "nothing about {needle:?} in {log}");
        }
    }
    Ok(())
}

fn c_null_buffer_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for protocol in [CProtocol::One, CProtocol::Two, CProtocol::Three] {
        for comm_size in [None, Some(0), Some(100)] {
            let reply = client.call_c(&CCall {
                protocol,
                bytes: None,
                comm_size,
            });
            ensure_eq!(
                reply,
                Some(CReply {
                    status: EfiStatus::INVALID_PARAMETER,
                    bytes: Vec::new(),
                    comm_size
                })
            );
        }
    }
    ensure_eq!(client.mmis(), 0);
    Ok(())
}

/// Makes a call that must be refused, and compares all its results.
fn refused(
    client: &Client,
    protocol: CProtocol,
    bytes: &[u8],
    comm_size: Option<usize>,
    expected: CReply,
) -> Seen {
    let reply = call(client, protocol, bytes.to_vec(), comm_size)?;
    ensure!(
        reply == expected,
        "{protocol:?} with CommSize {comm_size:?} returned {reply:02x?}, not {expected:02x?}"
    );
    ensure_eq!(client.mmis(), 0);
    ensure_clean(client, 0)
}

fn unchanged(status: EfiStatus, bytes: &[u8], comm_size: Option<usize>) -> CReply {
    CReply {
        status,
        bytes: bytes.to_vec(),
        comm_size,
    }
}

fn c_addresses_must_agree(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"x", 40);
    let v3 = request(HeaderFormat::V3, NO_HANDLER, b"x", 40);
    let expected = |bytes| unchanged(EfiStatus::INVALID_PARAMETER, bytes, None);
    refused(&client, CProtocol::TwoApart, &v1, None, expected(&v1))?;
    refused(&client, CProtocol::ThreeApart, &v3, None, expected(&v3))
}

fn c_comm_size_of_zero_tells_the_maximum(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"x", 0);
    let largest = client.region(0).len();
    for protocol in [CProtocol::One, CProtocol::Two] {
        let expected = unchanged(EfiStatus::BAD_BUFFER_SIZE, &v1, Some(largest));
        refused(&client, protocol, &v1, Some(0), expected)?;
    }
    Ok(())
}

fn c_comm_size_too_large_tells_the_maximum(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"x", 0);
    let largest = client.region(0).len();
    for comm_size in [largest + 1, usize::MAX] {
        let expected = unchanged(EfiStatus::BAD_BUFFER_SIZE, &v1, Some(largest));
        refused(&client, CProtocol::Two, &v1, Some(comm_size), expected)?;
    }
    Ok(())
}

fn c_comm_size_below_its_message_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"message", 0);
    let v3 = request(HeaderFormat::V3, NO_HANDLER, b"message", 0);
    for (bytes, sizes) in [(&v1, [1, 23, 24, 30].as_slice()), (&v3, &[1, 23, 24, 55, 56, 62])] {
        for size in sizes {
            let bytes = bytes.get(..*size).unwrap_or_default();
            let expected = unchanged(EfiStatus::INVALID_PARAMETER, bytes, Some(*size));
            refused(&client, CProtocol::Two, bytes, Some(*size), expected)?;
        }
    }
    Ok(())
}

/// A request with this length field, and the same with the longest message's length in that field.
fn with_length(
    client: &Client,
    format: HeaderFormat,
    length: u64,
    buffer_size: Option<u64>,
) -> (Vec<u8>, Vec<u8>) {
    let (offset, header_len) = match format {
        HeaderFormat::V1 => (16, 24),
        HeaderFormat::V3 => (48, 56),
    };
    let mut bytes = request(format, NO_HANDLER, b"message", 0);
    put(&mut bytes, offset, length);
    if let Some(buffer_size) = buffer_size {
        put(&mut bytes, 16, buffer_size);
    }
    let mut told = bytes.clone();
    put(&mut told, offset, client.region(0).len() as u64 - header_len);
    (bytes, told)
}

fn c_message_without_bytes_is_delivered(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let empty = |format, recipient, room| {
        let mut bytes = request(format, recipient, &[], room);
        // A v1 header does not count the room behind it.
        bytes.truncate(format.header_len() + if format == HeaderFormat::V3 { room } else { 0 });
        bytes
    };
    let mut calls = [
        (CProtocol::One, HeaderFormat::V1, Some(24), 0),
        (CProtocol::Two, HeaderFormat::V1, Some(24), 0),
        (CProtocol::Two, HeaderFormat::V1, None, 0),
    ]
    .to_vec();
    if lab.abilities().contains(Abilities::V3_HEADERS) {
        // MessageSize is zero in all three; in the last one BufferSize counts 40 bytes, and MM gets
        // these.
        calls.push((CProtocol::Three, HeaderFormat::V3, None, 0));
        calls.push((CProtocol::Two, HeaderFormat::V3, Some(56), 0));
        calls.push((CProtocol::Three, HeaderFormat::V3, None, 40));
    }
    for (protocol, format, comm_size, room) in calls {
        let before = client.mmis();
        // The request reached MM: only MM knows whether there is a handler.
        let bytes = empty(format, NO_HANDLER, room);
        let reply = call(&client, protocol, bytes.clone(), comm_size)?;
        ensure_eq!(
            reply,
            unchanged(super::refusals::not_taken_status(lab), &bytes, comm_size)
        );
        if lab.abilities().contains(Abilities::CONTROLLED_MM) {
            let bytes = empty(format, mm::ECHO, room);
            let reply = call(&client, protocol, bytes.clone(), comm_size)?;
            ensure_eq!(reply, unchanged(EfiStatus::SUCCESS, &bytes, comm_size));
            ensure_eq!(client.mmis() - before, 2);
        }
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn c_message_length_of_zero_tells_the_maximum(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let largest = client.region(0).len();
    let (v1, told) = with_length(&client, HeaderFormat::V1, 0, None);
    let expected = |comm_size| unchanged(EfiStatus::BAD_BUFFER_SIZE, &told, comm_size);
    refused(&client, CProtocol::One, &v1, None, expected(None))?;
    refused(&client, CProtocol::Two, &v1, Some(31), expected(Some(largest)))?;
    let (v3, told) = with_length(&client, HeaderFormat::V3, 0, None);
    let expected = unchanged(EfiStatus::BAD_BUFFER_SIZE, &told, None);
    refused(&client, CProtocol::Three, &v3, None, expected)
}

fn c_message_length_too_large_tells_the_maximum(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let largest = client.region(0).len() as u64;
    for length in [largest - 23, largest, u64::MAX - 24, u64::MAX - 23, u64::MAX] {
        let (v1, told) = with_length(&client, HeaderFormat::V1, length, None);
        let expected = unchanged(EfiStatus::BAD_BUFFER_SIZE, &told, None);
        refused(&client, CProtocol::Two, &v1, None, expected)?;
    }
    for buffer_size in [largest + 1, u64::MAX] {
        let (v3, told) = with_length(&client, HeaderFormat::V3, 7, Some(buffer_size));
        let expected = unchanged(EfiStatus::BAD_BUFFER_SIZE, &told, None);
        refused(&client, CProtocol::Three, &v3, None, expected)?;
    }
    Ok(())
}

fn c_v3_sizes_are_checked(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (message_size, buffer_size) in [(7, 0), (7, 55), (7, 56), (7, 62), (8, 63), (u64::MAX, 63)] {
        let (v3, _) = with_length(&client, HeaderFormat::V3, message_size, Some(buffer_size));
        let expected = unchanged(EfiStatus::INVALID_PARAMETER, &v3, None);
        refused(&client, CProtocol::Three, &v3, None, expected)?;
    }
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"message", 60);
    let expected = unchanged(EfiStatus::INVALID_PARAMETER, &v1, None);
    refused(&client, CProtocol::Three, &v1, None, expected)
}

fn c_refusals_raise_no_mmi(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (protocol, bytes, comm_size) in [
        (CProtocol::One, Vec::new(), Some(0)),
        (CProtocol::One, alloc::vec![0; 23], Some(23)),
        (CProtocol::Two, alloc::vec![0xff; 24], None),
        (CProtocol::Three, alloc::vec![0; 56], None),
    ] {
        let reply = call(&client, protocol, bytes, comm_size)?;
        ensure!(reply.status.is_error(), "{protocol:?} took it");
    }
    ensure_eq!(client.mmis(), 0);
    let v1 = request(HeaderFormat::V1, NO_HANDLER, b"x", 0);
    let reply = call(&client, CProtocol::One, v1, None)?;
    ensure_eq!(reply.status, super::refusals::not_taken_status(lab));
    ensure_eq!(client.mmis(), 1);
    Ok(())
}

fn c_call_in_the_comm_buffer_itself(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [3, 8, 300] {
        let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(len), 400);
        let comm_size = Some(v1.len());
        let reply = call(&client, CProtocol::TwoInPlace(0), v1, comm_size)?;
        ensure_eq!(reply.status, EfiStatus::SUCCESS);
        ensure_eq!(reply.comm_size, Some(24 + len));
        ensure_eq!(reply.bytes.get(24..24 + len), Some(pattern(len).as_slice()));
    }
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    Ok(())
}

/// The caller's buffer is the comm buffer itself.
const IN_PLACE: CProtocol = CProtocol::TwoInPlace(0);

fn c_calls_in_the_comm_buffer_leave_the_header(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::ECHO, &pattern(100), 0);
    let reply = call(&client, IN_PLACE, v1.clone(), Some(v1.len()))?;
    ensure_eq!(reply, unchanged(EfiStatus::SUCCESS, &v1, Some(124)));
    for comm_size in [Some(124), None] {
        let again = client.call_c(&CCall {
            protocol: IN_PLACE,
            bytes: comm_size.is_none().then(|| v1.clone()),
            comm_size,
        });
        ensure_eq!(again, Some(unchanged(EfiStatus::SUCCESS, &v1, comm_size)));
    }
    let mut v3 = request(HeaderFormat::V3, mm::ECHO, &pattern(60), 40);
    let reply = call(&client, CProtocol::ThreeInPlace(0), v3.clone(), None)?;
    if !lab.abilities().contains(Abilities::MAILBOX) {
        // MM wrote the length there.
        put(&mut v3, 48, 100);
    }
    ensure_eq!(reply, unchanged(EfiStatus::SUCCESS, &v3, None));
    ensure_eq!(client.mmis(), 4);
    Ok(())
}

fn c_call_in_the_comm_buffer_keeps_a_refused_request(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let no_handler = request(HeaderFormat::V1, NO_HANDLER, &pattern(2000), 0);
    let reply = call(&client, IN_PLACE, no_handler.clone(), Some(2024))?;
    let status = super::refusals::not_taken_status(lab);
    ensure_eq!(reply, unchanged(status, &no_handler, Some(2024)));
    let long = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(100), 0);
    let reply = call(&client, IN_PLACE, long.clone(), Some(32))?;
    ensure_eq!(reply, unchanged(EfiStatus::BUFFER_TOO_SMALL, &long, Some(124)));
    let v3 = request(HeaderFormat::V3, NO_HANDLER, &pattern(60), 40);
    let reply = call(&client, CProtocol::ThreeInPlace(0), v3.clone(), None)?;
    ensure_eq!(reply, unchanged(status, &v3, None));
    Ok(())
}

fn c_v3_message_size_reaches_mm(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v3 = request(HeaderFormat::V3, mm::HEADER, &pattern(20), 100);
    let reply = call(&client, CProtocol::Three, v3.clone(), None)?;
    ensure_eq!(reply.status, EfiStatus::SUCCESS);
    ensure_eq!(reply.bytes.get(56..112), v3.get(..56));
    Ok(())
}

/// Makes a call in Rust, and one of a C driver in the middle of it. Returns the status of the
/// latter, and the MMIs until then.
fn c_during_rust(
    client: &Client,
    at: impl FnOnce(&Client, Callback) + 'static,
) -> Result<(Option<EfiStatus>, usize), String> {
    let seen = Rc::new(Cell::new((None, 0)));
    let inner = Rc::clone(&seen);
    let c_call: Callback = Box::new(move |client| {
        let v1 = request(HeaderFormat::V1, mm::ECHO, b"from C", 0);
        let mmis = client.mmis();
        let reply = call(client, CProtocol::Two, v1, Some(30));
        inner.set((reply.ok().map(|reply| reply.status), mmis));
    });
    let (_, outer) =
        super::nesting::look_during(client, b"outer", mm::ECHO, move |client| at(client, c_call));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_clean(client, 0)?;
    Ok(seen.take())
}

fn c_call_from_a_notification_waits_for_the_call_in_progress(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let seen = c_during_rust(&client, |client, c_call| client.notify(c_call))?;
    ensure_eq!(seen, (Some(EfiStatus::SUCCESS), 1));
    ensure_eq!(client.mmis(), 2);
    Ok(())
}

fn c_call_from_above_the_notifications_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let seen = c_during_rust(&client, |client, c_call| c_call(client))?;
    ensure_eq!(seen, (Some(EfiStatus::ALREADY_STARTED), 0));
    ensure_eq!(client.mmis(), 1);
    Ok(())
}

fn c_header_can_be_sent_again(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::STRETCH, &mm::stretch(3), 40);
    let v3 = request(HeaderFormat::V3, mm::STRETCH, &mm::stretch(3), 0);
    for (protocol, first) in [
        (CProtocol::One, v1.clone()),
        (CProtocol::Two, v1),
        (CProtocol::Three, v3),
    ] {
        let header_len = first.len() - 8;
        let header_len = if protocol == CProtocol::Three {
            header_len
        } else {
            24
        };
        let mut bytes = first;
        for len in [3, 0, 8, 1] {
            // The message is written again, the header is not.
            if let Some(message) = bytes.get_mut(header_len..header_len + 8) {
                message.copy_from_slice(&mm::stretch(len));
            }
            let reply = call(&client, protocol, bytes, None)?;
            ensure_eq!(reply.status, EfiStatus::SUCCESS);
            ensure_eq!(
                reply.bytes.get(header_len..header_len + len),
                Some(pattern(len).as_slice())
            );
            bytes = reply.bytes;
        }
    }
    Ok(())
}

fn c_header_comes_back_as_mm_left_it(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let told = |lie: mm::Lie, format: HeaderFormat, protocol| -> Result<Vec<u8>, String> {
        let bytes = request(format, mm::LIAR, &lie.request(), 0);
        let reply = call(&client, protocol, bytes, None)?;
        ensure_eq!(reply.status, EfiStatus::SUCCESS);
        Ok(reply.bytes)
    };
    let v1 = told(mm::Lie::MessageLength(5), HeaderFormat::V1, CProtocol::Two)?;
    ensure_eq!(field(&v1, 16), Some(5));
    let v3 = told(mm::Lie::MessageLength(5), HeaderFormat::V3, CProtocol::Three)?;
    ensure_eq!((field(&v3, 16), field(&v3, 48)), (Some(61), Some(16)));
    let v3 = told(mm::Lie::MessageSize(5), HeaderFormat::V3, CProtocol::Three)?;
    ensure_eq!((field(&v3, 16), field(&v3, 48)), (Some(72), Some(5)));
    // The caller's buffer has 16 bytes behind the header.
    let v1 = told(mm::Lie::MessageLength(17), HeaderFormat::V1, CProtocol::Two)?;
    ensure_eq!(field(&v1, 16), Some(16));
    let v3 = told(mm::Lie::MessageLength(17), HeaderFormat::V3, CProtocol::Three)?;
    ensure_eq!((field(&v3, 16), field(&v3, 48)), (Some(72), Some(16)));
    ensure_clean(&client, 0)
}

fn c_status_without_error_bit_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (status, told) in super::lies::STATUSES_WITHOUT_ERROR_BIT {
        for (format, protocol, comm_size) in [
            (HeaderFormat::V1, CProtocol::One, Some(40)),
            (HeaderFormat::V1, CProtocol::Two, None),
            (HeaderFormat::V3, CProtocol::Three, None),
        ] {
            let bytes = request(format, mm::LIAR, &mm::Lie::Status(status).request(), 0);
            let reply = call(&client, protocol, bytes.clone(), comm_size)?;
            ensure_eq!(reply, unchanged(told, &bytes, comm_size));
            ensure_clean(&client, 0)?;
        }
    }
    Ok(())
}

fn c_call_carries_mms_status(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for status in [EfiStatus::ACCESS_DENIED, EfiStatus(0x8000_0000_0000_7777)] {
        let v1 = request(
            HeaderFormat::V1,
            mm::LIAR,
            &mm::Lie::Status(status.0).request(),
            0,
        );
        let reply = call(&client, CProtocol::Two, v1.clone(), Some(40))?;
        ensure_eq!(reply, unchanged(status, &v1, Some(40)));
    }
    let v1 = request(HeaderFormat::V1, mm::LIAR, &mm::Lie::Ignore.request(), 0);
    let reply = call(&client, CProtocol::Two, v1, Some(40))?;
    ensure_eq!(reply.status, EfiStatus::NO_RESPONSE);
    ensure_clean(&client, 0)
}

fn c_call_reports_every_wrong_response(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for lie in [
        mm::Lie::Size(0),
        mm::Lie::Size(23),
        mm::Lie::Size(1 << 20),
        mm::Lie::Size(u64::MAX),
        mm::Lie::Recipient,
        mm::Lie::WipeHeader,
        mm::Lie::OtherFormat,
        mm::Lie::MessageLength(u64::MAX),
    ] {
        let v1 = request(HeaderFormat::V1, mm::LIAR, &lie.request(), 0);
        let reply = call(&client, CProtocol::Two, v1.clone(), Some(40))?;
        ensure_eq!(reply, unchanged(EfiStatus::PROTOCOL_ERROR, &v1, Some(40)));
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn c_call_during_a_call_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let v1 = request(HeaderFormat::V1, mm::ECHO, b"inner", 0);
    let (inner, outer) = super::nesting::look_during(&client, b"outer", mm::ECHO, move |client| {
        call(client, CProtocol::One, v1, None).map(|reply| reply.status)
    });
    ensure_eq!(inner, Some(Ok(EfiStatus::ALREADY_STARTED)));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    Ok(())
}

fn c_responses_are_those_of_rust(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [1, 40, 5000, client.capacity(0)] {
        let message = mm::stretch(len);
        let bytes = request(HeaderFormat::V1, mm::STRETCH, &message, len.saturating_sub(8));
        let comm_size = Some(bytes.len());
        let reply = call(&client, CProtocol::Two, bytes, comm_size)?;
        ensure_eq!(reply.status, EfiStatus::SUCCESS);
        let response = reply.bytes.get(24..24 + len).map(<[u8]>::to_vec);
        ensure!(
            client.communicate(0, &message, mm::STRETCH).ok() == response,
            "the responses of {len} bytes differ"
        );
    }
    Ok(())
}
