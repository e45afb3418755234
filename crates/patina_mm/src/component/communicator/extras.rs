//! The state of a communicator that only some platforms need. It is allocated when first used.

use super::after_calls::AfterCalls;
use super::announced_move::Announcements;
use super::tpl::AtNotify;
use crate::config::MmiPort;
use crate::service::{Clock, Status};
use alloc::alloc::handle_alloc_error;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::cell::{Cell, OnceCell};
use once_cell::race::OnceBox;

/// The state of these parts.
#[derive(Default)]
pub(super) struct Extras {
    /// The configured way into MM, if there is one.
    pub(super) port: Cell<Option<MmiPort>>,
    /// The clock for log lines.
    pub(super) clock: Cell<Option<Clock>>,
    pub(super) announcements: OnceCell<Rc<Announcements>>,
    pub(super) after_calls: AfterCalls,
    pub(super) at_notify: AtNotify,
}

/// Allocates [`Extras`] when it is first needed. Atomic, because a notification may come in the
/// middle of the allocation and make another one.
#[derive(Default)]
pub(super) struct LazyExtras(OnceBox<[Extras; 1]>);

impl LazyExtras {
    /// The state, if it was allocated.
    pub(super) fn get(&self) -> Option<&Extras> {
        self.0.get().map(|[extras]| extras)
    }

    /// The state, which this allocates if necessary.
    ///
    /// # Errors
    ///
    /// [`Status::OutOfMemory`].
    #[cold]
    #[inline(never)]
    pub(super) fn make(&self) -> Result<&Extras, Status> {
        let [extras] = self.0.get_or_try_init(|| {
            let mut memory = Vec::new();
            if memory.try_reserve_exact(1).is_ok() {
                memory.push(Extras::default());
            }
            Box::try_from(memory).map_err(|_no_memory| Status::OutOfMemory {
                needed: size_of::<Extras>(),
            })
        })?;
        Ok(extras)
    }

    /// Like [`Self::make`], for callers that cannot continue without it: if memory is short the
    /// program ends, as for `Box::new`.
    #[inline(never)]
    pub(super) fn make_or_abort(&self) -> &Extras {
        self.make()
            .unwrap_or_else(|_no_memory| handle_alloc_error(Layout::new::<Extras>()))
    }
}
