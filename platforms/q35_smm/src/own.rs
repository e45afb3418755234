//! The platform for firmware that the command line names: `MmHobConfiguration` alone configures MM.
//! The MM of that firmware is not known, so the tests use only requests that any MM has. An unsafe
//! island (`docs/unsafe.md`).

use alloc::format;
use alloc::rc::Rc;
use core::cell::Cell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU8, Ordering};
use mm_conformance::real_mm::RealMm;
use mm_conformance::report::{NotOk, Report};
use mm_conformance::test_protocol::{Task, TestProtocol};
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID};
use ovmf_platform::devices::Console;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt};
use patina::error::Result;
use patina::pi::hob::{PhaseHandoffInformationTable, find_guid_hob_data};
use patina::{BinaryGuid, Guid};
use patina_dxe_core::{Add, Component};
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::service::MmCommunication;

/// What the HOB list has: nothing for MM, a comm buffer, or comm regions.
static HOBS: AtomicU8 = AtomicU8::new(NONE);
const NONE: u8 = 0;
const BUFFER: u8 = 1;
const REGIONS: u8 = 2;

/// Notes which comm buffers this firmware announces.
pub(crate) fn look_for_hobs(hob_list: *const c_void) {
    // SAFETY: the PEI phase starts a DXE core with a pointer to the HOB list, which starts with
    // this HOB; the core has not touched the list yet.
    let Some(list) = (unsafe { hob_list.cast::<PhaseHandoffInformationTable>().as_ref() }) else {
        return;
    };
    for (guid, found) in [(COMM_BUFFER_HOB_GUID, BUFFER), (COMM_REGION_HOB_GUID, REGIONS)] {
        // SAFETY: the list is in its place, and ends with the HOB that says so.
        let hob = unsafe { find_guid_hob_data(list, BinaryGuid::from_bytes(&guid.to_bytes())) };
        if hob.is_some() {
            HOBS.store(found, Ordering::Relaxed);
        }
    }
}

type Mm = Rc<Cell<Option<&'static dyn MmCommunication>>>;

/// Adds the components that configure and reach MM, and the tests.
pub(crate) fn add_components(add: &mut Add<'_, Component>) {
    let mm = Mm::default();
    add.component(MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9));
    add.component(SwMmiManager::new());
    add.component(MmCommunicator::new());
    add.component(Asks(Rc::clone(&mm)));
    add.component(SelfTest(mm));
}

/// Component: is dispatched once there is a way to MM.
struct Asks(Mm);

#[component]
impl Asks {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> Result<()> {
        self.0.set(Some(*mm));
        Ok(())
    }
}

/// Component: publishes the tests.
struct SelfTest(Mm);

#[component]
impl SelfTest {
    fn entry_point(self, protocols: Service<dyn ProtocolServices>) -> Result<()> {
        let interface = TestProtocol::publishable(move |task, _findings| match task {
            Task::Test | Task::PlatformTest => run(&self.0),
            Task::Demo | Task::Soak => false,
        });
        protocols.install_protocol::<TestProtocol>(None, interface)?;
        Ok(())
    }
}

/// `true` if all tests passed.
fn run(mm: &Mm) -> bool {
    let hobs = HOBS.load(Ordering::Relaxed);
    let sent = Cell::new(0_u64);
    let mut report = Report::new(Console);
    report.test("core.boots_to_an_application", || Ok(()));
    report.test("core.hobs_configure_mm", || match (hobs, mm.get()) {
        (NONE, None) => Err(NotOk::Skipped("this firmware announces no comm buffer".into())),
        (NONE, Some(_)) => Err(NotOk::Failed("a way to MM without a comm buffer".into())),
        (_, None) => Err(NotOk::Failed(
            "a comm buffer is announced, and no way to MM: see the log".into(),
        )),
        (_, Some(_)) => Ok(()),
    });
    if let Some(mm) = mm.get() {
        ask(&mut report, mm, u8::from(hobs == REGIONS), &sent);
    }
    report.finish(sent.get())
}

fn ask(report: &mut Report<Console>, mm: &dyn MmCommunication, id: u8, sent: &Cell<u64>) {
    let send = |recipient: mm_wire::Guid, message: &[u8]| {
        sent.set(sent.get().saturating_add(1));
        mm.communicate(id, message, Guid::from_bytes(&recipient.to_bytes()))
    };
    let real = RealMm {
        send: &send,
        payload_size: None,
        tells_errors: true,
        calls: 1000,
    };
    real.test(|name, verdict| report.verdict(&format!("core.{name}"), verdict));
}
