//! All orders of steps, up to a number of them.

use mm_model::Transaction;
use stateright::{Checker as _, Model as _};

fn check(model: Transaction, least: usize) {
    let checker = model.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    // This many states were visited when this was written: a model that lost its steps would also
    // pass.
    assert!(
        checker.unique_state_count() >= least,
        "{} states",
        checker.unique_state_count()
    );
}

#[test]
fn every_order_of_steps_keeps_the_promises_with_a_mailbox() {
    let model = Transaction {
        mailbox: true,
        steps: 7,
        begins: 2,
    };
    check(model, 12_000);
}

#[test]
fn every_order_of_steps_keeps_the_promises_without_a_mailbox() {
    let model = Transaction {
        mailbox: false,
        steps: 8,
        begins: 2,
    };
    check(model, 4000);
}
