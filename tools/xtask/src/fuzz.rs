//! The fuzz targets of `mm_fuzz` under libFuzzer, with AddressSanitizer.

use crate::process::{self, require_success};
use crate::report::Counts;
use crate::setup::CXX;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use xshell::{Shell, cmd};

/// A separate workspace, laid out as cargo-fuzz does.
const MANIFEST: &str = "fuzz/Cargo.toml";
/// The committed inputs, a folder for each target.
const CORPUS: &str = "fuzz/corpus";
/// The folder of products, new inputs and inputs that fail.
const TARGET_DIR: &str = "fuzz/target";

/// The flags that cargo-fuzz passes to the compiler: a counter for each edge of the control flow,
/// the operands of comparisons, and AddressSanitizer. The standard library is the compiler's own,
/// and is not instrumented.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// How long a target may take to end after its time is over.
const GRACE: Duration = Duration::from_secs(240);

/// Feeds arbitrary input to each target, and compares the results with reference models.
///
/// New inputs that reach more code are kept in fuzz/target/corpus, and are used again the next
/// time. An input that fails is kept, too, and shown. The committed inputs are also replayed by
/// `cargo test -p mm_fuzz`, without libFuzzer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask fuzz                                        a minute for each target
  cargo xtask fuzz --seconds 600 --target transaction     ten minutes for one
  cargo xtask fuzz --target pe --input crash-4711         runs one input again
  cargo xtask fuzz --seconds 0 --minimize                 writes the smallest corpus with the same coverage to fuzz/corpus")]
pub(crate) struct Fuzz {
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Only this target; can be given more than once.
    #[arg(long, value_name = "T")]
    target: Vec<String>,
    /// Runs this input and no other.
    #[arg(long, value_name = "FILE", value_parser = crate::file, requires = "target")]
    input: Option<PathBuf>,
    /// Afterwards replaces the committed corpus by the smallest set of inputs that reaches the same
    /// code.
    #[arg(long, conflicts_with = "input")]
    minimize: bool,
}

