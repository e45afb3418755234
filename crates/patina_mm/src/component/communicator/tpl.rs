//! The task priority level (TPL) that calls run at.

use super::ids::position;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::{Tpl, TplGuard, TplServices, TplServicesExt};
use patina::standard::efi;
use patina::uefi::boot_services::tpl::Tpl as Level;
use patina::uefi::tpl_mutex::TplController;

/// A raised TPL, which is restored when this is dropped.
pub(crate) type Raised = TplGuard<'static, dyn TplServices>;

/// Raises the TPL to `TPL_NOTIFY`. `None` if it is higher already: lowering it through `RaiseTPL`
/// is fatal, and the current TPL can only be read by raising to `TPL_HIGH_LEVEL`.
pub(crate) fn raise_to_notify(services: Service<dyn TplServices>) -> Option<Raised> {
    let current = TplController::raise_tpl(&services, Level(efi::TPL_HIGH_LEVEL));
    TplController::restore_tpl(&services, current);
    let services: &'static dyn TplServices = *services;
    (current <= Level::NOTIFY).then(|| services.raise(Tpl::Notify))
}

/// The comm buffers whose calls run at `TPL_NOTIFY`, and the service that raises the TPL.
#[derive(Default)]
pub(super) struct AtNotify {
    /// A bit per identifier. Atomic, since a notification may come between any two accesses.
    ids: [AtomicU64; 4],
    services: Cell<Option<Service<dyn TplServices>>>,
}

impl AtNotify {
    /// Adds a comm buffer. There is one TPL, so `services` is used for all of them.
    pub(super) fn add(&self, id: u8, services: Service<dyn TplServices>) {
        self.services.set(Some(services));
        let (word, bit) = position(id);
        if let Some(word) = self.ids.get(word) {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// The service that raises the TPL; `None` until a comm buffer was added.
    pub(super) fn services(&self) -> Option<Service<dyn TplServices>> {
        self.services.get()
    }

    /// Whether calls through the comm buffer run at `TPL_NOTIFY`.
    pub(super) fn has(&self, id: u8) -> bool {
        let (word, bit) = position(id);
        let mut words = self.ids.iter();
        words
            .nth(word)
            .is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use patina::component::service::uefi_services::tpl::{MockTplServices, PreviousTpl};

    /// TPL services that start at this level.
    fn services(level: usize) -> (Service<dyn TplServices>, Rc<Cell<usize>>) {
        let current = Rc::new(Cell::new(level));
        let mut mock = MockTplServices::new();
        let raised = Rc::clone(&current);
        mock.expect_raise_tpl().returning_st(move |tpl| {
            let new = match tpl {
                Tpl::Application => efi::TPL_APPLICATION,
                Tpl::Callback => efi::TPL_CALLBACK,
                Tpl::Notify => efi::TPL_NOTIFY,
                Tpl::HighLevel => efi::TPL_HIGH_LEVEL,
            };
            assert!(new >= raised.get(), "from {} to {new}", raised.get());
            PreviousTpl::from_raw(raised.replace(new))
        });
        let restored = Rc::clone(&current);
        mock.expect_restore_tpl().returning_st(move |previous| {
            assert!(previous.as_raw() <= restored.get());
            restored.set(previous.as_raw());
        });
        (Service::mock(Box::new(mock)), current)
    }

    #[test]
    fn the_level_is_raised_and_goes_back() {
        for level in [efi::TPL_APPLICATION, efi::TPL_CALLBACK, efi::TPL_NOTIFY] {
            let (services, current) = services(level);
            let raised = raise_to_notify(services);
            assert_eq!(current.get(), efi::TPL_NOTIFY);
            drop(raised);
            assert_eq!(current.get(), level);
        }
    }

    #[test]
    fn a_higher_level_stays() {
        let (services, current) = services(efi::TPL_HIGH_LEVEL);
        assert!(raise_to_notify(services).is_none());
        assert_eq!(current.get(), efi::TPL_HIGH_LEVEL);
    }

    #[test]
    fn each_identifier_is_remembered_alone() {
        let (services, _) = services(efi::TPL_APPLICATION);
        for id in [0, 63, 64, 255] {
            let at_notify = AtNotify::default();
            at_notify.add(id, services);
            let found: alloc::vec::Vec<u8> = (0..=u8::MAX).filter(|id| at_notify.has(*id)).collect();
            assert_eq!(found, [id]);
        }
    }
}
