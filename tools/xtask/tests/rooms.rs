//! Which crates may depend on which.
#![allow(clippy::unwrap_used, reason = "this is a test: what cannot be read fails it")]

use cargo_metadata::{DependencyKind, MetadataCommand, NodeDep, PackageId};
use std::collections::BTreeSet;

/// Crates that must not depend on the SDK, so that another DXE core could use them.
const WITHOUT_PATINA: [&str; 7] = [
    "mm_wire",
    "mm_comm",
    "mm_core",
    "mm_sim",
    "mm_liar",
    "q35_mm",
    "aarch64_monitor",
];

#[test]
fn only_crates_above_the_client_core_depend_on_patina() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    for name in WITHOUT_PATINA {
        let package = metadata.packages.iter().find(|package| package.name == name);
        let package = package.unwrap_or_else(|| panic!("there is no crate {name}"));
        for dependency in &package.dependencies {
            assert!(
                !dependency.name.starts_with("patina"),
                "{name} depends on {}",
                dependency.name
            );
        }
    }
}

#[test]
fn shipped_crates_depend_only_on_shipped_crates() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let ships = |manifest: &str| manifest.contains("/crates/");
    let local: Vec<_> = metadata
        .packages
        .iter()
        .map(|package| (package.name.as_str(), ships(package.manifest_path.as_str())))
        .collect();
    assert!(local.iter().filter(|(_, ships)| *ships).count() >= 3);
    for package in &metadata.packages {
        if !ships(package.manifest_path.as_str()) {
            continue;
        }
        for dependency in &package.dependencies {
            let is_dev = dependency.kind == DependencyKind::Development;
            let is_testing = local.contains(&(dependency.name.as_str(), false));
            assert!(
                is_dev || !is_testing,
                "{} ships and depends on {}",
                package.name,
                dependency.name
            );
        }
    }
}

/// The names of all packages that `root` depends on for a target, without dev-dependencies.
fn parts(root: &str, target: &str) -> BTreeSet<String> {
    let options = ["--filter-platform", target].map(String::from);
    let metadata = MetadataCommand::new().other_options(options).exec().unwrap();
    let nodes = metadata.resolve.unwrap().nodes;
    let name = |id: &PackageId| {
        metadata
            .packages
            .iter()
            .find(|package| package.id == *id)
            .unwrap()
            .name
            .to_string()
    };
    let mut left = vec![root.to_owned()];
    let mut found = BTreeSet::new();
    while let Some(next) = left.pop() {
        let node = nodes.iter().find(|node| name(&node.id) == next).unwrap();
        if found.insert(next) {
            let is_part = |dependency: &&NodeDep| {
                let mut kinds = dependency.dep_kinds.iter();
                kinds.any(|kind| kind.kind != DependencyKind::Development)
            };
            left.extend(
                node.deps
                    .iter()
                    .filter(is_part)
                    .map(|dependency| name(&dependency.pkg)),
            );
        }
    }
    found
}

#[test]
fn only_aarch64_firmware_has_the_crates_for_secure_monitor_calls() {
    for root in ["patina_mm", "mm_runtime"] {
        for (target, has_them) in [
            ("x86_64-unknown-uefi", false),
            ("x86_64-unknown-none", false),
            ("aarch64-unknown-uefi", true),
            ("aarch64-unknown-none-softfloat", true),
        ] {
            let parts = parts(root, target);
            assert!(parts.contains("mm_comm"), "{root}, {target}");
            for name in ["arm-ffa", "smccc"] {
                assert_eq!(parts.contains(name), has_them, "{root}, {target}: {name}");
            }
        }
    }
}
