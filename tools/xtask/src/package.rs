//! The crates that users add, as the registry and docs.rs see them.
//!
//! `cargo package` packs them; everything else runs on what it packed. The packages are unpacked
//! into a separate workspace in `target/package`, in which each replaces its version in the
//! registry. So a file that is missing in a package, or a path that leads out of it, is noticed
//! here and not by the first user.

use crate::process;
use crate::report::{Counts, Missing, Report};
use crate::test::cargo_test;
use crate::toolchain::{AARCH64_UEFI, Toolchain, X86_64_UEFI};
use crate::{api, downstream, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xshell::{Shell, cmd};

/// Packs the crates that users add, and checks the packages as crates.io, docs.rs and a user would.
///
/// Their metadata, files and sizes; builds for both UEFI targets; their tests; their documentation;
/// each combination of features; unused dependencies; the minimum Rust version; the public API
/// beside the published crate's. Nothing is published.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask package            all checks: some minutes
  cargo xtask package --quick    what `cargo xtask test --long` runs: metadata, files, dependencies, UEFI
  cargo xtask package --only docs --only api

The packages are in target/package/packed afterwards. docs/release.md has the steps of a release.")]
pub(crate) struct Options {
    /// Without tests, documentation, combinations of features, the minimum Rust version and the
    /// public API.
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// Only this check, after packing; can be given more than once.
    #[arg(long, value_name = "CHECK", value_parser = CHECKS.map(|check| check.name))]
    only: Vec<String>,
}

/// A check of the packages.
struct Check {
    name: &'static str,
    /// Whether `cargo xtask test` does it.
    is_quick: bool,
    run: fn(&Shell) -> Result<Counts>,
}

impl Check {
    const fn quick(name: &'static str, run: fn(&Shell) -> Result<Counts>) -> Self {
        Self {
            name,
            is_quick: true,
            run,
        }
    }

    const fn slow(name: &'static str, run: fn(&Shell) -> Result<Counts>) -> Self {
        Self {
            name,
            is_quick: false,
            run,
        }
    }
}

const CHECKS: [Check; 7] = [
    Check::quick("dependencies", dependencies),
    Check::quick("uefi", firmware),
    Check::slow("tests", tests),
    Check::slow("docs", docs),
    Check::slow("features", features),
    Check::slow("rust", minimum_rust),
    Check::slow("api", public_api),
];

/// A crate that ships.
struct Shipped {
    name: &'static str,
    /// How firmware builds it; `None` if it needs the standard library.
    firmware: Option<&'static [&'static str]>,
    /// Dev-dependencies that packing removes because they depend on the crate, with their features:
    /// its tests get them back.
    tested_with: Option<(&'static str, &'static str)>,
}

/// In an order in which they can be published.
const SHIPPED: [Shipped; 7] = [
    Shipped::firmware("mm_wire"),
    Shipped::firmware("mm_comm"),
    Shipped::firmware("mm_core"),
    Shipped {
        firmware: None,
        ..Shipped::firmware("mm_sim")
    },
    Shipped::firmware("mm_runtime"),
    Shipped {
        // The feature `mockall` needs the standard library.
        firmware: Some(&["--features", "ci_features"]),
        tested_with: Some(("patina_mm_test", "sim")),
        ..Shipped::firmware("patina_mm")
    },
    Shipped {
        firmware: Some(&["--no-default-features"]),
        ..Shipped::firmware("patina_mm_test")
    },
];

impl Shipped {
    const fn firmware(name: &'static str) -> Self {
        Self {
            name,
            firmware: Some(&[]),
            tested_with: None,
        }
    }

    fn dir(&self) -> String {
        format!("{}-{VERSION}", self.name)
    }
}

/// All crates of this repository have one version, as Patina's do.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The oldest compiler that the crates accept.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The slugs of crates.io that are in use; it drops one that it does not know.
const CATEGORIES: [&str; 6] = [
    "development-tools::testing",
    "embedded",
    "emulators",
    "hardware-support",
    "no-std",
    "no-std::no-alloc",
];

/// The files that a package may contain beside `src/` and `tests/`.
const FILES: [&str; 6] = [
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "Cargo.toml",
    "Cargo.toml.orig",
    "LICENSE",
    "README.md",
];

/// How large a package may be, compressed, in KiB. The largest has half of it.
const MOST_KIB: u64 = 256;

