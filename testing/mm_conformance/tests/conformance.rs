//! The conformance suite on the simulated machine, each scenario as a separate test. With `--list`
//! it names all of them, also those that this machine cannot run: `cargo xtask test` asks for that.

use libtest_mimic::{Arguments, Failed, Trial};
use log::{LevelFilter, Log, Metadata, Record};
use mm_conformance::Abilities;
use mm_conformance::recorder::Recorder;
use mm_conformance::sim::SimSite;

/// Writes each log line and throws it away: formatting one must neither panic nor change what
/// happens.
struct Formatted;

impl Log for Formatted {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let _line = record.args().to_string();
    }

    fn flush(&self) {}
}

static LOGGER: Recorder<Formatted> = Recorder::over(Formatted);

fn main() {
    // This program has no other logger.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Trace);
    // The simulated machine has all abilities, except those of a machine without x86 ports or
    // without MM.
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
