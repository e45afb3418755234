//! The hand-over of comm-buffer updates under every interleaving that loom can make of it.
//!
//! The file under test is compiled a second time here, against loom's atomics. Loom runs each model once per
//! interleaving, reports what was leaked, and reports two threads in one `UnsafeCell`. Threads interleave in more ways
//! than interrupts do, so what holds here holds for notifications at any TPL.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "this is a test: what is not there fails it"
)]

extern crate alloc;

/// What `latest.rs` takes from its parent module.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
}
#[path = "../src/component/communicator/announced_move/latest.rs"]
mod latest;

use latest::{Latest, Turn};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// An announcement. Loom reports it where it is never dropped.
struct Update {
    number: u32,
    _tracked: Arc<()>,
}

fn update(number: u32) -> Update {
    Update {
        number,
        _tracked: Arc::new(()),
    }
}

/// Announcements, and the list of what was applied, in the order in which that happened.
struct Model {
    latest: Latest<Update>,
    applied: UnsafeCell<Vec<u32>>,
}

// SAFETY: `applied` is reached only by the thread that has the turn, and once all threads are joined. That no two threads get there
// at once is what loom checks.
unsafe impl Sync for Model {}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            latest: Latest::new().unwrap(),
            applied: UnsafeCell::new(Vec::new()),
        })
    }

    fn put(&self, number: u32) {
        assert!(self.latest.put(update(number)).is_ok());
    }

    fn apply(&self) -> bool {
        self.latest.turn().is_some_and(|turn| self.apply_in(&turn))
    }

    fn apply_in(&self, turn: &Turn<'_, Update>) -> bool {
        turn.apply(|update| {
            // SAFETY: see the type; the pointer does not leave the closure.
            self.applied
                .with_mut(|applied| unsafe { (*applied).push(update.number) });
            Ok(())
        })
    }

    fn refuse(&self) -> bool {
        self.latest.turn().is_some_and(|turn| turn.apply(Err))
    }

    /// All that was applied. Only for the thread that has the turn, and for the last thread there is.
    fn applied(&self) -> Vec<u32> {
        // SAFETY: see the type; the pointer does not leave the closure.
        self.applied.with(|applied| unsafe { (*applied).clone() })
    }
}

fn run(model: &Arc<Model>, code: impl FnOnce(&Model) + 'static) -> thread::JoinHandle<()> {
    let model = Arc::clone(model);
    thread::spawn(move || code(&model))
}

#[test]
fn the_last_update_is_applied_last_and_none_twice() {
    loom::model(|| {
        let model = Model::new();
        let announcing = run(&model, |model| {
            model.put(1);
            model.put(2);
        });
        let calling = run(&model, |model| {
            model.apply();
        });
        model.apply();
        announcing.join().unwrap();
        calling.join().unwrap();
        assert!(model.apply());
        assert!(
            [vec![2], vec![1, 2]].contains(&model.applied()),
            "{:?}",
            model.applied()
        );
    });
}

#[test]
fn who_is_told_that_all_is_applied_can_rely_on_it() {
    loom::model(|| {
        let model = Model::new();
        let calling = run(&model, |model| {
            model.apply();
        });
        model.put(1);
        let settled = model.apply();
        calling.join().unwrap();
        if settled {
            assert_eq!(model.applied(), [1]);
        } else {
            assert!(model.apply());
            assert_eq!(model.applied(), [1]);
        }
    });
}

#[test]
fn an_update_that_could_not_be_applied_stays_and_never_overtakes_a_newer_one() {
    loom::model(|| {
        let model = Model::new();
        model.put(1);
        let refusing = run(&model, |model| {
            model.refuse();
        });
        let announcing = run(&model, |model| {
            model.put(2);
            model.apply();
        });
        refusing.join().unwrap();
        announcing.join().unwrap();
        assert!(model.apply());
        assert!(
            [vec![2], vec![1, 2]].contains(&model.applied()),
            "{:?}",
            model.applied()
        );
    });
}

#[test]
fn nothing_is_applied_during_another_turn() {
    loom::model(|| {
        let model = Model::new();
        model.put(1);
        let announcing = run(&model, |model| {
            model.put(2);
            model.apply();
        });
        if let Some(turn) = model.latest.turn() {
            assert!(model.apply_in(&turn));
            let applied = model.applied();
            thread::yield_now();
            assert_eq!(model.applied(), applied);
        }
        announcing.join().unwrap();
        assert!(model.apply());
        assert_eq!(model.applied().last(), Some(&2));
    });
}

#[test]
fn two_announcers_leak_nothing() {
    loom::model(|| {
        let model = Model::new();
        let first = run(&model, |model| model.put(1));
        let second = run(&model, |model| {
            model.put(2);
            model.apply();
        });
        first.join().unwrap();
        second.join().unwrap();
        assert!(model.apply());
        let mut applied = model.applied();
        let last = applied.last().copied();
        applied.sort_unstable();
        applied.dedup();
        assert!(last.is_some() && applied.len() == model.applied().len());
    });
}

#[test]
fn unapplied_update_is_dropped_with_its_slot() {
    loom::model(|| {
        let model = Model::new();
        let announcing = run(&model, |model| model.put(1));
        model.put(2);
        announcing.join().unwrap();
    });
}
