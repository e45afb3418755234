//! The MM supervisor's client, with a double of each supported supervisor.

use super::{Seen, ensure_clean, up};
use crate::lab::{
    BootEvent, BufferSetup, Client, Lab, LogLevel, Move, Piece, Setup, SupervisorCall, Update, UpdatePlace,
};
use crate::mm::{self, Release};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use mm_wire::message::supervisor::{GUID, RequestHeader, UnblockMemory, version_request};
use mm_wire::message::supervisor::{REQUEST_COMM_UPDATE, REQUEST_FETCH_POLICY, REQUEST_UNBLOCK_MEMORY};
use mm_wire::{EfiStatus, Guid, HeaderFormat, guid};
use patina::standard::efi;
use patina_mm::component::communicator::Status;
use patina_mm::service::SupervisorError;
use zerocopy::{FromBytes, IntoBytes};

scenarios! {
    supervisor_client_asks_the_version: CONTROLLED_MM | SUPERVISOR, "the client comes up by asking for the version, and returns it";
    supervisor_refuses_requests_without_room: CONTROLLED_MM | SUPERVISOR, "a supervisor that is as strict as Project Mu's fails short requests, and says in the message what else is wrong";
    supervisor_has_its_own_channel: CONTROLLED_MM | SUPERVISOR, "neither channel leads to the other's handlers";
    supervisor_client_unblocks_memory: CONTROLLED_MM | SUPERVISOR, "memory is unblocked, or the supervisor's reason is the error";
    partial_pages_are_not_sent_to_the_supervisor: CONTROLLED_MM | SUPERVISOR, "memory that a supervisor would report as unblocked without mapping it is not sent";
    supervisor_client_fetches_the_policy: CONTROLLED_MM | SUPERVISOR, "the policy arrives whole, or the supervisor says that there is no room";
    supervisor_is_locked_by_its_policy: CONTROLLED_MM | SUPERVISOR, "after the policy was asked for, nothing is unblocked or moved";
    supervisor_client_sends_v1_headers: CONTROLLED_MM | SUPERVISOR, "the supervisor's channel takes only v1 headers, even if the buffer has another one";
    supervisor_client_moves_comm_buffers: CONTROLLED_MM | SUPERVISOR, "both buffers move with one request, the response is found in the new place, and calls go there";
    stale_mailboxes_are_moved_to: CONTROLLED_MM | SUPERVISOR, "old contents of the new mailboxes are not taken for a request";
    supervisor_refuses_a_second_move: CONTROLLED_MM | SUPERVISOR, "a refused move is the supervisor's reason, and everything stays where it is";
    supervisor_refuses_a_whole_move: CONTROLLED_MM | SUPERVISOR, "a move that is refused at its first piece changes nothing";
    supervisor_move_of_another_size_is_not_sent: CONTROLLED_MM | SUPERVISOR, "buffers of another length raise no MMI";
    supervisor_move_of_mixed_up_buffers_is_not_sent: CONTROLLED_MM | SUPERVISOR, "a move with the two buffers swapped raises no MMI";
    supervisor_move_in_part_is_followed: CONTROLLED_MM | SUPERVISOR, "a move that is refused half-way is an error with its reason, and both channels work";
    supervisor_move_of_a_buffer_in_use_is_busy: CONTROLLED_MM | SUPERVISOR | CALLBACKS, "a buffer that a call uses does not move";
    nested_call_to_project_mus_supervisor: CONTROLLED_MM | SUPERVISOR | CALLBACKS, "a supervisor that serves the users first serves the inner call, too";
    nested_call_through_a_shared_mailbox_is_busy: CONTROLLED_MM | SUPERVISOR | CALLBACKS, "one mailbox for two channels announces one request at a time";
    users_follow_project_mus_driver: CONTROLLED_MM | SUPERVISOR | UPDATES | EVENTS | LOGS, "beside Project Mu's driver, which moves both buffers and announces one, messages to the users arrive and the supervisor gets each event once";
    supervisor_with_its_own_driver_is_not_moved: CONTROLLED_MM | SUPERVISOR, "a move is not sent if Project Mu's driver is there, which could not follow it";
    supervisor_that_its_driver_closed_is_explained: CONTROLLED_MM | SUPERVISOR | LOGS, "a request that the supervisor does not take names the driver that may be the cause";
    buffers_that_the_supervisor_moved_are_announced: CONTROLLED_MM | SUPERVISOR | UPDATES | LOGS, "an announcement of the users' new buffer to drivers in C changes nothing here";
    supervisor_whose_mailbox_moved_away_is_disabled: CONTROLLED_MM | SUPERVISOR | UPDATES, "if the users' buffer takes the shared mailbox with it, the supervisor's buffer is out of use";
}

