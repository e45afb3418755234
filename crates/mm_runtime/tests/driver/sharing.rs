//! A runtime driver that shares MM with Patina's components, which have other comm buffers.

use super::{assert_served, message};
use crate::lab::RuntimeMachine;
use crate::lab::beside::Beside;
use mm_conformance::lab::{BufferSetup, CCall, CProtocol, Client, SupervisorCall, Update};
use mm_conformance::mm::{self, Release};
use mm_conformance::{Lab, Setup};
use mm_wire::EfiStatus;

/// Brings components up, and then the driver.
fn up(setup: &Setup) -> (Client, RuntimeMachine) {
    let machine = Beside::new();
    let client = Lab::new(machine.clone()).unwrap().bring_up(setup).unwrap();
    let driver = machine.driver();
    driver.install(&Setup::default()).unwrap();
    (client, driver)
}

fn assert_both_are_served(client: &Client, buffer: u8, driver: &RuntimeMachine) {
    let response = client.communicate(buffer, b"from a component", mm::ECHO);
    assert_eq!(response, Ok(b"from a component".to_vec()));
    assert_served(driver);
}

pub(super) fn components_and_driver_share_mm() {
    let (client, driver) = up(&Setup::default());
    assert_both_are_served(&client, 0, &driver);
    // Each is called in the middle of the other's call.
    let inner = driver.clone();
    let response = client.communicate_around(0, b"outer", mm::ECHO, Box::new(move |_| assert_served(&inner)));
    assert_eq!(response, Ok(b"outer".to_vec()));
    let inner = client.clone();
    driver.0.tap.before_next_write(Box::new(move || {
        assert_eq!(inner.communicate(0, b"inner", mm::ECHO), Ok(b"inner".to_vec()));
    }));
    assert_served(&driver);
    // The components end with boot services.
    driver.0.firmware.exit_boot_services();
    assert_served(&driver);
    driver.0.firmware.set_virtual_address_map(|_| true);
    assert_served(&driver);
}

pub(super) fn driver_is_served_while_the_platform_moves_another_buffer() {
    let (client, driver) = up(&Setup {
        updatable: Some(0),
        ..Setup::default()
    });
    assert_both_are_served(&client, 0, &driver);
    // The move takes effect with the components' next call.
    client.announce(Update::to_pages(2));
    assert_served(&driver);
    assert_both_are_served(&client, 0, &driver);
    // In the middle of a call of the driver's.
    let moving = client.clone();
    driver.0.tap.before_next_write(Box::new(move || {
        moving.announce(Update::to_pages(3));
        assert_eq!(moving.communicate(0, b"moved", mm::ECHO), Ok(b"moved".to_vec()));
    }));
    assert_served(&driver);
    assert_both_are_served(&client, 0, &driver);
}

/// Project Mu's supervisor serves two comm buffers, its own and the users' (`MmEntryPoint` in
/// MmSupervisorPkg's MmSupervisorCore.c). So the driver has the users' one.
pub(super) fn driver_has_the_users_buffer_beside_the_supervisors_client() {
    let (client, driver) = up(&Setup {
        buffers: vec![BufferSetup::new(0)],
        supervisor: Some(0),
        ..Setup::default()
    });
    let order = message(mm::PROJECT_MU, &Release::Main.request());
    let ordered = driver.call_c(&CCall {
        protocol: CProtocol::Two,
        comm_size: Some(order.len()),
        bytes: Some(order),
    });
    assert_eq!(ordered.unwrap().status, EfiStatus::SUCCESS);
    let ask = move || client.ask_supervisor(&SupervisorCall::Version).map(drop);
    assert_eq!(ask(), Ok(()));
    assert_served(&driver);
    // In the middle of a call of the driver's: the supervisor serves the users first, and is asked
    // again.
    let inner = ask.clone();
    driver
        .0
        .tap
        .before_next_write(Box::new(move || assert_eq!(inner(), Ok(()))));
    assert_served(&driver);
    driver.0.firmware.exit_boot_services();
    driver.0.firmware.set_virtual_address_map(|_| true);
    assert_served(&driver);
}
