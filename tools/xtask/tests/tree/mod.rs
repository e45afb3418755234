//! The files of this repository.
#![allow(
    clippy::unwrap_used,
    reason = "these are tests: what cannot be read fails them"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// All Rust files in a folder, without what was built.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .flat_map(|entry| match entry.unwrap().path() {
            path if path.is_dir() && !path.ends_with("target") => rust_files(&path),
            path if path.extension().is_some_and(|extension| extension == "rs") => vec![path],
            _ => vec![],
        })
        .collect()
}
