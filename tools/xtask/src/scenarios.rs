//! Which scenario of the conformance suite ran where, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

/// What came of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// The scenarios of the suite on the machines that it ran on.
#[derive(Debug, Default)]
pub(crate) struct Scenarios {
    machines: Vec<(String, BTreeMap<String, Outcome>)>,
}

impl Scenarios {
    /// Notes the tests of a machine. Those that are no scenarios are left out, and so is a machine without scenarios.
    pub(crate) fn add(&mut self, machine: &str, outcomes: &BTreeMap<String, Outcome>) {
        let scenarios = mm_conformance::all().into_iter();
        let found: BTreeMap<_, _> = scenarios
            .filter_map(|scenario| outcomes.get_key_value(scenario.name))
            .map(|(name, outcome)| (name.clone(), *outcome))
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
        let scenarios = mm_conformance::all();
        let width = scenarios.iter().map(|scenario| scenario.name.len()).max();
        let width = width.unwrap_or_default();
        // The machines' names stand above their columns, one line each.
        for (column, (machine, _)) in self.machines.iter().enumerate() {
            writeln!(f, "{:width$}  {}{machine}", "", "|  ".repeat(column))?;
        }
        writeln!(
            f,
            "{:width$}  {}",
            "scenario",
            "|  ".repeat(last.saturating_add(1)).trim_end()
        )?;
        for scenario in &scenarios {
            let marks = self
                .machines
                .iter()
                .map(|(_, outcomes)| match outcomes.get(scenario.name) {
                    Some(Outcome::Passed) => "ok",
                    Some(Outcome::Failed) => "NO",
                    Some(Outcome::Skipped) => "- ",
                    None => "  ",
                });
            let marks = marks.collect::<Vec<_>>().join(" ");
            writeln!(f, "{}", format!("{:width$}  {marks}", scenario.name).trim_end())?;
        }
        writeln!(f, "\nok passed, NO failed, - the machine cannot run it\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_is_a_row_and_each_machine_a_column() {
        let all = mm_conformance::all();
        let names: Vec<_> = all.iter().map(|scenario| scenario.name.to_owned()).collect();
        let mut scenarios = Scenarios::default();
        assert_eq!(scenarios.to_string(), "");
        scenarios.add(
            "nowhere",
            &BTreeMap::from([("no_scenario".to_owned(), Outcome::Passed)]),
        );
        assert_eq!(scenarios.to_string(), "");
        scenarios.add(
            "one",
            &names.iter().map(|name| (name.clone(), Outcome::Passed)).collect(),
        );
        let first = names.first().unwrap().clone();
        scenarios.add("two", &BTreeMap::from([(first.clone(), Outcome::Skipped)]));
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
