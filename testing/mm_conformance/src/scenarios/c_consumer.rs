//! The client sends through the protocols of the firmware.

use super::{Seen, pattern, up};
use crate::lab::{Abilities, BufferSetup, Failure, Lab, Machine, Setup};
use crate::mm;
use alloc::boxed::Box;
use alloc::string::String;
use mm_wire::{EfiStatus, HeaderFormat};

scenarios! {
    firmware_protocol2_carries_messages: CONTROLLED_MM | FIRMWARE_PROTOCOLS, "messages and answers of any length go through protocol 2";
    firmware_protocol3_carries_messages: CONTROLLED_MM | FIRMWARE_PROTOCOLS | V3_HEADERS, "those with a v3 header go through protocol 3";
    firmware_protocol_has_no_room_for_a_longer_response: CONTROLLED_MM | FIRMWARE_PROTOCOLS, "a request has to be as long as its response, by padding, or the driver's refusal is the error";
    firmware_protocol_carries_mms_status: CONTROLLED_MM | FIRMWARE_PROTOCOLS, "MM's refusal comes back through the protocol";
    firmware_protocol_reaches_the_variable_service: VARIABLES | FIRMWARE_PROTOCOLS, "a real handler answers through protocol 2 as it does without it";
    missing_firmware_protocol_is_an_error: FIRMWARE_PROTOCOLS, "without the protocol there is no way into MM";
}

fn through_firmware(lab: &dyn Lab, header: HeaderFormat) -> Result<Box<dyn Machine>, String> {
    let buffer = |id| BufferSetup {
        header,
        ..BufferSetup::new(id)
    };
    up(
        lab,
        &Setup {
            buffers: [buffer(0), buffer(1)].to_vec(),
            produced: Some(0),
            through_firmware: true,
            ..Setup::default()
        },
    )
}

fn firmware_protocol2_carries_messages(lab: &dyn Lab) -> Seen {
    let machine = through_firmware(lab, HeaderFormat::V1)?;
    for len in [1, 7, 8, 100, 5000] {
        let message = pattern(len);
        ensure_eq!(machine.communicate(1, &message, mm::ECHO), Ok(message));
    }
    for len in [0, 5, 8] {
        ensure_eq!(
            machine.communicate(1, &mm::stretch(len), mm::STRETCH),
            Ok(pattern(len))
        );
    }
    let message = pattern(machine.capacity(1));
    ensure!(
        machine.communicate(1, &message, mm::ECHO) == Ok(message),
        "the full buffer did not come back"
    );
    ensure_eq!(machine.mmis(), 9);
    Ok(())
}

fn firmware_protocol3_carries_messages(lab: &dyn Lab) -> Seen {
    let machine = through_firmware(lab, HeaderFormat::V3)?;
    for len in [1, 7, 8, 100, 5000] {
        let message = pattern(len);
        ensure_eq!(machine.communicate(1, &message, mm::ECHO), Ok(message));
    }
    for len in [0, 5, 8] {
        let request = mm::stretch(len);
        let mut expected = pattern(len);
        // The protocol has no CommSize. If MM leaves the header alone, as edk2's for x86 does, a response has its request's
        // length, whatever MM answered.
        if lab.abilities().contains(Abilities::MAILBOX) {
            expected.extend(request.iter().skip(len));
        }
        ensure_eq!(machine.communicate(1, &request, mm::STRETCH), Ok(expected));
    }
    Ok(())
}

fn firmware_protocol_has_no_room_for_a_longer_response(lab: &dyn Lab) -> Seen {
    for header in [HeaderFormat::V1, HeaderFormat::V3] {
        let machine = through_firmware(lab, header)?;
        ensure_eq!(
            machine.communicate(1, &mm::stretch(9), mm::STRETCH),
            Err(Failure::Mm(EfiStatus::BUFFER_TOO_SMALL))
        );
        // The echo's handler answers the padding, too.
        let mut padded = b"padded".to_vec();
        padded.resize(300, 0);
        ensure_eq!(machine.communicate(1, &padded, mm::ECHO), Ok(padded));
    }
    Ok(())
}

fn firmware_protocol_carries_mms_status(lab: &dyn Lab) -> Seen {
    for header in [HeaderFormat::V1, HeaderFormat::V3] {
        let machine = through_firmware(lab, header)?;
        ensure_eq!(
            machine.communicate(0, b"x", super::refusals::NOBODY),
            Err(super::refusals::not_taken(lab))
        );
        ensure_eq!(machine.communicate(0, b"x", mm::ECHO), Ok(b"x".to_vec()));
    }
    Ok(())
}

fn firmware_protocol_reaches_the_variable_service(lab: &dyn Lab) -> Seen {
    let machine = through_firmware(lab, HeaderFormat::V1)?;
    super::variables::ensure_payload_size(&*machine)
}

fn missing_firmware_protocol_is_an_error(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            through_firmware: true,
            ..Setup::default()
        },
    )?;
    ensure_eq!(
        machine.communicate(0, b"x", super::refusals::NOBODY),
        Err(Failure::NoTrigger)
    );
    ensure_eq!(machine.mmis(), 0);
    Ok(())
}
