//! The MM supervisor's client.

use super::{Seen, ensure_clean, up};
use crate::lab::{BufferSetup, Failure, Lab, Machine, Setup, SupervisorCall};
use crate::mm;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use mm_wire::message::supervisor::{GUID, UnblockMemory};
use mm_wire::{EfiStatus, Guid, HeaderFormat};

scenarios! {
    supervisor_client_asks_the_version: CONTROLLED_MM | SUPERVISOR, "the client comes up by asking for the version, and tells it";
    supervisor_client_unblocks_memory: CONTROLLED_MM | SUPERVISOR, "memory is unblocked, or the supervisor's reason is the error";
    supervisor_client_fetches_the_policy: CONTROLLED_MM | SUPERVISOR, "the policy arrives whole, or the supervisor says that there is no room";
    supervisor_client_sends_v1_headers: CONTROLLED_MM | SUPERVISOR, "the supervisor's channel takes v1 headers alone, whatever the buffer's header is";
    supervisor_client_moves_comm_buffers: CONTROLLED_MM | SUPERVISOR, "both buffers move with one request, the response is found in the new place, and calls go there";
    supervisor_refuses_a_second_move: CONTROLLED_MM | SUPERVISOR, "a refused move is the supervisor's reason, and everything stays where it is";
    supervisor_move_of_another_size_is_not_sent: CONTROLLED_MM | SUPERVISOR, "buffers of another length raise no MMI";
    supervisor_move_of_mixed_up_buffers_is_not_sent: CONTROLLED_MM | SUPERVISOR, "the users' buffer in the place of the supervisor's raises no MMI";
    supervisor_move_in_part_is_told: CONTROLLED_MM | SUPERVISOR, "a supervisor that moves its own buffer and refuses the rest is an error of its own";
    supervisor_move_of_a_buffer_in_use_is_busy: CONTROLLED_MM | SUPERVISOR | CALLBACKS, "a buffer that a call uses does not move";
    nested_call_to_project_mus_supervisor: CONTROLLED_MM | SUPERVISOR | CALLBACKS, "a supervisor that serves the users first serves the inner call, too";
}

fn ready(lab: &dyn Lab) -> Result<Box<dyn Machine>, String> {
    up(
        lab,
        &Setup {
            supervisor: Some(0),
            ..Setup::default()
        },
    )
}

fn supervisor_client_asks_the_version(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    ensure_eq!(machine.mmis(), 1);
    ensure_eq!(
        machine.ask_supervisor(&SupervisorCall::Version),
        Ok([1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0].to_vec())
    );
    ensure_eq!(machine.mmis(), 2);
    ensure_clean(&*machine, 0)
}

fn supervisor_client_unblocks_memory(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let unblock = |address, identifier| {
        machine.ask_supervisor(&SupervisorCall::Unblock(UnblockMemory::runtime_data(
            address, 4, identifier,
        )))
    };
    ensure_eq!(unblock(0x1000_0000, GUID), Ok(Vec::new()));
    ensure_eq!(
        unblock(0x1000_0800, GUID),
        Err(Failure::Mm(EfiStatus::SECURITY_VIOLATION))
    );
    ensure_eq!(
        unblock(0x1000_0000, Guid::ZERO),
        Err(Failure::Mm(EfiStatus::INVALID_PARAMETER))
    );
    ensure_clean(&*machine, 0)
}

fn supervisor_client_fetches_the_policy(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    for room in [16, 17, 4096] {
        ensure_eq!(
            machine.ask_supervisor(&SupervisorCall::Policy(room)),
            Ok(mm::POLICY.to_vec())
        );
    }
    for (room, status) in [
        (0, EfiStatus::BUFFER_TOO_SMALL),
        (7, EfiStatus::BUFFER_TOO_SMALL),
        (15, EfiStatus::OUT_OF_RESOURCES),
    ] {
        ensure_eq!(
            machine.ask_supervisor(&SupervisorCall::Policy(room)),
            Err(Failure::Mm(status))
        );
    }
    ensure_eq!(
        machine.ask_supervisor(&SupervisorCall::Policy(machine.capacity(0))),
        Err(Failure::MessageTooLarge)
    );
    ensure_clean(&*machine, 0)
}

