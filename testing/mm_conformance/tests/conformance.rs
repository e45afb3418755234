//! The conformance suite on the simulated machine, each scenario a test of its own. With `--list` it names all of them, also
//! those that this machine cannot run: `cargo xtask test` asks for that.

use libtest_mimic::{Arguments, Failed, Trial};
use mm_conformance::Abilities;
use mm_conformance::sim::SimSite;

fn main() {
    // The simulated machine can do all that a scenario may ask for, but is an x86 machine with MM.
    let others = Abilities::SECURE_CALLS | Abilities::NO_MM;
    let trials = mm_conformance::all()
        .into_iter()
        .map(|scenario| {
            let trial = Trial::test(scenario.name, move || {
                scenario
                    .run(&SimSite::lab())
                    .map_err(|not_ok| Failed::from(not_ok.why()))
            });
            trial.with_ignored_flag(scenario.needs.intersects(others))
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
