//! The conformance suite on the simulated machine once more, on memory that is not zero when it is
//! handed out: RAM keeps its contents over a reset, and firmware does not clear each mailbox that
//! it announces.

use libtest_mimic::{Arguments, Failed, Trial};
use mm_conformance::Abilities;
use mm_conformance::sim::{Ram, SimSite};

fn main() {
    let others = Abilities::SECURE_CALLS | Abilities::NO_MM;
    let kinds = [
        ("ones", Ram::Ones),
        ("random", Ram::Random(0x9e37_79b9_7f4a_7c15)),
    ];
    let trials = kinds.into_iter().flat_map(|(kind, ram)| {
        let scenarios = mm_conformance::all().into_iter();
        let scenarios = scenarios.filter(move |scenario| !scenario.needs.intersects(others));
        scenarios.map(move |scenario| {
            Trial::test(format!("{kind}::{}", scenario.name), move || {
                scenario
                    .run(&SimSite::with_ram(ram).into_lab())
                    .map_err(|not_ok| Failed::from(not_ok.why()))
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
