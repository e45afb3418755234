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
use public_api::{Builder, PublicApi};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use xshell::{Shell, cmd};

/// A line of the published API that is missing or different in this tree, and why that is right.
struct Accepted {
    line: &'static str,
    why: &'static str,
}

const ACCEPTED: [Accepted; 11] = [
    Accepted {
        line: "gone: pub enum patina_mm::component::communicator::Status",
        why: "it is `non_exhaustive` here, since the status says more; docs/migration.md has the row",
    },
    Accepted {
        line: "gone: impl<E> core::marker::Unpin for patina_mm::component::communicator::MmCommunicator<E> where E: core::marker::Unpin",
        why: SAME_BOUND,
    },
    Accepted {
        line: "gone: impl<E> core::marker::UnsafeUnpin for patina_mm::component::communicator::MmCommunicator<E> \
               where E: core::marker::UnsafeUnpin",
        why: "stable code cannot name this trait",
    },
    Accepted {
        line: "gone: impl<E> core::panic::unwind_safe::UnwindSafe for patina_mm::component::communicator::MmCommunicator<E> \
               where E: core::panic::unwind_safe::UnwindSafe",
        why: SAME_BOUND,
    },
    Accepted {
        line: "gone: pub fn patina_mm::MockMmCommunication::checkpoint(&mut self)",
        why: "the mock derefs to what mockall made, which has it",
    },
    Accepted {
        line: "gone: pub fn patina_mm::MockSwMmiTrigger::checkpoint(&mut self)",
        why: "the mock derefs to what mockall made, which has it",
    },
    Accepted {
        line: "gone: pub fn patina_mm::MockSwMmiTrigger::default() -> Self",
        why: "it is derived, which writes the type's name for `Self`",
    },
    Accepted {
        line: "gone: pub fn patina_mm::MockMmCommunication::fmt(&self, &mut core::fmt::Formatter<'_>) -> \
               core::result::Result<(), core::fmt::Error>",
        why: SAME_TYPE,
    },
    Accepted {
        line: "gone: pub fn patina_mm::component::communicator::MockMmExecutor::fmt(&self, &mut core::fmt::Formatter<'_>) -> \
               core::result::Result<(), core::fmt::Error>",
        why: SAME_TYPE,
    },
    Accepted {
        line: "gone: pub fn patina_mm::MockSwMmiTrigger::fmt(&self, &mut core::fmt::Formatter<'_>) -> \
               core::result::Result<(), core::fmt::Error>",
        why: SAME_TYPE,
    },
    Accepted {
        line: "gone: impl core::marker::Freeze for patina_mm::component::sw_mmi_manager::SwMmiManager",
        why: "stable code cannot name this trait, and neither crate has a constant of the type",
    },
];

const SAME_TYPE: &str = "`core::fmt::Result` is another name of the type";
const SAME_BOUND: &str = "the same bound, written out";

/// What `mockall` generates for itself: no consumer can name it.
const MOCKALL_INTERNAL: &str = "::__mock_";

/// The version of rustdoc's JSON that `public-api` reads. A toolchain's rustdoc writes one version
/// only.
const FORMAT: u64 = 57;

