//! Harmless requests to MM. An unsafe island (`docs/unsafe.md`).

use super::cpu::Clock;
use super::firmware::{COMMUNICATION, interface};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use mm_comm::c_request::{Communication, Communication2, Communication3};
use mm_comm::{Channel, SharedRegion};
use mm_doctor::facts::{Facts, Probe};
use mm_wire::message::supervisor;
use mm_wire::message::variable::{self, PayloadSizeMessage};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, guid};
use uefi::boot::{self, AllocateType, MemoryType};
use zerocopy::IntoBytes as _;

/// No handler has this GUID.
const UNKNOWN: Guid = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

/// Pages of the buffer for the protocols.
const PAGES: usize = 4;

struct Question {
    what: &'static str,
    recipient: Guid,
    message: Vec<u8>,
}

/// The messages. If `all` is false, only one whose handler MM has: a DEBUG build of StandaloneMm
/// asserts, and never returns, on a GUID without a handler (docs/platform-arm.md).
fn questions(all: bool) -> impl Iterator<Item = Question> {
    let number = if all { 3 } else { 1 };
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
            recipient: UNKNOWN,
            message: [0; 16].to_vec(),
        },
    ]
    .into_iter()
    .take(number)
}

/// Sends the requests through each way into MM.
pub(super) fn ask(facts: &Facts, all: bool) -> Vec<Probe> {
    let clock = Clock::new();
    let mut probes = Vec::new();
    let all = all || facts.arm.is_none();
    by_protocols(all, &clock, &mut probes);
    #[cfg(target_arch = "x86_64")]
    let raise = ports::entry(facts);
    #[cfg(target_arch = "aarch64")]
    let raise = smc::entry(facts);
    if let Some((way, raise)) = raise {
        by_comm_buffers(facts, all, (&way, &*raise), &clock, &mut probes);
    }
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
        unknown: question.recipient == UNKNOWN,
        recipient: question.recipient.to_string(),
        request: hex(&question.message),
        response: response.map(|bytes| hex(&bytes)),
        us,
    });
}