pub(crate) fn run(shell: &Shell, options: &Options) -> ExitCode {
    let mut report = Report::default();
    report.stage("metadata", metadata);
    report.stage("packages", || packages(shell));
    if !report.is_success() {
        // The unpacked files are of an earlier run.
        return report.conclude();
    }
    let is_wanted = |check: &&Check| {
        let is_named = options.only.iter().any(|name| name == check.name);
        if options.only.is_empty() {
            check.is_quick || !options.quick
        } else {
            is_named
        }
    };
    for check in CHECKS.iter().filter(is_wanted) {
        report.stage(check.name, || (check.run)(shell));
    }
    report.conclude()
}

/// The quick form.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    let mut counts = metadata()?;
    counts.add(packages(shell)?);
    for check in CHECKS.iter().filter(|check| check.is_quick) {
        counts.add((check.run)(shell)?);
    }
    Ok(counts)
}

fn packages(shell: &Shell) -> Result<Counts> {
    let counts = pack(shell)?;
    unpack(shell)?;
    Ok(counts)
}

/// Compares the packed `patina_mm` with the published one.
fn public_api(shell: &Shell) -> Result<Counts> {
    let ours = checked().join("patina_mm-".to_owned() + VERSION);
    let dir = target_dir().join("downstream");
    api::check(shell, &dir, &downstream::published(shell)?, &ours)
}

fn dir() -> PathBuf {
    target_dir().join("package")
}

/// The workspace of the unpacked packages.
fn checked() -> PathBuf {
    dir().join("checked")
}

/// Compares the manifests with what crates.io and docs.rs require.
fn metadata() -> Result<Counts> {
    let all = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()?;
    let license = std::fs::read(root().join("LICENSE"))?;
    let mut wrong = Vec::new();
    for package in &all.packages {
        let ships = SHIPPED.iter().any(|shipped| package.name == shipped.name);
        let can_be_published = package.publish.as_ref().is_none_or(|to| !to.is_empty());
        if ships != can_be_published {
            let state = if ships { "off" } else { "on" };
            wrong.push(format!("{}: `publish` is {state}", package.name));
        }
        if ships {
            wrong.extend(
                faults(package, &license)
                    .into_iter()
                    .map(|fault| format!("{}: {fault}", package.name)),
            );
        }
    }
    let names: BTreeSet<_> = all.packages.iter().map(|package| package.name.as_str()).collect();
    wrong.extend(
        SHIPPED
            .iter()
            .filter(|shipped| !names.contains(shipped.name))
            .map(|shipped| format!("there is no crate {}", shipped.name)),
    );
    let changes = std::fs::read_to_string(root().join("CHANGELOG.md"))?;
    wrong.extend(SHIPPED.iter().filter_map(|shipped| {
        let has_section = has_section(&changes, shipped.name);
        (!has_section).then(|| format!("CHANGELOG.md: {VERSION} has no section for {}", shipped.name))
    }));
    refuse(&wrong, "metadata")?;
    Ok(Counts::ONE)
}

/// Whether a crate has its own section in this version's part of the change log.
fn has_section(changes: &str, name: &str) -> bool {
    let mut versions = changes.split("\n## ");
    let version = versions
        .find(|part| part.starts_with(VERSION))
        .unwrap_or_default();
    let mut heads = version.lines().filter_map(|line| line.strip_prefix("### "));
    heads.any(|head| head.split(", ").any(|found| found == name))
}

