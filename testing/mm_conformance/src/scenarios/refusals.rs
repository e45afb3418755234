//! Requests that cannot be sent are refused before MM is entered.

use super::efi_status;
use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{Abilities, Client, Lab, Setup};
use crate::mm;
pub(crate) use crate::real_mm::NO_HANDLER;
use alloc::vec::Vec;
use mm_wire::header::V3_MARKER;
use mm_wire::{EfiStatus, MailboxImage};
use patina_mm::component::communicator::Status;

scenarios! {
    empty_message_is_refused: MM, "an empty message raises no MMI";
    message_too_large_is_refused: MM, "a message that does not fit raises no MMI and writes nothing";
    v3_marker_is_not_a_recipient: MM, "a v1 message for the GUID that marks v3 headers raises no MMI and writes nothing";
    unknown_buffer_is_refused: MM, "a call with an unknown buffer identifier raises no MMI";
    disabled_buffer_is_refused: MM, "a comm buffer that was disabled through one clone is disabled for all";
    no_buffer_is_an_error: MM, "without any comm buffer there is a separate error";
    foreign_request_in_the_mailbox_is_left_alone: CONTROLLED_MM | MAILBOX, "a mailbox that announces another driver's request is not touched";
    refused_calls_do_not_spoil_the_next: CONTROLLED_MM, "after every refusal the next call is served";
}

/// The status of a request without a handler, or whose handler fails: the mailbox has a status for
/// it, a secure monitor call returns that it is not supported.
pub(super) fn not_taken(lab: &Lab) -> Status {
    Status::MmReturned(efi_status(not_taken_status(lab)))
}

/// The status in [`not_taken`].
pub(super) fn not_taken_status(lab: &Lab) -> EfiStatus {
    if lab.abilities().contains(Abilities::SECURE_CALLS) {
        EfiStatus::UNSUPPORTED
    } else {
        EfiStatus::NOT_FOUND
    }
}

fn refused(client: &Client, buffer: u8, message: &[u8], expected: Status) -> Seen {
    let before = client.mmis();
    ensure_eq!(client.communicate(buffer, message, NO_HANDLER), Err(expected));
    ensure_eq!(client.mmis(), before);
    Ok(())
}

fn empty_message_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    refused(&client, 0, &[], Status::InvalidDataBuffer)?;
    ensure_clean(&client, 0)
}

fn message_too_large_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.capacity(0);
    refused(&client, 0, &pattern(capacity + 1), Status::CommBufferTooSmall)?;
    refused(&client, 0, &pattern(capacity * 3), Status::CommBufferTooSmall)?;
    ensure_clean(&client, 0)
}

fn v3_marker_is_not_a_recipient(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        client.communicate(0, b"x", V3_MARKER),
        Err(Status::InvalidRecipient)
    );
    ensure_eq!(client.mmis(), 0);
    ensure_clean(&client, 0)
}

fn unknown_buffer_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    refused(&client, 200, b"x", Status::CommBufferNotFound)
}

fn disabled_buffer_is_refused(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.disable(0);
    refused(&client, 0, b"x", Status::CommBufferDisabled)?;
    ensure_clean(&client, 0)
}

fn no_buffer_is_an_error(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            buffers: Vec::new(),
            ..Setup::default()
        },
    )?;
    refused(&client, 0, b"x", Status::NoCommBuffer)
}

fn foreign_request_in_the_mailbox_is_left_alone(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let foreign = MailboxImage::armed();
    client.write_mailbox(0, foreign);
    refused(&client, 0, b"x", Status::MailboxInUse)?;
    ensure_eq!(client.mailbox(0), Some(foreign));
    client.write_mailbox(0, MailboxImage::answered(EfiStatus::SUCCESS, 0));
    ensure_eq!(client.communicate(0, b"x", mm::ECHO), Ok(b"x".to_vec()));
    Ok(())
}

fn refused_calls_do_not_spoil_the_next(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let capacity = client.capacity(0);
    for (buffer, message) in [(0, Vec::new()), (0, pattern(capacity + 1)), (9, pattern(1))] {
        ensure!(
            client.communicate(buffer, &message, mm::ECHO).is_err(),
            "it was not refused"
        );
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}
