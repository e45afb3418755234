//! Components around the client: a platform's own, and those that take services out of the storage.

use super::BootEvent;
use alloc::rc::Rc;
use core::cell::Cell;
use mm_wire::EfiStatus;
use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::{Commands, ConfigMut};
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID;
use patina::standard::efi;
use patina::uefi::event::{EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, READY_TO_BOOT_EVENT_GROUP_GUID};
use patina_mm::component::events::MmEvent;
use patina_mm::config::MmCommunicationConfiguration;
use patina_mm::service::{MmCommunication, MmSupervisor, PlatformMmControl, SwMmiTrigger};

/// The notifier's name of an event.
pub(super) const fn mm_event(event: BootEvent) -> MmEvent {
    match event {
        BootEvent::EndOfDxe => MmEvent::EndOfDxe,
        BootEvent::ReadyToLock => MmEvent::ReadyToLock,
        BootEvent::ReadyToBoot => MmEvent::ReadyToBoot,
        BootEvent::ExitBootServices => MmEvent::ExitBootServices,
    }
}

/// The event group of an event; ready to lock is a protocol instead.
pub(super) const fn event_group(event: BootEvent) -> Option<BinaryGuid> {
    match event {
        BootEvent::EndOfDxe => Some(END_OF_DXE_EVENT_GROUP_GUID),
        BootEvent::ReadyToLock => None,
        BootEvent::ReadyToBoot => Some(READY_TO_BOOT_EVENT_GROUP_GUID),
        BootEvent::ExitBootServices => Some(EXIT_BOOT_SERVICES_EVENT_GROUP_GUID),
    }
}

/// Takes the communication service out of the storage, like any consumer.
pub(super) struct Catcher(pub(super) Rc<Cell<Option<Service<dyn MmCommunication>>>>);

#[component]
impl Catcher {
    fn entry_point(self, service: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.set(Some(service));
        Ok(())
    }
}

/// Notes that there is a trigger.
pub(super) struct TriggerWitness(pub(super) Rc<Cell<bool>>);

#[component]
impl TriggerWitness {
    fn entry_point(self, _: Service<dyn SwMmiTrigger>) -> patina::error::Result<()> {
        self.0.set(true);
        Ok(())
    }
}

/// A platform's own trigger, which does not work.
#[derive(IntoService)]
#[service(dyn SwMmiTrigger)]
pub(super) struct FailingTrigger;

// SAFETY: MM is never entered.
unsafe impl SwMmiTrigger for FailingTrigger {
    fn trigger_sw_mmi(&self, _: u8, _: u8) -> patina::error::Result<()> {
        Err(EfiError::DeviceError)
    }
}

/// Takes the supervisor's client out of the storage.
pub(super) struct SupervisorCatcher(pub(super) Rc<Cell<Option<Service<dyn MmSupervisor>>>>);

#[component]
impl SupervisorCatcher {
    fn entry_point(self, service: Service<dyn MmSupervisor>) -> patina::error::Result<()> {
        self.0.set(Some(service));
        Ok(())
    }
}

/// Fills in and locks the configuration, after the components that read it were added.
pub(super) struct LateConfiguration(pub(super) MmCommunicationConfiguration);

#[component]
impl LateConfiguration {
    fn entry_point(self, mut config: ConfigMut<MmCommunicationConfiguration>) -> patina::error::Result<()> {
        *config = self.0;
        config.lock();
        Ok(())
    }
}

/// Offers the platform's hook when it is dispatched.
pub(super) struct LateControl(pub(super) Control);

#[component]
impl LateControl {
    fn entry_point(self, mut commands: Commands) -> patina::error::Result<()> {
        commands.add_service(self.0);
        Ok(())
    }
}

/// A platform's hook that counts its calls.
#[derive(IntoService)]
#[service(dyn PlatformMmControl)]
pub(super) struct Control {
    pub(super) calls: Rc<Cell<u32>>,
    pub(super) result: Result<(), EfiStatus>,
}

impl PlatformMmControl for Control {
    fn init(&self) -> patina::error::Result<()> {
        self.calls.set(self.calls.get() + 1);
        self.result.map_err(|status| {
            let status = usize::try_from(status.0).map_or(efi::Status::ABORTED, efi::Status::from_usize);
            EfiError::status_to_result(status)
                .err()
                .unwrap_or(EfiError::Aborted)
        })
    }
}
