//! The platform's hook before MMIs are offered.

/// Prepares a platform for software MMIs.
///
/// Optional. Where a platform registers it, [`SwMmiManager`](crate::component::sw_mmi_manager::SwMmiManager) calls it
/// once, before [`SwMmiTrigger`](crate::service::SwMmiTrigger) becomes available to anyone.
#[cfg_attr(any(test, feature = "mockall"), mockall::automock)]
pub trait PlatformMmControl {
    /// Clears or programs whatever hardware state MMIs depend on.
    ///
    /// # Errors
    ///
    /// Whatever the platform returns keeps MMIs from being offered, and the dispatcher reports it.
    fn init(&self) -> patina::error::Result<()>;
}
