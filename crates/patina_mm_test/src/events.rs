//! Events and their groups in memory, for hosts that have no firmware.

use crate::tpl::HostTpl;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use patina::BinaryGuid;
use patina::component::Storage;
use patina::component::service::IntoService;
use patina::component::service::uefi_services::event::{
    Event, EventError, EventNotifyCallback, EventServices, Tpl,
};

/// Events by group. A callback runs at once, without regard to its TPL, or at its TPL: see
/// [`Self::at`].
#[derive(Default)]
pub struct HostEvents {
    numbers: Cell<usize>,
    events: Rc<RefCell<Vec<Registered>>>,
    tpl: Option<Rc<HostTpl>>,
}

struct Registered {
    event: Event,
    group: Option<BinaryGuid>,
    tpl: Tpl,
    /// `None` while it runs.
    callback: Option<EventNotifyCallback>,
}

impl HostEvents {
    /// Events whose callbacks wait until the level is below theirs.
    #[must_use]
    pub fn at(tpl: Rc<HostTpl>) -> Self {
        Self {
            tpl: Some(tpl),
            ..Self::default()
        }
    }

    fn create(
        &self,
        group: Option<BinaryGuid>,
        tpl: Tpl,
        callback: EventNotifyCallback,
    ) -> Result<Event, EventError> {
        self.numbers.set(self.numbers.get() + 1);
        let handle = core::ptr::without_provenance_mut(self.numbers.get());
        let event = Event::from_raw(handle).ok_or(EventError::Internal)?;
        self.events.borrow_mut().push(Registered {
            event,
            group,
            tpl,
            callback: Some(callback),
        });
        Ok(event)
    }

    fn call(&self, event: Event) -> Result<(), EventError> {
        let tpl = with(&self.events, event, |registered| registered.tpl);
        let tpl = tpl.ok_or(EventError::InvalidParameter)?;
        let events = Rc::clone(&self.events);
        match &self.tpl {
            Some(level) => level.notify(tpl, Box::new(move || call_back(&events, event))),
            None => call_back(&events, event),
        }
        Ok(())
    }
}

/// Nothing is borrowed during the callback: it may create and close events.
fn call_back(events: &RefCell<Vec<Registered>>, event: Event) {
    let taken = with(events, event, |registered| registered.callback.take()).flatten();
    if let Some(mut callback) = taken {
        callback(event);
        with(events, event, |registered| registered.callback = Some(callback));
    }
}

fn with<T>(
    events: &RefCell<Vec<Registered>>,
    event: Event,
    look: impl FnOnce(&mut Registered) -> T,
) -> Option<T> {
    let mut events = events.borrow_mut();
    events
        .iter_mut()
        .find(|registered| registered.event == event)
        .map(look)
}

impl EventServices for HostEvents {
    fn create_event(&self, tpl: Tpl, callback: EventNotifyCallback) -> Result<Event, EventError> {
        self.create(None, tpl, callback)
    }

    fn create_event_for_group(
        &self,
        group: BinaryGuid,
        tpl: Tpl,
        callback: EventNotifyCallback,
    ) -> Result<Event, EventError> {
        self.create(Some(group), tpl, callback)
    }

    fn create_wait_event(&self, tpl: Tpl, callback: EventNotifyCallback) -> Result<Event, EventError> {
        self.create(None, tpl, callback)
    }

    fn signal_event(&self, event: Event) -> Result<(), EventError> {
        self.call(event)
    }

    fn signal_group(&self, group: BinaryGuid) -> Result<(), EventError> {
        let members: Vec<_> = self
            .events
            .borrow()
            .iter()
            .filter(|registered| registered.group == Some(group))
            .map(|registered| registered.event)
            .collect();
        // An event that another member closed meanwhile is not called.
        for event in members {
            let _ = self.call(event);
        }
        Ok(())
    }

    fn check_event(&self, _: Event) -> Result<bool, EventError> {
        // No event can wait here: it is called when it is signalled.
        Err(EventError::InvalidParameter)
    }

    fn close_event(&self, event: Event) -> Result<(), EventError> {
        let mut events = self.events.borrow_mut();
        let index = events
            .iter()
            .position(|registered| registered.event == event)
            .ok_or(EventError::InvalidParameter)?;
        events.swap_remove(index);
        Ok(())
    }
}

/// Registers events that an observer also uses.
pub struct SharedEvents(pub &'static dyn EventServices);

impl IntoService for SharedEvents {
    fn register(self, storage: &mut Storage) {
        Self::register_service::<dyn EventServices>(storage, Box::leak(Box::new(self.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina::component::service::uefi_services::tpl::{self, TplServices as _};

    #[test]
    fn a_callback_waits_until_the_level_is_below_its_own() {
        const GROUP: BinaryGuid = BinaryGuid::from_string("7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b");
        let tpl = Rc::new(HostTpl::default());
        let events = HostEvents::at(Rc::clone(&tpl));
        let calls = Rc::new(Cell::new(0));
        let seen = Rc::clone(&calls);
        let count = Box::new(move |_: Event| seen.set(seen.get() + 1));
        let event = events
            .create_event_for_group(GROUP, Tpl::Callback, count)
            .unwrap();
        events.signal_group(GROUP).unwrap();
        assert_eq!(calls.get(), 1);

        let raised = tpl.raise_tpl(tpl::Tpl::Notify);
        events.signal_event(event).unwrap();
        assert_eq!(calls.get(), 1);
        tpl.restore_tpl(raised);
        assert_eq!(calls.get(), 2);

        events.close_event(event).unwrap();
        assert_eq!(events.signal_event(event), Err(EventError::InvalidParameter));
    }

    #[test]
    fn an_event_of_no_group_is_called_when_it_is_signalled() {
        let events = HostEvents::default();
        let calls = Rc::new(Cell::new(0));
        let count = || {
            let seen = Rc::clone(&calls);
            Box::new(move |_: Event| seen.set(seen.get() + 1))
        };
        let plain = events.create_event(Tpl::Callback, count()).unwrap();
        let waited = events.create_wait_event(Tpl::Callback, count()).unwrap();
        events.signal_event(plain).unwrap();
        events.signal_event(waited).unwrap();
        assert_eq!(calls.get(), 2);
        // No event can wait here.
        assert_eq!(events.check_event(waited), Err(EventError::InvalidParameter));
        events.close_event(plain).unwrap();
        assert_eq!(events.close_event(plain), Err(EventError::InvalidParameter));
    }
}
