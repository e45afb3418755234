//! Stages that only compile run beside those that boot machines: QEMU uses one processor.

use crate::process::{self, require_success};
use crate::report::{Counts, Failed};
use crate::target_dir;
use anyhow::{Context as _, Result};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Commands of this program that run one after the other, beside this process's own stages.
pub(crate) struct Meanwhile {
    ended: Receiver<Ended>,
    thread: Option<JoinHandle<()>>,
}

/// A command that has ended.
struct Ended {
    name: &'static str,
    lines: Vec<String>,
    result: Result<()>,
    seconds: f64,
}

impl Meanwhile {
    /// Starts the commands. The result of each is asked for in the same order.
    pub(crate) fn start(names: &'static [&'static str]) -> Result<Self> {
        let program = std::env::current_exe().context("this program does not know its own file")?;
        let (sender, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            for name in names {
                let mut command = Command::new(&program);
                // Machines are compiled at the same time, and one cargo waits for the other in a directory.
                command
                    .arg(name)
                    .env("CARGO_TARGET_DIR", target_dir().join("meanwhile"));
                let ended = run(name, command);
                if sender.send(ended).is_err() || process::stopped().is_some() {
                    return;
                }
            }
        });
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }

    /// Waits for the next command, prints its output, and returns its counts.
    pub(crate) fn next(&self) -> Result<Counts> {
        let ended = self.ended.recv().context("the command was not run")?;
        ended.lines.iter().for_each(|line| println!("  {line}"));
        println!(
            "  `cargo xtask {}` took {:.1} s, beside other stages",
            ended.name, ended.seconds
        );
        let counts = ended.lines.iter().rev().find_map(|line| Counts::parse(line));
        let counts = counts.unwrap_or_default();
        let reason = match ended.result {
            Ok(()) if counts.passed > 0 => return Ok(counts),
            Ok(()) => "no test passed".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        Err(Failed { counts, reason }.into())
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        // After a signal the thread ends its command, which must not outlive this process.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(name: &'static str, command: Command) -> Ended {
    let start = Instant::now();
    let mut lines = Vec::new();
    let label = format!("cargo xtask {name}");
    let status = process::run(&label, command, None, |line| {
        lines.push(line.to_owned());
        None
    });
    Ended {
        name,
        lines,
        result: status.and_then(|status| require_success(&label, status)),
        seconds: start.elapsed().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::shell;

    fn next(script: &str) -> Result<Counts> {
        let (sender, ended) = mpsc::channel();
        sender.send(run("a", shell(script))).unwrap();
        let meanwhile = Meanwhile { ended, thread: None };
        meanwhile.next()
    }

    #[test]
    fn counts_are_those_of_the_closing_line() {
        let counts = next("echo 9 passed, 9 failed; echo; echo '7 passed, 0 failed, 2 skipped'").unwrap();
        let expected = Counts {
            passed: 7,
            failed: 0,
            skipped: 2,
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn commands_run_one_after_the_other() {
        // This program is the test's own, which lists its tests and runs none.
        let meanwhile = Meanwhile::start(&["--list", "--help"]).unwrap();
        for _ in 0..2 {
            let error = meanwhile.next().unwrap_err();
            assert_eq!(error.to_string(), "no test passed");
        }
        assert!(meanwhile.next().is_err());
    }

    #[test]
    fn a_command_that_fails_or_says_nothing_is_a_failure() {
        let error = next("echo 7 passed, 1 failed; exit 1").unwrap_err();
        assert_eq!(error.downcast::<Failed>().unwrap().counts.failed, 1);
        assert!(next("exit 0").is_err());
        assert!(next("echo 0 passed, 0 failed").is_err());
        let (_, ended) = mpsc::channel();
        assert!(Meanwhile { ended, thread: None }.next().is_err());
    }
}
