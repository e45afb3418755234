//! Dispatches Patina components, without a Patina DXE core.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use patina::component::{Component, IntoComponent, Storage};
use patina::error::EfiError;

/// Components, and the storage that their parameters come from.
#[derive(Default)]
pub struct Dispatcher {
    storage: Storage,
    waiting: Vec<Box<dyn Component>>,
    outcome: Dispatched,
}

/// What happened to the components.
#[derive(Debug, Default)]
pub struct Dispatched {
    /// Components that ran and succeeded.
    pub succeeded: Vec<Cow<'static, str>>,
    /// Components that ran and returned an error.
    pub failed: Vec<(Cow<'static, str>, EfiError)>,
    /// Components that never ran, and the parameter that was missing at the last attempt.
    pub not_run: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

impl Dispatcher {
    /// Makes a dispatcher without components.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The storage that holds configuration and services.
    pub fn storage(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// Adds a component. It is dispatched after those that were added before it, as soon as its
    /// parameters exist.
    pub fn add<I>(&mut self, component: impl IntoComponent<I>) {
        let mut component = component.into_component();
        if component.initialize(&mut self.storage) {
            self.waiting.push(component);
        } else {
            self.outcome.not_run.push(reason(component.as_ref()));
        }
    }

    /// Runs components until none can run any more.
    ///
    /// When nothing makes progress, this locks every configuration, and then components can run
    /// that read a configuration which no other component wrote: the order of a Patina DXE core.
    #[must_use = "the outcome tells which components failed or never ran"]
    pub fn dispatch(mut self) -> Dispatched {
        self.run()
    }

    /// Like [`Self::dispatch`], but more components may be added afterwards. Those that did not run
    /// are dropped.
    #[must_use = "the outcome tells which components failed or never ran"]
    pub fn run(&mut self) -> Dispatched {
        while self.pass() {}
        self.storage.lock_configs();
        while self.pass() {}
        let mut outcome = core::mem::take(&mut self.outcome);
        let never_ran = self.waiting.drain(..).map(|component| reason(component.as_ref()));
        outcome.not_run.extend(never_ran);
        outcome
    }

    /// Offers every waiting component its parameters once; `true` if at least one ran.
    fn pass(&mut self) -> bool {
        let before = self.waiting.len();
        for mut component in core::mem::take(&mut self.waiting) {
            let name = component.metadata().name();
            match component.run(&mut self.storage) {
                Ok(true) => self.outcome.succeeded.push(name),
                Ok(false) => self.waiting.push(component),
                Err(error) => self.outcome.failed.push((name, error)),
            }
        }
        self.waiting.len() < before
    }
}

fn reason(component: &dyn Component) -> (Cow<'static, str>, Cow<'static, str>) {
    let metadata = component.metadata();
    (metadata.name(), metadata.error_message().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use core::cell::RefCell;
    use patina::component::component;
    use patina::component::params::{Commands, Config, ConfigMut};
    use patina::component::service::{IntoService, Service};
    use patina::error::Result;
    use std::vec;

    type Trace = Rc<RefCell<Vec<&'static str>>>;

    trait Response {
        fn answer(&self) -> u32;
    }

    #[derive(IntoService)]
    #[service(dyn Response)]
    struct FortyTwo;

    impl Response for FortyTwo {
        fn answer(&self) -> u32 {
            42
        }
    }

    struct Producer(Trace);

    #[component]
    impl Producer {
        fn entry_point(self, mut commands: Commands) -> Result<()> {
            self.0.borrow_mut().push("producer");
            commands.add_service(FortyTwo);
            Ok(())
        }
    }

    struct Consumer(Trace);

    #[component]
    impl Consumer {
        fn entry_point(self, response: Service<dyn Response>) -> Result<()> {
            assert_eq!(response.answer(), 42);
            self.0.borrow_mut().push("consumer");
            Err(EfiError::Aborted)
        }
    }

    struct Writer(Trace);

    #[component]
    impl Writer {
        fn entry_point(self, mut number: ConfigMut<u32>) -> Result<()> {
            self.0.borrow_mut().push("writer");
            *number = 7;
            Ok(())
        }
    }

    struct Reader(Trace);

    #[component]
    impl Reader {
        fn entry_point(self, number: Config<u32>) -> Result<()> {
            assert_eq!(*number, 7);
            self.0.borrow_mut().push("reader");
            Ok(())
        }
    }

    #[test]
    fn component_waits_for_its_service_and_its_error_is_kept() {
        let trace = Trace::default();
        let mut dispatcher = Dispatcher::new();
        dispatcher.add(Consumer(trace.clone()));
        dispatcher.add(Producer(trace.clone()));
        let outcome = dispatcher.dispatch();
        assert_eq!(*trace.borrow(), ["producer", "consumer"]);
        assert_eq!(outcome.succeeded.len(), 1);
        assert_eq!(outcome.failed.len(), 1);
        assert!(outcome.failed[0].0.ends_with("Consumer"));
        assert_eq!(outcome.failed[0].1, EfiError::Aborted);
        assert!(outcome.not_run.is_empty());
    }

    #[test]
    fn component_without_its_service_is_named_with_the_missing_service() {
        let trace = Trace::default();
        let mut dispatcher = Dispatcher::new();
        dispatcher.add(Consumer(trace.clone()));
        let outcome = dispatcher.dispatch();
        assert_eq!(*trace.borrow(), [""; 0]);
        assert_eq!(outcome.not_run.len(), 1);
        let (name, missing) = &outcome.not_run[0];
        assert!(name.ends_with("Consumer"), "{name}");
        assert!(missing.contains("Response"), "{missing}");
    }

    #[test]
    fn configuration_is_read_after_it_was_written_and_locked() {
        let trace = Trace::default();
        let mut dispatcher = Dispatcher::new();
        dispatcher.storage().add_config(1u32);
        dispatcher.add(Reader(trace.clone()));
        dispatcher.add(Writer(trace.clone()));
        let outcome = dispatcher.dispatch();
        assert_eq!(*trace.borrow(), vec!["writer", "reader"]);
        assert_eq!(outcome.succeeded.len(), 2);
    }
}
