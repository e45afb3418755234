//! The tests of the components in this firmware. An application makes them run
//! ([`mm_conformance::test_protocol`]).

use crate::platform::BUFFER_ID;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use mm_conformance::real_mm::{NO_HANDLER, RealMm};
use mm_conformance::report::{Report, equal};
use mm_conformance::test_protocol::{Findings, Task, TestProtocol};
use mm_conformance::variables::{OVMF_PAYLOAD_SIZE, VariableError, VariableService};
use mm_wire::message::variable::GUID as VARIABLES;
use ovmf_platform::devices::Console;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt, Tpl};
use patina::error::Result;
use patina::standard::efi;
use patina::uefi::runtime_services::StandardRuntimeServices;
use patina::{BinaryGuid, Guid};
use patina_mm::component::communicator::Status;
use patina_mm::service::{MmCommunication, SwMmiTrigger};

/// `gEfiVariableWriteArchProtocolGuid`: the variable driver in SMM is ready.
const VARIABLE_WRITE_ARCH: BinaryGuid = BinaryGuid::from_string("6441f818-6362-4e44-b570-7dba31dd2453");

/// The vendor of the variable that the tests write.
const VENDOR: BinaryGuid = BinaryGuid::from_string("9c3c5a2e-0f0c-4b61-8f5b-6d1f0b7f52a4");

type Mm = &'static dyn MmCommunication;

/// Component: publishes the tests, and sends MM a request in the middle of the DXE phase.
pub(crate) struct SelfTest;

#[component]
impl SelfTest {
    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        trigger: Service<dyn SwMmiTrigger>,
        protocols: Service<dyn ProtocolServices>,
        runtime: StandardRuntimeServices,
    ) -> Result<()> {
        let (mm, trigger) = (*mm, *trigger);
        let early = Rc::new(Cell::new(None));
        let response = Rc::clone(&early);
        protocols.register_install_notify(
            VARIABLE_WRITE_ARCH,
            Tpl::Callback,
            Box::new(move |_handle| response.set(Some(payload_size(mm).map_err(|why| format!("{why:?}"))))),
        )?;
        let interface = TestProtocol::publishable(move |task, findings| match task {
            Task::Test | Task::PlatformTest => run(mm, trigger, &runtime, early.take()),
            Task::Soak => soak(mm, findings),
            Task::Demo => false,
        });
        protocols.install_protocol::<TestProtocol>(None, interface)?;
        Ok(())
    }
}

fn ask(mm: Mm, recipient: mm_wire::Guid, message: &[u8]) -> core::result::Result<Vec<u8>, Status> {
    mm.communicate(BUFFER_ID, message, Guid::from_bytes(&recipient.to_bytes()))
}

fn payload_size(mm: Mm) -> core::result::Result<u64, VariableError<Status>> {
    VariableService(|message: &[u8]| ask(mm, VARIABLES, message)).payload_size()
}

/// Makes very many calls; `true` if each has its response, or its status, and memory is constant.
fn soak(mm: Mm, findings: Findings) -> bool {
    const PARTS: u64 = 10;
    let mut report = Report::new(Console);
    let mut smis = 0_u64;
    let mut free = Vec::new();
    report.test("soak.each_call_has_its_result", || {
        for part in 1..=PARTS {
            for call in 0..mm_conformance::soak::MMIS.wrapping_div(PARTS) {
                smis = smis.saturating_add(1);
                if call.is_multiple_of(4) {
                    let response = ask(mm, NO_HANDLER, b"no handler takes this");
                    equal(response, Err(Status::MmReturned(efi::Status::NOT_FOUND)))?;
                } else {
                    equal(payload_size(mm)?, OVMF_PAYLOAD_SIZE)?;
                }
            }
            free.push((findings.free_memory)());
            log::info!("part {part} of {PARTS}: {:?} bytes of free memory", free.last());
        }
        Ok(())
    });
    report.test("soak.memory_is_constant", || equal(free.first(), free.last()));
    report.finish(smis)
}

/// `true` if all went well. The host compares the number of SMIs that were raised here with what
/// the machine took.
fn run(
    mm: Mm,
    trigger: &dyn SwMmiTrigger,
    runtime: &StandardRuntimeServices,
    early: Option<core::result::Result<u64, String>>,
) -> bool {
    let smis = Cell::new(0_u64);
    let count = || smis.set(smis.get().saturating_add(1));
    let send = |recipient, message: &[u8]| {
        count();
        ask(mm, recipient, message)
    };
    let mut report = Report::new(Console);
    report.test("patina.a_component_got_a_response_in_the_dxe_phase", || {
        equal(early, Some(Ok(OVMF_PAYLOAD_SIZE)))
    });
    let real = RealMm {
        send: &send,
        payload_size: Some(OVMF_PAYLOAD_SIZE),
        tells_errors: true,
        calls: 10_000,
    };
    real.test(|name, verdict| report.verdict(&format!("patina.{name}"), verdict));
    let variables = VariableService(|message: &[u8]| send(VARIABLES, message));
    report.test("patina.mm_reads_the_variable_that_runtime_services_wrote", || {
        variables.follow(runtime, VENDOR.into_inner())
    });
    report.test("patina.requests_that_cannot_be_sent_are_refused", || {
        equal(ask(mm, VARIABLES, &[]), Err(Status::InvalidDataBuffer))?;
        equal(
            mm.communicate(
                BUFFER_ID.wrapping_add(1),
                &[1],
                Guid::from_bytes(&VARIABLES.to_bytes()),
            ),
            Err(Status::CommBufferNotFound),
        )
    });
    report.test("patina.an_smi_without_a_message_changes_no_later_call", || {
        count();
        trigger.raise_mmi(0, 0)?;
        trigger.pause();
        equal(variables.payload_size()?, OVMF_PAYLOAD_SIZE)
    });
    report.finish(smis.get())
}
