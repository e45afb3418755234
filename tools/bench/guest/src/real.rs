//! Calls to the machine's own MM. An unsafe island (`docs/unsafe.md`).
//!
//! | machine | the request's way |
//! |---|---|
//! | `ovmf-smm` | edk2's SMM core takes it from the block that it shares with its IPL; the handler of variables refuses it in place |
//! | `patina-q35` | the users' comm buffer, from Project Mu's region HOB, `SwMmiManager`, the status mailbox; the echo handler |
//!
//! Beside it, the same message through the firmware's `EFI_MM_COMMUNICATION2_PROTOCOL`, as a driver in C sends it.

use crate::count::{COMMAND_PORT, TimedPorts, count, report};
use crate::q35::Q35;
use crate::smm_core::SmmCorePrivate;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt::Write as _;
use mm_comm::{PortTrigger, Ports as _, SmiCheck, SmiEnableRegister};
use mm_wire::hob::{COMM_REGION_HOB_GUID, CommRegion, Owner};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::pi::hob::{Hob, HobList};
use patina::standard::efi;
use patina_mm::component::communicator::{MmCommunicator, MmExecutor, Status};
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::CommunicateBuffer;
use patina_mm::service::MmCommunication;
use patina_mm_test::dispatcher::Dispatcher;
use uefi_app::Firmware;
use uefi_app::console::Console;
use uefi_app::protocols::BootProtocols;

const SIZES: [usize; 3] = [24, 1024, 4096];

/// `gEfiSmmVariableProtocolGuid`: edk2's handler of variables.
const VARIABLES: BinaryGuid = BinaryGuid::from_string("ed32d533-99e6-4209-9cc0-2d72cdd998a7");
/// A function that the handler of variables does not know, so that it leaves the message as it is.
const UNKNOWN_FUNCTION: u8 = 99;

/// The echo handler of `mm_core`.
const ECHO: BinaryGuid = BinaryGuid::from_string("f2090a29-5433-4fda-9dc4-bcebb1ba2ed3");

/// The configuration table that is the HOB list (PI 1.9, volume 3, 4.3).
const HOB_LIST: BinaryGuid = BinaryGuid::from_string("7739f24c-93d7-11d4-9a3a-0090273fc14d");

/// `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4, 5.7.2).
const COMMUNICATION2: BinaryGuid = BinaryGuid::from_string("378daedc-f06b-4446-8314-40ab933c87a3");

#[repr(C)]
struct Communication2 {
    communicate:
        unsafe extern "efiapi" fn(*const Communication2, *mut c_void, *mut c_void, *mut usize) -> efi::Status,
}

/// Counts what this machine has; `false` if nothing could be counted.
pub(crate) fn run(firmware: Firmware) -> bool {
    let protocols = BootProtocols::new(firmware.boot());
    if let Some(region) = users_region(firmware) {
        return through_components(firmware, &region);
    }
    match SmmCorePrivate::find(firmware, &protocols) {
        Ok(block) => through_smm_core(firmware, block),
        Err(error) => {
            let _ = writeln!(Console, "no MM to count calls of: {error}");
            false
        }
    }
}

/// The data of the HOB that announces the users' comm buffer.
fn users_region(firmware: Firmware) -> Option<Vec<u8>> {
    let mut list = HobList::default();
    list.discover_hobs(firmware.configuration_table(&HOB_LIST)?.cast_const());
    let wanted = BinaryGuid::from_bytes(&COMM_REGION_HOB_GUID.to_bytes());
    list.iter().find_map(|hob| match hob {
        Hob::GuidHob(hob, data) if hob.name == wanted => {
            let is_users = CommRegion::of_hob(data).is_ok_and(|region| region.owner == Owner::User);
            is_users.then(|| data.to_vec())
        }
        _ => None,
    })
}

/// Counts calls that return as many bytes as they send.
fn count_ours(mm: &dyn MmCommunication, id: u8, recipient: &BinaryGuid) {
    for size in SIZES {
        let mut message = vec![0; size];
        message[0] = UNKNOWN_FUNCTION;
        let mut out = vec![0; size];
        report(
            "communicate",
            size,
            count(|| {
                let response = mm.communicate(id, &message, recipient.as_guid());
                response.is_ok_and(|response| response.len() == size)
            }),
        );
        report(
            "into",
            size,
            count(|| {
                let len = mm.communicate_into(id, &message, recipient.as_guid(), &mut out);
                len.is_ok_and(|len| len == size)
            }),
        );
    }
}

