//! Published code that is compiled and tested against this tree.
//!
//! A platform moves to this tree with one line, `[patch.crates-io] patina_mm = { path = … }`. So
//! the crates of the registry that use `patina_mm` are copied into `target/downstream`, given that
//! line, and tested. Three more tests compare this tree with the published crate:
//!
//! - a consumer that uses everything the published crate offers passes its tests with both
//!   ([`both`]);
//! - each public item that was lost or changed is listed with a reason ([`crate::api`]);
//! - a lock file that names the published crate keeps it until `cargo update` ([`lock_file`]).

use crate::api;
use crate::report::{Counts, Failed, Report};
use crate::test::cargo_test;
use crate::{root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{Metadata, MetadataCommand};
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// Tests published crates that use `patina_mm` against this tree's, and compares the two
/// `patina_mm`.
///
/// The crate `patina_performance` with its own tests, and what was published with `patina_mm`
/// itself: its integration tests, and the two examples of its README. Then a consumer that uses
/// every corner of the published API, with both crates; the public API itself; and a lock file that
/// names the published crate. The sources come from cargo's registry.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask downstream    fetch them, patch them, run their tests")]
pub(crate) struct Downstream {}

/// The release of Patina in which this tree replaces `patina_mm`.
pub(crate) const RELEASE: &str = "24.1.1";

/// One published user of `patina_mm`.
struct Consumer {
    /// Its name here.
    name: &'static str,
    /// The package that it comes with.
    package: &'static str,
    /// The parts of that package that are copied.
    sources: &'static [&'static str],
    /// Which of its tests are run: those in files, or the examples in its documentation.
    select: &'static str,
    /// The number of tests; all have to pass.
    tests: u64,
    /// Its manifest, from the published one.
    manifest: fn(published: &str) -> String,
    /// Changes the files in its directory.
    prepare: fn(&Shell, &Path) -> Result<()>,
}

const CONSUMERS: [Consumer; 3] = [
    Consumer {
        name: "patina_performance",
        package: "patina_performance",
        sources: &["README.md", "src"],
        select: "--tests",
        tests: 11,
        // The published manifest has lost the dev-dependency that its tests need.
        manifest: |published| {
            format!(
                "{published}\n[dev-dependencies.patina]\nversion = \"{RELEASE}\"\nfeatures = [\"mockall\"]\n"
            )
        },
        prepare: |_, _| Ok(()),
    },
    Consumer {
        name: "published_tests",
        package: "patina_mm",
        sources: &["tests"],
        select: "--tests",
        tests: 38,
        // This tree replaces its library, so only the package's tests are left.
        manifest: |_| {
            format!(
                "[package]\nname = \"published_tests\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
                 [[test]]\nname = \"patina_mm_integration\"\npath = \"tests/patina_mm_integration.rs\"\n\n\
                 [dependencies]\nenv_logger = \"0.11\"\nlog = \"0.4\"\nmockall = \"0.15\"\n\
                 patina = {{ version = \"{RELEASE}\", features = [\"alloc\", \"mockall\"] }}\n\
                 patina_mm = \"{RELEASE}\"\nzerocopy = \"0.8\"\nzerocopy-derive = \"0.8\"\n"
            )
        },
        prepare: |_, _| Ok(()),
    },
    Consumer {
        name: "published_examples",
        package: "patina_mm",
        sources: &["README.md"],
        select: "--doc",
        tests: 2,
        manifest: |_| {
            let harness = root().join("testing/mm_conformance");
            format!(
                "[package]\nname = \"published_examples\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
                 [dependencies]\nlog = \"0.4\"\npatina = \"{RELEASE}\"\npatina_dxe_core = \"{RELEASE}\"\n\
                 mm_conformance = {{ path = {harness:?} }}\npatina_mm = \"{RELEASE}\"\nzerocopy = \"0.8\"\n\
                 zerocopy-derive = \"0.8\"\n"
            )
        },
        prepare: |shell, dir| {
            let page = dir.join("README.md");
            shell.write_file(&page, run_examples(&shell.read_file(&page)?)?)?;
            Ok(shell.write_file(
                dir.join("src/lib.rs"),
                "#![doc = include_str!(\"../README.md\")]\n",
            )?)
        },
    },
];

/// Runs the component of the second example, which the page only defines.
const DISPATCH: &str = "let outcome = mm_conformance::sim::dispatch(ExampleComponent);
assert!(outcome.failed.is_empty() && outcome.not_run.is_empty(), \"{outcome:?}\");
";

/// Adds to the published README's last example that its component is dispatched, on the simulated
/// machine.
fn run_examples(page: &str) -> Result<String> {
    let (before, last) = page.rsplit_once("```rust").context("no example")?;
    let (example, after) = last.split_once("```").context("an example without an end")?;
    Ok(format!("{before}```rust{example}{DISPATCH}```{after}"))
}

pub(crate) fn run(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    report.stage("downstream", || stage(shell));
    report.conclude()
}

/// Tests all of them.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    let dir = target_dir().join("downstream");
    let registry = fetch(shell, &dir)?;
    let mut sum = Sum::default();
    for consumer in &CONSUMERS {
        sum.add(consumer.name, test(shell, &dir, &registry, consumer));
    }
    sum.add("every corner", both(shell, &dir));
    let published = source(&registry, "patina_mm");
    sum.add(
        "public API",
        published.and_then(|source| api::check(shell, &dir, &source, &ours())),
    );
    sum.add("lock file", lock_file(shell, &dir));
    sum.conclude()
}

