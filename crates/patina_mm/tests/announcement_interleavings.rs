//! The hand-over of announced moves in every interleaving that loom can make.
//!
//! The file under test is compiled a second time here, against loom's atomics. Loom runs each model
//! once per interleaving, and reports two threads in one `UnsafeCell`. Threads interleave in more ways than interrupts do, so this covers notifications at any TPL.
#![allow(clippy::unwrap_used, reason = "this is a test: what is not there fails it")]

/// What `slot.rs` takes from its parent module.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
}
#[path = "../src/component/communicator/announced_move/slot.rs"]
mod slot;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use slot::{Lock, Slot};

/// An announcement of two words, which are equal unless it was read while it was written.
const fn announcement(number: u64) -> [u64; 2] {
    [number; 2]
}

/// Announcements, and the list of what was applied, in the order in which that happened.
struct Model {
    slot: Slot<2>,
    applied: UnsafeCell<Vec<u64>>,
}

// SAFETY: only the thread that has the lock reaches `applied`, and the last thread once all others
// are joined. Loom checks that no two threads get there at once.
unsafe impl Sync for Model {}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slot: Slot::new(),
            applied: UnsafeCell::new(Vec::new()),
        })
    }

    fn put(&self, number: u64) {
        assert!(self.slot.put(announcement(number)));
    }

    fn apply(&self) -> bool {
        self.slot.lock().is_some_and(|lock| self.apply_in(&lock))
    }

    fn apply_in(&self, lock: &Lock<'_, 2>) -> bool {
        lock.apply(|[number, same]| {
            assert_eq!(number, same, "it was read while it was written");
            // SAFETY: see the type; the pointer does not leave the closure.
            self.applied
                .with_mut(|applied| unsafe { (*applied).push(number) });
            true
        })
    }

    fn refuse(&self) -> bool {
        self.slot.lock().is_some_and(|lock| lock.apply(|_| false))
    }

    /// All that was applied. Only for the thread that has the lock, and for the last thread.
    fn applied(&self) -> Vec<u64> {
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
fn two_announcers_lose_no_place() {
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
        assert_eq!(model.slot.taken(), 0);
    });
}

#[test]
fn announcements_that_were_not_applied_take_one_place() {
    loom::model(|| {
        let model = Model::new();
        let announcing = run(&model, |model| model.put(1));
        model.put(2);
        announcing.join().unwrap();
        assert_eq!(model.slot.taken(), 1);
    });
}

#[test]
fn refused_announcement_gives_its_place_back_when_a_newer_one_comes() {
    loom::model(|| {
        let model = Model::new();
        model.put(1);
        let refusing = run(&model, |model| {
            model.refuse();
        });
        model.put(2);
        refusing.join().unwrap();
        assert_eq!(model.slot.taken(), 1);
        assert!(model.apply());
        assert_eq!((model.applied(), model.slot.taken()), (vec![2], 0));
    });
}
