//! The program as people start it.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mm_trace(words: &[&str], dir: &Path, stdout: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mm_trace"));
    command.args(words).current_dir(dir).stdin(Stdio::null());
    command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
}

fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// More than fits into a pipe and a buffer.
fn log() -> String {
    let call = |number: u32| {
        format!(
            "DEBUG mm_comm: call {number}, comm buffer 0: 1 bytes to ed32d533-99e6-4209-9cc0-2d72cdd998a7, 1 bytes back\n"
        )
    };
    (1..4000).map(call).collect()
}

#[test]
fn the_page_is_complete_although_the_transcripts_reader_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.log"), log()).unwrap();
    let output = mm_trace(&["a.log", "--html", "a.html"], dir.path(), closed());
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
    let page = std::fs::read_to_string(dir.path().join("a.html")).unwrap();
    assert!(page.ends_with("</html>\n"), "{} bytes", page.len());
    // Without a page nothing is left to do.
    let output = mm_trace(&["a.log"], dir.path(), closed());
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.log.gz"), b"\x1f\x8b\x08\0\0\0").unwrap();
    for (words, error) in [
        (["."].as_slice(), "error: . is a directory\n"),
        (&["none.log"], "error: none.log cannot be read: No such file"),
        (
            &["a.log.gz"],
            "a.log.gz: line 1, column 1: the input is compressed with gzip; convert it: `zcat FILE",
        ),
    ] {
        let output = mm_trace(words, dir.path(), Stdio::null());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && said.starts_with(error),
            "{said}"
        );
    }
}
