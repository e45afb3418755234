//! `mm_trace` reads what the crate logs: if the words of one change, the other has to follow.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use mm_conformance::demo;
use mm_conformance::lab::{Client, LogLevel, Setup};
use mm_conformance::mm;
use mm_conformance::sim::SimSite;
use mm_trace::calls::{Call, CallEnd, Event};
use mm_trace::log::Level;
use mm_trace::page::{CALLS, Page};
use mm_trace::read::{Format, read};
use mm_trace::transcript::Transcript;
use mm_wire::{Guid, HeaderFormat, guid};

const NO_HANDLER: Guid = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

/// The crate's log at trace while `talk` runs on a simulated machine.
fn log_of(talk: impl Fn(&Client)) -> String {
    let lab = SimSite::lab();
    let client = lab.bring_up(&Setup::default()).unwrap();
    lab.with_log(LogLevel::Trace, &mut || talk(&client))
}

/// The calls in a log, and the lines that belong to no call or cannot be read.
fn calls(log: &str) -> (Vec<Call>, Vec<String>) {
    let mut calls = Vec::new();
    let mut loose = Vec::new();
    let mut sink = |event: &Event<'_>| {
        match event {
            Event::End(call) => calls.push((*call).clone()),
            Event::Mmi(note, None) | Event::Note(note, None) => loose.push(note.words.clone()),
            Event::Damaged(damage) => loose.push(damage.to_string()),
            _ => {}
        }
        Ok(())
    };
    read(log.as_bytes(), "log", Some(Format::Log), None, &mut sink).unwrap();
    (calls, loose)
}

#[test]
fn every_line_of_a_call_is_understood() {
    let message: Vec<u8> = (0..=255).collect();
    let log = log_of(|client| assert!(client.communicate(0, &message, mm::ECHO).is_ok()));
    let (calls, loose) = calls(&log);
    assert_eq!(loose, [""; 0], "{log}");
    let [call] = calls.as_slice() else {
        panic!("{} calls in {log}", calls.len());
    };
    assert_eq!((call.number, call.buffer, call.depth), (Some(1), 0, 0));
    assert_eq!(
        (call.recipient, call.header),
        (Some(mm::ECHO), Some(HeaderFormat::V1))
    );
    assert_eq!(
        (call.sent, call.back, &call.outcome),
        (Some(256), Some(256), &CallEnd::Responded)
    );
    assert_eq!(call.mmis.len(), 1, "{log}");
    assert!(call.pauses.is_some(), "{log}");
    assert!(call.notes.is_empty(), "{:?}", call.notes);
    for message in [&call.request, &call.response] {
        let shown = message.as_ref().unwrap();
        assert_eq!(
            (shown.total, shown.bytes.as_slice()),
            (256, (0..64).collect::<Vec<u8>>().as_slice())
        );
    }
}

#[test]
fn a_call_inside_a_call_is_inside() {
    let log = log_of(|client| {
        let inner = Box::new(|client: &Client| {
            assert!(client.communicate(1, b"inner", mm::ECHO).is_ok());
        });
        assert!(client.communicate_around(0, b"outer", mm::ECHO, inner).is_ok());
    });
    let (calls, loose) = calls(&log);
    assert_eq!(loose, [""; 0], "{log}");
    let places: Vec<_> = calls
        .iter()
        .map(|call| (call.buffer, call.depth, call.sent))
        .collect();
    assert_eq!(places, [(1, 1, Some(5)), (0, 0, Some(5))], "{log}");
    assert!(
        calls.iter().all(|call| call.outcome == CallEnd::Responded),
        "{log}"
    );
    assert!(calls[0].start.order > calls[1].start.order && calls[0].end.order < calls[1].end.order);
}

#[test]
fn failures_have_the_text_of_the_error() {
    let log = log_of(|client| {
        client.communicate(0, b"x", NO_HANDLER).unwrap_err();
        client.communicate(7, b"x", mm::ECHO).unwrap_err();
        client.communicate(0, b"", mm::ECHO).unwrap_err();
        client.switch_smis(false);
        client.communicate(0, b"x", mm::ECHO).unwrap_err();
        client.switch_smis(true);
    });
    let (calls, _) = calls(&log);
    let words: Vec<String> = (calls.iter())
        .map(|call| match &call.outcome {
            CallEnd::Failed(why) => why.clone(),
            other => panic!("{other:?} in {log}"),
        })
        .collect();
    assert_eq!(words.len(), 4, "{log}");
    for (words, needle) in words
        .iter()
        .zip(["EFI_NOT_FOUND", "comm buffer", "empty", "SMIs are off"])
    {
        assert!(words.contains(needle), "{words}");
    }
    // An error that the crate logs in a separate line belongs to the call that it ended.
    assert!(
        calls
            .iter()
            .flat_map(|call| &call.notes)
            .all(|note| note.level >= Level::Warn),
        "{log}"
    );
}

#[test]
fn the_demos_conversation_is_decoded() {
    let mut log = String::new();
    demo::run(&SimSite::lab(), "here", &mut |line| {
        if let Some(line) = line.to_string().strip_prefix(demo::LOG) {
            log += line;
            log += "\n";
        }
    })
    .unwrap();
    let mut transcript = Transcript::new(Vec::new(), None);
    let mut page = Page::new(Vec::new(), None, CALLS).unwrap();
    let summary = read(log.as_bytes(), "demo", None, None, &mut transcript).unwrap();
    assert_eq!(summary.damaged, 0, "{log}");
    read(log.as_bytes(), "demo", None, None, &mut page).unwrap();
    let text = String::from_utf8(transcript.finish().unwrap()).unwrap();
    let page = String::from_utf8(page.finish().unwrap()).unwrap();
    for words in [
        "MM supervisor",
        "version: 0x",
        "variable service",
        "GET_PAYLOAD_SIZE",
        "SET_VARIABLE \\\"Greeti…\\\"",
        "EFI_NOT_FOUND",
        "SMIs are off",
    ] {
        let plain = words.replace('\\', "");
        assert!(text.contains(&plain), "no {plain} in {text}");
    }
    assert!(page.contains("SET_VARIABLE \\\"Greeti…\\\""));
}
