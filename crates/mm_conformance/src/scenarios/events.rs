//! MM is told how far the boot has come.

use super::{Seen, ensure_clean, up};
use crate::lab::BootEvent::{self, EndOfDxe, ExitBootServices, ReadyToBoot, ReadyToLock};
use crate::lab::{Lab, Machine, Setup};
use crate::mm;
use alloc::boxed::Box;
use alloc::string::String;

scenarios! {
    each_boot_event_reaches_mm: CONTROLLED_MM | EVENTS, "each event is one message, under the GUID that MM cores know";
    ready_to_lock_is_sent_once: CONTROLLED_MM | EVENTS, "ready to lock is told once, and not again at ready to boot";
    ready_to_boot_locks_at_the_latest: CONTROLLED_MM | EVENTS, "where nobody said ready to lock, ready to boot says it first";
    boot_event_during_a_call_does_not_disturb_it: CONTROLLED_MM | EVENTS | CALLBACKS, "an event in the middle of a call goes through another buffer";
}

fn ready(lab: &dyn Lab) -> Result<Box<dyn Machine>, String> {
    up(
        lab,
        &Setup {
            events: Some(1),
            ..Setup::default()
        },
    )
}

const END_OF_DXE: &str = "02ce967a-dd7e-4ffc-9ee7-810cf0470880";
const READY_TO_LOCK: &str = "60ff8964-e906-41d0-afed-f241e974e08e";
const READY_TO_BOOT: &str = "7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b";
const EXIT_BOOT_SERVICES: &str = "27abf055-b1b8-4c26-8048-748f37baa2df";

/// Signals an event, and compares the MMIs it took and what MM saw last.
fn signal(machine: &dyn Machine, event: BootEvent, mmis: usize, last: &str) -> Seen {
    let before = machine.mmis();
    machine.signal(event);
    ensure!(
        machine.mmis() == before + mmis,
        "{event:?} took {} MMIs, not {mmis}",
        machine.mmis() - before
    );
    let report = machine.mm_report();
    ensure!(
        report
            .iter()
            .any(|line| line.starts_with(last) && line.contains("1 bytes")),
        "after {event:?} MM reports {report:?}"
    );
    ensure_clean(machine, 1)
}

fn each_boot_event_reaches_mm(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    ensure_eq!(machine.mmis(), 0);
    signal(&*machine, EndOfDxe, 1, END_OF_DXE)?;
    signal(&*machine, ReadyToLock, 1, READY_TO_LOCK)?;
    signal(&*machine, ReadyToBoot, 1, READY_TO_BOOT)?;
    signal(&*machine, ReadyToBoot, 1, READY_TO_BOOT)?;
    signal(&*machine, ExitBootServices, 1, EXIT_BOOT_SERVICES)
}

fn ready_to_lock_is_sent_once(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    signal(&*machine, ReadyToLock, 1, READY_TO_LOCK)?;
    signal(&*machine, ReadyToLock, 0, READY_TO_LOCK)?;
    signal(&*machine, ReadyToBoot, 1, READY_TO_BOOT)
}

fn ready_to_boot_locks_at_the_latest(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    signal(&*machine, EndOfDxe, 1, END_OF_DXE)?;
    signal(&*machine, ReadyToBoot, 2, READY_TO_BOOT)?;
    signal(&*machine, ReadyToLock, 0, READY_TO_BOOT)
}

fn boot_event_during_a_call_does_not_disturb_it(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let (mmis, outer) = super::nesting::look_during(&*machine, b"outer", mm::ECHO, |machine| {
        let before = machine.mmis();
        machine.signal(EndOfDxe);
        machine.mmis() - before
    });
    ensure_eq!(mmis, Some(1));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_clean(&*machine, 0)?;
    ensure_clean(&*machine, 1)
}
