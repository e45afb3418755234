//! Everything a person or CI runs: setup, tests, demonstrations.
//!
//! | module | content |
//! |---|---|
//! | [`setup`] | which programs the rest needs, and how to get them |
//! | [`mod@test`] | all tests of this repository, stage by stage |
//! | [`api`] | compares the public API with the published crate's |
//! | [`asm`] | checks of generated machine code |
//! | [`book`] | docs/ as a book, and a check of its links |
//! | [`mod@bench`] | the benchmark against the published crate |
//! | [`coverage`] | which lines the host's tests run |
//! | [`doctor`] | the application that looks at a machine, on machines whose state is known |
//! | [`downstream`] | published code that is compiled and tested against this tree |
//! | [`mod@fuzz`] | the fuzz targets under libFuzzer |
//! | [`meanwhile`] | stages that run beside others |
//! | [`mutants`] | which small changes of the code no test notices |
//! | [`sanitize`] | the host's tests under sanitizers and Miri |
//! | [`soak`] | millions of transactions with random faults |
//! | [`guide`] | the examples of the README and docs/, compiled as firmware |
//! | [`image`] | firmware images of this repository's platforms |
//! | [`machine`] | the table of machines that can be booted |
//! | [`qemu`] | one run of a machine: files, command line, deadline, exit code |
//! | [`verdict`] | what a guest says on its serial line, and whether it is consistent |
//! | [`toolchain`] | how to compile for firmware targets with what is installed |
//! | [`package`] | the crates that users add, as the registry and docs.rs see them |
//! | [`panics`] | that the shipped crates do not panic |
//! | [`page`] | the page that `mm_trace` writes, in a real browser |
//! | [`process`] | running a command: its lines as they come, a progress line, no orphans |
//! | [`scenarios`] | which scenario of the conformance suite ran on which machine |
//! | [`linux`] | Debian's kernel, and what it starts |
//! | [`lints`] | Clippy over the code that only firmware targets have |
//! | [`size`] | what the crate adds to an image, beside the published crate |
//! | [`report`] | stages, counts, the closing table |

mod api;
mod asm;
mod bench;
mod book;
mod coverage;
mod demo;
mod doctor;
mod downstream;
mod fuzz;
mod guide;
mod image;
mod lints;
mod linux;
mod machine;
mod meanwhile;
mod mutants;
mod package;
mod page;
mod panics;
mod process;
mod qemu;
mod report;
mod sanitize;
mod scenarios;
mod setup;
mod size;
mod soak;
mod test;
mod toolchain;
mod verdict;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use std::any::Any;
use std::panic;
use std::path::{PathBuf, absolute};
use std::process::ExitCode;
use xshell::Shell;

/// Everything a person or CI runs in this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Setup),
    Test(test::Test),
    Demo(demo::Demo),
    Doctor(doctor::Options),
    Image(image::Image),
    Asm(asm::Asm),
    Downstream(downstream::Downstream),
    Coverage(coverage::Coverage),
    Fuzz(fuzz::Fuzz),
    Sanitize(sanitize::Sanitize),
    Soak(soak::Soak),
    Guide(guide::Guide),
    Lints(lints::Lints),
    Mutants(mutants::Mutants),
    Package(package::Options),
    Page(page::Options),
    Panics(panics::Panics),
    Book(book::Options),
    Bench(bench::Bench),
    Size(size::Size),
}

/// The exit code that a shell reports for a program which wrote to a pipe that its reader had closed.
const CLOSED: u8 = 141;

fn main() -> ExitCode {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_closed_output(info.payload()) {
            print(info);
        }
    }));
    // Commands end and the files of a run are removed while a panic unwinds.
    match panic::catch_unwind(|| end(run(Cli::parse()))) {
        Ok(code) => code,
        Err(payload) if is_closed_output(&*payload) => CLOSED.into(),
        Err(payload) => panic::resume_unwind(payload),
    }
}