fn setup(release: Release) -> Setup {
    Setup {
        supervisor: Some(0),
        project_mu: Some(release),
        ..Setup::default()
    }
}

/// Runs `look` at a client of each supervisor.
fn with_each(lab: &Lab, look: impl Fn(&Client, Release) -> Seen) -> Seen {
    Release::ALL.into_iter().try_for_each(|release| {
        let client = up(lab, &setup(release))?;
        look(&client, release).map_err(|seen| alloc::format!("{release:?}: {seen}"))
    })
}

fn supervisor_client_asks_the_version(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        ensure_eq!(client.mmis(), 1);
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Version),
            Ok([1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0].to_vec())
        );
        ensure_eq!(client.mmis(), 2);
        ensure_clean(client, 0)
    })
}

fn supervisor_refuses_requests_without_room(lab: &Lab) -> Seen {
    with_each(lab, |client, release| {
        let move_len = match release {
            Release::V20ToV23 => 192,
            Release::Main => 248,
        };
        for (request, shortest) in [(1, 80), (2, 24), (3, 40), (4, move_len), (77, 24)] {
            let mut message = RequestHeader::new(request).as_bytes().to_vec();
            message.resize(shortest, 0);
            let response = client.communicate(0, &message, GUID);
            ensure!(
                response.as_ref().is_ok_and(|response| response.len() == shortest),
                "request {request} of {shortest} bytes: {response:?}"
            );
            message.truncate(shortest - 1);
            ensure_eq!(
                client.communicate(0, &message, GUID),
                Err(Status::MmReturned(efi::Status::NOT_FOUND))
            );
        }
        for spoiled in [0, 4] {
            let mut message = version_request();
            if let Some(byte) = message.get_mut(spoiled) {
                *byte = 0xff;
            }
            let response = client.communicate(0, &message, GUID);
            let result = response.map(|response| {
                let header = RequestHeader::read_from_prefix(&response).ok();
                header.map(|(header, _)| header.result.get())
            });
            ensure_eq!(result, Ok(Some(EfiStatus::INVALID_PARAMETER.0)));
        }
        ensure_clean(client, 0)
    })
}

fn supervisor_has_its_own_channel(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let not_found = Err(Status::MmReturned(efi::Status::NOT_FOUND));
        ensure_eq!(client.communicate(1, &version_request(), GUID), not_found);
        ensure_eq!(client.communicate(0, b"x", mm::ECHO), not_found);
        ensure_both_answer(client)
    })
}

fn supervisor_client_unblocks_memory(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let unblock = |address, pages, identifier| {
            let memory = UnblockMemory::runtime_data(address, pages, identifier);
            client.ask_supervisor(&SupervisorCall::Unblock(memory))
        };
        let refused = |status| Err(refused_request(REQUEST_UNBLOCK_MEMORY, status));
        // The same memory again is not an error.
        for _ in 0..2 {
            ensure_eq!(unblock(0x1000_0000, 4, GUID), Ok(Vec::new()));
        }
        for (address, pages) in [(0x1000_0000, 3), (0x1000_3000, 2), (0x0fff_f000, 2)] {
            ensure_eq!(
                unblock(address, pages, GUID),
                refused(EfiStatus::SECURITY_VIOLATION)
            );
        }
        ensure_eq!(unblock(0x0fff_f000, 6, GUID), refused(EfiStatus::NO_MAPPING));
        ensure_eq!(
            unblock(0x2000_0000, 4, Guid::ZERO),
            refused(EfiStatus::INVALID_PARAMETER)
        );
        ensure_clean(client, 0)
    })
}

