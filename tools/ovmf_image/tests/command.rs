//! The program as people start it, on an image made by hand.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::{TinyPe, image};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ovmf_image(dir: &Path, words: &[&str], stdout: Stdio) -> Output {
    std::fs::write(dir.join("a.fd"), image()).unwrap();
    std::fs::write(dir.join("core.efi"), TinyPe::core().build()).unwrap();
    let words = ["--ovmf", "a.fd", "--core", "core.efi", "--output", "b.fd"]
        .iter()
        .chain(words);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ovmf_image"));
    command
        .args(words)
        .current_dir(dir)
        .stdout(stdout)
        .stderr(Stdio::piped());
    command.output().unwrap()
}

#[test]
fn an_image_is_written_although_the_reader_of_the_report_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ovmf_image(dir.path(), &[], writer.into());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(
        std::fs::read(dir.path().join("b.fd")).unwrap().len(),
        image().len()
    );
}

#[test]
fn a_file_that_stays_is_not_said_to_be_absent() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["--drop", "CpuDxe", "--drop", "TlsDxe", "--keep", "CpuDxe"];
    let output = ovmf_image(dir.path(), &words, Stdio::piped());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("CpuDxe stays: --keep names it\n"), "{said}");
    assert!(
        said.contains("nothing to drop: no TlsDxe in this image\n"),
        "{said}"
    );
    assert!(!said.contains("dropped "), "{said}");
}
