//! edk2's variable service responds as its clients expect.

use super::{Seen, ready};
use crate::lab::{Call, Client, Lab, ResponseTo};
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use mm_wire::message::variable::{
    self, AccessVariable, FunctionHeader, NextName, PayloadSize, QueryInfo, function,
};
use mm_wire::{EfiStatus, Guid, guid};
use patina_mm::component::communicator::Status;
use zerocopy::{FromBytes, IntoBytes};

scenarios! {
    variable_payload_size_is_returned: VARIABLES, "the variable service returns the size of the largest message it takes";
    unknown_variable_function_is_unsupported: VARIABLES, "function 99 is EFI_UNSUPPORTED in the message, not a failed call";
    missing_variable_is_not_found: VARIABLES, "reading a variable that is not there is EFI_NOT_FOUND in the message";
    variable_reads_back_as_written: VARIABLES, "a variable that was set is read back, attributes included";
    short_read_tells_the_needed_size: VARIABLES, "with too little room the size that is needed comes back";
    deleted_variable_is_gone: VARIABLES, "setting a variable to nothing deletes it";
    variable_names_can_be_walked: VARIABLES, "the walk over all names finds one that was set, once, and ends";
    variable_storage_sizes_are_consistent: VARIABLES, "the store returns sizes that fit each other";
    every_way_carries_the_variable_services_response: VARIABLES, "slice, closure and allocation get the same response of a real handler";
    typed_response_of_the_variable_service: VARIABLES, "the variable service's response becomes a value of exactly its size, or an error with both sizes";
    many_calls_to_the_variable_service_work: VARIABLES, "the last of many calls to a real handler works like the first";
}

const VENDOR: Guid = guid!("6b2f1ad5-94f2-4c9c-8a43-cbd3a2a8d2f7");
/// Boot services access only, volatile.
const BOOT_SERVICE: u32 = 2;

/// UTF-16 with its NUL, as bytes.
fn utf16(name: &str) -> Vec<u8> {
    name.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Sends a function's message and returns the service's status and what follows the header.
fn ask(client: &Client, function: u64, body: &[u8]) -> Result<(EfiStatus, Vec<u8>), String> {
    let message = [FunctionHeader::new(function).as_bytes(), body].concat();
    let response = client
        .communicate(0, &message, variable::GUID)
        .map_err(|failure| format!("function {function}: {failure}"))?;
    let (header, body) = FunctionHeader::read_from_prefix(&response)
        .map_err(|error| format!("function {function}: {error}"))?;
    Ok((EfiStatus(header.return_status.get()), body.to_vec()))
}

fn access(name: &str, attributes: u32, data: &[u8]) -> Vec<u8> {
    let name = utf16(name);
    let fields = AccessVariable {
        vendor: VENDOR.to_bytes(),
        data_size: (data.len() as u64).into(),
        name_size: (name.len() as u64).into(),
        attributes: attributes.into(),
    };
    [fields.as_bytes(), &name, data].concat()
}

fn set(client: &Client, name: &str, attributes: u32, data: &[u8]) -> Result<EfiStatus, String> {
    Ok(ask(client, function::SET_VARIABLE, &access(name, attributes, data))?.0)
}

/// Reads with room for `room` bytes of data.
fn get(client: &Client, name: &str, room: usize) -> Result<(EfiStatus, AccessVariable, Vec<u8>), String> {
    let (status, body) = ask(client, function::GET_VARIABLE, &access(name, 0, &vec![0; room]))?;
    let (fields, rest) = AccessVariable::read_from_prefix(&body).map_err(|error| format!("{error}"))?;
    let data = rest.get(utf16(name).len()..).unwrap_or_default().to_vec();
    Ok((status, fields, data))
}

fn variable_payload_size_is_returned(lab: &Lab) -> Seen {
    ensure_payload_size(&ready(lab)?)
}

/// Fails unless the variable service returns a payload size.
pub(super) fn ensure_payload_size(client: &Client) -> Seen {
    let (status, body) = ask(
        client,
        function::GET_PAYLOAD_SIZE,
        PayloadSize::default().as_bytes(),
    )?;
    ensure_eq!(status, EfiStatus::SUCCESS);
    let size = PayloadSize::read_from_bytes(&body)
        .map_err(|error| format!("{error}"))?
        .size
        .get();
    ensure!(
        (1024..=1 << 24).contains(&size),
        "a payload of {size} bytes is not plausible"
    );
    Ok(())
}

fn unknown_variable_function_is_unsupported(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(ask(&client, 99, &[])?, (EfiStatus::UNSUPPORTED, Vec::new()));
    Ok(())
}

fn missing_variable_is_not_found(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(get(&client, "NotSetYet", 16)?.0, EfiStatus::NOT_FOUND);
    Ok(())
}

fn variable_reads_back_as_written(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let data = super::pattern(77);
    ensure_eq!(set(&client, "ReadBack", BOOT_SERVICE, &data)?, EfiStatus::SUCCESS);
    let (status, fields, read) = get(&client, "ReadBack", 128)?;
    ensure_eq!(status, EfiStatus::SUCCESS);
    ensure_eq!(fields.data_size.get(), 77);
    ensure_eq!(fields.attributes.get(), BOOT_SERVICE);
    ensure!(
        read.get(..77) == Some(&data[..]),
        "the data read is not the data written: {read:?}"
    );
    ensure_eq!(set(&client, "ReadBack", 0, &[])?, EfiStatus::SUCCESS);
    Ok(())
}

fn short_read_tells_the_needed_size(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        set(&client, "ShortRead", BOOT_SERVICE, &[7; 40])?,
        EfiStatus::SUCCESS
    );
    let (status, fields, _) = get(&client, "ShortRead", 39)?;
    ensure_eq!(status, EfiStatus::BUFFER_TOO_SMALL);
    ensure_eq!(fields.data_size.get(), 40);
    ensure_eq!(set(&client, "ShortRead", 0, &[])?, EfiStatus::SUCCESS);
    Ok(())
}

