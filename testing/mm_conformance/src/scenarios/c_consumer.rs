//! The client sends through the protocols of the firmware.

use super::efi_status;
use super::nesting::look_during;
use super::{Seen, pattern, up};
use crate::lab::{Abilities, BufferSetup, Client, Lab, LogLevel, Setup};
use crate::mm;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use mm_wire::{EfiStatus, HeaderFormat};
use patina::standard::efi;
use patina_mm::component::communicator::Status;

scenarios! {
    firmware_protocol2_carries_messages: CONTROLLED_MM | FIRMWARE_PROTOCOLS, "requests and responses of any length go through protocol 2";
    firmware_protocol3_carries_messages: CONTROLLED_MM | FIRMWARE_PROTOCOLS | V3_HEADERS, "requests with a v3 header go through protocol 3";
    firmware_protocol_has_no_room_for_a_longer_response: CONTROLLED_MM | FIRMWARE_PROTOCOLS | LONGER_RESPONSES, "a request must be padded to the length of its response, otherwise the driver's refusal is the error";
    firmware_protocol_carries_mms_status: CONTROLLED_MM | FIRMWARE_PROTOCOLS | NO_HANDLER_STATUS, "MM's refusal comes back through the protocol";
    firmware_protocol_reaches_the_variable_service: VARIABLES | FIRMWARE_PROTOCOLS, "a real handler gives the same response through protocol 2 as without it";
    edk2_driver_carries_messages: CONTROLLED_MM | FIRMWARE_PROTOCOLS | PORTS | MAILBOX | V3_HEADERS, "through edk2's MmCommunicationDxe a response has the length that CommSize tells; protocol 3 has none, and the request's length counts";
    edk2_driver_is_entered_once_at_a_time: CONTROLLED_MM | FIRMWARE_PROTOCOLS | PORTS | MAILBOX | CALLBACKS, "a call through another comm buffer does not enter edk2's driver in the middle of a call, and each gets its own response";
    failures_through_the_firmware_are_one_log_line: CONTROLLED_MM | FIRMWARE_PROTOCOLS | PORTS | MAILBOX | CALLBACKS | LOGS, "a call that the firmware's driver fails is one error line, which says that it was the driver";
    notification_waits_for_the_edk2_driver: CONTROLLED_MM | FIRMWARE_PROTOCOLS | PORTS | MAILBOX | CALLBACKS, "edk2's driver works at TPL_NOTIFY, and a notification comes when it is done";
    edk2_driver_status_without_error_bit_is_an_error: CONTROLLED_MM | FIRMWARE_PROTOCOLS | PORTS | MAILBOX, "a warning of MM that edk2's driver passes on comes without a response";
    missing_firmware_protocol_is_an_error: FIRMWARE_PROTOCOLS, "without the protocol there is no way into MM";
}

/// A client over the firmware's protocol: the one that the client itself produced, or that of edk2's driver.
fn over_protocol(lab: &Lab, header: HeaderFormat, firmware_is_edk2: bool) -> Result<Client, String> {
    let buffer = |id| BufferSetup {
        header,
        ..BufferSetup::new(id)
    };
    up(
        lab,
        &Setup {
            buffers: [buffer(0), buffer(1)].to_vec(),
            produced: (!firmware_is_edk2).then_some(0),
            through_firmware: true,
            firmware_is_edk2,
            ..Setup::default()
        },
    )
}

fn through_firmware(lab: &Lab, header: HeaderFormat) -> Result<Client, String> {
    over_protocol(lab, header, false)
}

