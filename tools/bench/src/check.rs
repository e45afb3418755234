//! The comparison with the committed figures: ratios within one run, allocations and bytes, never times.

use crate::growth::{self, Logs};
use crate::measure::{self, Case, FORMS, Figures};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::ExitCode;

/// A ratio that is worse by more than this factor fails the check.
const TOLERANCE: f64 = 1.2;
/// The same on another processor than that of the committed figures: its caches, and the instructions that libc picks for the
/// published crate's copies, change the ratios.
const OTHER_PROCESSOR: f64 = 2.0;
/// How often a ratio that is worse is measured. One that is fine once is fine: other programs only make it worse.
const ATTEMPTS: usize = 5;
/// Bytes of text a call at trace at most.
const TEXT: usize = 2048;
/// How much longer a call may take for log lines whose target is off. A text that is formatted for nothing makes it many times
/// as long.
const FILTERED: f64 = 1.2;
/// Ratios below this are too small to compare: a tick of the clock is 20 % of them.
const NOISE: f64 = 0.02;

/// Writes figures for [`read`].
pub fn write(figures: &Figures, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads figures that [`write`] wrote.
pub fn read(file: &Path) -> Result<Figures> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no file of figures", file.display()))
}

/// Compares figures with committed ones. Ratios that are worse are measured again.
pub fn check(mut now: Figures, committed: &Figures, rounds: usize) -> Result<ExitCode> {
    let mut tolerance = TOLERANCE;
    if now.processor != committed.processor {
        tolerance = OTHER_PROCESSOR;
        println!(
            "\nThe committed figures are of {}, these of {}: a ratio of times may be {tolerance} times as large.",
            committed.processor, now.processor
        );
    }
    let mut worse = Vec::new();
    let mut compared = 0;
    for case in &mut now.cases {
        let same = |other: &&Case| {
            (other.buffer, other.message, other.mailbox) == (case.buffer, case.message, case.mailbox)
        };
        let before = committed.cases.iter().find(same);
        let before = before.with_context(|| format!("the committed figures lack {}", case.name()))?;
        let limit = |at: usize| before.ours[at].to_published.max(NOISE) * tolerance;
        for attempt in 2..=ATTEMPTS {
            if (0..FORMS.len()).all(|at| case.ours[at].to_published <= limit(at)) {
                break;
            }
            eprintln!(
                "  {} again, attempt {attempt} of {ATTEMPTS}: a ratio is worse",
                case.name()
            );
            let again = measure::case(case.buffer, case.message, case.mailbox, rounds)?;
            for (ours, again) in case.ours.iter_mut().zip(again.ours) {
                ours.to_published = ours.to_published.min(again.to_published);
            }
        }
        for (at, form) in FORMS.iter().enumerate() {
            compared += 2;
            let (now, before) = (&case.ours[at], &before.ours[at]);
            if now.to_published > limit(at) {
                worse.push(format!(
                    "{}, {form}: {:.3} × published, was {:.3}",
                    case.name(),
                    now.to_published,
                    before.to_published
                ));
            }
            if now.allocations > before.allocations {
                worse.push(format!(
                    "{}, {form}: {} allocations, was {}",
                    case.name(),
                    now.allocations,
                    before.allocations
                ));
            }
        }
    }
    for ((count, now, _), (_, before, _)) in now.growth.heap.iter().zip(&committed.growth.heap) {
        compared += 1;
        if *now as f64 > *before as f64 * TOLERANCE {
            worse.push(format!(
                "{count} buffers: {now} bytes of heap at rest, was {before}"
            ));
        }
    }
    compared += now.growth.logs.text.len() + 1;
    worse.extend(check_logs(&now.growth.logs));
    if worse.is_empty() {
        println!("\n{compared} ratios and counts are no worse than the committed ones");
        return Ok(ExitCode::SUCCESS);
    }
    for line in &worse {
        println!("WORSE {line}");
    }
    println!(
        "{} of {compared} are worse. If that is meant, commit new figures (`cargo xtask bench --commit`).",
        worse.len()
    );
    Ok(ExitCode::FAILURE)
}

/// What is wrong with the cost of log lines.
fn check_logs(logs: &Logs) -> Vec<String> {
    let mut worse = Vec::new();
    for (len, text) in logs.text.iter().filter(|(_, text)| *text > TEXT) {
        worse.push(format!(
            "{text} bytes of text at trace for {len} bytes, at most {TEXT}"
        ));
    }
    let mut ratio = logs.ratio;
    for attempt in 2..=ATTEMPTS {
        if ratio > FILTERED {
            eprintln!("  log lines again, attempt {attempt} of {ATTEMPTS}: the ratio is worse");
            ratio = ratio.min(growth::logs().ratio);
        }
    }
    if ratio > FILTERED {
        worse.push(format!(
            "log lines whose target is off make a call {ratio:.2} times as long, at most {FILTERED} times"
        ));
    }
    worse
}
