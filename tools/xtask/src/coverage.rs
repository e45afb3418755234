//! Which lines of the shipped crates the host's tests run.

use crate::report::{Counts, Failed, Missing};
use crate::setup::LLVM_COV;
use crate::test::TESTS;
use crate::{process, target_dir};
use anyhow::{Context as _, Result};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xshell::{Shell, cmd};

/// Measures with `cargo llvm-cov` which lines of the shipped crates the tests of this host run.
///
/// The lines of tests themselves do not count. Fails below the percentage that is committed here.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask coverage             a table, and the lines that no test runs
  cargo xtask coverage --report    the same of what was measured last")]
pub(crate) struct Coverage {
    /// Do not run the tests: use the last measurement.
    #[arg(long)]
    report: bool,
}

/// Percent of all lines of the shipped crates that have to be covered.
const LEAST: f64 = 97.0;
/// The folder of the crates that are measured.
const SHIPPED: &str = "crates/";
/// The folder of what is compiled with counters, the counters themselves, and the result.
const FOLDER: &str = "coverage";
const LCOV: &str = "coverage.lcov";

pub(crate) fn run(shell: &Shell, options: &Coverage) -> Result<ExitCode> {
    let counters = Counters::new(shell)?;
    if !options.report {
        counters.clear()?;
        process::run_quietly("tests with counters", counters.tests())?;
        counters.export()?;
    }
    let covered = read(shell)?;
    print!("{covered}");
    let passed = covered.percent() >= LEAST;
    if !passed {
        println!("failed: {:.2} % of at least {LEAST} %", covered.percent());
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads the counters of tests that ran, and compares with the percentage that has to be covered.
pub(crate) fn stage(shell: &Shell, counters: &Counters) -> Result<Counts> {
    counters.export()?;
    let covered = read(shell)?;
    print!("{covered}");
    if covered.percent() >= LEAST {
        return Ok(Counts::ONE);
    }
    let reason = format!(
        "{:.2} % of lines, at least {LEAST} % have to be covered",
        covered.percent()
    );
    Err(Failed {
        counts: Counts::default(),
        reason,
    }
    .into())
}

/// Runs the tests of this host with counters of lines.
///
/// `cargo llvm-cov` says what to set for it, and `cargo test` runs them, so that the examples in
/// the documentation run, too.
pub(crate) struct Counters {
    root: PathBuf,
    variables: Vec<(OsString, OsString)>,
}

impl Counters {
    /// Fails with [`Missing`] if a program is not installed.
    pub(crate) fn new(shell: &Shell) -> Result<Self> {
        LLVM_COV.require(shell)?;
        let llvm = Llvm::find(shell)?;
        let folder = target_dir().join(FOLDER);
        let mut variables = vec![
            ("CARGO_TARGET_DIR".into(), folder.into()),
            ("LLVM_COV".into(), llvm.cov.into()),
            ("LLVM_PROFDATA".into(), llvm.profdata.into()),
        ];
        let printed = cmd!(shell, "cargo llvm-cov show-env")
            .envs(variables.iter().cloned())
            .quiet()
            .ignore_stderr()
            .read()?;
        variables.extend(
            printed
                .lines()
                .filter_map(parse_variable)
                .map(|(name, value)| (name.into(), value.into())),
        );
        Ok(Self {
            root: shell.current_dir(),
            variables,
        })
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("cargo");
        command
            .args(arguments)
            .envs(self.variables.iter().cloned())
            .current_dir(&self.root);
        command
    }

    /// Removes the counters of earlier runs, and the result.
    pub(crate) fn clear(&self) -> Result<()> {
        let folder = target_dir().join(FOLDER);
        for file in std::fs::read_dir(folder).into_iter().flatten() {
            let path = file?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("profraw" | "profdata" | "lcov")) {
                std::fs::remove_file(&path).with_context(|| format!("{} stays", path.display()))?;
            }
        }
        Ok(())
    }

    /// The tests of this host.
    pub(crate) fn tests(&self) -> Command {
        self.command(TESTS)
    }

    /// Adds up the counters of the tests that ran.
    fn export(&self) -> Result<()> {
        let lcov = target_dir().join(FOLDER).join(LCOV);
        let mut command = self.command(["llvm-cov", "report", "--lcov", "--output-path"]);
        command.arg(lcov);
        process::run_quietly("sum of the counters", command)
    }
}

/// A variable as a shell would set it: `NAME=value` or `NAME='value'`. No value has a quote in it.
fn parse_variable(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let unquoted = value
        .strip_prefix('\'')
        .and_then(|value| value.strip_suffix('\''));
    Some((name, unquoted.unwrap_or(value)))
}

/// The programs that read the counters, of the same version of LLVM as the compiler's.
struct Llvm {
    cov: PathBuf,
    profdata: PathBuf,
}

impl Llvm {
    /// In this order: the component llvm-tools of the active compiler, Debian's package.
    fn find(shell: &Shell) -> Result<Self> {
        let version = cmd!(shell, "rustc -vV").quiet().read()?;
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
        let host = field("host: ").context("rustc does not name its host")?;
        let llvm = field("LLVM version: ").context("rustc does not name its LLVM")?;
        let major = llvm.split('.').next().unwrap_or(llvm);
        let sysroot = cmd!(shell, "rustc --print sysroot").quiet().read()?;
        let component = Path::new(&sysroot).join("lib/rustlib").join(host).join("bin");
        let debian = PathBuf::from(format!("/usr/lib/llvm-{major}/bin"));
        let found = [component, debian]
            .into_iter()
            .find(|dir| dir.join("llvm-cov").is_file());
        let Some(dir) = found else {
            let package = match major {
                "21" => "llvm-21",
                "22" => "llvm-22",
                _ => "llvm",
            };
            let mut missing = Missing::from_packages(format!("llvm-cov of LLVM {major}"), vec![package]);
            missing.remedy += ", or `rustup component add llvm-tools`";
            return Err(missing.into());
        };
        Ok(Self {
            cov: dir.join("llvm-cov"),
            profdata: dir.join("llvm-profdata"),
        })
    }
}

/// Fails if the programs that read the counters are not installed.
pub(crate) fn require_llvm(shell: &Shell) -> Result<(), Missing> {
    match Llvm::find(shell) {
        Ok(_) => Ok(()),
        Err(error) => Err(error
            .downcast::<Missing>()
            .unwrap_or_else(|error| Missing::from_packages(error.to_string(), vec!["llvm"]))),
    }
}

fn read(shell: &Shell) -> Result<Covered> {
    let lcov = shell.read_file(target_dir().join(FOLDER).join(LCOV))?;
    let root = shell.current_dir();
    let mut files = BTreeMap::new();
    for (name, lines) in parse(&lcov) {
        let Ok(name) = Path::new(name).strip_prefix(&root) else {
            continue;
        };
        let name = name.to_string_lossy().replace('\\', "/");
        if !name.starts_with(SHIPPED) || !name.contains("/src/") {
            continue;
        }
        let source = shell.read_file(&name)?;
        let tests = tests_in(&source);
        let lines: BTreeMap<usize, bool> = lines
            .into_iter()
            .filter(|(line, _)| !tests.iter().any(|range| range.contains(line)))
            .collect();
        files.insert(name, lines);
    }
    // Files that are modules of tests as a whole. The file that declares such a module may have no line of code itself, and is
    // then not among those that were measured.
    let declaring: BTreeSet<PathBuf> = files
        .keys()
        .flat_map(|name| declaring(Path::new(name)))
        .filter(|name| root.join(name).is_file())
        .collect();
    let mut of_tests = Vec::new();
    for name in declaring {
        of_tests.extend(test_files(&name, &shell.read_file(&name)?));
    }
    files.retain(|name, _| {
        !of_tests
            .iter()
            .any(|tests| is_file_or_below(Path::new(name), tests))
    });
    Ok(Covered { files })
}

/// Whether `name` is the module at `module`, a path without an extension, or below it.
fn is_file_or_below(name: &Path, module: &Path) -> bool {
    name.with_extension("") == module || name.starts_with(module)
}

/// Files, and their lines that have code: whether they were run.
fn parse(lcov: &str) -> Vec<(&str, Vec<(usize, bool)>)> {
    let mut files = Vec::new();
    for line in lcov.lines() {
        if let Some(name) = line.strip_prefix("SF:") {
            files.push((name, Vec::new()));
        } else if let Some((line, count)) = line.strip_prefix("DA:").and_then(|data| data.split_once(','))
            && let (Ok(line), Some((_, lines))) = (line.parse(), files.last_mut())
        {
            lines.push((line, count != "0"));
        }
    }
    files
}

/// Whether this line says that what follows is compiled for tests only: those of this crate, or
/// mocks for those of others.
fn is_for_tests(line: &str) -> bool {
    matches!(
        line.trim(),
        "#[cfg(test)]" | r#"#[cfg(any(test, feature = "mockall"))]"#
    )
}

/// The lines of modules and functions that are compiled for tests only, counted from 1. rustfmt
/// puts the last brace of each below the start of its first line.
fn tests_in(source: &str) -> Vec<std::ops::RangeInclusive<usize>> {
    let mut ranges = Vec::new();
    let mut lines = source.lines().enumerate();
    while let Some((start, line)) = lines.next() {
        if !is_for_tests(line) {
            continue;
        }
        let indent = line.len().saturating_sub(line.trim_start().len());
        let is_end = |line: &str| {
            let own = line.len().saturating_sub(line.trim_start().len());
            own == indent && (line.trim_end().ends_with('}') || line.trim_end().ends_with(';'))
        };
        let end = lines.find(|(_, line)| is_end(line)).map_or(start, |(end, _)| end);
        ranges.push(start.saturating_add(1)..=end.saturating_add(1));
    }
    ranges
}

/// The files that may declare this file as a module, and those that may declare the modules that it is in.
fn declaring(name: &Path) -> Vec<PathBuf> {
    let folders = name
        .ancestors()
        .skip(1)
        .take_while(|folder| !folder.ends_with("crates"));
    folders
        .flat_map(|folder| {
            let inside = ["lib.rs", "main.rs", "mod.rs"].map(|file| folder.join(file));
            inside.into_iter().chain([folder.with_extension("rs")])
        })
        .collect()
}

/// The modules of this file that are other files and compiled for tests only, without their
/// extension.
fn test_files(name: &Path, source: &str) -> Vec<PathBuf> {
    let folder = match name.file_stem().and_then(|stem| stem.to_str()) {
        Some("lib" | "main" | "mod") | None => name.parent().unwrap_or(Path::new("")).to_owned(),
        Some(stem) => name.with_file_name(stem),
    };
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let modules = lines.windows(2).filter_map(|pair| match pair {
        [attribute, line] if is_for_tests(attribute) => line
            .strip_suffix(';')?
            .rsplit_once("mod ")
            .map(|(_, module)| module),
        _ => None,
    });
    modules.map(|module| folder.join(module)).collect()
}

/// Lines of the shipped crates by file.
#[derive(Debug)]
struct Covered {
    files: BTreeMap<String, BTreeMap<usize, bool>>,
}

fn count<'a>(files: impl Iterator<Item = &'a BTreeMap<usize, bool>>) -> (usize, usize) {
    files.fold((0, 0), |(all, run), lines| {
        (
            all.saturating_add(lines.len()),
            run.saturating_add(lines.values().filter(|run| **run).count()),
        )
    })
}

