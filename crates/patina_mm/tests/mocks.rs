//! The mocks, used as the author of a component in another crate uses them, and beside them
//! `patina_mm_test`.

use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::error::{EfiError, Result};
use patina_mm::component::communicator::{MmCommunicator, MockMmCommunication, MockMmExecutor, Status};
use patina_mm::component::sw_mmi_manager::MockSwMmiTrigger;
use patina_mm::config::CommunicateBuffer;
use patina_mm::service::platform_mm_control::MockPlatformMmControl;
use patina_mm::service::{
    CallOptions, MmCommunication, MmCommunicationExt as _, MmProgress, MmSupervisor as _, MmiError,
    MockMmSupervisor, PlatformMmControl, SupervisorError, SwMmiTrigger, UnblockMemory,
};
use patina_mm_test::Machine;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;

/// The handler for the TPM.
pub const TPM: BinaryGuid = BinaryGuid::from_string("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");

/// Asks MM to lock the TPM, and falls back to a plain MMI if MM does not take messages.
pub struct TpmLock {
    /// The comm buffer to use.
    pub buffer: u8,
}

#[component]
impl TpmLock {
    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        mmi: Service<dyn SwMmiTrigger>,
        platform: Option<Service<dyn PlatformMmControl>>,
    ) -> Result<()> {
        self.lock(&**mm, &**mmi, platform.as_ref().map(|platform| &***platform))
    }
}

impl TpmLock {
    /// Does the component's work.
    ///
    /// # Errors
    ///
    /// [`EfiError::SecurityViolation`] if MM says that the TPM stays open; else what the services
    /// return.
    pub fn lock(
        &self,
        mm: &dyn MmCommunication,
        mmi: &dyn SwMmiTrigger,
        platform: Option<&dyn PlatformMmControl>,
    ) -> Result<()> {
        if let Some(platform) = platform {
            platform.init()?;
        }
        match mm.communicate(self.buffer, b"lock", TPM.as_guid()) {
            Ok(response) if response == b"closed" => Ok(()),
            Ok(_) => Err(EfiError::SecurityViolation),
            Err(Status::NoCommBuffer) => mmi.trigger_sw_mmi(0x7a, 1),
            Err(status) => Err(status.into()),
        }
    }
}

const LOCK: TpmLock = TpmLock { buffer: 3 };

#[test]
fn the_request_and_its_response_can_be_expected() {
    let mut mm = MockMmCommunication::new();
    mm.expect_communicate()
        .withf(|id, message, recipient| *id == 3 && message == b"lock" && *recipient == TPM.as_guid())
        .times(1)
        .returning(|_, _, _| Ok(b"closed".to_vec()));
    assert_eq!(LOCK.lock(&mm, &MockSwMmiTrigger::new(), None), Ok(()));
}

#[test]
fn the_trigger_can_be_expected() {
    let mut mm = MockMmCommunication::new();
    mm.expect_communicate()
        .returning(|_, _, _| Err(Status::NoCommBuffer));
    let mut mmi = MockSwMmiTrigger::new();
    mmi.expect_trigger_sw_mmi()
        .withf(|command, data| (*command, *data) == (0x7a, 1))
        .times(1)
        .returning(|_, _| Ok(()));
    assert_eq!(LOCK.lock(&mm, &mmi, None), Ok(()));
}

