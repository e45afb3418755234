//! Event groups in memory, for hosts that have no firmware.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use patina::BinaryGuid;
use patina::component::Storage;
use patina::component::service::IntoService;
use patina::component::service::uefi_services::event::{
    Event, EventError, EventNotifyCallback, EventServices, Tpl,
};

/// Events by group. A callback runs at once, whatever its TPL.
#[derive(Default)]
pub struct HostEvents {
    numbers: Cell<usize>,
    events: RefCell<Vec<Registered>>,
}

struct Registered {
    event: Event,
    group: Option<BinaryGuid>,
    /// Absent while it runs.
    callback: Option<EventNotifyCallback>,
}

impl HostEvents {
    fn create(&self, group: Option<BinaryGuid>, callback: EventNotifyCallback) -> Result<Event, EventError> {
        self.numbers.set(self.numbers.get() + 1);
        let handle = core::ptr::without_provenance_mut(self.numbers.get());
        let event = Event::from_raw(handle).ok_or(EventError::Internal)?;
        self.events.borrow_mut().push(Registered {
            event,
            group,
            callback: Some(callback),
        });
        Ok(event)
    }

    /// Calls back with nothing borrowed: the callee may create and close events.
    fn call(&self, event: Event) {
        let taken = self
            .with(event, |registered| registered.callback.take())
            .flatten();
        if let Some(mut callback) = taken {
            callback(event);
            self.with(event, |registered| registered.callback = Some(callback));
        }
    }

    fn with<T>(&self, event: Event, look: impl FnOnce(&mut Registered) -> T) -> Option<T> {
        let mut events = self.events.borrow_mut();
        events
            .iter_mut()
            .find(|registered| registered.event == event)
            .map(look)
    }
}

impl EventServices for HostEvents {
    fn create_event(&self, _: Tpl, callback: EventNotifyCallback) -> Result<Event, EventError> {
        self.create(None, callback)
    }

    fn create_event_for_group(
        &self,
        group: BinaryGuid,
        _: Tpl,
        callback: EventNotifyCallback,
    ) -> Result<Event, EventError> {
        self.create(Some(group), callback)
    }

    fn create_wait_event(&self, _: Tpl, callback: EventNotifyCallback) -> Result<Event, EventError> {
        self.create(None, callback)
    }

    fn signal_event(&self, event: Event) -> Result<(), EventError> {
        self.with(event, |_| ()).ok_or(EventError::InvalidParameter)?;
        self.call(event);
        Ok(())
    }

    fn signal_group(&self, group: BinaryGuid) -> Result<(), EventError> {
        let members: Vec<_> = self
            .events
            .borrow()
            .iter()
            .filter(|registered| registered.group == Some(group))
            .map(|registered| registered.event)
            .collect();
        members.into_iter().for_each(|event| self.call(event));
        Ok(())
    }

    fn check_event(&self, _: Event) -> Result<bool, EventError> {
        // Nothing waits here: whatever is signalled is called at once.
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

/// Registers events that an observer has as well.
pub struct SharedEvents(pub &'static dyn EventServices);

impl IntoService for SharedEvents {
    fn register(self, storage: &mut Storage) {
        Self::register_service::<dyn EventServices>(storage, Box::leak(Box::new(self.0)));
    }
}
