//! The mistakes of a platform that sets MM communication up for the first time, on a simulated
//! machine. Each has a line in the log that says what is wrong and what to do, when it can first be
//! known, and is an error if nothing can work.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "this is a test: what is not there fails it"
)]
#![allow(clippy::type_complexity, reason = "each type is used once")]

use mm_comm::Ports;
use mm_conformance::lab::LogLevel;
use mm_conformance::lab::Site;
use mm_conformance::sim::SimSite;
use mm_core::CommBuffer;
use mm_core::handlers::Echo;
use mm_wire::{AddressRange, HeaderFormat, PAGE_LEN};
use patina::component::params::ConfigMut;
use patina::component::service::Service;
use patina::component::{IntoComponent, component};
use patina::{BinaryGuid, Guid};
use patina_mm::component::communicator::{
    CallOptions, FixedMmCommunicator, MmCommunicationExt, MmCommunicator, Status,
};
use patina_mm::component::events::MmEventNotifier;
use patina_mm::component::hob_configuration::{AcpiBaseSource, MmHobConfiguration};
use patina_mm::component::protocols::MmCommunicationProducer;
use patina_mm::component::supervisor::MmSupervisorClient;
use patina_mm::component::sw_mmi_manager::{SmiEnable, SwMmiManager};
use patina_mm::config::{
    AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort, SmiCheck,
};
use patina_mm::service::{MmCommunication, SwMmiTrigger};
use patina_mm_test::Dispatcher;
use patina_mm_test::events::SharedEvents;
use patina_mm_test::protocols::SharedProtocols;
use patina_mm_test::tap::Tap;
use std::cell::RefCell;
use std::rc::Rc;

/// A platform: its configuration and components, and the comm buffers that MM knows.
struct Platform {
    site: SimSite,
    tap: Tap,
    /// Adds further components, and HOBs.
    add: Vec<Box<dyn FnOnce(&mut Dispatcher)>>,
    config: MmCommunicationConfiguration,
    options: MmCommunicationOptions,
    /// Where MM looks for requests.
    known_to_mm: Vec<CommBuffer>,
    /// Whether the communicator is the one for buffers that do not move.
    is_fixed: bool,
}

struct Seen {
    log: String,
    failed: Vec<String>,
    not_run: Vec<String>,
    result: Option<Result<Vec<u8>, Status>>,
    port_writes: Vec<(u16, u8)>,
}

/// The call that a component makes.
type Ask = Box<dyn FnOnce(&dyn MmCommunication) -> Result<Vec<u8>, Status>>;

/// The component that makes the call.
struct Asks {
    ask: Ask,
    result: Rc<RefCell<Option<Result<Vec<u8>, Status>>>>,
}

#[component]
impl Asks {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        *self.result.borrow_mut() = Some((self.ask)(&**mm));
        Ok(())
    }
}

