//! Reads an input of any kind.

use crate::calls::{Calls, Event, Sink};
use crate::input::{Damage, Lines};
use crate::log::Parser;
use crate::qemu::Interrupts;
use crate::{doctor, dump};
use memchr::memmem;
use mm_wire::Guid;
use std::io::{self, BufRead, Read as _};

/// The most bytes of a dump.
const LARGEST_DUMP: u64 = 64 << 20;

/// The kind of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A serial log.
    Log,
    /// QEMU's log of interrupts.
    Qemu,
    /// A comm buffer, as bytes or in digits.
    CommBuffer,
    /// A status mailbox, as bytes or in digits.
    Mailbox,
    /// The doctor's file.
    Doctor,
    /// A message to, or from, this handler, as bytes or in digits.
    Message(Guid),
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Qemu => "QEMU's log",
            Self::CommBuffer => "comm buffer",
            Self::Mailbox => "status mailbox",
            Self::Doctor => "the doctor's file",
            Self::Message(_) => "message",
        }
    }
}

/// The result of reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines that cannot be read.
    pub damaged: u64,
}

/// Guesses the kind of an input from its first bytes.
fn guess(start: &[u8]) -> Format {
    let has = |words: &[&str]| {
        words
            .iter()
            .any(|word| memmem::find(start, word.as_bytes()).is_some())
    };
    if has(&[doctor::MARK]) {
        return Format::Doctor;
    }
    if has(&[
        "SMM: enter",
        "Servicing hardware INT",
        "Taking exception ",
        "serial_write write addr",
    ]) {
        return Format::Qemu;
    }
    if has(&["mm_comm", "sw_mmi", "comm buffer"]) {
        return Format::Log;
    }
    let lines = start.len().min(512);
    let first = start.get(..lines).unwrap_or(start);
    let digits = first.rsplit_once_newline();
    let is_digits = dump::is_text(first)
        && std::str::from_utf8(digits)
            .is_ok_and(|text| dump::parse(text).is_ok_and(|bytes| !bytes.is_empty()));
    let is_binary = start
        .iter()
        .any(|byte| byte.is_ascii_control() && !matches!(byte, b'\n' | b'\r' | b'\t' | 0x08 | 0x1b));
    match (is_digits || is_binary, dump::is_mailbox(start)) {
        (true, true) => Format::Mailbox,
        (true, false) => Format::CommBuffer,
        (false, _) => Format::Log,
    }
}

trait WholeLines {
    fn rsplit_once_newline(&self) -> &[u8];
}

impl WholeLines for [u8] {
    /// Without the last line, which may be cut; all of it if there is one line only.
    fn rsplit_once_newline(&self) -> &[u8] {
        match self.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => self.get(..at).unwrap_or(self),
            None => self,
        }
    }
}

/// Reads an input; `format` is guessed if it is `None`. `mailbox` goes with a comm buffer.
///
/// # Errors
///
/// The error of input or output. Lines that cannot be read are events, and counted.
pub fn read(
    mut input: impl BufRead,
    name: &str,
    format: Option<Format>,
    mailbox: Option<&[u8]>,
    sink: &mut dyn Sink,
) -> io::Result<Summary> {
    let format = match format {
        Some(format) => format,
        None => guess(input.fill_buf()?),
    };
    sink.event(&Event::Input(name, format.name()))?;
    match format {
        Format::Log => log(input, sink),
        Format::Qemu => qemu(input, sink),
        _ => {
            let mut bytes = Vec::new();
            input.take(LARGEST_DUMP).read_to_end(&mut bytes)?;
            let dumps = match format {
                Format::Doctor => doctor::read(&bytes),
                _ => in_bytes(bytes).map(|bytes| vec![describe(format, &bytes, mailbox)]),
            };
            match dumps {
                Ok(dumps) => {
                    for dump in &dumps {
                        sink.event(&Event::Dump(dump))?;
                    }
                    Ok(Summary::default())
                }
                Err(damage) => {
                    sink.event(&Event::Damaged(&damage))?;
                    Ok(Summary { damaged: 1 })
                }
            }
        }
    }
}

fn describe(format: Format, bytes: &[u8], mailbox: Option<&[u8]>) -> dump::Dump {
    match format {
        Format::Mailbox => dump::mailbox(bytes),
        Format::Message(recipient) => dump::message(recipient, bytes),
        _ if dump::is_mailbox(bytes) && mailbox.is_none() => dump::mailbox(bytes),
        _ => dump::comm_buffer(bytes, mailbox),
    }
}

