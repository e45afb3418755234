//! The table of `docs/troubleshooting.md` has a row for each variant of each public error, and no
//! other.
#![allow(clippy::unwrap_used, reason = "this is a test: what cannot be read fails it")]

mod tree;

use std::collections::BTreeMap;
use std::fs;
use syn::{Attribute, Fields, Item, ItemEnum, LitStr, Visibility};
use tree::{root, rust_files};

/// Whose fault an error is, in the second column.
const WHOSE: [&str; 6] = ["caller", "platform", "MM", "see inside", "see log", "see both"];

fn derives_error(item: &ItemEnum) -> bool {
    let mut found = false;
    for attribute in item
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident("derive"))
    {
        attribute
            .parse_nested_meta(|derived| {
                found |= derived
                    .path
                    .segments
                    .last()
                    .is_some_and(|name| name.ident == "Error");
                Ok(())
            })
            .unwrap();
    }
    found
}

/// The text of `#[error("…")]`; empty for a transparent one.
fn text(attributes: &[Attribute]) -> String {
    let mut errors = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("error"));
    let tokens = errors
        .next()
        .map(|attribute| attribute.meta.require_list().unwrap().tokens.clone());
    let first = tokens.and_then(|tokens| tokens.into_iter().next());
    first
        .and_then(|token| syn::parse2::<LitStr>(token.into()).ok())
        .map_or_else(String::new, |literal| literal.value())
}

/// The name of each variant of each public error of the crates that ship, and its text.
fn variants() -> BTreeMap<String, String> {
    let mut variants = BTreeMap::new();
    for shipped in ["mm_wire", "mm_comm", "patina_mm"] {
        for path in rust_files(&root().join("crates").join(shipped).join("src")) {
            let file = syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
            for item in file.items {
                let Item::Enum(item) = item else { continue };
                if !matches!(item.vis, Visibility::Public(_)) || !derives_error(&item) {
                    continue;
                }
                for variant in &item.variants {
                    let name = format!("{}::{}", item.ident, variant.ident);
                    let carries_error = matches!(&variant.fields, Fields::Unnamed(_));
                    let text = text(&variant.attrs);
                    assert!(carries_error || !text.is_empty(), "{name} has no text");
                    assert!(
                        variants.insert(name.clone(), text).is_none(),
                        "two enums have {name}"
                    );
                }
            }
        }
    }
    variants
}

#[test]
fn every_error_has_a_row_that_says_whose_fault_it_is() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("## Every error").unwrap();
    let mut rows = BTreeMap::new();
    for line in table.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [error, whose, check] = cells[..] else {
            continue;
        };
        let Some(error) = error.strip_prefix('`').and_then(|error| error.strip_suffix('`')) else {
            continue;
        };
        assert!(
            WHOSE.contains(&whose),
            "{error}: {whose:?} is not one of {WHOSE:?}"
        );
        assert!(check.len() > 3, "{error}: what is to be checked?");
        assert!(
            rows.insert(error.to_owned(), whose.to_owned()).is_none(),
            "two rows for {error}"
        );
    }
    let variants = variants();
    assert!(variants.len() > 100, "the sources were not read: {variants:?}");
    let missing: Vec<_> = variants
        .keys()
        .filter(|variant| !rows.contains_key(*variant))
        .collect();
    let gone: Vec<_> = rows.keys().filter(|row| !variants.contains_key(*row)).collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md has no row for {missing:?}"
    );
    assert!(
        gone.is_empty(),
        "docs/troubleshooting.md has rows for errors that do not exist: {gone:?}"
    );
    for (variant, text) in &variants {
        let said = ["caller", "platform", "MM"]
            .into_iter()
            .find(|whose| text.starts_with(&format!("{whose}: ")));
        if let Some(said) = said {
            assert_eq!(rows[variant], said, "the text of {variant} says {said}: {text}");
        }
    }
}

/// The page's sections, as the table, the tree and the log name them.
#[test]
fn every_section_that_is_named_exists() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let anchors: Vec<String> = page
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .replace(' ', "-")
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
                .collect()
        })
        .collect();
    let mut sources: Vec<String> = ["mm_wire", "mm_comm", "patina_mm"]
        .iter()
        .flat_map(|shipped| rust_files(&root().join("crates").join(shipped).join("src")))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    sources.push(page.clone());
    let mut named = 0;
    for source in &sources {
        for prefix in ["](#", "docs/troubleshooting.md#"] {
            if prefix == "](#" && *source != page {
                continue;
            }
            for (_, rest) in source
                .match_indices(prefix)
                .map(|(at, _)| source.split_at(at + prefix.len()))
            {
                let anchor: String = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || "-_".contains(*c))
                    .collect();
                assert!(anchors.contains(&anchor), "no section {anchor:?} in {anchors:?}");
                named += 1;
            }
        }
    }
    assert!(named >= 5, "the page's sections are not named any more");
}