const NO_HANDLER: BinaryGuid = BinaryGuid::from_string("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

fn echo() -> BinaryGuid {
    BinaryGuid::from_bytes(&Echo::GUID.to_bytes())
}

impl Platform {
    /// A platform that works.
    fn new() -> Self {
        let site = SimSite::new();
        let tap = Tap::new(site.ports());
        let mut platform = Self {
            tap,
            add: vec![],
            config: MmCommunicationConfiguration {
                acpi_base: AcpiBase::Io(site.pm_base()),
                cmd_port: MmiPort::Smi(0xb2),
                data_port: MmiPort::Smi(0xb3),
                ..Default::default()
            },
            options: MmCommunicationOptions {
                completion_polls: 2000,
                ..MmCommunicationOptions::DEFAULT
            },
            known_to_mm: vec![],
            is_fixed: false,
            site,
        };
        for id in [0, 1] {
            let (buffer, place) = platform.memory(id, true);
            platform.config.comm_buffers.push(buffer);
            platform.known_to_mm.push(place);
        }
        platform
    }

    /// Memory for a comm buffer.
    fn memory(&self, id: u8, with_mailbox: bool) -> (CommunicateBuffer, CommBuffer) {
        let at = |pages| self.site.allocate(pages).unwrap().expose_provenance() as u64;
        let (start, mailbox) = (at(4), with_mailbox.then(|| at(1)));
        // SAFETY: the memory is from the site, and only this buffer uses it.
        let buffer = unsafe { CommunicateBuffer::from_firmware_region(start, 4 * PAGE_LEN, id, mailbox) };
        let region = AddressRange::new(start, 4 * PAGE_LEN as u64).unwrap();
        (buffer.unwrap(), CommBuffer { region, mailbox })
    }

    fn add<I>(&mut self, component: impl IntoComponent<I> + 'static) {
        self.add.push(Box::new(|dispatcher| dispatcher.add(component)));
    }

    /// Adds the two components, dispatches everything, and makes a call.
    fn run(self, ask: impl FnOnce(&dyn MmCommunication) -> Result<Vec<u8>, Status> + 'static) -> Seen {
        let manager = SwMmiManager::with_ports(self.tap.clone());
        self.run_with(manager, ask)
    }

    fn run_with(
        self,
        manager: SwMmiManager,
        ask: impl FnOnce(&dyn MmCommunication) -> Result<Vec<u8>, Status> + 'static,
    ) -> Seen {
        self.site.tell_mm(&self.known_to_mm).unwrap();
        let mut dispatcher = Dispatcher::new();
        let storage = dispatcher.storage();
        storage.add_service(SharedProtocols(self.site.protocols()));
        storage.add_service(SharedEvents(self.site.events().unwrap()));
        storage.add_config(self.config);
        storage.add_config(self.options);
        for add in self.add {
            add(&mut dispatcher);
        }
        dispatcher.add(manager);
        match self.is_fixed {
            true => dispatcher.add(FixedMmCommunicator::new()),
            false => dispatcher.add(MmCommunicator::new()),
        }
        let result = Rc::new(RefCell::new(None));
        dispatcher.add(Asks {
            ask: Box::new(ask),
            result: Rc::clone(&result),
        });
        let (mut dispatcher, mut outcome) = (Some(dispatcher), None);
        let log = self.site.with_log(LogLevel::Debug, &mut || {
            outcome = dispatcher.take().map(Dispatcher::dispatch);
        });
        let outcome = outcome.unwrap();
        Seen {
            log,
            failed: outcome.failed.iter().map(|(name, _)| last(name)).collect(),
            not_run: outcome.not_run.iter().map(|(name, _)| last(name)).collect(),
            result: result.take(),
            port_writes: self.tap.writes(),
        }
    }
}

/// A component's name without its modules.
fn last(name: &str) -> String {
    name.rsplit("::").next().unwrap_or(name).to_owned()
}

fn ask_echo(mm: &dyn MmCommunication) -> Result<Vec<u8>, Status> {
    mm.communicate(0, b"hello", echo().as_guid())
}

/// The lines at this level or above that contain these words.
fn lines<'a>(log: &'a str, level: &str, words: &str) -> Vec<&'a str> {
    log.lines()
        .filter(|line| line.starts_with(level) && line.contains(words))
        .collect()
}

impl Seen {
    /// The component refused to start, no port was written, and one error says this.
    #[track_caller]
    fn refused(&self, component: &str, words: &[&str]) {
        assert_eq!(self.failed, [component], "{}", self.log);
        assert_eq!(self.port_writes, []);
        assert!(self.result.is_none());
        self.says("ERROR", words);
    }

    /// One line of this level says all of this.
    #[track_caller]
    fn says(&self, level: &str, words: &[&str]) {
        let lines = lines(&self.log, level, words[0]);
        assert_eq!(lines.len(), 1, "{words:?} in {}", self.log);
        for word in words {
            assert!(lines[0].contains(word), "no {word:?} in {}", lines[0]);
        }
    }

    /// The call failed, and one line of the log says so, with these words.
    #[track_caller]
    fn failed_call(&self, status: Status, words: &[&str]) {
        assert_eq!(self.result, Some(Err(status)), "{}", self.log);
        self.says("ERROR", words);
        let of_the_call = lines(&self.log, "", "bytes to ");
        assert_eq!(of_the_call.len(), 1, "{}", self.log);
        for text in ["ERROR", words[0]] {
            assert!(of_the_call[0].contains(text), "{}", self.log);
        }
    }

