//! The machine, used as the author of a component uses it.

use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::Config;
use patina::component::service::perf_timer::ArchTimerFunctionality;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::tpl::Tpl;
use patina::component::service::{IntoService, Service};
use patina::error::{EfiError, Result};
use patina::standard::efi;
use patina::uefi::event::READY_TO_BOOT_EVENT_GROUP_GUID;
use patina_mm::component::communicator::Status;
use patina_mm::component::events::MmEventNotifier;
use patina_mm::service::{MmCommunication, SwMmiTrigger};
use patina_mm_test::{Fault, Machine};
use std::cell::Cell;
use std::rc::Rc;

/// The handler for the TPM.
const TPM: BinaryGuid = BinaryGuid::from_string("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");

/// Asks MM to lock the TPM.
struct TpmLock {
    buffer: u8,
}

#[component]
impl TpmLock {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> Result<()> {
        match mm.communicate(self.buffer, b"lock", TPM.as_guid())?.as_slice() {
            b"closed" => Ok(()),
            _ => Err(EfiError::SecurityViolation),
        }
    }
}

const LOCK: TpmLock = TpmLock { buffer: 0 };

fn machine() -> Machine {
    Machine::new().handler(TPM, |request| {
        assert_eq!(request, b"lock");
        Ok(b"closed".to_vec())
    })
}

fn ask(machine: &Machine) -> core::result::Result<Vec<u8>, Status> {
    machine.mm().communicate(0, b"lock", TPM.as_guid())
}

#[test]
fn a_component_talks_to_a_closure_in_mm() {
    let machine = machine();
    assert_eq!(machine.dispatch(LOCK), Ok(()));
    assert_eq!(machine.mmis(), 1);
    let exchanges = machine.exchanges();
    assert_eq!(exchanges.len(), 1);
    assert_eq!((exchanges[0].buffer, exchanges[0].recipient), (0, TPM));
    assert_eq!(exchanges[0].request, b"lock");
    assert_eq!(exchanges[0].response, Some(Ok(b"closed".to_vec())));
}

#[test]
fn a_closure_may_keep_state_and_respond_with_another_length() {
    let mut count = 0;
    let machine = Machine::new().handler(TPM, move |request| {
        count += request.len();
        Ok(vec![7; count])
    });
    assert_eq!(ask(&machine), Ok(vec![7; 4]));
    assert_eq!(ask(&machine), Ok(vec![7; 8]));
}

#[test]
fn each_fault_gives_the_error_of_a_real_machine() {
    const NOT_FOUND: Status = Status::MmReturned(efi::Status::NOT_FOUND);
    for (fault, expected) in [
        (Fault::NoHandler, Err(NOT_FOUND)),
        (Fault::NotTaken, Err(Status::NotProcessed)),
        (Fault::Late { pauses: 500 }, Ok(b"closed".to_vec())),
        (Fault::Late { pauses: u32::MAX }, Err(Status::NotProcessed)),
        (Fault::Cut { len: 3 }, Ok(b"clo".to_vec())),
        (Fault::Cut { len: 99 }, Ok(b"closed".to_vec())),
        (
            Fault::Claims { bytes: 23 },
            Err(Status::ResponseBelowHeader {
                claimed: 23,
                minimum: 24,
            }),
        ),
        (
            Fault::Claims { bytes: 1 << 40 },
            Err(Status::ResponseBeyondBuffer {
                claimed: 1 << 40,
                capacity: 0x4000,
            }),
        ),
        (
            Fault::Returned(EfiError::AccessDenied),
            Err(Status::MmReturned(efi::Status::ACCESS_DENIED)),
        ),
    ] {
        let machine = machine();
        machine.fault(fault);
        assert_eq!(ask(&machine), expected, "{fault:?}");
        // The next request has no fault.
        assert_eq!(ask(&machine), Ok(b"closed".to_vec()), "after {fault:?}");
    }
}

#[test]
fn faults_come_one_after_the_other() {
    let machine = machine();
    machine.fault(Fault::Cut { len: 1 });
    machine.fault(Fault::Late { pauses: 700 });
    machine.fault(Fault::NoHandler);
    assert_eq!(ask(&machine), Ok(b"c".to_vec()));
    assert_eq!(ask(&machine), Ok(b"closed".to_vec()));
    ask(&machine).unwrap_err();
    assert_eq!(ask(&machine), Ok(b"closed".to_vec()));
}

#[test]
fn a_failed_handler_is_not_found() {
    let machine = Machine::new().handler(TPM, |_| Err(EfiError::OutOfResources));
    assert_eq!(machine.dispatch(LOCK), Err(EfiError::NotFound));
}

#[test]
fn smis_can_be_off() {
    let machine = machine();
    machine.switch_smis(false);
    assert_eq!(machine.dispatch(LOCK), Err(EfiError::NotReady));
    assert_eq!(machine.exchanges(), []);
    machine.switch_smis(true);
    assert_eq!(machine.dispatch(LOCK), Ok(()));
}

#[test]
fn a_comm_buffer_can_be_in_use() {
    let machine = machine();
    machine.fault(Fault::Cut { len: 2 });
    let (same, other) = machine.while_busy(0, |machine| {
        (machine.dispatch(LOCK), machine.dispatch(TpmLock { buffer: 1 }))
    });
    assert_eq!(same, Err(EfiError::AlreadyStarted));
    // The fault is that of the component's request, not of the call that holds the buffer.
    assert_eq!(other, Err(EfiError::SecurityViolation));
    assert_eq!(machine.exchanges().len(), 1);
    assert_eq!(machine.dispatch(LOCK), Ok(()));
}