#[expect(clippy::cast_precision_loss, reason = "numbers of lines are small")]
fn percent((all, run): (usize, usize)) -> f64 {
    if all == 0 {
        0.0
    } else {
        run as f64 * 100.0 / all as f64
    }
}

impl Covered {
    fn percent(&self) -> f64 {
        percent(count(self.files.values()))
    }
}

impl std::fmt::Display for Covered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut crates: BTreeMap<&str, Vec<&BTreeMap<usize, bool>>> = BTreeMap::new();
        for (name, lines) in &self.files {
            let name = name.split('/').nth(1).unwrap_or_default();
            crates.entry(name).or_default().push(lines);
        }
        for (name, lines) in &self.files {
            let missed: Vec<usize> = lines
                .iter()
                .filter(|(_, run)| !**run)
                .map(|(line, _)| *line)
                .collect();
            if !missed.is_empty() {
                writeln!(f, "  not run: {name}:{}", ranges(&missed))?;
            }
        }
        writeln!(
            f,
            "| crate          | lines | run   | percent |\n|---|---|---|---|"
        )?;
        let all = [("all", self.files.values().collect::<Vec<_>>())];
        for (name, lines) in crates.into_iter().chain(all) {
            let (all, run) = count(lines.into_iter());
            writeln!(
                f,
                "| {name:14} | {all:5} | {run:5} | {:7.2} |",
                percent((all, run))
            )?;
        }
        Ok(())
    }
}

