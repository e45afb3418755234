//! The ways to make a call, and how each returns the response.

use super::refusals::not_taken;
use super::{Seen, ensure_clean, pattern, ready};
use crate::lab::{Call, Client, Lab, ResponseTo};
use crate::mm;
use alloc::vec::Vec;
use patina_mm::component::communicator::Status;

scenarios! {
    response_into_slice_is_exact: CONTROLLED_MM | LONGER_RESPONSES, "a response goes to the start of the caller's memory, with its length";
    response_into_short_slice_is_refused: CONTROLLED_MM | LONGER_RESPONSES, "a response that does not fit into the caller's memory is an error with both lengths, and is wiped";
    response_to_closure_is_read_in_steps: CONTROLLED_MM | LONGER_RESPONSES, "a response can be read in place, in steps of any length";
    typed_response_has_the_types_size: CONTROLLED_MM | LONGER_RESPONSES, "a response becomes a value";
    typed_response_of_another_size_is_refused: CONTROLLED_MM | LONGER_RESPONSES, "one byte more or less is an error with both sizes";
    every_way_carries_mms_status: CONTROLLED_MM | NO_HANDLER_STATUS, "MM's refusal is the same error, however the call was made";
    every_way_refuses_before_the_mmi: MM, "a message that cannot be sent raises no MMI, however the call was made";
}

const WAYS: [ResponseTo; 4] = [
    ResponseTo::Allocation,
    ResponseTo::Slice(64),
    ResponseTo::Closure(7),
    ResponseTo::Type16,
];

fn call(
    client: &Client,
    response: ResponseTo,
    message: &[u8],
    recipient: mm_wire::Guid,
) -> Result<Vec<u8>, Status> {
    let call = Call {
        response,
        ..Call::default()
    };
    client.communicate_as(call, 0, message, recipient)
}

fn response_into_slice_is_exact(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (len, room) in [(0, 0), (0, 10), (5, 5), (5, 4096), (9000, 9000)] {
        ensure_eq!(
            call(&client, ResponseTo::Slice(room), &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn response_into_short_slice_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (needed, room) in [(1, 0), (100, 99), (9000, 64)] {
        ensure_eq!(
            call(
                &client,
                ResponseTo::Slice(room),
                &mm::stretch(needed),
                mm::STRETCH
            ),
            Err(Status::ResponseTooLong { needed, room })
        );
        ensure_clean(&client, 0)?;
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}

fn response_to_closure_is_read_in_steps(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for step in [1, 3, 8, 499, 500, 501] {
        ensure_eq!(
            call(&client, ResponseTo::Closure(step), &mm::stretch(500), mm::STRETCH),
            Ok(pattern(500))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn typed_response_has_the_types_size(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        call(&client, ResponseTo::Type16, &mm::stretch(16), mm::STRETCH),
        Ok(pattern(16))
    );
    ensure_clean(&client, 0)
}

fn typed_response_of_another_size_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for returned in [0, 15, 17, 4096] {
        ensure_eq!(
            call(&client, ResponseTo::Type16, &mm::stretch(returned), mm::STRETCH),
            Err(Status::ResponseSize {
                expected: 16,
                returned
            })
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn every_way_carries_mms_status(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for way in WAYS {
        ensure_eq!(call(&client, way, b"x", mm::FAIL), Err(not_taken(lab)));
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn every_way_refuses_before_the_mmi(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let too_large = pattern(client.capacity(0) + 1);
    for way in WAYS {
        ensure_eq!(
            call(&client, way, &[], super::refusals::NO_HANDLER),
            Err(Status::InvalidDataBuffer)
        );
        ensure_eq!(
            call(&client, way, &too_large, super::refusals::NO_HANDLER),
            Err(Status::CommBufferTooSmall)
        );
    }
    ensure_eq!(client.mmis(), 0);
    ensure_clean(&client, 0)
}
