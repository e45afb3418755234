//! A component as other crates write them, to show that `patina_mm`'s mocks are enough to test one.
#![no_std]

extern crate alloc;

use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::error::{EfiError, Result};
use patina_mm::component::communicator::Status;
use patina_mm::service::{MmCommunication, PlatformMmControl, SwMmiTrigger};

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
            Ok(answer) if answer == b"locked" => Ok(()),
            Ok(_) => Err(EfiError::SecurityViolation),
            Err(Status::NoCommBuffer) => mmi.trigger_sw_mmi(0x7a, 1),
            Err(status) => Err(status.into()),
        }
    }
}
