//! A runtime driver's own tests: the change of addresses, and failures of the firmware.

mod rules;
mod sharing;

use crate::lab::firmware::REGISTER_PAGE;
use crate::lab::memory::Block;
use crate::lab::{Life, RuntimeMachine, RuntimeSite, Way, power_on};
use aarch64_monitor::Interface;
use libtest_mimic::{Failed, Trial};
use mm_conformance::lab::{CCall, CProtocol, CReply, Setup};
use mm_conformance::mm;
use mm_conformance::report::Report;
use mm_conformance::soak::{self, Through};
use mm_runtime::protocols::{
    COMMUNICATION, COMMUNICATION2, COMMUNICATION3, VARIABLES_READABLE, VARIABLES_WRITABLE,
};
use mm_runtime::{Configuration, InstallError};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage};
use r_efi::efi;
use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;
use zerocopy::IntoBytes as _;

const ALL: [(&str, fn()); 24] = [
    (
        "timeout_is_by_default_that_of_patina_mm",
        timeout_is_by_default_that_of_patina_mm,
    ),
    (
        "markers_are_not_installed_after_a_response_without_the_size",
        markers_are_not_installed_after_a_response_without_the_size,
    ),
    (
        "refused_request_without_a_message_leaves_no_bytes",
        rules::refused_request_without_a_message_leaves_no_bytes,
    ),
    (
        "no_byte_of_a_message_stays_in_the_drivers_memory",
        rules::no_byte_of_a_message_stays_in_the_drivers_memory,
    ),
    (
        "log_has_no_bytes_of_messages",
        rules::log_has_no_bytes_of_messages,
    ),
    (
        "second_processor_is_refused_during_a_call",
        rules::second_processor_is_refused_during_a_call,
    ),
    (
        "secure_world_gets_the_physical_address",
        rules::secure_world_gets_the_physical_address,
    ),
    (
        "comm_buffer_is_found_in_the_firmwares_hob_list",
        rules::comm_buffer_is_found_in_the_firmwares_hob_list,
    ),
    (
        "components_and_driver_share_mm",
        sharing::components_and_driver_share_mm,
    ),
    (
        "driver_is_served_while_the_platform_moves_another_buffer",
        sharing::driver_is_served_while_the_platform_moves_another_buffer,
    ),
    (
        "driver_has_the_users_buffer_beside_the_supervisors_client",
        sharing::driver_has_the_users_buffer_beside_the_supervisors_client,
    ),
    (
        "page_of_a_memory_mapped_register_is_marked_for_the_operating_system",
        page_of_a_memory_mapped_register_is_marked_for_the_operating_system,
    ),
    (
        "markers_are_not_installed_if_mm_does_not_respond",
        markers_are_not_installed_if_mm_does_not_respond,
    ),
    (
        "protocol3_is_left_out_on_request",
        protocol3_is_left_out_on_request,
    ),
    (
        "calls_are_served_in_every_life_of_one_driver",
        calls_are_served_in_every_life_of_one_driver,
    ),
    (
        "physical_address_is_the_callers_once_addresses_changed",
        physical_address_is_the_callers_once_addresses_changed,
    ),
    ("mm_gets_the_physical_address", mm_gets_the_physical_address),
    (
        "unmapped_comm_buffer_is_not_ready",
        unmapped_comm_buffer_is_not_ready,
    ),
    (
        "address_change_during_a_call_ends_the_service",
        address_change_during_a_call_ends_the_service,
    ),
    (
        "failed_installation_leaves_nothing",
        failed_installation_leaves_nothing,
    ),
    (
        "protocols_of_another_driver_are_left_alone",
        protocols_of_another_driver_are_left_alone,
    ),
    (
        "markers_are_installed_on_request",
        markers_are_installed_on_request,
    ),
    ("stale_pointer_faults", stale_pointer_faults),
    (
        "many_calls_with_faults_have_their_results",
        many_calls_with_faults_have_their_results,
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    ALL.into_iter()
        .map(|(name, test)| {
            Trial::test(format!("driver::{name}"), move || {
                test();
                Ok::<(), Failed>(())
            })
        })
        .collect()
}

/// The soak of machines exit-boot-services and exit-boot-services-aarch64, in short.
fn many_calls_with_faults_have_their_results() {
    for way in [Way::Ports, Way::Secure(Interface::Ffa)] {
        let lab = RuntimeSite::lab(Life::Moved, way);
        let mut out = String::new();
        let mut report = Report::new(&mut out);
        let mmis = soak::until(&mut report, &lab, Through::Driver, &|| Some(1), 200);
        assert!(report.finish(mmis), "{way:?}: {out}");
        let last = out.lines().rfind(|line| line.starts_with("SOAK ")).unwrap();
        assert!(!last.contains(" 0 with a fault"), "{last}");
    }
}

fn up(life: Life) -> RuntimeMachine {
    let machine = power_on(life);
    machine.install(&Setup::default()).unwrap();
    machine
}

fn message(recipient: Guid, message: &[u8]) -> Vec<u8> {
    let header = Header::new(HeaderFormat::V1, recipient, message.len() as u64).unwrap();
    [header.encode().as_ref(), message].concat()
}

fn call(machine: &RuntimeMachine, protocol: CProtocol) -> CReply {
    let bytes = message(mm::ECHO, b"from C");
    let call = CCall {
        protocol,
        comm_size: Some(bytes.len()),
        bytes: Some(bytes),
    };
    machine.call_c(&call).unwrap()
}

fn assert_served(machine: &RuntimeMachine) {
    for protocol in [CProtocol::One, CProtocol::Two] {
        let reply = call(machine, protocol);
        assert_eq!(reply.status, EfiStatus::SUCCESS);
        assert_eq!(reply.bytes, message(mm::ECHO, b"from C"));
    }
}

fn calls_are_served_in_every_life_of_one_driver() {
    let machine = up(Life::Boot);
    let firmware = &machine.0.firmware;
    assert_served(&machine);
    firmware.exit_boot_services();
    assert_served(&machine);
    firmware.set_virtual_address_map(|_| true);
    // The caller's two addresses still agree, as with a map that moves nothing of the caller's.
    assert_served(&machine);
    assert_eq!(machine.mmis(), 6);
}

fn physical_address_is_the_callers_once_addresses_changed() {
    for life in Life::ALL {
        let machine = up(life);
        machine.live();
        let expected = match life.is_one_to_one() {
            true => EfiStatus::INVALID_PARAMETER,
            false => EfiStatus::SUCCESS,
        };
        assert_eq!(call(&machine, CProtocol::TwoApart).status, expected, "{life:?}");
    }
}

fn mm_gets_the_physical_address() {
    // MM of the simulated machine looks for requests only at the physical address, and the driver
    // can access the buffer only at the new one. So a response shows that each uses its own.
    let machine = up(Life::Moved);
    machine.live();
    let buffer: &Block = &machine.0.buffer;
    assert_ne!(buffer.translate(buffer.physical), Some(buffer.physical));
    assert_served(&machine);
}

fn unmapped_comm_buffer_is_not_ready() {
    for forget_mailbox in [false, true] {
        let machine = up(Life::Boot);
        let parts = &machine.0;
        parts.firmware.exit_boot_services();
        match (forget_mailbox, &parts.mailbox) {
            (true, Some(mailbox)) => parts.firmware.forget(mailbox),
            _ => parts.firmware.forget(&parts.buffer),
        }
        parts.firmware.set_virtual_address_map(|_| true);
        parts.buffer.forbid();
        let reply = call(&machine, CProtocol::Two);
        assert_eq!(reply.status, EfiStatus::NOT_READY);
        assert_eq!(reply.bytes, message(mm::ECHO, b"from C"));
        assert_eq!(machine.mmis(), 0);
    }
}

fn address_change_during_a_call_ends_the_service() {
    let machine = up(Life::Boot);
    machine.0.firmware.exit_boot_services();
    let (inside, during) = (machine.clone(), Rc::new(Cell::new(None)));
    let seen = Rc::clone(&during);
    machine.0.tap.before_next_write(Box::new(move || {
        inside.0.firmware.signal_address_change();
        seen.set(Some(call(&inside, CProtocol::Two).status));
    }));
    // The call that was under way ends normally, because nothing has moved in this test.
    assert_eq!(call(&machine, CProtocol::Two).status, EfiStatus::SUCCESS);
    assert_eq!(during.take(), Some(EfiStatus::NOT_READY));
    assert_eq!(call(&machine, CProtocol::Two).status, EfiStatus::NOT_READY);
}

fn failed_installation_leaves_nothing() {
    for failing in [
        "AllocatePages",
        "CreateEvent ExitBootServices",
        "CreateEvent SetVirtualAddressMap",
        "InstallProtocolInterface",
    ] {
        let machine = power_on(Life::Boot);
        let firmware = &machine.0.firmware;
        let blocks = firmware.blocks.borrow().len();
        firmware.failing.borrow_mut().push(failing);
        let result = machine.install(&Setup::default());
        let status = efi::Status::OUT_OF_RESOURCES;
        let function = failing.split(' ').next().unwrap();
        assert_eq!(result, Err(InstallError::Firmware { function, status }));
        assert_eq!(firmware.event_count(), 0);
        assert_eq!(
            firmware.blocks.borrow().len(),
            blocks,
            "{failing}: memory is lost"
        );
        for guid in [COMMUNICATION, COMMUNICATION2, COMMUNICATION3] {
            assert_eq!(firmware.interface(guid), None);
        }
        // Another attempt succeeds.
        firmware.failing.borrow_mut().clear();
        machine.install(&Setup::default()).unwrap();
        assert_served(&machine);
    }
}

fn protocols_of_another_driver_are_left_alone() {
    let machine = up(Life::Boot);
    let blocks = machine.0.firmware.blocks.borrow().len();
    assert_eq!(
        machine.install(&Setup::default()),
        Err(InstallError::AlreadyInstalled)
    );
    assert_eq!(machine.0.firmware.blocks.borrow().len(), blocks);
    assert_served(&machine);
}

fn markers_are_installed_on_request() {
    for markers in [false, true] {
        let machine = power_on(Life::Boot);
        let configure = |configuration| Configuration {
            markers,
            ..configuration
        };
        machine.install_with(&Setup::default(), configure).unwrap();
        let firmware = &machine.0.firmware;
        for marker in [VARIABLES_READABLE, VARIABLES_WRITABLE] {
            assert_eq!(firmware.interface(marker), markers.then_some(0));
        }
        assert!(firmware.interface(COMMUNICATION3).is_some());
        assert_eq!(machine.mmis(), usize::from(markers));
    }
}

fn markers_are_not_installed_if_mm_does_not_respond() {
    let machine = power_on(Life::Boot);
    machine.0.machine.install_mm(|_, _| {});
    machine
        .install_with(&Setup::default(), Configuration::with_markers)
        .unwrap();
    let firmware = &machine.0.firmware;
    assert_eq!(firmware.interface(VARIABLES_READABLE), None);
    assert_eq!(firmware.interface(VARIABLES_WRITABLE), None);
    assert!(firmware.interface(COMMUNICATION2).is_some());
    assert_eq!(call(&machine, CProtocol::Two).status, EfiStatus::NO_RESPONSE);
}

/// MM's variable service responds, but not with the size.
fn markers_are_not_installed_after_a_response_without_the_size() {
    for len in [0, 16, 17, 23, 25] {
        let machine = power_on(Life::Boot);
        let place = machine.place();
        machine.0.machine.install_mm(move |memory, _| {
            // Function 11, success, 1000.
            let mut message = [0; 25];
            (message[0], message[16], message[17]) = (11, 0xe8, 3);
            assert!(memory.write(place.region().start() + 24, &message));
            let answered = MailboxImage::answered(EfiStatus::SUCCESS, 24 + len);
            assert!(memory.write(place.mailbox().unwrap(), answered.as_bytes()));
        });
        machine
            .install_with(&Setup::default(), Configuration::with_markers)
            .unwrap();
        let firmware = &machine.0.firmware;
        assert_eq!(firmware.interface(VARIABLES_READABLE), None, "{len} bytes");
        assert_eq!(firmware.interface(VARIABLES_WRITABLE), None, "{len} bytes");
    }
}

fn timeout_is_by_default_that_of_patina_mm() {
    let configuration = Configuration::new(power_on(Life::Boot).place());
    let options = patina_mm::config::MmCommunicationOptions::default();
    assert_eq!(configuration.completion_polls, options.completion_polls);
}

fn page_of_a_memory_mapped_register_is_marked_for_the_operating_system() {
    const UNCACHED: u64 = efi::MEMORY_UC;
    const MARKED: u64 = UNCACHED | efi::MEMORY_RUNTIME;
    let smi_en = usize::try_from(REGISTER_PAGE).unwrap() + 0x30;
    // Attributes and capabilities before and after.
    for (before, after) in [
        ((UNCACHED, UNCACHED), (MARKED, MARKED)),
        ((UNCACHED, MARKED), (MARKED, MARKED)),
        ((MARKED, MARKED), (MARKED, MARKED)),
    ] {
        let machine = power_on(Life::Boot);
        let firmware = &machine.0.firmware;
        firmware.publish_dxe_services(before.0, before.1);
        machine.install_with_register(smi_en).unwrap();
        assert_eq!(firmware.register_page.get(), after);
    }
    // Without DXE services the page cannot be marked, and nothing is installed.
    let machine = power_on(Life::Boot);
    let result = machine.install_with_register(smi_en);
    assert_eq!(result, Err(InstallError::NoDxeServices(smi_en)));
    assert_eq!(machine.0.firmware.interface(COMMUNICATION2), None);
}

fn protocol3_is_left_out_on_request() {
    let machine = power_on(Life::Boot);
    let without = |configuration: Configuration| configuration.without_protocol3();
    machine.install_with(&Setup::default(), without).unwrap();
    assert_eq!(machine.0.firmware.interface(COMMUNICATION3), None);
    assert_served(&machine);
}

/// Tells a child process of this test to use a stale pointer.
const STALE: &str = "MM_RUNTIME_TEST_STALE_POINTER";

/// Shows that the other tests would not survive a stale pointer.
fn stale_pointer_faults() {
    let itself = std::env::current_exe().unwrap();
    let child = Command::new(itself).env(STALE, "1").status().unwrap();
    // SIGSEGV.
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child), Some(11));
}

/// Uses the stale pointer, if this process is the child.
pub(crate) fn plays_a_stale_pointer() -> bool {
    if std::env::var_os(STALE).is_none() {
        return false;
    }
    let machine = up(Life::Moved);
    let old = machine.0.buffer.physical;
    machine.live();
    crate::lab::memory::read_byte(old);
    true
}