    #[track_caller]
    fn works(&self) {
        assert_eq!(self.result, Some(Ok(b"hello".to_vec())), "{}", self.log);
    }
}

#[test]
fn without_a_mistake_there_is_no_warning() {
    let seen = Platform::new().run(ask_echo);
    seen.works();
    assert!(seen.failed.is_empty() && seen.not_run.is_empty());
    assert_eq!(
        lines(&seen.log, "WARN", "").len() + lines(&seen.log, "ERROR", "").len(),
        0,
        "{}",
        seen.log
    );
    seen.says(
        "INFO",
        &["command port 0x00b2, data port 0x00b3, SMI_EN checked at 0x630"],
    );
}

/// A platform that works, except for its ports and its ACPI base.
fn with_ports(cmd_port: MmiPort, data_port: MmiPort, acpi_base: AcpiBase) -> Seen {
    let mut platform = Platform::new();
    platform.config.cmd_port = cmd_port;
    platform.config.data_port = data_port;
    platform.config.acpi_base = acpi_base;
    platform.run(ask_echo)
}

const TRIGGER: &str = "SwMmiManager";

#[test]
fn ports_that_cannot_be_meant_are_refused() {
    let unset = MmCommunicationConfiguration::default();
    let none = AcpiBase::Mmio(0);
    let smi = MmiPort::Smi;
    for (command, data, words) in [
        (
            unset.cmd_port,
            unset.data_port,
            "MmCommunicationConfiguration was never set",
        ),
        (smi(0xb2), unset.data_port, "the data port was never set"),
        (unset.cmd_port, smi(0xb3), "the command port was never set"),
        (smi(0xb2), smi(0xb2), "each call would raise two MMIs"),
        (
            smi(0xb3),
            smi(0xb2),
            "command port SMI(0x00B3) and data port SMI(0x00B2) are swapped",
        ),
        (smi(0xb2), MmiPort::Smc(0xc400_0041), "are of different kinds"),
        (
            MmiPort::Smc(0xc400_0041),
            MmiPort::Smc(0xc400_0041),
            "use MmiPort::Smi",
        ),
    ] {
        with_ports(command, data, none).refused(TRIGGER, &[words]);
    }
}

#[test]
fn a_host_build_without_ports_says_with_ports() {
    let platform = Platform::new();
    let seen = platform.run_with(SwMmiManager::new(), ask_echo);
    seen.refused(TRIGGER, &["SwMmiManager::with_ports in host tests"]);

    let mut platform = Platform::new();
    platform.add(MmHobConfiguration::new().with_acpi_base(AcpiBaseSource::Ich9));
    add_hob(&mut platform);
    let seen = platform.run(ask_echo);
    assert_eq!(seen.failed, ["MmHobConfiguration"]);
    seen.says("ERROR", &["MmHobConfiguration::with_ports"]);
}

#[test]
fn an_acpi_base_that_is_not_pmbase_is_refused() {
    let (command, data) = (MmiPort::Smi(0xb2), MmiPort::Smi(0xb3));
    for (base, words) in [
        // SMI_EN's own port, and PM1_CNT's.
        (AcpiBase::Io(0x630), "PMBASE may be 0x600"),
        (AcpiBase::Io(0x604), "PMBASE may be 0x600"),
        (AcpiBase::Io(0xffd1), "has no SMI_EN at +0x30"),
        (
            AcpiBase::from(0x600_usize),
            "MMIO(0x600) has the value of an I/O port: use AcpiBase::Io",
        ),
        // No device decodes these.
        (
            AcpiBase::Io(0x700),
            "SMI_EN at 0x730 reads 0xFFFFFFFF: nothing answers there",
        ),
        (
            AcpiBase::Mmio(0xfed0_0000),
            "SMI_EN at 0xfed00030 reads 0xFFFFFFFF: nothing answers there",
        ),
        (AcpiBase::Mmio(0xfed0_0001), "has no SMI_EN at +0x30"),
    ] {
        with_ports(command, data, base).refused(TRIGGER, &[words]);
    }
    let nothing = with_ports(command, data, AcpiBase::Io(0x700));
    nothing.refused(TRIGGER, &["acpi_base must be PMBASE (SMI_EN is base+0x30)"]);
}

