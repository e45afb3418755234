//! The quick form of `cargo xtask fuzz`: the committed corpus, and a fixed number of generated
//! cases, through each target.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use mm_fuzz::random::Random;
use mm_fuzz::{TARGETS, Target};
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;

/// Generated cases for a target. The number does not depend on the machine's speed: a run finds
/// what the last one found.
fn cases(target: &str) -> u32 {
    match target {
        // Each case compresses a volume.
        "image" => 1_000,
        "monitor" | "places" | "moves" => 5_000,
        _ => 20_000,
    }
}

/// Writes each log line and throws it away: formatting one must not panic.
struct Formatted;

impl log::Log for Formatted {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _line = record.args().to_string();
    }

    fn flush(&self) {}
}

fn target(name: &str) -> Target {
    // Another test may have set it.
    let _ = log::set_logger(&Formatted);
    log::set_max_level(log::LevelFilter::Trace);
    *TARGETS.iter().find(|target| target.name == name).unwrap()
}

/// The input that is run, printed if it fails.
struct Input<'a>(&'a dyn Display);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this input fails: {}", self.0);
        }
    }
}

/// Runs the inputs that the fuzzer kept, and those that once failed.
fn replay(name: &str) {
    let run = target(name).run;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs = 0;
    for file in files {
        let path = file.unwrap().path();
        let _name = Input(&path.display());
        run(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", folder.display());
}

/// Runs generated cases, the same each time.
fn generated(name: &str) {
    let target = target(name);
    for seed in 0..cases(name) {
        let mut random = Random::new(seed.into());
        let len = random.below(target.max_len);
        let input = random.bytes(len);
        let _seed = Input(&format_args!("seed {seed}"));
        (target.run)(&input);
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(mod $name {
            #[test]
            fn committed_corpus_finds_nothing() {
                super::replay(stringify!($name));
            }

            #[test]
            fn generated_cases_find_nothing() {
                super::generated(stringify!($name));
            }
        })+

        #[test]
        fn every_target_is_tested_and_has_a_program() {
            let tested = [$(stringify!($name)),+];
            let known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tested[..], known);
            let manifest = include_str!("../../../fuzz/Cargo.toml");
            for name in tested {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no {name}");
            }
        }
    };
}

targets! { wire transaction entry places moves runtime_hobs c_calls supervisor smc monitor image pe device_tree }

/// The quick form of `cargo xtask soak`.
#[test]
fn transactions_with_random_faults_leave_nothing_behind() {
    let mut soak = mm_fuzz::soak::Soak::new(1);
    soak.run(20_000);
    let count = soak.count();
    assert_eq!(count.transactions, 20_000);
    assert!(count.errors > 1000 && count.faults > count.errors, "{count}");
}
