//! Which crates may know which.

use cargo_metadata::MetadataCommand;

/// Those outside `firmware/` that may depend on the SDK.
const KNOW_PATINA: [&str; 1] = ["patina_mm"];

#[test]
fn only_patina_mm_and_firmware_know_patina() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let mut others = 0;
    for package in &metadata.packages {
        let in_firmware = package
            .manifest_path
            .components()
            .any(|part| part.as_str() == "firmware");
        if in_firmware || KNOW_PATINA.contains(&package.name.as_str()) {
            continue;
        }
        others += 1;
        for dependency in &package.dependencies {
            assert!(
                !dependency.name.starts_with("patina"),
                "{} knows {}",
                package.name,
                dependency.name
            );
        }
    }
    assert!(others >= 5, "only {others} crates were looked at");
}
