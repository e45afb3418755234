//! MM learns how far the boot has come.

use super::{Seen, ensure_clean, up};
use crate::lab::BootEvent::{self, EndOfDxe, ExitBootServices, ReadyToBoot, ReadyToLock};
use crate::lab::{BufferSetup, Client, Lab, LogLevel, MailboxSetup, Setup, SupervisorCall};
use crate::mm::{self, Release};
use alloc::string::String;
use mm_wire::HeaderFormat;
use patina_mm::component::communicator::Status;

scenarios! {
    each_boot_event_reaches_mm: CONTROLLED_MM | EVENTS, "each event is one message, under the GUID that MM cores know";
    ready_to_lock_is_sent_once: CONTROLLED_MM | EVENTS, "ready to lock is sent once, and not again at ready to boot";
    ready_to_boot_locks_at_the_latest: CONTROLLED_MM | EVENTS, "if ready to lock did not come, it is sent before ready to boot";
    ready_to_lock_before_the_client_is_sent: CONTROLLED_MM | EVENTS, "ready to lock that came before the client is sent as soon as the client is up";
    failed_ready_to_lock_is_sent_at_ready_to_boot: CONTROLLED_MM | EVENTS | SMI_SWITCH, "ready to lock that did not reach MM is sent again before the next event";
    event_during_a_call_through_its_buffer_is_sent_after_it: CONTROLLED_MM | EVENTS | CALLBACKS, "events in the middle of a call through their own buffer are sent when it has ended, in their order";
    event_that_comes_twice_during_a_call_is_sent_twice: CONTROLLED_MM | EVENTS | CALLBACKS, "an event that comes twice in the middle of a call is sent twice when the call has ended";
    event_that_failed_twice_is_sent_twice: CONTROLLED_MM | EVENTS | SMI_SWITCH, "an event that came twice while SMIs were off is sent twice with the next event";
    end_of_dxe_is_sent_before_ready_to_lock: CONTROLLED_MM | EVENTS | LOGS, "a platform that locks before the end of DXE gets a warning, and the end of DXE is sent first";
    supervisor_gets_events_after_the_users: CONTROLLED_MM | EVENTS | SUPERVISOR, "the MM supervisor gets ready to lock and exit boot services through its own buffer, with a v1 header";
    supervisor_gets_exit_boot_services_once: CONTROLLED_MM | EVENTS | SUPERVISOR, "only the users get a second exit boot services";
    supervisor_with_its_own_driver_gets_no_events: CONTROLLED_MM | EVENTS | SUPERVISOR, "if Project Mu's driver is there, the supervisor gets its events from that driver only";
    events_that_the_platforms_drivers_send_are_left_out: CONTROLLED_MM | EVENTS | SUPERVISOR, "an event that a driver in C sends to MM is not sent twice";
    without_a_mailbox_the_log_claims_no_delivery: CONTROLLED_MM | EVENTS | LOGS | PORTS, "the log does not say that MM got the event if nothing shows it";
    each_boot_event_is_one_mmi: MM | EVENTS, "each event is one message, with any MM";
    boot_event_during_a_call_does_not_disturb_it: CONTROLLED_MM | EVENTS | CALLBACKS, "an event in the middle of a call goes through another buffer";
}

fn ready(lab: &Lab) -> Result<Client, String> {
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

/// Signals an event, and compares the MMIs it took.
fn signal(client: &Client, event: BootEvent, mmis: usize) -> Seen {
    let before = client.mmis();
    client.signal(event);
    ensure!(
        client.mmis() == before + mmis,
        "{event:?} took {} MMIs, not {mmis}",
        client.mmis() - before
    );
    ensure_clean(client, 1)
}

/// Like [`signal`], but also compares what MM saw last.
fn told(client: &Client, event: BootEvent, mmis: usize, last: &str) -> Seen {
    signal(client, event, mmis)?;
    let report = client.mm_report();
    ensure!(
        report
            .iter()
            .any(|line| line.starts_with(last) && line.contains("1 bytes")),
        "after {event:?} MM reports {report:?}"
    );
    Ok(())
}

fn each_boot_event_reaches_mm(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    ensure_eq!(client.mmis(), 0);
    told(&client, EndOfDxe, 1, END_OF_DXE)?;
    told(&client, ReadyToLock, 1, READY_TO_LOCK)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)?;
    told(&client, ExitBootServices, 1, EXIT_BOOT_SERVICES)
}

