//! The MM supervisor's client.

use super::{Seen, ensure_clean, up};
use crate::lab::{Failure, Lab, Machine, Setup, SupervisorCall};
use crate::mm;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::message::supervisor::{CommUpdate, GUID, UnblockMemory};
use mm_wire::{EfiStatus, Guid};

scenarios! {
    supervisor_client_asks_the_version: CONTROLLED_MM | SUPERVISOR, "the client comes up by asking for the version, and tells it";
    supervisor_client_unblocks_memory: CONTROLLED_MM | SUPERVISOR, "memory is unblocked, or the supervisor's reason is the error";
    supervisor_client_fetches_the_policy: CONTROLLED_MM | SUPERVISOR, "the policy arrives whole, or the supervisor says that there is no room";
    supervisor_client_updates_comm_buffers: CONTROLLED_MM | SUPERVISOR, "an update of the comm buffers is taken, or the supervisor's reason is the error";
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

fn supervisor_client_updates_comm_buffers(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let memory = |pages| UnblockMemory::runtime_data(0x1000_0000, pages, GUID);
    let update = |pages| {
        machine.ask_supervisor(&SupervisorCall::Update(CommUpdate {
            mailboxes: [memory(1); 2],
            buffers: [memory(pages); 2],
        }))
    };
    ensure_eq!(update(4), Ok(Vec::new()));
    ensure_eq!(update(0), Err(Failure::Mm(EfiStatus::INVALID_PARAMETER)));
    ensure_clean(&*machine, 0)
}