fn by_protocols(all: bool, clock: &Clock, probes: &mut Vec<Probe>) {
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
            for question in questions(all) {
                let result = clock.time(|| communicate(version, protocol, &region, &question));
                record(&way, &question, result, probes);
            }
        }
    }
    // SAFETY: allocated above, and nothing uses the pages any more: MM has processed its requests
    // when the calls return.
    let freed = unsafe { boot::free_pages(memory, PAGES) };
    // Pages that the firmware does not take back stay allocated.
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
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as
            // `size` says.
            unsafe { call(this, buffer, &raw mut size) }
        }
        2 => {
            let this = protocol.cast_const().cast::<Communication2>();
            // SAFETY: the interface that the firmware has for this protocol.
            let call = unsafe { (*this).communicate };
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as
            // `size` says; boot services map memory one to one.
            unsafe { call(this, buffer, buffer, &raw mut size) }
        }
        _ => {
            let this = protocol.cast_const().cast::<Communication3>();
            // SAFETY: the interface that the firmware has for this protocol.
            let call = unsafe { (*this).communicate };
            // SAFETY: the interface that the function belongs to, and a buffer that is as long as
            // its v3 header says; boot services map memory one to one.
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

/// Enters MM for the request in the comm buffer at an address.
type Raise = Box<dyn Fn(u64) -> Result<(), String>>;

/// How often the mailbox is polled.
const POLLS: u32 = 100_000;

/// Sends the requests through the comm buffers whose mailbox announces nothing.
fn by_comm_buffers(
    facts: &Facts,
    all: bool,
    (way, raise): (&str, &dyn Fn(u64) -> Result<(), String>),
    clock: &Clock,
    probes: &mut Vec<Probe>,
) {
    for (index, buffer) in facts.buffers.iter().enumerate() {
        let is_free = match (buffer.mailbox, buffer.state) {
            (None, _) => facts.arm.is_some(),
            (Some(_), state) => state.is_some_and(|state| !state.pending),
        };
        let memory = buffer.memory.as_ref();
        let is_whole = memory.is_some_and(|memory| memory.whole);
        let is_mapped = memory.is_some_and(|memory| {
            memory
                .pages
                .as_ref()
                .is_none_or(|pages| pages.elsewhere.is_none() && pages.writable)
        });
        let (Some(region), true, true, true) = (buffer.region, is_free, is_whole, is_mapped) else {
            continue;
        };
        // Memory that nothing has reserved is allocated first, so that nothing else uses it.
        let _allocated = match memory.map(|memory| memory.kind.as_str()) {
            Some("Conventional") => match Allocated::at(region.start, region.len) {
                Some(allocated) => Some(allocated),
                None => continue,
            },
            _ => None,
        };
        let address = |address: u64| usize::try_from(address).map(ptr::with_exposed_provenance_mut::<u8>);
        let (Ok(base), Ok(mailbox), Ok(len)) = (
            address(region.start),
            buffer.mailbox.map(address).transpose(),
            usize::try_from(region.len),
        ) else {
            continue;
        };
        // SAFETY: a HOB sets this memory aside for messages to MM, or the user says so, or it was
        // allocated just now; the memory map has all of it, and the mailbox says that no request is
        // in it.
        let Ok(channel) = (unsafe { Channel::new(base, len, mailbox) }) else {
            continue;
        };
        channel.take_over();
        let way = format!("comm buffer {index} and {way}");
        for question in questions(all) {
            let result = clock.time(|| exchange(&channel, region.start, raise, &question));
            record(&way, &question, result, probes);
        }
    }
}

fn exchange(
    channel: &Channel,
    address: u64,
    raise: &dyn Fn(u64) -> Result<(), String>,
    question: &Question,
) -> Result<Vec<u8>, String> {
    let staged = channel
        .begin(HeaderFormat::V1, question.recipient, &question.message)
        .map_err(|error| error.to_string())?;
    raise(address)?;
    staged.wait(POLLS, core::hint::spin_loop);
    let response = staged.finish().map_err(|error| error.to_string())?;
    let mut bytes = alloc::vec![0; response.len()];
    response
        .copy_to(&mut bytes)
        .map(|bytes| bytes.to_vec())
        .ok_or_else(|| "the response changed".to_string())
}

/// Pages at a given address, until this is dropped.
struct Allocated(NonNull<u8>, usize);

impl Allocated {
    fn at(start: u64, len: u64) -> Option<Self> {
        let pages = usize::try_from(len).ok()?.div_ceil(mm_wire::PAGE_LEN);
        let kind = MemoryType::RUNTIME_SERVICES_DATA;
        let memory = boot::allocate_pages(AllocateType::Address(start), kind, pages).ok()?;
        Some(Self(memory, pages))
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: allocated in `at`; MM has processed its requests, and no channel is left.
        let freed = unsafe { boot::free_pages(self.0, self.1) };
        // Pages that the firmware does not take back stay allocated.
        let _ = freed;
    }
}

#[cfg(target_arch = "x86_64")]
mod ports {
    use super::{Box, Facts, Raise, String, ToString};
    use crate::app::cpu;
    use mm_comm::{PortTrigger, SmiCheck, SmiEnableRegister};

    /// APM_CNT; APM_STS is the next port, and so is AMD's.
    const COMMAND_PORT: u16 = 0xb2;
    /// What Project Mu's platforms write to the command port; other MM cores take any value.
    const COMMAND: u8 = 0xff;

    /// Enters MM through ports, like patina_mm: Intel's if SMIs are on, those of the FADT on other
    /// chipsets.
    pub(super) fn entry(facts: &Facts) -> Option<(String, Raise)> {
        let chipset = facts.chipset.as_ref()?;
        let base = chipset.acpi_base.filter(|_| chipset.smi_en.is_some());
        let smi_enable = base.and_then(|base| SmiEnableRegister::behind_io_base(base).ok());
        let fadt = facts.acpi.smi_cmd.and_then(|port| u16::try_from(port).ok());
        let command_port = match smi_enable {
            Some(_) => COMMAND_PORT,
            None => fadt.filter(|port| *port != 0)?,
        };
        let check = if smi_enable.is_some() {
            SmiCheck::Require
        } else {
            SmiCheck::Off
        };
        let trigger = PortTrigger {
            command_port,
            data_port: command_port.checked_add(1)?,
            smi_enable,
            check,
        };
        let raise = move |_| {
            let raised = trigger.raise(&cpu::ports(), COMMAND, 0);
            raised.map(drop).map_err(|error| error.to_string())
        };
        Some(("ports".to_string(), Box::new(raise)))
    }
}

#[cfg(target_arch = "aarch64")]
mod smc {
    use super::{Box, Facts, Raise, String, ToString, format};
    use crate::app::cpu;
    use mm_comm::smc::{self, SecureMm as _, Setup, Smc};
    use mm_doctor::arm::conduit_setting;

    /// Enters MM by secure monitor calls, like patina_mm.
    pub(super) fn entry(facts: &Facts) -> Option<(String, Raise)> {
        let arm = facts.arm.as_ref()?;
        let found = arm.mm.as_ref()?.as_ref().ok()?;
        let setup = Setup {
            psci: conduit_setting(arm.conduit),
            ..Setup::default()
        };
        let connection = smc::connect::<Smc>(setup, &mut cpu::two_pages).ok()?;
        let raise = move |address| connection.communicate(address).map_err(|error| error.to_string());
        Some((format!("secure monitor calls ({found})"), Box::new(raise)))
    }
}