/// The faults of a manifest.
fn faults(package: &Package, license: &[u8]) -> Vec<String> {
    let dir = package.manifest_path.parent().map(|dir| dir.as_std_path());
    let own = |file: &str| dir.and_then(|dir| std::fs::read(dir.join(file)).ok());
    let is_keyword = |word: &String| word.len() <= 20 && word.is_ascii();
    let docs = package.metadata.pointer("/docs/rs/all-features");
    let rust = package.rust_version.as_ref().map(ToString::to_string);
    let checks = [
        (
            package.description.as_deref().is_some_and(|text| text.len() > 20),
            "no description",
        ),
        (package.license.as_deref() == Some("Apache-2.0"), "no license"),
        (package.repository.is_some(), "no repository"),
        (
            (1..=5).contains(&package.keywords.len()) && package.keywords.iter().all(is_keyword),
            "crates.io wants one to five keywords of at most 20 characters",
        ),
        (
            !package.categories.is_empty()
                && package
                    .categories
                    .iter()
                    .all(|category| CATEGORIES.contains(&category.as_str())),
            "no category, or one that crates.io does not have",
        ),
        (
            package.version.to_string() == VERSION,
            "another version than the workspace's",
        ),
        (
            rust.is_some_and(|rust| rust.starts_with(OLDEST)),
            "no `rust-version`",
        ),
        (
            package
                .readme
                .as_ref()
                .is_some_and(|readme| readme == "README.md")
                && own("README.md").is_some(),
            "no separate README.md",
        ),
        (
            own("LICENSE").is_some_and(|text| text == license),
            "LICENSE is missing, or is not the repository's",
        ),
        (
            docs.and_then(serde_json::Value::as_bool) == Some(true),
            "[package.metadata.docs.rs] without `all-features = true`",
        ),
    ];
    let mut faults: Vec<String> = checks
        .into_iter()
        .filter(|(fits, _)| !fits)
        .map(|(_, fault)| fault.to_owned())
        .collect();
    for dependency in package.dependencies.iter().filter(|found| found.path.is_some()) {
        let has_version = dependency.req.to_string() != "*";
        let is_dev = dependency.kind == DependencyKind::Development;
        if is_dev == has_version {
            faults.push(format!(
                "dependency {} {}",
                dependency.name,
                if is_dev {
                    "is for tests and has a version: `cargo package` keeps it, and wants it published first"
                } else {
                    "has no version"
                }
            ));
        }
    }
    faults
}

/// Packs all, and looks at sizes and files. They are built later, from what is unpacked.
fn pack(shell: &Shell) -> Result<Counts> {
    let packed = dir().join("packed");
    shell.remove_path(&packed)?;
    let names = SHIPPED.iter().flat_map(|shipped| ["--package", shipped.name]);
    // The packed change may not be committed yet.
    let command = cmd!(shell, "cargo package --allow-dirty --quiet --no-verify")
        .args(names)
        .args(["--target-dir".as_ref(), dir().as_os_str()]);
    process::run_quietly("cargo package", command.into())?;
    let made = dir().join("package");
    shell.create_dir(&packed)?;
    println!("  {:16} {:>5}  {:>12}", "package", "files", "size, bytes");
    let mut wrong = Vec::new();
    for shipped in &SHIPPED {
        let file = format!("{}.crate", shipped.dir());
        let archive = packed.join(&file);
        shell.copy_file(made.join(&file), &archive)?;
        let list = cmd!(shell, "tar -tzf {archive}").quiet().read()?;
        let prefix = shipped.dir() + "/";
        let files: Vec<&str> = list
            .lines()
            .map(|line| line.strip_prefix(&prefix).unwrap_or(line))
            .collect();
        let bytes = std::fs::metadata(&archive)?.len();
        println!("  {:16} {:>5}  {bytes:>12}", shipped.name, files.len());
        if bytes > MOST_KIB.saturating_mul(1024) {
            wrong.push(format!("{} has more than {MOST_KIB} KiB", shipped.name));
        }
        wrong.extend(
            unwanted(&files)
                .into_iter()
                .map(|file| format!("{} contains {file}", shipped.name)),
        );
        wrong.extend(
            FILES
                .iter()
                .filter(|file| !files.contains(file) && **file != ".cargo_vcs_info.json")
                .map(|file| format!("{} has no {file}", shipped.name)),
        );
    }
    refuse(&wrong, "files")?;
    Ok(Counts {
        passed: u64::try_from(SHIPPED.len())?,
        ..Counts::default()
    })
}

/// The files that do not belong in a package.
fn unwanted<'f>(files: &[&'f str]) -> Vec<&'f str> {
    let is_source = |file: &str| {
        let is_rust = Path::new(file)
            .extension()
            .is_some_and(|extension| extension == "rs");
        is_rust && (file.starts_with("src/") || file.starts_with("tests/"))
    };
    files
        .iter()
        .copied()
        .filter(|file| !FILES.contains(file) && !is_source(file))
        .collect()
}

