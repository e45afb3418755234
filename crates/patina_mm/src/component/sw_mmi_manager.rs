//! Enters MM in the way that the platform configured: through x86 ports, or by secure monitor
//! calls.

mod entry;
#[cfg_attr(
    not(any(target_arch = "aarch64", unix, windows)),
    path = "sw_mmi_manager/no_secure.rs"
)]
mod secure;

use crate::config::{MmCommunicationConfiguration, MmCommunicationOptions, SmiCheck};
use crate::log_line;
use crate::service::{PlatformMmControl, shown};
use alloc::boxed::Box;
use core::cell::Cell;
use core::fmt;
use core::panic::{RefUnwindSafe, UnwindSafe};
use entry::{Entry, Plan};
use mm_comm::trigger::{Pair, Purpose};
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;

#[cfg(any(test, feature = "mockall"))]
pub use crate::service::MockSwMmiTrigger;
pub use crate::service::{MmProgress, MmiError, SwMmiTrigger};
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use mm_comm::smc::{Call, Conduit};
pub use mm_comm::smc::{FfaCode, SmcError, SpmMmCode};
pub use mm_comm::{Ports, SmiEnable, TriggerError};
#[cfg(any(target_arch = "aarch64", unix, windows))]
pub use secure::FfaRxBufferHob;
pub(crate) use secure::Inputs as SecureInputs;

/// Component and service: enters MM in the configured way.
///
/// It is dispatched when the [`MmCommunicationConfiguration`] is complete. It calls
/// [`PlatformMmControl`] if the platform registered it, looks for MM in the secure world if the
/// ports are secure monitor calls, then offers [`SwMmiTrigger`].
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
pub struct SwMmiManager {
    ports: Option<Box<dyn Ports>>,
    connect: Option<secure::Connect>,
    entry: Option<Entry>,
    /// SMI_EN just before the last MMI, for the log.
    last_smi_enable: Cell<Option<u32>>,
    pair: Pair,
}

// A panic leaves no partial change: each cell has one value, and the ports belong to the machine.
impl UnwindSafe for SwMmiManager {}
impl RefUnwindSafe for SwMmiManager {}

#[component]
impl SwMmiManager {
    /// Makes the component for the processor that it runs on.
    #[must_use]
    pub fn new() -> Self {
        Self::over(native_ports(), secure::NATIVE)
    }

    /// Makes the component for ports of the caller's choice, such as those of a simulated machine.
    #[must_use]
    pub fn with_ports(ports: impl Ports + 'static) -> Self {
        Self::over(Some(Box::new(ports)), None)
    }

    /// Makes the component for secure monitor calls through a conduit of the caller's choice. Not
    /// in x86 firmware.
    #[cfg(any(target_arch = "aarch64", unix, windows))]
    #[must_use]
    pub fn with_conduit<C: Conduit + 'static>() -> Self {
        Self::over(None, Some(secure::connect::<C>))
    }

    fn over(ports: Option<Box<dyn Ports>>, connect: Option<secure::Connect>) -> Self {
        Self {
            ports,
            connect,
            entry: None,
            last_smi_enable: Cell::new(None),
            pair: Pair::default(),
        }
    }

    pub(super) fn entry_point(
        mut self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        platform: Option<Service<dyn PlatformMmControl>>,
        secure: SecureInputs<'_>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let plan = Plan::new(&config, &options, &secure, self.ports.is_some(), self.connect)
            .map_err(|error| refused(&error, error.into()))?;
        if let Some(platform) = platform {
            platform.init().inspect_err(|error| {
                log_line!(
                    Error,
                    "sw_mmi",
                    "platform: PlatformMmControl::init failed: {}",
                    shown(*error)
                )
            })?;
        }
        let entry = plan
            .open(&secure)
            .map_err(MmiError::from)
            .and_then(|entry| self.require_smi_enable(&entry).map(|()| entry))
            .map_err(|error| refused(&error, error.into()))?;
        log_line!(Info, "sw_mmi", "software MMIs through {entry}");
        self.entry = Some(entry);
        commands.add_service(self);
        Ok(())
    }

    /// Refuses a register that cannot be SMI_EN, after the platform's hook, which may set PMBASE.
    /// SMIs that are off are not an error yet, because they may be switched on before the first
    /// MMI.
    fn require_smi_enable(&self, entry: &Entry) -> Result<(), MmiError> {
        let (Entry::Ports(trigger), Some(ports)) = (entry, self.ports.as_deref()) else {
            return Ok(());
        };
        let Some(register) = trigger.checked_register() else {
            return Ok(());
        };
        let value = register.read_checked(ports)?;
        let missing = SmiEnable::missing_in(value);
        let at = register.address();
        if trigger.may_be_absent(value) {
            log_line!(
                Warn,
                "sw_mmi",
                "platform: SMI_EN at {at:#x} reads 0: SMIs are off, or there is no SMI_EN. Each message fails until it changes: use \
                 SmiCheck::Off without SMI_EN, else SmiCheck::Enable"
            );
        } else if !missing.is_empty() && trigger.check == SmiCheck::Require {
            log_line!(
                Warn,
                "sw_mmi",
                "platform: SMIs are off until SMI_EN at {at:#x}, now {value:#010x}, has {missing}; each call fails \
                 until then"
            );
        }
        Ok(())
    }
}

