//! `uefi_app` on real firmware: `ProtocolServices`, configuration tables.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Write;
use mm_conformance::report::{NotOk, Report, ensure, equal, failed};
use patina::BinaryGuid;
use patina::component::service::uefi_services::protocol::{
    Handle, NotifyRegistration, OpenAttributes, ProtocolError, ProtocolServices, ProtocolServicesExt, Tpl,
};
use patina::protocol::{MarkerProtocol, ProtocolInterface};
use uefi_app::Firmware;
use uefi_app::protocols::BootProtocols;

type Verdict = Result<(), NotOk>;

/// Runs the tests.
pub(crate) fn run(report: &mut Report<impl Write>, firmware: Firmware) {
    let protocols = Rc::new(BootProtocols::new(firmware.boot()));
    report.test("uefi_app.markers_come_and_go", || markers(&protocols));
    report.test("uefi_app.interfaces_are_opened_by_agents", || {
        interfaces(&protocols)
    });
    report.test("uefi_app.install_notifications_are_delivered", || {
        notifications(&protocols)
    });
    report.test("uefi_app.a_notification_cancels_itself", || {
        self_cancelling(&protocols)
    });
    report.test("uefi_app.the_hob_list_is_a_configuration_table", || {
        let found = |guid| firmware.configuration_table(guid).is_some();
        equal((found(&HOB_LIST), found(&Marker::PROTOCOL_GUID)), (true, false))
    });
}

/// `gEfiHobListGuid`.
const HOB_LIST: BinaryGuid = BinaryGuid::from_bytes(&mm_wire::hob::HOB_LIST_GUID.to_bytes());

struct Marker;

// SAFETY: a marker has no interface.
unsafe impl ProtocolInterface for Marker {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("5c2a7a2e-3b1f-4e0e-9a5b-5a2f0e6d7c11");
}
impl MarkerProtocol for Marker {}

struct Number(u32);

// SAFETY: the GUID is made for this type, and only this application installs it.
unsafe impl ProtocolInterface for Number {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_string("a3f5b0d6-7a0e-4a0b-8f9a-0d1c2b3a4958");
}

fn install_marker(protocols: &BootProtocols) -> Result<Handle, NotOk> {
    protocols.install_marker_protocol::<Marker>(None).map_err(failed)
}

fn uninstall_markers(protocols: &BootProtocols) -> Verdict {
    for handle in protocols.locate_handles(Marker::PROTOCOL_GUID).map_err(failed)? {
        protocols
            .uninstall_marker_protocol::<Marker>(handle)
            .map_err(failed)?;
    }
    Ok(())
}

fn markers(protocols: &BootProtocols) -> Verdict {
    let installed = || protocols.is_marker_protocol_installed::<Marker>();
    equal(installed(), Ok(false))?;
    let handle = install_marker(protocols)?;
    equal(installed(), Ok(true))?;
    equal(
        protocols.locate_handles(Marker::PROTOCOL_GUID),
        Ok(alloc::vec![handle]),
    )?;
    uninstall_markers(protocols)?;
    equal(installed(), Ok(false))
}

fn interfaces(protocols: &BootProtocols) -> Verdict {
    let number = || protocols.locate_protocol::<Number>().map(|number| number.0);
    equal(number(), Err(ProtocolError::NotFound))?;
    let installed = protocols
        .install_protocol_owned(None, Box::new(Number(7)))
        .map_err(failed)?;
    equal(number(), Ok(7))?;

    let first = protocols.register_agent().map_err(failed)?;
    let second = protocols.register_agent().map_err(failed)?;
    let open =
        |agent| protocols.open_protocol::<Number>(installed.handle(), agent, OpenAttributes::Exclusive);
    let guard = open(first).map_err(failed)?;
    equal(open(second).err(), Some(ProtocolError::AccessDenied))?;
    drop(guard);
    drop(open(second).map_err(failed)?);
    equal(
        protocols.interface_on_handle(first, Number::PROTOCOL_GUID),
        Err(ProtocolError::NotFound),
    )?;

    match protocols.uninstall_protocol(installed) {
        Ok(number) => equal(number.0, 7)?,
        Err((error, _)) => return Err(failed(error)),
    }
    equal(number(), Err(ProtocolError::NotFound))
}

fn notifications(protocols: &BootProtocols) -> Verdict {
    let seen: Rc<RefCell<Vec<_>>> = Rc::default();
    let witness = seen.clone();
    let early = install_marker(protocols)?;
    let registration = protocols
        .on_protocol_installed::<Marker>(Tpl::Callback, move |handle| witness.borrow_mut().push(handle))
        .map_err(failed)?;
    equal(&seen.borrow()[..], [early])?;
    let late = install_marker(protocols)?;
    equal(&seen.borrow()[..], [early, late])?;

    protocols.cancel(registration).map_err(failed)?;
    ensure(Rc::strong_count(&seen) == 1, "the callback was not freed")?;
    install_marker(protocols)?;
    equal(&seen.borrow()[..], [early, late])?;
    equal(
        protocols.cancel(registration),
        Err(ProtocolError::InvalidParameter),
    )?;
    uninstall_markers(protocols)
}

fn self_cancelling(protocols: &Rc<BootProtocols>) -> Verdict {
    let own: Rc<Cell<Option<NotifyRegistration>>> = Rc::default();
    let seen: Rc<RefCell<Vec<_>>> = Rc::default();
    let callback = {
        let (protocols, own, seen) = (protocols.clone(), own.clone(), seen.clone());
        move |_| seen.borrow_mut().push(own.get().map(|own| protocols.cancel(own)))
    };
    let registration = protocols
        .on_protocol_installed::<Marker>(Tpl::Notify, callback)
        .map_err(failed)?;
    own.set(Some(registration));
    install_marker(protocols)?;
    install_marker(protocols)?;
    equal(&seen.borrow()[..], [Some(Ok(()))])?;
    ensure(Rc::strong_count(&seen) == 1, "the callback was not freed")?;
    uninstall_markers(protocols)
}