/// Counts the same through the firmware's protocol, as a driver in C does it: header and message
/// into the buffer, the call, the response out of the buffer. MM's part is not known; it is the
/// same as for the same message above.
fn count_protocol(protocols: &BootProtocols, memory: *mut u8, recipient: &BinaryGuid) {
    let Ok(interface) = protocols.locate_interface(COMMUNICATION2) else {
        return;
    };
    let protocol = interface.as_raw().cast::<Communication2>().cast_const();
    for size in SIZES {
        let mut message = vec![0_u8; size];
        message[0] = UNKNOWN_FUNCTION;
        let mut out = vec![0_u8; size];
        let call = || {
            let mut total = size + 24;
            // SAFETY: the buffer has header and message, and is this program's while the protocol is not called.
            unsafe {
                core::ptr::copy_nonoverlapping(core::ptr::from_ref(recipient).cast::<u8>(), memory, 16);
                memory.add(16).cast::<u64>().write_unaligned(size as u64);
                core::ptr::copy_nonoverlapping(message.as_ptr(), memory.add(24), size);
                let status =
                    ((*protocol).communicate)(protocol, memory.cast(), memory.cast(), &raw mut total);
                core::ptr::copy_nonoverlapping(memory.add(24), out.as_mut_ptr(), size);
                status == efi::Status::SUCCESS && total == size + 24
            }
        };
        report("protocol", size, count(call));
    }
}

/// Enters edk2's SMM core, as `machines/ovmf_smm` does, without raising the TPL: the firmware's driver does not either.
struct SmmCore {
    block: SmmCorePrivate,
    trigger: PortTrigger,
    ports: TimedPorts,
}

impl MmExecutor for SmmCore {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        let len = comm_buffer.get_message_length()? + 24;
        let raise = || self.trigger.raise(&self.ports, 0, 0);
        let pause = || self.ports.pause();
        let total = self.block.request_alone(comm_buffer.as_ptr(), len, raise, pause);
        let total = total.map_err(|_no_response| Status::NotProcessed)?;
        let len = usize::try_from(total).unwrap_or_default().saturating_sub(24);
        Ok(comm_buffer.accept_in_place(len)?)
    }
}

fn through_smm_core(firmware: Firmware, block: SmmCorePrivate) -> bool {
    let Ok(memory) = firmware.allocate_runtime_pages(16) else {
        return false;
    };
    let base = Q35::new().acpi_base();
    let Ok(register) = base.map(SmiEnableRegister::behind_io_base) else {
        return false;
    };
    let trigger = PortTrigger {
        command_port: COMMAND_PORT,
        data_port: COMMAND_PORT + 1,
        smi_enable: register.ok(),
        check: SmiCheck::Require,
    };
    // SAFETY: the pages were allocated for this, and are the protocol's only after the communicator's last call.
    let buffer = unsafe { CommunicateBuffer::from_raw_parts(memory, 16 * 4096, 0) };
    let mm = MmCommunicator::with_executor(SmmCore {
        block,
        trigger,
        ports: TimedPorts::new(),
    });
    mm.set_test_comm_buffers(buffer.into_iter().collect());
    count_ours(&mm, 0, &VARIABLES);
    count_protocol(&BootProtocols::new(firmware.boot()), memory, &VARIABLES);
    true
}

/// Component: counts calls through the service.
struct Counts;

#[component]
impl Counts {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        count_ours(&**mm, Owner::User.number(), &ECHO);
        Ok(())
    }
}

/// The components that a platform adds, with ports that note the time. The platform's own components, which use the same comm
/// buffer, have made their calls before an application runs.
fn through_components(firmware: Firmware, users_region: &[u8]) -> bool {
    let mut dispatcher = Dispatcher::new();
    dispatcher
        .storage()
        .add_service(BootProtocols::new(firmware.boot()));
    let configuration = MmHobConfiguration::new().with_exclusive_buffers();
    dispatcher.add(configuration.with_acpi_base(AcpiBaseSource::Ich9));
    dispatcher.add(SwMmiManager::with_ports(TimedPorts::new()));
    dispatcher.add(MmCommunicator::new());
    let guid = BinaryGuid::from_bytes(&COMM_REGION_HOB_GUID.to_bytes());
    for parse in dispatcher.storage().get_hob_parsers(&guid) {
        parse(users_region, dispatcher.storage());
    }
    dispatcher.add(Counts);
    let outcome = dispatcher.dispatch();
    let Ok(message) = firmware.allocate_runtime_pages(2) else {
        return false;
    };
    count_protocol(&BootProtocols::new(firmware.boot()), message, &ECHO);
    outcome.not_run.is_empty() && outcome.failed.is_empty()
}
