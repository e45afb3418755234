//! Compares the public API with that of the published crate.
//!
//! rustdoc writes both as JSON, and the crate `public-api` makes two lists of them. An item that
//! this tree lacks, or that differs from the published crate, breaks a consumer's build, so each is
//! in [`ACCEPTED`] with its reason. So is a new variant of a published enum, unless the enum is
//! `non_exhaustive`.

use crate::report::{Counts, Missing};
use crate::{downstream, process, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use public_api::{Builder, PublicApi, diff::PublicApiDiff};
use std::collections::BTreeSet;
use std::path::Path;
use xshell::{Shell, cmd};

/// A line of the published API that is not in this tree's as it is there, and why that is right.
struct Accepted {
    line: &'static str,
    why: &'static str,
}

const ACCEPTED: [Accepted; 9] = [
    Accepted {
        line: "was pub enum patina_mm::component::communicator::Status, is #[non_exhaustive] pub enum \
               patina_mm::component::communicator::Status",
        why: "the status says more here; docs/migration.md has the row",
    },
    Accepted {
        line: "gone: impl<E> core::marker::Unpin for patina_mm::component::communicator::MmCommunicator<E> where E: core::marker::Unpin",
        why: "the same bound, written out",
    },
    Accepted {
        line: "gone: impl<E> core::panic::unwind_safe::UnwindSafe for patina_mm::component::communicator::MmCommunicator<E> \
               where E: core::panic::unwind_safe::UnwindSafe",
        why: "the same bound, written out",
    },
    Accepted {
        line: "gone: impl patina_mm::component::communicator::MockMmCommunication",
        why: "the mock derefs to what mockall made, which has it",
    },
    Accepted {
        line: "gone: pub fn patina_mm::component::communicator::MockMmCommunication::checkpoint(&mut self)",
        why: "the mock derefs to what mockall made, which has it",
    },
    Accepted {
        line: "was pub fn patina_mm::component::communicator::MockMmCommunication::fmt(&self, &mut core::fmt::Formatter<'_>) \
               -> core::result::Result<(), core::fmt::Error>, is pub fn \
               patina_mm::component::communicator::MockMmCommunication::fmt(&self, &mut core::fmt::Formatter<'_>) -> core::fmt::Result",
        why: SAME_TYPE,
    },
    Accepted {
        line: "was pub fn patina_mm::component::communicator::MockMmExecutor::fmt(&self, &mut core::fmt::Formatter<'_>) -> \
               core::result::Result<(), core::fmt::Error>, is pub fn \
               patina_mm::component::communicator::MockMmExecutor::fmt(&self, &mut core::fmt::Formatter<'_>) -> core::fmt::Result",
        why: SAME_TYPE,
    },
    Accepted {
        line: "was pub fn patina_mm::component::sw_mmi_manager::MockSwMmiTrigger::fmt(&self, &mut core::fmt::Formatter<'_>) -> \
               core::result::Result<(), core::fmt::Error>, is pub fn \
               patina_mm::component::sw_mmi_manager::MockSwMmiTrigger::fmt(&self, &mut core::fmt::Formatter<'_>) -> core::fmt::Result",
        why: SAME_TYPE,
    },
    Accepted {
        line: "was impl core::marker::Freeze for patina_mm::component::sw_mmi_manager::SwMmiManager, is impl \
               !core::marker::Freeze for patina_mm::component::sw_mmi_manager::SwMmiManager",
        why: "stable code cannot name this trait, and neither crate has a constant of the type",
    },
];

const SAME_TYPE: &str = "the two names are one type";

/// What `mockall` generates for itself: no consumer can name it.
const MOCKALL_INTERNAL: &str = "::__mock_";

/// The version of rustdoc's JSON that `public-api` reads. A toolchain's rustdoc writes one version only.
const FORMAT: u64 = 57;

/// Compares the published crate's sources with `ours`.
pub(crate) fn check(shell: &Shell, parent: &Path, published: &Path, ours: &Path) -> Result<Counts> {
    // The registry's sources are no place to write to, and a package in the registry cannot be documented by itself.
    let copy = parent.join("published_api");
    shell.remove_path(&copy)?;
    downstream::copy(shell, published, &copy)?;
    let manifest = shell.read_file(published.join("Cargo.toml"))?;
    shell.write_file(copy.join("Cargo.toml"), manifest + "\n[workspace]\n")?;
    shell.copy_file(root().join("Cargo.lock"), copy.join("Cargo.lock"))?;
    let old = document(shell, &copy, &parent.join("target"))?;
    let new = document(shell, ours, &target_dir())?;
    require_features(&copy, ours)?;

    let looked_at = old.items().count();
    let found = differences(old, new);
    let mut open: Vec<_> = found.iter().map(String::as_str).collect();
    for Accepted { line, why } in &ACCEPTED {
        let at = open.iter().position(|found| found == line);
        let at = at.with_context(|| format!("no longer a difference, take it off the list: {line}"))?;
        open.swap_remove(at);
        println!("  accepted: {line}\n    because {why}");
    }
    if !open.is_empty() {
        open.iter().for_each(|line| println!("  {line}"));
        bail!(
            "{} lines of the public API differ from {} without a reason in tools/xtask/src/api.rs",
            open.len(),
            downstream::RELEASE
        );
    }
    println!(
        "  public API: {looked_at} published lines, {} differences, each accepted",
        found.len()
    );
    Ok(Counts::ONE)
}

/// The public API of the package in `dir`, with all its features.
fn document(shell: &Shell, dir: &Path, target: &Path) -> Result<PublicApi> {
    let command = cmd!(shell, "cargo rustdoc --lib --all-features --manifest-path")
        .arg(dir.join("Cargo.toml"))
        .args(["--target-dir".as_ref(), target.as_os_str()])
        .args([
            "--",
            "-Zunstable-options",
            "--output-format",
            "json",
            "--cap-lints",
            "allow",
        ])
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    process::run_quietly("rustdoc of patina_mm", command.into())?;
    let file = target.join("doc/patina_mm.json");
    let version = format_version(&shell.read_file(&file)?);
    if version != Some(FORMAT) {
        return Err(Missing {
            what: format!("a rustdoc whose JSON has version {FORMAT} (this one: {version:?})"),
            packages: Vec::new(),
            remedy:
                "use the Rust version that CONTRIBUTING.md names, or another version of the crate public-api"
                    .to_owned(),
        }
        .into());
    }
    Ok(Builder::from_rustdoc_json(file)
        .omit_blanket_impls(true)
        .build()?)
}

/// The JSON's own version, its last field.
fn format_version(json: &str) -> Option<u64> {
    let (_, version) = json.rsplit_once("\"format_version\":")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Lines of the published API that are gone or other ones, and new variants that an exhaustive match does not have.
fn differences(old: PublicApi, new: PublicApi) -> Vec<String> {
    // An enum that is `non_exhaustive` now is not in both, and a line of its own says that it changed.
    let enums: BTreeSet<_> = old.items().map(ToString::to_string).collect();
    let enums: BTreeSet<_> = new
        .items()
        .map(ToString::to_string)
        .filter(|line| enums.contains(line))
        .collect();
    let diff = PublicApiDiff::between(old, new);
    let gone = diff.removed.iter().map(|item| format!("gone: {item}"));
    let changed = diff
        .changed
        .iter()
        .map(|item| format!("was {}, is {}", item.old, item.new));
    let variants = diff.added.iter().map(ToString::to_string);
    let variants = variants.filter(|line| is_variant(line, &enums));
    gone.chain(changed)
        .chain(variants.map(|line| format!("new variant: {line}")))
        .filter(|line| !line.contains(MOCKALL_INTERNAL))
        .collect()
}

/// Whether `pub a::Enum::Variant` belongs to one of these enums, `pub enum a::Enum`.
fn is_variant(line: &str, enums: &BTreeSet<String>) -> bool {
    let path = line.strip_prefix("pub ").filter(|path| !path.contains(": "));
    let parent = path.and_then(|path| Some(path.split('(').next()?.rsplit_once("::")?.0));
    parent.is_some_and(|parent| enums.contains(&format!("pub enum {parent}")))
}

/// Fails if a dependent asks for a feature that is gone: cargo then ignores the patch, with a warning only.
fn require_features(published: &Path, ours: &Path) -> Result<()> {
    let features = |dir: &Path| -> Result<BTreeSet<String>> {
        let manifest = dir.join("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(&manifest).no_deps().exec()?;
        let package = metadata
            .packages
            .into_iter()
            .find(|package| package.name == "patina_mm");
        Ok(package
            .context("no package patina_mm")?
            .features
            .into_keys()
            .collect())
    };
    let (published, ours) = (features(published)?, features(ours)?);
    let lost: Vec<_> = published.difference(&ours).cloned().collect();
    ensure!(
        lost.is_empty(),
        "features that the published crate has: {}",
        lost.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_variants_are_told_from_new_fields_and_functions() {
        let enums = BTreeSet::from(["pub enum a::Status".to_owned(), "pub struct a::Config".to_owned()]);
        let is_variant = |line| is_variant(line, &enums);
        assert!(is_variant("pub a::Status::Busy"));
        assert!(is_variant("pub a::Status::Returned(b::Status)"));
        assert!(!is_variant("pub a::Status::TooLong::room: usize"));
        assert!(!is_variant("pub a::Other::Busy"));
        assert!(!is_variant("pub a::Config::field: u8"));
        assert!(!is_variant("pub fn a::Status::name(&self) -> u8"));
    }

    #[test]
    fn the_version_of_the_format_is_the_last_field() {
        assert_eq!(
            format_version(r#"{"paths":{"format_version":1},"format_version":57}"#),
            Some(57)
        );
        assert_eq!(format_version("{}"), None);
    }
}