/// The bytes of a dump: the input itself, or the bytes that its digits describe.
///
/// # Errors
///
/// [`Damage`] in a dump in digits.
pub fn in_bytes(dump: Vec<u8>) -> Result<Vec<u8>, Damage> {
    match std::str::from_utf8(&dump) {
        Ok(text) if dump::is_text(&dump) => dump::parse(text),
        _ => Ok(dump),
    }
}

/// Takes a line of a log; a line that cannot be read is reported.
fn line(
    parser: &Parser,
    number: u64,
    line: &[u8],
    calls: &mut Calls,
    damaged: &mut u64,
    sink: &mut dyn Sink,
) -> io::Result<()> {
    match parser.parse(line) {
        Ok(Some(line)) => calls.take(number, line, sink),
        Ok(None) => Ok(()),
        Err(expected) => {
            *damaged = damaged.saturating_add(1);
            sink.event(&Event::Damaged(&expected.at(number)))
        }
    }
}

fn log(input: impl BufRead, sink: &mut dyn Sink) -> io::Result<Summary> {
    let parser = Parser::default();
    let mut calls = Calls::default();
    let mut lines = Lines::new(input);
    let mut damaged = 0;
    while let Some((number, text)) = lines.next()? {
        line(&parser, number, text, &mut calls, &mut damaged, sink)?;
    }
    calls.finish(sink)?;
    Ok(Summary { damaged })
}

fn qemu(input: impl BufRead, sink: &mut dyn Sink) -> io::Result<Summary> {
    let parser = Parser::default();
    let mut calls = Calls::default();
    let mut interrupts = Interrupts::default();
    let mut lines = Lines::new(input);
    let mut damaged = 0;
    let mut last = 0;
    while let Some((number, text)) = lines.next()? {
        last = number;
        let mut serial = |number: u64, text: &[u8], calls: &mut Calls, sink: &mut dyn Sink| {
            line(&parser, number, text, calls, &mut damaged, sink)
        };
        interrupts.take(number, text, &mut calls, sink, &mut serial)?;
    }
    interrupts.finish(last, &mut calls, sink)?;
    calls.finish(sink)?;
    Ok(Summary { damaged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_recognised_by_its_first_bytes() {
        let mailbox = [&[1][..], &[0; 23]].concat();
        let hex: String = mailbox.iter().map(|byte| format!("{byte:02x} ")).collect();
        for (start, format) in [
            (&b"hello\x1b[2J\r\nTRACE mm_comm: call 1"[..], Format::Log),
            (b"BdsDxe: starting\n", Format::Log),
            (b"", Format::Log),
            (b"Servicing hardware INT=0x20\n", Format::Qemu),
            (
                b"{\n  \"tool\": \"mm_doctor\",\n  \"format\": 1,\n  \"buffers\": [ \"comm-buffer HOB\" ]",
                Format::Doctor,
            ),
            (&mailbox, Format::Mailbox),
            (b"\x33\xd5\x32\xed\0\0", Format::CommBuffer),
            (b"00000000: 33d5 32ed\n00000004: 01", Format::CommBuffer),
            (hex.as_bytes(), Format::CommBuffer),
        ] {
            assert_eq!(guess(start), format, "{}", String::from_utf8_lossy(start));
        }
        let mut titles = Vec::new();
        let mut sink = |event: &Event<'_>| {
            if let Event::Dump(dump) = event {
                titles.push(dump.title.clone());
            }
            Ok(())
        };
        read(hex.as_bytes(), "x", None, None, &mut sink).unwrap();
        read(
            hex.as_bytes(),
            "x",
            Some(Format::Message(Guid::ZERO)),
            None,
            &mut sink,
        )
        .unwrap();
        assert_eq!(titles, ["status mailbox", "message"]);
    }

    #[test]
    fn a_damaged_line_does_not_end_the_reading() {
        let text = "call 1, comm buffer x: y\nDEBUG mm_comm: hello\ncall 2, comm buffer 0: response, 1 of";
        let mut seen = Vec::new();
        let mut sink = |event: &Event<'_>| {
            match event {
                Event::Damaged(damage) => seen.push(damage.to_string()),
                Event::Note(note, _) => seen.push(note.words.clone()),
                _ => {}
            }
            Ok(())
        };
        let summary = read(text.as_bytes(), "x", Some(Format::Log), None, &mut sink).unwrap();
        assert_eq!(summary.damaged, 2);
        assert_eq!(
            seen,
            [
                "line 1, column 21: expected a number, found `x: y`",
                "hello",
                "line 3, column 35: expected ` of `, found ` of`",
            ]
        );
    }
}
