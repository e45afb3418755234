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
/// How many of the first bytes are looked at to guess what an input is.
const START: u64 = 64 << 10;

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
    // A serial line has noise at power-on, and other control characters now and then; a comm buffer has
    // zeros from its header on.
    let is_control =
        |byte: &&u8| byte.is_ascii_control() && !matches!(byte, b'\n' | b'\r' | b'\t' | 0x08 | 0x1b);
    let is_binary = start.iter().filter(is_control).count().saturating_mul(16) > start.len();
    match (is_digits || is_binary, dump::is_mailbox(start)) {
        (true, true) => Format::Mailbox,
        (true, false) => Format::CommBuffer,
        (false, _) => Format::Log,
    }
}

/// Inputs that have to be converted first: their first bytes, what they are, and how.
const CONVERTED: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "compressed with gzip", "zcat FILE | mm_trace -"),
    (b"\xfd7zXZ\0", "compressed with xz", "xzcat FILE | mm_trace -"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "zstdcat FILE | mm_trace -",
    ),
    (b"BZh", "compressed with bzip2", "bzcat FILE | mm_trace -"),
    (
        b"\xff\xfe",
        "UTF-16",
        "iconv -f UTF-16 -t UTF-8 FILE | mm_trace -",
    ),
    (
        b"\xfe\xff",
        "UTF-16",
        "iconv -f UTF-16 -t UTF-8 FILE | mm_trace -",
    ),
];

/// What has to be done first to an input that starts with these bytes.
fn to_convert(start: &[u8]) -> Option<Damage> {
    let (_, what, how) = CONVERTED.into_iter().find(|(mark, ..)| start.starts_with(mark))?;
    Some(Damage {
        line: 1,
        column: 1,
        what: format!("the input is {what}; convert it: `{how}`"),
    })
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
    // A pipe may give a few bytes at a time.
    let mut start = Vec::new();
    (&mut input).take(START).read_to_end(&mut start)?;
    let guessed = format.is_none();
    let format = format.unwrap_or_else(|| guess(&start));
    sink.event(&Event::Input(name, format.name()))?;
    if let Some(damage) = to_convert(&start).filter(|_| guessed) {
        sink.event(&Event::Damaged(&damage))?;
        return Ok(Summary { damaged: 1 });
    }
    let mut input = start.as_slice().chain(input);
    match format {
        Format::Log => log(input, sink),
        Format::Qemu => qemu(input, sink),
        _ => {
            let mut bytes = Vec::new();
            (&mut input).take(LARGEST_DUMP).read_to_end(&mut bytes)?;
            let is_whole = input.fill_buf()?.is_empty();
            let dumps = match format {
                _ if !is_whole => Err(Damage {
                    line: 1,
                    column: 1,
                    what: format!(
                        "a {} has at most {LARGEST_DUMP} bytes, the input has more; `--as log` reads a log of any length",
                        format.name()
                    ),
                }),
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
            // Noise at power-on, a bell, a form feed, and the lines of interest come later.
            (
                b"\0\x80\xff\0BdsDxe: starting Boot0001 from a disk\x07\n\x0cLinux version 6.1.0\n",
                Format::Log,
            ),
            (&[0; 4096], Format::CommBuffer),
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

    /// The kind that is guessed, and the damage, of an input that comes in parts of this length.
    fn seen(text: &[u8], part: usize, format: Option<Format>) -> (String, Vec<String>) {
        let (mut kind, mut damage) = (String::new(), Vec::new());
        let mut sink = |event: &Event<'_>| {
            match event {
                Event::Input(_, name) => kind = (*name).to_owned(),
                Event::Damaged(found) => damage.push(found.to_string()),
                _ => {}
            }
            Ok(())
        };
        let input = io::BufReader::with_capacity(part, text);
        let summary = read(input, "x", format, None, &mut sink).unwrap();
        assert_eq!(summary.damaged, damage.len() as u64);
        (kind, damage)
    }

    #[test]
    fn the_guess_does_not_depend_on_how_a_pipe_cuts_its_input() {
        let log = b"SEC\nPEI\n     0: v=20 e=0000\nSMM: enter\nRIP=1\nSMM: after RSM\n";
        for part in [1, 7, 64, 4096] {
            assert_eq!(seen(log, part, None), ("QEMU's log".to_owned(), vec![]), "{part}");
        }
    }

    #[test]
    fn compressed_input_and_utf_16_say_how_to_convert_them() {
        for (start, word) in [
            (&b"\x1f\x8b\x08\0\0\0\0\0"[..], "zcat FILE"),
            (b"\xfd7zXZ\0\0\x04", "xzcat FILE"),
            (b"\x28\xb5\x2f\xfd\x24", "zstdcat FILE"),
            (b"BZh91AY", "bzcat FILE"),
            (b"\xff\xfem\0m\0", "iconv"),
        ] {
            let (_, damage) = seen(start, 64, None);
            assert!(damage.len() == 1 && damage[0].contains(word), "{damage:?}");
        }
        // A comm buffer may start with any bytes.
        let (_, damage) = seen(b"\x1f\x8b\x08\0\0\0\0\0", 64, Some(Format::CommBuffer));
        assert_eq!(damage, [""; 0]);
    }

    #[test]
    fn a_dump_that_is_too_long_is_not_cut_silently() {
        let long = vec![0; usize::try_from(LARGEST_DUMP).unwrap() + 1];
        let (_, damage) = seen(&long, 1 << 16, Some(Format::CommBuffer));
        assert!(
            damage.len() == 1 && damage[0].contains("at most 67108864 bytes"),
            "{damage:?}"
        );
        let (_, damage) = seen(&long[1..], 1 << 16, Some(Format::CommBuffer));
        assert_eq!(damage, [""; 0]);
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
