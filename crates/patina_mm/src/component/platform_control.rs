//! A trigger that waits for the platform's hook.

use super::sw_mmi_manager::{SecureInputs, SwMmiManager};
use crate::config::{MmCommunicationConfiguration, MmCommunicationOptions};
use crate::service::PlatformMmControl;
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::Service;

impl SwMmiManager {
    /// Declares that the platform has a [`PlatformMmControl`]: the component then waits for it,
    /// also if another component offers it late.
    ///
    /// Without this declaration the hook is called only if it is registered before this component
    /// is dispatched, because most platforms do not have one.
    ///
    /// ```
    /// use patina_dxe_core::*;
    /// use patina_mm::component::sw_mmi_manager::SwMmiManager;
    ///
    /// struct Board;
    ///
    /// impl ComponentInfo for Board {
    ///     fn components(mut add: Add<Component>) {
    ///         // The service may come from any component, added before or after this one.
    ///         add.component(SwMmiManager::new().after_platform_control());
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn after_platform_control(self) -> AfterPlatformControl {
        AfterPlatformControl(self)
    }
}

/// Component: a [`SwMmiManager`] that is dispatched when there is a [`PlatformMmControl`].
#[derive(Debug)]
pub struct AfterPlatformControl(SwMmiManager);

#[component]
impl AfterPlatformControl {
    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        platform: Service<dyn PlatformMmControl>,
        secure: SecureInputs<'_>,
        commands: Commands,
    ) -> patina::error::Result<()> {
        self.0
            .entry_point(config, options, Some(platform), secure, commands)
    }
}
