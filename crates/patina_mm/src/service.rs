//! The services that components use: traits, and what their methods take and return. The components
//! in [`crate::component`] implement them.
//!
//! | service | implemented by |
//! |---|---|
//! | [`MmCommunication`], and [`MmCommunicationExt`] for typed requests | [`MmCommunicator`](crate::component::communicator::MmCommunicator) |
//! | [`SwMmiTrigger`] | [`SwMmiManager`](crate::component::sw_mmi_manager::SwMmiManager) |
//! | [`MmSupervisor`] | [`MmSupervisorClient`](crate::component::supervisor::MmSupervisorClient) |
//! | [`PlatformMmControl`] | the platform, if its hardware needs preparation |

mod call_tag;
mod efi;
mod mm_communication;
mod mm_supervisor;
pub mod platform_mm_control;
mod response_reader;
mod status;
mod sw_mmi_trigger;
mod typed_request;

pub(crate) use call_tag::{CallTag, Clock};
pub(crate) use efi::shown;
#[cfg(any(test, feature = "mockall"))]
pub use mm_communication::MockMmCommunication;
pub(crate) use mm_communication::Sealed;
pub use mm_communication::{CallOptions, MmCommunication};
#[cfg(any(test, feature = "mockall"))]
pub use mm_supervisor::MockMmSupervisor;
pub use mm_supervisor::{MmSupervisor, SupervisorError, UnblockMemory};
pub use mm_wire::EfiStatus;
pub use mm_wire::message::supervisor::VersionInfo as SupervisorVersion;
pub use platform_mm_control::PlatformMmControl;
pub use response_reader::ResponseReader;
pub(crate) use response_reader::trace_request;
pub use status::Status;
#[cfg(any(test, feature = "mockall"))]
pub use sw_mmi_trigger::MockSwMmiTrigger;
pub use sw_mmi_trigger::{MmProgress, MmiError, SwMmiTrigger};
pub use typed_request::MmCommunicationExt;
