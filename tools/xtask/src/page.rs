//! The page that `mm_trace` writes, in a real browser.

use crate::report::{Counts, Failed, Report};
use crate::setup::CHROMIUM;
use crate::{demo, process};
use anyhow::{Result, bail, ensure};
use clap::Args;
use mm_trace::calls::{Event, Sink as _};
use mm_trace::page::{CALLS, Page};
use mm_trace::read::read;
use std::process::{Command, ExitCode};
use std::time::Duration;
use xshell::Shell;

/// The tests that run in the page.
const TESTS: &str = include_str!("../../mm_trace/tests/page.js");

/// A log with what the demo's log lacks: times, a call without an end, damage, a restart, text that
/// looks like markup.
const OTHER: &str = "\
TRACE - a.rs:1: call 31 at 1000 us, comm buffer 0: request to 27abf055-b1b8-4c26-8048-748f37baa2df, V3 header, 1 of 1 bytes: [00]
TRACE - a.rs:1: MMI raised: command 0xff, data 0x00
TRACE - a.rs:1: call 31 at 9000 us, comm buffer 0: response, 1 of 1 bytes: [00]
DEBUG - call 31 at 9000 us, comm buffer 0: 1 bytes to 27abf055-b1b8-4c26-8048-748f37baa2df, 1 bytes back
TRACE - a.rs:1: call 32 at 9500 us, comm buffer 0: request to 27abf055-b1b8-4c26-8048-748f37baa2df, V3 header, 1 of 1 bytes: [00]
DEBUG - call 32 at 9600 us, comm buffer 0: 1 bytes to 27abf055-b1b8-4c26-8048-748f37baa2df: <img src=x onerror=\"hacked=1\"></script>
TRACE - a.rs:1: call 33 at 9700 us, comm buffer 0: request to 27abf055-b1b8-4c26-8048-748f37baa2df, V3 header, 1 of 1 bytes: [00]
ERROR - comm buffer 0: <script>hacked=2</script>
TRACE - a.rs:1: call 33 at 9800 us, comm buffer 0: response, 1 of 1 bytes: [0
DEBUG - call 1 at 10 us, comm buffer 0: 1 bytes to 27abf055-b1b8-4c26-8048-748f37baa2df, 1 bytes back
";

/// A status mailbox.
const MAILBOX: [u8; 24] = {
    let mut bytes = [0; 24];
    bytes[0] = 1;
    bytes
};

/// How long the browser may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Tests the page that `mm_trace` writes, in headless Chromium.
#[derive(Args, Debug)]
pub(crate) struct Options {}

pub(crate) fn run(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    report.stage("trace page", || stage(shell));
    report.conclude()
}

/// Draws the demo and [`OTHER`], and makes the browser run [`TESTS`] in the page.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    CHROMIUM.require(shell)?;
    let log = demo::simulated_log(shell, true)?;
    let mut page = Page::new(Vec::new(), None, CALLS)?;
    let mut sink = |event: &Event<'_>| page.event(event);
    for (name, input) in [
        ("demo", log.as_bytes()),
        ("other", OTHER.as_bytes()),
        ("mailbox", &MAILBOX),
    ] {
        read(input, name, None, None, &mut sink)?;
    }
    let html = String::from_utf8(page.finish()?)?;
    let tested = html.replacen("</body>", &format!("<script>\n{TESTS}</script>\n</body>"), 1);
    ensure!(tested != html, "the page has no end of its body");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("page.html");
    std::fs::write(&file, tested)?;

    let mut command = Command::new("chromium");
    command
        // Root has no sandbox; the page is our own.
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1400,1000",
            "--dump-dom",
        ])
        .arg(format!(
            "--user-data-dir={}",
            dir.path().join("profile").display()
        ))
        .arg(format!("file://{}", file.display()));
    let mut counts = Counts::default();
    let mut done = String::new();
    let mut other = Vec::new();
    let status = process::run("chromium", command, Some(DEADLINE), |line| {
        if let Some(verdict) = line.strip_prefix("TEST ") {
            let counter = if verdict.ends_with(" ok") {
                &mut counts.passed
            } else {
                &mut counts.failed
            };
            *counter = counter.saturating_add(1);
            return Some(line.to_owned());
        }
        if line.starts_with("DONE ") {
            line.clone_into(&mut done);
        }
        if line.contains("CONSOLE") || line.contains("ERROR") {
            other.push(line.to_owned());
        }
        None
    })?;
    process::require_success("chromium", status)?;
    let total = counts.passed.saturating_add(counts.failed);
    let expected = format!("DONE {}/{total}", counts.passed);
    if done != expected {
        other.iter().for_each(|line| println!("  | {line}"));
        bail!("the page's tests did not come to their end: {done:?}, expected {expected:?}");
    }
    if counts.failed > 0 {
        let reason = format!("{} tests failed in the browser", counts.failed);
        return Err(Failed { counts, reason }.into());
    }
    ensure!(counts.passed > 0, "no test ran in the browser");
    Ok(counts)
}