fn partial_pages_are_not_sent_to_the_supervisor(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let mmis = client.mmis();
        for (address, pages) in [
            (0x1000_0800, 4),
            (0x1000_0001, 1),
            (0x1000_0000, 0),
            (0x1000_0000, 1 << 52),
            (u64::MAX - 0xfff, 2),
        ] {
            let memory = UnblockMemory::runtime_data(address, pages, GUID);
            ensure_eq!(
                client.ask_supervisor(&SupervisorCall::Unblock(memory)),
                Err(SupervisorError::NoWholePages { address, pages })
            );
        }
        ensure_eq!(client.mmis(), mmis);
        Ok(())
    })
}

fn supervisor_client_fetches_the_policy(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let capacity = client.capacity(0);
        // More room than the comm buffer has is not an error if the policy fits.
        for room in [16, 17, 4096, capacity - 48, capacity - 24, capacity, 2 * capacity] {
            ensure_eq!(
                client.ask_supervisor(&SupervisorCall::Policy(room)),
                Ok(mm::POLICY.to_vec())
            );
        }
        for room in [0, 7, 15] {
            ensure_eq!(
                client.ask_supervisor(&SupervisorCall::Policy(room)),
                Err(refused_request(REQUEST_FETCH_POLICY, EfiStatus::BUFFER_TOO_SMALL))
            );
        }
        ensure_clean(client, 0)
    })?;
    with_each(lab, |client, _| {
        // What is unblocked is in the policy, too: 24 bytes each.
        for address in [0x1000_0000, 0x2000_0000] {
            let memory = UnblockMemory::runtime_data(address, 4, GUID);
            ensure_eq!(
                client.ask_supervisor(&SupervisorCall::Unblock(memory)),
                Ok(Vec::new())
            );
        }
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Policy(39)),
            Err(refused_request(REQUEST_FETCH_POLICY, EfiStatus::OUT_OF_RESOURCES))
        );
        // The policy fits into the comm buffer, but not into the caller's memory.
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Policy(63)),
            Err(Status::ResponseTooLong { needed: 64, room: 63 }.into())
        );
        let policy = client.ask_supervisor(&SupervisorCall::Policy(64));
        ensure!(
            policy.as_ref().is_ok_and(|policy| policy.len() == 64),
            "the policy is {policy:?}"
        );
        ensure_clean(client, 0)
    })
}

fn supervisor_is_locked_by_its_policy(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let denied = |request| Err(refused_request(request, EfiStatus::ACCESS_DENIED));
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Policy(0)),
            Err(refused_request(REQUEST_FETCH_POLICY, EfiStatus::BUFFER_TOO_SMALL))
        );
        let memory = UnblockMemory::runtime_data(0x1000_0000, 4, GUID);
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Unblock(memory)),
            denied(REQUEST_UNBLOCK_MEMORY)
        );
        ensure_eq!(client.ask_supervisor(&NOT_TAKEN), denied(REQUEST_COMM_UPDATE));
        ensure_both_answer(client)
    })
}

