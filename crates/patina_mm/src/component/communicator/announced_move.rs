//! An announced move of a comm buffer.
//!
//! Some MM environments move their comm buffer during boot, and announce the new place by
//! installing the comm-buffer update protocol (Project Mu, `MmCommBufferUpdate.h`). The
//! notification may come at any moment, also in the middle of a call, so it only stores the
//! announcement; the next call applies it. If the buffer moves during a call, that call finishes in
//! the old place.

mod slot;

/// The atomics of [`slot`]: a test compiles that file with others.
mod sync {
    pub(super) use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
}

use super::buffers::{Buffers, Plan};
use crate::config::{CommunicateBuffer, CommunicateBufferStatus, ConfigurationError};
use crate::service::shown;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use mm_wire::hob::{CommBufferPlace, PlaceError};
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolError, ProtocolServices, ProtocolServicesExt, Tpl,
};
use patina::management_mode::protocol::mm_comm_buffer_update::MmCommBufferUpdateProtocol;
use slot::{Lock, Slot};
use thiserror::Error;
use zerocopy::IntoBytes;

/// Why an announced place is not used. The platform's fault; the old place stays in use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum PlaceRefused {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("platform: the announced comm buffer cannot be used: {0}")]
    Buffer(#[from] CommunicateBufferStatus),
    #[error("platform: the announced comm buffer cannot be used: {0}")]
    Configuration(#[from] ConfigurationError),
}

/// Announcements about one comm buffer.
#[derive(Debug)]
pub(super) struct Announcements {
    id: u8,
    slot: Slot<MmCommBufferUpdateProtocol>,
    /// Buffers that moved while a call was using them, if that call may not have ended yet. Their
    /// number is at most that of nested calls. Borrowed only with the slot's lock.
    still_used: RefCell<Vec<CommunicateBuffer>>,
}

impl Announcements {
    /// Makes a place for announcements about the buffer `id`. `None` if memory is short.
    pub(super) fn about(id: u8) -> Option<Rc<Self>> {
        Some(Rc::new(Self {
            id,
            slot: Slot::new()?,
            still_used: RefCell::default(),
        }))
    }

    /// Registers for announcements. Nothing is kept if that fails.
    pub(super) fn watch(
        self: &Rc<Self>,
        protocols: &Service<dyn ProtocolServices>,
    ) -> Result<(), ProtocolError> {
        let (notified, services) = (Rc::clone(self), *protocols);
        let notify = move |handle| notified.store(services, handle);
        protocols
            .on_protocol_installed::<MmCommBufferUpdateProtocol>(Tpl::Callback, notify)
            .map(drop)
    }

    /// Announces that the buffer moves to where `buffer` is.
    #[cfg(test)]
    pub(super) fn announce(&self, buffer: &CommunicateBuffer) {
        use patina::management_mode::protocol::mm_comm_buffer_update::MmCommBuffer;
        let [region, mailbox] = buffer.ranges().map(Option::unwrap);
        self.put(MmCommBufferUpdateProtocol {
            version: 1,
            updated_comm_buffer: MmCommBuffer {
                physical_start: region.start(),
                number_of_pages: region.len() / mm_wire::PAGE_LEN as u64,
                status: mailbox.start(),
            },
        });
    }

    /// The buffer that may move.
    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Stores the announcement of the protocol on this handle.
    fn store(&self, services: Service<dyn ProtocolServices>, handle: Handle) {
        match services.with_protocol_on(handle, |announced: &MmCommBufferUpdateProtocol| *announced) {
            Ok(announced) => self.put(announced),
            Err(error) => {
                log_line!(
                    Error,
                    "mm_comm",
                    "platform: the comm-buffer update protocol has no interface: {}",
                    shown(error.into())
                );
            }
        }
    }

    fn put(&self, announced: MmCommBufferUpdateProtocol) {
        if self.slot.put(announced).is_err() {
            let id = self.id;
            log_line!(
                Error,
                "mm_comm",
                "platform: no memory for the announcement that comm buffer {id} moves: it is lost"
            );
        }
    }

    /// Keeps other code from moving comm buffers; `None` if this call interrupted code that does
    /// so.
    pub(super) fn lock(&self) -> Option<MoveLock<'_>> {
        let lock = self.slot.lock()?;
        Some(MoveLock {
            announcements: self,
            lock,
        })
    }

    fn apply(&self, announced: MmCommBufferUpdateProtocol, buffers: &Buffers) -> Result<(), NotApplied> {
        let place = CommBufferPlace::of_update(announced.as_bytes()).map_err(PlaceRefused::from)?;
        // SAFETY:
        // 1. The announcement says that the platform set the memory aside for this use, mapped one
        //    to one, for the rest of the boot.
        // 2. There is no reference to it: comm buffers are reached through their channels only.
        let new = unsafe { CommunicateBuffer::at_place(place, self.id) }.map_err(PlaceRefused::from)?;
        let plan = match buffers.plan(core::slice::from_ref(&new)) {
            Ok(plan) => plan,
            Err(ConfigurationError::BuffersBusy) => return Err(NotApplied::NotNow),
            Err(error) => return Err(PlaceRefused::from(error).into()),
        };
        // If a platform makes the MM supervisor move the buffers, it announces the move to drivers
        // in C when they have moved already.
        let is_there = |old: &CommunicateBuffer| old.is_enabled() && old.ranges() == new.ranges();
        if plan.old.iter().any(is_there) {
            return Ok(());
        }
        let Ok(mut still_used) = self.still_used.try_borrow_mut() else {
            return Err(NotApplied::NotNow);
        };
        still_used.retain(|old| old.channel().is_in_use());
        // Taking the memory over wipes it. No call uses it:
        // 1. The plan checked that no enabled buffer of the list overlaps it, except those that it
        //    replaces.
        // 2. No replaced or disabled buffer, and none that left the list before, both overlaps it
        //    and is in use.
        // 3. No call uses one of them before the list changes: code that interrupts this waits for
        //    the lock, and a call that looked up an old buffer before finds it retired.
        // 4. A requested move, which uses memory that is not in the list yet, has the lock
        //    meanwhile.
        let mut all = plan.all.iter().chain(&plan.old).chain(still_used.iter());
        if all.any(|buffer| buffer.channel().is_in_use() && buffer.overlaps(&new)) {
            return Err(NotApplied::NotNow);
        }
        new.take_over();
        let without_mailbox = without_mailbox(&plan, &new);
        let Ok(old) = buffers.commit(plan) else {
            return Err(NotApplied::NotNow);
        };
        still_used.extend(old.into_iter().filter(|old| old.channel().is_in_use()));
        log_line!(
            Info,
            "mm_comm",
            "comm buffer {} moved to {:p}, {} bytes",
            self.id,
            new.as_ptr(),
            new.len()
        );
        if let Some(supervisors) = without_mailbox {
            supervisors.channel().retire();
            log_line!(
                Error,
                "mm_comm",
                "platform: comm buffer {}, the MM supervisor's, is disabled: its mailbox moved with comm buffer {}. MmDxeSupport \
                 moved it, too, and does not announce where: send through gMmSupervisorCommunicationProtocolGuid, or leave \
                 that driver out",
                supervisors.id(),
                self.id
            );
        }
        Ok(())
    }
}