/// Logs why the component does not offer its service.
#[cold]
#[inline(never)]
fn refused(why: &dyn fmt::Display, error: EfiError) -> EfiError {
    log_line!(Error, "sw_mmi", "no software MMIs: {why}");
    error
}

/// The ports of this processor; `None` if the target has none that this code may use.
#[cfg(all(target_arch = "x86_64", target_os = "uefi"))]
#[expect(clippy::unnecessary_wraps, reason = "other targets have no ports")]
pub(crate) fn native_ports() -> Option<Box<dyn Ports>> {
    // SAFETY:
    // 1. A UEFI image runs at CPL 0 (UEFI 2.11, 2.3.4) and may use `in` and `out`.
    // 2. The ports and the register that are passed later are those of the platform's
    //    MmCommunicationConfiguration, which names them for this use.
    Some(Box::new(unsafe { mm_comm::ports::NativePorts::new() }))
}

/// The ports of this processor; `None` if the target has none that this code may use.
#[cfg(not(all(target_arch = "x86_64", target_os = "uefi")))]
pub(crate) fn native_ports() -> Option<Box<dyn Ports>> {
    None
}

impl SwMmiManager {
    fn enter(&self, comm_buffer: Option<u64>, command: u8, data: u8) -> Result<MmProgress, MmiError> {
        match self.entry.as_ref().ok_or(MmiError::NotConfigured)? {
            Entry::Ports(trigger) => {
                let ports = self.ports.as_deref().ok_or(TriggerError::NoPortIo)?;
                let purpose = match comm_buffer {
                    Some(_) => Purpose::Message,
                    None => Purpose::Command,
                };
                let smi_enable = trigger.raise_observed(ports, &self.pair, purpose, command, data)?;
                self.last_smi_enable.set(smi_enable);
                log_line!(
                    Trace,
                    "sw_mmi",
                    "MMI raised: command {command:#04x}, data {data:#04x}"
                );
                Ok(MmProgress::RaisedRepeatable)
            }
            Entry::Secure(connection) => {
                let address = comm_buffer.ok_or(MmiError::NeedsCommBuffer)?;
                connection.communicate(address)?;
                log_line!(
                    Trace,
                    "sw_mmi",
                    "secure monitor call done: comm buffer at {address:#x}"
                );
                Ok(MmProgress::Returned)
            }
        }
    }
}

// SAFETY:
// 1. MM is entered only through the platform's ports or by secure monitor calls.
// 2. It is ready: `entry_point` sets `entry` when the configuration cannot change any more and
//    `PlatformMmControl` was called.
unsafe impl SwMmiTrigger for SwMmiManager {
    fn trigger_sw_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> patina::error::Result<()> {
        Ok(self.raise_mmi(cmd_port_value, data_port_value)?)
    }

    fn raise_mmi(&self, cmd_port_value: u8, data_port_value: u8) -> Result<(), MmiError> {
        self.enter(None, cmd_port_value, data_port_value)
            .map(drop)
            .inspect_err(|error| log_line!(Error, "sw_mmi", "no MMI was raised: {error}"))
    }

    fn enter_mm(
        &self,
        comm_buffer: u64,
        cmd_port_value: u8,
        data_port_value: u8,
    ) -> Result<MmProgress, MmiError> {
        // The communicator logs a failed call, once.
        self.enter(Some(comm_buffer), cmd_port_value, data_port_value)
    }

    fn pause(&self) {
        match self.ports.as_deref() {
            Some(ports) => ports.pause(),
            None => core::hint::spin_loop(),
        }
    }

