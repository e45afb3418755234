//! Each test that `docs/security.md` and `docs/migration.md` name is in the tree, and so is each
//! file.
#![allow(clippy::unwrap_used, reason = "this is a test: what cannot be read fails it")]

mod tree;

use std::collections::BTreeSet;
use std::fs;
use tree::{root, rust_files};

/// The folders with tests and scenarios.
const FOLDERS: [&str; 5] = ["crates", "machines", "platforms", "testing", "tools"];

/// A word of a test's name, as it is in the sources.
fn is_of_name(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit() || "_.".contains(character)
}

/// The names of functions, which scenarios are too, and of tests that run in a guest
/// (`"group.test"`).
fn defined() -> BTreeSet<String> {
    let files = FOLDERS.iter().flat_map(|folder| rust_files(&root().join(folder)));
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let function = line.split_once("fn ").map(|(_, rest)| rest);
            names.extend(function.and_then(|rest| rest.split(|c| !is_of_name(c)).next().map(String::from)));
            let literals = line.split('"').skip(1).step_by(2);
            names.extend(literals.filter(|text| text.contains('.')).map(String::from));
        }
    }
    names
}

/// The texts in backticks in the last cells of a page's tables whose last column is one of
/// `columns`.
fn quoted<'p>(page: &'p str, columns: &[&str]) -> Vec<&'p str> {
    let mut found = Vec::new();
    let mut is_wanted = false;
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            is_wanted = false;
            continue;
        };
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let last = cells.last().copied().unwrap_or_default();
        if columns.contains(&last) {
            is_wanted = true;
        } else if is_wanted {
            // The first cell says what is checked, and may quote anything.
            found.extend(
                cells
                    .iter()
                    .skip(1)
                    .flat_map(|cell| cell.split('`').skip(1).step_by(2)),
            );
        }
    }
    found
}

/// A command, a file or a crate is not the name of a test.
fn is_name(text: &str) -> bool {
    let is_crate = FOLDERS
        .iter()
        .any(|folder| root().join(folder).join(text).is_dir());
    text.contains('_') && text.chars().all(is_of_name) && !text.ends_with(".rs") && !is_crate
}

#[test]
fn pages_name_tests_that_are_in_the_tree() {
    let defined = defined();
    let mut missing = Vec::new();
    for (page, column, at_least) in [
        ("docs/security.md", "shown by", 100),
        ("docs/migration.md", "scenario or test", 50),
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let names: Vec<&str> = quoted(&text, &[column])
            .into_iter()
            .filter(|text| is_name(text))
            .collect();
        assert!(
            names.len() >= at_least,
            "{page}: only {} names were found",
            names.len()
        );
        missing.extend(
            names
                .into_iter()
                .filter(|name| !defined.contains(*name))
                .map(|name| format!("{page}: {name}")),
        );
    }
    assert!(missing.is_empty(), "not in the tree: {missing:#?}");
}

#[test]
fn security_page_names_files_that_are_in_the_tree() {
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let files: Vec<&str> = quoted(&text, &["shown by"])
        .into_iter()
        .filter(|text| text.ends_with(".rs"))
        .collect();
    assert!(files.len() >= 50, "only {} files were found", files.len());
    let missing: Vec<&&str> = files.iter().filter(|file| !root().join(file).is_file()).collect();
    assert!(missing.is_empty(), "not in the tree: {missing:#?}");
}
