//! MM's responses are checked, and a request that it refuses is an error.

use super::efi_status;
use super::nesting::look_during;
use super::refusals::not_taken;
use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{BufferSetup, Client, Lab, MailboxSetup, Setup};
use crate::mm::{self, Lie};
use alloc::vec::Vec;
use mm_wire::{EfiStatus, MailboxImage};
use patina_mm::component::communicator::Status;

scenarios! {
    no_handler_is_an_error: MM | NO_HANDLER_STATUS, "a message without a handler is an error with MM's status, not an echo";
    failed_handler_is_an_error: CONTROLLED_MM | NO_HANDLER_STATUS, "a handler that fails is an error with MM's status";
    ports_without_mailbox_echo_request: CONTROLLED_MM | PORTS | LATENCY, "a limit: without a mailbox a message that no handler takes, or MM never sees, comes back like a response";
    mm_status_is_carried: CONTROLLED_MM | MAILBOX, "the error has the status that MM returned";
    mm_status_without_error_bit_is_an_error: CONTROLLED_MM | MAILBOX, "a status that is neither success nor an EFI_ERROR, a warning or an error of a 32-bit MM core, comes without a response";
    ignored_request_is_an_error: CONTROLLED_MM | MAILBOX, "if MM ran and did not take the request, there is a separate error";
    late_mm_is_an_error_and_harms_no_other_call: CONTROLLED_MM | LATENCY | MAILBOX, "MM that runs after the wait finds no request, and the next call is served";
    late_response_does_not_answer_other_recipient: CONTROLLED_MM | MAILBOX, "a response that MM kept, header included, is not taken for the response to another recipient";
    late_message_is_the_response_that_mm_gave: CONTROLLED_MM | MAILBOX, "a limit: if MM ends a request with the message of another one, that call gets it, but no byte more";
    size_below_the_header_is_refused: CONTROLLED_MM | MAILBOX, "a response that does not cover its header is refused with the number";
    size_beyond_the_buffer_is_refused: CONTROLLED_MM | MAILBOX, "a response larger than the buffer is refused with the numbers";
    size_of_all_ones_is_refused: CONTROLLED_MM | MAILBOX, "a response whose size would wrap is refused";
    changed_recipient_is_refused: CONTROLLED_MM, "a header for another recipient is not a response";
    changed_length_beyond_the_buffer_is_refused: CONTROLLED_MM, "a header length that does not fit is refused";
    wiped_header_is_refused: CONTROLLED_MM, "a header of zeroes is not a response";
    foreign_header_format_is_refused: CONTROLLED_MM, "a response in another header format is not accepted";
    stale_status_is_not_believed: CONTROLLED_MM | MAILBOX | CALLBACKS, "the result of one call is gone from the mailbox before MM is entered for the next";
    failure_leaves_nothing_behind: MM | NO_HANDLER_STATUS, "after an error from MM the buffer is clean";
    lies_leave_nothing_behind: CONTROLLED_MM | MAILBOX, "after every lie the whole buffer is clean and the next call is served";
}

fn lie(client: &Client, lie: Lie) -> Result<Vec<u8>, Status> {
    client.communicate(0, &lie.request(), mm::LIAR)
}

fn no_handler_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let response = client.communicate(0, b"is it running?", super::refusals::NO_HANDLER);
    ensure_eq!(response, Err(not_taken(lab)));
    Ok(())
}

fn failed_handler_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(client.communicate(0, b"x", mm::FAIL), Err(not_taken(lab)));
    ensure_clean(&client, 0)
}

fn ports_without_mailbox_echo_request(lab: &Lab) -> Seen {
    let without_mailbox = |latency| Setup {
        buffers: [BufferSetup {
            mailbox: MailboxSetup::None,
            ..BufferSetup::new(0)
        }]
        .to_vec(),
        latency,
        ..Setup::default()
    };
    let client = up(lab, &without_mailbox(1))?;
    for recipient in [super::refusals::NO_HANDLER, mm::FAIL] {
        ensure_eq!(client.communicate(0, b"x", recipient), Ok(b"x".to_vec()));
        ensure_clean(&client, 0)?;
    }
    ensure_eq!(client.mmis(), 2);
    let client = up(lab, &without_mailbox(1000))?;
    let request = mm::stretch(300);
    ensure_eq!(client.communicate(0, &request, mm::STRETCH), Ok(request.to_vec()));
    ensure_clean(&client, 0)
}

fn mm_status_is_carried(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for status in [
        EfiStatus::ACCESS_DENIED,
        EfiStatus::BAD_BUFFER_SIZE,
        EfiStatus::UNSUPPORTED,
        EfiStatus(0x8000_0000_0000_7777),
    ] {
        ensure_eq!(
            lie(&client, Lie::Status(status.0)),
            Err(Status::MmReturned(efi_status(status)))
        );
    }
    Ok(())
}

/// Statuses that are neither success nor an `EFI_ERROR` on a 64-bit machine, and the error that
/// each means.
pub(super) const STATUSES_WITHOUT_ERROR_BIT: [(u64, EfiStatus); 7] = [
    // EFI_WARN_UNKNOWN_GLYPH and EFI_WARN_STALE_DATA.
    (1, EfiStatus::NOT_FOUND),
    (5, EfiStatus::NOT_FOUND),
    // PI's EFI_WARN_INTERRUPT_SOURCE_PENDING and a vendor's warning.
    (0x2000_0000_0000_0000, EfiStatus::NOT_FOUND),
    (0x4000_0000_0000_0001, EfiStatus::NOT_FOUND),
    // EFI_ACCESS_DENIED, EFI_INTERRUPT_PENDING and EFI_WARN_INTERRUPT_SOURCE_PENDING of a 32-bit MM
    // core.
    (0x8000_000f, EfiStatus::ACCESS_DENIED),
    (0xa000_0000, EfiStatus::INTERRUPT_PENDING),
    (0x2000_0000, EfiStatus::NOT_FOUND),
];

