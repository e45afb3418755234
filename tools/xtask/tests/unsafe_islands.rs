//! `docs/unsafe.md` lists exactly the files that contain unsafe code.

mod tree;

use std::fs;
use tree::{root, rust_files};

/// The words that unsafe code contains.
const MARKS: [&str; 6] = [
    "unsafe {",
    "unsafe fn",
    "unsafe impl",
    "unsafe extern",
    "unsafe trait",
    "#[unsafe(",
];

fn has_unsafe_code(text: &str) -> bool {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .any(|code| MARKS.iter().any(|mark| code.contains(mark)))
}

#[test]
fn the_list_of_unsafe_files_is_the_tree() {
    let folders = [
        "crates",
        "testing",
        "platforms",
        "machines",
        "tools/bench",
        "tools/mm_doctor",
        "tools/mm_trace",
        "tools/ovmf_image",
    ];
    let mut found: Vec<String> = folders
        .into_iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .filter(|path| has_unsafe_code(&fs::read_to_string(path).unwrap()))
        .map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned())
        .collect();
    let page = fs::read_to_string(root().join("docs/unsafe.md")).unwrap();
    let mut listed: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(path, _)| path.to_owned())
        .collect();
    found.sort();
    listed.sort();
    let only_in = |these: &[String], others: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|file| !others.contains(file))
            .cloned()
            .collect()
    };
    assert_eq!(
        only_in(&found, &listed),
        [""; 0],
        "docs/unsafe.md does not list these"
    );
    assert_eq!(
        only_in(&listed, &found),
        [""; 0],
        "docs/unsafe.md lists these in vain"
    );
    assert_eq!(listed, found, "docs/unsafe.md lists a file twice");
}
