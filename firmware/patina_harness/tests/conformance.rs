//! The conformance suite on the simulated machine, each scenario a test of its own.

use libtest_mimic::{Arguments, Failed, Trial};
use mm_conformance::Outcome;
use patina_harness::sim::SimSite;

fn main() {
    let trials = mm_conformance::all()
        .into_iter()
        .map(|scenario| {
            Trial::test(scenario.name, move || match scenario.run(&SimSite::lab()) {
                Outcome::Passed => Ok(()),
                Outcome::Failed(seen) => Err(Failed::from(format!("{}, but {seen}", scenario.shows))),
                // The simulated machine can do all that a scenario may ask for.
                Outcome::Skipped(why) => Err(Failed::from(why)),
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
