//! What a communicator has only on some platforms, in memory of its own.

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

/// The parts.
#[derive(Default)]
pub(super) struct Extras {
    /// The configured way into MM.
    pub(super) port: Cell<Option<MmiPort>>,
    /// For the log.
    pub(super) clock: Cell<Option<Clock>>,
    pub(super) announcements: OnceCell<Rc<Announcements>>,
    pub(super) after_calls: AfterCalls,
    pub(super) at_notify: AtNotify,
}

/// Memory for the parts, allocated with the first of them. Atomic, since a notification may come in
/// the middle of that and do the same.
#[derive(Default)]
pub(super) struct LazyExtras(OnceBox<[Extras; 1]>);

impl LazyExtras {
    /// The parts, if there are any.
    pub(super) fn get(&self) -> Option<&Extras> {
        self.0.get().map(|[extras]| extras)
    }

    /// The parts, allocated if there were none.
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

    /// The same, for callers that cannot do without: a lack of memory ends the program, as for
    /// `Box::new`.
    #[inline(never)]
    pub(super) fn make_or_abort(&self) -> &Extras {
        self.make()
            .unwrap_or_else(|_no_memory| handle_alloc_error(Layout::new::<Extras>()))
    }
}
