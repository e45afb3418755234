//! A comm buffer that moves during boot.
//!
//! Some MM environments move their buffer and announce the new place by installing the comm-buffer update protocol
//! (Project Mu, `MmCommBufferUpdate.h`). The notification may arrive at any moment, in the middle of a call included, so
//! it only leaves the announcement in a slot; the next call takes it from there. A call under way finishes in the buffer
//! that it started in.

mod latest;

/// The atomics of [`latest`]: a test compiles that file with others.
mod sync {
    pub(super) use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
}

use crate::config::{CommunicateBuffer, CommunicateBufferStatus};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use latest::Latest;
use mm_wire::AddressRange;
use mm_wire::hob::{CommBufferPlace, PlaceError};
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{Handle, ProtocolError, ProtocolServices, Tpl};
use patina::management_mode::protocol::mm_comm_buffer_update::{MmCommBufferUpdateProtocol, PROTOCOL_GUID};
use thiserror::Error;
use zerocopy::IntoBytes;

/// Why an announced buffer is not used. The platform's fault; the old buffer stays in use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum UpdateError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("platform: the announced comm buffer cannot be used: {0}")]
    Buffer(#[from] CommunicateBufferStatus),
    #[error("platform: the announced comm buffer {region} shares memory with comm buffer {other}")]
    SharedMemory { region: AddressRange, other: u8 },
}

/// Announcements about one comm buffer that no call has put into effect yet.
#[derive(Debug)]
pub(super) struct Pending {
    id: u8,
    latest: Latest<MmCommBufferUpdateProtocol>,
    /// Buffers that moved away while a call was using them, until a move finds that call done. No more than calls are
    /// nested. Borrowed only while a move is applied, and that is one at a time.
    leaving: RefCell<Vec<CommunicateBuffer>>,
}

impl Pending {
    /// Waits for announcements about the buffer `id`. `None` if there is no memory for them.
    pub(super) fn about(id: u8) -> Option<Rc<Self>> {
        Some(Rc::new(Self {
            id,
            latest: Latest::new()?,
            leaving: RefCell::default(),
        }))
    }

    /// Registers for announcements. Where that fails, nothing is kept.
    pub(super) fn watch(
        self: &Rc<Self>,
        protocols: &Service<dyn ProtocolServices>,
    ) -> Result<(), ProtocolError> {
        let (notified, services) = (Rc::clone(self), *protocols);
        protocols
            .register_install_notify(
                PROTOCOL_GUID,
                Tpl::Callback,
                Box::new(move |handle| notified.announced(services, handle)),
            )
            .map(drop)
    }

    /// Leaves an announcement of the place where `buffer` is.
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

    fn announced(&self, services: Service<dyn ProtocolServices>, handle: Handle) {
        let interface = match services.interface_on_handle(handle, PROTOCOL_GUID) {
            Ok(interface) => interface
                .as_raw()
                .cast::<MmCommBufferUpdateProtocol>()
                .cast_const(),
            Err(error) => {
                log::error!(target: "mm_comm", "platform: the comm-buffer update protocol has no interface: {error:?}");
                return;
            }
        };
        // SAFETY: a driver that installs this protocol installs an interface of this type under its GUID; the type is packed,
        // so that it has no alignment, and every bit pattern is a value of it.
        self.put(unsafe { interface.read_unaligned() });
    }

    fn put(&self, update: MmCommBufferUpdateProtocol) {
        if self.latest.put(update).is_err() {
            let id = self.id;
            log::error!(target: "mm_comm", "platform: no memory for the announcement that comm buffer {id} moves: it is lost");
        }
    }

