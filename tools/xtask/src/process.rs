//! Running a command: its lines as they come, a progress line, no orphans.

use anyhow::{Context as _, Result, bail};
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A child that ends with its handle, together with the processes that it started.
struct KillOnDrop(Child);

impl KillOnDrop {
    /// Starts `command` as the first process of a new group.
    fn start(command: &mut Command) -> Result<Self> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        command
            .spawn()
            .map(Self)
            .with_context(|| format!("`{}` cannot be started", command.get_program().display()))
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Each of these fails only if no process is left to kill or to wait for, which is the goal.
        #[cfg(unix)]
        if let Some(group) = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The signal that asked this process to end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("stopped by signal {0}")]
pub(crate) struct Stopped(u8);

impl Stopped {
    /// The exit code that a shell reports for a process that ended by this signal.
    pub(crate) const fn exit_code(self) -> u8 {
        self.0.saturating_add(128)
    }
}

/// The number of the signal that came, 0 if none came.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(|| {
    let signal = Arc::new(AtomicUsize::new(0));
    #[cfg(unix)]
    for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let value = usize::try_from(number).unwrap_or(usize::MAX);
        // If it cannot be registered, the signal ends this process as usual.
        let _ = signal_hook::flag::register_usize(number, Arc::clone(&signal), value);
    }
    signal
});

/// The signal that came since the first command was run. From then on a signal does not end this
/// process: the command is killed, files of the run are removed, and the caller gets this error.
pub(crate) fn stopped() -> Option<Stopped> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(Stopped(u8::try_from(signal).unwrap_or(u8::MAX))),
    }
}

/// How often the child, the deadline and signals are checked while the child writes nothing.
const POLL: Duration = Duration::from_millis(100);
/// How long the output has to be silent after the child has ended, if a process that it started
/// holds the other end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long such a process can go on writing. What the child itself wrote is taken by then: it is
/// not more than the pipe and the queue hold.
const LAST_FLOOD: Duration = Duration::from_secs(10);
/// How many lines wait for the caller; then the child waits, too.
const QUEUE: usize = 1024;
/// Bytes of a line. A longer one is taken in parts.
const LONGEST_LINE: u64 = 64 * 1024;

/// Runs `command` to its end, or kills it at the deadline; the processes that it started end with
/// it. Each line of its output goes to `on_line` as it comes; what that returns is printed. The
/// result is `None` if the command was killed.
///
/// Standard output and standard error are one stream, which keeps their order. A line of more than
/// 64 KiB is taken in parts.
///
/// # Errors
///
/// [`Stopped`] if a signal came; the command is killed then, too.
pub(crate) fn run(
    label: &str,
    mut command: Command,
    deadline: Option<Duration>,
    mut on_line: impl FnMut(&str) -> Option<String>,
) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    let is_late = || deadline.is_some_and(|deadline| start.elapsed() >= deadline);
    LazyLock::force(&SIGNAL);
    let (output, input) = std::io::pipe().context("cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = KillOnDrop::start(&mut command)?;
    // The command holds the pipe's other end, which would keep the output open.
    drop(command);
    let (sender, lines) = mpsc::sync_channel(QUEUE);
    thread::spawn(move || forward(output, &sender));

    let mut progress = Progress::new(label, start);
    let mut is_open = true;
    let mut end = None;
    let mut last_line = start;
    while is_open || end.is_none() {
        if let Some(stopped) = stopped() {
            return Err(stopped.into());
        }
        if end.is_none() {
            let status = child.0.try_wait().context("the command cannot be observed")?;
            end = status.map(|status| (status, Instant::now()));
        }
        match end {
            None if is_late() => return Ok(None),
            Some((_, since)) if since.elapsed() >= LAST_FLOOD => break,
            Some((_, since)) if since.max(last_line).elapsed() >= LAST_WORDS => break,
            _ => progress.renew(),
        }
        if !is_open {
            thread::sleep(POLL);
            continue;
        }
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                if let Some(text) = on_line(&line) {
                    progress.clear();
                    println!("{text}");
                } else {
                    progress.detail = line;
                }
                last_line = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => is_open = false,
        }
    }
    Ok(end.map(|(status, _)| status))
}

/// Runs `command` without a deadline; its output is shown only if it fails, which is then an error.
pub(crate) fn run_quietly(label: &str, command: Command) -> Result<()> {
    let mut output = Vec::new();
    let status = run(label, command, None, |line| {
        output.push(line.to_owned());
        None
    })?;
    require_success(label, status).inspect_err(|_| output.iter().for_each(|line| println!("{line}")))
}