fn mm_status_without_error_bit_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (status, _) in STATUSES_WITHOUT_ERROR_BIT {
        ensure_eq!(
            lie(&client, Lie::Status(status)),
            Err(Status::MmReturned(efi_status(EfiStatus(status))))
        );
        ensure_clean(&client, 0)?;
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}

fn ignored_request_is_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::Ignore), Err(Status::NotProcessed));
    ensure_clean(&client, 0)
}

fn late_mm_is_an_error_and_harms_no_other_call(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            latency: 30,
            polls: 20,
            ..Setup::default()
        },
    )?;
    ensure_eq!(
        client.communicate(0, &pattern(50), mm::ECHO),
        Err(Status::NotProcessed)
    );
    ensure_clean(&client, 0)?;
    // Its MMI is still on the way: 10 pauses into this wait MM runs, and must find this request and
    // no other.
    ensure_eq!(client.communicate(0, b"second", mm::ECHO), Ok(b"second".to_vec()));
    Ok(())
}

fn late_response_does_not_answer_other_recipient(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::Late), Err(Status::NotProcessed));
    ensure_clean(&client, 0)?;
    // Only a request in the same buffer gets the late response.
    ensure_eq!(
        client.communicate(1, b"another buffer", mm::ECHO),
        Ok(b"another buffer".to_vec())
    );
    ensure_eq!(
        client.communicate(0, &pattern(600), mm::ECHO),
        Err(Status::InvalidResponse)
    );
    ensure_clean(&client, 0)?;
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    ensure_clean(&client, 0)
}

/// Nothing on the wire ties a response to its request, so a client cannot distinguish a late
/// response from a wrong one, and MM may respond with any bytes. The client ensures that it takes
/// no more bytes than MM says it returned, and that none are left for the next call.
fn late_message_is_the_response_that_mm_gave(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::LateMessage), Err(Status::NotProcessed));
    ensure_clean(&client, 0)?;
    ensure_eq!(
        client.communicate(0, &pattern(600), mm::ECHO),
        Ok(Lie::LateMessage.request().to_vec())
    );
    ensure_clean(&client, 0)?;
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    ensure_clean(&client, 0)
}

fn size_below_the_header_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for claimed in [0, 1, 23] {
        ensure_eq!(
            lie(&client, Lie::Size(claimed)),
            Err(Status::ResponseBelowHeader { claimed, minimum: 24 })
        );
    }
    Ok(())
}

fn size_beyond_the_buffer_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.region(0).len();
    let claimed = capacity as u64 + 1;
    ensure_eq!(
        lie(&client, Lie::Size(claimed)),
        Err(Status::ResponseBeyondBuffer { claimed, capacity })
    );
    Ok(())
}

fn size_of_all_ones_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.region(0).len();
    for claimed in [u64::MAX, 1 << 63, u64::from(u32::MAX) + 1] {
        ensure_eq!(
            lie(&client, Lie::Size(claimed)),
            Err(Status::ResponseBeyondBuffer { claimed, capacity })
        );
    }
    Ok(())
}

fn changed_recipient_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::Recipient), Err(Status::InvalidResponse));
    Ok(())
}

fn changed_length_beyond_the_buffer_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let beyond = client.capacity(0) as u64 + 1;
    for length in [beyond, u64::MAX, u64::MAX - 23] {
        ensure_eq!(
            lie(&client, Lie::MessageLength(length)),
            Err(Status::InvalidResponse)
        );
    }
    Ok(())
}

fn wiped_header_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::WipeHeader), Err(Status::InvalidResponse));
    Ok(())
}

fn foreign_header_format_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(lie(&client, Lie::OtherFormat), Err(Status::InvalidResponse));
    Ok(())
}

fn stale_status_is_not_believed(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for lie in [
        Lie::Status(EfiStatus::NOT_FOUND.0),
        Lie::Size(3),
        Lie::MessageLength(2),
    ] {
        let _ = client.communicate(0, &lie.request(), mm::LIAR);
        let stale = client.mailbox(0);
        ensure!(
            stale.is_some_and(|stale| stale.return_status().is_error() || stale.return_buffer_size() != 0),
            "there is no result that could be stale: {stale:?}"
        );
        let (entered, response) = look_during(&client, b"y", mm::ECHO, |client| client.mailbox(0));
        ensure_eq!(entered, Some(Some(MailboxImage::armed())));
        ensure_eq!(response, Ok(b"y".to_vec()));
    }
    Ok(())
}

fn failure_leaves_nothing_behind(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure!(
        client
            .communicate(0, &pattern(3000), super::refusals::NO_HANDLER)
            .is_err(),
        "there is a response"
    );
    ensure_clean(&client, 0)
}

fn lies_leave_nothing_behind(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let beyond = client.region(0).len() as u64 + 1;
    for told in [
        Lie::Ignore,
        Lie::Status(EfiStatus::ACCESS_DENIED.0),
        Lie::Size(3),
        Lie::Size(beyond),
        Lie::Recipient,
        Lie::MessageLength(beyond),
        Lie::WipeHeader,
        Lie::OtherFormat,
    ] {
        // MM also writes over the rest of the buffer, behind any honest response.
        ensure!(lie(&client, told).is_err(), "{told:?} was believed");
        ensure_clean(&client, 0)?;
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}
