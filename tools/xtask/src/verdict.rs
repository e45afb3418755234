//! Reads what a guest writes to its serial line, and decides whether to trust it.
//!
//! A test run is one line per test, then the number of SMIs that the guest raised itself, then the
//! count of tests:
//!
//! ```text
//! TEST <name> ok
//! TEST <name> FAILED: <why>
//! TEST <name> skipped: <why>
//! SMIS <n>
//! DONE <passed>/<total>
//! ```
//!
//! If the conformance suite runs, each of its scenarios has a line, and as many tests pass as ever
//! did. If the machine's SMIs are counted, the guest raises some, and the machine takes as many.
//!
//! The guest then ends QEMU with an exact code. A missing line, or one that contradicts the rest,
//! is a failure: a guest that died half-way must not look like one with fewer tests.

use crate::machine::Variant;
use crate::report::Counts;
use crate::scenarios::{Scenarios, Verdict};
use std::collections::BTreeMap;
use thiserror::Error;

/// The meaning of one serial line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said<'a> {
    Passed(&'a str),
    Failed(&'a str),
    Skipped(&'a str),
    Smis(u64),
    Done { passed: u64, total: u64 },
}

/// Why a run's output is not trusted, or why the run failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum VerdictError {
    #[error("this line is not of the protocol: {0:?}")]
    Malformed(String),
    #[error("test {0} reported twice")]
    Twice(String),
    #[error("there is a line after DONE: {0:?}")]
    AfterDone(String),
    #[error("the guest did not finish: no DONE line")]
    NotDone,
    #[error("DONE says {passed}/{total}, the lines before it {seen_passed} passed of {seen_total}")]
    Miscounted {
        passed: u64,
        total: u64,
        seen_passed: u64,
        seen_total: u64,
    },
    #[error("the SMIS line comes before the line of test {0}: it does not count that test's SMIs")]
    SmisTooEarly(String),
    #[error("no test ran")]
    NoTests,
    #[error("scenarios without a line: {}", .0.join(", "))]
    ScenariosMissing(Vec<String>),
    #[error("{passed} tests passed, and {least} did before: what is skipped now?")]
    TooFew { passed: u64, least: u64 },
    #[error("the SMIS line is missing")]
    NoSmis,
    #[error("SMIS reported twice: {0}, then {1}")]
    SmisTwice(u64, u64),
    #[error("the guest raised no SMI")]
    NoSmiRaised,
    #[error("{0} SMIs were raised or taken, none is allowed")]
    NotSilent(u64),
    #[error("the guest raised {raised} SMIs, the machine took {taken}")]
    SmisNotTaken { raised: u64, taken: u64 },
    #[error("{0}")]
    NotCounted(String),
    #[error("QEMU ended with {found}, not with exit code {expected}")]
    WrongExit { expected: i32, found: String },
    #[error("the guest did not finish within {seconds} s")]
    Deadline { seconds: u64 },
    #[error("no line has {0:?}")]
    NotSaid(&'static str),
    #[error("failed: {}", .0.join(", "))]
    TestsFailed(Vec<String>),
}

/// The serial lines of a test run, evaluated.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    verdicts: BTreeMap<String, Verdict>,
    failed: Vec<String>,
    counts: Counts,
    smis: Option<u64>,
    done: Option<(u64, u64)>,
    damage: Option<VerdictError>,
}

impl Transcript {
    /// Takes one serial line. Lines that do not start with a word of the protocol are the
    /// firmware's and mean nothing.
    pub(crate) fn take(&mut self, line: &str) {
        let damage = match parse(line) {
            None => return,
            Some(_) if self.done.is_some() => VerdictError::AfterDone(line.to_owned()),
            Some(Err(())) => VerdictError::Malformed(line.to_owned()),
            Some(Ok(said)) => match self.record(&said) {
                Ok(()) => return,
                Err(error) => error,
            },
        };
        self.damage.get_or_insert(damage);
    }

    fn record(&mut self, said: &Said<'_>) -> Result<(), VerdictError> {
        let (name, verdict, counter) = match *said {
            Said::Passed(name) => (name, Verdict::Passed, &mut self.counts.passed),
            Said::Failed(name) => {
                self.failed.push(name.to_owned());
                (name, Verdict::Failed, &mut self.counts.failed)
            }
            Said::Skipped(name) => (name, Verdict::Skipped, &mut self.counts.skipped),
            Said::Smis(n) => {
                return match self.smis.replace(n) {
                    None => Ok(()),
                    Some(before) => Err(VerdictError::SmisTwice(before, n)),
                };
            }
            Said::Done { passed, total } => {
                self.done = Some((passed, total));
                return Ok(());
            }
        };
        *counter = counter.saturating_add(1);
        if self.smis.is_some() {
            return Err(VerdictError::SmisTooEarly(name.to_owned()));
        }
        // The suite's tests have a prefix if there are others as well.
        let scenario = name.strip_prefix("conformance.").unwrap_or(name);
        match self.verdicts.insert(scenario.to_owned(), verdict) {
            None => Ok(()),
            Some(_) => Err(VerdictError::Twice(name.to_owned())),
        }
    }

    /// The result of each test, by its name without prefix.
    pub(crate) fn verdicts(&self) -> &BTreeMap<String, Verdict> {
        &self.verdicts
    }

    /// The counts, trusted or not.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Judges the run by its lines, by what is expected of this way to boot, and by the SMIs that
    /// the machine took for it; `None` if the machine has none, or if the guest itself counts them.
    /// A guest whose SMIs are counted has to raise some.
    ///
    /// `total` in the DONE line counts the tests that ran: skipped ones are not among them.
    pub(crate) fn judge(
        &self,
        taken: Option<u64>,
        expected: &Variant,
        scenarios: &Scenarios,
    ) -> Result<(), VerdictError> {
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        let (passed, total) = self.done.ok_or(VerdictError::NotDone)?;
        let seen_passed = self.counts.passed;
        let seen_total = seen_passed.saturating_add(self.counts.failed);
        if (passed, total) != (seen_passed, seen_total) {
            return Err(VerdictError::Miscounted {
                passed,
                total,
                seen_passed,
                seen_total,
            });
        }
        if total == 0 {
            return Err(VerdictError::NoTests);
        }
        if !self.failed.is_empty() {
            return Err(VerdictError::TestsFailed(self.failed.clone()));
        }
        let raised = self.smis.ok_or(VerdictError::NoSmis)?;
        if expected.silent {
            let smis = raised.saturating_add(taken.unwrap_or_default());
            if smis > 0 {
                return Err(VerdictError::NotSilent(smis));
            }
        } else if let Some(taken) = taken {
            self.require_smis()?;
            if taken < raised {
                return Err(VerdictError::SmisNotTaken { raised, taken });
            }
        }
        let missing = scenarios.missing_in(&self.verdicts);
        if expected.suite && !missing.is_empty() {
            return Err(VerdictError::ScenariosMissing(missing));
        }
        if passed < expected.least {
            let least = expected.least;
            return Err(VerdictError::TooFew { passed, least });
        }
        Ok(())
    }

    /// Fails if the guest raised no SMI.
    pub(crate) fn require_smis(&self) -> Result<(), VerdictError> {
        match self.smis {
            None => Err(VerdictError::NoSmis),
            Some(0) => Err(VerdictError::NoSmiRaised),
            Some(_) => Ok(()),
        }
    }
}

/// `None` if the line is not ours, an error if it is ours and damaged.
fn parse(line: &str) -> Option<Result<Said<'_>, ()>> {
    // A line of the word alone was cut.
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let said = match word {
        "TEST" => parse_test(rest),
        "SMIS" => number(rest).map(Said::Smis),
        "DONE" => rest.split_once('/').and_then(|(passed, total)| {
            Some(Said::Done {
                passed: number(passed)?,
                total: number(total)?,
            })
        }),
        _ => return None,
    };
    Some(said.ok_or(()))
}

