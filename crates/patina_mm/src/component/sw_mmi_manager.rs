//! Raises software MMIs through the ports that the platform configured.

use crate::config::{
    AcpiBase, ConfigurationError, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort,
};
use crate::service::PlatformMmControl;
use alloc::boxed::Box;
use core::fmt;
use mm_comm::{PortTrigger, Ports, SmiEnableRegister};
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use thiserror::Error;

pub use mm_comm::{SmiEnable, TriggerError};

/// Why no MMI was raised.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MmiError {
    /// The component that offers the service has not been configured yet.
    #[error("platform: the software MMI trigger was used before its component was dispatched")]
    NotConfigured,
    /// The machine cannot or does not deliver MMIs.
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    /// Another implementation of the service failed.
    #[error("the software MMI trigger failed: {0:?}")]
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
            MmiError::Failed(error) => error,
        }
    }
}

/// Raises a software MMI.
///
/// # Safety
///
/// Entering MM runs code that may change any memory. An implementation must enter it only through the mechanism that the
/// platform set aside for this, and only once the platform's MM environment is ready for it.
pub unsafe trait SwMmiTrigger {
    /// Writes both values to the platform's ports, data first, and so raises an MMI.
    ///
    /// MM need not have run when this returns: see [`Self::pause`].
    ///
    /// # Errors
    ///
    /// An [`EfiError`] where no MMI was raised.
    fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()>;

    /// As [`Self::trigger_sw_mmi`], with the reason in full.
    ///
    /// # Errors
    ///
    /// [`MmiError`] where no MMI was raised.
    fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
        self.trigger_sw_mmi(cmd_port_value, data_port_value)
            .map_err(MmiError::Failed)
    }

    /// Lets a raised MMI be taken: `pause` on a processor. Whoever awaits an answer calls this between looks.
    fn pause(&self) {
        core::hint::spin_loop();
    }
}

#[cfg(any(test, feature = "mockall"))]
mockall::mock! {
    /// A [`SwMmiTrigger`] that expects calls. The trait's provided methods keep their bodies.
    pub SwMmiTrigger {}
    unsafe impl SwMmiTrigger for SwMmiTrigger {
        fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()>;
    }
}

/// Component and service: raises software MMIs through the configured ports.
///
/// Dispatched once the [`MmCommunicationConfiguration`] is locked. It calls [`PlatformMmControl`] where the platform
/// registered it, then offers [`SwMmiTrigger`].
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
pub struct SwMmiManager {
    ports: Option<Box<dyn Ports>>,
    trigger: Option<PortTrigger>,
}

#[component]
impl SwMmiManager {
    /// Makes the component for the processor that it runs on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ports: native_ports(),
            trigger: None,
        }
    }

    /// Makes the component for ports of the caller's choice, such as those of a simulated machine.
    #[must_use]
    pub fn with_ports(ports: impl Ports + 'static) -> Self {
        Self {
            ports: Some(Box::new(ports)),
            trigger: None,
        }
    }

    fn entry_point(
        mut self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        platform: Option<Service<dyn PlatformMmControl>>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let trigger = port_trigger(&config, &options)
            .inspect_err(|error| log::error!(target: "sw_mmi", "no software MMIs: {error}"))?;
        if let Some(platform) = platform {
            platform.init().inspect_err(
                |error| log::error!(target: "sw_mmi", "platform: PlatformMmControl::init failed: {error:?}"),
            )?;
        }
        log::info!(
            target: "sw_mmi",
            "software MMIs through command {}, data {}, SMI_EN {}",
            config.cmd_port,
            config.data_port,
            if trigger.smi_enable.is_some() { "checked" } else { "unknown: no ACPI base was given" }
        );
        self.trigger = Some(trigger);
        commands.add_service(self);
        Ok(())
    }
}

/// The ports of this processor; `None` where the target has none that this code may use.
#[cfg(all(target_arch = "x86_64", target_os = "uefi"))]
#[expect(clippy::unnecessary_wraps, reason = "other targets have no ports")]
fn native_ports() -> Option<Box<dyn Ports>> {
    // SAFETY: a UEFI image runs at CPL 0 (UEFI 2.11, 2.3.4) and may use `in` and `out`. The ports and the register that
    // are passed later are those of the platform's MmCommunicationConfiguration, whose meaning is exactly this use.
    Some(Box::new(unsafe { mm_comm::ports::NativePorts::new() }))
}

/// The ports of this processor; `None` where the target has none that this code may use.
#[cfg(not(all(target_arch = "x86_64", target_os = "uefi")))]
fn native_ports() -> Option<Box<dyn Ports>> {
    None
}