#[test]
fn another_register_in_the_place_of_smi_en_is_refused() {
    let platform = Platform::new();
    // A value of the ACPI timer.
    platform.tap.write_u32(0x630, 0x0003_9521);
    platform.run(ask_echo).refused(
        TRIGGER,
        &["0x00039521 at 0x630 is not SMI_EN, whose bits 0x19500 are reserved"],
    );
}

#[test]
fn without_the_check_a_wrong_base_does_not_matter() {
    for base in [
        AcpiBase::Io(0x630),
        AcpiBase::Io(0xffff),
        AcpiBase::Mmio(1),
        AcpiBase::Io(0x700),
    ] {
        let mut platform = Platform::new();
        platform.config.acpi_base = base;
        platform.options.smi_check = SmiCheck::Off;
        let seen = platform.run(ask_echo);
        seen.works();
        seen.says("INFO", &["SMI_EN not read: SmiCheck::Off"]);
    }
}

#[test]
fn switched_off_smis_are_logged_at_dispatch_and_at_the_call() {
    let platform = Platform::new();
    platform.tap.write_u32(0x630, SmiEnable::GLOBAL.bits());
    let seen = platform.run(ask_echo);
    seen.says(
        "WARN",
        &["SMIs are off until SMI_EN at 0x630, now 0x00000001, has APMC_EN"],
    );
    assert!(matches!(seen.result, Some(Err(Status::MmiNotRaised(_)))));
    seen.failed_call(
        seen.result.clone().unwrap().unwrap_err(),
        &[
            "SMI_EN at 0x630 is 0x00000001, APMC_EN missing",
            "use SmiCheck::Enable",
        ],
    );
    assert_eq!(seen.port_writes, []);

    let mut platform = Platform::new();
    platform.options.smi_check = SmiCheck::Enable;
    platform.tap.write_u32(0x630, 0);
    platform.tap.lock(Some(0x630));
    let seen = platform.run(ask_echo);
    assert!(matches!(seen.result, Some(Err(Status::MmiNotRaised(_)))));
    seen.says("ERROR", &["stays 0x00000000 after", "SMI_LOCK"]);
}

/// Raises an MMI without a message.
struct Commands;

#[component]
impl Commands {
    fn entry_point(self, mmi: Service<dyn SwMmiTrigger>) -> patina::error::Result<()> {
        mmi.trigger_sw_mmi(0x10, 0x20)
    }
}

#[test]
fn smi_en_zero_refuses_messages_and_lets_trigger_sw_mmi_pass() {
    // Without a mailbox the request would come back as the response.
    for has_mailbox in [true, false] {
        let mut platform = Platform::new();
        let (buffer, place) = platform.memory(0, has_mailbox);
        platform.config.comm_buffers = vec![buffer];
        platform.known_to_mm = vec![place];
        platform.tap.write_u32(0x630, 0);
        platform.add(Commands);
        let seen = platform.run(ask_echo);
        assert!(seen.failed.is_empty(), "{}", seen.log);
        assert_eq!(seen.port_writes, [(0xb3, 0x20), (0xb2, 0x10)]);
        seen.says(
            "WARN",
            &["SMI_EN at 0x630 reads 0", "Each message fails", "SmiCheck::Off"],
        );
        assert!(
            matches!(seen.result, Some(Err(Status::MmiNotRaised(_)))),
            "{}",
            seen.log
        );
        seen.says(
            "ERROR",
            &["SMI_EN at 0x630 is 0x00000000, GBL_SMI_EN and APMC_EN missing"],
        );
    }

    // A platform without SMI_EN sends.
    let mut platform = Platform::new();
    platform.tap.write_u32(0x630, 0);
    platform.options.smi_check = SmiCheck::Off;
    let seen = platform.run(ask_echo);
    assert_eq!(seen.port_writes.first(), Some(&(0xb3, 0)), "{}", seen.log);
}

