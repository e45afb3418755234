//! Callers in C of PI's MM communication protocols 1, 2 and 3: any buffer, any CommSize, any
//! header, and a handler whose response has any length. Judged by the rules that
//! `MmCommunicationProducer` states.

use crate::header::{Fields, MARKER, Name, Size};
use crate::with_patina::{self, Clients};
use arbitrary::{Arbitrary, Unstructured};
use mm_conformance::c_abi;
use mm_conformance::lab::{CCall, CProtocol};
use mm_wire::EfiStatus;
use patina_mm::component::protocols::MmCommunicationProducer;

/// Bytes of the comm buffer, and of the longest message.
const LARGEST: usize = 4 * 4096;

#[derive(Arbitrary, Debug)]
struct Case {
    calls: Vec<Call>,
}

#[derive(Arbitrary, Debug)]
struct Call {
    protocol: u8,
    is_null: bool,
    comm_size: Option<Size>,
    v3: bool,
    name: Name,
    counted: Size,
    message_size: Option<Size>,
    bytes: Vec<u8>,
    response: Size,
    fails: bool,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    with_patina::with(
        |clients| {
            clients.machine.dispatch(MmCommunicationProducer::new(0)).unwrap();
        },
        |clients| {
            for call in case.calls.iter().take(4) {
                check(clients, call);
            }
        },
    );
}

fn check(clients: &Clients, call: &Call) {
    let protocol = [
        CProtocol::One,
        CProtocol::Two,
        CProtocol::Three,
        CProtocol::TwoApart,
        CProtocol::ThreeApart,
    ][usize::from(call.protocol) % 5];
    let is_three = matches!(protocol, CProtocol::Three | CProtocol::ThreeApart);
    let comm_size = call
        .comm_size
        .filter(|_| !is_three)
        .map(|size| size.of(LARGEST) as usize);
    let counted = call.counted.of(LARGEST);
    let header = Fields {
        v3: call.v3,
        guid: call.name.bytes(),
        // In a v3 header this may be less than the header's own length.
        counted: if call.v3 {
            counted.min(u64::MAX - 56)
        } else {
            counted
        },
        message_size: call
            .message_size
            .map_or(counted, |size| size.of(counted.min(LARGEST as u64) as usize)),
    };
    // As much memory as the caller's side of the contract demands, and no more: AddressSanitizer guards its end.
    let mut bytes = header.write();
    bytes.extend(call.bytes.iter().take(100));
    bytes.resize(LARGEST + 64, 0x3c);
    let len = match comm_size {
        Some(size) if size <= LARGEST => size,
        _ => {
            let header_len = if bytes.starts_with(&MARKER) { 56 } else { 24 };
            let total = Fields::read(&bytes).and_then(|header| usize::try_from(header.total()).ok());
            total
                .filter(|total| *total <= LARGEST)
                .unwrap_or(0)
                .max(header_len)
        }
    };
    bytes.truncate(len);
    let is_null = call.is_null && call.protocol & 0x80 != 0;
    let expected = expect(clients, protocol, is_null, comm_size, &bytes, call);
    let given = CCall {
        protocol,
        bytes: (!is_null).then(|| bytes.clone()),
        comm_size,
    };
    let reply = c_abi::call(clients.machine.protocols(), &given).unwrap();
    assert_eq!(reply.status, expected.status, "{given:?}");
    assert_eq!(
        reply.comm_size,
        comm_size.map(|given| expected.comm_size.unwrap_or(given)),
        "CommSize of {given:?}"
    );
    assert_eq!(
        reply.bytes,
        if is_null { vec![] } else { expected.bytes },
        "the buffer of {given:?}"
    );
}

struct Expected {
    status: EfiStatus,
    comm_size: Option<usize>,
    bytes: Vec<u8>,
}

fn expect(
    clients: &Clients,
    protocol: CProtocol,
    is_null: bool,
    comm_size: Option<usize>,
    bytes: &[u8],
    call: &Call,
) -> Expected {
    let unchanged = |status| Expected {
        status,
        comm_size: None,
        bytes: bytes.to_vec(),
    };
    let invalid = || unchanged(EfiStatus::INVALID_PARAMETER);
    let is_apart = matches!(protocol, CProtocol::TwoApart | CProtocol::ThreeApart);
    if is_null || is_apart {
        return invalid();
    }
    let too_large = |bytes| Expected {
        status: EfiStatus::BAD_BUFFER_SIZE,
        comm_size: Some(LARGEST),
        bytes,
    };
    match comm_size {
        Some(0) => return too_large(bytes.to_vec()),
        Some(size) if size > LARGEST => return too_large(bytes.to_vec()),
        Some(size) if size < 24 => return invalid(),
        _ => {}
    }
    let is_v3 = bytes.starts_with(&MARKER);
    let header = match Fields::read(bytes) {
        Some(header) => header,
        // Only a v1 length that is too long for 64 bits has a message.
        None if is_v3 => return invalid(),
        None => Fields {
            v3: false,
            guid: bytes[..16].try_into().unwrap(),
            counted: u64::MAX,
            message_size: u64::MAX,
        },
    };
    if matches!(protocol, CProtocol::Three) && !header.v3 {
        return invalid();
    }
    let longest = LARGEST - header.len();
    if header.counted > longest as u64 {
        let mut bytes = bytes.to_vec();
        let field = if header.v3 { 48 } else { 16 };
        bytes[field..field + 8].copy_from_slice(&(longest as u64).to_le_bytes());
        return too_large(bytes);
    }
    let total = header.total() as usize;
    if header.message_size > header.counted || comm_size.is_some_and(|size| size < total) {
        return invalid();
    }
    let room = comm_size.unwrap_or(total) - header.len();
    clients.respond_with(call.response.of(LARGEST).min(longest as u64) as usize, call.fails);
    let known = header.guid == Name::Known(1).bytes();
    if !known || call.fails {
        return unchanged(EfiStatus::NOT_FOUND);
    }
    let response = clients.response();
    if response.len() > room {
        return Expected {
            status: EfiStatus::BUFFER_TOO_SMALL,
            comm_size: Some(response.len() + header.len()),
            bytes: bytes.to_vec(),
        };
    }
    let mut bytes = bytes.to_vec();
    bytes[header.len()..][..response.len()].copy_from_slice(&response);
    Expected {
        status: EfiStatus::SUCCESS,
        comm_size: Some(response.len() + header.len()),
        bytes,
    }
}
