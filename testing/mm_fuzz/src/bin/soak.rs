//! Makes many transactions, says how far it is, and fails if memory grows: `cargo xtask soak`.

use mm_fuzz::soak::Soak;
use std::process::ExitCode;
use std::time::Instant;

/// Number of parts that the work is divided into.
const PARTS: u64 = 20;
/// How much more memory the process may have at the end than after the first part, in pages.
const MOST_PAGES: u64 = 64;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Some(Ok(transactions)), Some(Ok(seed)), None) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        eprintln!("usage: soak TRANSACTIONS SEED");
        return ExitCode::FAILURE;
    };
    println!("seed {seed}");
    let start = Instant::now();
    let mut soak = Soak::new(seed);
    let mut first = None;
    for part in 1..=PARTS {
        soak.run(transactions * part / PARTS - soak.count().transactions);
        let pages = resident_pages();
        first = first.or(pages);
        let memory = pages.map_or_else(|| "unknown".to_owned(), |pages| format!("{} KiB", pages * 4));
        println!(
            "{:3} %: {}, memory {memory}, {:.0?}",
            part * 100 / PARTS,
            soak.count(),
            start.elapsed()
        );
    }
    let grown = resident_pages()
        .zip(first)
        .map_or(0, |(last, first)| last.saturating_sub(first));
    if grown > MOST_PAGES {
        eprintln!("memory has grown by {} KiB", grown * 4);
        return ExitCode::FAILURE;
    }
    println!("memory has grown by {} KiB since the first part", grown * 4);
    ExitCode::SUCCESS
}

/// Pages of memory that the process has; `None` without `/proc`.
fn resident_pages() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse().ok()
}
