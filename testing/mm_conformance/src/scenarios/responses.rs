//! The response is exactly what MM returned.

use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{BufferSetup, Lab, MailboxSetup, Setup};
use crate::mm::{self, Lie};
use alloc::vec::Vec;
use mm_wire::message::supervisor::{self, RequestHeader, VersionInfo};
use zerocopy::FromBytes;

scenarios! {
    echo_returns_what_was_sent: CONTROLLED_MM, "a message comes back as it was sent";
    response_longer_than_request: CONTROLLED_MM | LONGER_RESPONSES, "a long response to a short request arrives whole";
    response_shorter_than_request: CONTROLLED_MM, "a short response does not end in bytes of the request";
    empty_response_has_no_bytes: CONTROLLED_MM, "a response of no bytes is an empty one, not an error";
    request_fills_the_buffer: CONTROLLED_MM, "a message may take all of the buffer behind the header";
    response_fills_the_buffer: CONTROLLED_MM | LONGER_RESPONSES, "a response may take all of the buffer behind the header";
    lengths_need_no_alignment: CONTROLLED_MM, "requests and responses can have any length";
    rewritten_message_length_is_accepted: CONTROLLED_MM, "MM may write the response's length into the header";
    success_leaves_nothing_behind: CONTROLLED_MM, "neither request nor response stays in shared memory";
    responses_do_not_mix: CONTROLLED_MM, "each of many calls gets its own response, through both buffers";
    supervisor_tells_its_version: CONTROLLED_MM, "a version request with room for the response gets one";
    header_length_counts_without_mailbox: CONTROLLED_MM | LONGER_RESPONSES, "without a mailbox the header says how long the response is";
    shorter_response_has_its_length_without_mailbox: CONTROLLED_MM, "without a mailbox the response to a padded request has its real length, and no byte of the padding";
    many_calls_work: CONTROLLED_MM, "the last of many calls works like the first, and each raised one MMI";
}

fn echo_returns_what_was_sent(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        client.communicate(0, b"is it running?", mm::ECHO),
        Ok(b"is it running?".to_vec())
    );
    Ok(())
}

fn response_longer_than_request(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [9, 100, 4096, 9000] {
        ensure_eq!(
            client.communicate(0, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
    }
    Ok(())
}

fn response_shorter_than_request(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in [1, 7] {
        ensure_eq!(
            client.communicate(0, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
    }
    Ok(())
}

fn empty_response_has_no_bytes(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(
        client.communicate(0, &mm::stretch(0), mm::STRETCH),
        Ok(Vec::new())
    );
    ensure_clean(&client, 0)
}

fn request_fills_the_buffer(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let message = pattern(client.capacity(0));
    ensure!(
        client.communicate(0, &message, mm::ECHO) == Ok(message),
        "the full buffer did not come back"
    );
    ensure_clean(&client, 0)
}

fn response_fills_the_buffer(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let len = client.capacity(0);
    let response = client.communicate(0, &mm::stretch(len), mm::STRETCH);
    ensure!(response == Ok(pattern(len)), "the full buffer did not come back");
    ensure_clean(&client, 0)
}

fn lengths_need_no_alignment(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for len in (1..=40).chain([17, 21, 27, 511, 513, 4095, 4097]) {
        let message = pattern(len);
        ensure_eq!(client.communicate(0, &message, mm::ECHO), Ok(message));
    }
    Ok(())
}

fn rewritten_message_length_is_accepted(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let request = Lie::MessageLength(3).request();
    // The mailbox decides; without one the header does.
    let len = client.mailbox(0).map_or(3, |_| request.len());
    ensure_eq!(
        client.communicate(0, &request, mm::LIAR),
        Ok(request.iter().copied().take(len).collect())
    );
    ensure_clean(&client, 0)
}

fn success_leaves_nothing_behind(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (message, recipient) in [
        (pattern(600), mm::ECHO),
        (mm::stretch(5000).to_vec(), mm::STRETCH),
        (mm::stretch(1).to_vec(), mm::STRETCH),
    ] {
        client
            .communicate(0, &message, recipient)
            .map_err(|failure| alloc::format!("{failure}"))?;
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn responses_do_not_mix(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for n in 1..=100_u8 {
        let message = alloc::vec![n; n.into()];
        ensure_eq!(client.communicate(n % 2, &message, mm::ECHO), Ok(message));
    }
    Ok(())
}

fn supervisor_tells_its_version(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let header = RequestHeader::new(supervisor::REQUEST_VERSION);
    let request = supervisor::version_request();
    let response = client
        .communicate(0, &request, supervisor::GUID)
        .map_err(|failure| alloc::format!("{failure}"))?;
    ensure_eq!(response.len(), request.len());
    let (told, rest) =
        RequestHeader::read_from_prefix(&response).map_err(|error| alloc::format!("{error}"))?;
    ensure_eq!(told, header);
    let version = VersionInfo::read_from_bytes(rest).map_err(|error| alloc::format!("{error}"))?;
    ensure!(
        version.max_request_level.get() >= 3,
        "the response does not know its own request: {version:?}"
    );
    Ok(())
}

/// A request for a response of `len` bytes, padded to 1000: for an MM that copies back only as many
/// bytes as it got.
pub(super) fn padded_stretch(len: usize) -> Vec<u8> {
    let mut message = mm::stretch(len).to_vec();
    message.resize(1000, 0x5a);
    message
}

fn shorter_response_has_its_length_without_mailbox(lab: &Lab) -> Seen {
    let buffers = [BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(0)
    }]
    .to_vec();
    let setup = Setup {
        buffers,
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    for len in [0, 5, 8, 999, 1000] {
        ensure_eq!(
            client.communicate(0, &padded_stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn header_length_counts_without_mailbox(lab: &Lab) -> Seen {
    let buffers = [BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(0)
    }]
    .to_vec();
    let client = up(
        lab,
        &Setup {
            buffers,
            ..Setup::default()
        },
    )?;
    for len in [0, 5, 1000] {
        ensure_eq!(
            client.communicate(0, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn many_calls_work(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let calls = lab.many_calls();
    for n in 0..calls {
        let message = n.to_le_bytes();
        let response = client.communicate(0, &message, mm::ECHO);
        ensure!(response.as_deref() == Ok(&message), "call {n}: {response:?}");
    }
    ensure_eq!(client.mmis(), usize::try_from(calls).unwrap_or(usize::MAX));
    ensure_clean(&client, 0)
}