    /// Keeps everybody else from putting announcements into effect; `None` where this call interrupted one that does.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let turn = self.latest.turn()?;
        Some(Turn { pending: self, turn })
    }

    fn move_to(
        &self,
        update: MmCommBufferUpdateProtocol,
        buffers: &RefCell<Vec<CommunicateBuffer>>,
    ) -> Result<(), Hindrance> {
        let place = CommBufferPlace::of_update(update.as_bytes()).map_err(UpdateError::from)?;
        let Ok(mut leaving) = self.leaving.try_borrow_mut() else {
            return Err(Hindrance::NotNow);
        };
        leaving.retain(|buffer| buffer.channel().is_in_use());
        let (old, mut all): (Vec<_>, Vec<_>) = match buffers.try_borrow() {
            Ok(buffers) => buffers.iter().cloned().partition(|buffer| buffer.id() == self.id),
            Err(_replaced_by_an_interrupted_call) => return Err(Hindrance::NotNow),
        };
        // A platform that had the MM supervisor move the buffers announces to drivers in C where they are by now. The
        // supervisor's buffer may share that mailbox.
        if old.iter().any(|old| old.is_enabled() && is_at(old, place)) {
            return Ok(());
        }
        // Taking the new memory over wipes it: that must disturb neither another buffer nor a call under way.
        if let Some(other) = all.iter().find(|other| overlaps(other, place)) {
            let (region, other) = (place.region(), other.id());
            return Err(UpdateError::SharedMemory { region, other }.into());
        }
        let is_in_use = |old: &&CommunicateBuffer| old.channel().is_in_use();
        if old
            .iter()
            .filter(is_in_use)
            .chain(leaving.iter())
            .any(|old| overlaps(old, place))
        {
            return Err(Hindrance::NotNow);
        }
        // SAFETY: the platform announces memory that it set aside for this use, mapped one to one, for the rest of the
        // boot. No transaction uses it, and none will through an older buffer: those in the list do not overlap it, or
        // are `old`; those that left the list are retired, and so is `old` before another call can begin there, because a call
        // that looked it up before finds it retired once it has claimed it, and one that interrupts this waits. What was
        // in use when it left the list is in `leaving`, what is in use now was checked, and neither overlaps. A request to
        // move uses memory that is not in the list yet: it has the turn until that is in the list, or wiped.
        let mut new = unsafe { CommunicateBuffer::at_place(place, self.id) }.map_err(UpdateError::from)?;
        new.take_over();
        if let Some(old) = old.iter().find(|old| old.is_enabled()) {
            new = new.in_place_of(old);
        }
        let shares_old_mailbox =
            |other: &&CommunicateBuffer| old.iter().any(|old| old.shares_mailbox_with(other));
        let orphan = all.iter().find(shares_old_mailbox).cloned();
        all.push(new.clone());
        // What is freed is freed once the list can be looked at again: a notification may come with that.
        let former = match buffers.try_borrow_mut() {
            Ok(mut buffers) => core::mem::replace(&mut *buffers, all),
            Err(_looked_at_by_an_interrupted_call) => return Err(Hindrance::NotNow),
        };
        drop(former);
        for old in old {
            old.channel().retire();
            if old.channel().is_in_use() {
                leaving.push(old);
            }
        }
        log::info!(target: "mm_comm", "comm buffer {} moved to {:p}, {} bytes", self.id, new.as_ptr(), new.len());
        if let Some(orphan) = orphan {
            orphan.channel().retire();
            log::error!(
                target: "mm_comm",
                "platform: comm buffer {}, the MM supervisor's, is disabled: its mailbox was that of comm buffer {}, which \
                 moved away. The driver that moved it (MmDxeSupport) moved the supervisor's buffer too and does not \
                 announce where: send to the supervisor through gMmSupervisorCommunicationProtocolGuid, or leave that \
                 driver out",
                orphan.id(),
                self.id
            );
        }
        Ok(())
    }
}

/// The right to put announcements into effect, which ends with this value.
pub(super) struct Turn<'a> {
    pending: &'a Pending,
    turn: latest::Turn<'a, MmCommBufferUpdateProtocol>,
}

impl Turn<'_> {
    /// Puts what was announced into effect. Returns whether that is done: `false` where it has to wait for a call that
    /// this one interrupted.
    pub(super) fn apply(&self, buffers: &RefCell<Vec<CommunicateBuffer>>) -> bool {
        self.turn
            .apply(|update| match self.pending.move_to(update, buffers) {
                Ok(()) => Ok(()),
                Err(Hindrance::NotNow) => Err(update),
                Err(Hindrance::Refused(error)) => {
                    log::error!(target: "mm_comm", "comm buffer {} stays where it is: {error}", self.pending.id);
                    Ok(())
                }
            })
    }
}

/// Why an announcement is not in effect.
enum Hindrance {
    /// A call that was interrupted is in the way.
    NotNow,
    /// Never.
    Refused(UpdateError),
}

impl From<UpdateError> for Hindrance {
    fn from(error: UpdateError) -> Self {
        Self::Refused(error)
    }
}

/// The addresses that an announced buffer and its mailbox cover.
fn ranges(place: CommBufferPlace) -> [Option<AddressRange>; 2] {
    let mailbox = place
        .mailbox()
        .and_then(|address| AddressRange::new(address, mm_wire::mailbox::MAILBOX_LEN as u64));
    [Some(place.region()), mailbox]
}

fn is_at(buffer: &CommunicateBuffer, place: CommBufferPlace) -> bool {
    buffer.ranges() == ranges(place)
}

fn overlaps(buffer: &CommunicateBuffer, place: CommBufferPlace) -> bool {
    let new = ranges(place);
    buffer
        .ranges()
        .into_iter()
        .flatten()
        .any(|old| new.into_iter().flatten().any(|new| old.overlaps(new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina::component::service::uefi_services::protocol::MockProtocolServices;

    #[test]
    fn a_failed_registration_keeps_nothing() {
        let mut protocols = MockProtocolServices::new();
        protocols
            .expect_register_install_notify()
            .returning(|_, _, _| Err(ProtocolError::OutOfResources));
        let pending = Pending::about(0).unwrap();
        let result = pending.watch(&Service::mock(Box::new(protocols)));
        assert_eq!(result, Err(ProtocolError::OutOfResources));
        assert_eq!(Rc::strong_count(&pending), 1);
    }

    #[test]
    fn the_guid_is_that_of_the_wire() {
        assert_eq!(
            *PROTOCOL_GUID.as_bytes(),
            mm_wire::hob::UPDATE_PROTOCOL_GUID.to_bytes()
        );
    }
}
