//! The demo's conversation on the simulated machine: `cargo xtask demo`.

use patina_harness::sim::SimSite;
use std::process::ExitCode;

fn main() -> ExitCode {
    let lab = SimSite::lab();
    let place = "on a machine that is simulated in this process";
    match patina_harness::demo::run(&lab, place, &mut |line| println!("{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
