//! The four mocks, used as the author of a component in another crate uses them, and beside them `patina_mm_test`.

use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::error::{EfiError, Result};
use patina_mm::component::communicator::{MmCommunicator, MockMmCommunication, MockMmExecutor, Status};
use patina_mm::component::sw_mmi_manager::MockSwMmiTrigger;
use patina_mm::config::CommunicateBuffer;
use patina_mm::service::platform_mm_control::MockPlatformMmControl;
use patina_mm::service::{MmCommunication, PlatformMmControl, SwMmiTrigger};
use patina_mm_test::Machine;
use std::pin::Pin;

/// The handler that knows the TPM.
pub const TPM: BinaryGuid = BinaryGuid::from_string("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");

/// Asks MM to lock the TPM, and falls back to a plain MMI where MM does not take messages.
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
    /// [`EfiError::SecurityViolation`] where MM says that the TPM stays open; else what the services return.
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
            Ok(response) if response == b"locked" => Ok(()),
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
        .returning(|_, _, _| Ok(b"locked".to_vec()));
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
        Ok(b"locked".to_vec())
    });
    assert_eq!(machine.dispatch(TpmLock { buffer: 1 }), Ok(()));
    // A comm buffer that the platform does not have.
    assert_eq!(machine.dispatch(LOCK), Err(EfiError::NotFound));
    assert_eq!(machine.mmis(), 1);
}
