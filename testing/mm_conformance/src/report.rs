//! The lines on the serial port that say which tests passed.
//!
//! ```text
//! TEST <name> ok
//! TEST <name> FAILED: <why>
//! TEST <name> skipped: <why>
//! SMIS <n>
//! DONE <passed>/<total>
//! ```
//!
//! `total` counts the tests that were not skipped. `SMIS` counts the MMIs that the application
//! raised itself.

use crate::{Lab, Scenario, all};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::{self, Debug, Display, Write};

/// Why a test has no `ok`.
#[derive(Debug)]
pub enum NotOk {
    /// The test found something wrong.
    Failed(String),
    /// The machine cannot run it.
    Skipped(String),
}

impl<E: fmt::Display> From<E> for NotOk {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl NotOk {
    /// The reason.
    #[must_use]
    pub fn why(self) -> String {
        let (Self::Failed(why) | Self::Skipped(why)) = self;
        why
    }
}

/// Fails a test with what was found.
pub fn failed(found: impl Debug) -> NotOk {
    NotOk::Failed(format!("{found:?}"))
}

/// Fails a test unless the condition holds.
///
/// # Errors
///
/// [`NotOk::Failed`] with this text.
pub fn ensure(condition: bool, otherwise: impl Display) -> Result<(), NotOk> {
    if condition {
        Ok(())
    } else {
        Err(NotOk::Failed(otherwise.to_string()))
    }
}

/// Fails a test unless what was found is what was expected.
///
/// # Errors
///
/// [`NotOk::Failed`] with both.
pub fn equal<A: PartialEq<B> + Debug, B: Debug>(found: A, expected: B) -> Result<(), NotOk> {
    if found == expected {
        Ok(())
    } else {
        Err(NotOk::Failed(format!("found {found:?}, expected {expected:?}")))
    }
}

/// A run of tests, whose lines are written as it goes.
#[derive(Debug)]
pub struct Report<W> {
    out: W,
    passed: u32,
    total: u32,
}

impl<W: Write> Report<W> {
    /// Starts a run whose lines go to `out`.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            passed: 0,
            total: 0,
        }
    }

    /// Runs one test and writes its line.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Result<(), NotOk>) {
        self.verdict(name, test());
    }

    /// Writes the line of a test that ran elsewhere.
    pub fn verdict(&mut self, name: &str, verdict: Result<(), NotOk>) {
        if !matches!(verdict, Err(NotOk::Skipped(_))) {
            self.total = self.total.saturating_add(1);
        }
        match verdict {
            Ok(()) => {
                self.passed = self.passed.saturating_add(1);
                self.line(format_args!("TEST {name} ok"));
            }
            Err(NotOk::Failed(why)) => self.line(format_args!("TEST {name} FAILED: {}", OneLine(&why))),
            Err(NotOk::Skipped(why)) => self.line(format_args!("TEST {name} skipped: {}", OneLine(&why))),
        }
    }

    /// Runs the conformance suite in a lab and writes a line per scenario.
    pub fn suite(&mut self, lab: &Lab) {
        all()
            .into_iter()
            .for_each(|scenario| self.scenario(scenario, lab));
    }

    /// Runs a scenario of the conformance suite in a lab and writes its line.
    pub fn scenario(&mut self, scenario: &Scenario, lab: &Lab) {
        self.verdict(&format!("conformance.{}", scenario.name), scenario.run(lab));
    }

    /// Writes another line.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        // A serial port takes everything. If `out` cannot write a line, the reader notices that it
        // is missing.
        let _ = writeln!(self.out, "{text}");
    }

    /// Ends the run; `true` if at least one test ran and none failed.
    #[must_use]
    pub fn finish(&mut self, mmis: u64) -> bool {
        let (passed, total) = (self.passed, self.total);
        self.line(format_args!("SMIS {mmis}"));
        self.line(format_args!("DONE {passed}/{total}"));
        passed == total && total > 0
    }
}

/// Writes text without its line ends, which would break the protocol.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.0.lines().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            f.write_str(line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tests: impl FnOnce(&mut Report<&mut String>)) -> (String, bool) {
        let mut out = String::new();
        let mut report = Report::new(&mut out);
        tests(&mut report);
        let passed = report.finish(3);
        (out, passed)
    }

    #[test]
    fn each_verdict_is_one_line_and_a_skipped_test_does_not_count() {
        let (out, passed) = run(|report| {
            report.test("a", || Ok(()));
            report.test("b", || Err(NotOk::Skipped("no mailbox".into())));
        });
        assert_eq!(out, "TEST a ok\nTEST b skipped: no mailbox\nSMIS 3\nDONE 1/1\n");
        assert!(passed);
    }

    #[test]
    fn a_failure_fails_the_run_and_stays_on_its_line() {
        let (out, passed) = run(|report| {
            report.test("a", || Err("one\ntwo".into()));
            report.test("b", || Ok(()));
        });
        assert_eq!(out, "TEST a FAILED: one | two\nTEST b ok\nSMIS 3\nDONE 1/2\n");
        assert!(!passed);
    }

    #[test]
    fn a_run_without_a_test_fails() {
        let (out, passed) = run(|_| {});
        assert_eq!(out, "SMIS 3\nDONE 0/0\n");
        assert!(!passed);
    }
}
