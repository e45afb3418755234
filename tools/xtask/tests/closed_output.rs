//! A reader that does not want all of the output is not a fault.
#![cfg(unix)]

use std::process::{Command, Stdio};

#[test]
fn output_that_its_reader_has_closed_ends_the_program_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // It prints a line for each tool, and builds nothing.
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["setup", "--check"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141), "{}", output.status);
}
