//! Re-entrant calls: from a timer or notification in the middle of a call.

use super::refusals::{NO_HANDLER, not_taken};
use super::{Seen, ensure_clean, ready, up};
use crate::lab::{BufferSetup, Client, Lab, MailboxSetup, Setup};
use crate::mm;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use mm_wire::Guid;
use patina_mm::component::communicator::Status;

scenarios! {
    callback_during_call_is_busy: MM | CALLBACKS | NO_HANDLER_STATUS, "the buffer in use gives Busy, and the outer call completes";
    callback_on_another_buffer_is_served: CONTROLLED_MM | CALLBACKS | PORTS, "another buffer serves a call in the middle of a call";
    callback_on_another_buffer_is_busy: CONTROLLED_MM | CALLBACKS | SECURE_CALLS, "the secure world serves one request at a time, from any buffer";
    notification_waits_for_a_call_without_a_mailbox: CONTROLLED_MM | CALLBACKS | PORTS, "no notification raises an MMI in the middle of a call through a buffer without a mailbox, which MM would serve once more";
    printing_during_call_works: CONTROLLED_MM | CALLBACKS, "a communicator can be printed in the middle of a call, and shows which buffer is in use";
    callback_leaves_the_outer_request_alone: CONTROLLED_MM | CALLBACKS, "a refused inner call raises no MMI and changes nothing";
}

/// Makes a call, and runs `look` in the middle of it. Returns the result of `look`, `None` if the
/// call did not get so far, and the outer call's result.
pub(crate) fn look_during<T: 'static>(
    client: &Client,
    message: &[u8],
    recipient: Guid,
    look: impl FnOnce(&Client) -> T + 'static,
) -> (Option<T>, Result<Vec<u8>, Status>) {
    let seen = Rc::new(RefCell::new(None));
    let inner = Rc::clone(&seen);
    let callback = Box::new(move |client: &Client| *inner.borrow_mut() = Some(look(client)));
    let outer = client.communicate_around(0, message, recipient, callback);
    (seen.take(), outer)
}

fn callback_during_call_is_busy(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (inner, outer) = look_during(&client, b"outer", NO_HANDLER, |client| {
        client.communicate(0, b"inner", NO_HANDLER)
    });
    ensure_eq!(inner, Some(Err(Status::Busy)));
    // The outer call completed: MM looked for a handler of its recipient.
    ensure_eq!(outer, Err(not_taken(lab)));
    ensure_eq!(client.mmis(), 1);
    ensure_clean(&client, 0)
}

fn callback_on_another_buffer_is_served(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (inner, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.communicate(1, &mm::stretch(300), mm::STRETCH)
    });
    ensure_eq!(inner, Some(Ok(super::pattern(300))));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_clean(&client, 0)?;
    ensure_clean(&client, 1)
}

fn callback_on_another_buffer_is_busy(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (inner, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.communicate(1, b"inner", mm::ECHO)
    });
    ensure_eq!(inner, Some(Err(Status::Busy)));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_eq!(client.mmis(), 1);
    ensure_clean(&client, 0)?;
    ensure_clean(&client, 1)
}

fn notification_waits_for_a_call_without_a_mailbox(lab: &Lab) -> Seen {
    let without_mailbox = BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(0)
    };
    let setup = Setup {
        buffers: [without_mailbox, BufferSetup::new(1)].to_vec(),
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    let inner = Rc::new(RefCell::new(None));
    let seen = Rc::clone(&inner);
    let (waited, outer) = look_during(&client, b"outer", mm::ECHO, move |client| {
        let later = Rc::clone(&seen);
        client.notify(Box::new(move |client| {
            *later.borrow_mut() = Some(client.communicate(1, b"inner", mm::ECHO));
        }));
        seen.borrow().is_none()
    });
    ensure_eq!((waited, outer), (Some(true), Ok(b"outer".to_vec())));
    ensure_eq!(inner.take(), Some(Ok(b"inner".to_vec())));
    ensure_eq!(client.mmis(), 2);
    ensure_clean(&client, 0)
}

fn printing_during_call_works(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (text, outer) = look_during(&client, b"outer", mm::ECHO, |client| client.describe());
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    let in_use = |text: &str| text.contains("in_use: true");
    ensure!(
        text.as_deref().is_some_and(in_use),
        "no comm buffer is in use in {text:?}"
    );
    let afterwards = client.describe();
    ensure!(!in_use(&afterwards), "a comm buffer stays in use in {afterwards}");
    Ok(())
}

fn callback_leaves_the_outer_request_alone(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let message = super::pattern(2000);
    let (mmis, outer) = look_during(&client, &message, mm::ECHO, |client| {
        let before = client.mmis();
        for _ in 0..10 {
            let _ = client.communicate(0, &super::pattern(5000), mm::ECHO);
        }
        (before, client.mmis())
    });
    ensure_eq!(outer, Ok(message));
    ensure!(
        mmis.is_some_and(|(before, after)| before == after),
        "the refused calls raised MMIs: {mmis:?}"
    );
    Ok(())
}
