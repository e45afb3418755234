//! The components that a platform adds: [`sw_mmi_manager`] and [`communicator`]; the others are
//! optional.

pub mod communicator;
pub mod events;
pub mod hob_configuration;
pub mod platform_control;
pub mod protocols;
pub mod supervisor;
pub mod sw_mmi_manager;
