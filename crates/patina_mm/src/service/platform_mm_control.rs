//! The platform's hook before MMIs are offered.

/// Prepares a platform for software MMIs.
///
/// Optional. If a platform registers it,
/// [`SwMmiManager`](crate::component::sw_mmi_manager::SwMmiManager) calls it once, before it offers
/// [`SwMmiTrigger`](crate::service::SwMmiTrigger).
#[cfg_attr(any(test, feature = "mockall"), mockall::automock)]
pub trait PlatformMmControl {
    /// Clears or programs the hardware state that MMIs depend on.
    ///
    /// # Errors
    ///
    /// With any error MMIs are not offered, and the dispatcher reports it.
    fn init(&self) -> patina::error::Result<()>;
}
