//! The task priority level in memory.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use patina::component::service::IntoService;
use patina::component::service::uefi_services::tpl::{PreviousTpl, Tpl, TplServices};
use patina::standard::efi;

/// A level, and the notifications that wait until it is below theirs.
pub struct HostTpl {
    level: Cell<usize>,
    waiting: RefCell<Vec<Waiting>>,
}

/// A notification that waits, with its level.
type Waiting = (usize, Box<dyn FnOnce()>);

impl Default for HostTpl {
    fn default() -> Self {
        Self {
            level: Cell::new(efi::TPL_APPLICATION),
            waiting: RefCell::default(),
        }
    }
}

fn number(tpl: Tpl) -> usize {
    match tpl {
        Tpl::Application => efi::TPL_APPLICATION,
        Tpl::Callback => efi::TPL_CALLBACK,
        Tpl::Notify => efi::TPL_NOTIFY,
        Tpl::HighLevel => efi::TPL_HIGH_LEVEL,
    }
}

impl HostTpl {
    /// Runs a notification at its level: at once, or as soon as the level is below that.
    pub fn notify(&self, tpl: Tpl, code: Box<dyn FnOnce()>) {
        self.waiting.borrow_mut().push((number(tpl), code));
        self.run_waiting();
    }

    fn run_waiting(&self) {
        loop {
            let level = self.level.get();
            let next = {
                let mut waiting = self.waiting.borrow_mut();
                // The one with the highest level first; among equals, the oldest.
                let above = waiting
                    .iter()
                    .enumerate()
                    .rev()
                    .filter(|(_, (at, _))| *at > level);
                let next = above.max_by_key(|(_, (at, _))| *at).map(|(index, _)| index);
                next.map(|index| waiting.remove(index))
            };
            let Some((at, code)) = next else {
                return;
            };
            self.level.set(at);
            code();
            self.level.set(level);
        }
    }
}

impl TplServices for HostTpl {
    fn raise_tpl(&self, tpl: Tpl) -> PreviousTpl {
        let level = number(tpl);
        assert!(
            level >= self.level.get(),
            "raised from TPL {} to {level}",
            self.level.get()
        );
        PreviousTpl::from_raw(self.level.replace(level))
    }

    fn restore_tpl(&self, previous: PreviousTpl) {
        let level = previous.as_raw();
        assert!(
            level <= self.level.get(),
            "restored from TPL {} to {level}",
            self.level.get()
        );
        self.level.set(level);
        self.run_waiting();
    }
}

/// Registers a level that an observer also uses.
#[derive(IntoService)]
#[service(dyn TplServices)]
pub struct SharedTpl(pub Rc<HostTpl>);

impl TplServices for SharedTpl {
    fn raise_tpl(&self, tpl: Tpl) -> PreviousTpl {
        self.0.raise_tpl(tpl)
    }

    fn restore_tpl(&self, previous: PreviousTpl) {
        self.0.restore_tpl(previous);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_waits_until_the_level_is_below_its_own() {
        let tpl = HostTpl::default();
        let order = Rc::new(RefCell::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Rc::clone(&order);
            Box::new(move || order.borrow_mut().push(what))
        };
        tpl.notify(Tpl::Callback, note("at once"));
        let raised = tpl.raise_tpl(Tpl::Notify);
        tpl.notify(Tpl::Callback, note("callback"));
        tpl.notify(Tpl::Notify, note("notify"));
        tpl.notify(Tpl::HighLevel, note("high"));
        tpl.restore_tpl(raised);
        assert_eq!(*order.borrow(), ["at once", "high", "notify", "callback"]);
        assert_eq!(tpl.level.get(), efi::TPL_APPLICATION);
    }
}