fn supervisor_client_sends_v1_headers(lab: &Lab) -> Seen {
    let v3 = |id| BufferSetup {
        header: HeaderFormat::V3,
        ..BufferSetup::new(id)
    };
    for release in Release::ALL {
        let setup = Setup {
            buffers: [v3(0), v3(1)].to_vec(),
            ..setup(release)
        };
        let client = up(lab, &setup)?;
        ensure!(
            client.ask_supervisor(&SupervisorCall::Version).is_ok(),
            "the version was not told"
        );
        // A message with the buffer's own header shows that this supervisor does not take it.
        ensure_eq!(
            client.communicate(0, b"x", mm::ECHO),
            Err(Status::MmReturned(efi::Status::UNSUPPORTED))
        );
        ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

/// The client's error if the supervisor refuses a request.
fn refused_request(request: u32, result: EfiStatus) -> SupervisorError {
    SupervisorError::Refused { request, result }
}

const MOVE: SupervisorCall = SupervisorCall::Move(Move::TAKEN);

const NOT_TAKEN: SupervisorCall = SupervisorCall::Move(Move {
    is_known_to_mm: false,
    ..Move::TAKEN
});

const fn refused_at(piece: Piece) -> SupervisorCall {
    SupervisorCall::Move(Move {
        refused: Some(piece),
        ..Move::TAKEN
    })
}

/// Fails unless both channels respond.
fn ensure_both_answer(client: &Client) -> Seen {
    let version = client.ask_supervisor(&SupervisorCall::Version);
    ensure!(version.is_ok(), "the version request gives {version:?}");
    let message = super::pattern(client.capacity(1));
    ensure_eq!(client.communicate(1, &message, mm::ECHO), Ok(message));
    ensure_clean(client, 0)?;
    ensure_clean(client, 1)
}

fn supervisor_client_moves_comm_buffers(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let (before, mmis) = (client.describe_buffers(), client.mmis());
        ensure_eq!(client.ask_supervisor(&MOVE), Ok(Vec::new()));
        ensure_eq!(client.mmis(), mmis + 1);
        let after = client.describe_buffers();
        ensure!(
            after.len() == before.len() && after.iter().all(|buffer| !before.contains(buffer)),
            "from {before:?} to {after:?}"
        );
        ensure_both_answer(client)
    })
}

fn stale_mailboxes_are_moved_to(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let stale = Move {
            are_mailboxes_stale: true,
            ..Move::TAKEN
        };
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Move(stale)),
            Ok(Vec::new())
        );
        for id in [0, 1] {
            let mailbox = client.mailbox(id);
            ensure!(
                mailbox.is_some_and(|mailbox| !mailbox.is_pending()),
                "mailbox {id} has {mailbox:?}"
            );
        }
        ensure_both_answer(client)
    })
}

fn supervisor_refuses_a_second_move(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        ensure_eq!(client.ask_supervisor(&MOVE), Ok(Vec::new()));
        let before = client.describe_buffers();
        ensure_eq!(
            client.ask_supervisor(&NOT_TAKEN),
            Err(refused_request(REQUEST_COMM_UPDATE, EfiStatus::ACCESS_DENIED))
        );
        ensure_eq!(client.describe_buffers(), before);
        ensure_both_answer(client)
    })
}

fn supervisor_refuses_a_whole_move(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let before = client.describe_buffers();
        ensure_eq!(
            client.ask_supervisor(&refused_at(Piece::Supervisor)),
            Err(refused_request(
                REQUEST_COMM_UPDATE,
                EfiStatus::SECURITY_VIOLATION
            ))
        );
        ensure_eq!(client.describe_buffers(), before);
        ensure_both_answer(client)
    })
}

fn supervisor_move_of_another_size_is_not_sent(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let mmis = client.mmis();
        for (supervisor, users) in [(3, 4), (4, 5)] {
            let other = SupervisorCall::Move(Move {
                supervisor,
                users,
                ..Move::TAKEN
            });
            let refused = client.ask_supervisor(&other);
            ensure!(
                matches!(refused, Err(SupervisorError::UnfitBuffer { .. })),
                "{supervisor} and {users} pages: {refused:?}"
            );
        }
        ensure_eq!(client.mmis(), mmis);
        ensure_both_answer(client)
    })
}

