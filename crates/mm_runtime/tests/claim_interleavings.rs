//! Calls and a change of addresses under every interleaving that loom can make of them.
//!
//! The file under test is compiled a second time here, against loom's atomics. After
//! `ExitBootServices` calls come on any processor.

/// What `claim.rs` takes from its parent module.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, Ordering};
}
#[path = "../src/claim.rs"]
mod claim;

use claim::{FREE, State};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// The state, and how many threads hold the claim.
struct Model {
    state: State,
    inside: AtomicUsize,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: State::of(sync::AtomicU8::new(FREE)),
            inside: AtomicUsize::new(0),
        })
    }

    /// A call. Returns whether it was made.
    fn call(&self) -> bool {
        let Some(claim) = self.state.claim() else {
            return false;
        };
        assert_eq!(
            self.inside.fetch_add(1, Ordering::Relaxed),
            0,
            "two calls at once"
        );
        assert_eq!(self.inside.fetch_sub(1, Ordering::Relaxed), 1);
        drop(claim);
        true
    }

    /// A change of addresses, as the driver's event makes it.
    fn change_addresses(&self) {
        if !self.call() {
            self.state.lose();
        }
    }
}

#[test]
fn one_call_at_a_time_and_a_later_one_is_made() {
    loom::model(|| {
        let model = Model::new();
        let threads =
            [Arc::clone(&model), Arc::clone(&model)].map(|model| thread::spawn(move || model.call()));
        let made = threads.map(|thread| matches!(thread.join(), Ok(true)));
        assert!(made.contains(&true), "neither call was made");
        assert!(model.call());
    });
}

#[test]
fn a_lost_driver_stays_lost_whatever_ends_afterwards() {
    loom::model(|| {
        let model = Model::new();
        let calling = Arc::clone(&model);
        let call = thread::spawn(move || calling.call());
        model.change_addresses();
        let is_lost = model.state.is_lost();
        assert!(call.join().is_ok());
        assert_eq!(model.state.is_lost(), is_lost);
        assert_eq!(model.call(), !is_lost);
    });
}
