//! A comm buffer that moves during boot.

use super::nesting::look_during;
use super::{Seen, ensure_clean, up};
use crate::lab::{Lab, Setup, Update, UpdatePlace};
use crate::mm;
use patina_mm::component::communicator::Status;

scenarios! {
    moved_buffer_is_used: CONTROLLED_MM | UPDATES, "after an update, messages go through the new memory";
    move_announced_before_the_client_is_used: CONTROLLED_MM | UPDATES, "an update that was announced before the client came up is in effect at the first call";
    announcement_of_unknown_version_is_ignored: CONTROLLED_MM | UPDATES, "an update of another version changes nothing";
    announcement_of_impossible_size_is_ignored: CONTROLLED_MM | UPDATES, "pages whose bytes exceed the address space change nothing";
    announced_move_during_call_takes_effect_after_it: CONTROLLED_MM | UPDATES | CALLBACKS, "a call finishes in the buffer it started in";
    announcement_with_impossible_mailbox_is_ignored: CONTROLLED_MM | UPDATES, "a mailbox that is null, misaligned or wrapping changes nothing";
    announcement_over_another_buffer_is_ignored: CONTROLLED_MM | UPDATES, "a buffer cannot move over another one";
    moved_buffer_serves_during_call_in_the_old_one: CONTROLLED_MM | UPDATES | CALLBACKS, "once it moved, a call goes through the new memory while another one still finishes in the old";
    announced_move_to_the_same_place_waits_for_the_call_there: CONTROLLED_MM | UPDATES | CALLBACKS, "an announcement of memory that a call is using does not disturb that call, and is not lost";
    announced_move_back_waits_for_the_call_in_the_old_place: CONTROLLED_MM | UPDATES | CALLBACKS, "a buffer that moves away and back again during a call does not disturb that call";
    updates_arriving_in_every_call_are_all_used: CONTROLLED_MM | UPDATES | CALLBACKS, "of updates that arrive in the middle of calls, each is in effect at the next call";
    moved_buffer_keeps_its_header: CONTROLLED_MM | UPDATES | V3_HEADERS, "a buffer with the v3 header has it in the new place too";
    last_of_many_updates_counts: CONTROLLED_MM | UPDATES, "the newest of several updates is the one that is used";
}

fn setup() -> Setup {
    Setup {
        updatable: Some(0),
        ..Setup::default()
    }
}

fn moved_buffer_is_used(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    ensure_eq!(client.communicate(0, b"before", mm::ECHO), Ok(b"before".to_vec()));
    client.announce(Update::to_pages(6));
    ensure_eq!(client.communicate(0, b"after", mm::ECHO), Ok(b"after".to_vec()));
    let large = super::pattern(6 * 4096 - 24);
    ensure!(
        client.communicate(0, &large, mm::ECHO) == Ok(large),
        "the new buffer does not carry its 6 pages"
    );
    ensure_eq!(client.communicate(1, b"other", mm::ECHO), Ok(b"other".to_vec()));
    ensure_clean(&client, 0)
}

fn move_announced_before_the_client_is_used(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            moved_early: Some(6),
            ..setup()
        },
    )?;
    let large = super::pattern(6 * 4096 - 24);
    ensure!(
        client.communicate(0, &large, mm::ECHO) == Ok(large),
        "the new buffer does not carry its 6 pages"
    );
    ensure_clean(&client, 0)
}

fn announcement_of_unknown_version_is_ignored(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    for version in [0, 2, u64::MAX] {
        client.announce(Update {
            version,
            ..Update::to_pages(6)
        });
        ensure_eq!(client.communicate(0, b"same", mm::ECHO), Ok(b"same".to_vec()));
        let large = super::pattern(5 * 4096);
        ensure_eq!(
            client.communicate(0, &large, mm::ECHO),
            Err(Status::CommBufferTooSmall)
        );
    }
    Ok(())
}

fn announcement_of_impossible_size_is_ignored(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    for pages in [0, 1 << 52, u64::MAX / 4096 + 1, u64::MAX] {
        client.announce(Update::to_pages(pages));
        ensure_eq!(client.communicate(0, b"same", mm::ECHO), Ok(b"same".to_vec()));
    }
    Ok(())
}

fn announced_move_during_call_takes_effect_after_it(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    let (announced, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.announce(Update::to_pages(6));
    });
    ensure_eq!(announced, Some(()));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    let large = super::pattern(6 * 4096 - 24);
    ensure!(
        client.communicate(0, &large, mm::ECHO) == Ok(large),
        "the update was lost"
    );
    Ok(())
}

