//! The examples of the README and the guide, as a reader copies them.
//!
//! The documentation tests compile them for this host, with the standard library. Here the README's
//! steps are followed in an empty directory, and every block of Rust goes as it is written into the
//! `no_std` crate for UEFI that results.

use crate::report::{Counts, Report};
use crate::test::cargo_test;
use crate::toolchain::{Toolchain, X86_64_UEFI};
use crate::{downstream, process, root, target_dir};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xshell::{Shell, cmd};

/// Compiles the examples of the README and of docs/ as firmware, and follows docs/component.md.
///
/// The README's steps are followed in an empty directory; each block of Rust is a module of the
/// crate that results, as it is written. The steps of docs/component.md make a crate in a temporary
/// folder, which is tested and built for firmware.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask guide    all examples for x86_64-unknown-uefi, and the crate of docs/component.md")]
pub(crate) struct Guide {}

/// The example that also runs, on the simulated machine: its component. Its handler is an echo.
const RUN: &str = "Calls";

/// How many blocks of Rust there are at least.
const LEAST: usize = 16;

/// The page whose steps make a crate.
const STEPS: &str = "docs/component.md";

/// A fenced block of a page.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// `rust`, `toml`.
    language: String,
    /// A module's name: the page, and the line it starts in.
    name: String,
    text: String,
}

pub(crate) fn run(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    report.stage("guide", || stage(shell));
    report.stage("outside crate", || outside(shell));
    report.conclude()
}

/// Compiles all of them, and runs the one that can run.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    let mut pages = vec![root().join("README.md")];
    find_pages(shell, &root().join("docs"), &mut pages)?;
    let mut all = Vec::new();
    for page in &pages {
        all.extend(blocks(page, &shell.read_file(page)?)?);
    }
    // Tests of components run on this host, below.
    let (tests, examples): (Vec<_>, Vec<_>) = all
        .iter()
        .filter(|block| block.language == "rust" && block.file().is_none())
        .partition(|block| block.text.contains("#[test]"));
    ensure!(
        examples.len() >= LEAST,
        "{} blocks of Rust, and there were {LEAST}",
        examples.len()
    );

    // The folder in which the README's reader starts, with this repository beside it.
    let dir = target_dir().join("guide/board");
    shell.remove_path(&dir)?;
    let files = readme_files(&all)?;
    for (file, text) in &files {
        shell.write_file(dir.join(file), text)?;
    }
    shell.copy_file(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    let mut lib = String::from("#![no_std]\n#![deny(warnings)]\n#![allow(dead_code)]\n\n");
    for example in &examples {
        writeln!(lib, "mod {};", example.name)?;
        shell.write_file(
            dir.join("src").join(&example.name).with_extension("rs"),
            &example.text,
        )?;
    }
    shell.write_file(dir.join("src/lib.rs"), lib)?;
    let toolchain = Toolchain::find(shell, X86_64_UEFI)?;
    let mut command = toolchain.cargo("build");
    command.current_dir(&dir);
    process::run_quietly("the examples for UEFI", command)?;
    println!("  {} examples, compiled for {X86_64_UEFI}", examples.len());

    let mut counts = Counts {
        passed: u64::try_from(examples.len())?,
        ..Counts::default()
    };
    let runs = examples
        .iter()
        .find(|example| example.text.contains(&format!("struct {RUN}")));
    let runs = runs.with_context(|| format!("no example has a component {RUN}"))?;
    ensure!(!tests.is_empty(), "no page has a test of a component");
    counts.add(run_on_host(shell, &runs.text, &tests)?);
    Ok(counts)
}

impl Block {
    /// The file that the block is, if its first line is a comment with a path.
    fn file(&self) -> Option<&str> {
        let first = self.text.lines().next()?;
        let path = first.strip_prefix("// ").or_else(|| first.strip_prefix("# "))?;
        let is_path = !path.contains(' ') && path.contains('.');
        is_path.then_some(path)
    }
}

/// Follows the steps of [`STEPS`] to the letter, in a temporary folder with this repository beside
/// it: writes the files that it shows, and runs the commands.
pub(crate) fn outside(shell: &Shell) -> Result<Counts> {
    let page = root().join(STEPS);
    let steps = blocks(&page, &shell.read_file(&page)?)?;
    let folder = tempfile::Builder::new().prefix("patina-mm-").tempdir()?;
    std::os::unix::fs::symlink(root(), folder.path().join("patina_mm"))?;
    let toolchain = Toolchain::find(shell, X86_64_UEFI)?;
    let mut at = folder.path().to_owned();
    let mut counts = Counts::default();
    for step in &steps {
        if let Some(file) = step.file() {
            shell.write_file(at.join(file), &step.text)?;
            continue;
        }
        if step.language != "sh" {
            continue;
        }
        for line in step.text.lines() {
            println!("  $ {line}");
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["cd", to] => at = at.join(to),
                // Not run: the toolchain that was found may have the target, or the sources to
                // build it.
                ["rustup", "target", "add", target] => ensure!(*target == X86_64_UEFI, "target {target}"),
                ["cargo", "test"] => {
                    // The versions that this repository is tested with.
                    shell.copy_file(root().join("Cargo.lock"), at.join("Cargo.lock"))?;
                    let mut command = Command::new("cargo");
                    command
                        .arg("test")
                        .current_dir(&at)
                        .env("CARGO_TARGET_DIR", target_dir().join("downstream/target"))
                        .env("CARGO_PROFILE_DEV_DEBUG", "0");
                    let (tests, _) = cargo_test(command)?;
                    ensure!(tests.passed > 0, "{STEPS} has no test");
                    counts.add(tests);
                }
                ["cargo", "build", rest @ ..] => {
                    let mut command = toolchain.cargo_as_written("build");
                    command.args(rest).current_dir(&at);
                    process::run_quietly(line, command)?;
                    let library = toolchain.products().join("libflash_lock.rlib");
                    ensure!(library.is_file(), "`{line}` left no {}", library.display());
                    counts.add(Counts::ONE);
                }
                [program, rest @ ..] => {
                    let mut command = Command::new(program);
                    command.args(rest).current_dir(&at);
                    process::run_quietly(line, command)?;
                }
                [] => {}
            }
        }
    }
    ensure!(counts.passed > 1, "{STEPS} has no commands that test and build");
    Ok(counts)
}