fn deleted_variable_is_gone(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(set(&client, "Deleted", BOOT_SERVICE, b"x")?, EfiStatus::SUCCESS);
    ensure_eq!(get(&client, "Deleted", 1)?.0, EfiStatus::SUCCESS);
    ensure_eq!(set(&client, "Deleted", 0, &[])?, EfiStatus::SUCCESS);
    ensure_eq!(get(&client, "Deleted", 1)?.0, EfiStatus::NOT_FOUND);
    Ok(())
}

/// Vendor and name, with its NUL.
type Name = ([u8; 16], Vec<u8>);

/// The name that follows, as it is in the response; `None` at the end.
fn next(client: &Client, vendor: [u8; 16], name: &[u8]) -> Result<Option<Name>, String> {
    const ROOM: usize = 1024;
    let fields = NextName {
        vendor,
        name_size: (ROOM as u64).into(),
    };
    let mut body = [fields.as_bytes(), name].concat();
    body.resize(size_of::<NextName>() + ROOM, 0);
    let (status, body) = ask(client, function::GET_NEXT_VARIABLE_NAME, &body)?;
    if status == EfiStatus::NOT_FOUND {
        return Ok(None);
    }
    ensure_next(status == EfiStatus::SUCCESS, &status)?;
    let (fields, rest) = NextName::read_from_prefix(&body).map_err(|error| format!("{error}"))?;
    let len = usize::try_from(fields.name_size.get()).unwrap_or(usize::MAX);
    let name = rest
        .get(..len)
        .ok_or_else(|| format!("a name of {len} bytes in {} bytes", rest.len()))?;
    Ok(Some((fields.vendor, name.to_vec())))
}

fn ensure_next(good: bool, status: &EfiStatus) -> Seen {
    ensure!(good, "the walk ended with {status}");
    Ok(())
}

