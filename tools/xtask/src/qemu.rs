//! One run of a machine: files, command line, deadline, exit code.

use crate::machine::{Boot, DEBUG_EXIT_FAILURE, Firmware, Machine, Mode, Smis, Variant};
use crate::process;
use crate::report::{Counts, Failed};
use crate::scenarios::Scenarios;
use crate::verdict::{Transcript, VerdictError};
use anyhow::{Context as _, Result};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use xshell::Shell;

/// QEMU's log of SMIs, within the directory of a run.
const SMI_LOG: &str = "smis.log";

/// QEMU's arguments for a log of each SMI (`SMM: enter`) and of each byte on the serial line.
pub(crate) fn log_smis(dir: &Path) -> [OsString; 4] {
    let log = dir.join(SMI_LOG).into_os_string();
    ["-d".into(), "int,trace:serial_write".into(), "-D".into(), log]
}

/// The file for QEMU's debug console, within the directory of a run: the firmware's output after
/// the operating system has taken the serial line.
pub(crate) fn debug_console(dir: &Path) -> PathBuf {
    dir.join("debug.log")
}

/// How many of the last serial lines are shown after a failure.
const LAST_LINES: usize = 30;

/// Builds and boots a machine, and judges what it said.
pub(crate) fn test(
    shell: &Shell,
    machine: &Machine,
    variant: &Variant,
    deadline: Duration,
    scenarios: &mut Scenarios,
    own: Option<&Firmware>,
) -> Result<Counts> {
    if variant.refused {
        let words = Words::of(variant);
        return refusal(shell, machine, variant.name, words, deadline);
    }
    boot(shell, machine, (variant, own), Mode::Test, deadline, scenarios)
}

/// Builds and boots a machine that makes very many calls, and judges what it said.
pub(crate) fn soak(
    shell: &Shell,
    machine: &Machine,
    variant: &Variant,
    deadline: Duration,
) -> Result<Counts> {
    let expected = Variant::soak(variant.name);
    let mut scenarios = Scenarios::default();
    boot(
        shell,
        machine,
        (&expected, None),
        Mode::Soak,
        deadline,
        &mut scenarios,
    )
}

fn boot(
    shell: &Shell,
    machine: &Machine,
    (variant, own): (&Variant, Option<&Firmware>),
    mode: Mode,
    deadline: Duration,
    scenarios: &mut Scenarios,
) -> Result<Counts> {
    let mut words = Words::of(variant);
    let mut transcript = Transcript::default();
    let is_protocol = |line: &str| {
        ["TEST ", "SOAK ", "SMIS ", "DONE "]
            .iter()
            .any(|word| line.starts_with(word))
    };
    let place = (variant.name, own);
    let run = Run::start(shell, machine, place, mode, deadline, |line| {
        transcript.take(line);
        words.take(line);
        is_protocol(line)
    })?;
    let taken = match machine.smis {
        Smis::LoggedSince(since) => Some(count_smis(&run.dir.path().join(SMI_LOG), since, false)),
        Smis::LoggedAfterTakeover(since) => Some(count_smis(&run.dir.path().join(SMI_LOG), since, true)),
        Smis::None | Smis::CountedByTheGuest => None,
    };
    if let Some(Ok(taken)) = taken {
        let context = match machine.smis {
            Smis::LoggedAfterTakeover(_) => "under the operating system's page tables",
            _ => "since the firmware started this code",
        };
        println!("  SMIs taken {context}: {taken}");
    }
    // Without a debug console there is no such file.
    for line in std::fs::read_to_string(debug_console(run.dir.path()))
        .unwrap_or_default()
        .lines()
    {
        words.take(line);
    }
    let verdict = run
        .in_time()
        .and_then(|()| {
            taken
                .transpose()
                .map_err(|error| VerdictError::NotCounted(format!("{error:#}")))
        })
        .and_then(|taken| transcript.judge(taken, variant, scenarios))
        .and_then(|()| match machine.smis {
            Smis::CountedByTheGuest => transcript.require_smis(),
            Smis::None | Smis::LoggedSince(_) | Smis::LoggedAfterTakeover(_) => Ok(()),
        })
        .and_then(|()| words.judge())
        .and_then(|()| run.exit_code());
    println!("  from power-on to the verdict: {:.1} s", run.time.as_secs_f64());
    scenarios.add(&machine.stage_name(variant), transcript.verdicts());
    run.conclude(verdict, transcript.counts())
}

