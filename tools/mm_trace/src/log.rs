//! The lines that `patina_mm` logs.
//!
//! | line, behind what the platform's logger puts in front | from |
//! |---|---|
//! | `call N[ at T us], comm buffer B: request to GUID, V1 header, n of m bytes: [xx, …]` | `service/response_reader.rs` |
//! | `call N[ at T us], comm buffer B: response, n of m bytes: [xx, …]` | the same |
//! | `call N[ at T us], comm buffer B: n bytes to GUID, m bytes back` | `communicator/client.rs` |
//! | `call N[ at T us], comm buffer B: n bytes to GUID: why it failed` | the same |
//! | `comm buffer B: waited n pauses for MM` | `communicator/executor.rs` |
//! | `MMI raised: command 0x.., data 0x..` | `sw_mmi_manager.rs` |
//! | `secure monitor call done: …` | the same |
//!
//! Everything else that has the target `mm_comm` or `sw_mmi`, or names a call or comm buffer, is a
//! note. The tests make the crate log and read what it wrote, so that both stay in step.

use crate::input::{self, Cursor, Expected};
use memchr::memmem::Finder;
use mm_wire::{Guid, HeaderFormat};
use serde::Serialize;

/// The level of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// `TRACE`.
    Trace,
    /// `DEBUG`.
    Debug,
    /// `INFO`, or no level.
    Info,
    /// `WARN`.
    Warn,
    /// `ERROR`.
    Error,
}

const LEVELS: [(&str, Level); 5] = [
    ("ERROR", Level::Error),
    ("WARN", Level::Warn),
    ("INFO", Level::Info),
    ("DEBUG", Level::Debug),
    ("TRACE", Level::Trace),
];

/// Which call a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The call's number since power-on.
    pub call: Option<u32>,
    /// When the line was logged, in microseconds of the platform's clock.
    pub us: Option<u64>,
    /// The comm buffer.
    pub buffer: u8,
}

/// The start of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Bytes of the message.
    pub total: u64,
    /// The first of them.
    pub bytes: Vec<u8>,
}

/// The contents of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A request is in the comm buffer.
    Request {
        /// The handler that it is for.
        recipient: Guid,
        /// The header in front of it.
        header: HeaderFormat,
        /// Its first bytes.
        shown: Shown,
    },
    /// MM has responded.
    Response(Shown),
    /// The call is over.
    End {
        /// Bytes of the request.
        sent: u64,
        /// The handler.
        recipient: Guid,
        /// Bytes of the response, or why there is none.
        result: Result<u64, String>,
    },
    /// The call waited for MM.
    Waited {
        /// How often the mailbox was polled.
        pauses: u64,
    },
    /// An MMI was raised.
    Mmi(String),
    /// Another line of the crate.
    Note(String),
}

/// A line of `patina_mm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its level.
    pub level: Level,
    /// The call, if the line says which.
    pub tag: Option<Tag>,
    /// Its contents.
    pub said: Said,
}

/// Finds the lines of `patina_mm` among all others.
#[derive(Debug)]
pub struct Parser {
    buffer: Finder<'static>,
    mmi: Finder<'static>,
    secure: Finder<'static>,
    targets: [Finder<'static>; 2],
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            buffer: Finder::new("comm buffer "),
            mmi: Finder::new("MMI raised: "),
            secure: Finder::new("secure monitor call done: "),
            targets: [Finder::new("mm_comm"), Finder::new("sw_mmi")],
        }
    }
}

impl Parser {
    /// Reads a line; `None` if it is not of `patina_mm`.
    ///
    /// # Errors
    ///
    /// [`Expected`] if it starts like one, but continues differently.
    pub fn parse(&self, line: &[u8]) -> Result<Option<Line>, Expected> {
        if let Some(at) = self.buffer.find(line) {
            return tagged(&input::text(line), at).map(Some);
        }
        for finder in [&self.mmi, &self.secure] {
            if let Some(at) = finder.find(line) {
                let text = input::text(line);
                let words = text.get(at..).unwrap_or_default();
                return Ok(Some(Line {
                    level: level(&text),
                    tag: None,
                    said: Said::Mmi(message(words).to_owned()),
                }));
            }
        }
        if self.targets.iter().any(|target| target.find(line).is_some()) {
            let text = input::text(line);
            return Ok(target_end(&text).map(|_| Line {
                level: level(&text),
                tag: None,
                said: Said::Note(untargeted(&text).to_owned()),
            }));
        }
        Ok(None)
    }
}