/// Checks the configuration's ports and turns them into a trigger.
fn port_trigger(
    config: &MmCommunicationConfiguration,
    options: &MmCommunicationOptions,
) -> Result<PortTrigger, ConfigurationError> {
    let unset = MmCommunicationConfiguration::default();
    if (config.cmd_port, config.data_port) == (unset.cmd_port, unset.data_port) {
        return Err(ConfigurationError::Unset);
    }
    let (command_port, data_port) = match (config.cmd_port, config.data_port) {
        (MmiPort::Smi(command), MmiPort::Smi(data)) => (command, data),
        (command @ MmiPort::Smc(_), MmiPort::Smc(_)) => {
            return Err(ConfigurationError::SmcUnsupported { command });
        }
        (command, data) => return Err(ConfigurationError::MixedPorts { command, data }),
    };
    let smi_enable = match config.acpi_base {
        AcpiBase::Io(0) | AcpiBase::Mmio(0) => None,
        AcpiBase::Io(base) => Some(SmiEnableRegister::behind_io_base(base)?),
        AcpiBase::Mmio(base) => Some(SmiEnableRegister::behind_mmio_base(base)?),
    };
    Ok(PortTrigger {
        command_port,
        data_port,
        smi_enable,
        check: options.smi_check,
    })
}

// SAFETY: MM is entered through the platform's ports only, and `trigger` is set by `entry_point`, after the platform
// locked its configuration and had its `PlatformMmControl` called.
unsafe impl SwMmiTrigger for SwMmiManager {
    fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()> {
        Ok(self.raise_mmi(cmd_port_value, data_port_value)?)
    }

    fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
        let raise = || {
            let trigger = self.trigger.as_ref().ok_or(MmiError::NotConfigured)?;
            let ports = self.ports.as_deref().ok_or(TriggerError::NoPortIo)?;
            Ok(trigger.raise(ports, cmd_port_value, data_port_value)?)
        };
        raise().inspect_err(|error: &MmiError| log::error!(target: "sw_mmi", "no MMI was raised: {error}"))
    }

    fn pause(&self) {
        match self.ports.as_deref() {
            Some(ports) => ports.pause(),
            None => core::hint::spin_loop(),
        }
    }
}

impl Default for SwMmiManager {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SwMmiManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwMmiManager")
            .field("trigger", &self.trigger)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cmd_port: MmiPort, data_port: MmiPort, acpi_base: AcpiBase) -> MmCommunicationConfiguration {
        MmCommunicationConfiguration {
            cmd_port,
            data_port,
            acpi_base,
            ..Default::default()
        }
    }

    fn trigger(config: &MmCommunicationConfiguration) -> Result<PortTrigger, ConfigurationError> {
        port_trigger(config, &MmCommunicationOptions::DEFAULT)
    }

    #[test]
    fn a_forgotten_configuration_is_an_error() {
        assert_eq!(
            trigger(&Default::default()).unwrap_err(),
            ConfigurationError::Unset
        );
    }

    #[test]
    fn smc_ports_are_refused_with_the_way_out() {
        let smc = MmiPort::Smc(0xc400_0041);
        let error = trigger(&config(smc, smc, AcpiBase::Mmio(0))).unwrap_err();
        assert_eq!(error, ConfigurationError::SmcUnsupported { command: smc });
        let mixed = trigger(&config(MmiPort::Smi(0xb2), smc, AcpiBase::Mmio(0))).unwrap_err();
        assert_eq!(
            mixed,
            ConfigurationError::MixedPorts {
                command: MmiPort::Smi(0xb2),
                data: smc
            }
        );
    }

    #[test]
    fn smi_en_is_behind_the_acpi_base() {
        let with = |base| trigger(&config(MmiPort::Smi(0xb2), MmiPort::Smi(0xb3), base));
        assert_eq!(
            with(AcpiBase::Io(0x600)).unwrap().smi_enable,
            Some(SmiEnableRegister::Io(0x630))
        );
        assert_eq!(
            with(AcpiBase::Mmio(0xfed0_0000)).unwrap().smi_enable,
            Some(SmiEnableRegister::Mmio(0xfed0_0030))
        );
        assert_eq!(with(AcpiBase::Mmio(0)).unwrap().smi_enable, None);
        assert_eq!(
            with(AcpiBase::Io(0xffff)).unwrap_err(),
            ConfigurationError::AcpiBase(TriggerError::NoRegister { base: 0xffff })
        );
    }

    #[test]
    fn a_service_that_was_never_dispatched_says_so() {
        let manager = SwMmiManager::new();
        assert_eq!(manager.raise_mmi(0xff, 0), Err(MmiError::NotConfigured));
        assert_eq!(manager.trigger_sw_mmi(0xff, 0), Err(EfiError::NotStarted));
    }

    #[test]
    fn a_host_process_has_no_ports() {
        let trigger = trigger(&config(MmiPort::Smi(0xb2), MmiPort::Smi(0xb3), AcpiBase::Mmio(0))).unwrap();
        let manager = SwMmiManager {
            trigger: Some(trigger),
            ..SwMmiManager::new()
        };
        assert_eq!(manager.trigger_sw_mmi(0xff, 0), Err(EfiError::Unsupported));
    }

    #[test]
    fn a_foreign_trigger_keeps_its_error() {
        let mut mock = MockSwMmiTrigger::new();
        mock.expect_trigger_sw_mmi()
            .return_once(|_, _| Err(EfiError::Timeout));
        assert_eq!(mock.raise_mmi(1, 2), Err(MmiError::Failed(EfiError::Timeout)));
    }
}
