//! The book: the pages of docs/ as HTML, and a check of every link in it.
//!
//! mdBook builds a copy of docs/ in which a link to a file outside of it leads to a copy of that
//! file. The links of the HTML that results are followed, anchors and pictures included; so are
//! those of the Markdown files beside docs/, which link into it. Links to other sites are not
//! followed, because their targets change.

use crate::report::{Counts, Report};
use crate::setup::MDBOOK;
use crate::{downstream, process, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};
use xshell::Shell;

/// Builds docs/ as a book, and follows its links.
///
/// The pages stay readable as they are; this gives them a table of contents, a search and a layout.
/// Fails for a page that is not in SUMMARY.md, for a link or a picture that leads nowhere, for an
/// anchor that its page does not have, and for a file that a page names and the repository does not
/// have.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask book           builds it, and says where it is
  cargo xtask book --open    also opens it in a browser (xdg-open)")]
pub(crate) struct Options {
    /// Open the book in a browser.
    #[arg(long)]
    open: bool,
}

/// Pages beside docs/, which link into it.
const BESIDE: [&str; 5] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "SUPPORT.md",
];

pub(crate) fn run(shell: &Shell, options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    report.stage("book", || stage(shell));
    let code = report.conclude();
    let index = html().join("index.html");
    if index.is_file() {
        println!("{}", index.display());
        if options.open {
            let mut command = Command::new("xdg-open");
            command.arg(&index);
            process::run_quietly("xdg-open", command)?;
        }
    }
    Ok(code)
}

fn dir() -> PathBuf {
    target_dir().join("book")
}

fn html() -> PathBuf {
    dir().join("html")
}

/// Builds the book, and follows the links.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    MDBOOK.require(shell)?;
    let src = dir().join("src");
    shell.remove_path(dir())?;
    downstream::copy(shell, &root().join("docs"), &src)?;
    let pages = pages(shell, &src)?;
    let summary = shell.read_file(src.join("SUMMARY.md"))?;
    let missing: Vec<_> = pages
        .iter()
        .filter(|page| !summary.contains(&format!("]({page})")) && *page != "SUMMARY.md")
        .collect();
    ensure!(missing.is_empty(), "docs/SUMMARY.md does not list {missing:?}");
    for page in &pages {
        let text = shell.read_file(src.join(page))?;
        let text = with_links_into_the_book(shell, &text, &src)?;
        shell.write_file(src.join(page), text)?;
    }

    let mut command = Command::new("mdbook");
    command.arg("build").arg(&src).arg("--dest-dir").arg(html());
    process::run_quietly("mdbook", command)?;

    let mut files = BTreeMap::new();
    for page in pages.iter().filter(|page| *page != "SUMMARY.md") {
        let file = html().join(page).with_extension("html");
        let text = shell
            .read_file(&file)
            .with_context(|| format!("{page} is not in the book"))?;
        files.insert(file, text);
    }
    let anchors: BTreeMap<&Path, BTreeSet<&str>> = files
        .iter()
        .map(|(file, text)| (file.as_path(), attributes(text, "id").into_iter().collect()))
        .collect();
    let mut followed: u64 = 0;
    let mut broken = Vec::new();
    for (file, text) in &files {
        let links = attributes(text, "href")
            .into_iter()
            .chain(attributes(text, "src"));
        for link in links.filter(|link| is_local(link)) {
            followed = followed.saturating_add(1);
            if let Err(reason) = follow(file, link, &anchors) {
                broken.push(format!("{}: {link}: {reason}", name(file)));
            }
        }
    }
    for page in BESIDE {
        let file = root().join(page);
        for link in markdown_links(&shell.read_file(&file)?) {
            followed = followed.saturating_add(1);
            if let Err(reason) = follow_beside(&file, &link, &anchors) {
                broken.push(format!("{page}: {link}: {reason}"));
            }
        }
    }
    for file in pages
        .iter()
        .map(|page| root().join("docs").join(page))
        .chain(BESIDE.map(|page| root().join(page)))
    {
        let text = shell.read_file(&file)?;
        let gone = paths(&text)
            .into_iter()
            .filter(|path| !root().join(path).exists());
        broken.extend(
            gone.map(|path| format!("{}: {path}: there is no such file in the repository", name(&file))),
        );
    }
    if !broken.is_empty() {
        broken.iter().for_each(|line| println!("  {line}"));
        bail!("{} broken links", broken.len());
    }
    println!("  {} pages, {followed} links, none broken", files.len());
    ensure!(followed > 500, "only {followed} links were found");
    Ok(Counts::ONE)
}

/// The names of the pages.
fn pages(shell: &Shell, src: &Path) -> Result<Vec<String>> {
    let files = shell.read_dir(src)?;
    let pages = files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "md"));
    Ok(pages.map(|file| name(file)).collect())
}

fn name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A link to a file outside of docs/ leads to a copy of it in the book, as text.
fn with_links_into_the_book(shell: &Shell, text: &str, src: &Path) -> Result<String> {
    let mut changed = text.to_owned();
    for link in markdown_links(text) {
        let Some(path) = link.strip_prefix("../") else {
            continue;
        };
        let path = path.split('#').next().unwrap_or(path);
        // mdBook takes any `.md` in a link for a page.
        let copy = format!("repository/{}.txt", path.trim_end_matches(".md"));
        let contents = shell
            .read_file(root().join(path))
            .with_context(|| format!("a page links to {link}"))?;
        shell.write_file(src.join(&copy), contents)?;
        changed = changed.replace(&format!("]({link})"), &format!("]({copy})"));
    }
    Ok(changed)
}