    fn describe_mmi(&self, command: u8, data: u8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !log_line::ARE_LINKED {
            return Ok(());
        }
        let (Some(Entry::Ports(trigger)), Some(ports)) = (&self.entry, self.ports.as_deref()) else {
            return match &self.entry {
                Some(entry) => write!(f, "MM was entered by {entry}"),
                None => f.write_str("The trigger was not dispatched"),
            };
        };
        let (command_port, data_port) = (trigger.command_port, trigger.data_port);
        write!(
            f,
            "Wrote data {data:#04x} to port {data_port:#x}, then command {command:#04x} to port {command_port:#x}; \
             SMI_EN "
        )?;
        match (trigger.checked_register(), self.last_smi_enable.get()) {
            (Some(register), Some(before)) => {
                let (at, now) = (register.address(), register.read(ports));
                write!(f, "at {at:#x} was {before:#010x} before, is {now:#010x} now")
            }
            _ => f.write_str(entry::why_unread(trigger)),
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
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// A trigger for tests: runs the next closure at each MMI, and says whether MMIs may be repeated.
#[cfg(test)]
pub(crate) struct ScriptedTrigger {
    progress: MmProgress,
    mmis: core::cell::RefCell<alloc::vec::Vec<ScriptedMmi>>,
}

#[cfg(test)]
pub(crate) type ScriptedMmi = Box<dyn FnOnce() -> patina::error::Result<()>>;

#[cfg(test)]
impl ScriptedTrigger {
    pub(crate) const fn new(progress: MmProgress, mmis: alloc::vec::Vec<ScriptedMmi>) -> Self {
        Self {
            progress,
            mmis: core::cell::RefCell::new(mmis),
        }
    }
}

#[cfg(test)]
// SAFETY: MM is never entered.
unsafe impl SwMmiTrigger for ScriptedTrigger {
    fn trigger_sw_mmi(&self, _: u8, _: u8) -> patina::error::Result<()> {
        let next = self.mmis.borrow_mut().remove(0);
        next()
    }

    fn enter_mm(&self, _: u64, command: u8, data: u8) -> Result<MmProgress, MmiError> {
        self.raise_mmi(command, data).map(|()| self.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AcpiBase, ConfigurationError, MmiPort, SmcOptions};
    use crate::service::Status;
    use alloc::string::ToString;
    use mm_comm::smc::OtherVersion;
    use mm_comm::{PortTrigger, SmiEnableRegister};
    use patina::standard::efi;

    fn config(cmd_port: MmiPort, data_port: MmiPort, acpi_base: AcpiBase) -> MmCommunicationConfiguration {
        MmCommunicationConfiguration {
            cmd_port,
            data_port,
            acpi_base,
            ..Default::default()
        }
    }

    /// The default options, and no HOB.
    fn no_inputs() -> SecureInputs<'static> {
        (Config::mock(SmcOptions::default()), None)
    }

    fn plan(
        config: &MmCommunicationConfiguration,
        connect: Option<secure::Connect>,
    ) -> Result<Plan, ConfigurationError> {
        Plan::new(
            config,
            &MmCommunicationOptions::DEFAULT,
            &no_inputs(),
            true,
            connect,
        )
    }

    fn trigger(config: &MmCommunicationConfiguration) -> Result<PortTrigger, ConfigurationError> {
        match plan(config, None)? {
            Plan::Ports(trigger) => Ok(trigger),
            other => unreachable!("{other:?}"),
        }
    }

    /// A secure world with SPM_MM 1.0 that refuses every request.
    struct Refusing;

    impl mm_comm::smc::Call for Refusing {
        fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
            unreachable!()
        }

        fn call64(function: u32, _: [u64; 17]) -> [u64; 18] {
            let mut response = [0; 18];
            response[0] = match function {
                0x8400_0040 => 0x1_0000,
                0xc400_0041 => u64::from((-3_i32).cast_unsigned()),
                _ => u64::MAX,
            };
            response
        }
    }

    impl Conduit for Refusing {
        fn el3_is_implemented() -> bool {
            true
        }
    }

    fn smc(function: u32) -> MmCommunicationConfiguration {
        config(MmiPort::Smc(function), MmiPort::Smc(function), AcpiBase::Mmio(0))
    }

    fn secure(function: u32) -> Result<SwMmiManager, MmiError> {
        let manager = SwMmiManager::with_conduit::<Refusing>();
        let entry = plan(&smc(function), manager.connect)
            .unwrap()
            .open(&no_inputs())?;
        Ok(SwMmiManager {
            entry: Some(entry),
            ..manager
        })
    }

    #[test]
    fn smc_port_selects_the_interfaces() {
        for function in [0xc400_0041, 0x8400_0041] {
            assert_eq!(
                secure(function).unwrap().entry.unwrap().to_string(),
                "secure monitor calls: SPM_MM 1.0"
            );
        }
        for function in [0xc400_006f, 0xc400_008d] {
            assert_eq!(
                secure(function).unwrap_err(),
                MmiError::Smc(SmcError::NoFfa(OtherVersion::refused(u32::MAX)))
            );
        }
        let command = MmiPort::Smc(0x8400_0000);
        let error = plan(&smc(0x8400_0000), Some(secure::connect::<Refusing>)).unwrap_err();
        assert_eq!(error, ConfigurationError::SmcFunction { command });
        let text = error.to_string();
        assert!(text.contains("use SMC(0xC4000041)"), "{text}");
        assert_eq!(EfiError::from(error), EfiError::InvalidParameter);
    }

    #[test]
    fn secure_monitor_call_needs_a_buffer_and_its_refusal_is_an_error() {
        let manager = secure(0xc400_0041).unwrap();
        assert_eq!(manager.raise_mmi(0xff, 0), Err(MmiError::NeedsCommBuffer));
        assert_eq!(manager.trigger_sw_mmi(0xff, 0), Err(EfiError::Unsupported));
        let error = manager.enter_mm(0x1000, 0xff, 0).unwrap_err();
        assert_eq!(EfiError::from(error), EfiError::AccessDenied);
        assert_eq!(
            Status::from(error),
            Status::MmReturned(efi::Status::ACCESS_DENIED)
        );
        // A status in FF-A's direct response is treated the same way.
        let refused = SmcError::Refused {
            call: "FFA_MSG_SEND_DIRECT_REQ",
            code: SpmMmCode(-3),
        };
        assert_eq!(
            Status::from(MmiError::Smc(refused)),
            Status::MmReturned(efi::Status::ACCESS_DENIED)
        );
    }

    #[test]
    fn a_forgotten_configuration_is_an_error() {
        assert_eq!(
            trigger(&Default::default()).unwrap_err(),
            ConfigurationError::Unset
        );
    }

    #[test]
    fn a_half_forgotten_configuration_is_an_error_with_both_ports() {
        let (command, data) = (MmiPort::Smi(0xb2), MmiPort::Smi(0));
        let half = MmCommunicationConfiguration {
            cmd_port: command,
            ..Default::default()
        };
        let error = trigger(&half).unwrap_err();
        assert_eq!(error, ConfigurationError::DataPortUnset { command, data });
        assert_eq!(
            error.to_string(),
            "platform: the data port was never set: it is the default's SMI(0x0000); the command port is SMI(0x00B2)"
        );
        let (command, data) = (MmiPort::Smi(0xff), MmiPort::Smi(0xb3));
        let half = MmCommunicationConfiguration {
            data_port: data,
            ..Default::default()
        };
        let error = trigger(&half).unwrap_err();
        assert_eq!(error, ConfigurationError::CommandPortUnset { command, data });
        let smc = MmCommunicationConfiguration {
            cmd_port: MmiPort::Smc(0xc400_0041),
            ..Default::default()
        };
        assert!(matches!(
            plan(&smc, Some(secure::connect::<Refusing>)),
            Err(ConfigurationError::DataPortUnset { .. })
        ));
    }

    #[test]
    fn one_port_for_both_is_an_error() {
        let port = MmiPort::Smi(0xb2);
        assert_eq!(
            trigger(&config(port, port, AcpiBase::Mmio(0))).unwrap_err(),
            ConfigurationError::SamePort { port }
        );
    }

    #[test]
    fn two_secure_monitor_calls_are_an_error() {
        let (command, data) = (MmiPort::Smc(0xc400_0041), MmiPort::Smc(0xc400_006f));
        let two = config(command, data, AcpiBase::Mmio(0));
        assert_eq!(
            plan(&two, Some(secure::connect::<Refusing>)).unwrap_err(),
            ConfigurationError::TwoSmcFunctions { command, data }
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
        assert_eq!(
            with(AcpiBase::Io(0xffff)).unwrap_err().to_string(),
            "platform: the ACPI base 0xffff has no SMI_EN at +0x30"
        );
    }

    #[test]
    fn service_that_was_never_dispatched_is_an_error() {
        let manager = SwMmiManager::new();
        assert_eq!(manager.raise_mmi(0xff, 0), Err(MmiError::NotConfigured));
        assert_eq!(manager.trigger_sw_mmi(0xff, 0), Err(EfiError::NotStarted));
    }

    #[test]
    fn a_host_process_has_no_ports() {
        let command = MmiPort::Smi(0xb2);
        let ports = config(command, MmiPort::Smi(0xb3), AcpiBase::Mmio(0));
        let options = MmCommunicationOptions::DEFAULT;
        let error = Plan::new(&ports, &options, &no_inputs(), native_ports().is_some(), None).unwrap_err();
        assert_eq!(error, ConfigurationError::PortsUnsupported { command });
        assert_eq!(EfiError::from(error), EfiError::Unsupported);

        let trigger = trigger(&ports).unwrap();
        let manager = SwMmiManager {
            entry: Some(Entry::Ports(trigger)),
            ..SwMmiManager::new()
        };
        assert_eq!(manager.trigger_sw_mmi(0xff, 0), Err(EfiError::Unsupported));
    }

    #[test]
    fn a_foreign_trigger_keeps_its_error() {
        let mut mock = MockSwMmiTrigger::new();
        mock.expect_trigger_sw_mmi()
            .return_once(|_, _| Err(EfiError::Timeout));
        assert_eq!(
            mock.enter_mm(0x1000, 1, 2),
            Err(MmiError::Failed(EfiError::Timeout))
        );
    }
}