/// The sources of the published `patina_mm`.
pub(crate) fn published(shell: &Shell) -> Result<PathBuf> {
    source(&fetch(shell, &target_dir().join("downstream"))?, "patina_mm")
}

/// The results of several tests, each of which runs whether the earlier ones passed or not.
#[derive(Default)]
struct Sum {
    counts: Counts,
    failed: Vec<String>,
}

impl Sum {
    fn add(&mut self, name: &str, result: Result<Counts>) {
        match result {
            Ok(counts) => self.counts.add(counts),
            Err(error) => {
                let counts = error.downcast_ref::<Failed>().map(|failed| failed.counts);
                self.counts.add(counts.unwrap_or_default());
                self.failed.push(format!("{name}: {error:#}"));
            }
        }
    }

    fn conclude(self) -> Result<Counts> {
        if self.failed.is_empty() {
            return Ok(self.counts);
        }
        Err(Failed {
            counts: self.counts,
            reason: self.failed.join("; "),
        }
        .into())
    }
}

/// Runs one consumer's tests with the published `patina_mm` and with this tree's. A test that
/// passes with the published crate must pass here.
fn both(shell: &Shell, parent: &Path) -> Result<Counts> {
    let tests = ours().join("tests/every_corner.rs");
    let mut counts = Counts::default();
    for (name, version, patch) in [
        ("every_corner_published", format!("={RELEASE}"), String::new()),
        ("every_corner", RELEASE.to_owned(), patch_line()),
    ] {
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dev-dependencies]\n\
             log = \"0.4\"\nmockall = \"0.15\"\npatina = {{ version = \"{RELEASE}\", features = [\"alloc\", \"mockall\"] }}\n\
             patina_mm = {{ version = \"{version}\", features = [\"ci_features\", \"mockall\", \"std\"] }}\n{patch}"
        );
        let dir = fresh(shell, parent, name, &manifest)?;
        shell.write_file(dir.join("src/lib.rs"), "")?;
        shell.copy_file(&tests, shell.create_dir(dir.join("tests"))?)?;
        let is_ours = is_patched(&metadata(&dir)?)?;
        ensure!(
            is_ours != patch.is_empty(),
            "{name} is built with the wrong patina_mm"
        );
        println!("  {name}:");
        let command = cmd!(shell, "cargo test --tests --no-fail-fast --manifest-path")
            .arg(dir.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", parent.join("target"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        counts.add(cargo_test(command.into())?.0);
    }
    ensure!(counts.passed > 0, "the consumer has no tests");
    Ok(counts)
}

/// A dependent's lock file that names the published crate keeps it, also with a patch, until `cargo
/// update` is run. `docs/migration.md` warns of it, and names the two commands that this runs.
fn lock_file(shell: &Shell, parent: &Path) -> Result<Counts> {
    let manifest = format!(
        "[package]\nname = \"lock_file\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         patina_mm = {{ version = \"{RELEASE}\", features = [\"ci_features\"] }}\n"
    );
    let dir = fresh(shell, parent, "lock_file", &manifest)?;
    shell.write_file(dir.join("src/lib.rs"), "")?;
    let _dir = shell.push_dir(&dir);
    metadata(&dir)?;
    cmd!(shell, "cargo update --quiet -p patina_mm --precise {RELEASE}")
        .quiet()
        .run()?;
    shell.write_file(dir.join("Cargo.toml"), manifest + &patch_line())?;
    ensure!(
        !is_patched(&metadata(&dir)?)?,
        "cargo now uses a patch without `cargo update`: the warning in docs/migration.md is out of date"
    );
    cmd!(shell, "cargo update --quiet -p patina_mm").quiet().run()?;
    ensure!(
        is_patched(&metadata(&dir)?)?,
        "`cargo update -p patina_mm` did not lead to this tree's crate"
    );
    let tree = cmd!(shell, "cargo tree -i patina_mm").quiet().read()?;
    let first = tree.lines().next().unwrap_or_default();
    ensure!(
        first.contains(&*ours().to_string_lossy()),
        "`cargo tree -i patina_mm` does not show which one is used: {first:?}"
    );
    println!("  lock file: {first}");
    Ok(Counts::ONE)
}

