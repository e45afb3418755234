//! Which crates may depend on which.

use cargo_metadata::MetadataCommand;

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
fn what_ships_depends_only_on_what_ships() {
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
            let is_dev = dependency.kind == cargo_metadata::DependencyKind::Development;
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
