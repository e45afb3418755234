//! The configuration comes from HOBs.

use super::nesting::look_during;
use super::{Refused, Seen, ensure_clean, ensure_refused, pattern, up};
use crate::lab::{BufferSetup, HobKind, HobSetup, Lab, MailboxSetup, Move, Setup, SupervisorCall};
use crate::mm::{self, Release};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use mm_wire::EfiStatus;
use patina::standard::efi;
use patina_mm::component::communicator::Status;
use patina_mm::component::sw_mmi_manager::TriggerError;

scenarios! {
    comm_buffer_hob_configures: CONTROLLED_MM | HOBS | MAILBOX, "edk2's comm-buffer HOB is all that a client needs";
    region_hobs_configure: CONTROLLED_MM | HOBS | MAILBOX, "Project Mu's region HOBs give the supervisor's buffer 0 and the user's 1";
    three_field_region_hob_configures: CONTROLLED_MM | HOBS, "the older region HOB does not have a mailbox";
    buffer_and_region_hob_of_one_buffer_agree: CONTROLLED_MM | HOBS | MAILBOX, "two HOBs of one buffer make one buffer, with the mailbox";
    project_mus_hobs_configure_both_channels: CONTROLLED_MM | HOBS | MAILBOX | SUPERVISOR, "the HOBs of each of Project Mu's supervisors are all that a client needs: the supervisor has buffer 0, its users 1";
    supervisor_without_its_users_hob_has_no_mailbox: CONTROLLED_MM | HOBS, "a supervisor's region of three fields shares the mailbox of a comm-buffer HOB only";
    acpi_base_is_read_from_the_chipset: CONTROLLED_MM | HOBS | SMI_SWITCH | MAILBOX, "if PMBASE is read from the LPC bridge, switched-off SMIs are noticed";
    hob_buffer_can_move: CONTROLLED_MM | HOBS | UPDATES | MAILBOX, "a buffer from a HOB can move";
    firmware_driver_waits_for_the_call_in_progress: CONTROLLED_MM | HOBS | MAILBOX | PORTS | CALLBACKS, "a notification that calls the firmware's driver of a HOB's buffer waits for the end of a call through it";
    firmware_driver_in_the_middle_of_a_call_is_noticed: CONTROLLED_MM | HOBS | MAILBOX | PORTS | CALLBACKS, "if the firmware's driver interrupts a call, that call fails instead of getting the driver's response";
    missing_hob_is_refused: HOBS, "without a HOB there is an error instead of an empty configuration";
    short_or_long_hob_is_refused: HOBS | MAILBOX, "a HOB of another length is refused";
    unknown_region_owner_is_refused: HOBS | MAILBOX, "a region that is neither the supervisor's nor the user's is refused";
    impossible_hob_address_is_refused: HOBS | MAILBOX, "an address that is null or not aligned is refused";
    impossible_hob_pages_are_refused: HOBS | MAILBOX, "zero pages, or more than the address space has, are refused";
    impossible_hob_mailbox_is_refused: HOBS | MAILBOX, "a mailbox that is null, misaligned, wrapping or in the buffer is refused";
    two_regions_of_one_owner_are_refused: HOBS | MAILBOX, "each owner has one region";
    hobs_that_share_memory_are_refused: HOBS | MAILBOX, "regions that overlap are refused";
}

fn setup(hobs: &[HobSetup]) -> Setup {
    Setup {
        hobs: Some(hobs.to_vec()),
        ..Setup::default()
    }
}

fn refused(lab: &Lab, hobs: &[HobSetup], status: EfiStatus, because: &'static str) -> Seen {
    let expected = Refused {
        by: "HobConfiguration",
        status,
        because,
    };
    ensure_refused(lab, &setup(hobs), &expected).map_err(|seen| alloc::format!("{hobs:?}: {seen}"))
}

