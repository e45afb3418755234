//! The level at which calls through a shared comm buffer run.

use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::{PreviousTpl, Tpl, TplServices};
use patina::standard::efi;

/// A raised TPL; goes back when it is dropped.
#[must_use = "the TPL goes back when this is dropped"]
pub(crate) struct Raised {
    services: Service<dyn TplServices>,
    previous: PreviousTpl,
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.services.restore_tpl(self.previous);
    }
}

/// Raises the TPL to `TPL_NOTIFY`. `None` if it is higher already: lowering it through `RaiseTPL` is fatal, and the current
/// TPL can only be read by raising to `TPL_HIGH_LEVEL`.
pub(crate) fn raise_to_notify(services: Service<dyn TplServices>) -> Option<Raised> {
    let current = services.raise_tpl(Tpl::HighLevel);
    services.restore_tpl(current);
    (current.as_raw() <= efi::TPL_NOTIFY).then(|| Raised {
        services,
        previous: services.raise_tpl(Tpl::Notify),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use core::cell::Cell;
    use patina::component::service::uefi_services::tpl::MockTplServices;

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
}