/// The links of a page of Markdown, outside of its code.
fn markdown_links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        // Text in backticks cannot contain a link, but a link's text may be in backticks.
        for (at, _) in line.match_indices("](") {
            let target = line
                .split_at(at)
                .1
                .strip_prefix("](")
                .and_then(|rest| rest.split_once(')'));
            if let Some((target, _)) = target.filter(|(target, _)| is_local(target)) {
                links.push(target.to_owned());
            }
        }
    }
    links
}

/// Folders of the repository whose files the pages name.
const FOLDERS: [&str; 7] = [
    "crates/",
    "docs/",
    "fuzz/",
    "machines/",
    "platforms/",
    "testing/",
    "tools/",
];

/// The paths in the repository that a page has in backticks.
fn paths(text: &str) -> Vec<&str> {
    let is_path = |word: &&str| {
        FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains([' ', '*', '<', '{', '…'])
    };
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(is_path)
        .collect()
}

fn is_local(link: &str) -> bool {
    !link.is_empty()
        && !link.contains("://")
        && !["mailto:", "data:", "javascript:"]
            .iter()
            .any(|scheme| link.starts_with(scheme))
}

/// The values of an attribute in HTML that mdBook wrote, which are in double quotes.
fn attributes<'t>(html: &'t str, name: &str) -> Vec<&'t str> {
    let start = format!(" {name}=\"");
    html.match_indices(&start)
        .filter_map(|(at, _)| html.get(at.saturating_add(start.len())..)?.split('"').next())
        .collect()
}

/// Fails with the reason if a link of a page of the book leads nowhere.
fn follow(from: &Path, link: &str, anchors: &BTreeMap<&Path, BTreeSet<&str>>) -> Result<(), String> {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() {
        from.to_owned()
    } else {
        normal(&from.parent().unwrap_or(from).join(path))
    };
    exists(&target, anchor, anchors)
}

/// The same for a page beside docs/: its links to pages of docs/ are followed in the book.
fn follow_beside(from: &Path, link: &str, anchors: &BTreeMap<&Path, BTreeSet<&str>>) -> Result<(), String> {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let in_book = path
        .strip_prefix("docs/")
        .filter(|path| path.strip_suffix(".md").is_some());
    match in_book {
        Some(page) => exists(&html().join(page).with_extension("html"), anchor, anchors),
        None => exists(
            &from.parent().unwrap_or(from).join(path),
            // A page that is not in the book has GitHub's anchors, which are not checked: only
            // whether the file exists.
            "",
            anchors,
        ),
    }
}

fn exists(target: &Path, anchor: &str, anchors: &BTreeMap<&Path, BTreeSet<&str>>) -> Result<(), String> {
    if !target.exists() {
        return Err("there is no such file".to_owned());
    }
    match anchors.get(target) {
        Some(found) if !anchor.is_empty() && !found.contains(anchor) => {
            Err("the page has no such anchor".to_owned())
        }
        _ => Ok(()),
    }
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_with_rust_is_a_documentation_test() {
        let listed = std::fs::read_to_string(root().join("testing/book_examples/src/lib.rs")).unwrap();
        let shell = Shell::new().unwrap();
        let docs = root().join("docs");
        let mut found = 0;
        for page in pages(&shell, &docs).unwrap() {
            if std::fs::read_to_string(docs.join(&page))
                .unwrap()
                .contains("\n```rust")
            {
                assert!(
                    listed.contains(&format!("\"docs/{page}\"")),
                    "book_examples does not list {page}"
                );
                found += 1;
            }
        }
        assert!(found >= 6, "{found} pages have Rust");
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md) and [`c`](d.md#e), [f](https://g)\n```rust\nlet a = b[0](1); [h](i)\n```\n![j](k.svg)\n";
        assert_eq!(markdown_links(text), ["b.md", "d.md#e", "k.svg"]);
    }

    #[test]
    fn paths_of_the_repository_are_found() {
        let text = "in `crates/a/src/b.rs` and `tools/*`, `a/b.rs`\n| `docs/c.md` | x |\n";
        assert_eq!(paths(text), ["crates/a/src/b.rs", "docs/c.md"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("a.html");
        let text = "<h2 id=\"there\">x</h2> <a href=\"#there\">y</a>";
        std::fs::write(&page, text).unwrap();
        let anchors = BTreeMap::from([(page.as_path(), attributes(text, "id").into_iter().collect())]);
        assert_eq!(attributes(text, "href"), ["#there"]);
        assert_eq!(follow(&page, "#there", &anchors), Ok(()));
        assert_eq!(follow(&page, "a.html#there", &anchors), Ok(()));
        assert!(follow(&page, "a.html#gone", &anchors).is_err());
        assert!(follow(&page, "b.html", &anchors).is_err());
    }

    #[test]
    fn a_path_without_parents_is_the_same_file() {
        assert_eq!(normal(Path::new("/a/b/../c.html")), Path::new("/a/c.html"));
    }
}