/// Everything that is known about an MMI that had no effect.
const IN_VAIN: [&str; 5] = [
    "5 bytes to f2090a29-5433-4fda-9dc4-bcebb1ba2ed3",
    "MM did not process the request; it has been withdrawn",
    "16384 bytes at 0x",
    "polled 2000 times; MMIs raised: 2. ",
    "docs/troubleshooting.md",
];

#[test]
fn a_request_that_mm_does_not_take_is_logged_with_all_numbers() {
    let in_vain = |change: &dyn Fn(&mut Platform), ports: &str| {
        let mut platform = Platform::new();
        change(&mut platform);
        let seen = platform.run(ask_echo);
        let mut words = IN_VAIN.to_vec();
        words.push(ports);
        seen.failed_call(Status::NotProcessed, &words);
    };
    let smi_en = "SMI_EN at 0x630 was 0x00000021 before, is 0x00000021 now";
    // The command port is not the chipset's.
    in_vain(
        &|platform| platform.config.cmd_port = MmiPort::Smi(0xb0),
        "then command 0xff to port 0xb0",
    );
    in_vain(&|platform| platform.config.cmd_port = MmiPort::Smi(0xb0), smi_en);
    // The chipset keeps the command to itself.
    in_vain(
        &|platform| platform.options.command_value = 2,
        "Wrote data 0x00 to port 0xb3, then command 0x02 to port 0xb2",
    );
    // MM does not know the buffer, or its mailbox.
    in_vain(
        &|platform| platform.config.comm_buffers[0] = platform.memory(0, true).0,
        smi_en,
    );
    // SMIs are off, and SMI_EN is not checked.
    in_vain(
        &|platform| {
            platform.tap.write_u32(0x630, 0);
            platform.config.acpi_base = AcpiBase::Io(0);
        },
        "SMI_EN not read: no ACPI base was given",
    );
    in_vain(
        &|platform| {
            platform.tap.write_u32(0x630, 0);
            platform.options.smi_check = SmiCheck::Off;
        },
        "SMI_EN not read: SmiCheck::Off",
    );
}

#[test]
fn a_wait_of_no_polls_is_told_as_one() {
    let mut platform = Platform::new();
    platform.options.completion_polls = 0;
    platform.config.cmd_port = MmiPort::Smi(0xb0);
    platform
        .run(ask_echo)
        .failed_call(Status::NotProcessed, &["polled 1 times; MMIs raised: 1"]);
}

#[test]
fn moves_that_were_switched_on_in_half_are_told() {
    let with = |enabled, id| {
        let mut platform = Platform::new();
        platform.config.enable_comm_buffer_updates = enabled;
        platform.config.updatable_buffer_id = id;
        let seen = platform.run(ask_echo);
        seen.works();
        seen
    };
    with(true, Some(7)).says("WARN", &["updatable_buffer_id is 7", "there are: 0, 1"]);
    with(false, Some(1)).says("WARN", &["enable_comm_buffer_updates is not set"]);
    with(true, None).says("WARN", &["updatable_buffer_id is not set"]);
    for seen in [with(true, Some(1)), with(false, None)] {
        assert_eq!(lines(&seen.log, "WARN", "").len(), 0, "{}", seen.log);
    }
}

#[test]
fn moves_are_refused_by_the_communicator_for_fixed_buffers() {
    let with = |id: Option<u8>| {
        let mut platform = Platform::new();
        platform.is_fixed = true;
        platform.config.enable_comm_buffer_updates = id.is_some();
        platform.config.updatable_buffer_id = id;
        platform.run(ask_echo)
    };
    let seen = with(None);
    seen.works();
    assert_eq!(lines(&seen.log, "WARN", "").len(), 0, "{}", seen.log);
    let words = ["comm buffer 1 may move", "instead of FixedMmCommunicator"];
    with(Some(1)).refused("FixedMmCommunicator", &words);
}

#[test]
fn missing_comm_buffers_are_logged_at_dispatch_and_at_the_call() {
    let mut platform = Platform::new();
    platform.config.comm_buffers.clear();
    let seen = platform.run(ask_echo);
    seen.says("ERROR", &["there is no comm buffer", "MmHobConfiguration"]);
    seen.failed_call(Status::NoCommBuffer, &["no comm buffer is configured"]);
}

