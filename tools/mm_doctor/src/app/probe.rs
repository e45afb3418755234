//! Harmless questions to MM. An unsafe island (`docs/unsafe.md`).

use super::cpu::Clock;
use super::firmware::{COMMUNICATION, interface};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::c_void;
use mm_comm::SharedRegion;
use mm_comm::c_request::{Communication, Communication2, Communication3};
use mm_doctor::facts::{Facts, Probe};
use mm_wire::message::supervisor;
use mm_wire::message::variable::{self, PayloadSizeMessage};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, guid};
use uefi::boot::{self, AllocateType, MemoryType};
use zerocopy::IntoBytes as _;

/// No handler has this GUID.
const NOBODY: Guid = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

/// Pages of the buffer for the protocols.
const PAGES: usize = 4;

struct Question {
    what: &'static str,
    recipient: Guid,
    message: Vec<u8>,
}

fn questions() -> [Question; 3] {
    [
        Question {
            what: "the variable service's payload size",
            recipient: variable::GUID,
            message: PayloadSizeMessage::request().as_bytes().to_vec(),
        },
        Question {
            what: "the supervisor's version",
            recipient: supervisor::GUID,
            message: supervisor::version_request().to_vec(),
        },
        Question {
            what: "a GUID that no handler has",
            recipient: NOBODY,
            message: [0; 16].to_vec(),
        },
    ]
}

/// Asks by each way that there is.
pub(super) fn ask(facts: &Facts) -> Vec<Probe> {
    let clock = Clock::new();
    let mut probes = Vec::new();
    by_protocols(&clock, &mut probes);
    #[cfg(target_arch = "x86_64")]
    ports::by_comm_buffers(facts, &clock, &mut probes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = facts;
    probes
}

fn record(
    way: &str,
    question: &Question,
    (response, us): (Result<Vec<u8>, String>, Option<u64>),
    probes: &mut Vec<Probe>,
) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    probes.push(Probe {
        way: way.to_string(),
        question: question.what,
        may_be_missing: question.recipient != variable::GUID,
        nobody: question.recipient == NOBODY,
        recipient: question.recipient.to_string(),
        request: hex(&question.message),
        response: response.map(|bytes| hex(&bytes)),
        us,
    });
}

fn by_protocols(clock: &Clock, probes: &mut Vec<Probe>) {
    let Ok(memory) = boot::allocate_pages(AllocateType::AnyPages, MemoryType::RUNTIME_SERVICES_DATA, PAGES)
    else {
        return;
    };
    let len = PAGES.saturating_mul(mm_wire::PAGE_LEN);
    // SAFETY: the pages were allocated just now; they are freed below, when the region is gone.
    if let Ok(region) = unsafe { SharedRegion::new(memory.as_ptr(), len) } {
        for (index, guid) in COMMUNICATION.into_iter().enumerate() {
            let Some(protocol) = interface(guid).filter(|interface| !interface.is_null()) else {
                continue;
            };
            let version = index.saturating_add(1);
            let way = format!("communication protocol {version}");
            for question in questions() {
                let result = clock.time(|| communicate(version, protocol, &region, &question));
                record(&way, &question, result, probes);
            }
        }
    }
    // SAFETY: allocated above, and nothing uses the pages any more: MM has processed its requests when the calls return.
    let freed = unsafe { boot::free_pages(memory, PAGES) };
    // Pages that firmware will not take back stay with it.
    let _ = freed;
}