fn variable_names_can_be_walked(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(set(&client, "Walked", BOOT_SERVICE, b"x")?, EfiStatus::SUCCESS);
    let wanted = (VENDOR.to_bytes(), utf16("Walked"));
    let mut found = 0;
    let mut at = ([0; 16], vec![0, 0]);
    for _ in 0..10_000 {
        let Some(following) = next(&client, at.0, &at.1)? else {
            ensure_eq!(found, 1);
            ensure_eq!(set(&client, "Walked", 0, &[])?, EfiStatus::SUCCESS);
            return Ok(());
        };
        ensure!(following != at, "the walk stays at {at:?}");
        found += u32::from(following == wanted);
        at = following;
    }
    Err(String::from("the walk does not end"))
}

fn variable_storage_sizes_are_consistent(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let query = QueryInfo {
        attributes: BOOT_SERVICE.into(),
        ..QueryInfo::default()
    };
    let (status, body) = ask(&client, function::QUERY_VARIABLE_INFO, query.as_bytes())?;
    ensure_eq!(status, EfiStatus::SUCCESS);
    let info = QueryInfo::read_from_bytes(&body).map_err(|error| format!("{error}"))?;
    ensure!(
        info.maximum_storage.get() >= info.remaining_storage.get(),
        "{info:?}"
    );
    ensure!(info.maximum_variable.get() > 0, "{info:?}");
    Ok(())
}

/// The message that asks for the payload size, which is as long as its response.
pub(crate) fn payload_size_request() -> Vec<u8> {
    let header = FunctionHeader::new(function::GET_PAYLOAD_SIZE);
    [header.as_bytes(), PayloadSize::default().as_bytes()].concat()
}

/// Sends a message of the variable service; its response goes to the given place.
fn ask_into(client: &Client, response: ResponseTo, message: &[u8]) -> Result<Vec<u8>, Status> {
    let call = Call {
        response,
        ..Call::default()
    };
    client.communicate_as(call, 0, message, variable::GUID)
}

fn every_way_carries_the_variable_services_response(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let message = payload_size_request();
    let response = client.communicate(0, &message, variable::GUID);
    ensure!(
        response
            .as_ref()
            .is_ok_and(|response| response.len() == message.len()),
        "the payload size is {response:02x?}"
    );
    for way in [
        ResponseTo::Slice(message.len()),
        ResponseTo::Slice(4096),
        ResponseTo::Closure(1),
        ResponseTo::Closure(7),
        ResponseTo::Closure(4096),
    ] {
        ensure_eq!(ask_into(&client, way, &message), response);
        super::ensure_clean(&client, 0)?;
    }
    let (needed, room) = (message.len(), message.len() - 1);
    ensure_eq!(
        ask_into(&client, ResponseTo::Slice(room), &message),
        Err(Status::ResponseTooLong { needed, room })
    );
    super::ensure_clean(&client, 0)
}

fn typed_response_of_the_variable_service(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let unknown = FunctionHeader::new(99);
    let response = ask_into(&client, ResponseTo::Type16, unknown.as_bytes());
    let header = response
        .as_deref()
        .ok()
        .and_then(|response| FunctionHeader::read_from_bytes(response).ok());
    let status = header.map(|header| EfiStatus(header.return_status.get()));
    ensure_eq!(status, Some(EfiStatus::UNSUPPORTED));
    let message = payload_size_request();
    ensure_eq!(
        ask_into(&client, ResponseTo::Type16, &message),
        Err(Status::ResponseSize {
            expected: 16,
            returned: message.len()
        })
    );
    super::ensure_clean(&client, 0)
}

fn many_calls_to_the_variable_service_work(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let request = PayloadSize::default();
    let first = ask(&client, function::GET_PAYLOAD_SIZE, request.as_bytes())?;
    let calls = lab.many_calls();
    for n in 1..calls {
        let response = ask(&client, function::GET_PAYLOAD_SIZE, request.as_bytes())?;
        ensure!(
            response == first,
            "call {n}: {response:?}, the first one: {first:?}"
        );
    }
    ensure_eq!(client.mmis(), usize::try_from(calls).unwrap_or(usize::MAX));
    super::ensure_clean(&client, 0)
}