/// The files that the README's reader writes: each block of TOML starts with the file's name.
fn readme_files(blocks: &[Block]) -> Result<Vec<(&'static str, String)>> {
    ["Cargo.toml", ".cargo/config.toml"]
        .into_iter()
        .map(|file| {
            let comment = format!("# {file}\n");
            let mut found = blocks.iter().filter(|block| {
                block.language == "toml"
                    && block.name.starts_with("readme")
                    && block.text.starts_with(&comment)
            });
            let text = &found
                .next()
                .with_context(|| format!("the README has no block for {file}"))?
                .text;
            let ours = downstream::ours();
            let text = text.replace("../patina_mm/crates/patina_mm", &ours.to_string_lossy());
            // Else cargo takes the directory for a part of this workspace, which is around it here.
            let workspace = if file == "Cargo.toml" {
                "\n[workspace]\n"
            } else {
                ""
            };
            Ok((file, text + workspace))
        })
        .collect()
}

/// In a crate outside of this workspace: dispatches the component of an example on the simulated
/// machine, and runs the tests of components as they are written.
fn run_on_host(shell: &Shell, example: &str, tests: &[&Block]) -> Result<Counts> {
    let dir = target_dir().join("guide/run");
    shell.remove_path(&dir)?;
    let with = root().join("crates/patina_mm_test");
    let manifest = format!(
        "[package]\nname = \"guide_run\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         patina = {{ version = \"{}\", features = [\"alloc\"] }}\npatina_mm = \"{0}\"\n\n\
         [dev-dependencies]\npatina_mm_test = {{ path = {with:?} }}\n{}",
        downstream::RELEASE,
        downstream::patch_line()
    );
    shell.write_file(dir.join("Cargo.toml"), manifest)?;
    shell.copy_file(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    let test = format!(
        "#[test]\nfn it_runs() {{\n    let machine = patina_mm_test::Machine::new();\n    \
         let machine = machine.handler(ECHO, |request| Ok(request.to_vec()));\n    \
         assert_eq!(machine.dispatch({RUN}), Ok(()));\n}}\n"
    );
    for test in tests {
        shell.write_file(
            dir.join("tests").join(&test.name).with_extension("rs"),
            &test.text,
        )?;
    }
    shell.write_file(dir.join("tests/example.rs"), format!("{example}\n{test}"))?;
    shell.write_file(dir.join("src/lib.rs"), "")?;
    let command = cmd!(shell, "cargo test --tests --manifest-path")
        .arg(dir.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", target_dir().join("downstream/target"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    let (counts, _) = cargo_test(command.into())?;
    ensure!(
        counts.passed > u64::try_from(tests.len())?,
        "the example {RUN} or a test of a component did not run"
    );
    Ok(counts)
}

/// The pages below `dir`.
fn find_pages(shell: &Shell, dir: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in shell.read_dir(dir)? {
        if entry.is_dir() {
            find_pages(shell, &entry, pages)?;
        } else if entry.extension().is_some_and(|extension| extension == "md") {
            pages.push(entry);
        }
    }
    Ok(())
}

/// The fenced blocks of a page that say what language they are in.
fn blocks(page: &Path, text: &str) -> Result<Vec<Block>> {
    let stem = page.file_stem().context("a page has a name")?.to_string_lossy();
    let stem = stem.to_lowercase().replace('-', "_");
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (line, number) in text.lines().zip(1_u32..) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block {
                    language: language.split(',').next().unwrap_or_default().trim().to_owned(),
                    name: format!("{stem}_{number}"),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "{}: a block without an end", page.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_language_and_line() {
        let page = "a\n```rust,no_run\none\n```\nb `x`\n```text\ntwo\n\nthree\n```\n";
        let block = |language: &str, name: &str, text: &str| Block {
            language: language.to_owned(),
            name: name.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(
            blocks(Path::new("docs/platform-arm.md"), page).unwrap(),
            [
                block("rust", "platform_arm_2", "one\n"),
                block("text", "platform_arm_6", "two\n\nthree\n")
            ]
        );
        assert!(blocks(Path::new("a.md"), "```rust\n").is_err());
        let named = block("toml", "a", "# .cargo/config.toml\n[env]\n");
        assert_eq!(named.file(), Some(".cargo/config.toml"));
        assert_eq!(block("rust", "a", "// a sentence.\n").file(), None);
        assert_eq!(block("rust", "a", "use core::fmt;\n").file(), None);
    }
}