fn supervisor_move_of_mixed_up_buffers_is_not_sent(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let mmis = client.mmis();
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::MoveMixedUp),
            Err(SupervisorError::WrongBuffers {
                supervisor: 1,
                users: 0,
                own: 0
            })
        );
        ensure_eq!(client.mmis(), mmis);
        ensure_both_answer(client)?;
        ensure_eq!(client.ask_supervisor(&MOVE), Ok(Vec::new()));
        ensure_both_answer(client)
    })
}

fn supervisor_move_in_part_is_followed(lab: &Lab) -> Seen {
    for (piece, users_moved) in [(Piece::Users, false), (Piece::UsersMailbox, true)] {
        with_each(lab, |client, _| {
            let before = client.describe_buffers();
            ensure_eq!(
                client.ask_supervisor(&refused_at(piece)),
                Err(SupervisorError::MovedInPart {
                    result: EfiStatus::SECURITY_VIOLATION,
                    users_moved
                })
            );
            let after = client.describe_buffers();
            let stayed = before.iter().zip(&after).map(|(before, after)| before == after);
            ensure_eq!(stayed.collect::<Vec<_>>(), [false, !users_moved]);
            ensure_both_answer(client)
        })
        .map_err(|seen| alloc::format!("{piece:?}: {seen}"))?;
    }
    Ok(())
}

fn supervisor_move_of_a_buffer_in_use_is_busy(lab: &Lab) -> Seen {
    with_each(lab, |client, _| {
        let (inner, outer) = super::nesting::look_during(client, b"outer", mm::ECHO, |client| {
            client.ask_supervisor(&NOT_TAKEN)
        });
        ensure_eq!(inner, Some(Err(Status::Busy.into())));
        // The outer call is through the supervisor's buffer.
        ensure_eq!(outer, Err(Status::MmReturned(efi::Status::NOT_FOUND)));
        ensure_both_answer(client)
    })
}

/// Asks for the version in the middle of a call through the users' buffer.
fn ask_during_a_users_call(client: &Client) -> Result<Result<Vec<u8>, SupervisorError>, String> {
    let seen = Rc::new(Cell::new(None));
    let inner = Rc::clone(&seen);
    let callback = Box::new(move |client: &Client| {
        inner.set(Some(client.ask_supervisor(&SupervisorCall::Version)));
    });
    let outer = client.communicate_around(1, b"outer", mm::ECHO, callback);
    if outer != Ok(b"outer".to_vec()) {
        return Err(alloc::format!("the outer call gave {outer:?}"));
    }
    seen.take().ok_or_else(|| String::from("there was no inner call"))
}

fn nested_call_to_project_mus_supervisor(lab: &Lab) -> Seen {
    let client = up(lab, &setup(Release::Main))?;
    let before = client.mmis();
    let inner = ask_during_a_users_call(&client)?;
    ensure!(inner.is_ok(), "the inner call gave {inner:?}");
    // The inner call raised two, because the first one served the outer request.
    ensure_eq!(client.mmis(), before + 3);
    ensure_both_answer(&client)
}

fn nested_call_through_a_shared_mailbox_is_busy(lab: &Lab) -> Seen {
    let client = up(lab, &setup(Release::V20ToV23))?;
    let before = client.mmis();
    ensure_eq!(ask_during_a_users_call(&client)?, Err(Status::Busy.into()));
    ensure_eq!(client.mmis(), before + 1);
    ensure_both_answer(&client)
}

