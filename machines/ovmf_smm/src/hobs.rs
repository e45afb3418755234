//! Firmware that announces its comm buffers in HOBs, as edk2 with Standalone MM and Project Mu do:
//! `patina_mm`'s own components configure themselves, and requests are sent in three ways. An
//! unsafe island (`docs/unsafe.md`).

use crate::app::{SharedReport, all_succeeded};
use crate::tests::{VENDOR, as_patina, refused_without_smis};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use mm_conformance::c_abi;
use mm_conformance::lab::{CCall, CProtocol};
use mm_conformance::real_mm::RealMm;
use mm_conformance::report::{NotOk, equal, failed};
use mm_conformance::variables::VariableService;
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, HOB_LIST_GUID};
use mm_wire::message::variable::{self, FunctionHeader, function};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, PAGE_LEN, protocol};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::Config;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::{IntoService, Service};
use patina::pi::hob::{Hob, HobList};
use patina::uefi::boot_services::BootServices;
use patina::uefi::boot_services::tpl::Tpl;
use patina_mm::component::communicator::{MmCommunicator, Status};
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::protocols::{FirmwareMmExecutor, MmCommunicationProducer};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{CommunicateBuffer, MmCommunicationConfiguration};
use patina_mm::service::MmCommunication;
use patina_mm_test::dispatcher::Dispatcher;
use patina_mm_test::protocols::{HostProtocols, SharedProtocols};
use uefi_app::Firmware;
use uefi_app::firmware::next_variable;
use uefi_app::protocols::BootProtocols;
use zerocopy::IntoBytes;

/// Where the HOB list is (PI 1.9, volume 3, 4.3).
const HOB_LIST: BinaryGuid = BinaryGuid::from_bytes(&HOB_LIST_GUID.to_bytes());

/// `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4, 5.7.2).
const COMMUNICATION2: BinaryGuid = BinaryGuid::from_bytes(&protocol::COMMUNICATION2.to_bytes());

/// `gEfiSmmVariableProtocolGuid`, which edk2 installs in the DXE phase too: the variables of this firmware are in MM.
const VARIABLES_ARE_IN_MM: BinaryGuid = BinaryGuid::from_bytes(&variable::GUID.to_bytes());

/// Pages of the comm buffer for the firmware's protocol.
const FIRMWARES_PAGES: usize = 16;

/// The comm-buffer HOBs of this firmware: GUID and data.
pub(crate) fn find(firmware: Firmware) -> Vec<(BinaryGuid, Vec<u8>)> {
    let mut list = HobList::default();
    if let Some(start) = firmware.configuration_table(&HOB_LIST) {
        list.discover_hobs(start.cast_const());
    }
    let wanted = [COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID].map(|guid| as_patina(&guid));
    list.iter()
        .filter_map(|hob| match hob {
            Hob::GuidHob(hob, data) if wanted.contains(&hob.name) => Some((hob.name, data.to_vec())),
            _ => None,
        })
        .collect()
}

/// Runs the tests; `true` if all passed.
pub(crate) fn run(report: &SharedReport, firmware: Firmware, hobs: &[(BinaryGuid, Vec<u8>)]) -> bool {
    // If a supervisor has a buffer, the users have the second one.
    let regions = as_patina(&COMM_REGION_HOB_GUID);
    let id = u8::from(hobs.iter().any(|(guid, _)| *guid == regions));
    let tests = Tests {
        firmware,
        report: report.clone(),
        sent: Rc::default(),
        id,
    };
    let mut dispatcher = client(BootProtocols::new(firmware.boot()), hobs);
    dispatcher.add(tests.clone());
    let outcome = dispatcher.dispatch();
    report
        .borrow_mut()
        .test("hobs.all_components_are_dispatched", || all_succeeded(&outcome));

    // Protocols for C go to a database of the test's own: the firmware's may have the firmware's.
    let protocols: &'static HostProtocols = Box::leak(Box::default());
    let mut dispatcher = client(SharedProtocols(protocols), hobs);
    dispatcher.add(MmCommunicationProducer::new(id));
    let outcome = dispatcher.dispatch();
    report
        .borrow_mut()
        .test("produced.all_components_are_dispatched", || {
            all_succeeded(&outcome)
        });
    for protocol in [CProtocol::One, CProtocol::Two] {
        tests.test(&format!("produced.{protocol:?}_brings_a_message_to_mm"), || {
            tests.c_call(protocols, protocol)
        });
    }
    let sent = tests.sent.get();
    report.borrow_mut().finish(sent)
}

/// Only the components that a platform adds.
fn client(protocols: impl IntoService + 'static, hobs: &[(BinaryGuid, Vec<u8>)]) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    dispatcher.storage().add_service(protocols);
    dispatcher.add(MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9));
    dispatcher.add(SwMmiManager::new());
    dispatcher.add(MmCommunicator::new());
    for (guid, data) in hobs {
        for parse in dispatcher.storage().get_hob_parsers(guid) {
            parse(data, dispatcher.storage());
        }
    }
    dispatcher
}

/// Component: sends requests through the communicator, then through the firmware's own protocol.
#[derive(Clone)]
struct Tests {
    firmware: Firmware,
    report: SharedReport,
    /// Messages that were sent, each of which raised an MMI.
    sent: Rc<Cell<u64>>,
    /// The comm buffer.
    id: u8,
}

