//! Which scenario of the conformance suite ran on which machine, and its result.

use crate::process::{self, require_success};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use xshell::{Shell, cmd};

/// The result of a test or of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// The scenarios of the suite on the machines that it ran on.
#[derive(Debug, Default)]
pub(crate) struct Scenarios {
    names: Vec<String>,
    machines: Vec<(String, BTreeMap<String, Verdict>)>,
}

impl Scenarios {
    /// Asks the suite's test binary for its scenarios: a link to the suite would compile Patina
    /// into this tool.
    pub(crate) fn list(shell: &Shell) -> Result<Self> {
        // Built like `cargo xtask test` does, so that nothing is built twice.
        let command = cmd!(
            shell,
            "cargo test --workspace --features patina_mm/mockall --test conformance -- --list --format terse"
        );
        let mut names = Vec::new();
        let mut others = Vec::new();
        let label = "the list of scenarios";
        let status = process::run(label, command.into(), None, |line| {
            match line.strip_suffix(": test") {
                Some(name) => names.push(name.to_owned()),
                None => others.push(line.to_owned()),
            }
            None
        })?;
        require_success(label, status).inspect_err(|_| others.iter().for_each(|line| println!("{line}")))?;
        if names.is_empty() {
            bail!("the suite's test binary lists no scenario");
        }
        Ok(Self::of(names))
    }

    /// Scenarios with these names, before any ran.
    pub(crate) fn of(names: Vec<String>) -> Self {
        Self {
            names,
            machines: Vec::new(),
        }
    }

    /// The scenarios that are not among these tests.
    pub(crate) fn missing_in(&self, verdicts: &BTreeMap<String, Verdict>) -> Vec<String> {
        let names = self.names.iter();
        names
            .filter(|name| !verdicts.contains_key(*name))
            .cloned()
            .collect()
    }

    /// Notes the tests of a machine. Tests that are not scenarios are left out, and so is a machine
    /// without scenarios.
    pub(crate) fn add(&mut self, machine: &str, verdicts: &BTreeMap<String, Verdict>) {
        let found: BTreeMap<_, _> = self
            .names
            .iter()
            .filter_map(|name| verdicts.get_key_value(name))
            .map(|(name, verdict)| (name.clone(), *verdict))
            .collect();
        if !found.is_empty() {
            self.machines.push((machine.to_owned(), found));
        }
    }
}

impl fmt::Display for Scenarios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = self.machines.len().checked_sub(1) else {
            return Ok(());
        };
        let width = self.names.iter().map(String::len).max();
        let width = width.unwrap_or_default();
        // The machines' names are above their columns, one line each.
        for (column, (machine, _)) in self.machines.iter().enumerate() {
            writeln!(f, "{:width$}  {}{machine}", "", "|  ".repeat(column))?;
        }
        writeln!(
            f,
            "{:width$}  {}",
            "scenario",
            "|  ".repeat(last.saturating_add(1)).trim_end()
        )?;
        for name in &self.names {
            let marks = self
                .machines
                .iter()
                .map(|(_, verdicts)| match verdicts.get(name) {
                    Some(Verdict::Passed) => "ok",
                    Some(Verdict::Failed) => "NO",
                    Some(Verdict::Skipped) => "- ",
                    None => "  ",
                });
            let marks = marks.collect::<Vec<_>>().join(" ");
            writeln!(f, "{}", format!("{name:width$}  {marks}").trim_end())?;
        }
        writeln!(f, "\nok passed, NO failed, - the machine cannot run it\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_is_a_row_and_each_machine_a_column() {
        let names = ["echo_works", "smi_is_late", "lie_is_refused"]
            .map(str::to_owned)
            .to_vec();
        let mut scenarios = Scenarios::of(names.clone());
        assert_eq!(scenarios.to_string(), "");
        scenarios.add(
            "nowhere",
            &BTreeMap::from([("no_scenario".to_owned(), Verdict::Passed)]),
        );
        assert_eq!(scenarios.to_string(), "");
        scenarios.add(
            "one",
            &names.iter().map(|name| (name.clone(), Verdict::Passed)).collect(),
        );
        let first = names.first().unwrap().clone();
        scenarios.add("two", &BTreeMap::from([(first.clone(), Verdict::Skipped)]));
        let text = scenarios.to_string();
        let row = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap()
        };
        assert!(row(&first).ends_with("  ok -"), "{text}");
        assert!(row(names.last().unwrap()).ends_with("  ok"), "{text}");
        assert!(text.lines().next().unwrap().ends_with(" one"));
        assert_eq!(
            text.lines().filter(|line| line.contains("  ok")).count(),
            names.len()
        );
    }
}