fn each_boot_event_is_one_mmi(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for (event, mmis) in [(EndOfDxe, 1), (ReadyToLock, 1), (ReadyToLock, 0), (EndOfDxe, 1)] {
        signal(&client, event, mmis)?;
    }
    Ok(())
}

fn ready_to_lock_is_sent_once(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    told(&client, EndOfDxe, 1, END_OF_DXE)?;
    told(&client, ReadyToLock, 1, READY_TO_LOCK)?;
    told(&client, ReadyToLock, 0, READY_TO_LOCK)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)
}

fn ready_to_boot_locks_at_the_latest(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    told(&client, EndOfDxe, 1, END_OF_DXE)?;
    told(&client, ReadyToBoot, 2, READY_TO_BOOT)?;
    told(&client, ReadyToLock, 0, READY_TO_BOOT)
}

fn boot_event_during_a_call_does_not_disturb_it(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (mmis, outer) = super::nesting::look_during(&client, b"outer", mm::ECHO, |client| {
        let before = client.mmis();
        client.signal(EndOfDxe);
        client.mmis() - before
    });
    ensure_eq!(mmis, Some(1));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_clean(&client, 0)?;
    ensure_clean(&client, 1)
}

fn ready_to_lock_before_the_client_is_sent(lab: &Lab) -> Seen {
    let setup = Setup {
        events: Some(1),
        locked_early: true,
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    // The end of DXE, and then ready to lock.
    ensure_eq!(client.mmis(), 2);
    signal(&client, ReadyToLock, 0)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)
}

fn failed_ready_to_lock_is_sent_at_ready_to_boot(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.switch_smis(false);
    client.signal(ReadyToLock);
    client.signal(ReadyToLock);
    ensure_eq!(client.mmis(), 0);
    client.switch_smis(true);
    told(&client, ReadyToBoot, 3, READY_TO_BOOT)?;
    told(&client, ReadyToLock, 0, READY_TO_BOOT)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)
}

fn event_that_comes_twice_during_a_call_is_sent_twice(lab: &Lab) -> Seen {
    let setup = Setup {
        events: Some(0),
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    client.signal(EndOfDxe);
    client.signal(ReadyToLock);
    let before = client.mmis();
    let (_, outer) = super::nesting::look_during(&client, b"outer", mm::ECHO, |client| {
        client.signal(ReadyToBoot);
        client.signal(ReadyToBoot);
    });
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_eq!(client.mmis() - before, 3);
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)
}

fn event_that_failed_twice_is_sent_twice(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.switch_smis(false);
    client.signal(EndOfDxe);
    client.signal(EndOfDxe);
    ensure_eq!(client.mmis(), 0);
    client.switch_smis(true);
    told(&client, ReadyToLock, 3, READY_TO_LOCK)
}

fn end_of_dxe_is_sent_before_ready_to_lock(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let log = lab.with_log(LogLevel::Debug, &mut || client.signal(ReadyToLock));
    ensure_eq!(client.mmis(), 2);
    ensure!(log.contains("before the end of DXE"), "the log says {log}");
    let at = |guid| log.find(&alloc::format!("1 bytes to {guid}"));
    ensure!(
        at(END_OF_DXE).is_some() && at(END_OF_DXE) < at(READY_TO_LOCK),
        "in another order: {log}"
    );
    // The end of DXE is sent each time nevertheless.
    told(&client, EndOfDxe, 1, END_OF_DXE)
}

fn event_during_a_call_through_its_buffer_is_sent_after_it(lab: &Lab) -> Seen {
    let setup = Setup {
        events: Some(0),
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    let (mmis, outer) = super::nesting::look_during(&client, b"outer", mm::ECHO, |client| {
        let before = client.mmis();
        client.signal(ReadyToLock);
        client.signal(EndOfDxe);
        client.mmis() - before
    });
    ensure_eq!(mmis, Some(0));
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    // The call, the end of DXE, and then ready to lock.
    ensure_eq!(client.mmis(), 3);
    let report = client.mm_report();
    ensure!(
        report.iter().any(|line| line.starts_with(READY_TO_LOCK)),
        "MM got last: {report:?}"
    );
    told(&client, ReadyToLock, 0, READY_TO_LOCK)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)?;
    ensure_clean(&client, 0)
}

