//! The soak of the machines under QEMU, in short.

use mm_conformance::report::Report;
use mm_conformance::sim::SimSite;
use mm_conformance::soak::{self, Through};

#[test]
fn a_quarter_of_the_calls_meets_a_fault_and_each_has_its_result() {
    let mut out = String::new();
    let mut report = Report::new(&mut out);
    let mmis = soak::until(
        &mut report,
        &SimSite::lab(),
        Through::Components,
        &|| Some(1 << 20),
        1000,
    );
    assert!(report.finish(mmis), "{out}");
    let last = out.lines().rfind(|line| line.starts_with("SOAK ")).unwrap();
    let expected = "SOAK 992 calls, 237 with a fault, 1000 MMIs, bytes of free memory: 1048576";
    assert_eq!(last, expected);
}

#[test]
fn memory_that_becomes_less_is_a_failure() {
    let mut out = String::new();
    let mut report = Report::new(&mut out);
    let free = std::cell::Cell::new(1_u64 << 30);
    let leaking = || Some(free.replace(free.get() - 4096));
    let mmis = soak::until(&mut report, &SimSite::lab(), Through::Components, &leaking, 20);
    assert!(!report.finish(mmis));
    assert!(out.contains("TEST soak.memory_is_constant FAILED"), "{out}");
}
