//! The application.

use core::ptr;
use mm_conformance::c_abi;
use mm_conformance::lab::{CCall, CProtocol};
use mm_conformance::mm::ECHO;
use mm_conformance::test_protocol::{Findings, Task, TestProtocol};
use mm_wire::{EfiStatus, Header, HeaderFormat};
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt};
use patina::management_mode::protocol::mm_comm_buffer_update;
use uefi_app::Firmware;
use uefi_app::protocols::BootProtocols;

uefi_app::application!(run);

/// `true` if everything went as it should.
fn run(firmware: Firmware) -> bool {
    let protocols = BootProtocols::new(firmware.boot());
    let task = match &*firmware.mode() {
        [b'd', b'e', b'm', b'o', ..] => Task::Demo,
        [b'p', b'l', b'a', b't', ..] => Task::PlatformTest,
        [b's', b'o', b'a', b'k', ..] => Task::Soak,
        _ => Task::Test,
    };
    let update = protocols
        .locate_interface(mm_comm_buffer_update::PROTOCOL_GUID)
        .map_or(ptr::null(), |interface| interface.as_raw().cast_const());
    let all = [CProtocol::One, CProtocol::Two, CProtocol::Three];
    let answered = all
        .into_iter()
        .filter(|protocol| answers(&protocols, *protocol))
        .count();
    let findings = Findings {
        update,
        answered: u32::try_from(answered).unwrap_or(u32::MAX),
        free_memory,
    };
    match protocols.locate_protocol::<TestProtocol>() {
        Ok(interface) => (interface.run)(interface, task.number(), findings) == 1,
        Err(error) => {
            log::error!("this firmware does not publish the test protocol: {error:?}");
            false
        }
    }
}

extern "efiapi" fn free_memory() -> u64 {
    uefi_app::firmware::free_memory().unwrap_or_default()
}

/// Whether a message through this protocol comes back from MM as it was sent.
fn answers(protocols: &dyn ProtocolServices, protocol: CProtocol) -> bool {
    const MESSAGE: &[u8] = b"from an application";
    let format = match protocol {
        CProtocol::Three => HeaderFormat::V3,
        _ => HeaderFormat::V1,
    };
    let Some(header) = Header::new(format, ECHO, MESSAGE.len() as u64) else {
        return false;
    };
    let bytes = [header.encode().as_ref(), MESSAGE].concat();
    let comm_size = Some(bytes.len());
    let reply = c_abi::call(
        protocols,
        &CCall {
            protocol,
            bytes: Some(bytes.clone()),
            comm_size,
        },
    );
    let Some(reply) = reply else {
        log::error!("{protocol:?} is not installed");
        return false;
    };
    let good = reply.status == EfiStatus::SUCCESS && reply.bytes == bytes;
    if !good {
        log::error!("{protocol:?}: {reply:?}");
    }
    good
}
