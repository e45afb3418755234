//! What notifications share with the code that they interrupt, in every order.
//!
//! There is one processor: a notification runs to its end in the middle of other code, and may be
//! interrupted itself by one of a higher TPL. The files under test are compiled a second time here,
//! against atomics that a notification may interrupt before each access, and in the middle of a
//! compare-and-swap loop. Each test runs once for each choice of up to two such places.
#![allow(clippy::unwrap_used, reason = "this is a test: what is not there fails it")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What the files take from their parent modules.
mod sync {
    pub(crate) use std::sync::atomic::Ordering;

    /// A number whose accesses may be interrupted.
    macro_rules! interruptible {
        ($name:ident: $number:ty) => {
            #[derive(Default)]
            #[allow(dead_code, reason = "no file uses all of them")]
            pub(crate) struct $name(std::sync::atomic::$name);

            #[allow(dead_code, reason = "no file uses all of them")]
            impl $name {
                pub(crate) const fn new(value: $number) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $number {
                    super::interrupt();
                    self.0.load(order)
                }

                pub(crate) fn store(&self, value: $number, order: Ordering) {
                    super::interrupt();
                    self.0.store(value, order);
                }

                pub(crate) fn swap(&self, value: $number, order: Ordering) -> $number {
                    super::interrupt();
                    self.0.swap(value, order)
                }

                pub(crate) fn compare_exchange(
                    &self,
                    current: $number,
                    new: $number,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$number, $number> {
                    super::interrupt();
                    self.0.compare_exchange(current, new, success, failure)
                }

                /// As `core` has it: a loop, which may be interrupted between its two accesses.
                pub(crate) fn fetch_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    update: impl Fn($number) -> Option<$number>,
                ) -> Result<$number, $number> {
                    let mut before = self.load(fetch);
                    loop {
                        let Some(new) = update(before) else {
                            return Err(before);
                        };
                        match self.compare_exchange(before, new, set, fetch) {
                            Ok(before) => return Ok(before),
                            Err(found) => before = found,
                        }
                    }
                }
            }
        };
    }
    interruptible!(AtomicU8: u8);
    interruptible!(AtomicUsize: usize);
}

#[path = "../src/component/protocols/driver_lock.rs"]
mod driver_lock;
#[path = "../src/component/communicator/after_calls/run.rs"]
mod run;
#[path = "../src/component/events/unsent.rs"]
mod unsent;

use driver_lock::DriverLock;
use run::Run;
use unsent::Unsent;

/// A notification.
type Code = Rc<dyn Fn()>;

thread_local! {
    /// The accesses so far.
    static ACCESSES: Cell<usize> = const { Cell::new(0) };
    /// Before which of them notifications come.
    static PLACES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    static NOTIFICATION: RefCell<Option<Code>> = const { RefCell::new(None) };
}

/// Runs the notification if it is due.
fn interrupt() {
    let now = ACCESSES.replace(ACCESSES.get() + 1);
    let due = PLACES.with_borrow(|places| places.iter().filter(|place| **place == now).count());
    for _ in 0..due {
        let code = NOTIFICATION.with_borrow(Clone::clone);
        code.unwrap()();
    }
}

/// Runs code once for each choice of up to two places before which a notification comes, and once
/// without any. Returns how many that were.
fn in_every_order(model: impl Fn() -> (Code, Box<dyn FnOnce()>, Box<dyn FnOnce(usize)>)) -> usize {
    let run = |places: &[usize]| {
        let (notification, code, check) = model();
        let count = Rc::new(Cell::new(0));
        let seen = Rc::clone(&count);
        let counted: Code = Rc::new(move || {
            seen.set(seen.get() + 1);
            notification();
        });
        ACCESSES.set(0);
        PLACES.set(places.to_vec());
        NOTIFICATION.set(Some(counted));
        code();
        let accesses = ACCESSES.get();
        PLACES.take();
        check(count.get());
        accesses
    };
    let mut runs = 1;
    for first in 0..run(&[]) {
        let accesses = run(&[first]);
        runs += 1;
        // The second may come in the middle of the first, or at the same place.
        for second in first..accesses {
            run(&[first, second]);
            runs += 1;
        }
    }
    runs
}

