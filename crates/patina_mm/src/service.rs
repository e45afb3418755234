//! The services that other components consume, and the one that a platform may provide.

pub mod platform_mm_control;

pub use crate::component::communicator::{MmCommunication, MmCommunicationExt};
pub use crate::component::supervisor::{MmSupervisor, SupervisorError, UnblockMemory};
pub use crate::component::sw_mmi_manager::SwMmiTrigger;
pub use mm_wire::EfiStatus;
pub use mm_wire::message::supervisor::VersionInfo as SupervisorVersion;
pub use platform_mm_control::PlatformMmControl;