/// The level that a logger put in front.
fn level(text: &str) -> Level {
    LEVELS
        .into_iter()
        .filter_map(|(word, level)| Some((text.find(word)?, level)))
        .min_by_key(|(at, _)| *at)
        .map_or(Level::Info, |(_, level)| level)
}

/// A message without the text that a JSON logger appends.
fn message(text: &str) -> &str {
    let end = ["\", \"file\": ", "\"}"]
        .into_iter()
        .find_map(|end| text.find(end));
    text.get(..end.unwrap_or(text.len())).unwrap_or(text).trim_end()
}

/// The end of the crate's target in a line; the target is a whole word.
fn target_end(text: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    ["mm_comm", "sw_mmi"]
        .into_iter()
        .filter_map(|target| {
            let (before, behind) = text.split_once(target)?;
            let is_word = !before.ends_with(|c| is_part(c) || c == ':') && !behind.starts_with(is_part);
            is_word.then_some(before.len().saturating_add(target.len()))
        })
        .min()
}

/// A line without level, target, and punctuation.
fn untargeted(text: &str) -> &str {
    let rest = text.get(target_end(text).unwrap_or(0)..).unwrap_or(text);
    let rest = rest.trim_start_matches([':', ']', ' ', '"', ',', '-']);
    message(rest.strip_prefix("message\": \"").unwrap_or(rest))
}

/// A line with `comm buffer ` at this index.
fn tagged(text: &str, at: usize) -> Result<Line, Expected> {
    let front = text.get(..at).unwrap_or_default();
    let start = front.rfind("call ").filter(|start| is_call(front, *start));
    let start = start.unwrap_or(at);
    let mut cursor = Cursor::new(
        message(text.get(start..).unwrap_or_default()),
        start.saturating_add(1),
    );
    let whole = cursor;
    let level = level(text.get(..start).unwrap_or_default());
    let note = |words: &str| Line {
        level,
        tag: None,
        said: Said::Note(words.to_owned()),
    };

    let mut call = None;
    let mut us = None;
    if cursor.eat("call ") {
        call = Some(cursor.number()?);
        if cursor.eat(" at ") {
            us = Some(cursor.number()?);
            cursor.expect(" us")?;
        }
        cursor.expect(", ")?;
    }
    cursor.expect("comm buffer ")?;
    let buffer = match (cursor.number(), call) {
        (Ok(buffer), _) => buffer,
        (Err(error), Some(_)) => return Err(error),
        // Words about comm buffers, such as the configuration's.
        (Err(_), None) => return Ok(note(untargeted(text))),
    };
    if !cursor.eat(": ") {
        if call.is_some() {
            return Err(cursor.expected("`: `"));
        }
        return Ok(note(whole.rest()));
    }
    Ok(Line {
        level,
        tag: Some(Tag { call, us, buffer }),
        said: said(cursor)?,
    })
}

/// Whether the words from `start` on are `call N[ at T us], `.
fn is_call(front: &str, start: usize) -> bool {
    let mut cursor = Cursor::new(front.get(start..).unwrap_or_default(), 1);
    cursor.eat("call ") && !cursor.word(|c| c.is_ascii_digit()).is_empty()
}

/// Parses what follows the tag.
fn said(mut cursor: Cursor<'_>) -> Result<Said, Expected> {
    if cursor.eat("request to ") {
        let recipient = cursor.guid()?;
        cursor.expect(", ")?;
        let header = if cursor.eat("V1") {
            HeaderFormat::V1
        } else {
            cursor.expect("V3")?;
            HeaderFormat::V3
        };
        cursor.expect(" header, ")?;
        let shown = shown(&mut cursor)?;
        no_second_line(&cursor)?;
        return Ok(Said::Request {
            recipient,
            header,
            shown,
        });
    }
    if cursor.eat("response, ") {
        let shown = shown(&mut cursor)?;
        no_second_line(&cursor)?;
        return Ok(Said::Response(shown));
    }
    if cursor.eat("waited ") {
        let pauses = cursor.number()?;
        cursor.expect(" pauses for MM")?;
        no_second_line(&cursor)?;
        return Ok(Said::Waited { pauses });
    }
    let mut end = cursor;
    if let (Ok(sent), true) = (end.number(), end.eat(" bytes to ")) {
        let recipient = end.guid()?;
        let result = if end.eat(": ") {
            Err(end.rest().to_owned())
        } else {
            end.expect(", ")?;
            let back = end.number()?;
            end.expect(" bytes back")?;
            no_second_line(&end)?;
            Ok(back)
        };
        return Ok(Said::End {
            sent,
            recipient,
            result,
        });
    }
    Ok(Said::Note(cursor.rest().to_owned()))
}