#[test]
fn a_call_before_dispatch_says_so() {
    let site = SimSite::new();
    let mut result = Ok(vec![]);
    let log = site.with_log(LogLevel::Debug, &mut || result = ask_echo(&MmCommunicator::new()));
    assert_eq!(result, Err(Status::NoCommBuffer));
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("MmCommunicator was not dispatched yet"), "{log}");
}

#[test]
fn conflicting_comm_buffers_are_refused() {
    let mut platform = Platform::new();
    let twice = platform.config.comm_buffers[0].clone();
    platform.config.comm_buffers.push(twice);
    platform
        .run(ask_echo)
        .refused("MmCommunicator", &["two comm buffers have the identifier 0"]);

    let mut platform = Platform::new();
    let first = platform.known_to_mm[0].region.start();
    // SAFETY: the memory is the site's; the buffer is refused before it is used.
    let over = unsafe { CommunicateBuffer::from_firmware_region(first, PAGE_LEN, 9, None) };
    platform.config.comm_buffers.push(over.unwrap());
    platform
        .run(ask_echo)
        .refused("MmCommunicator", &["comm buffers 0 and 9 share memory"]);
}

#[test]
fn a_comm_buffer_without_a_mailbox_is_warned_of() {
    let mut platform = Platform::new();
    let (buffer, place) = platform.memory(5, false);
    platform.config.comm_buffers = vec![buffer];
    platform.known_to_mm = vec![place];
    let seen = platform.run(|mm| mm.communicate(5, b"hello", echo().as_guid()));
    seen.works();
    seen.says("WARN", &["comm buffers 5 have no status mailbox"]);
}

#[test]
fn callers_mistakes_are_one_line_each() {
    let too_long = vec![1; 4 * PAGE_LEN];
    let options = CallOptions::new().with_header(HeaderFormat::V1);
    let of = |ask: Ask| Platform::new().run(ask);
    of(Box::new(|mm| mm.communicate(9, b"x", echo().as_guid())))
        .failed_call(Status::CommBufferNotFound, &["1 bytes to ", "there are: 0, 1"]);
    of(Box::new(|mm| mm.communicate(0, b"", echo().as_guid())))
        .failed_call(Status::InvalidDataBuffer, &["the message is empty"]);
    of(Box::new(move |mm| mm.communicate(0, &too_long, echo().as_guid()))).failed_call(
        Status::CommBufferTooSmall,
        &["16384 bytes, the comm buffer has room for 16360"],
    );
    let marker = Guid::from_bytes(&mm_wire::header::V3_MARKER.to_bytes());
    of(Box::new(move |mm| {
        mm.communicate_with(0, b"x", marker, options, &mut |_| {})
            .map(|()| vec![])
    }))
    .failed_call(
        Status::InvalidRecipient,
        &["caller: the recipient is the v3 header's marker"],
    );

    let seen = of(Box::new(|mm| mm.communicate(0, b"x", NO_HANDLER.as_guid())));
    let status = seen.result.clone().unwrap().unwrap_err();
    assert_eq!(
        format!("{status:?}"),
        "MmReturned(EFI_NOT_FOUND (0x800000000000000e))"
    );
    seen.failed_call(
        status,
        &[
            "to 0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11",
            "no handler for the GUID, or the handler failed",
        ],
    );

    let mut platform = Platform::new();
    platform.config.comm_buffers[0].disable();
    platform
        .run(ask_echo)
        .failed_call(Status::CommBufferDisabled, &["the comm buffer is disabled"]);
}

#[test]
fn a_response_that_does_not_fit_is_an_error_with_both_sizes() {
    let seen = Platform::new().run(|mm| {
        mm.communicate_into(0, b"hello", echo().as_guid(), &mut [0; 4])
            .map(|len| vec![0; len])
    });
    assert_eq!(
        seen.result,
        Some(Err(Status::ResponseTooLong { needed: 5, room: 4 }))
    );
    let seen = Platform::new().run(|mm| mm.request::<u32, u64>(0, &1, echo().as_guid()).map(|_| vec![]));
    assert_eq!(
        seen.result,
        Some(Err(Status::ResponseSize {
            expected: 8,
            returned: 4
        }))
    );
}