/// Sends each line until the end or until the receiver is gone.
fn forward(from: impl Read, to: &SyncSender<String>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while matches!(
        (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut bytes),
        Ok(1..)
    ) {
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

/// Fails if a command that had to succeed did not.
pub(crate) fn require_success(what: &str, status: Option<ExitStatus>) -> Result<()> {
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{what} ended with {status}"),
        None => bail!("{what} did not end within its deadline"),
    }
}

/// How often the progress line is renewed.
const TICK: Duration = Duration::from_millis(500);
/// A command that takes less than this gets no progress line.
const QUIET: Duration = Duration::from_secs(2);
/// When a reader that is not a terminal, such as a log, gets its first line.
const FIRST_SIGN: Duration = Duration::from_secs(10);
/// How often it gets one afterwards.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// A line with what runs, for how long, and its last output: rewritten in place on a terminal, once
/// a minute elsewhere. It goes when the command ends.
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
        let due = match (self.terminal, self.shown) {
            (true, _) => TICK,
            (false, false) => FIRST_SIGN,
            (false, true) => SIGN_OF_LIFE,
        };
        if elapsed < QUIET || self.last.elapsed() < due {
            return;
        }
        self.last = Instant::now();
        let detail: String = self.detail.trim().chars().take(60).collect();
        if self.terminal {
            eprint!("\r\x1b[2K  {}: {} s  {detail}", self.label, elapsed.as_secs());
            // A progress line that cannot be shown is not a reason to stop.
            let _ = std::io::stderr().flush();
        } else {
            println!("  {}: running for {} s  {detail}", self.label, elapsed.as_secs());
        }
        self.shown = true;
    }

    fn clear(&mut self) {
        if self.terminal && self.shown {
            eprint!("\r\x1b[2K");
            self.shown = false;
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn shell(script: &str) -> Command {
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
        assert!(!is_alive(&pid));
    }

    #[test]
    fn the_deadline_holds_for_a_command_that_has_closed_its_output() {
        let start = Instant::now();
        let deadline = Duration::from_millis(300);
        let status = run(
            "test",
            shell("exec >&- 2>&-; exec sleep 600"),
            Some(deadline),
            |_| None,
        )
        .unwrap();
        assert_eq!(status, None);
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_command_that_has_closed_its_output_is_waited_for() {
        let script = "exec >&- 2>&-; sleep 1; exit 7";
        let status = run("test", shell(script), Some(Duration::from_secs(60)), |_| None).unwrap();
        assert_eq!(status.unwrap().code(), Some(7));
    }

    #[test]
    fn a_command_has_ended_although_something_that_it_started_holds_its_output() {
        let start = Instant::now();
        let mut pid = String::new();
        let script = "sleep 600 & echo $!; exit 5";
        let status = run("test", shell(script), Some(Duration::from_secs(60)), |line| {
            line.clone_into(&mut pid);
            None
        })
        .unwrap();
        assert_eq!(status.unwrap().code(), Some(5));
        assert!(start.elapsed() < Duration::from_secs(30));
        wait_for(|| !is_alive(&pid));
    }

    #[test]
    fn last_output_of_a_command_is_not_lost() {
        let mut lines = 0;
        let script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 600 & exit 0";
        let status = run("test", shell(script), Some(Duration::from_secs(60)), |_| {
            lines += 1;
            None
        })
        .unwrap();
        assert!(status.unwrap().success());
        assert_eq!(lines, 2000);
    }

    #[test]
    fn lines_are_not_lost_if_the_caller_is_slower_than_the_command() {
        let mut lines = 0;
        let status = run("test", shell("seq 1500"), Some(Duration::from_secs(60)), |_| {
            lines += 1;
            thread::sleep(Duration::from_millis(1));
            None
        });
        assert!(status.unwrap().unwrap().success());
        assert_eq!(lines, 1500);
    }

    #[test]
    fn output_without_an_end_ends_with_the_command() {
        let start = Instant::now();
        let status = run(
            "test",
            shell("yes & exit 4"),
            Some(Duration::from_secs(60)),
            |_| None,
        )
        .unwrap();
        assert_eq!(status.unwrap().code(), Some(4));
        assert!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    }

    #[test]
    fn output_without_line_ends_is_taken_in_parts() {
        let (mut bytes, mut longest) = (0, 0);
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end";
        let mut last = String::new();
        let status = run("test", shell(script), Some(Duration::from_secs(60)), |line| {
            bytes += line.len();
            longest = longest.max(line.len());
            line.clone_into(&mut last);
            None
        });
        assert!(status.unwrap().unwrap().success());
        assert_eq!((bytes, last.as_str()), (1_000_003, "end"));
        assert!(longest <= 64 * 1024, "{longest}");
    }

    /// Whether a process runs; one that ended and was not waited for yet does not.
    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Tells the process that is sent signals where to put its files.
    #[cfg(unix)]
    const FOLDER: &str = "XTASK_TEST_FOLDER";

    /// Not a separate test: the process that the next test sends signals to.
    #[cfg(unix)]
    #[test]
    #[ignore = "run by a_signal_ends_the_command_and_removes_the_runs_files"]
    fn hangs_until_a_signal_comes() {
        let Ok(folder) = std::env::var(FOLDER) else { return };
        let files = tempfile::tempdir_in(&folder).unwrap();
        std::fs::write(files.path().join("a_file"), "").unwrap();
        let script = "sleep 600 & echo $! $$; wait";
        let result = run("test", shell(script), None, |line| {
            std::fs::write(format!("{folder}/pids"), line).unwrap();
            None
        });
        let stopped = result.unwrap_err().downcast::<Stopped>().unwrap();
        drop(files);
        std::fs::write(format!("{folder}/code"), stopped.exit_code().to_string()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_signal_ends_the_command_and_removes_the_runs_files() {
        use rustix::process::{Pid, Signal, kill_process};
        for (signal, code) in [
            (Signal::HUP, "129"),
            (Signal::INT, "130"),
            (Signal::QUIT, "131"),
            (Signal::TERM, "143"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut xtask = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "process::tests::hangs_until_a_signal_comes",
                    "--ignored",
                ])
                .env(FOLDER, folder.path())
                .stdout(Stdio::null())
                .spawn()
                .map(KillOnDrop)
                .unwrap();
            let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
            wait_for(|| read("pids").split_whitespace().count() == 2);
            let pids = read("pids");
            assert!(pids.split_whitespace().all(is_alive));
            kill_process(Pid::from_child(&xtask.0), signal).unwrap();
            assert!(xtask.0.wait().unwrap().success());
            wait_for(|| !pids.split_whitespace().any(is_alive));
            assert_eq!(read("code"), code);
            let left: Vec<_> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(left.len(), 2, "{left:?}");
        }
    }

    fn wait_for(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(30), "it takes too long");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