fn users_follow_project_mus_driver(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let setup = Setup {
            updatable: Some(1),
            events: Some(1),
            supervisor_events: Some(0),
            ..setup(release)
        };
        let client = up(lab, &setup)?;
        ensure_eq!(client.start_project_mus_driver(), Ok(()));
        let message = super::pattern(client.capacity(1));
        ensure_eq!(client.communicate(1, &message, mm::ECHO), Ok(message));
        ensure_clean(&client, 1)?;
        // MM does not look at the supervisor's former buffer any more. If that has its own mailbox,
        // it still announces the driver's request to move.
        let mut version = Ok(Vec::new());
        let log = lab.with_log(LogLevel::Debug, &mut || {
            version = client.ask_supervisor(&SupervisorCall::Version);
        });
        match release {
            Release::V20ToV23 => ensure_eq!(version, Err(Status::CommBufferDisabled.into())),
            Release::Main => ensure_eq!(version, Err(Status::MailboxInUse.into())),
        }
        ensure!(log.contains("MmDxeSupport"), "{release:?}: the log says {log}");
        ensure_eq!(client.ask_supervisor(&NOT_TAKEN), Err(SupervisorError::HasDriver));
        for event in [
            BootEvent::EndOfDxe,
            BootEvent::ReadyToLock,
            BootEvent::ExitBootServices,
        ] {
            let mmis = client.mmis();
            let log = lab.with_log(LogLevel::Debug, &mut || client.signal(event));
            // The client sends the supervisor nothing, and the supervisor takes what its driver
            // sends.
            ensure!(
                !log.contains("supervisor"),
                "{release:?}, {event:?}: the log says {log}"
            );
            // One for the users' event; those of the driver are not counted.
            ensure_eq!(client.mmis(), mmis + 1);
        }
        ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

fn supervisor_with_its_own_driver_is_not_moved(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let setup = Setup {
            supervisors_driver: true,
            ..setup(release)
        };
        let client = up(lab, &setup)?;
        let mmis = client.mmis();
        ensure_eq!(client.ask_supervisor(&MOVE), Err(SupervisorError::HasDriver));
        ensure_eq!(client.mmis(), mmis);
        ensure_both_answer(&client)?;
    }
    Ok(())
}

fn supervisor_that_its_driver_closed_is_explained(lab: &Lab) -> Seen {
    const EXIT_BOOT_SERVICES: Guid = guid!("27abf055-b1b8-4c26-8048-748f37baa2df");
    for (supervisors_driver, is_named) in [(true, true), (false, false)] {
        let setup = Setup {
            supervisors_driver,
            ..setup(Release::Main)
        };
        let client = up(lab, &setup)?;
        ensure_eq!(client.communicate(0, &[0], EXIT_BOOT_SERVICES), Ok([0].to_vec()));
        let mut version = Ok(Vec::new());
        let log = lab.with_log(LogLevel::Debug, &mut || {
            version = client.ask_supervisor(&SupervisorCall::Version);
        });
        ensure_eq!(version, Err(Status::NotProcessed.into()));
        ensure!(
            log.contains("MmDxeSupport") == is_named,
            "with the driver ({supervisors_driver}) the log says {log}"
        );
        ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

fn buffers_that_the_supervisor_moved_are_announced(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let setup = Setup {
            updatable: Some(1),
            ..setup(release)
        };
        let client = up(lab, &setup)?;
        ensure_eq!(client.ask_supervisor(&MOVE), Ok(Vec::new()));
        let log = lab.with_log(LogLevel::Debug, &mut || {
            client.announce(Update {
                place: UpdatePlace::Over(1),
                ..Update::to_pages(4)
            });
            // The next call applies the move.
            let _ = client.communicate(1, b"x", mm::ECHO);
        });
        ensure!(!log.contains("ERROR"), "{release:?}: the log says {log}");
        ensure_both_answer(&client)?;
    }
    Ok(())
}

fn supervisor_whose_mailbox_moved_away_is_disabled(lab: &Lab) -> Seen {
    let setup = Setup {
        updatable: Some(1),
        ..setup(Release::V20ToV23)
    };
    let client = up(lab, &setup)?;
    client.announce(Update::to_pages(4));
    ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    let mmis = client.mmis();
    ensure_eq!(
        client.ask_supervisor(&SupervisorCall::Version),
        Err(Status::CommBufferDisabled.into())
    );
    ensure_eq!(client.mmis(), mmis);
    Ok(())
}