fn all_refused(lab: &Lab, hobs: &[HobSetup], because: &'static str) -> Seen {
    hobs.iter()
        .try_for_each(|hob| refused(lab, &[*hob], EfiStatus::INVALID_PARAMETER, because))
}

const BUFFER: HobSetup = HobSetup::new(HobKind::CommBuffer, 0);
const SUPERVISOR: HobSetup = HobSetup::new(HobKind::Region4(0), 0);
const USER: HobSetup = HobSetup::new(HobKind::Region4(1), 1);

fn comm_buffer_hob_configures(lab: &Lab) -> Seen {
    let client = up(lab, &setup(&[BUFFER]))?;
    let message = pattern(client.capacity(0));
    ensure!(
        client.communicate(0, &message, mm::ECHO) == Ok(message),
        "the buffer has not its pages"
    );
    ensure_eq!(
        client.communicate(1, b"x", mm::ECHO),
        Err(Status::CommBufferNotFound)
    );
    ensure_eq!(client.port_writes(), [(0xb3, 0), (0xb2, 0xff)]);
    ensure_clean(&client, 0)
}

fn region_hobs_configure(lab: &Lab) -> Seen {
    let client = up(lab, &setup(&[USER, SUPERVISOR]))?;
    for (id, len) in [(0, 100), (1, 5000)] {
        ensure_eq!(
            client.communicate(id, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
        ensure_eq!(
            client.communicate(id, b"x", mm::FAIL),
            Err(Status::MmReturned(efi::Status::NOT_FOUND))
        );
        ensure_clean(&client, id)?;
    }
    Ok(())
}

fn three_field_region_hob_configures(lab: &Lab) -> Seen {
    let without_mailbox = |id| BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(id)
    };
    let hobs = [
        HobSetup::new(HobKind::Region3(0), 0),
        HobSetup::new(HobKind::Region3(1), 1),
    ];
    let client = up(
        lab,
        &Setup {
            buffers: [without_mailbox(0), without_mailbox(1)].to_vec(),
            ..setup(&hobs)
        },
    )?;
    for id in [0, 1] {
        ensure_eq!(
            client.communicate(id, &mm::stretch(300), mm::STRETCH),
            Ok(pattern(300))
        );
        ensure_clean(&client, id)?;
    }
    Ok(())
}

fn buffer_and_region_hob_of_one_buffer_agree(lab: &Lab) -> Seen {
    let user_without_mailbox = HobSetup::new(HobKind::Region3(1), 1);
    let buffer = HobSetup::new(HobKind::CommBuffer, 1);
    let client = up(lab, &setup(&[buffer, user_without_mailbox]))?;
    ensure_eq!(client.communicate(1, b"one", mm::ECHO), Ok(b"one".to_vec()));
    // Only the mailbox says that no handler took the message.
    ensure_eq!(
        client.communicate(1, b"x", super::refusals::NO_HANDLER),
        Err(Status::MmReturned(efi::Status::NOT_FOUND))
    );
    let elsewhere = HobSetup {
        mailbox: Some(client.region(1).len() as u64),
        ..buffer
    };
    ensure_eq!(
        client.communicate(0, b"x", mm::ECHO),
        Err(Status::CommBufferNotFound)
    );
    refused(
        lab,
        &[elsewhere, HobSetup::new(HobKind::Region4(1), 1)],
        EfiStatus::INVALID_PARAMETER,
        "is announced with mailboxes at",
    )
}

fn project_mus_hobs_configure_both_channels(lab: &Lab) -> Seen {
    for (release, kind) in [
        (Release::V20ToV23, HobKind::Region3(0)),
        (Release::Main, HobKind::Region4(0)),
    ] {
        let hobs = [HobSetup::new(HobKind::CommBuffer, 1), HobSetup::new(kind, 0)];
        let setup = Setup {
            project_mu: Some(release),
            supervisor: Some(0),
            ..setup(&hobs)
        };
        let client = up(lab, &setup).map_err(|seen| alloc::format!("{release:?}: {seen}"))?;
        let version = client.ask_supervisor(&SupervisorCall::Version);
        ensure!(
            version.is_ok(),
            "{release:?}: the version request gives {version:?}"
        );
        let message = pattern(client.capacity(1));
        ensure_eq!(client.communicate(1, &message, mm::ECHO), Ok(message));
        ensure_eq!(
            client.communicate(1, b"x", super::refusals::NO_HANDLER),
            Err(Status::MmReturned(efi::Status::NOT_FOUND))
        );
        ensure_eq!(
            client.ask_supervisor(&SupervisorCall::Move(Move::TAKEN)),
            Ok(Vec::new())
        );
        ensure_eq!(client.communicate(1, b"x", mm::ECHO), Ok(b"x".to_vec()));
        ensure_clean(&client, 0)?;
        ensure_clean(&client, 1)?;
    }
    Ok(())
}

fn supervisor_without_its_users_hob_has_no_mailbox(lab: &Lab) -> Seen {
    let without_mailbox = |id| BufferSetup {
        mailbox: MailboxSetup::None,
        ..BufferSetup::new(id)
    };
    let setup = Setup {
        buffers: [without_mailbox(0)].to_vec(),
        ..setup(&[HobSetup::new(HobKind::Region3(0), 0)])
    };
    let client = up(lab, &setup)?;
    ensure_eq!(
        client.communicate(0, &mm::stretch(300), mm::STRETCH),
        Ok(pattern(300))
    );
    Ok(())
}

fn acpi_base_is_read_from_the_chipset(lab: &Lab) -> Seen {
    let client = up(lab, &setup(&[BUFFER]))?;
    client.switch_smis(false);
    let result = client.communicate(0, b"x", mm::ECHO);
    ensure!(
        matches!(
            result,
            Err(Status::MmiNotRaised(TriggerError::SmisDisabled { .. }))
        ),
        "the result is {result:?}"
    );
    ensure_eq!(client.mmis(), 0);
    client.switch_smis(true);
    ensure_eq!(client.communicate(0, b"x", mm::ECHO), Ok(b"x".to_vec()));
    Ok(())
}

fn hob_buffer_can_move(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            updatable: Some(1),
            ..setup(&[SUPERVISOR, USER])
        },
    )?;
    ensure_eq!(client.communicate(1, b"before", mm::ECHO), Ok(b"before".to_vec()));
    client.announce(crate::lab::Update::to_pages(6));
    let large = pattern(6 * 4096 - 24);
    ensure!(
        client.communicate(1, &large, mm::ECHO) == Ok(large),
        "the buffer did not move"
    );
    Ok(())
}