/// Makes a workspace of the packages, in which each replaces its version in the registry.
fn unpack(shell: &Shell) -> Result<()> {
    let into = checked();
    shell.remove_path(&into)?;
    shell.create_dir(&into)?;
    let members: Vec<String> = SHIPPED.iter().map(Shipped::dir).collect();
    let mut manifest = format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n\n[patch.crates-io]\n");
    for shipped in &SHIPPED {
        let archive = dir().join("packed").join(format!("{}.crate", shipped.dir()));
        // With new times: those in a package are always the same, and cargo would take an earlier
        // run's products for new.
        cmd!(shell, "tar -xzmf {archive} -C {into}").quiet().run()?;
        manifest += &format!("{} = {{ path = {:?} }}\n", shipped.name, shipped.dir());
        let unpacked = into.join(shipped.dir());
        let leads_out = paths_out_of(shell, &unpacked, &unpacked)?;
        refuse(&leads_out, shipped.name)?;
        if let Some((name, features)) = shipped.tested_with {
            let file = unpacked.join("Cargo.toml");
            let text = shell.read_file(&file)?;
            shell.write_file(
                file,
                format!(
                    "{text}\n[dev-dependencies.{name}]\nversion = \"{VERSION}\"\nfeatures = [\"{features}\"]\n"
                ),
            )?;
        }
    }
    shell.write_file(into.join("Cargo.toml"), manifest)?;
    shell.copy_file(root().join("Cargo.lock"), into.join("Cargo.lock"))?;
    Ok(())
}

/// String literals in a package's sources that are relative paths of files which the package does
/// not contain.
fn paths_out_of(shell: &Shell, package: &Path, dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in shell.read_dir(dir)? {
        if entry.is_dir() {
            found.extend(paths_out_of(shell, package, &entry)?);
            continue;
        }
        if entry.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = shell.read_file(&entry)?;
        for literal in text
            .split('"')
            .filter(|literal| literal.starts_with("../") && !literal.contains('\n'))
        {
            let target = entry.parent().unwrap_or(package).join(literal);
            let inside = target
                .canonicalize()
                .is_ok_and(|path| package.canonicalize().is_ok_and(|root| path.starts_with(root)));
            if !inside {
                found.push(format!("{} names {literal}", entry.display()));
            }
        }
    }
    Ok(found)
}

/// Cargo in the packages' workspace, on this host. It shares its products with the other crates
/// outside this workspace.
fn cargo(shell: &Shell, arguments: &[&str]) -> Command {
    let (first, rest) = arguments.split_at(1);
    let command = cmd!(shell, "cargo {first...} --manifest-path")
        .arg(checked().join("Cargo.toml"))
        .args(rest)
        .env("CARGO_TARGET_DIR", target_dir().join("downstream/target"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.into()
}

/// Fails for a dependency that a crate does not use, and for one that needs a newer compiler than
/// the crate promises.
fn dependencies(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    for shipped in &SHIPPED {
        // The compiler knows better than any search in the text. Only for libraries: a test does
        // not use all that tests have.
        let mut command = cargo(
            shell,
            &["rustc", "--lib", "--all-features", "--package", shipped.name],
        );
        command.args(["--profile", "check", "--", "-D", "unused-crate-dependencies"]);
        process::run_quietly(&format!("unused dependencies of {}", shipped.name), command)?;
        counts.add(Counts::ONE);
    }
    let all = MetadataCommand::new()
        .manifest_path(checked().join("Cargo.toml"))
        .current_dir(checked())
        .exec()?;
    let used = used_by_what_ships(&all)?;
    let oldest = numbers(OLDEST).context("`rust-version` has no numbers")?;
    let demanding: Vec<String> = used
        .iter()
        .filter_map(|package| {
            let needs = package.rust_version.as_ref()?;
            ((needs.major, needs.minor) > oldest)
                .then(|| format!("{} {} needs Rust {needs}", package.name, package.version))
        })
        .collect();
    refuse(&demanding, "dependencies")?;
    println!(
        "  no unused dependency; {} packages, none needs a newer Rust than {OLDEST}",
        used.len()
    );
    counts.add(Counts::ONE);
    Ok(counts)
}

/// All packages that the crates use, without dev-dependencies.
fn used_by_what_ships(all: &Metadata) -> Result<Vec<&Package>> {
    let resolve = all.resolve.as_ref().context("cargo resolved nothing")?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut open: Vec<&PackageId> = all.workspace_members.iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = nodes.get(id).context("a package without a node")?;
        open.extend(
            node.deps
                .iter()
                .filter(|dep| {
                    dep.dep_kinds
                        .iter()
                        .any(|kind| kind.kind != DependencyKind::Development)
                })
                .map(|dep| &dep.pkg),
        );
    }
    Ok(all
        .packages
        .iter()
        .filter(|package| seen.contains(&package.id))
        .collect())
}

fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Builds what firmware uses for both UEFI targets.
fn firmware(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    for target in [X86_64_UEFI, AARCH64_UEFI] {
        let toolchain = Toolchain::find(shell, target)?;
        for (arguments, names) in by_arguments() {
            let mut command = toolchain.cargo("build");
            command
                .current_dir(checked())
                .args(arguments)
                .args(names.iter().flat_map(|name| ["--package", name]));
            process::run_quietly(&format!("{} for {target}", names.join(", ")), command)?;
            counts.passed = counts.passed.saturating_add(u64::try_from(names.len())?);
        }
        println!("  built for {target}");
    }
    Ok(counts)
}

/// The crates for firmware that can be built together.
fn by_arguments() -> BTreeMap<&'static [&'static str], Vec<&'static str>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for shipped in &SHIPPED {
        if let Some(arguments) = shipped.firmware {
            groups.entry(arguments).or_default().push(shipped.name);
        }
    }
    groups
}