/// A test can expect each method of each service; `MmCommunicationExt` calls those of
/// `MmCommunication`.
#[test]
fn every_method_can_be_expected() {
    let options = CallOptions::new();
    let mut mm = MockMmCommunication::new();
    mm.expect_communicate().times(1).returning(|_, _, _| Ok(vec![1]));
    mm.expect_communicate_into()
        .times(1)
        .returning(|_, message, _, out| {
            out[0] = message[0];
            Ok(1)
        });
    mm.expect_communicate_with()
        .withf(|id, _, recipient, _| *id == 3 && *recipient == TPM.as_guid())
        .times(2)
        .returning(|_, _, _, _| Ok(vec![7, 0, 0, 0]));
    mm.expect_message_capacity().returning(|id, _| Ok(id.into()));
    mm.expect_confirms().returning(|id| id == 3);
    mm.expect_after_calls()
        .returning(|_call| Err(Status::Unsupported));
    let mm: &dyn MmCommunication = &mm;
    assert_eq!(mm.communicate(3, b"x", TPM.as_guid()), Ok(vec![1]));
    let mut out = [0; 4];
    assert_eq!(mm.communicate_into(3, b"x", TPM.as_guid(), &mut out), Ok(1));
    assert_eq!(out[0], b'x');
    let mut seen = 0;
    let taken = mm.communicate_with(3, b"x", TPM.as_guid(), options, &mut |response| {
        seen = response.remaining()
    });
    assert_eq!((taken, seen), (Ok(()), 4));
    assert_eq!(mm.request::<u32, u32>(3, &1, TPM.as_guid()), Ok(7));
    assert_eq!(mm.message_capacity(9, options), Ok(9));
    assert!(mm.confirms(3) && !mm.confirms(4));
    assert_eq!(mm.after_calls(Rc::new(|| {})), Err(Status::Unsupported));

    let mut mmi = MockSwMmiTrigger::new();
    mmi.expect_trigger_sw_mmi().times(1).returning(|_, _| Ok(()));
    mmi.expect_raise_mmi()
        .times(1)
        .returning(|_, _| Err(MmiError::NotConfigured));
    mmi.expect_enter_mm()
        .times(1)
        .returning(|_, _, _| Ok(MmProgress::Returned));
    mmi.expect_pause().times(2).return_const(());
    mmi.expect_describe_mmi()
        .times(1)
        .returning(|command, _| format!("command {command}"));
    let mmi: &dyn SwMmiTrigger = &mmi;
    assert_eq!(mmi.trigger_sw_mmi(1, 2), Ok(()));
    assert_eq!(mmi.raise_mmi(1, 2), Err(MmiError::NotConfigured));
    assert_eq!(mmi.enter_mm(0x1000, 1, 2), Ok(MmProgress::Returned));
    mmi.pause();
    mmi.pause();
    assert_eq!(Described(mmi).to_string(), "command 5");

    let mut platform = MockPlatformMmControl::new();
    platform.expect_init().times(1).returning(|| Ok(()));
    assert_eq!(platform.init(), Ok(()));

    let mut supervisor = MockMmSupervisor::new();
    let refused = || Err(SupervisorError::HasDriver);
    supervisor
        .expect_version()
        .times(1)
        .returning(move || refused().map(|()| unreachable!()));
    supervisor
        .expect_unblock_memory()
        .times(1)
        .returning(move |_| refused());
    supervisor
        .expect_fetch_policy()
        .times(1)
        .returning(|out| Ok(out.len()));
    supervisor
        .expect_move_comm_buffers()
        .times(1)
        .returning(move |_, _| refused());
    assert_eq!(supervisor.version(), Err(SupervisorError::HasDriver));
    let memory = UnblockMemory::runtime_data(0x1000, 1, TPM);
    assert_eq!(supervisor.unblock_memory(&memory), refused());
    assert_eq!(supervisor.fetch_policy(&mut [0; 9]), Ok(9));
    let buffer = |id| CommunicateBuffer::new(Pin::new(Box::leak(vec![0; 4096].into_boxed_slice())), id);
    assert_eq!(supervisor.move_comm_buffers(buffer(0), buffer(1)), refused());
}

/// What a trigger writes about its last MMI.
struct Described<'a>(&'a dyn SwMmiTrigger);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe_mmi(5, 0, f)
    }
}

#[test]
fn a_provided_method_arrives_at_the_one_that_is_expected() {
    let mut mmi = MockSwMmiTrigger::new();
    mmi.expect_trigger_sw_mmi()
        .times(2)
        .returning(|_, _| Err(EfiError::Timeout));
    assert_eq!(mmi.raise_mmi(1, 2), Err(MmiError::Failed(EfiError::Timeout)));
    assert_eq!(
        mmi.enter_mm(0x1000, 1, 2),
        Err(MmiError::Failed(EfiError::Timeout))
    );
    mmi.pause();
    mmi.checkpoint();
    mmi.expect_raise_mmi().times(1).returning(|_, _| Ok(()));
    assert_eq!(mmi.enter_mm(0x1000, 1, 2), Ok(MmProgress::Raised));
}

#[test]
fn the_platforms_hook_can_fail() {
    let mut platform = MockPlatformMmControl::new();
    platform
        .expect_init()
        .times(1)
        .returning(|| Err(EfiError::WriteProtected));
    let result = LOCK.lock(
        &MockMmCommunication::new(),
        &MockSwMmiTrigger::new(),
        Some(&platform),
    );
    assert_eq!(result, Err(EfiError::WriteProtected));
}

#[test]
fn the_executor_can_play_mm_behind_the_real_communicator() {
    let mut executor = MockMmExecutor::new();
    executor.expect_execute_mm().times(1).returning(|buffer| {
        assert_eq!(buffer.get_message().unwrap(), b"lock");
        buffer
            .set_message(b"still open")
            .map_err(|status| panic!("{status}"))
    });
    let communicator = MmCommunicator::with_executor(executor);
    let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
    communicator.set_test_comm_buffers(vec![CommunicateBuffer::new(Pin::new(memory), 3)]);
    let result = LOCK.lock(&communicator, &MockSwMmiTrigger::new(), None);
    assert_eq!(result, Err(EfiError::SecurityViolation));
}

#[test]
fn the_same_component_runs_on_a_simulated_machine() {
    let machine = Machine::new().handler(TPM, |request| {
        assert_eq!(request, b"lock");
        Ok(b"closed".to_vec())
    });
    assert_eq!(machine.dispatch(TpmLock { buffer: 1 }), Ok(()));
    // A comm buffer that the platform does not have.
    assert_eq!(machine.dispatch(LOCK), Err(EfiError::NotFound));
    assert_eq!(machine.mmis(), 1);
}
