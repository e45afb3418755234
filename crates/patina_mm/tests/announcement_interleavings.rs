//! The hand-over of announced moves in every interleaving that loom can make.
//!
//! The file under test is compiled a second time here, against loom's atomics. Loom runs each model
//! once per interleaving, reports what was leaked, and reports two threads in one `UnsafeCell`.
//! Threads interleave in more ways than interrupts do, so this covers notifications at any TPL.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "this is a test: what is not there fails it"
)]

extern crate alloc;

/// What `slot.rs` takes from its parent module.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
}
#[path = "../src/component/communicator/announced_move/slot.rs"]
mod slot;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use slot::{Lock, Slot};

/// An announcement. Loom reports one that is never dropped.
struct Announcement {
    number: u32,
    _tracked: Arc<()>,
}

fn announcement(number: u32) -> Announcement {
    Announcement {
        number,
        _tracked: Arc::new(()),
    }
}

/// Announcements, and the list of what was applied, in the order in which that happened.
struct Model {
    slot: Slot<Announcement>,
    applied: UnsafeCell<Vec<u32>>,
}

// SAFETY: only the thread that has the lock reaches `applied`, and the last thread once all others
// are joined. Loom checks that no two threads get there at once.
unsafe impl Sync for Model {}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slot: Slot::new().unwrap(),
            applied: UnsafeCell::new(Vec::new()),
        })
    }

    fn put(&self, number: u32) {
        assert!(self.slot.put(announcement(number)).is_ok());
    }

    fn apply(&self) -> bool {
        self.slot.lock().is_some_and(|lock| self.apply_in(&lock))
    }

    fn apply_in(&self, lock: &Lock<'_, Announcement>) -> bool {
        lock.apply(|announcement| {
            // SAFETY: see the type; the pointer does not leave the closure.
            self.applied
                .with_mut(|applied| unsafe { (*applied).push(announcement.number) });
            Ok(())
        })
    }

    fn refuse(&self) -> bool {
        self.slot.lock().is_some_and(|lock| lock.apply(Err))
    }

    /// All that was applied. Only for the thread that has the lock, and for the last thread.
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
fn last_announcement_is_applied_last_and_none_twice() {
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
fn result_that_all_is_applied_is_true() {
    loom::model(|| {
        let model = Model::new();
        let calling = run(&model, |model| {
            model.apply();
        });
        model.put(1);
        let all_applied = model.apply();
        calling.join().unwrap();
        if all_applied {
            assert_eq!(model.applied(), [1]);
        } else {
            assert!(model.apply());
            assert_eq!(model.applied(), [1]);
        }
    });
}

#[test]
fn announcement_that_could_not_be_applied_stays_and_never_overtakes_a_newer_one() {
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
fn nothing_is_applied_while_other_code_has_the_lock() {
    loom::model(|| {
        let model = Model::new();
        model.put(1);
        let announcing = run(&model, |model| {
            model.put(2);
            model.apply();
        });
        if let Some(lock) = model.slot.lock() {
            assert!(model.apply_in(&lock));
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
fn announcement_that_was_not_applied_is_dropped_with_its_slot() {
    loom::model(|| {
        let model = Model::new();
        let announcing = run(&model, |model| model.put(1));
        model.put(2);
        announcing.join().unwrap();
    });
}
