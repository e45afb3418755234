//! Running a command: its lines as they come, a progress line, no orphans.

use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A child that does not outlive its handle.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only where the child has ended and was waited for, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end, or kills it at the deadline. Each line of its output goes to `on_line` as it comes; what that
/// returns is printed. The result is `None` where the command was killed.
///
/// Standard output and standard error are one stream, which keeps their order.
pub(crate) fn run(
    label: &str,
    mut command: Command,
    deadline: Option<Duration>,
    mut on_line: impl FnMut(&str) -> Option<String>,
) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let (output, input) = std::io::pipe().context("there is no pipe to be had")?;
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = command
        .spawn()
        .map(KillOnDrop)
        .with_context(|| format!("`{}` cannot be started", command.get_program().display()))?;
    // It holds the pipe's other end, which would keep the output open.
    drop(command);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || forward(output, &sender));

    let mut progress = Progress::new(label, start);
    loop {
        progress.renew();
        let left = deadline.map(|deadline| deadline.saturating_sub(start.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            progress.clear();
            return Ok(None);
        }
        match lines.recv_timeout(left.unwrap_or(TICK).min(TICK)) {
            Ok(line) => {
                if let Some(text) = on_line(&line) {
                    progress.clear();
                    println!("{text}");
                } else {
                    progress.detail = line;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    progress.clear();
    child
        .0
        .wait()
        .map(Some)
        .context("the end of the command cannot be observed")
}

/// Runs `command` without a deadline; its output is shown only where it fails, which is then an error.
pub(crate) fn run_quietly(label: &str, command: Command) -> Result<()> {
    let mut output = Vec::new();
    let status = run(label, command, None, |line| {
        output.push(line.to_owned());
        None
    })?;
    require_success(label, status).inspect_err(|_| output.iter().for_each(|line| println!("{line}")))
}

/// Sends each line until there is no more or nobody listens.
fn forward(from: impl Read, to: &Sender<String>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while matches!(from.read_until(b'\n', &mut bytes), Ok(1..)) {
        let text = String::from_utf8_lossy(&bytes);
        if to.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
            return;
        }
        bytes.clear();
    }
}

/// Where a program is that would be run by this name.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Fails where a command that had to succeed did not.
pub(crate) fn require_success(what: &str, status: Option<ExitStatus>) -> Result<()> {
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{what} ended with {status}"),
        None => bail!("{what} did not end within its deadline"),
    }
}

/// How often the progress line is renewed.
const TICK: Duration = Duration::from_millis(500);
/// What takes less than this needs no progress line.
const QUIET: Duration = Duration::from_secs(2);
/// How often a log that nobody watches gets a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// A line that says what runs and for how long: rewritten in place on a terminal, once a minute elsewhere.
struct Progress<'a> {
    label: &'a str,
    start: Instant,
    terminal: bool,
    shown: bool,
    last: Instant,
    detail: String,
}

impl<'a> Progress<'a> {
    fn new(label: &'a str, start: Instant) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self {
            label,
            start,
            terminal,
            shown: false,
            last: start,
            detail: String::new(),
        }
    }

    fn renew(&mut self) {
        let elapsed = self.start.elapsed();
        let due = if self.terminal { TICK } else { SIGN_OF_LIFE };
        if elapsed < QUIET || self.last.elapsed() < due {
            return;
        }
        self.last = Instant::now();
        if self.terminal {
            let detail: String = self.detail.trim().chars().take(60).collect();
            eprint!("\r\x1b[2K  {}: {} s  {detail}", self.label, elapsed.as_secs());
            // A progress line that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
            self.shown = true;
        } else {
            println!("  {}: running for {} s", self.label, elapsed.as_secs());
        }
    }

    fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[2K");
            self.shown = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_keep_their_order_and_the_last_needs_no_newline() {
        let mut seen = Vec::new();
        let script = "printf 'a\\r\\nb\\n'; printf 'c\\n' >&2; printf d; exit 3";
        let status = run("test", shell(script), None, |line| {
            seen.push(line.to_owned());
            None
        })
        .unwrap();
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(seen, ["a", "b", "c", "d"]);
        assert!(require_success("it", status).is_err());
    }

    #[test]
    fn a_command_that_hangs_is_killed_at_its_deadline() {
        let start = Instant::now();
        let mut pid = String::new();
        let deadline = Duration::from_millis(300);
        let status = run("test", shell("echo $$; exec sleep 600"), Some(deadline), |line| {
            line.clone_into(&mut pid);
            None
        })
        .unwrap();
        assert_eq!(status, None);
        assert!(start.elapsed() >= deadline && start.elapsed() < Duration::from_secs(60));
        assert!(!std::path::Path::new("/proc").join(pid).exists());
    }
}
