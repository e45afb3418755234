//! Messages behind a v3 communicate header.

use super::nesting::look_during;
use super::responses::padded_stretch;
use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{BufferSetup, Call, Client, Lab, ResponseTo, Setup};
use crate::mm::{self, Lie};
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::header::V3_MARKER;
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat};
use patina::standard::efi;
use patina_mm::component::communicator::Status;

scenarios! {
    v3_message_comes_back: CONTROLLED_MM | V3_HEADERS, "a message behind a v3 header gets its response, for a call that asks for it";
    v3_responses_have_any_length: CONTROLLED_MM | V3_HEADERS | LONGER_RESPONSES, "a response may be shorter or longer than its request";
    v3_message_fills_the_buffer: CONTROLLED_MM | V3_HEADERS, "all of the buffer behind the 56 bytes can be used, and no more";
    v3_buffer_serves_plain_calls: CONTROLLED_MM | V3_HEADERS | CALLBACKS | LONGER_RESPONSES, "a comm buffer can have the v3 header as its own";
    v1_call_through_v3_buffer: CONTROLLED_MM | V3_HEADERS, "a call through a buffer with the v3 header can ask for the v1 header";
    headers_alternate: CONTROLLED_MM | V3_HEADERS | LONGER_RESPONSES, "calls of both formats follow each other through one buffer";
    v3_no_handler_is_an_error: MM | V3_HEADERS | NO_HANDLER_STATUS, "a v3 message without a handler is an error with MM's status";
    v3_lies_are_refused: CONTROLLED_MM | V3_HEADERS | MAILBOX, "MM's responses with a v3 header are checked like those with v1";
    v3_without_mailbox: CONTROLLED_MM | V3_HEADERS | LONGER_RESPONSES, "without a mailbox the header says how long the response is";
    v3_shorter_response_has_its_length_without_mailbox: CONTROLLED_MM | V3_HEADERS, "without a mailbox MessageSize says how long the response to a padded request is, and BufferSize does not change";
    v3_message_size_is_the_length_without_mailbox: CONTROLLED_MM | V3_HEADERS, "without a mailbox MessageSize is the length if MM leaves BufferSize alone, like edk2's Standalone MM on Arm";
    mailbox_overrides_the_v3_message_size: CONTROLLED_MM | V3_HEADERS | MAILBOX, "with a mailbox MessageSize is ignored";
}

const V3: Call = Call {
    header: Some(HeaderFormat::V3),
    response: ResponseTo::Closure(64),
};

fn v3_setup(mailbox: crate::lab::MailboxSetup) -> Setup {
    let buffer = |id| BufferSetup {
        header: HeaderFormat::V3,
        mailbox,
        ..BufferSetup::new(id)
    };
    Setup {
        buffers: [buffer(0), buffer(1)].to_vec(),
        ..Setup::default()
    }
}

fn v3_ready(lab: &Lab) -> Result<Client, String> {
    up(lab, &v3_setup(crate::lab::MailboxSetup::OwnPage))
}

fn v3(client: &Client, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status> {
    client.communicate_as(V3, 0, message, recipient)
}

fn v3_message_comes_back(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        v3(&client, b"longer header", mm::ECHO),
        Ok(b"longer header".to_vec())
    );
    ensure_eq!(client.mmis(), 1);
    ensure_clean(&client, 0)
}