fn last_of_many_updates_counts(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    for pages in [2, 3, 8, 5, 7] {
        client.announce(Update::to_pages(pages));
    }
    let large = super::pattern(7 * 4096 - 24);
    ensure!(
        client.communicate(0, &large, mm::ECHO) == Ok(large),
        "the last update is not the one in use"
    );
    ensure_eq!(
        client.communicate(0, &super::pattern(7 * 4096), mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    Ok(())
}

fn announcement_with_impossible_mailbox_is_ignored(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    for mailbox in [0, 4, u64::MAX - 7] {
        client.announce(Update {
            mailbox: Some(mailbox),
            ..Update::to_pages(6)
        });
        ensure_eq!(client.communicate(0, b"same", mm::ECHO), Ok(b"same".to_vec()));
        ensure_eq!(
            client.communicate(0, &super::pattern(5 * 4096), mm::ECHO),
            Err(Status::CommBufferTooSmall)
        );
    }
    Ok(())
}

fn announcement_over_another_buffer_is_ignored(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            updatable: Some(1),
            ..Setup::default()
        },
    )?;
    // In the middle of a call through that other buffer, which must not notice.
    let (inner, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.announce(Update {
            place: UpdatePlace::Over(0),
            ..Update::to_pages(4)
        });
        client.communicate(1, b"inner", mm::ECHO)
    });
    ensure_eq!(inner, Some(Ok(b"inner".to_vec())));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    for id in [0, 1] {
        ensure_eq!(client.communicate(id, b"same", mm::ECHO), Ok(b"same".to_vec()));
        ensure_clean(&client, id)?;
    }
    Ok(())
}

fn moved_buffer_serves_during_call_in_the_old_one(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    let (inner, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.announce(Update::to_pages(6));
        client.communicate(0, &super::pattern(5 * 4096), mm::ECHO)
    });
    ensure!(
        inner == Some(Ok(super::pattern(5 * 4096))),
        "the new buffer was not used"
    );
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_clean(&client, 0)
}

fn announced_move_to_the_same_place_waits_for_the_call_there(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    let (inner, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.announce(Update {
            place: UpdatePlace::Over(0),
            ..Update::to_pages(2)
        });
        [
            client.communicate(0, b"inner", mm::ECHO),
            client.communicate(1, b"inner", mm::ECHO),
        ]
    });
    ensure_eq!(inner, Some([Err(Status::Busy), Ok(b"inner".to_vec())]));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    // Now it is in effect: 2 pages are left of 4.
    ensure_eq!(
        client.communicate(0, &super::pattern(3 * 4096), mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    Ok(())
}

fn announced_move_back_waits_for_the_call_in_the_old_place(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    let back = Update {
        place: UpdatePlace::Former(0),
        ..Update::to_pages(2)
    };
    let message = super::pattern(600);
    let (inner, outer) = look_during(&client, &message, mm::ECHO, move |client| {
        client.announce(Update::to_pages(6));
        let away = client.communicate(0, b"away", mm::ECHO);
        client.announce(back);
        [
            away,
            client.communicate(0, b"back", mm::ECHO),
            client.communicate(1, b"other", mm::ECHO),
        ]
    });
    ensure_eq!(
        inner,
        Some([Ok(b"away".to_vec()), Err(Status::Busy), Ok(b"other".to_vec())])
    );
    ensure_eq!(outer, Ok(message));
    // Now it is in effect: 2 pages.
    ensure_eq!(
        client.communicate(0, &super::pattern(3 * 4096), mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    Ok(())
}

fn updates_arriving_in_every_call_are_all_used(lab: &Lab) -> Seen {
    let client = up(lab, &setup())?;
    for pages in [5, 6, 7, 8, 3, 2, 6] {
        let (announced, outer) = look_during(&client, b"outer", mm::ECHO, move |client| {
            client.announce(Update::to_pages(pages));
        });
        ensure_eq!(announced, Some(()));
        ensure_eq!(outer, Ok(b"outer".to_vec()));
        let capacity = usize::try_from(pages).unwrap_or(0) * 4096 - 24;
        let before = client.mmis();
        ensure_eq!(
            client.communicate(0, &super::pattern(capacity + 1), mm::ECHO),
            Err(Status::CommBufferTooSmall)
        );
        ensure_eq!(client.mmis(), before);
        let full = super::pattern(capacity);
        ensure!(
            client.communicate(0, &full, mm::ECHO) == Ok(full),
            "the update to {pages} pages is not in effect"
        );
    }
    Ok(())
}

fn moved_buffer_keeps_its_header(lab: &Lab) -> Seen {
    let buffer = crate::lab::BufferSetup {
        header: mm_wire::HeaderFormat::V3,
        ..crate::lab::BufferSetup::new(0)
    };
    let client = up(
        lab,
        &Setup {
            buffers: [buffer].to_vec(),
            ..setup()
        },
    )?;
    client.announce(Update::to_pages(6));
    let full = super::pattern(6 * 4096 - 56);
    ensure!(
        client.communicate(0, &full, mm::ECHO) == Ok(full),
        "the new buffer does not carry its 6 pages"
    );
    ensure_eq!(
        client.communicate(0, &super::pattern(6 * 4096 - 55), mm::ECHO),
        Err(Status::CommBufferTooSmall)
    );
    Ok(())
}
