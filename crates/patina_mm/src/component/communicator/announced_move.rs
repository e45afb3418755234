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
    pub(super) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
}

use super::buffers::{self, Buffers, Plan};
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

/// Words of the update protocol's interface.
const WORDS: usize = size_of::<MmCommBufferUpdateProtocol>() / size_of::<u64>();

/// Announcements about one comm buffer.
pub(super) struct Announcements {
    id: u8,
    slot: Slot<WORDS>,
    /// Buffers that moved while a call was using them, if that call may not have ended yet. Their
    /// number is at most that of nested calls. Borrowed only with the slot's lock.
    still_used: RefCell<Vec<CommunicateBuffer>>,
    /// [`Self::apply`]. A pointer, so that a platform in which nothing makes a value of this type
    /// does not link it.
    apply: fn(&Self, [u64; WORDS], &Buffers) -> bool,
}

/// Starts to watch for announcements about a comm buffer: [`Announcements::watch`].
pub(super) type Watch = fn(u8, Service<dyn ProtocolServices>) -> Result<Rc<Announcements>, ProtocolError>;

impl Announcements {
    /// Makes a place for announcements about the buffer `id`.
    pub(super) fn about(id: u8) -> Rc<Self> {
        Rc::new(Self {
            id,
            slot: Slot::new(),
            still_used: RefCell::default(),
            apply: Self::apply,
        })
    }

    /// Makes a place for announcements about the buffer `id`, and registers for them. Nothing is
    /// kept if that fails.
    pub(super) fn watch(id: u8, protocols: Service<dyn ProtocolServices>) -> Result<Rc<Self>, ProtocolError> {
        let announcements = Self::about(id);
        let notified = Rc::clone(&announcements);
        let notify = move |handle| notified.store(protocols, handle);
        match protocols.on_protocol_installed::<MmCommBufferUpdateProtocol>(Tpl::Callback, notify) {
            Ok(_) => Ok(announcements),
            Err(error) => {
                log_line!(
                    Error,
                    "mm_comm",
                    "no MM communication: announced moves cannot be watched: {}",
                    shown(error.into())
                );
                Err(error)
            }
        }
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
    #[inline(never)]
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
        if !self.slot.put(zerocopy::transmute!(announced)) {
            let id = self.id;
            log_line!(
                Error,
                "mm_comm",
                "platform: too many announcements that comm buffer {id} moves interrupted each other: one is lost"
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

    /// Applies an announcement. `false` if it has to wait for a call that this one interrupted.
    fn apply(&self, announced: [u64; WORDS], buffers: &Buffers) -> bool {
        match self.try_apply(announced, buffers) {
            Ok(()) => true,
            Err(NotApplied::NotNow) => false,
            Err(NotApplied::Refused(error)) => {
                let id = self.id;
                log_line!(Error, "mm_comm", "comm buffer {id} stays where it is: {error}");
                true
            }
        }
    }

    fn try_apply(&self, announced: [u64; WORDS], buffers: &Buffers) -> Result<(), NotApplied> {
        let place = CommBufferPlace::of_update_words(announced).map_err(PlaceRefused::from)?;
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
        *still_used = in_use(&still_used);
        // Taking the memory over wipes it. No call uses it:
        // 1. The plan checked that no enabled buffer of the list overlaps it, except those that it
        //    replaces.
        // 2. No replaced or disabled buffer, and none that left the list before, both overlaps it
        //    and is in use.
        // 3. No call uses one of them before the list changes: code that interrupts this waits for
        //    the lock, and a call that looked up an old buffer before finds it retired.
        // 4. A requested move, which uses memory that is not in the list yet, has the lock
        //    meanwhile.
        for buffers in [&plan.all, &plan.old, &*still_used] {
            let is_used = |buffer: &&CommunicateBuffer| buffer.channel().is_in_use();
            if buffers
                .iter()
                .filter(is_used)
                .any(|buffer| buffer.overlap(&new, false).is_some())
            {
                return Err(NotApplied::NotNow);
            }
        }
        new.take_over();
        let without_mailbox = without_mailbox(&plan, &new);
        let Ok(old) = buffers.commit(plan) else {
            return Err(NotApplied::NotNow);
        };
        still_used.append(&mut in_use(&old));
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

/// New handles of the buffers that a call is using.
fn in_use(buffers: &[CommunicateBuffer]) -> Vec<CommunicateBuffer> {
    buffers::those(buffers, &|buffer| buffer.channel().is_in_use())
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
    lock: Lock<'a, WORDS>,
}

impl MoveLock<'_> {
    /// Applies what was announced. `false` if that has to wait for a call that this one
    /// interrupted.
    pub(super) fn apply(&self, buffers: &Buffers) -> bool {
        let Self { announcements, lock } = self;
        lock.apply(|announced| (announcements.apply)(announcements, announced, buffers))
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
        let result = Announcements::watch(0, Service::mock(Box::new(protocols)));
        assert_eq!(result.err(), Some(ProtocolError::OutOfResources));
    }

    #[test]
    fn the_guid_is_that_of_the_wire() {
        assert_eq!(
            *PROTOCOL_GUID.as_bytes(),
            mm_wire::hob::UPDATE_PROTOCOL_GUID.to_bytes()
        );
    }
}