fn with_supervisor(release: Release) -> Setup {
    let v3 = BufferSetup {
        header: HeaderFormat::V3,
        ..BufferSetup::new(0)
    };
    Setup {
        buffers: [v3, BufferSetup::new(1)].to_vec(),
        events: Some(1),
        supervisor_events: Some(0),
        project_mu: Some(release),
        ..Setup::default()
    }
}

fn supervisor_gets_events_after_the_users(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let client = up(lab, &with_supervisor(release))?;
        told(&client, EndOfDxe, 1, END_OF_DXE)?;
        told(&client, ReadyToLock, 2, READY_TO_LOCK)?;
        told(&client, ReadyToBoot, 1, READY_TO_BOOT)?;
        told(&client, ExitBootServices, 2, EXIT_BOOT_SERVICES)?;
        ensure_eq!(client.mmis(), 6);
        ensure_clean(&client, 0)?;
    }
    Ok(())
}

fn supervisor_gets_exit_boot_services_once(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let setup = Setup {
            supervisor: Some(0),
            ..with_supervisor(release)
        };
        let client = up(lab, &setup)?;
        told(&client, ExitBootServices, 2, EXIT_BOOT_SERVICES)?;
        told(&client, ExitBootServices, 1, EXIT_BOOT_SERVICES)?;
        let version = client.ask_supervisor(&SupervisorCall::Version);
        match release {
            // RELEASE builds continue.
            Release::V20ToV23 => ensure!(version.is_ok(), "the version request gives {version:?}"),
            Release::Main => ensure_eq!(version, Err(Status::NotProcessed.into())),
        }
        // No request stays announced, which each later MMI would have to refuse.
        ensure_clean(&client, 0)?;
        ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

fn supervisor_with_its_own_driver_gets_no_events(lab: &Lab) -> Seen {
    for release in Release::ALL {
        let setup = Setup {
            supervisors_driver: true,
            ..with_supervisor(release)
        };
        let client = up(lab, &setup)?;
        told(&client, EndOfDxe, 1, END_OF_DXE)?;
        told(&client, ReadyToLock, 1, READY_TO_LOCK)?;
        told(&client, ExitBootServices, 1, EXIT_BOOT_SERVICES)?;
    }
    Ok(())
}

fn events_that_the_platforms_drivers_send_are_left_out(lab: &Lab) -> Seen {
    let setup = Setup {
        events_left_out: [ReadyToLock, ExitBootServices].to_vec(),
        ..with_supervisor(Release::Main)
    };
    let client = up(lab, &setup)?;
    told(&client, EndOfDxe, 1, END_OF_DXE)?;
    // The supervisor gets these events.
    told(&client, ReadyToLock, 1, READY_TO_LOCK)?;
    told(&client, ReadyToBoot, 1, READY_TO_BOOT)?;
    told(&client, ExitBootServices, 1, EXIT_BOOT_SERVICES)?;
    told(&client, ExitBootServices, 0, EXIT_BOOT_SERVICES)
}

fn without_a_mailbox_the_log_claims_no_delivery(lab: &Lab) -> Seen {
    let without_mailbox = BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(1)
    };
    let setup = Setup {
        buffers: [BufferSetup::new(0), without_mailbox].to_vec(),
        events: Some(1),
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    let log = lab.with_log(LogLevel::Debug, &mut || client.signal(EndOfDxe));
    ensure!(
        log.contains("nothing shows that it arrived")
            && !log.contains("MM processed")
            && !log.contains("MM has no"),
        "the log says {log}"
    );
    let client = ready(lab)?;
    let log = lab.with_log(LogLevel::Debug, &mut || client.signal(EndOfDxe));
    ensure!(log.contains("MM has no handler for"), "the log says {log}");
    Ok(())
}