/// Digits alone: `parse` would take a sign, too.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn parse_test(rest: &str) -> Option<Said<'_>> {
    let (name, result) = rest.split_once(' ').filter(|(name, _)| !name.is_empty())?;
    match result.split_once(": ") {
        None if result == "ok" => Some(Said::Passed(name)),
        Some(("FAILED", _)) => Some(Said::Failed(name)),
        Some(("skipped", _)) => Some(Said::Skipped(name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "BdsDxe: starting Boot0001\nTEST a ok\nTEST b skipped: no mailbox\nTEST c ok\nSMIS 7\nDONE 2/2";

    fn transcript(lines: &str) -> Transcript {
        let mut transcript = Transcript::default();
        lines.lines().for_each(|line| transcript.take(line));
        transcript
    }

    const TWO: Variant = Variant {
        name: "",
        suite: false,
        least: 2,
        says: None,
        refused: false,
        silent: false,
        soaks: false,
    };

    fn judge(lines: &str) -> Result<(), VerdictError> {
        transcript(lines).judge(Some(7), &TWO, &Scenarios::default())
    }

    #[test]
    fn a_complete_run_passes() {
        assert_eq!(judge(GOOD), Ok(()));
        assert_eq!(
            transcript(GOOD).counts(),
            Counts {
                passed: 2,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn each_missing_line_is_a_failure() {
        for missing in ["TEST a", "TEST c", "SMIS", "DONE"] {
            let rest: Vec<_> = GOOD.lines().filter(|line| !line.starts_with(missing)).collect();
            assert!(judge(&rest.join("\n")).is_err(), "without {missing}");
        }
        assert_eq!(judge(""), Err(VerdictError::NotDone));
        assert_eq!(judge("SMIS 0\nDONE 0/0"), Err(VerdictError::NoTests));
    }

    #[test]
    fn failed_tests_are_named() {
        let lines = "TEST a ok\nTEST b FAILED: 3 is not 4: no\nSMIS 1\nDONE 1/2";
        assert_eq!(judge(lines), Err(VerdictError::TestsFailed(vec!["b".into()])));
        assert_eq!(
            transcript(lines).counts(),
            Counts {
                passed: 1,
                failed: 1,
                skipped: 0
            }
        );
        let hidden = lines.replace("1/2", "2/2");
        assert!(matches!(
            judge(&hidden),
            Err(VerdictError::Miscounted {
                seen_passed: 1,
                seen_total: 2,
                ..
            })
        ));
    }

    #[test]
    fn smis_that_the_machine_did_not_take_are_a_failure() {
        let error = transcript(GOOD).judge(Some(6), &TWO, &Scenarios::default());
        assert_eq!(error, Err(VerdictError::SmisNotTaken { raised: 7, taken: 6 }));
        assert_eq!(transcript(GOOD).judge(None, &TWO, &Scenarios::default()), Ok(()));
    }

    #[test]
    fn a_machine_with_smis_raises_some() {
        let lines = "TEST a ok\nTEST c ok\nSMIS 0\nDONE 2/2";
        assert_eq!(
            transcript(lines).judge(Some(0), &TWO, &Scenarios::default()),
            Err(VerdictError::NoSmiRaised)
        );
        assert_eq!(transcript(lines).judge(None, &TWO, &Scenarios::default()), Ok(()));
        assert_eq!(transcript(lines).require_smis(), Err(VerdictError::NoSmiRaised));
        assert_eq!(transcript(GOOD).require_smis(), Ok(()));
    }

    #[test]
    fn a_silent_machine_neither_raises_nor_takes_any() {
        let silent = Variant { silent: true, ..TWO };
        let lines = "TEST a ok\nTEST c ok\nSMIS 0\nDONE 2/2";
        assert_eq!(
            transcript(lines).judge(Some(0), &silent, &Scenarios::default()),
            Ok(())
        );
        assert_eq!(
            transcript(lines).judge(Some(1), &silent, &Scenarios::default()),
            Err(VerdictError::NotSilent(1))
        );
        assert_eq!(
            transcript(GOOD).judge(Some(0), &silent, &Scenarios::default()),
            Err(VerdictError::NotSilent(7))
        );
    }

    #[test]
    fn a_second_smis_line_is_a_contradiction() {
        for (lines, before, then) in [("SMIS 700\nSMIS 0", 700, 0), ("SMIS 7\nSMIS 7", 7, 7)] {
            let lines = format!("TEST a ok\nTEST c ok\n{lines}\nDONE 2/2");
            assert_eq!(
                transcript(&lines).judge(Some(7), &TWO, &Scenarios::default()),
                Err(VerdictError::SmisTwice(before, then))
            );
        }
    }

    #[test]
    fn smis_of_tests_behind_the_smis_line_are_not_counted() {
        for line in ["TEST d ok", "TEST d skipped: no mailbox"] {
            let lines = format!("TEST a ok\nTEST c ok\nSMIS 7\n{line}\nDONE 3/3");
            assert_eq!(judge(&lines), Err(VerdictError::SmisTooEarly("d".into())));
        }
    }

    #[test]
    fn a_test_less_than_before_is_a_failure() {
        let three = Variant { least: 3, ..TWO };
        let error = transcript(GOOD).judge(None, &three, &Scenarios::default());
        assert_eq!(error, Err(VerdictError::TooFew { passed: 2, least: 3 }));
    }

    #[test]
    fn every_scenario_of_the_suite_has_a_line() {
        let suite = Variant { suite: true, ..TWO };
        let names = ["a", "b", "c"];
        let scenarios = Scenarios::of(names.map(str::to_owned).to_vec());
        let run = |names: &[&str]| {
            let tests: String = names
                .iter()
                .map(|name| format!("TEST conformance.{name} ok\n"))
                .collect();
            let n = names.len();
            transcript(&format!("{tests}SMIS 0\nDONE {n}/{n}")).judge(None, &suite, &scenarios)
        };
        assert_eq!(run(&names), Ok(()));
        let (last, rest) = names.split_last().unwrap();
        assert_eq!(
            run(rest),
            Err(VerdictError::ScenariosMissing(vec![(*last).to_owned()]))
        );
    }

    #[test]
    fn damaged_lines_are_not_overlooked() {
        for damage in [
            "TEST x",
            "TEST x okay",
            "TEST x FAILED",
            "SMIS many",
            "DONE 2",
            "DONE two/2",
            // Lines that were cut.
            "TEST",
            "TEST ",
            "SMIS",
            "SMIS ",
            "DONE",
            "DONE 2/",
            "TEST  ok",
            "SMIS +7",
            "DONE 2/+2",
        ] {
            let lines = format!("{damage}\n{GOOD}");
            assert!(judge(&lines).is_err(), "{damage}");
        }
        assert_eq!(
            judge(&format!("TEST c ok\n{GOOD}")),
            Err(VerdictError::Twice("c".into()))
        );
        assert_eq!(
            judge(&format!("{GOOD}\nTEST d ok")),
            Err(VerdictError::AfterDone("TEST d ok".into()))
        );
    }
}