/// Runs the tests that are in the packages, documentation tests included.
fn tests(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    for shipped in &SHIPPED {
        println!("  {}:", shipped.dir());
        let arguments = [
            "test",
            "--all-features",
            "--no-fail-fast",
            "--package",
            shipped.name,
        ];
        counts.add(cargo_test(cargo(shell, &arguments))?.0);
    }
    Ok(counts)
}

/// Documents them as docs.rs does, for each target that the manifests name.
fn docs(shell: &Shell) -> Result<Counts> {
    const FLAGS: &str = "--cfg docsrs -D warnings";
    let mut counts = Counts::default();
    let mut host = cargo(shell, &["doc", "--workspace", "--no-deps", "--all-features"]);
    host.env("RUSTDOCFLAGS", FLAGS);
    process::run_quietly("documentation for this host", host)?;
    counts.add(Counts::ONE);
    let all = MetadataCommand::new()
        .manifest_path(checked().join("Cargo.toml"))
        .current_dir(checked())
        .no_deps()
        .exec()?;
    for target in [X86_64_UEFI, AARCH64_UEFI] {
        let is_wanted = |package: &&Package| {
            let targets = package.metadata.pointer("/docs/rs/targets");
            let targets = targets.and_then(serde_json::Value::as_array);
            targets.is_some_and(|targets| targets.iter().any(|found| found == target))
        };
        let names: Vec<&str> = all
            .packages
            .iter()
            .filter(is_wanted)
            .map(|package| package.name.as_str())
            .collect();
        ensure!(!names.is_empty(), "no manifest has docs.rs document for {target}");
        let mut command = Toolchain::find(shell, target)?.cargo("doc");
        command
            .current_dir(checked())
            .args(["--no-deps", "--all-features"])
            .args(names.iter().flat_map(|name| ["--package", name]))
            .env("RUSTDOCFLAGS", FLAGS);
        process::run_quietly(&format!("documentation for {target}"), command)?;
        println!("  {} for {target}: no warning", names.join(", "));
        counts.add(Counts::ONE);
    }
    Ok(counts)
}

/// Checks each combination of features that a user can choose.
fn features(shell: &Shell) -> Result<Counts> {
    let all = MetadataCommand::new()
        .manifest_path(checked().join("Cargo.toml"))
        .current_dir(checked())
        .no_deps()
        .exec()?;
    let mut counts = Counts::default();
    for package in &all.packages {
        let names: Vec<&str> = package
            .features
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "default")
            .collect();
        for combination in combinations(&names) {
            let chosen = combination.join(",");
            let mut command = cargo(
                shell,
                &["check", "--no-default-features", "--package", &package.name],
            );
            command.args(["--features", &chosen]);
            process::run_quietly(&format!("{} with features [{chosen}]", package.name), command)?;
            counts.add(Counts::ONE);
        }
    }
    Ok(counts)
}

/// All subsets.
fn combinations<'n>(names: &[&'n str]) -> Vec<Vec<&'n str>> {
    names.iter().fold(vec![Vec::new()], |mut all, name| {
        let with = all.iter().cloned().map(|mut chosen| {
            chosen.push(*name);
            chosen
        });
        let with: Vec<_> = with.collect();
        all.extend(with);
        all
    })
}

