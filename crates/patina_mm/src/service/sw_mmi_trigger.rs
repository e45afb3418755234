//! The service that raises software MMIs.

use super::efi::{efi_error, secure_text, shown};
use core::fmt;
use mm_comm::TriggerError;
use mm_comm::smc::SmcError;
use patina::error::EfiError;
use thiserror::Error;

/// Why MM was not entered.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MmiError {
    /// The component that offers the service was not dispatched yet.
    #[error("platform: the software MMI trigger was used before its component was dispatched")]
    NotConfigured,
    /// The machine cannot or does not deliver MMIs.
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    /// The secure world was not reached, or refused the call.
    #[error("{}", secure_text(.0))]
    Smc(#[from] SmcError),
    /// A secure monitor call needs a comm buffer.
    #[error("caller: MM is entered by secure monitor calls here, which need a comm buffer")]
    NeedsCommBuffer,
    /// Another implementation of the service failed.
    #[error("platform: the software MMI trigger failed: {}", shown(*.0))]
    Failed(EfiError),
}

impl From<MmiError> for EfiError {
    fn from(error: MmiError) -> Self {
        match error {
            MmiError::NotConfigured => Self::NotStarted,
            MmiError::Trigger(TriggerError::SmisDisabled { .. }) => Self::NotReady,
            MmiError::Trigger(TriggerError::EnableRefused { .. }) => Self::AccessDenied,
            MmiError::Trigger(TriggerError::NoPortIo) => Self::Unsupported,
            MmiError::Trigger(_) => Self::InvalidParameter,
            MmiError::Smc(error) => efi_error(error),
            MmiError::NeedsCommBuffer => Self::Unsupported,
            MmiError::Failed(error) => error,
        }
    }
}

/// How far MM is after it was entered for a comm buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmProgress {
    /// An MMI was raised. The caller polls the mailbox for the response; see
    /// [`SwMmiTrigger::pause`].
    Raised,
    /// The same, and the caller may raise another MMI for the same request if MM does not take it
    /// for a while.
    RaisedRepeatable,
    /// MM ran and has returned.
    Returned,
}

/// Raises a software MMI.
///
/// # Safety
///
/// Code in MM may change any memory. An implementation enters MM only through the mechanism that
/// the platform has for this, and only when the platform's MM environment is ready.
pub unsafe trait SwMmiTrigger {
    /// Writes both values to the platform's ports, data first, which raises an MMI.
    ///
    /// [`SwMmiManager`](crate::component::sw_mmi_manager::SwMmiManager) raises it also if SMI_EN
    /// reads 0, for chipsets without SMI_EN. [`Self::enter_mm`], which sends a message, is an error
    /// then.
    ///
    /// MM may run some time after this returns: see [`Self::pause`].
    ///
    /// # Errors
    ///
    /// An [`EfiError`] if no MMI was raised.
    fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()>;

    /// Like [`Self::trigger_sw_mmi`], but with the full reason.
    ///
    /// # Errors
    ///
    /// [`MmiError`] if no MMI was raised.
    fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
        self.trigger_sw_mmi(cmd_port_value, data_port_value)
            .map_err(MmiError::Failed)
    }

    /// Makes MM process the request in the comm buffer at a physical address.
    ///
    /// On x86 this raises an MMI: MM knows its buffers. A secure monitor call carries the address
    /// and neither value, and MM has run when it returns.
    ///
    /// The provided method raises one MMI per call. If an implementation returns
    /// [`MmProgress::RaisedRepeatable`], the communicator calls it once more if MM does not take
    /// the request for a while.
    ///
    /// # Errors
    ///
    /// [`MmiError`] if MM was not entered; [`MmiError::Smc`] also if MM ran and refused the
    /// request.
    fn enter_mm(
        &self,
        comm_buffer: u64,
        cmd_port_value: u8,
        data_port_value: u8,
    ) -> Result<MmProgress, MmiError> {
        let _ = comm_buffer;
        self.raise_mmi(cmd_port_value, data_port_value)
            .map(|()| MmProgress::Raised)
    }

    /// Gives the processor time to take a raised MMI. Code that waits for a response calls this
    /// between two polls.
    fn pause(&self) {
        core::hint::spin_loop();
    }

    /// Writes for the log what this trigger wrote for the last MMI, or why it raised none, if it
    /// knows.
    ///
    /// # Errors
    ///
    /// Those of the formatter.
    fn describe_mmi(
        &self,
        cmd_port_value: u8,
        data_port_value: u8,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        write!(
            f,
            "The platform's own SwMmiTrigger was given command {cmd_port_value:#04x} and data {data_port_value:#04x}"
        )
    }
}

