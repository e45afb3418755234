//! Stages, counts, the closing table.

use crate::scenarios::Verdict;
use crate::{is_ci, process};
use anyhow::Result;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Tests that ran, or did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// A stage that is one check, and passed.
    pub(crate) const ONE: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };

    /// Reads what [`fmt::Display`] writes; `None` if the line is another one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut counts = Self::default();
        for (at, part) in line.trim().split(", ").enumerate() {
            let (number, word) = part.split_once(' ')?;
            let number = number.parse().ok()?;
            match (at, word) {
                (0, "passed") => counts.passed = number,
                (1, "failed") => counts.failed = number,
                (2, "skipped") => counts.skipped = number,
                _ => return None,
            }
        }
        Some(counts)
    }

    /// Adds the counts of another stage.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Something that a stage needs is not installed.
#[derive(Debug, Error)]
#[error("{what} is missing; {remedy}")]
pub(crate) struct Missing {
    /// The missing thing.
    pub(crate) what: String,
    /// The distribution's packages that bring it; none if it comes from elsewhere.
    pub(crate) packages: Vec<&'static str>,
    /// What to do about it.
    pub(crate) remedy: String,
}

impl Missing {
    /// `what` is missing, which these packages contain.
    pub(crate) fn from_packages(what: impl Into<String>, packages: Vec<&'static str>) -> Self {
        Self {
            what: what.into(),
            remedy: format!("run `cargo xtask setup` (package {})", packages.join(", ")),
            packages,
        }
    }
}

/// A skipped stage, which is not a failure.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct NothingToDo(pub(crate) &'static str);

/// A stage whose tests ran, some without success.
#[derive(Debug, Error)]
#[error("{reason}")]
pub(crate) struct Failed {
    /// The counts of its tests. Even without a failed test the stage has failed.
    pub(crate) counts: Counts,
    /// One line for the table.
    pub(crate) reason: String,
}

#[derive(Debug)]
struct Row {
    stage: String,
    verdict: Verdict,
    counts: Counts,
    time: Duration,
    reason: String,
}

/// The results of the stages so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Runs one stage. Its result becomes a row of the table; the next stage runs in any case,
    /// unless a signal asked this process to end.
    pub(crate) fn stage(&mut self, name: &str, run: impl FnOnce() -> Result<Counts>) {
        if process::stopped().is_some() {
            return;
        }
        println!("==> {name}");
        let start = Instant::now();
        let result = run();
        self.add(name, start.elapsed(), result, is_ci());
    }

    fn add(&mut self, name: &str, time: Duration, result: Result<Counts>, missing_is_failure: bool) {
        let (verdict, counts, reason) = match result.and_then(trusted) {
            Ok(counts) if counts.passed == 0 => (Verdict::Skipped, counts, "all are skipped".to_owned()),
            Ok(counts) => (Verdict::Passed, counts, String::new()),
            Err(error) if error.is::<NothingToDo>() || error.is::<Missing>() && !missing_is_failure => (
                Verdict::Skipped,
                Counts {
                    skipped: 1,
                    ..Counts::default()
                },
                format!("{error:#}"),
            ),
            Err(error) => {
                println!("error: {error:#}");
                let mut counts = error
                    .downcast_ref::<Failed>()
                    .map(|failed| failed.counts)
                    .unwrap_or_default();
                counts.failed = counts.failed.max(1);
                (Verdict::Failed, counts, format!("{error:#}"))
            }
        };
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        self.rows.push(Row {
            stage: name.to_owned(),
            verdict,
            counts,
            time,
            reason,
        });
    }

    /// Prints the table and the closing line.
    pub(crate) fn conclude(&self) -> ExitCode {
        print!("\n{self}");
        if let Some(stopped) = process::stopped() {
            println!("{stopped}: the stages after it did not run");
            stopped.exit_code().into()
        } else if self.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// The sum over all stages.
    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for row in &self.rows {
            total.add(row.counts);
        }
        total
    }

    /// Whether no stage failed.
    pub(crate) fn is_success(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Failed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["stage", "result", "time", "reason"].map(str::to_owned);
        let rows: Vec<[String; 4]> = std::iter::once(heads)
            .chain(self.rows.iter().map(cells))
            .collect();
        let width = |column: fn(&[String; 4]) -> &String| {
            rows.iter()
                .map(|row| column(row).chars().count())
                .max()
                .unwrap_or_default()
        };
        let [stage, result, time] = [width(|[c, ..]| c), width(|[_, c, ..]| c), width(|[_, _, c, _]| c)];
        for [a, b, c, d] in &rows {
            writeln!(
                f,
                "{}",
                format!("{a:stage$} | {b:result$} | {c:>time$} | {d}").trim_end()
            )?;
        }
        writeln!(f, "\n{}", self.total())
    }
}

