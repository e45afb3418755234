//! Rules for each call, in each life: what is left in memory, what is logged, and when calls are
//! served.

use super::{call, message, up};
use crate::lab::secure;
use crate::lab::{Life, Lines, RuntimeMachine, power_on, power_on_secure};
use aarch64_monitor::Interface;
use mm_conformance::Setup;
use mm_conformance::lab::{CCall, CProtocol, CReply};
use mm_conformance::mm;
use mm_runtime::hobs::{HobError, Source, find};
use mm_wire::{EfiStatus, Header, HeaderFormat};

const SECRET: &[u8] = b"a secret that is not to be found anywhere";

fn send(machine: &RuntimeMachine, room: usize) -> CReply {
    let mut bytes = message(mm::ECHO, SECRET);
    bytes.resize(bytes.len() - room, 0);
    machine
        .call_c(&CCall {
            protocol: CProtocol::Two,
            comm_size: Some(bytes.len()),
            bytes: Some(bytes),
        })
        .unwrap()
}

/// Makes calls that succeed, that are refused, and that MM does not take.
fn send_secrets(machine: &RuntimeMachine) {
    assert_eq!(send(machine, 0).status, EfiStatus::SUCCESS);
    // CommSize ends inside of the message.
    assert_eq!(send(machine, 1).status, EfiStatus::INVALID_PARAMETER);
    machine.0.machine.install_mm(|_, _| {});
    assert_eq!(send(machine, 0).status, EfiStatus::NO_RESPONSE);
}

pub(super) fn no_byte_of_a_message_stays_in_the_drivers_memory() {
    for life in Life::ALL {
        let machine = up(life);
        machine.live();
        send_secrets(&machine);
        // Comm buffer, mailbox, and the driver's own block.
        assert_eq!(machine.0.firmware.blocks.borrow().len(), 3);
        assert_no_secret(&machine);
    }
}

fn assert_no_secret(machine: &RuntimeMachine) {
    for block in &*machine.0.firmware.blocks.borrow() {
        let outside = block.seen_from_outside();
        let mut bytes = vec![0; outside.len()];
        assert!(outside.read(0, &mut bytes));
        let found = bytes.windows(8).any(|window| window == &SECRET[..8]);
        assert!(!found, "a block of {} bytes has the message", bytes.len());
    }
}

/// A v3 header may count no message and still have bytes behind it, which are copied before the
/// request is refused.
pub(super) fn refused_request_without_a_message_leaves_no_bytes() {
    let machine = power_on_secure(Life::Boot, Interface::SpmMm);
    machine.install(&Setup::default()).unwrap();
    let header = Header::new(HeaderFormat::V3, mm::ECHO, SECRET.len() as u64).unwrap();
    let header = header.with_message_size(0).encode();
    let call = CCall {
        protocol: CProtocol::Three,
        bytes: Some([header.as_ref(), SECRET].concat()),
        comm_size: None,
    };
    let reply = machine.call_c(&call).unwrap();
    assert_eq!(reply.status, EfiStatus::BAD_BUFFER_SIZE);
    assert!(secure::requests().is_empty());
    assert_no_secret(&machine);
}

pub(super) fn log_has_no_bytes_of_messages() {
    for life in Life::ALL {
        let machine = up(life);
        machine.live();
        let lines = Lines::record(|| send_secrets(&machine));
        // Two for each request that was sent, and one for each error.
        assert!(lines.len() >= 5, "{lines:?}");
        for line in &lines {
            assert!(!line.contains("secret"), "{line}");
        }
        let sent = lines
            .iter()
            .filter(|line| line.starts_with("41 bytes for "))
            .count();
        assert_eq!(sent, 2, "{lines:?}");
    }
}

pub(super) fn second_processor_is_refused_during_a_call() {
    for life in [Life::Left, Life::Moved, Life::BufferMoved, Life::DriverMoved] {
        let machine = up(life);
        machine.live();
        let call_there = machine.caller_on_another_processor(&message(mm::ECHO, b"from there"));
        machine.0.tap.before_next_write(Box::new(move || {
            assert_eq!(call_there(), EfiStatus::ALREADY_STARTED);
        }));
        let reply = call(&machine, CProtocol::Two);
        assert_eq!(reply.status, EfiStatus::SUCCESS);
        assert_eq!(reply.bytes, message(mm::ECHO, b"from C"));
        assert_eq!(machine.mmis(), 1);
    }
}

pub(super) fn secure_world_gets_the_physical_address() {
    for interface in [Interface::SpmMm, Interface::Ffa, Interface::StandaloneMm] {
        for life in Life::ALL {
            let machine = power_on_secure(life, interface);
            machine.install(&Setup::default()).unwrap();
            machine.live();
            assert_eq!(call(&machine, CProtocol::Two).status, EfiStatus::SUCCESS);
            let physical = machine.0.buffer.physical as u64;
            assert_eq!(secure::requests(), [physical], "{interface:?} {life:?}");
        }
    }
}

pub(super) fn comm_buffer_is_found_in_the_firmwares_hob_list() {
    let machine = power_on(Life::Boot);
    let firmware = &machine.0.firmware;
    // SAFETY: the firmware's table, before `ExitBootServices`.
    let find = || unsafe { find(firmware.system_table(), Source::EDK2) };
    assert_eq!(find(), Err(HobError::NoList));
    firmware.publish_hobs(&[]);
    assert_eq!(find(), Err(HobError::NotFound));
    let place = machine.place();
    firmware.publish_hobs(&[place]);
    assert_eq!(find(), Ok(place));
}
