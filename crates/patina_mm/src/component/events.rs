//! Tells MM how far the boot has come.

use super::communicator::{CallOptions, Status};
use crate::service::MmCommunication;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::sync::atomic::{AtomicBool, Ordering};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::event::{EventError, EventServices};
use patina::component::service::uefi_services::protocol::{ProtocolServices, Tpl};
use patina::error::EfiError;
use patina::management_mode::guid::MM_DXE_READY_TO_LOCK_PROTOCOL_GUID;
use patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID;
use patina::standard::efi;
use patina::uefi::event::{EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, READY_TO_BOOT_EVENT_GROUP_GUID};

/// What is sent: MM reads the GUID alone, but there is no message of no bytes. As edk2's Standalone MM drivers have it.
const MESSAGE: [u8; 1] = [0];

/// Component: sends a message to MM at each of these events, under the GUID that PI (volume 4, 3) and edk2's MM cores know.
///
/// | event | sent to | how often |
/// |---|---|---|
/// | end of DXE (event group) | `02ce967a-dd7e-4ffc-9ee7-810cf0470880` | each time |
/// | ready to lock: the protocol `EFI_DXE_MM_READY_TO_LOCK` is installed, ready to boot at the latest | `60ff8964-e906-41d0-afed-f241e974e08e` | once |
/// | ready to boot (event group) | `7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b` | each time, after ready to lock |
/// | exit boot services (event group) | `27abf055-b1b8-4c26-8048-748f37baa2df` | each time |
///
/// An event that MM has no handler for is no error. Nothing is allocated when an event comes. To close and lock MMRAM
/// itself is the platform's to do.
#[derive(Clone, Copy, Debug)]
pub struct MmEventNotifier {
    buffer: u8,
}

#[component]
impl MmEventNotifier {
    /// Makes the component, which sends through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self { buffer }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        events: Service<dyn EventServices>,
        protocols: Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        let notifier = Notifier {
            mm,
            buffer: self.buffer,
            is_locked: Rc::new(AtomicBool::new(false)),
        };
        notifier.listen(&events, &protocols).inspect_err(
            |error| log::error!(target: "mm_comm", "MM will not be told of the boot's events: {error:?}"),
        )
    }
}

/// What every callback has. Clones know together whether MM is locked.
#[derive(Clone)]
struct Notifier {
    mm: Service<dyn MmCommunication>,
    buffer: u8,
    is_locked: Rc<AtomicBool>,
}

impl Notifier {
    fn listen(
        &self,
        events: &Service<dyn EventServices>,
        protocols: &Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        self.forward(events, END_OF_DXE_EVENT_GROUP_GUID)?;
        self.forward(events, EXIT_BOOT_SERVICES_EVENT_GROUP_GUID)?;
        let notifier = self.clone();
        let ready_to_boot = move |_event| {
            if !notifier.is_locked.load(Ordering::Acquire) {
                log::warn!(target: "mm_comm", "platform: ready to boot came before ready to lock");
                notifier.lock();
            }
            notifier.send(READY_TO_BOOT_EVENT_GROUP_GUID);
        };
        events
            .create_event_for_group(
                READY_TO_BOOT_EVENT_GROUP_GUID,
                Tpl::Callback,
                Box::new(ready_to_boot),
            )
            .map_err(EfiError::from)?;
        let notifier = self.clone();
        protocols
            .register_install_notify(
                MM_DXE_READY_TO_LOCK_PROTOCOL_GUID,
                Tpl::Callback,
                Box::new(move |_handle| notifier.lock()),
            )
            .map_err(EfiError::from)?;
        Ok(())
    }

    /// Sends an event group's own GUID whenever the group is signalled. The event lives as long as the boot.
    fn forward(&self, events: &Service<dyn EventServices>, group: BinaryGuid) -> Result<(), EventError> {
        let notifier = self.clone();
        let callback = Box::new(move |_event| notifier.send(group));
        events
            .create_event_for_group(group, Tpl::Callback, callback)
            .map(drop)
    }

    /// Tells MM once that everything is to be locked.
    fn lock(&self) {
        if !self.is_locked.swap(true, Ordering::AcqRel) {
            self.send(MM_DXE_READY_TO_LOCK_PROTOCOL_GUID);
        }
    }

    fn send(&self, event: BinaryGuid) {
        let sent = self.mm.communicate_with(
            self.buffer,
            &MESSAGE,
            event.as_guid(),
            CallOptions::new(),
            &mut |_answer| {},
        );
        match sent {
            Ok(()) => log::info!(target: "mm_comm", "MM was told of {event}"),
            Err(Status::MmReturned(efi::Status::NOT_FOUND)) => {
                log::info!(target: "mm_comm", "MM was told of {event}, and nobody there waits for it");
            }
            Err(status) => log::error!(target: "mm_comm", "MM was not told of {event}: {status}"),
        }
    }
}