/// The MM supervisor's comm buffer, if its mailbox is that of the old buffers, and not that of the
/// new one.
fn without_mailbox(plan: &Plan, new: &CommunicateBuffer) -> Option<CommunicateBuffer> {
    let shares_old = |buffer: &&CommunicateBuffer| plan.old.iter().any(|old| old.shares_mailbox_with(buffer));
    let mut all = plan.all.iter().filter(shares_old);
    all.find(|buffer| !new.shares_mailbox_with(buffer)).cloned()
}

/// The right to move comm buffers, until this is dropped.
pub(super) struct MoveLock<'a> {
    announcements: &'a Announcements,
    lock: Lock<'a, MmCommBufferUpdateProtocol>,
}

impl MoveLock<'_> {
    /// Applies what was announced. `false` if that has to wait for a call that this one
    /// interrupted.
    pub(super) fn apply(&self, buffers: &Buffers) -> bool {
        self.lock
            .apply(|announced| match self.announcements.apply(announced, buffers) {
                Ok(()) => Ok(()),
                Err(NotApplied::NotNow) => Err(announced),
                Err(NotApplied::Refused(error)) => {
                    let id = self.announcements.id;
                    log_line!(Error, "mm_comm", "comm buffer {id} stays where it is: {error}");
                    Ok(())
                }
            })
    }
}

/// Why an announcement is not applied.
enum NotApplied {
    /// It must wait for a call that this one interrupted.
    NotNow,
    /// It will never be applied.
    Refused(PlaceRefused),
}

impl From<PlaceRefused> for NotApplied {
    fn from(error: PlaceRefused) -> Self {
        Self::Refused(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use patina::component::service::uefi_services::protocol::MockProtocolServices;
    use patina::management_mode::protocol::mm_comm_buffer_update::PROTOCOL_GUID;

    #[test]
    fn a_failed_registration_keeps_nothing() {
        let mut protocols = MockProtocolServices::new();
        protocols
            .expect_register_install_notify()
            .returning(|_, _, _| Err(ProtocolError::OutOfResources));
        let announcements = Announcements::about(0).unwrap();
        let result = announcements.watch(&Service::mock(Box::new(protocols)));
        assert_eq!(result, Err(ProtocolError::OutOfResources));
        assert_eq!(Rc::strong_count(&announcements), 1);
    }

    #[test]
    fn the_guid_is_that_of_the_wire() {
        assert_eq!(
            *PROTOCOL_GUID.as_bytes(),
            mm_wire::hob::UPDATE_PROTOCOL_GUID.to_bytes()
        );
    }
}