#[cfg(any(test, feature = "mockall"))]
pub use mock::MockSwMmiTrigger;

#[cfg(any(test, feature = "mockall"))]
mod mock {
    use super::{MmProgress, MmiError, SwMmiTrigger};
    use alloc::string::String;
    use core::fmt;
    use core::ops::{Deref, DerefMut};

    mockall::mock! {
        /// The calls that a [`MockSwMmiTrigger`] expects.
        pub Triggers {
            pub fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError>;
            pub fn enter_mm(
                &self,
                comm_buffer: u64,
                cmd_port_value: u8,
                data_port_value: u8,
            ) -> Result<MmProgress, MmiError>;
            pub fn pause(&self);
            pub fn describe_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> String;
        }
        unsafe impl SwMmiTrigger for Triggers {
            fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()>;
        }
    }

    /// A [`SwMmiTrigger`] that expects calls of `trigger_sw_mmi`. The trait's provided methods keep
    /// their bodies, which call it, unless a test expects calls of the method itself.
    #[derive(Default)]
    pub struct MockSwMmiTrigger {
        calls: MockTriggers,
        /// The provided methods of which the test expects calls.
        expected: Expected,
    }

    #[derive(Clone, Copy, Debug, Default)]
    struct Expected {
        raise_mmi: bool,
        enter_mm: bool,
        pause: bool,
        describe_mmi: bool,
    }

    /// The trait's provided methods over [`MockSwMmiTrigger`].
    struct Provided<'a>(&'a MockSwMmiTrigger);

    // SAFETY: it enters no MM.
    unsafe impl SwMmiTrigger for Provided<'_> {
        fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()> {
            self.0.trigger_sw_mmi(cmd_port_value, data_port_value)
        }

        fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
            match self.0.expected.raise_mmi {
                true => self.0.calls.raise_mmi(cmd_port_value, data_port_value),
                false => self
                    .trigger_sw_mmi(cmd_port_value, data_port_value)
                    .map_err(MmiError::Failed),
            }
        }
    }

    /// An `expect_` method for each provided one.
    macro_rules! expect {
        ($($expect:ident $method:ident $module:ident,)*) => {
            $(
                /// Expects calls of the method of this name, which then do not arrive at
                /// `trigger_sw_mmi`.
                pub fn $expect(&mut self) -> &mut __mock_MockTriggers::$module::Expectation {
                    self.expected.$method = true;
                    self.calls.$expect()
                }
            )*
        };
    }

    impl MockSwMmiTrigger {
        /// Makes a mock that expects no call yet.
        #[must_use]
        pub fn new() -> Self {
            Self::default()
        }

        expect! {
            expect_raise_mmi raise_mmi __raise_mmi,
            expect_enter_mm enter_mm __enter_mm,
            expect_pause pause __pause,
            expect_describe_mmi describe_mmi __describe_mmi,
        }
    }

    // SAFETY: it enters no MM.
    unsafe impl SwMmiTrigger for MockSwMmiTrigger {
        fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()> {
            self.calls.trigger_sw_mmi(cmd_port_value, data_port_value)
        }

        fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
            Provided(self).raise_mmi(cmd_port_value, data_port_value)
        }

        fn enter_mm(
            &self,
            comm_buffer: u64,
            cmd_port_value: u8,
            data_port_value: u8,
        ) -> Result<MmProgress, MmiError> {
            match self.expected.enter_mm {
                true => self.calls.enter_mm(comm_buffer, cmd_port_value, data_port_value),
                false => Provided(self).enter_mm(comm_buffer, cmd_port_value, data_port_value),
            }
        }

        fn pause(&self) {
            if self.expected.pause {
                self.calls.pause();
            }
        }

        fn describe_mmi(
            &self,
            cmd_port_value: u8,
            data_port_value: u8,
            f: &mut fmt::Formatter<'_>,
        ) -> fmt::Result {
            match self.expected.describe_mmi {
                true => f.write_str(&self.calls.describe_mmi(cmd_port_value, data_port_value)),
                false => Provided(self).describe_mmi(cmd_port_value, data_port_value, f),
            }
        }
    }

    /// For `expect_trigger_sw_mmi` and `checkpoint`.
    impl Deref for MockSwMmiTrigger {
        type Target = MockTriggers;

        fn deref(&self) -> &MockTriggers {
            &self.calls
        }
    }

    impl DerefMut for MockSwMmiTrigger {
        fn deref_mut(&mut self) -> &mut MockTriggers {
            &mut self.calls
        }
    }

    impl fmt::Debug for MockSwMmiTrigger {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("MockSwMmiTrigger").finish_non_exhaustive()
        }
    }
}