/// Whether `println!` panicked because the reader of the output has closed it, as `head` does.
fn is_closed_output(payload: &(dyn Any + Send)) -> bool {
    let text = payload.downcast_ref::<String>();
    text.is_some_and(|text| text.starts_with("failed printing to std") && text.contains("Broken pipe"))
}

fn end(result: Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            process::stopped().map_or(ExitCode::FAILURE, |stopped| stopped.exit_code().into())
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    // Files that the user names are relative to the directory in which this was started; they were made
    // absolute when the command line was read.
    std::env::set_current_dir(root()).context("the repository cannot be used")?;
    let shell = Shell::new().context("the current directory cannot be used")?;
    match cli.command {
        Command::Setup(options) => setup::run(&shell, &options),
        Command::Test(options) => test::run(&shell, &options),
        Command::Demo(options) => demo::run(&shell, &options),
        Command::Doctor(options) => doctor::run(&shell, &options),
        Command::Image(options) => image::run(&shell, &options),
        Command::Asm(options) => asm::run(&shell, &options),
        Command::Panics(options) => panics::run(&shell, &options),
        Command::Downstream(_) => Ok(downstream::run(&shell)),
        Command::Coverage(options) => coverage::run(&shell, &options),
        Command::Sanitize(options) => sanitize::run(&shell, &options),
        Command::Soak(options) => soak::run(&shell, &options),
        Command::Fuzz(options) => fuzz::run(&shell, &options),
        Command::Guide(_) => Ok(guide::run(&shell)),
        Command::Mutants(options) => mutants::run(&shell, &options),
        Command::Lints(_) => Ok(lints::run(&shell)),
        Command::Package(options) => Ok(package::run(&shell, &options)),
        Command::Book(options) => book::run(&shell, &options),
        Command::Page(_) => Ok(page::run(&shell)),
        Command::Bench(options) => bench::run(&shell, &options),
        Command::Size(options) => size::run(&shell, &options),
    }
}

/// Reads a file's name on the command line.
fn file(name: &str) -> std::io::Result<PathBuf> {
    absolute(name)
}

/// The repository.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // Leaves `tools/xtask`.
    root.pop();
    root.pop();
    root
}

/// The directory of build products. Every command runs in [`root`], so a relative path starts
/// there.
fn target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Whether this runs unattended: no questions, and a missing program is a failure.
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
    #[test]
    fn files_are_relative_to_where_the_program_was_started() {
        let expected = std::env::current_dir().unwrap().join("a/b");
        let mut tried = 0;
        for (words, names) in [
            ("test --code a/b --vars a/b", ["code", "vars"].as_slice()),
            ("demo --html a/b", &["html"]),
            ("image patina-q35 --output a/b", &["output"]),
            ("fuzz --target pe --input a/b", &["input"]),
        ] {
            let words = ["cargo xtask"].into_iter().chain(words.split(' '));
            let matches = Cli::command().get_matches_from(words);
            let (_, matches) = matches.subcommand().unwrap();
            for name in names {
                assert_eq!(matches.get_one::<PathBuf>(name), Some(&expected), "{name}");
                tried += 1;
            }
        }
        let is_file = |option: &&clap::Arg| option.get_value_names().is_some_and(|names| names == ["FILE"]);
        let command = Cli::command();
        let options = command
            .get_subcommands()
            .flat_map(|command| command.get_arguments());
        assert_eq!(
            options.filter(is_file).count(),
            tried,
            "an option that is not tried here"
        );
    }
    #[test]
    fn examples_in_the_help_are_understood() {
        let mut examples = 0;
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help
                .lines()
                .filter_map(|line| line.trim().strip_prefix("cargo xtask "))
            {
                // What it does stands behind two spaces; what is optional, in brackets.
                let words = line.split("  ").next().unwrap().replace(['[', ']'], "");
                let words = ["cargo xtask"].into_iter().chain(words.split(' '));
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                examples += 1;
            }
        }
        assert!(examples > 40, "{examples}");
    }
}