#[test]
fn a_call_that_was_rejected_is_followed_by_a_run_and_none_is_nested() {
    /// What happened, in order.
    #[derive(Debug, PartialEq)]
    enum Step {
        Rejected,
        Begins,
        Ends,
    }
    let runs = in_every_order(|| {
        let state = Rc::new((Run::default(), RefCell::new(Vec::new())));
        // Between its two steps a run may be interrupted like anything else.
        let run_all = |state: &(Run, RefCell<Vec<Step>>)| {
            state.1.borrow_mut().push(Step::Begins);
            interrupt();
            state.1.borrow_mut().push(Step::Ends);
        };
        let inner = Rc::clone(&state);
        // A call in whose middle another one was rejected ends.
        let notification: Code = Rc::new(move || {
            inner.1.borrow_mut().push(Step::Rejected);
            inner.0.start(true, || run_all(&inner));
        });
        let outer = Rc::clone(&state);
        let code = Box::new(move || outer.0.start(false, || run_all(&outer)));
        let check = Box::new(move |notifications: usize| {
            let steps = state.1.borrow();
            let rejected = steps.iter().filter(|step| **step == Step::Rejected);
            assert_eq!(rejected.count(), notifications);
            let last_rejected = steps.iter().rposition(|step| *step == Step::Rejected);
            let last_begin = steps.iter().rposition(|step| *step == Step::Begins);
            assert!(last_begin >= last_rejected, "{steps:?}");
            let of_runs = steps.iter().filter(|step| **step != Step::Rejected);
            let pairs = of_runs.collect::<Vec<_>>();
            for pair in pairs.chunks(2) {
                assert_eq!(*pair, [&Step::Begins, &Step::Ends], "{steps:?}");
            }
            drop(steps);
            // Not stuck: the next call that ends runs them.
            let before = state.1.borrow().len();
            state.0.start(false, || run_all(&state));
            assert_eq!(state.1.borrow().len(), before + 2);
        });
        (notification, code, check)
    });
    assert!(runs > 10, "{runs}");
}

#[test]
fn each_event_is_sent_once_and_none_is_lost() {
    let runs = in_every_order(|| {
        let state = Rc::new((Unsent::default(), Cell::new(0_usize)));
        let send_all = |state: &(Unsent, Cell<usize>)| {
            while state.0.take() {
                interrupt();
                state.1.set(state.1.get() + 1);
            }
        };
        let inner = Rc::clone(&state);
        let notification: Code = Rc::new(move || {
            inner.0.add();
            send_all(&inner);
        });
        let outer = Rc::clone(&state);
        let code = Box::new(move || {
            outer.0.add();
            outer.0.add();
            send_all(&outer);
        });
        let check = Box::new(move |notifications: usize| {
            assert_eq!(state.1.get(), 2 + notifications);
            assert!(!state.0.is_waiting());
        });
        (notification, code, check)
    });
    assert!(runs > 50, "{runs}");
}

#[test]
fn one_call_at_a_time_is_in_a_driver() {
    /// No interface can be at this address. The file's own tests, which run at the same time, use 1 and 3.
    const DRIVER: usize = 5;
    let runs = in_every_order(|| {
        let state = Rc::new((Cell::new(0_usize), Cell::new(0_usize)));
        // A call: how many are in the driver, and how many were.
        let call = |(inside, calls): &(Cell<usize>, Cell<usize>)| {
            let Some(_lock) = DriverLock::take(DRIVER) else {
                return;
            };
            assert_eq!(inside.replace(1), 0, "two calls are in the driver");
            interrupt();
            inside.set(0);
            calls.set(calls.get() + 1);
        };
        let inner = Rc::clone(&state);
        let notification: Code = Rc::new(move || call(&inner));
        let outer = Rc::clone(&state);
        let code = Box::new(move || call(&outer));
        let check = Box::new(move |_| {
            let calls = state.1.get();
            assert!(calls > 0, "no call was made");
            call(&state);
            assert_eq!(state.1.get(), calls + 1, "the driver is still locked");
        });
        (notification, code, check)
    });
    assert!(runs > 50, "{runs}");
}

#[test]
fn an_event_that_is_sent_once_is_sent_once_however_often_it_comes() {
    let unsent = Unsent::default();
    unsent.add_once();
    unsent.add_once();
    assert!(unsent.is_waiting());
    assert!(unsent.take());
    assert!(!unsent.take());
}
