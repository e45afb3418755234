//! The demo's conversation on the simulated machine: `cargo xtask demo`. With a file name as
//! argument, it writes the log at trace there.

use mm_conformance::demo::{self, LOG};
use mm_conformance::sim::SimSite;
use std::fmt::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let lab = SimSite::lab();
    let place = "on a machine that is simulated in this process";
    let mut log = String::new();
    let told = demo::run(&lab, place, &mut |line| {
        let line = line.to_string();
        match line.strip_prefix(LOG) {
            // Writing to a string does not fail.
            Some(line) => drop(writeln!(log, "{line}")),
            None => println!("{line}"),
        }
    });
    let kept = match std::env::args_os().nth(1) {
        Some(file) => std::fs::write(file, log).map_err(|error| error.to_string()),
        None => Ok(()),
    };
    match told.and(kept) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