fn firmware_protocol2_carries_messages(lab: &Lab) -> Seen {
    let client = through_firmware(lab, HeaderFormat::V1)?;
    for len in [1, 7, 8, 100, 5000] {
        let message = pattern(len);
        ensure_eq!(client.communicate(1, &message, mm::ECHO), Ok(message));
    }
    for len in [0, 5, 8] {
        ensure_eq!(
            client.communicate(1, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
    }
    let message = pattern(client.capacity(1));
    ensure!(
        client.communicate(1, &message, mm::ECHO) == Ok(message),
        "the full buffer did not come back"
    );
    ensure_eq!(client.mmis(), 9);
    Ok(())
}

fn firmware_protocol3_carries_messages(lab: &Lab) -> Seen {
    let client = through_firmware(lab, HeaderFormat::V3)?;
    for len in [1, 7, 8, 100, 5000] {
        let message = pattern(len);
        ensure_eq!(client.communicate(1, &message, mm::ECHO), Ok(message));
    }
    for len in [0, 5, 8] {
        let request = mm::stretch(len);
        let mut expected = pattern(len);
        // The protocol has no CommSize. If MM leaves the header alone, as edk2's for x86 does, a
        // response has its request's length, even if MM's response is shorter.
        if lab.abilities().contains(Abilities::MAILBOX) {
            expected.extend(request.iter().skip(len));
        }
        ensure_eq!(client.communicate(1, &request, mm::STRETCH), Ok(expected));
    }
    Ok(())
}

fn firmware_protocol_has_no_room_for_a_longer_response(lab: &Lab) -> Seen {
    for header in [HeaderFormat::V1, HeaderFormat::V3] {
        let client = through_firmware(lab, header)?;
        ensure_eq!(
            client.communicate(1, &mm::stretch(9), mm::STRETCH),
            Err(Status::MmReturned(efi::Status::BUFFER_TOO_SMALL))
        );
        // The echo's handler returns the padding, too.
        let mut padded = b"padded".to_vec();
        padded.resize(300, 0);
        ensure_eq!(client.communicate(1, &padded, mm::ECHO), Ok(padded));
    }
    Ok(())
}

fn firmware_protocol_carries_mms_status(lab: &Lab) -> Seen {
    for header in [HeaderFormat::V1, HeaderFormat::V3] {
        let client = through_firmware(lab, header)?;
        ensure_eq!(
            client.communicate(0, b"x", super::refusals::NO_HANDLER),
            Err(super::refusals::not_taken(lab))
        );
        ensure_eq!(client.communicate(0, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

fn firmware_protocol_reaches_the_variable_service(lab: &Lab) -> Seen {
    let client = through_firmware(lab, HeaderFormat::V1)?;
    super::variables::ensure_payload_size(&client)
}

fn missing_firmware_protocol_is_an_error(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            through_firmware: true,
            ..Setup::default()
        },
    )?;
    ensure_eq!(
        client.communicate(0, b"x", super::refusals::NO_HANDLER),
        Err(Status::SwMmiServiceNotAvailable)
    );
    ensure_eq!(client.mmis(), 0);
    Ok(())
}

/// A client over edk2's own driver.
fn through_edk2(lab: &Lab, header: HeaderFormat) -> Result<Client, String> {
    over_protocol(lab, header, true)
}

fn edk2_driver_carries_messages(lab: &Lab) -> Seen {
    let client = through_edk2(lab, HeaderFormat::V1)?;
    for len in [0, 5, 8, 300] {
        ensure_eq!(
            client.communicate(0, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
    }
    ensure_eq!(
        client.communicate(0, b"x", super::refusals::NO_HANDLER),
        Err(Status::MmReturned(efi::Status::NOT_FOUND))
    );
    let client = through_edk2(lab, HeaderFormat::V3)?;
    for len in [0, 5, 8] {
        let request = mm::stretch(len);
        let mut expected = pattern(len);
        expected.extend(request.iter().skip(len));
        ensure_eq!(client.communicate(0, &request, mm::STRETCH), Ok(expected));
    }
    Ok(())
}

fn edk2_driver_is_entered_once_at_a_time(lab: &Lab) -> Seen {
    let client = through_edk2(lab, HeaderFormat::V1)?;
    for recipient in [mm::ECHO, mm::STRETCH] {
        // The response to the inner call would be longer than the outer one's.
        let (inner, outer) = look_during(&client, b"outer", mm::ECHO, move |client| {
            client.communicate(1, &mm::stretch(5000), recipient)
        });
        ensure_eq!(inner, Some(Err(Status::Busy)));
        ensure_eq!(outer, Ok(b"outer".to_vec()));
    }
    ensure_eq!(client.mmis(), 2);
    ensure_eq!(client.communicate(1, b"free", mm::ECHO), Ok(b"free".to_vec()));
    Ok(())
}

fn failures_through_the_firmware_are_one_log_line(lab: &Lab) -> Seen {
    let client = through_edk2(lab, HeaderFormat::V1)?;
    let busy = lab.with_log(LogLevel::Debug, &mut || {
        let _ = look_during(&client, b"outer", mm::ECHO, |client| {
            client.communicate(1, b"inner", mm::ECHO)
        });
    });
    let not_found = lab.with_log(LogLevel::Debug, &mut || {
        let _ = client.communicate(0, b"x", super::refusals::NO_HANDLER);
    });
    for (log, needle) in [
        (busy, "driver is in use by a call that this one interrupted"),
        (not_found, "through the firmware's MM communication driver"),
    ] {
        let lines = log.lines().filter(|line| line.contains("ERROR"));
        ensure_eq!(lines.clone().count(), 1);
        ensure!(lines.clone().all(|line| line.contains(needle)), "{log}");
    }
    Ok(())
}

fn notification_waits_for_the_edk2_driver(lab: &Lab) -> Seen {
    let client = through_edk2(lab, HeaderFormat::V1)?;
    let seen = Rc::new(RefCell::new(None));
    let inner = Rc::clone(&seen);
    let (_, outer) = look_during(&client, b"outer", mm::ECHO, move |client| {
        client.notify(Box::new(move |client: &Client| {
            let response = client.communicate(1, &mm::stretch(300), mm::STRETCH);
            *inner.borrow_mut() = Some((response, client.mmis()));
        }));
    });
    ensure_eq!(outer, Ok(b"outer".to_vec()));
    ensure_eq!(seen.take(), Some((Ok(pattern(300)), 2)));
    Ok(())
}

fn edk2_driver_status_without_error_bit_is_an_error(lab: &Lab) -> Seen {
    for header in [HeaderFormat::V1, HeaderFormat::V3] {
        if header == HeaderFormat::V3 && !lab.abilities().contains(Abilities::V3_HEADERS) {
            continue;
        }
        let client = through_edk2(lab, header)?;
        for (status, _) in super::lies::STATUSES_WITHOUT_ERROR_BIT {
            ensure_eq!(
                client.communicate(0, &mm::Lie::Status(status).request(), mm::LIAR),
                Err(Status::MmReturned(efi_status(EfiStatus(status))))
            );
        }
        ensure_eq!(client.communicate(0, b"next", mm::ECHO), Ok(b"next".to_vec()));
    }
    Ok(())
}
