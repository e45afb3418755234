//! What the application tests, on both ways into SMM.

use crate::app::{BUFFER_ID, SharedReport};
use crate::executor::{CountedFirmwareExecutor, MmiCount, read_memory};
use crate::q35::Q35;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use mm_comm::SmiEnable;
use mm_conformance::real_mm::RealMm;
use mm_conformance::report::{NotOk, ensure, equal, failed};
use mm_conformance::variables::{OVMF_PAYLOAD_SIZE, VariableService};
use mm_wire::message::variable;
use mm_wire::{EfiStatus, Guid, guid};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::Config;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm::component::communicator::{MmCommunicator, Status};
use patina_mm::component::protocols::FirmwareMmExecutor;
use patina_mm::component::sw_mmi_manager::TriggerError;
use patina_mm::config::MmCommunicationConfiguration;
use patina_mm::service::MmCommunication;
use uefi_app::Firmware;
use uefi_app::firmware::next_variable;
use zerocopy::IntoBytes;

/// The vendor of the variable that the tests write.
pub(crate) const VENDOR: BinaryGuid = BinaryGuid::from_string("1b838190-4b8e-4f0c-8a3c-2d6f3c3f7a10");

/// `gEfiSmmFaultTolerantWriteProtocolGuid`.
const FAULT_TOLERANT_WRITE: Guid = guid!("3868fc3b-7e45-43a7-906c-4ba47de1754d");
/// Asks that service for its block size: function, status, size.
const BLOCK_SIZE_REQUEST: [u64; 3] = [1, 0, 0];
/// `gVarCheckPolicyLibMmiHandlerGuid`.
const VARIABLE_POLICY: Guid = guid!("da1b0d11-d1a7-46c4-9dc9-f3714875c6eb");

/// Component: runs the tests. What they find is in the report; the component itself succeeds.
pub(crate) struct Tests {
    pub(crate) firmware: Firmware,
    pub(crate) report: SharedReport,
    pub(crate) mmis: MmiCount,
}

#[component]
impl Tests {
    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        ports: Service<dyn MmCommunication>,
        protocols: Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        self.run_over("ports", *ports, &config);
        self.test("ports.switched_off_smis_are_an_error", || {
            switched_off_smis(self.firmware, *ports, &config, &self.mmis)
        });
        let communicator = MmCommunicator::with_executor(CountedFirmwareExecutor {
            executor: FirmwareMmExecutor::new(protocols),
            mmis: self.mmis.clone(),
        });
        communicator.set_comm_buffers(config.comm_buffers.clone())?;
        self.run_over("communication2", &communicator, &config);
        Ok(())
    }
}

impl Tests {
    fn test(&self, name: &str, test: impl FnOnce() -> Result<(), NotOk>) {
        // The report is not borrowed while the test runs.
        let verdict = test();
        self.report.borrow_mut().verdict(name, verdict);
    }

    fn run_over(&self, way: &str, mm: &dyn MmCommunication, config: &MmCommunicationConfiguration) {
        let send = |recipient, message: &[u8]| ask(mm, recipient, message);
        let real = RealMm {
            send: &send,
            payload_size: Some(OVMF_PAYLOAD_SIZE),
            tells_errors: true,
            calls: 0,
        };
        real.test(|name, verdict| self.test(&format!("{way}.{name}"), || verdict));
        let variables = VariableService(|message: &[u8]| send(variable::GUID, message));
        let test = |name: &str, test: &dyn Fn() -> Result<(), NotOk>| {
            self.test(&format!("{way}.{name}"), test);
        };
        test("the_fault_tolerant_write_service_says_that_it_is_closed", &|| {
            // After the end of DXE the handler denies everything, in the message's status.
            let response = ask(mm, FAULT_TOLERANT_WRITE, BLOCK_SIZE_REQUEST.as_bytes())?;
            equal(&response[..], [1, EfiStatus::ACCESS_DENIED.0, 0].as_bytes())
        });
        test("a_response_of_21_bytes_has_21_bytes", &|| {
            // Signature, revision, command "is enabled", result u64, state u8; packed.
            let request = [b"VCPC\x01\0\0\0\x02\0\0\0".as_slice(), &[0xff; 8], &[0xff]].concat();
            let response = ask(mm, VARIABLE_POLICY, &request)?;
            let enabled = [b"VCPC\x01\0\0\0\x02\0\0\0".as_slice(), &[0; 8], &[1]].concat();
            equal(response, enabled)
        });
        test("mm_reads_the_variable_that_runtime_services_wrote", &|| {
            variables.follow(self.firmware.runtime(), VENDOR.into_inner())
        });
        test("mm_lists_the_variables_that_runtime_services_list", &|| {
            variables.lists_the_same(next_variable)
        });
        test("what_cannot_be_sent_raises_no_mmi", &|| {
            let before = self.mmis.get();
            let capacity = config
                .comm_buffers
                .first()
                .map_or(0, |buffer| buffer.message_capacity());
            let too_long = vec![0; capacity.saturating_add(1)];
            equal(
                ask(mm, variable::GUID, &too_long),
                Err(Status::CommBufferTooSmall),
            )?;
            equal(ask(mm, variable::GUID, &[]), Err(Status::InvalidDataBuffer))?;
            equal(
                mm.communicate(BUFFER_ID + 1, &[1], as_patina(&variable::GUID).as_guid()),
                Err(Status::CommBufferNotFound),
            )?;
            equal(self.mmis.get(), before)
        });
        test("nothing_stays_in_the_comm_buffer", &|| {
            ask(mm, FAULT_TOLERANT_WRITE, BLOCK_SIZE_REQUEST.as_bytes())?;
            ensure(is_wiped(config)?, "the comm buffer is not zero after a call")
        });
    }
}

fn switched_off_smis(
    firmware: Firmware,
    mm: &dyn MmCommunication,
    config: &MmCommunicationConfiguration,
    mmis: &MmiCount,
) -> Result<(), NotOk> {
    let before = mmis.get();
    let request = || ask(mm, FAULT_TOLERANT_WRITE, BLOCK_SIZE_REQUEST.as_bytes());
    refused_without_smis(firmware, request)?;
    equal(mmis.get(), before)?;
    ensure(is_wiped(config)?, "the request stayed in the comm buffer")?;
    request()?;
    Ok(())
}

/// Clears APMC_EN, as any code in ring 0 can, and sets it again after the request.
pub(crate) fn refused_without_smis(
    firmware: Firmware,
    request: impl Fn() -> Result<Vec<u8>, Status>,
) -> Result<(), NotOk> {
    match Q35::new()
        .without_smis(firmware.boot(), request)
        .ok_or("no SMI_EN")?
    {
        Err(Status::MmiNotRaised(TriggerError::SmisDisabled { missing, .. })) => {
            equal(missing, SmiEnable::APMC)
        }
        other => Err(failed(other)),
    }
}

fn ask(mm: &dyn MmCommunication, recipient: Guid, message: &[u8]) -> Result<Vec<u8>, Status> {
    mm.communicate(BUFFER_ID, message, as_patina(&recipient).as_guid())
}

pub(crate) fn as_patina(guid: &Guid) -> BinaryGuid {
    BinaryGuid::from_bytes(&guid.to_bytes())
}

/// Whether every byte of the comm buffer is zero.
fn is_wiped(config: &MmCommunicationConfiguration) -> Result<bool, NotOk> {
    let buffer = config.comm_buffers.first().ok_or("no comm buffer")?;
    let mut bytes = vec![0xff; buffer.len()];
    ensure(
        read_memory(buffer, 0, &mut bytes),
        "the comm buffer cannot be read",
    )?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}
