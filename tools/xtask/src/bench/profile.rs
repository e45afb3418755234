//! Instructions of a call by function, as callgrind counts them.

use super::MANIFEST;
use crate::process;
use crate::setup::VALGRIND;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// Calls of each form.
const CALLS: u64 = 1000;

/// How many functions are shown.
const SHOWN: usize = 12;

/// The forms of `tools/bench/src/measure.rs`, and a pattern for the function that makes the call.
const FORMS: [(&str, &str); 3] = [
    (
        "the published crate's communicate",
        "*published::Communicate*call",
    ),
    ("communicate", "*ours::Communicate*call"),
    ("communicate_into", "*clients::Into*call"),
];

pub(super) fn run(shell: &Shell) -> Result<ExitCode> {
    VALGRIND.require(shell)?;
    let build = cmd!(shell, "cargo build --release --quiet --manifest-path {MANIFEST}");
    process::run_quietly("build of bench", build.into())?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| "tools/bench/target".into(), std::path::PathBuf::from);
    let program = target.join("release/bench");
    let dir = tempfile::Builder::new().prefix("patina-mm-").tempdir()?;
    println!("Instructions of a call with 16 bytes through a comm buffer of 4 KiB.");
    for (form, pattern) in FORMS {
        let file = dir.path().join("callgrind");
        let calls = CALLS.to_string();
        let valgrind = cmd!(
            shell,
            "valgrind --tool=callgrind --callgrind-out-file={file} --toggle-collect={pattern} {program} --repeat {calls}"
        );
        process::run_quietly("callgrind", valgrind.into())?;
        let text = std::fs::read_to_string(&file).context("callgrind wrote nothing")?;
        print!("\n{}", table(form, &by_function(&text)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Instructions by function, without what it calls.
fn by_function(text: &str) -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    let mut counts = BTreeMap::new();
    let (mut function, mut is_call) = (String::new(), false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = named(name, &mut names);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            // A name is written once, also if that is where it is called.
            named(name, &mut names);
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // What follows `calls=` is what the called function takes.
            let count = line
                .split_whitespace()
                .nth(1)
                .and_then(|count| count.parse::<u64>().ok());
            if !std::mem::take(&mut is_call) {
                *counts.entry(function.clone()).or_default() += count.unwrap_or_default();
            }
        }
    }
    counts
}

/// A name in callgrind's form: `(7) name` the first time, then `(7)`.
fn named<'t>(text: &'t str, names: &mut BTreeMap<&'t str, &'t str>) -> String {
    let (number, name) = text.split_once(' ').unwrap_or((text, ""));
    if !name.is_empty() {
        names.insert(number, name);
    }
    names.get(number).copied().unwrap_or(number).to_owned()
}

fn table(form: &str, counts: &BTreeMap<String, u64>) -> String {
    let mut all: Vec<_> = counts.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let total: u64 = all.iter().map(|(_, count)| **count).sum();
    let mut table = format!("| {form} | {} |\n|---|---:|\n", total / CALLS);
    for (function, count) in all.iter().take(SHOWN) {
        table += &format!("| `{function}` | {} |\n", **count / CALLS);
    }
    let rest: u64 = all.iter().skip(SHOWN).map(|(_, count)| **count).sum();
    if rest >= CALLS {
        table += &format!("| others | {} |\n", rest / CALLS);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_function_calls_is_not_its_own() {
        let text = "events: Ir\nfn=(1) outer\n10 5000\ncfn=(2) inner\ncalls=1000 3\n12 7000\n+1 1000\nfn=(2)\n* 7000\n";
        let counts = by_function(text);
        assert_eq!(counts.get("outer"), Some(&6000));
        assert_eq!(counts.get("inner"), Some(&7000));
        assert_eq!(
            table("call", &counts),
            "| call | 13 |\n|---|---:|\n| `inner` | 7 |\n| `outer` | 6 |\n"
        );
    }
}
