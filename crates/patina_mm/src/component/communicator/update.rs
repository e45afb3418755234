//! A comm buffer that moves during boot.
//!
//! Some MM environments move their buffer and announce the new place by installing the comm-buffer update protocol
//! (Project Mu, `MmCommBufferUpdate.h`). The notification may arrive at any moment, in the middle of a call included, so
//! it only leaves the announcement in a slot; the next call takes it from there. A call under way finishes in the buffer
//! that it started in.

use crate::config::{CommunicateBuffer, CommunicateBufferStatus, ConfigurationError};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicPtr, Ordering};
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
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
}

/// The newest announcement that no call has taken yet.
#[derive(Debug)]
pub(super) struct Pending {
    id: u8,
    /// Owned: null, or from `Box::into_raw`. Whoever swaps a pointer out frees it.
    slot: AtomicPtr<MmCommBufferUpdateProtocol>,
}

impl Pending {
    /// Watches for announcements about the buffer `id`.
    pub(super) fn watch(
        protocols: &Service<dyn ProtocolServices>,
        id: u8,
    ) -> Result<Rc<Self>, ProtocolError> {
        let pending = Rc::new(Self {
            id,
            slot: AtomicPtr::default(),
        });
        let (notified, services) = (Rc::clone(&pending), *protocols);
        protocols.register_install_notify(
            PROTOCOL_GUID,
            Tpl::Callback,
            Box::new(move |handle| notified.announced(services, handle)),
        )?;
        Ok(pending)
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
        // SAFETY: whoever installs this protocol installs an interface of this type under its GUID; the type is packed,
        // so that it has no alignment, and every bit pattern is a value of it.
        let update = unsafe { interface.read_unaligned() };
        self.put(Box::new(update));
    }

    fn put(&self, update: Box<MmCommBufferUpdateProtocol>) {
        drop(owned(self.slot.swap(Box::into_raw(update), Ordering::AcqRel)));
    }

    fn take(&self) -> Option<Box<MmCommBufferUpdateProtocol>> {
        owned(self.slot.swap(core::ptr::null_mut(), Ordering::AcqRel))
    }

    /// Puts the newest announcement into effect. Where the buffers are being looked at by an interrupted call, it stays
    /// for the next one.
    pub(super) fn apply(&self, buffers: &RefCell<Vec<CommunicateBuffer>>) {
        let Ok(mut buffers) = buffers.try_borrow_mut() else {
            return;
        };
        let Some(update) = self.take() else { return };
        match replacement(*update, self.id, &buffers) {
            Ok(new) => {
                log::info!(target: "mm_comm", "comm buffer {} moved to {:p}, {} bytes", self.id, new.as_ptr(), new.len());
                buffers.retain(|buffer| buffer.id() != self.id);
                buffers.push(new);
            }
            Err(error) => {
                log::error!(target: "mm_comm", "comm buffer {} stays where it is: {error}", self.id)
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Takes back what [`Pending::put`] gave to the slot.
fn owned(pointer: *mut MmCommBufferUpdateProtocol) -> Option<Box<MmCommBufferUpdateProtocol>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: private, and called only with what was just swapped out of a slot: such a pointer is from `Box::into_raw`,
    // and the swap made this the only copy of it.
    Some(unsafe { Box::from_raw(pointer) })
}

/// Makes the buffer that an announcement describes, fit to stand beside the other ones.
fn replacement(
    update: MmCommBufferUpdateProtocol,
    id: u8,
    buffers: &[CommunicateBuffer],
) -> Result<CommunicateBuffer, UpdateError> {
    let place = CommBufferPlace::of_update(update.as_bytes())?;
    // SAFETY: the platform announces memory that it set aside for this use, mapped one to one, for the rest of the boot.
    let new = unsafe { CommunicateBuffer::at_place(place, id) }?;
    let mut all: Vec<_> = buffers
        .iter()
        .filter(|buffer| buffer.id() != id)
        .cloned()
        .collect();
    all.push(new.clone());
    crate::config::check_buffers(&all)?;
    Ok(new)
}