/// A line whose end was lost has the next one behind it. Loggers put other text there, too.
fn no_second_line(cursor: &Cursor<'_>) -> Result<(), Expected> {
    if cursor.rest().contains("comm buffer ") {
        return Err(cursor.expected("the end of the line"));
    }
    Ok(())
}

/// `n of m bytes: [xx, …]`.
fn shown(cursor: &mut Cursor<'_>) -> Result<Shown, Expected> {
    let start = *cursor;
    let count: usize = cursor.number()?;
    cursor.expect(" of ")?;
    let total: u64 = cursor.number()?;
    cursor.expect(" bytes: [")?;
    let mut bytes = Vec::new();
    while !cursor.eat("]") {
        if !bytes.is_empty() {
            cursor.expect(", ")?;
        }
        bytes.push(cursor.byte()?);
    }
    if bytes.len() != count {
        return Err(start.expected(format!("the number of bytes that follow, {}", bytes.len())));
    }
    if count as u64 > total {
        return Err(start.expected(format!("not more bytes than the message's {total}")));
    }
    Ok(Shown { total, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "ed32d533-99e6-4209-9cc0-2d72cdd998a7";

    fn parse(line: &str) -> Option<Line> {
        Parser::default().parse(line.as_bytes()).unwrap()
    }

    fn fronts() -> [(String, String); 6] {
        [
            ("TRACE mm_comm: ", ""),
            ("TRACE - crates/patina_mm/src/component/communicator.rs:12: ", ""),
            ("{\"level\": \"TRACE\" \"message\": \"", "\"}"),
            (
                "{\"level\": \"TRACE\", \"target\": \"mm_comm\", \"message\": \"",
                "\", \"file\": \"a.rs\", \"line\": \"7\"}",
            ),
            ("\u{1b}[2J[   1.5] TRACE mm_comm ", ""),
            ("garbage \u{fffd} TRACE ", ""),
        ]
        .map(|(front, back)| (front.to_owned(), back.to_owned()))
    }

    #[test]
    fn a_request_is_read_whatever_logger_wrote_it() {
        for (front, back) in fronts() {
            let line = format!(
                "{front}call 7 at 1234 us, comm buffer 3: request to {GUID}, V3 header, 2 of 500 bytes: [0b, ff]{back}"
            );
            let line = parse(&line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(line.level, Level::Trace);
            assert_eq!(
                line.tag,
                Some(Tag {
                    call: Some(7),
                    us: Some(1234),
                    buffer: 3
                })
            );
            assert_eq!(
                line.said,
                Said::Request {
                    recipient: GUID.parse().unwrap(),
                    header: HeaderFormat::V3,
                    shown: Shown {
                        total: 500,
                        bytes: vec![0x0b, 0xff]
                    }
                }
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hide_a_line() {
        let mut line = vec![0xff, 0xc0, b' '];
        line.extend(b"DEBUG mm_comm: call 1, comm buffer 0: response, 1 of 1 bytes: [00]");
        let line = Parser::default().parse(&line).unwrap().unwrap();
        assert!(matches!(line.said, Said::Response(_)), "{line:?}");
    }

    #[test]
    fn columns_are_those_of_the_bytes_whatever_they_are() {
        let line = b"\xff\xc0\x80 \xe2\x82 call 7, comm buffer 999: x";
        let damage = Parser::default().parse(line).unwrap_err().at(1);
        let number_at = line.windows(3).position(|digits| digits == b"999").unwrap();
        assert_eq!(damage.column, number_at + 1, "{damage}");
    }

    #[test]
    fn text_that_a_logger_puts_behind_a_line_is_left_out() {
        for behind in ["\u{1b}[0m", "  (a.rs:7)", "\r\r"] {
            let line = format!("call 7, comm buffer 0: response, 1 of 1 bytes: [0b]{behind}");
            assert!(matches!(parse(&line).unwrap().said, Said::Response(_)), "{line}");
        }
    }

    #[test]
    fn ends_of_calls_have_their_result() {
        let said = |words: &str| {
            parse(&format!("DEBUG mm_comm: call 7, comm buffer 3: {words}"))
                .unwrap()
                .said
        };
        let recipient = GUID.parse().unwrap();
        assert_eq!(
            said(&format!("24 bytes to {GUID}, 40 bytes back")),
            Said::End {
                sent: 24,
                recipient,
                result: Ok(40)
            }
        );
        assert_eq!(
            said(&format!("24 bytes to {GUID}: MM returned EFI_NOT_FOUND")),
            Said::End {
                sent: 24,
                recipient,
                result: Err("MM returned EFI_NOT_FOUND".to_owned())
            }
        );
        assert_eq!(said("waited 12 pauses for MM"), Said::Waited { pauses: 12 });
        assert_eq!(said("anything else"), Said::Note("anything else".to_owned()));
    }

    #[test]
    fn other_lines_of_the_crate_are_notes_and_others_are_none() {
        let mmi = parse("TRACE sw_mmi: MMI raised: command 0xff, data 0x00").unwrap();
        assert_eq!(
            mmi.said,
            Said::Mmi("MMI raised: command 0xff, data 0x00".to_owned())
        );
        for (line, level, note) in [
            (
                "ERROR sw_mmi: no software MMIs: x",
                Level::Error,
                "no software MMIs: x",
            ),
            (
                "WARN - comm buffer 3 is disabled",
                Level::Warn,
                "comm buffer 3 is disabled",
            ),
            (
                "INFO mm_comm: comm buffer configuration",
                Level::Info,
                "comm buffer configuration",
            ),
        ] {
            let line = parse(line).unwrap();
            assert_eq!((line.level, line.said), (level, Said::Note(note.to_owned())));
        }
        for line in [
            "",
            "hello",
            "call 7",
            "BdsDxe: starting Boot0001",
            "INFO dxe: patina_mm::component::sw_mmi_manager::SwMmiManager",
            "INFO dxe: my_mm_comm: mine",
        ] {
            assert_eq!(parse(line), None);
        }
    }

    #[test]
    fn a_damaged_line_is_an_error_with_its_column() {
        for (line, column, what) in [
            (
                format!("call 7, comm buffer 0: request to {GUID}, V1 header, 2 of 2 bytes: [0b, zz]"),
                103,
                "two hexadecimal digits",
            ),
            (
                format!("call 7, comm buffer 0: request to {GUID}, V1 header, 2 of 2 bytes: [0b, 0"),
                103,
                "two hexadecimal digits",
            ),
            (
                "call 7, comm buffer 0: request to ed32d533, V1 header".to_owned(),
                35,
                "a GUID",
            ),
            ("call 7 at x us, comm buffer 0: x".to_owned(), 11, "a number"),
            ("call 7, comm buffer 999: x".to_owned(), 21, "a number"),
            (
                "call 7, comm buffer 0: response, 2 of 2 bytes: [0b]".to_owned(),
                34,
                "the number of bytes that follow, 1",
            ),
            (
                "call 7, comm buffer 0: response, 1 of 0 bytes: [0b]".to_owned(),
                34,
                "not more bytes than the message's 0",
            ),
            ("call 7, comm buffer 0".to_owned(), 22, "`: `"),
            // The line's end was lost.
            (
                "call 7, comm buffer 0: response, 1 of 1 bytes: [0b]DEBUG mm_comm: call 8, comm buffer 0: x"
                    .to_owned(),
                52,
                "the end of the line",
            ),
            (
                format!("call 7, comm buffer 0: 1 bytes to {GUID}, 1 bytes backTRACE comm buffer 1: x"),
                85,
                "the end of the line",
            ),
        ] {
            let damage = Parser::default().parse(line.as_bytes()).unwrap_err().at(5);
            assert_eq!((damage.line, damage.column), (5, column), "{line}: {damage}");
            assert!(
                damage.what.starts_with(&format!("expected {what}, found ")),
                "{damage}"
            );
        }
    }
}
