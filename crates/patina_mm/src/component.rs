//! The two components that a platform adds.

pub mod communicator;
pub mod sw_mmi_manager;