#[test]
fn a_call_can_be_interrupted() {
    let machine = machine();
    machine.interrupt(|machine| {
        assert_eq!(ask(machine), Err(Status::Busy));
        machine.mm().communicate(1, b"lock", TPM.as_guid()).unwrap();
    });
    assert_eq!(machine.dispatch(LOCK), Ok(()));
    let buffers: Vec<u8> = machine
        .exchanges()
        .iter()
        .map(|exchange| exchange.buffer)
        .collect();
    // At the MMI of the inner call MM serves both requests.
    assert_eq!(buffers, [0, 1]);
}

#[test]
fn events_reach_components_at_their_level() {
    const READY_TO_BOOT: BinaryGuid = READY_TO_BOOT_EVENT_GROUP_GUID;
    let machine = Machine::new().handler(READY_TO_BOOT, |_| Ok(vec![]));
    machine.dispatch(MmEventNotifier::new(0)).unwrap();
    let before = machine.exchanges().len();
    machine.at_tpl(Tpl::Notify, || {
        machine.signal(READY_TO_BOOT);
        assert_eq!(machine.exchanges().len(), before, "{}", machine.transcript());
    });
    let told = machine.exchanges();
    assert!(
        told.iter().any(|exchange| exchange.recipient == READY_TO_BOOT),
        "{told:?}"
    );
}

#[test]
fn a_notification_waits_for_its_level() {
    let machine = machine();
    let ran = Rc::new(Cell::new(false));
    machine.at_tpl(Tpl::Callback, || {
        let seen = Rc::clone(&ran);
        machine.notify(Tpl::Callback, move |machine| {
            ask(machine).unwrap();
            seen.set(true);
        });
        assert!(!ran.get());
    });
    assert!(ran.get());
}

#[test]
fn components_find_what_the_test_adds() {
    #[derive(Default)]
    struct Settings {
        command: u8,
    }

    struct Plain;

    #[component]
    impl Plain {
        fn entry_point(
            self,
            mmi: Service<dyn SwMmiTrigger>,
            settings: Config<Settings>,
            _: Service<dyn EventServices>,
            clock: Service<dyn ArchTimerFunctionality>,
        ) -> Result<()> {
            assert!(clock.cpu_count() < clock.cpu_count());
            mmi.trigger_sw_mmi(settings.command, 0)
        }
    }

    let machine = Machine::new().config(Settings { command: 0x7a });
    assert_eq!(machine.dispatch(Plain), Ok(()));
    machine.mm().communicate(0, b"x", TPM.as_guid()).unwrap_err();
    assert!(machine.transcript().contains("0x7a"), "{}", machine.transcript());
}

#[test]
#[should_panic(expected = "Missing was not dispatched, it lacks: ")]
fn a_component_that_cannot_run_is_named_with_its_missing_parameter() {
    trait Nowhere {}

    struct Missing;

    #[component]
    impl Missing {
        fn entry_point(self, _: Service<dyn Nowhere>) -> Result<()> {
            Ok(())
        }
    }

    let _ = Machine::new().dispatch(Missing);
}

#[test]
fn the_transcript_tells_what_happened() {
    let machine = machine();
    machine.dispatch(LOCK).unwrap();
    machine.switch_smis(false);
    machine.dispatch(LOCK).unwrap_err();
    let transcript = machine.transcript();
    let lines: Vec<&str> = transcript.lines().collect();
    assert_eq!(lines.len(), 4, "{transcript}");
    assert!(lines[0].contains(
        "comm buffer 0, 5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10: 4 bytes [6c, 6f, 63, 6b] -> 6 bytes"
    ));
    assert!(lines[1].contains("TpmLock was dispatched: success"));
    assert!(lines[2].contains("SMIs are off"));
    assert!(lines[3].contains("TpmLock was dispatched: NotReady"));
    machine.forget();
    assert_eq!(
        (machine.transcript().as_str(), machine.exchanges().len()),
        ("", 0)
    );
}

/// A service that a test adds.
#[derive(IntoService)]
#[service(dyn Numbered)]
struct Number(u32);

trait Numbered {
    fn number(&self) -> u32;
}

impl Numbered for Number {
    fn number(&self) -> u32 {
        self.0
    }
}

/// A component that needs the test's service.
struct WantsNumber;

#[component]
impl WantsNumber {
    fn entry_point(self, number: Service<dyn Numbered>) -> Result<()> {
        assert_eq!(number.number(), 7);
        Ok(())
    }
}

#[test]
fn a_machine_has_what_the_test_adds_and_what_firmware_installs() {
    const MARKER: BinaryGuid = BinaryGuid::from_string("0c7f9b3f-5c9d-4f5a-9d41-5b8a9c4f9d11");
    let machine = Machine::default().service(Number(7));
    assert_eq!(machine.dispatch(WantsNumber), Ok(()));
    machine.install_marker(MARKER);
    assert_eq!(
        machine
            .protocols()
            .locate_handles(MARKER)
            .map(|handles| handles.len()),
        Ok(1)
    );
    let called = Rc::new(Cell::new(false));
    let seen = Rc::clone(&called);
    let group = READY_TO_BOOT_EVENT_GROUP_GUID;
    let callback = Box::new(move |_| seen.set(true));
    let tpl = patina::component::service::uefi_services::event::Tpl::Callback;
    assert!(
        machine
            .events()
            .create_event_for_group(group, tpl, callback)
            .is_ok()
    );
    machine.signal(group);
    assert!(called.get());
    assert!(format!("{machine:?}").starts_with("Machine {"));
}
