//! Secure monitor calls under every interleaving that loom can make of them.
//!
//! The file under test is compiled a second time here, against loom's atomics. Loom reports two
//! threads in one `UnsafeCell`, and accesses to it that are not ordered.
#![cfg(any(unix, windows))]

/// What `in_call.rs` takes from its parent module.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
}
#[path = "../src/smc/in_call.rs"]
mod in_call;

use in_call::InCall;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

/// A connection, and what only the call in progress changes.
struct Model {
    in_call: InCall,
    /// The registers and the secure world: how many calls it has seen.
    world: UnsafeCell<u32>,
    /// The request that was given up (`in_request` in `ffa.rs`), whose accesses are relaxed.
    given_up: AtomicU32,
}

// SAFETY: only the call that is in progress reaches `world`, and loom checks that.
unsafe impl Sync for Model {}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            in_call: InCall::of(sync::AtomicBool::new(false)),
            world: UnsafeCell::new(0),
            given_up: AtomicU32::new(0),
        })
    }

    /// Makes a call that gives its request up, or ends the one that was. Returns whether it was
    /// made.
    fn call(&self) -> bool {
        let Some(_call) = self.in_call.begin() else {
            return false;
        };
        self.world.with_mut(|calls| {
            // SAFETY: see the type; the pointer does not leave the closure.
            let calls = unsafe { &mut *calls };
            // What the call before left is what this one finds.
            assert_eq!(self.given_up.load(Ordering::Relaxed), *calls);
            *calls += 1;
            self.given_up.store(*calls, Ordering::Relaxed);
        });
        true
    }
}

#[test]
fn one_call_at_a_time_and_each_finds_what_the_last_one_left() {
    loom::model(|| {
        let model = Model::new();
        let calling = Arc::clone(&model);
        let other = thread::spawn(move || calling.call());
        let made = model.call();
        let other_made = matches!(other.join(), Ok(true));
        assert!(made || other_made, "neither call was made");
        assert!(model.call(), "the last call did not end");
    });
}

#[test]
fn a_call_in_the_middle_of_a_call_is_refused() {
    loom::model(|| {
        let model = Model::new();
        let outer = model.in_call.begin();
        let inner = Arc::clone(&model);
        assert!(matches!(thread::spawn(move || inner.call()).join(), Ok(false)));
        drop(outer);
        assert!(model.call());
    });
}