/// Builds and boots a machine that its firmware must refuse, with these words in a line; the guest
/// then ends with a failure.
fn refusal(
    shell: &Shell,
    machine: &Machine,
    variant: &'static str,
    mut words: Words,
    deadline: Duration,
) -> Result<Counts> {
    let place = (variant, None);
    let mut run = Run::start(shell, machine, place, Mode::Test, deadline, |line| {
        words.take(line)
    })?;
    run.expected = DEBUG_EXIT_FAILURE;
    let verdict = run
        .in_time()
        .and_then(|()| run.exit_code())
        .and_then(|()| words.judge());
    run.conclude(verdict, Counts::ONE)
}

/// Words that a serial line must contain, if any.
struct Words {
    due: Option<&'static str>,
    said: bool,
}

impl Words {
    fn of(variant: &Variant) -> Self {
        Self {
            due: variant.says,
            said: false,
        }
    }

    /// Takes a line; `true` if the words are in it.
    fn take(&mut self, line: &str) -> bool {
        let is_it = self.due.is_some_and(|due| line.contains(due));
        self.said |= is_it;
        is_it
    }

    fn judge(&self) -> Result<(), VerdictError> {
        match self.due {
            Some(due) if !self.said => Err(VerdictError::NotSaid(due)),
            _ => Ok(()),
        }
    }
}

/// Builds and boots a machine for its demo; `show` prints what it says. Returns what it logged.
pub(crate) fn demo(shell: &Shell, machine: &Machine, deadline: Duration, show: bool) -> Result<String> {
    let variant = machine.variants.first().map_or("", |variant| variant.name);
    let mut log = String::new();
    let mut begun = false;
    let run = Run::start(shell, machine, (variant, None), Mode::Demo, deadline, |line| {
        let logged = logged(line);
        for text in logged.iter().flat_map(|line| [line, "\n"]) {
            log.push_str(text);
        }
        let is_shown =
            |starts: &[&str]| starts.is_empty() || starts.iter().any(|start| line.starts_with(start));
        begun |= line.starts_with(machine.demo_since);
        show && begun && logged.is_none() && is_shown(machine.demo_lines)
    })?;
    let verdict = run.in_time().and_then(|()| run.exit_code());
    run.conclude(verdict, Counts::ONE).map(|_| log)
}

/// The text of a line of a demo's log: behind the demo's own mark, or as Patina's serial logger
/// writes it.
fn logged(line: &str) -> Option<&str> {
    let is_logged = || {
        let levels = ["TRACE - ", "DEBUG - ", "INFO - ", "WARN - ", "ERROR - "];
        levels.iter().any(|level| line.starts_with(level))
    };
    line.strip_prefix("LOG ").or_else(|| is_logged().then_some(line))
}

/// A run that has ended.
struct Run {
    dir: tempfile::TempDir,
    command_line: String,
    last_lines: VecDeque<String>,
    status: Option<ExitStatus>,
    expected: i32,
    deadline: Duration,
    time: Duration,
}