/// Makes cargo download the packages, and says what it knows about them.
fn fetch(shell: &Shell, dir: &Path) -> Result<Metadata> {
    let packages: BTreeSet<_> = CONSUMERS.iter().map(|consumer| consumer.package).collect();
    let dependencies: String = packages
        .into_iter()
        .map(|package| format!("{package} = \"={RELEASE}\"\n"))
        .collect();
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n{dependencies}"
    );
    let dir = fresh(shell, dir, "fetch", &manifest)?;
    shell.write_file(dir.join("src/lib.rs"), "")?;
    metadata(&dir)
}

/// A directory with only a manifest and this tree's choice of versions.
fn fresh(shell: &Shell, parent: &Path, name: &str, manifest: &str) -> Result<PathBuf> {
    let dir = parent.join(name);
    shell.remove_path(&dir)?;
    shell.write_file(dir.join("Cargo.toml"), manifest)?;
    shell.copy_file(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    Ok(dir)
}

fn metadata(dir: &Path) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(dir.join("Cargo.toml"))
        .current_dir(dir)
        .exec()
        .with_context(|| {
            format!(
                "cargo cannot resolve the dependencies of {}; it needs the registry",
                dir.display()
            )
        })
}

/// Copies one consumer, patches it, checks the patch, runs its tests.
fn test(shell: &Shell, parent: &Path, registry: &Metadata, consumer: &Consumer) -> Result<Counts> {
    let Consumer {
        name,
        package,
        select,
        tests,
        ..
    } = *consumer;
    let published = source(registry, package)?;
    let manifest = (consumer.manifest)(&shell.read_file(published.join("Cargo.toml"))?);
    let patch = patch_line();
    let dir = fresh(shell, parent, name, &format!("{manifest}\n[workspace]\n{patch}"))?;
    for source in consumer.sources {
        copy(shell, &published.join(source), &dir.join(source))?;
    }

    (consumer.prepare)(shell, &dir)?;

    // A patch whose version does not fit is ignored with a warning only.
    ensure!(
        is_patched(&metadata(&dir)?)?,
        "it is built with the published patina_mm"
    );
    let command = cmd!(shell, "cargo test {select} --no-fail-fast --manifest-path")
        .arg(dir.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", parent.join("target"))
        // Without debug information, which is half of their size on disk.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    println!("  {name} {RELEASE} with patina_mm of this tree:");
    let (counts, _) = cargo_test(command.into())?;
    if counts.passed != tests {
        let reason = format!("{} tests passed, not {tests}", counts.passed);
        return Err(Failed { counts, reason }.into());
    }
    println!("  {name}: {tests} of {tests} tests passed");
    Ok(counts)
}

/// This tree's crate.
pub(crate) fn ours() -> PathBuf {
    root().join("crates/patina_mm")
}

/// The line that a dependent adds to its manifest.
pub(crate) fn patch_line() -> String {
    format!("\n[patch.crates-io]\npatina_mm = {{ path = {:?} }}\n", ours())
}

/// Where cargo has the sources of a published package.
fn source(registry: &Metadata, package: &str) -> Result<PathBuf> {
    registry
        .packages
        .iter()
        .find(|found| found.name == package && found.version.to_string() == RELEASE)
        .and_then(|found| found.manifest_path.parent())
        .map(|dir| dir.as_std_path().to_owned())
        .with_context(|| format!("cargo did not download {package} {RELEASE}"))
}

/// Whether the `patina_mm` in use is this tree's; `false` if it is the published one.
fn is_patched(metadata: &Metadata) -> Result<bool> {
    let mut found = metadata
        .packages
        .iter()
        .filter(|package| package.name == "patina_mm");
    let (Some(package), None) = (found.next(), found.next()) else {
        bail!("it is not exactly one patina_mm that the crate is built with");
    };
    if package.source.is_some() {
        return Ok(false);
    }
    ensure!(
        package.manifest_path.starts_with(ours()),
        "the crate is built with the patina_mm at {}",
        package.manifest_path
    );
    let (found, version) = (package.version.to_string(), env!("CARGO_PKG_VERSION"));
    ensure!(
        found == version,
        "this tree's patina_mm has version {found}, not the workspace's {version}"
    );
    Ok(true)
}

/// Copies a file, or a directory with all that is in it.
pub(crate) fn copy(shell: &Shell, from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return Ok(shell.copy_file(from, to)?);
    }
    shell.create_dir(to)?;
    for entry in shell.read_dir(from)? {
        copy(
            shell,
            &entry,
            &to.join(entry.file_name().context("a directory entry has a name")?),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_example_is_run() {
        let page = "a\n```rust\none\n```\nb\n```rust\ntwo\n```\nc\n";
        assert_eq!(
            run_examples(page).unwrap(),
            format!("a\n```rust\none\n```\nb\n```rust\ntwo\n{DISPATCH}```\nc\n")
        );
        assert!(run_examples("").is_err());
    }
}