fn firmware_driver_waits_for_the_call_in_progress(lab: &Lab) -> Seen {
    for hobs in [[BUFFER, USER], [SUPERVISOR, USER]] {
        let client = up(lab, &setup(&hobs))?;
        let drivers = Rc::new(RefCell::new(None));
        let seen = Rc::clone(&drivers);
        let (_, outer) = look_during(&client, b"outer", mm::ECHO, move |client| {
            client.notify(Box::new(move |client| {
                *seen.borrow_mut() = Some(client.call_firmware_driver(0, b"driver's", mm::ECHO));
            }));
        });
        ensure_eq!(outer, Ok(b"outer".to_vec()));
        ensure_eq!(drivers.take(), Some(Ok(b"driver's".to_vec())));
        // The bytes that the driver left in the buffer do not matter.
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}

fn firmware_driver_in_the_middle_of_a_call_is_noticed(lab: &Lab) -> Seen {
    let client = up(lab, &setup(&[BUFFER]))?;
    let (driver, outer) = look_during(&client, b"outer", mm::ECHO, |client| {
        client.call_firmware_driver(0, &mm::stretch(300), mm::STRETCH)
    });
    ensure_eq!(driver, Some(Ok(pattern(300))));
    ensure_eq!(outer, Err(Status::InvalidResponse));
    ensure_clean(&client, 0)?;
    ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    Ok(())
}

fn missing_hob_is_refused(lab: &Lab) -> Seen {
    refused(lab, &[], EfiStatus::NOT_FOUND, "there is no HOB")
}

fn short_or_long_hob_is_refused(lab: &Lab) -> Seen {
    let hobs: Vec<_> = [0, 8, 16, 23, 25, 31, 33, 40]
        .iter()
        .flat_map(|len| {
            [BUFFER, SUPERVISOR].map(|hob| HobSetup {
                len: Some(*len),
                ..hob
            })
        })
        .collect();
    all_refused(lab, &hobs, "the data that announces a comm buffer has")
}

fn unknown_region_owner_is_refused(lab: &Lab) -> Seen {
    all_refused(
        lab,
        &[2, 255, 256, 1 << 32, u64::MAX].map(|owner| HobSetup::new(HobKind::Region4(owner), 0)),
        "which is neither 0 (supervisor) nor 1 (user)",
    )
}

fn with_each(values: &[u64], spoil: impl Fn(HobSetup, u64) -> HobSetup) -> Vec<HobSetup> {
    values
        .iter()
        .flat_map(|value| [BUFFER, SUPERVISOR].map(|hob| spoil(hob, *value)))
        .collect()
}

fn impossible_hob_address_is_refused(lab: &Lab) -> Seen {
    for (values, because) in [
        (&[0][..], "address is null"),
        (&[1, 8, 4095, lab.scratch() + 64], "is not aligned to 4096 bytes"),
        (&[u64::MAX - 4095], "go past the end of the address space"),
    ] {
        let hobs = with_each(values, |hob, value| HobSetup {
            address: Some(value),
            ..hob
        });
        all_refused(lab, &hobs, because)?;
    }
    Ok(())
}

fn impossible_hob_pages_are_refused(lab: &Lab) -> Seen {
    for (values, because) in [
        (&[0][..], "has no pages"),
        (
            &[1 << 52, u64::MAX / 4096 + 1, u64::MAX],
            "go past the end of the address space",
        ),
    ] {
        let hobs = with_each(values, |hob, value| HobSetup {
            pages: Some(value),
            ..hob
        });
        all_refused(lab, &hobs, because)?;
    }
    // Half the address space, in which a mailbox might lie.
    let half = HobSetup {
        pages: Some(1 << 51),
        ..HobSetup::new(HobKind::Region3(0), 0)
    };
    all_refused(lab, &[half], "go past the end of the address space")
}

fn impossible_hob_mailbox_is_refused(lab: &Lab) -> Seen {
    for (values, because) in [
        (&[0][..], "mailbox's address is null"),
        (&[1, lab.scratch() + 4], "is not aligned to 8 bytes"),
        (
            &[u64::MAX - 7, u64::MAX - 15],
            "goes past the end of the address space",
        ),
    ] {
        let hobs = with_each(values, |hob, value| HobSetup {
            mailbox: Some(value),
            ..hob
        });
        all_refused(lab, &hobs, because)?;
    }
    let inside = [BUFFER, SUPERVISOR].map(|hob| HobSetup {
        address: Some(lab.scratch()),
        mailbox: Some(lab.scratch() + 2048),
        ..hob
    });
    all_refused(lab, &inside, "overlaps its comm buffer")
}

fn two_regions_of_one_owner_are_refused(lab: &Lab) -> Seen {
    let hobs = [SUPERVISOR, HobSetup::new(HobKind::Region4(0), 1)];
    refused(
        lab,
        &hobs,
        EfiStatus::INVALID_PARAMETER,
        "two comm buffers have the identifier 0",
    )
}

fn hobs_that_share_memory_are_refused(lab: &Lab) -> Seen {
    let hobs = [SUPERVISOR, HobSetup::new(HobKind::Region4(1), 0)];
    refused(
        lab,
        &hobs,
        EfiStatus::INVALID_PARAMETER,
        "comm buffers 0 and 1 share memory",
    )
}