/// One call of the protocol of this version.
fn communicate(
    version: usize,
    protocol: *mut c_void,
    region: &SharedRegion,
    question: &Question,
) -> Result<Vec<u8>, String> {
    let format = if version == 3 {
        HeaderFormat::V3
    } else {
        HeaderFormat::V1
    };
    let message = &question.message;
    let header =
        Header::new(format, question.recipient, message.len() as u64).ok_or("the message is too long")?;
    let header_len = format.header_len();
    if !region.wipe(0, region.len())
        || !region.write(0, header.encode().as_ref())
        || !region.write(header_len, message)
    {
        return Err("the message does not fit".to_string());
    }
    let buffer: *mut c_void = region.as_ptr().cast();
    let mut size = header_len.saturating_add(message.len());
    let status = match version {
        1 => {
            let this = protocol.cast_const().cast::<Communication>();
            // SAFETY: the interface that the firmware has for this protocol.
            let call = unsafe { (*this).communicate };
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as `size` says.
            unsafe { call(this, buffer, &raw mut size) }
        }
        2 => {
            let this = protocol.cast_const().cast::<Communication2>();
            // SAFETY: the interface that the firmware has for this protocol.
            let call = unsafe { (*this).communicate };
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as `size` says; boot services
            // map memory one to one.
            unsafe { call(this, buffer, buffer, &raw mut size) }
        }
        _ => {
            let this = protocol.cast_const().cast::<Communication3>();
            // SAFETY: the interface that the firmware has for this protocol.
            let call = unsafe { (*this).communicate };
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as its v3 header says; boot
            // services map memory one to one.
            unsafe { call(this, buffer, buffer) }
        }
    };
    let status = EfiStatus::from_native(status.as_usize());
    if status != EfiStatus::SUCCESS {
        return Err(status.to_string());
    }
    let mut bytes = alloc::vec![0; size.min(region.len()).saturating_sub(header_len)];
    if !region.read(header_len, &mut bytes) {
        return Err("the response is longer than the buffer".to_string());
    }
    Ok(bytes)
}

#[cfg(target_arch = "x86_64")]
mod ports {
    use super::{Clock, Facts, Probe, Question, String, ToString, Vec, format, questions, record};
    use crate::app::cpu;
    use core::ptr;
    use mm_comm::{Channel, PortTrigger, Ports as _, SmiCheck, SmiEnableRegister};
    use mm_wire::HeaderFormat;

    /// APM_CNT and APM_STS.
    const COMMAND_PORT: u16 = 0xb2;
    const DATA_PORT: u16 = 0xb3;
    /// What Project Mu's platforms write to the command port; other MM cores take any value.
    const COMMAND: u8 = 0xff;
    /// How often the mailbox is looked at.
    const POLLS: u32 = 100_000;

    /// Through the comm buffers of HOBs that have a mailbox which announces nothing.
    pub(super) fn by_comm_buffers(facts: &Facts, clock: &Clock, probes: &mut Vec<Probe>) {
        let base = facts.chipset.as_ref().and_then(|chipset| chipset.acpi_base);
        let Some(smi_enable) = base.and_then(|base| SmiEnableRegister::behind_io_base(base).ok()) else {
            return;
        };
        let trigger = PortTrigger {
            command_port: COMMAND_PORT,
            data_port: DATA_PORT,
            smi_enable: Some(smi_enable),
            check: SmiCheck::Require,
        };
        for (index, buffer) in facts.buffers.iter().enumerate() {
            let is_free = buffer.state.is_some_and(|state| !state.pending);
            let is_whole = buffer.memory.as_ref().is_some_and(|memory| memory.whole);
            let (Some(region), Some(mailbox), true, true) =
                (buffer.region, buffer.mailbox, is_free, is_whole)
            else {
                continue;
            };
            let address = |address: u64| usize::try_from(address).map(ptr::with_exposed_provenance_mut::<u8>);
            let (Ok(base), Ok(mailbox), Ok(len)) = (
                address(region.start),
                address(mailbox),
                usize::try_from(region.len),
            ) else {
                continue;
            };
            // SAFETY: a HOB sets this memory aside for messages to MM, the memory map has all of it, and the mailbox says that
            // nobody has a request there.
            let channel = match unsafe { Channel::at_firmware_region(base, len, Some(mailbox)) } {
                Ok(channel) => channel,
                Err(_unfit) => continue,
            };
            let way = format!("comm buffer {index} and ports");
            for question in questions() {
                let result = clock.time(|| exchange(&channel, trigger, &question));
                record(&way, &question, result, probes);
            }
        }
    }

    fn exchange(channel: &Channel, trigger: PortTrigger, question: &Question) -> Result<Vec<u8>, String> {
        let ports = cpu::ports();
        let staged = channel
            .begin(HeaderFormat::V1, question.recipient, &question.message)
            .map_err(|error| error.to_string())?;
        trigger
            .raise(&ports, COMMAND, 0)
            .map_err(|error| error.to_string())?;
        staged.wait(POLLS, || ports.pause());
        let response = staged.finish().map_err(|error| error.to_string())?;
        let mut bytes = alloc::vec![0; response.len()];
        response
            .copy_to(&mut bytes)
            .map(|bytes| bytes.to_vec())
            .ok_or_else(|| "the response changed".to_string())
    }
}