fn supervisor_client_sends_v1_headers(lab: &dyn Lab) -> Seen {
    let v3 = |id| BufferSetup {
        header: HeaderFormat::V3,
        ..BufferSetup::new(id)
    };
    let setup = Setup {
        buffers: [v3(0), v3(1)].to_vec(),
        supervisor: Some(0),
        ..Setup::default()
    };
    let machine = up(lab, &setup)?;
    as_project_mu(&*machine)?;
    ensure!(
        machine.ask_supervisor(&SupervisorCall::Version).is_ok(),
        "the version was not told"
    );
    // A message with the buffer's own header shows that this supervisor does not take it.
    ensure_eq!(
        machine.communicate(0, b"x", mm::ECHO),
        Err(Failure::Mm(EfiStatus::UNSUPPORTED))
    );
    ensure_eq!(machine.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    Ok(())
}

const MOVE: SupervisorCall = SupervisorCall::Move {
    supervisor: 4,
    users: 4,
    is_taken: true,
};

const NOT_TAKEN: SupervisorCall = SupervisorCall::Move {
    supervisor: 4,
    users: 4,
    is_taken: false,
};

/// Fails unless both channels response.
fn ensure_both_answer(machine: &dyn Machine) -> Seen {
    let version = machine.ask_supervisor(&SupervisorCall::Version);
    ensure!(version.is_ok(), "the supervisor answers {version:?}");
    let message = super::pattern(machine.capacity(1));
    ensure_eq!(machine.communicate(1, &message, mm::ECHO), Ok(message));
    ensure_clean(machine, 0)?;
    ensure_clean(machine, 1)
}

fn supervisor_client_moves_comm_buffers(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let (before, mmis) = (machine.describe_buffers(), machine.mmis());
    ensure_eq!(machine.ask_supervisor(&MOVE), Ok(Vec::new()));
    ensure_eq!(machine.mmis(), mmis + 1);
    let after = machine.describe_buffers();
    ensure!(
        after.len() == before.len() && after.iter().all(|buffer| !before.contains(buffer)),
        "from {before:?} to {after:?}"
    );
    ensure_both_answer(&*machine)
}

fn supervisor_refuses_a_second_move(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    ensure_eq!(machine.ask_supervisor(&MOVE), Ok(Vec::new()));
    let before = machine.describe_buffers();
    ensure_eq!(
        machine.ask_supervisor(&NOT_TAKEN),
        Err(Failure::Mm(EfiStatus::ACCESS_DENIED))
    );
    ensure_eq!(machine.describe_buffers(), before);
    ensure_both_answer(&*machine)
}

fn supervisor_move_of_another_size_is_not_sent(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let mmis = machine.mmis();
    for (supervisor, users) in [(3, 4), (4, 5)] {
        let other = SupervisorCall::Move {
            supervisor,
            users,
            is_taken: true,
        };
        ensure_eq!(machine.ask_supervisor(&other), Err(Failure::BadMemory));
    }
    ensure_eq!(machine.mmis(), mmis);
    ensure_both_answer(&*machine)
}

fn supervisor_move_of_mixed_up_buffers_is_not_sent(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let mmis = machine.mmis();
    ensure_eq!(
        machine.ask_supervisor(&SupervisorCall::MoveMixedUp),
        Err(Failure::UnknownBuffer)
    );
    ensure_eq!(machine.mmis(), mmis);
    ensure_both_answer(&*machine)?;
    ensure_eq!(machine.ask_supervisor(&MOVE), Ok(Vec::new()));
    ensure_both_answer(&*machine)
}

fn supervisor_move_in_part_is_told(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    ensure_eq!(machine.ask_supervisor(&NOT_TAKEN), Err(Failure::NotProcessed));
    ensure_eq!(machine.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    ensure_clean(&*machine, 0)
}

fn supervisor_move_of_a_buffer_in_use_is_busy(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let (inner, outer) = super::nesting::look_during(&*machine, b"outer", mm::ECHO, |machine| {
        machine.ask_supervisor(&NOT_TAKEN)
    });
    ensure_eq!(inner, Some(Err(Failure::Busy)));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_both_answer(&*machine)
}

fn nested_call_to_project_mus_supervisor(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    as_project_mu(&*machine)?;
    let seen = Rc::new(Cell::new(None));
    let inner = Rc::clone(&seen);
    let callback = Box::new(move |machine: &dyn Machine| {
        inner.set(Some(machine.ask_supervisor(&SupervisorCall::Version)));
    });
    let before = machine.mmis();
    let outer = machine.communicate_around(1, b"outer", mm::ECHO, callback);
    let inner = seen.take();
    ensure!(matches!(inner, Some(Ok(_))), "the inner call gave {inner:?}");
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    // Two of the inner call, since the first one served the outer request.
    ensure_eq!(machine.mmis(), before + 3);
    ensure_both_answer(&*machine)
}

/// Has MM serve comm buffer 0 as the supervisor's and 1 as the users', as Project Mu does.
pub(super) fn as_project_mu(machine: &dyn Machine) -> Seen {
    ensure_eq!(machine.communicate(1, b"x", mm::PROJECT_MU), Ok(b"x".to_vec()));
    Ok(())
}