/// The counts of a stage that ended without an error: a failed test, or none at all, is one.
fn trusted(counts: Counts) -> Result<Counts> {
    let reason = match counts {
        Counts { failed: 1.., .. } => format!("{counts}, and the stage reported no error"),
        Counts {
            passed: 0,
            skipped: 0,
            ..
        } => "no test ran".to_owned(),
        _ => return Ok(counts),
    };
    Err(Failed { counts, reason }.into())
}

fn cells(row: &Row) -> [String; 4] {
    let Counts {
        passed,
        failed,
        skipped,
    } = row.counts;
    let ran = passed.saturating_add(failed);
    let result = match row.verdict {
        Verdict::Passed => format!("passed {passed}/{ran}"),
        Verdict::Failed => format!("FAILED {failed}/{ran}"),
        Verdict::Skipped => "skipped".to_owned(),
    };
    let reason = match row.verdict {
        Verdict::Passed if skipped > 0 => format!("{skipped} skipped"),
        _ => row.reason.clone(),
    };
    [
        row.stage.clone(),
        result,
        format!("{:.1} s", row.time.as_secs_f64()),
        reason,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Result<Counts> {
        Err(Missing::from_packages("QEMU", vec!["qemu-system-x86"]).into())
    }

    fn report(missing_is_failure: bool) -> Report {
        let mut report = Report::default();
        let second = Duration::from_secs(1);
        report.add(
            "tests",
            second,
            Ok(Counts {
                passed: 12,
                failed: 0,
                skipped: 2,
            }),
            missing_is_failure,
        );
        report.add("machine", second * 100, missing(), missing_is_failure);
        report
    }

    #[test]
    fn a_missing_program_skips_a_stage_and_is_a_failure_under_ci() {
        let skipped = report(false);
        assert!(skipped.is_success());
        assert_eq!(
            skipped.to_string(),
            "stage   | result       |    time | reason\n\
             tests   | passed 12/12 |   1.0 s | 2 skipped\n\
             machine | skipped      | 100.0 s | QEMU is missing; run `cargo xtask setup` (package qemu-system-x86)\n\
             \n12 passed, 0 failed, 3 skipped\n"
        );
        let failed = report(true);
        assert!(!failed.is_success());
        assert!(failed.to_string().ends_with("\n12 passed, 1 failed, 2 skipped\n"));
    }

    #[test]
    fn a_stage_without_work_is_skipped_everywhere() {
        for missing_is_failure in [false, true] {
            let mut report = Report::default();
            let nothing = Err(NothingToDo("no firmware named").into());
            report.add("own", Duration::ZERO, nothing, missing_is_failure);
            assert!(report.is_success());
            assert!(
                report
                    .to_string()
                    .contains("own   | skipped | 0.0 s | no firmware named\n"),
                "{report}"
            );
        }
    }

    #[test]
    fn a_stage_that_ran_nothing_or_counts_a_failure_has_failed() {
        let stage = |passed, failed, skipped| {
            let mut report = Report::default();
            let counts = Counts {
                passed,
                failed,
                skipped,
            };
            report.add("a", Duration::ZERO, Ok(counts), false);
            (report.is_success(), report.to_string())
        };
        let (success, text) = stage(0, 0, 0);
        assert!(
            !success && text.contains("a     | FAILED 1/1 | 0.0 s | no test ran\n"),
            "{text}"
        );
        let (success, text) = stage(3, 1, 0);
        assert!(
            !success && text.contains("a     | FAILED 1/4 | 0.0 s | 3 passed, 1 failed, and"),
            "{text}"
        );
        let (success, text) = stage(0, 0, 2);
        assert!(
            success && text.contains("a     | skipped | 0.0 s | all are skipped\n"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_stage_counts_at_least_one_failure() {
        let mut report = Report::default();
        report.add(
            "a",
            Duration::ZERO,
            Err(anyhow::anyhow!("broken\nat length")),
            false,
        );
        let counts = Counts {
            passed: 5,
            failed: 2,
            skipped: 0,
        };
        report.add(
            "b",
            Duration::ZERO,
            Err(Failed {
                counts,
                reason: "two of them".into(),
            }
            .into()),
            false,
        );
        assert!(!report.is_success());
        assert_eq!(
            report.total(),
            Counts {
                passed: 5,
                failed: 3,
                skipped: 0
            }
        );
        let text = report.to_string();
        assert!(text.contains("a     | FAILED 1/1 | 0.0 s | broken\n"), "{text}");
        assert!(
            text.contains("b     | FAILED 2/7 | 0.0 s | two of them\n"),
            "{text}"
        );
        assert!(text.ends_with("\n5 passed, 3 failed\n"), "{text}");
    }
}