/// Checks all of them with the oldest compiler that they accept. Without it, `dependencies` has
/// compared what the dependencies ask for, and Clippy's `incompatible_msrv`, in the stage lints of
/// `cargo xtask test`, has read this repository's own code.
fn minimum_rust(shell: &Shell) -> Result<Counts> {
    let toolchain = format!("{OLDEST}.0");
    let version = cmd!(shell, "rustup run {toolchain} rustc --version")
        .quiet()
        .ignore_stderr()
        .read();
    let Ok(version) = version else {
        return Err(Missing {
            what: format!("Rust {toolchain}"),
            packages: Vec::new(),
            remedy: format!("run `rustup toolchain install {toolchain} --profile minimal`"),
        }
        .into());
    };
    let mut command = Command::new("rustup");
    command
        .args([
            "run",
            &toolchain,
            "cargo",
            "check",
            "--workspace",
            "--all-features",
        ])
        .current_dir(checked())
        .env("CARGO_TARGET_DIR", dir().join("oldest"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // Removes the variables of the cargo that started this program.
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .env_remove("RUSTDOC")
        .env_remove("RUSTUP_TOOLCHAIN");
    process::run_quietly(&format!("cargo check with Rust {toolchain}"), command)?;
    println!("  {version}: all crates, all features");
    Ok(Counts::ONE)
}

fn refuse(wrong: &[String], what: &str) -> Result<()> {
    match wrong {
        [] => Ok(()),
        [one] => bail!("{one}"),
        more => {
            more.iter().for_each(|fault| println!("  {fault}"));
            bail!("{what}: {} faults", more.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwanted_files_of_a_package_are_named() {
        let files = [
            "Cargo.toml",
            "src/a/b.rs",
            "tests/c.rs",
            "examples/d.rs",
            "src/dump.bin",
        ];
        assert_eq!(unwanted(&files), ["examples/d.rs", "src/dump.bin"]);
    }

    #[test]
    fn combinations_of_features_are_all_subsets() {
        assert_eq!(combinations(&[]), [[""; 0]]);
        assert_eq!(
            combinations(&["a", "b"]),
            [vec![], vec!["a"], vec!["b"], vec!["a", "b"]]
        );
    }

    #[test]
    fn paths_that_lead_out_of_a_package_are_found() {
        let shell = Shell::new().unwrap();
        let dir = shell.create_temp_dir().unwrap();
        let package = dir.path().join("package");
        shell.write_file(package.join("README.md"), "").unwrap();
        shell.write_file(dir.path().join("outside.md"), "").unwrap();
        let source = "include_str!(\"../README.md\"); include_str!(\"../../outside.md\"); let a = \"..\";";
        shell.write_file(package.join("src/lib.rs"), source).unwrap();
        let found = paths_out_of(&shell, &package, &package).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with("names ../../outside.md"), "{found:?}");
    }

    #[test]
    fn the_workflow_runs_all_tests_and_the_packages_with_the_oldest_compiler() {
        let workflow = std::fs::read_to_string(root().join(".github/workflows/ci.yml")).unwrap();
        for line in [
            "run: .ci/run".to_owned(),
            "run: cargo xtask package".to_owned(),
            format!("OLDEST: \"{OLDEST}.0\""),
        ] {
            assert!(workflow.contains(&line), "no line {line}");
        }
    }

    #[test]
    fn each_crate_has_its_section_in_this_versions_changes() {
        let changes = format!("# Changes\n\n## {VERSION}\n\n### a, b\n\n- c\n\n## 1.0.0\n\n### d\n");
        assert!(has_section(&changes, "a") && has_section(&changes, "b"));
        assert!(!has_section(&changes, "c") && !has_section(&changes, "d"));
    }

    #[test]
    fn a_manifest_without_what_crates_io_wants_is_refused() {
        let manifest = root().join("tools/xtask/Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .exec()
            .unwrap();
        let mut packages = metadata.packages.into_iter();
        let package = packages.find(|package| package.name == "patina_mm").unwrap();
        let license = std::fs::read(root().join("LICENSE")).unwrap();
        assert_eq!(faults(&package, &license), [""; 0]);

        let mut broken = package;
        broken.repository = None;
        broken.categories.push("mangement-mode".to_owned());
        broken.keywords.clear();
        assert_eq!(faults(&broken, b"another text").len(), 4);
    }
}
