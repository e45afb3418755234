//! Measures calls of this tree's `patina_mm` beside the published one, in one process.
//!
//! | module | content |
//! |---|---|
//! | [`clients`] | the same calls through both crates, each behind the same small trait |
//! | [`floor`] | what the copies alone cost |
//! | [`memory`] | an allocator that counts; pages for comm buffers |
//! | [`measure`] | the cases, and how they are timed |
//! | [`growth`] | cost by number of buffers, depth of nesting and number of callbacks |
//! | [`report`] | the table and the plots |
//! | [`check`] | the comparison with the committed figures |

mod check;
mod clients;
mod floor;
mod growth;
mod measure;
mod memory;
mod report;

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures calls of this tree's patina_mm beside the published one.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// Fewer rounds: less exact, in seconds.
    #[arg(long)]
    quick: bool,
    /// Compare with the figures in FILE; fail if a ratio is worse by more than 20 %.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Write the figures to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make so many calls with a message of 16 bytes, and nothing else: for a profiler.
    #[arg(long, value_name = "CALLS")]
    repeat: Option<usize>,
    /// Draw the figures as SVG files in DIR.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(calls) = cli.repeat {
        measure::repeat(calls);
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = if cli.quick { 15 } else { 61 };
    let mut figures = measure::run(rounds)?;
    figures.growth = growth::run();
    report::print(&figures);
    if let Some(output) = &cli.output {
        check::write(&figures, output)?;
    }
    if let Some(directory) = &cli.plots {
        report::plot(&figures, directory)?;
    }
    match &cli.check {
        None => Ok(ExitCode::SUCCESS),
        Some(file) => check::check(figures, &check::read(file)?, rounds),
    }
}