#[test]
fn components_over_a_missing_comm_buffer_are_refused() {
    let refused = |add: fn(&mut Platform), component: &str| {
        let mut platform = Platform::new();
        add(&mut platform);
        let seen = platform.run(ask_echo);
        seen.works();
        assert_eq!(seen.failed, [component]);
        seen.says("ERROR", &["comm buffer 9: ", "there are: 0, 1"]);
        seen
    };
    refused(
        |platform| platform.add(MmCommunicationProducer::new(9)),
        "MmCommunicationProducer",
    )
    .says(
        "ERROR",
        &["the MM communication protocols cannot work: comm buffer 9 does not exist"],
    );
    refused(
        |platform| platform.add(MmEventNotifier::new(9)),
        "MmEventNotifier",
    )
    .says(
        "ERROR",
        &["MmEventNotifier cannot work: comm buffer 9 does not exist"],
    );
    refused(
        |platform| platform.add(MmEventNotifier::new(0).with_supervisor_buffer(9)),
        "MmEventNotifier",
    );
    let mut platform = Platform::new();
    platform.add(MmSupervisorClient::new(9));
    let seen = platform.run(ask_echo);
    assert_eq!(seen.failed, ["MmSupervisorClient"]);
    seen.says("ERROR", &["bytes to 8c633b23", "there are: 0, 1"]);
}

#[test]
fn a_second_producer_is_refused() {
    let mut platform = Platform::new();
    platform.add(MmCommunicationProducer::new(0));
    platform.add(MmCommunicationProducer::new(1));
    let seen = platform.run(ask_echo);
    assert_eq!(seen.failed, ["MmCommunicationProducer"]);
    seen.says(
        "ERROR",
        &["another driver has installed an MM communication protocol"],
    );
}

/// A HOB that announces fresh memory.
fn add_hob(platform: &mut Platform) {
    let (_, place) = platform.memory(0, true);
    let fields = [place.region.start(), 4, place.mailbox.unwrap()];
    let data: Vec<u8> = fields.into_iter().flat_map(u64::to_le_bytes).collect();
    let guid = BinaryGuid::from_string("6c2a2520-0131-4aee-a750-cc384aace8c6");
    platform.add.push(Box::new(move |dispatcher| {
        for parse in dispatcher.storage().get_hob_parsers(&guid) {
            parse(&data, dispatcher.storage());
        }
    }));
}

#[test]
fn missing_hobs_are_named_by_guid() {
    let mut platform = Platform::new();
    platform.config.comm_buffers.clear();
    let component = MmHobConfiguration::new().with_ports(platform.tap.clone());
    platform.add(component);
    let seen = platform.run(ask_echo);
    assert!(seen.failed.contains(&"MmHobConfiguration".into()));
    seen.says(
        "ERROR",
        &[
            "there is no HOB that announces a comm buffer",
            "6c2a2520-0131-4aee-a750-cc384aace8c6",
            "d4ffc718-fb82-4274-9afc-aa8b1eef5293",
        ],
    );
}

#[test]
fn a_hob_beside_buffers_by_hand_needs_another_identifier() {
    let mut platform = Platform::new();
    platform.add(MmHobConfiguration::new().with_ports(platform.tap.clone()));
    add_hob(&mut platform);
    let seen = platform.run(ask_echo);
    assert!(seen.failed.contains(&"MmHobConfiguration".into()), "{}", seen.log);
    seen.says("ERROR", &["two comm buffers have the identifier 0"]);
}

/// A platform that forgets to lock its configuration: the components wait until nothing else runs,
/// and use it as it is.
#[test]
fn unlocked_configuration_is_used_in_the_end() {
    struct Fills(MmCommunicationConfiguration);
    #[component]
    impl Fills {
        fn entry_point(
            self,
            mut config: ConfigMut<MmCommunicationConfiguration>,
        ) -> patina::error::Result<()> {
            *config = self.0;
            Ok(())
        }
    }
    let mut platform = Platform::new();
    platform.add(Fills(platform.config.clone()));
    platform.run(ask_echo).works();
}