impl Run {
    /// Boots the machine and waits for its end. Serial lines are shown if `take` says so.
    fn start(
        shell: &Shell,
        machine: &Machine,
        (variant, own): (&'static str, Option<&Firmware>),
        mode: Mode,
        deadline: Duration,
        mut take: impl FnMut(&str) -> bool,
    ) -> Result<Self> {
        for tool in machine.tools {
            tool.require(shell)?;
        }
        let image = (machine.build)(shell)?;
        let dir = tempfile::Builder::new().prefix("patina-mm-").tempdir()?;
        let boot = Boot {
            image: &image,
            dir: dir.path(),
            mode,
            variant,
            own,
        };
        let command = (machine.command)(shell, &boot)?;
        let command_line = quoted(&command);
        println!("  {command_line}");

        let mut last_lines = VecDeque::new();
        let start = Instant::now();
        let status = process::run(machine.name, command, Some(deadline), |line| {
            // The firmware's console moves the cursor and sets colours.
            let text = anstream::adapter::strip_str(line).to_string();
            // The mark of a demo's line is for this program.
            let shown = take(&text).then(|| text.strip_prefix("DEMO ").unwrap_or(&text).to_owned());
            if last_lines.len() == LAST_LINES {
                last_lines.pop_front();
            }
            last_lines.push_back(text);
            shown
        })?;
        Ok(Self {
            dir,
            command_line,
            last_lines,
            status,
            expected: machine.exit_code,
            deadline,
            time: start.elapsed(),
        })
    }

    /// Whether QEMU ended by itself.
    fn in_time(&self) -> Result<(), VerdictError> {
        let seconds = self.deadline.as_secs();
        self.status.map(drop).ok_or(VerdictError::Deadline { seconds })
    }

    /// Whether QEMU ended as it does after a success.
    fn exit_code(&self) -> Result<(), VerdictError> {
        match self.status {
            Some(status) if status.code() == Some(self.expected) => Ok(()),
            _ => Err(VerdictError::WrongExit {
                expected: self.expected,
                found: self.describe_end(),
            }),
        }
    }

    fn describe_end(&self) -> String {
        self.status
            .map_or_else(|| "a kill".to_owned(), |status| status.to_string())
    }

    /// If the run failed, shows what helps to find the fault, and keeps the files of the run.
    fn conclude(self, verdict: Result<(), VerdictError>, counts: Counts) -> Result<Counts> {
        let Err(error) = verdict else {
            return Ok(counts);
        };
        println!(
            "  QEMU ended with {}; the last serial lines:",
            self.describe_end()
        );
        for line in &self.last_lines {
            println!("  | {line}");
        }
        println!("  the command line:\n  {}", self.command_line);
        println!(
            "  the files of this run are kept in {}",
            self.dir.keep().display()
        );
        Err(Failed {
            counts,
            reason: error.to_string(),
        }
        .into())
    }
}

/// How many SMIs QEMU's log shows as taken since the firmware started our code. The log has serial
/// output too, byte by byte, so that the order is certain: the firmware itself takes hundreds of
/// SMIs before. With `elsewhere` those under the page tables of the SMIs before are not counted.
fn count_smis(log: &Path, since: &str, elsewhere: bool) -> Result<u64> {
    let file = File::open(log).with_context(|| format!("QEMU wrote no {}", log.display()))?;
    let mut taken = None;
    // The firmware's page tables, by CR3.
    let mut page_tables = BTreeSet::new();
    let mut in_smi = false;
    let mut serial_line = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some((_, byte)) = line.split_once("serial_write write addr 0x00 val 0x") {
            match u8::from_str_radix(byte.trim(), 16).with_context(|| format!("QEMU's log has {line:?}"))? {
                b'\n' => serial_line.clear(),
                byte => serial_line.push(byte),
            }
            if taken.is_none() && serial_line.ends_with(since.as_bytes()) {
                taken = Some(0);
            }
        } else if line.starts_with("SMM: enter") {
            in_smi = true;
            taken = taken.map(|taken: u64| taken.saturating_add(u64::from(!elsewhere)));
        } else if in_smi && let Some((_, registers)) = line.split_once("CR3=") {
            in_smi = false;
            let page_table = registers.split_whitespace().next().unwrap_or_default().to_owned();
            match &mut taken {
                None => drop(page_tables.insert(page_table)),
                Some(taken) if elsewhere && !page_tables.contains(&page_table) => {
                    *taken = taken.saturating_add(1);
                }
                Some(_) => {}
            }
        }
    }
    taken.with_context(|| {
        format!(
            "the firmware started no code: its serial line never said {:?}",
            since.trim()
        )
    })
}

/// The command line, quoted for a shell.
fn quoted(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:%@".contains(c);
        if word.chars().all(is_plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smis_are_counted_from_the_start_of_our_code() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let serial = |text: &str| -> String {
            text.bytes()
                .map(|byte| format!("serial_write write addr 0x00 val 0x{byte:02x}\n"))
                .collect()
        };
        let smi = "SMM: enter\nRAX=1\nSMM: after RSM\nRIP=2\nnot SMM: enter\n";
        let started = [
            smi,
            &serial("g\no now go "),
            smi,
            &serial("us\r\n"),
            smi,
            &serial("go "),
            smi,
        ]
        .concat();
        std::fs::write(&log, started).unwrap();
        assert_eq!(count_smis(&log, "go ", false).unwrap(), 3);
        std::fs::write(&log, smi).unwrap();
        assert!(count_smis(&log, "go ", false).is_err());
        assert!(count_smis(&dir.path().join("none"), "go ", false).is_err());

        // The firmware's page tables at 1000, the operating system's at 9000.
        let smi = |page_table| {
            format!("SMM: enter\nCR0=1 CR2=0 CR3={page_table} CR4=0\nSMM: after RSM\nCR3=9000\n")
        };
        let taken_over = [
            &smi("1000"),
            &serial("go "),
            &smi("1000"),
            &smi("9000"),
            &smi("9000"),
        ];
        std::fs::write(&log, taken_over.map(String::as_str).concat()).unwrap();
        assert_eq!(count_smis(&log, "go ", true).unwrap(), 2);
        assert_eq!(count_smis(&log, "go ", false).unwrap(), 3);
    }

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let mut command = Command::new("qemu");
        command.args(["-drive", "file=a b,,c", "it's"]);
        assert_eq!(quoted(&command), r"qemu -drive 'file=a b,,c' 'it'\''s'");
    }
}