/// Line numbers, with runs of them written as one.
fn ranges(lines: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = lines;
    while let [first, ..] = rest {
        let len = rest
            .iter()
            .zip(*first..)
            .take_while(|(line, expected)| **line == *expected)
            .count();
        let comma = if text.is_empty() { "" } else { "," };
        let last = first.saturating_add(len.saturating_sub(1));
        // Writing to a string does not fail.
        let _ = match len {
            1 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{last}"),
        };
        rest = rest.get(len.max(1)..).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tests_do_not_count() {
        let source = "fn a() {\n}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n    #[cfg(test)]\n    fn d() {\n    }\n";
        assert_eq!(tests_in(source), [3..=7, 9..=11]);
        let source = "#[cfg(test)]\nmod world;\nmod other;\n    #[cfg(test)]\n    pub(crate) mod mock;\n";
        let files = test_files(Path::new("crates/a/src/smc.rs"), source);
        assert_eq!(
            files,
            [
                Path::new("crates/a/src/smc/world"),
                Path::new("crates/a/src/smc/mock")
            ]
        );
        let declaring = declaring(Path::new("crates/a/src/smc/world.rs"));
        for name in [
            "crates/a/src/smc.rs",
            "crates/a/src/smc/mod.rs",
            "crates/a/src/lib.rs",
        ] {
            assert!(declaring.contains(&PathBuf::from(name)), "{name}");
        }
        assert!(is_file_or_below(
            Path::new("crates/a/src/smc/world.rs"),
            &files[0]
        ));
        assert!(!is_file_or_below(Path::new("crates/a/src/smc.rs"), &files[0]));
        let files = test_files(Path::new("crates/a/src/lib.rs"), source);
        assert_eq!(files[0], Path::new("crates/a/src/world"));
    }

    #[test]
    fn variables_are_read_as_a_shell_reads_them() {
        assert_eq!(parse_variable("A=/b/c"), Some(("A", "/b/c")));
        assert_eq!(
            parse_variable("A='-C x\u{1f}--cfg=y'"),
            Some(("A", "-C x\u{1f}--cfg=y"))
        );
        assert_eq!(parse_variable("info: nothing"), None);
    }

    #[test]
    fn lines_are_counted_by_file() {
        let lcov = "SF:/x/a.rs\nDA:1,3\nDA:2,0\nend_of_record\nSF:/x/b.rs\nDA:7,1\n";
        assert_eq!(
            parse(lcov),
            [
                ("/x/a.rs", vec![(1, true), (2, false)]),
                ("/x/b.rs", vec![(7, true)])
            ]
        );
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
        let lines = BTreeMap::from([(1, true), (2, false)]);
        assert!((percent(count([&lines].into_iter())) - 50.0).abs() < 0.01);
    }
}