pub(crate) fn run(shell: &Shell, options: &Fuzz) -> Result<ExitCode> {
    let all = targets(shell)?;
    for name in &options.target {
        ensure!(
            all.contains(name),
            "there is no target {name}, but {}",
            all.join(", ")
        );
    }
    let wanted = |name: &&String| options.target.is_empty() || options.target.contains(name);
    let programs = build(shell)?;
    if let Some(input) = &options.input {
        for name in all.iter().filter(wanted) {
            let mut command = Command::new(programs.join(name));
            command.arg(input).env("ASAN_OPTIONS", ASAN);
            let status = command.status().context("the target cannot be started")?;
            ensure!(status.success(), "{name} fails with {}", input.display());
            println!("{name}: {} does not fail", input.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for name in all.iter().filter(wanted) {
        match fuzz(&programs, name, options.seconds) {
            Ok(seen) => {
                println!("  {}", seen.row(name));
                rows.push(seen.row(name));
            }
            Err(error) if process::stopped().is_some() => return Err(error),
            Err(error) => {
                println!("error: {name}: {error:#}");
                failures.push(name.as_str());
            }
        }
        if options.minimize {
            minimize(&programs, name)?;
        }
    }
    println!("\n{HEADING}");
    rows.iter().for_each(|row| println!("{row}"));
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}", failures.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Compiles all targets with the sanitizer, and gives each some seconds.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    const SECONDS: u64 = 3;
    let mut counts = Counts::default();
    let check = cmd!(shell, "cargo fmt --manifest-path {MANIFEST} --check");
    process::run_quietly("fuzz: format", check.into())?;
    let programs = build(shell)?;
    for name in targets(shell)? {
        println!("  {}", fuzz(&programs, &name, SECONDS)?.row(&name));
        counts.add(Counts::ONE);
    }
    Ok(counts)
}

/// The names of the targets: those of the programs.
fn targets(shell: &Shell) -> Result<Vec<String>> {
    let manifest = shell.read_file(MANIFEST)?;
    Ok(names(&manifest))
}

fn names(manifest: &str) -> Vec<String> {
    let programs = manifest.split("[[bin]]").skip(1);
    let name = |program: &str| Some(program.split("name = \"").nth(1)?.split('"').next()?.to_owned());
    programs.filter_map(name).collect()
}

/// Compiles the targets. Returns where they are.
fn build(shell: &Shell) -> Result<PathBuf> {
    CXX.require(shell)?;
    let version = cmd!(shell, "rustc -vV").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not name its host")?;
    // With --target the flags are not for build scripts and macros.
    let command = cmd!(
        shell,
        "cargo build --release --manifest-path {MANIFEST} --target-dir {TARGET_DIR} --target {host}"
    )
    .env("RUSTFLAGS", FLAGS.join(" "));
    process::run_quietly("build of the fuzz targets", command.into())?;
    Ok(shell.current_dir().join(TARGET_DIR).join(host).join("release"))
}

/// Shared memory lives until the process ends.
const ASAN: &str = "detect_leaks=0";

fn folder(kind: &str, name: &str) -> Result<PathBuf> {
    let folder = Path::new(TARGET_DIR).join(kind).join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    Ok(folder)
}

/// Runs one target for this many seconds.
fn fuzz(programs: &Path, name: &str, seconds: u64) -> Result<Seen> {
    let mut command = Command::new(programs.join(name));
    let artifacts = folder("artifacts", name)?;
    command
        .args(["-print_final_stats=1", "-rss_limit_mb=2048", "-timeout=120"])
        // To libFuzzer 0 means without end.
        .arg(format!("-max_total_time={}", seconds.max(1)))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(folder("corpus", name)?)
        .arg(Path::new(CORPUS).join(name))
        .env("ASAN_OPTIONS", ASAN);
    let before = children_cpu();
    let mut seen = Seen::default();
    let mut output = Vec::new();
    let deadline = Duration::from_secs(seconds).saturating_add(GRACE);
    let status = process::run(name, command, Some(deadline), |line| {
        seen.read(line);
        output.push(line.to_owned());
        None
    })?;
    seen.cpu = children_cpu().zip(before).map(|(after, before)| after - before);
    if let Err(error) = require_success(name, status) {
        const LAST: usize = 60;
        let from = output.len().saturating_sub(LAST);
        output.iter().skip(from).for_each(|line| println!("  {line}"));
        if let Some(input) = seen.input {
            bail!("{error}; `cargo xtask fuzz --target {name} --input {input}` runs it again");
        }
        return Err(error);
    }
    ensure!(seen.executions > 0, "no input was run");
    Ok(seen)
}

/// Replaces the committed inputs by the fewest of all inputs that reach the same code.
fn minimize(programs: &Path, name: &str) -> Result<()> {
    let committed = Path::new(CORPUS).join(name);
    let new = tempfile::tempdir()?;
    let mut command = Command::new(programs.join(name));
    command
        .arg("-set_cover_merge=1")
        .arg(new.path())
        .arg(folder("corpus", name)?)
        .arg(&committed)
        .env("ASAN_OPTIONS", ASAN);
    process::run_quietly(&format!("{name}: minimize"), command)?;
    std::fs::remove_dir_all(&committed)?;
    std::fs::create_dir_all(&committed)?;
    let mut bytes: u64 = 0;
    let mut inputs: usize = 0;
    for file in std::fs::read_dir(new.path())? {
        let file = file?;
        bytes = bytes.saturating_add(std::fs::copy(file.path(), committed.join(file.file_name()))?);
        inputs = inputs.saturating_add(1);
    }
    println!(
        "  {name}: {inputs} inputs, {bytes} bytes in {}",
        committed.display()
    );
    Ok(())
}

/// Processor time of all children that have ended, in seconds. `None` without `/proc`.
fn children_cpu() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    cpu(&std::fs::read_to_string("/proc/self/stat").ok()?).map(|ticks| ticks / TICKS_PER_SECOND)
}

/// Fields cutime and cstime. The second field, in parentheses, may have spaces.
fn cpu(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(13);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

const HEADING: &str =
    "| target       |  executions | edges | features | corpus | CPU seconds |\n|---|---|---|---|---|---|";

/// The output of libFuzzer.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    executions: u64,
    edges: u64,
    features: u64,
    corpus: u64,
    cpu: Option<f64>,
    /// The input that failed.
    input: Option<String>,
}

impl Seen {
    /// Reads a line such as `#123 NEW cov: 45 ft: 67 corp: 8/9b …` or
    /// `stat::number_of_executed_units: 123`.
    fn read(&mut self, line: &str) {
        let number = |text: &str| {
            let end = text
                .find(|char: char| !char.is_ascii_digit())
                .unwrap_or(text.len());
            text.get(..end)?.parse().ok()
        };
        let behind = |word: &str| {
            line.split_once(word)
                .and_then(|(_, rest)| number(rest.trim_start()))
        };
        self.executions = behind("stat::number_of_executed_units:").unwrap_or(self.executions);
        self.edges = behind(" cov:").unwrap_or(self.edges);
        self.features = behind(" ft:").unwrap_or(self.features);
        self.corpus = behind(" corp:").unwrap_or(self.corpus);
        if let Some((_, input)) = line.split_once("Test unit written to ") {
            self.input = Some(input.to_owned());
        }
    }

    fn row(&self, name: &str) -> String {
        let cpu = self.cpu.map_or_else(|| "?".to_owned(), |cpu| format!("{cpu:.0}"));
        let Self {
            executions,
            edges,
            features,
            corpus,
            ..
        } = self;
        format!("| {name:12} | {executions:11} | {edges:5} | {features:8} | {corpus:6} | {cpu:>11} |")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libfuzzer_are_read() {
        let mut seen = Seen::default();
        seen.read("#220831\tNEW    cov: 626 ft: 902 corp: 86/5979b lim: 1889 exec/s: 15773 rss: 154Mb");
        seen.read("stat::number_of_executed_units: 241248");
        seen.read("artifact_prefix='a/'; Test unit written to a/crash-1");
        let expected = Seen {
            executions: 241_248,
            edges: 626,
            features: 902,
            corpus: 86,
            cpu: None,
            input: Some("a/crash-1".to_owned()),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn processor_time_of_children_is_read_behind_the_name() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 150 50 20 0 1";
        assert_eq!(cpu(stat), Some(200.0));
        assert_eq!(cpu(""), None);
    }

    #[test]
    fn each_program_is_a_target() {
        let manifest = std::fs::read_to_string(crate::root().join(MANIFEST)).unwrap();
        let names = names(&manifest);
        assert!(names.contains(&"transaction".to_owned()), "{names:?}");
        for name in names {
            assert!(
                crate::root().join(CORPUS).join(&name).is_dir(),
                "no corpus for {name}"
            );
        }
    }
}