fn v3_responses_have_any_length(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [0, 1, 7, 9, 31, 32, 33, 4096, 9000] {
        ensure_eq!(v3(&client, &mm::stretch(len), mm::STRETCH), Ok(pattern(len)));
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn v3_message_fills_the_buffer(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.region(0).len() - 56;
    let message = pattern(capacity);
    ensure!(
        v3(&client, &message, mm::ECHO) == Ok(message),
        "the full buffer did not come back"
    );
    let before = client.mmis();
    ensure_eq!(
        v3(&client, &pattern(capacity + 1), mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    ensure_eq!(client.mmis(), before);
    ensure_clean(&client, 0)
}

fn v3_buffer_serves_plain_calls(lab: &Lab) -> Seen {
    let client = v3_ready(lab)?;
    let (during, outer) = look_during(&client, b"plain", mm::ECHO, |client| client.region(0));
    ensure_eq!(outer, Ok(b"plain".to_vec()));
    let during = during.unwrap_or_default();
    ensure_eq!(during.get(..16), Some(V3_MARKER.to_bytes().as_slice()));
    ensure_eq!(
        Header::parse(&during).ok(),
        Header::new(HeaderFormat::V3, mm::ECHO, 5)
    );
    for response in [ResponseTo::Slice(100), ResponseTo::Allocation] {
        let call = Call {
            header: None,
            response,
        };
        ensure_eq!(
            client.communicate_as(call, 1, &mm::stretch(77), mm::STRETCH),
            Ok(pattern(77))
        );
    }
    ensure_clean(&client, 0)
}

fn v1_call_through_v3_buffer(lab: &Lab) -> Seen {
    let client = v3_ready(lab)?;
    let message = pattern(client.region(0).len() - 24);
    ensure_eq!(
        client.communicate(0, &message, mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    let v1 = Call {
        header: Some(HeaderFormat::V1),
        ..V3
    };
    ensure!(
        client.communicate_as(v1, 0, &message, mm::ECHO) == Ok(message),
        "the full buffer did not come back"
    );
    ensure_clean(&client, 0)
}

fn headers_alternate(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for n in 1..=50_usize {
        ensure_eq!(v3(&client, &mm::stretch(n), mm::STRETCH), Ok(pattern(n)));
        ensure_eq!(
            client.communicate(0, &mm::stretch(n + 3), mm::STRETCH),
            Ok(pattern(n + 3))
        );
    }
    ensure_eq!(client.mmis(), 100);
    ensure_clean(&client, 0)
}

fn v3_no_handler_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        v3(&client, b"running?", super::refusals::NO_HANDLER),
        Err(super::refusals::not_taken(lab))
    );
    ensure_clean(&client, 0)
}

fn v3_lies_are_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.region(0).len();
    let beyond = capacity as u64 + 1;
    for (lie, expected) in [
        (Lie::Ignore, Status::NotProcessed),
        (
            Lie::Status(EfiStatus::ACCESS_DENIED.0),
            Status::MmReturned(efi::Status::ACCESS_DENIED),
        ),
        (
            Lie::Size(55),
            Status::ResponseBelowHeader {
                claimed: 55,
                minimum: 56,
            },
        ),
        (
            Lie::Size(beyond),
            Status::ResponseBeyondBuffer {
                claimed: beyond,
                capacity,
            },
        ),
        (Lie::Recipient, Status::InvalidResponse),
        (Lie::MessageLength(beyond), Status::InvalidResponse),
        // BufferSize is then 55, less than the header.
        (Lie::MessageLength(u64::MAX), Status::InvalidResponse),
        (Lie::WipeHeader, Status::InvalidResponse),
        (Lie::OtherFormat, Status::InvalidResponse),
    ] {
        ensure_eq!(v3(&client, &lie.request(), mm::LIAR), Err(expected));
        ensure_clean(&client, 0)?;
        ensure_eq!(v3(&client, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}

fn v3_shorter_response_has_its_length_without_mailbox(lab: &Lab) -> Seen {
    let client = up(lab, &v3_setup(crate::lab::MailboxSetup::None))?;
    for len in [0, 4, 5, 999, 1000] {
        ensure_eq!(
            client.communicate(0, &padded_stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn v3_without_mailbox(lab: &Lab) -> Seen {
    let client = up(lab, &v3_setup(crate::lab::MailboxSetup::None))?;
    for len in [0, 5, 1000] {
        ensure_eq!(
            client.communicate(0, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn v3_message_size_is_the_length_without_mailbox(lab: &Lab) -> Seen {
    let client = up(lab, &v3_setup(crate::lab::MailboxSetup::None))?;
    for len in [0, 1, 4, 15, 16] {
        let request = Lie::MessageSize(len).request();
        ensure_eq!(
            client.communicate(0, &request, mm::LIAR),
            Ok(request
                .iter()
                .copied()
                .take(usize::try_from(len).unwrap_or(usize::MAX))
                .collect())
        );
        ensure_clean(&client, 0)?;
    }
    for len in [17, 16384, u64::MAX] {
        let claimed = client.communicate(0, &Lie::MessageSize(len).request(), mm::LIAR);
        ensure_eq!(claimed, Err(Status::InvalidResponse));
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn mailbox_overrides_the_v3_message_size(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [0, 4, 17, u64::MAX] {
        let request = Lie::MessageSize(len).request();
        ensure_eq!(v3(&client, &request, mm::LIAR), Ok(request.to_vec()));
        ensure_clean(&client, 0)?;
    }
    Ok(())
}