#[component]
impl Tests {
    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        mm: Service<dyn MmCommunication>,
        protocols: Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        let buffer = config.comm_buffers.iter().find(|buffer| buffer.id() == self.id);
        let has_mailbox = buffer.is_some_and(CommunicateBuffer::has_status_mailbox);
        self.run_over("hobs", *mm, has_mailbox);
        self.test("hobs.switched_off_smis_are_an_error", || {
            let request = FunctionHeader::new(function::GET_PAYLOAD_SIZE);
            let request = || self.ask(*mm, variable::GUID, request.as_bytes());
            refused_without_smis(self.firmware, request)
        });
        self.test("hobs.refused_requests_raise_no_mmi", || {
            let capacity = buffer.map_or(0, CommunicateBuffer::message_capacity);
            let too_long = vec![0; capacity.saturating_add(1)];
            let send = |id, message: &[u8]| mm.communicate(id, message, as_patina(&variable::GUID).as_guid());
            equal(send(self.id, &too_long), Err(Status::CommBufferTooSmall))?;
            equal(send(self.id, &[]), Err(Status::InvalidDataBuffer))?;
            equal(
                send(self.id.wrapping_add(7), &[1]),
                Err(Status::CommBufferNotFound),
            )
        });
        if let Err(why) = self.over_the_firmwares_protocol(protocols) {
            self.test("communication2", || Err(why));
        }
        Ok(())
    }
}

impl Tests {
    fn test(&self, name: &str, test: impl FnOnce() -> Result<(), NotOk>) {
        // The report is not borrowed while the test runs.
        let verdict = test();
        self.report.borrow_mut().verdict(name, verdict);
    }

    /// Sends a message. Nothing else of the firmware runs meanwhile: its own driver may use the same comm buffer.
    fn ask(&self, mm: &dyn MmCommunication, recipient: Guid, message: &[u8]) -> Result<Vec<u8>, Status> {
        let _undisturbed = self.firmware.boot().raise_tpl_guarded(Tpl::NOTIFY);
        let response = mm.communicate(self.id, message, as_patina(&recipient).as_guid());
        if !matches!(response, Err(Status::MmiNotRaised(_))) {
            self.sent.set(self.sent.get().saturating_add(1));
        }
        response
    }

    fn run_over(&self, way: &str, mm: &dyn MmCommunication, tells_errors: bool) {
        let send = |recipient, message: &[u8]| self.ask(mm, recipient, message);
        let real = RealMm {
            send: &send,
            payload_size: None,
            tells_errors,
            calls: 1000,
        };
        real.test(|name, verdict| self.test(&format!("{way}.{name}"), || verdict));
        let variables = VariableService(|message: &[u8]| send(variable::GUID, message));
        let test = |name: &str, test: &dyn Fn() -> Result<(), NotOk>| {
            self.test(&format!("{way}.{name}"), test);
        };
        let in_mm = || match BootProtocols::new(self.firmware.boot()).locate_interface(VARIABLES_ARE_IN_MM) {
            Ok(_) => Ok(()),
            Err(_) => Err(NotOk::Skipped(
                "this firmware does not keep its variables in MM".into(),
            )),
        };
        test("mm_reads_the_variable_that_runtime_services_wrote", &|| {
            in_mm()?;
            variables.follow(self.firmware.runtime(), VENDOR.into_inner())
        });
        test("mm_lists_the_variables_that_runtime_services_list", &|| {
            in_mm()?;
            variables.lists_the_same(next_variable)
        });
    }

    fn over_the_firmwares_protocol(&self, protocols: Service<dyn ProtocolServices>) -> Result<(), NotOk> {
        if protocols.locate_interface(COMMUNICATION2).is_err() {
            return Err(NotOk::Skipped(
                "this firmware offers no EFI_MM_COMMUNICATION2_PROTOCOL".into(),
            ));
        }
        let memory = self
            .firmware
            .allocate_runtime_pages(FIRMWARES_PAGES)
            .map_err(failed)?;
        // SAFETY: the pages were allocated for this and are never freed; only the communicator uses them.
        let buffer =
            unsafe { CommunicateBuffer::from_raw_parts(memory, FIRMWARES_PAGES * PAGE_LEN, self.id) };
        let communicator = MmCommunicator::with_executor(FirmwareMmExecutor::new(protocols));
        communicator
            .set_comm_buffers(vec![buffer.map_err(failed)?])
            .map_err(failed)?;
        self.run_over("communication2", &communicator, false);
        Ok(())
    }

    /// Sends a request to the variable service like a driver in C, through a protocol that
    /// `patina_mm` produced.
    fn c_call(&self, protocols: &dyn ProtocolServices, protocol: CProtocol) -> Result<(), NotOk> {
        let message = FunctionHeader::new(function::GET_PAYLOAD_SIZE);
        // The size follows the function's header.
        let message = [message.as_bytes(), &[0; 8]].concat();
        let header =
            Header::new(HeaderFormat::V1, variable::GUID, message.len() as u64).ok_or("no header")?;
        let bytes = [header.encode().as_ref(), &message].concat();
        let comm_size = Some(bytes.len());
        let call = CCall {
            protocol,
            bytes: Some(bytes),
            comm_size,
        };
        let _undisturbed = self.firmware.boot().raise_tpl_guarded(Tpl::NOTIFY);
        self.sent.set(self.sent.get().saturating_add(1));
        let reply = c_abi::call(protocols, &call).ok_or("the protocol is not installed")?;
        match reply.status {
            EfiStatus::SUCCESS => Ok(()),
            EfiStatus::NOT_FOUND => Err(NotOk::Skipped("this MM has no variable service".into())),
            status => Err(failed(status)),
        }
    }
}
