//! The list of comm buffers.

use super::failure::Failure;
use crate::config::{CommunicateBuffer, ConfigurationError, check_buffers};
use crate::service::Status;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{BorrowError, Cell, RefCell};

/// The comm buffers of a communicator.
///
/// Code that interrupts a call finds the list free, because
///
/// 1. it is borrowed only to look at it or to replace it, never while MM, an executor or a callback
///    runs;
/// 2. nothing is allocated, freed or logged while it is borrowed exclusively: each of these may let
///    a notification run.
#[derive(Default)]
pub(super) struct Buffers {
    list: RefCell<Box<[CommunicateBuffer]>>,
    /// The MM supervisor's and the users' comm buffer, if they share their mailbox.
    one_mailbox: Cell<Option<[u8; 2]>>,
}

/// A move that can be made: the list after it, and the buffers that it takes out of use.
pub(super) struct Plan {
    pub(super) all: Vec<CommunicateBuffer>,
    pub(super) old: Vec<CommunicateBuffer>,
}

impl Buffers {
    /// Looks at the list. [`super::client::Client::look`] is for code that a notification may
    /// interrupt.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[CommunicateBuffer]) -> T) -> Result<T, BorrowError> {
        self.list.try_borrow().map(|list| look(&list))
    }

    /// The identifier of the buffer that shares its mailbox with the buffer `id`.
    pub(super) fn beside(&self, id: u8) -> Option<u8> {
        match self.one_mailbox.get()? {
            [first, second] if first == id => Some(second),
            [first, second] if second == id => Some(first),
            _ => None,
        }
    }

    /// Replaces the list, unless identifiers or memory of the new one collide, or code that this
    /// call interrupted looks at it: then the list stays as it was.
    pub(super) fn replace(&self, all: Vec<CommunicateBuffer>) -> Result<(), ConfigurationError> {
        check_buffers(&all)?;
        let one_mailbox = all.iter().find_map(|first| {
            let second = all.iter().find(|second| first.shares_mailbox_with(second))?;
            Some([first.id(), second.id()])
        });
        let all = all.into_boxed_slice();
        let Ok(mut list) = self.list.try_borrow_mut() else {
            return Err(ConfigurationError::BuffersBusy);
        };
        self.one_mailbox.set(one_mailbox);
        let former = core::mem::replace(&mut *list, all);
        drop(list);
        drop(former);
        Ok(())
    }

    /// Plans that the buffers `to` replace those with the same identifiers, and inherit how they
    /// are used. Nothing changes yet.
    #[inline(never)]
    pub(super) fn plan(&self, to: &[CommunicateBuffer]) -> Result<Plan, ConfigurationError> {
        // Borrowed exclusively for a moment, to know that `commit` will not fail: code that
        // interrupts this ends its borrow before it returns.
        let is_free = self.list.try_borrow_mut().is_ok();
        let is_old = |buffer: &CommunicateBuffer| to.iter().any(|new| new.id() == buffer.id());
        let (true, Ok(list)) = (is_free, self.list.try_borrow()) else {
            return Err(ConfigurationError::BuffersBusy);
        };
        let old = those(&list, &is_old);
        let mut all = those(&list, &|buffer| !is_old(buffer));
        drop(list);
        for new in to {
            let mut of_id = old.iter().filter(|old| old.id() == new.id());
            let new = new.clone();
            all.push(match of_id.find(|old| old.is_enabled()) {
                Some(old) => new.in_place_of(old),
                None => new,
            });
        }
        check_buffers(&all)?;
        Ok(Plan { all, old })
    }

    /// Makes a planned move: the new buffers are in the list, the old ones, which this returns, are
    /// out of use.
    pub(super) fn commit(&self, plan: Plan) -> Result<Vec<CommunicateBuffer>, ConfigurationError> {
        self.replace(plan.all)?;
        plan.old.iter().for_each(|old| old.channel().retire());
        Ok(plan.old)
    }
}

/// New handles of the buffers for which `wanted` is true.
#[inline(never)]
pub(super) fn those(
    buffers: &[CommunicateBuffer],
    wanted: &dyn Fn(&CommunicateBuffer) -> bool,
) -> Vec<CommunicateBuffer> {
    let mut found = Vec::new();
    for buffer in buffers {
        if wanted(buffer) {
            found.push(buffer.clone());
        }
    }
    found
}

/// Finds an enabled buffer. Returns a new handle, so that the list is not borrowed while MM runs.
pub(super) fn enabled(buffers: &[CommunicateBuffer], id: u8) -> Option<CommunicateBuffer> {
    // A disabled buffer does not hide the one that replaces it.
    let mut all = buffers.iter();
    all.find(|buffer| buffer.id() == id && buffer.is_enabled())
        .cloned()
}

/// Like [`enabled`], but returns an error if there is no such buffer.
pub(super) fn find(buffers: &[CommunicateBuffer], id: u8) -> Result<CommunicateBuffer, Failure> {
    enabled(buffers, id).ok_or_else(|| {
        if buffers.is_empty() {
            Status::NoCommBuffer.into()
        } else if buffers.iter().any(|buffer| buffer.id() == id) {
            Status::CommBufferDisabled.into()
        } else {
            Failure::unknown_buffer()
        }
    })
}