/// Compares the published crate's sources with `ours`.
pub(crate) fn check(shell: &Shell, parent: &Path, published: &Path, ours: &Path) -> Result<Counts> {
    // A copy, because the registry's sources must not be written to, and a package in the registry
    // cannot be documented by itself.
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
    let found = differences(&old, &new);
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

/// Lines of the published API that are gone, and new variants that an exhaustive match does not
/// have.
fn differences(old: &PublicApi, new: &PublicApi) -> Vec<String> {
    let lines = |api: &PublicApi| -> BTreeSet<String> {
        api.items()
            .map(ToString::to_string)
            .filter(|line| !line.contains(MOCKALL_INTERNAL))
            .collect()
    };
    let (old, new) = (lines(old), lines(new));
    // An item that has several paths is written with any of them elsewhere, so that only its
    // definitions tell the paths.
    let several = names_with_several_paths(&old, &new);
    let all_new: BTreeSet<_> = new.iter().map(|line| comparable(line, &several)).collect();
    let gone = old.iter().map(|line| comparable(line, &several));
    let gone: BTreeSet<_> = gone.filter(|line| !all_new.contains(line)).collect();
    // An enum that is `non_exhaustive` now is not in both lists, and a separate line says that it
    // changed.
    let enums: BTreeSet<_> = old.intersection(&new).cloned().collect();
    let variants = new.difference(&old).filter(|line| is_variant(line, &enums));
    let gone = gone.into_iter().map(|line| format!("gone: {line}"));
    gone.chain(variants.map(|line| format!("new variant: {line}")))
        .collect()
}

/// The path of the type or trait that a line defines.
fn defined(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("pub ")?;
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let path = ["struct ", "enum ", "trait "]
        .iter()
        .find_map(|kind| rest.strip_prefix(kind))?;
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    Some(end.map_or(path, |end| path.split_at(end).0).trim_end_matches(':'))
}

/// The names of types that are re-exported: they have more than one path in one of the lists, or
/// another one in each.
fn names_with_several_paths(old: &BTreeSet<String>, new: &BTreeSet<String>) -> BTreeSet<String> {
    let mut paths: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for path in old.iter().chain(new).filter_map(|line| defined(line)) {
        let name = path.rsplit("::").next().unwrap_or(path);
        paths.entry(name).or_default().insert(path);
    }
    let several = paths.into_iter().filter(|(_, paths)| paths.len() > 1);
    several.map(|(name, _)| name.to_owned()).collect()
}

/// A line without the modules of types that have several paths, unless it defines the type.
fn comparable(line: &str, several: &BTreeSet<String>) -> String {
    const CRATE: &str = "patina_mm::";
    if defined(line).is_some() {
        return line.to_owned();
    }
    let is_module = |part: &str| {
        part.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, path)) = rest.split_once(CRATE) {
        let mut tail = path;
        while let Some((part, next)) = tail.split_once("::")
            && is_module(part)
        {
            tail = next;
        }
        let name = tail
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or(tail);
        out += before;
        out += CRATE;
        if !several.contains(name) {
            out += path.strip_suffix(tail).unwrap_or_default();
        }
        rest = tail;
    }
    out + rest
}

/// Whether `pub a::Enum::Variant` belongs to one of these enums, `pub enum a::Enum`.
fn is_variant(line: &str, enums: &BTreeSet<String>) -> bool {
    let path = line.strip_prefix("pub ").filter(|path| !path.contains(": "));
    let parent = path.and_then(|path| Some(path.split('(').next()?.rsplit_once("::")?.0));
    parent.is_some_and(|parent| enums.contains(&format!("pub enum {parent}")))
}

/// Fails if a dependent asks for a feature that is gone: cargo then ignores the patch, with a
/// warning only.
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
    fn new_variants_are_distinguished_from_new_fields_and_functions() {
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
    fn a_type_with_several_paths_is_one_type_and_a_lost_path_is_noticed() {
        let lines = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let old = lines(&["pub struct patina_mm::a::B", "impl Copy for patina_mm::a::B"]);
        let new = lines(&[
            "pub struct patina_mm::a::B",
            "pub struct patina_mm::c::d::B",
            "impl Copy for patina_mm::c::d::B",
        ]);
        let several = names_with_several_paths(&old, &new);
        assert_eq!(several, BTreeSet::from(["B".to_owned()]));
        assert_eq!(
            comparable("impl Copy for patina_mm::c::d::B", &several),
            "impl Copy for patina_mm::B"
        );
        assert_eq!(
            comparable("fn f(patina_mm::a::B, patina_mm::c::E)", &several),
            "fn f(patina_mm::B, patina_mm::c::E)"
        );
        assert_eq!(
            comparable("pub struct patina_mm::a::B", &several),
            "pub struct patina_mm::a::B"
        );
        assert_eq!(
            defined("#[non_exhaustive] pub enum patina_mm::a::S"),
            Some("patina_mm::a::S")
        );
        assert_eq!(
            defined("pub unsafe trait patina_mm::T: Send"),
            Some("patina_mm::T")
        );
        assert_eq!(
            defined("pub struct patina_mm::a::M<E: X>"),
            Some("patina_mm::a::M")
        );
        assert_eq!(defined("pub fn patina_mm::f()"), None);
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
