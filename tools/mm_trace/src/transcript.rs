//! The decoded exchange as text.

use crate::calls::{Call, CallEnd, Event, Message, Note, Sink};
use crate::decode::Decoded;
use crate::dump::Dump;
use crate::guids;
use crate::log::Level;
use mm_wire::Guid;
use std::io::{self, Write};

/// Bytes in a row.
const ROW: usize = 16;

/// Writes the events, line by line; nested calls are indented.
#[derive(Debug)]
pub struct Transcript<W> {
    out: W,
    only: Option<Guid>,
    calls: u64,
    failed: u64,
    open: u64,
    mmis: u64,
}

impl<W: Write> Transcript<W> {
    /// Writes to `out`; only calls to this recipient if there is one.
    pub const fn new(out: W, only: Option<Guid>) -> Self {
        Self {
            out,
            only,
            calls: 0,
            failed: 0,
            open: 0,
            mmis: 0,
        }
    }

    /// Writes the counts, and gives the output back.
    ///
    /// # Errors
    ///
    /// The output's error.
    pub fn finish(mut self) -> io::Result<W> {
        let Self {
            calls,
            failed,
            open,
            mmis,
            ..
        } = self;
        writeln!(
            self.out,
            "\n{calls} calls: {failed} failed, {open} without an end; {mmis} MMIs"
        )?;
        Ok(self.out)
    }

    fn is_wanted(&self, call: Option<&Call>) -> bool {
        match self.only {
            None => true,
            Some(only) => call.is_some_and(|call| call.recipient == Some(only)),
        }
    }

    /// A line with its number in the input; without one, it belongs to the line above.
    fn line(&mut self, number: Option<u64>, depth: usize, words: &str) -> io::Result<()> {
        let indent = depth.saturating_mul(4);
        match number {
            Some(number) => writeln!(self.out, "{number:>8}  {:indent$}{words}", ""),
            None => writeln!(self.out, "{:>8}  {:indent$}{words}", "", ""),
        }
    }

    fn decoded(&mut self, depth: usize, decoded: &Decoded, with_problems: bool) -> io::Result<()> {
        for (name, value) in &decoded.fields {
            self.line(None, depth, &format!("    {name}: {value}"))?;
        }
        if with_problems {
            self.problems(depth, &decoded.problems)?;
        }
        Ok(())
    }

    fn problems(&mut self, depth: usize, problems: &[String]) -> io::Result<()> {
        problems
            .iter()
            .try_for_each(|problem| self.line(None, depth, &format!("    ! {problem}")))
    }

    fn message(&mut self, depth: usize, message: &Message) -> io::Result<()> {
        self.rows(depth, &message.bytes)?;
        if message.total > message.bytes.len() as u64 {
            let rest = message.total.saturating_sub(message.bytes.len() as u64);
            self.line(
                None,
                depth,
                &format!("    ... {rest} more bytes, which the log leaves out"),
            )?;
        }
        self.decoded(depth, &message.decoded, true)
    }

    fn rows(&mut self, depth: usize, bytes: &[u8]) -> io::Result<()> {
        for (row, bytes) in bytes.chunks(ROW).enumerate() {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let printed = |byte: &u8| {
                if byte.is_ascii_graphic() {
                    char::from(*byte)
                } else {
                    '.'
                }
            };
            let text: String = bytes.iter().map(printed).collect();
            let at = row.saturating_mul(ROW);
            self.line(
                None,
                depth,
                &format!("    {at:04x}  {:<47}  {text}", hex.join(" ")),
            )?;
        }
        Ok(())
    }

    fn end(&mut self, call: &Call) -> io::Result<()> {
        self.calls = self.calls.saturating_add(1);
        let name = call.name();
        let took = match (call.start.us, call.end.us) {
            (Some(start), Some(end)) if call.request.is_some() => {
                format!(", {} us", end.saturating_sub(start))
            }
            _ => String::new(),
        };
        let sent = call
            .sent
            .map(|sent| format!(", {sent} bytes sent"))
            .unwrap_or_default();
        let to = if call.request.is_some() {
            String::new()
        } else {
            format!(" to {}", call.to())
        };
        let words = match &call.outcome {
            CallEnd::Responded => {
                let back = call.back.unwrap_or(0);
                format!("{name}{to} done{sent}, {back} bytes back{took}")
            }
            CallEnd::Failed(why) => {
                self.failed = self.failed.saturating_add(1);
                format!("! {name}{to} failed{sent}{took}: {why}")
            }
            CallEnd::Open(why) => {
                self.open = self.open.saturating_add(1);
                format!("! {name}{to}: {why}")
            }
        };
        self.line(Some(call.end.line), call.depth, &words)
    }

    fn note(&mut self, note: &Note, call: Option<&Call>, what: &str) -> io::Result<()> {
        let depth = call.map_or(0, |call| call.depth.saturating_add(1));
        let mark = if note.level >= Level::Warn { "! " } else { "" };
        self.line(Some(note.at.line), depth, &format!("{mark}{what}{}", note.words))
    }

    fn dump(&mut self, dump: &Dump) -> io::Result<()> {
        self.line(None, 0, &dump.title)?;
        for (name, value) in &dump.fields {
            self.line(None, 0, &format!("    {name}: {value}"))?;
        }
        if let Some(message) = &dump.message {
            if !message.what.is_empty() {
                self.line(None, 0, &format!("    it says: {}", message.what))?;
            }
            self.decoded(0, message, false)?;
        }
        self.problems(0, &dump.problems)?;
        let bytes: Vec<u8> = (dump.bytes.as_bytes().chunks(2))
            .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        // The end of a dump is mostly zeroes.
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at.saturating_add(1));
        self.rows(0, bytes.get(..end).unwrap_or(&bytes))
    }
}

impl<W: Write> Sink for Transcript<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Input(name, format) => writeln!(self.out, "{name} ({format})"),
            Event::Restart(at, _) => self.line(Some(at.line), 0, "the machine was started again"),
            Event::Damaged(damage) => self.line(
                Some(damage.line),
                0,
                &format!("! damaged in column {}: {}", damage.column, damage.what),
            ),
            Event::Dump(dump) => self.dump(dump),
            Event::Request(call) if self.is_wanted(Some(call)) => {
                let Some(request) = &call.request else {
                    return Ok(());
                };
                let guid = call.recipient.filter(|guid| guids::find(*guid).is_some());
                let guid = guid.map(|guid| format!(" ({guid})")).unwrap_or_default();
                let what = &request.decoded.what;
                let what = if what.is_empty() {
                    String::new()
                } else {
                    format!(": {what}")
                };
                let header = call
                    .header
                    .map(|header| format!(", {header:?} header"))
                    .unwrap_or_default();
                let words = format!(
                    "{} to {}{guid}, comm buffer {}{header}, {} bytes{what}",
                    call.name(),
                    call.to(),
                    call.buffer,
                    request.total,
                );
                self.line(Some(call.start.line), call.depth, &words)?;
                self.message(call.depth, request)
            }
            Event::Response(call) if self.is_wanted(Some(call)) => {
                let Some(response) = &call.response else {
                    return Ok(());
                };
                let words = format!("{} response, {} bytes", call.name(), response.total);
                self.line(Some(response.at.line), call.depth, &words)?;
                self.message(call.depth, response)
            }
            Event::Mmi(note, call) => {
                if note.level < Level::Warn {
                    self.mmis = self.mmis.saturating_add(1);
                }
                if self.is_wanted(*call) {
                    self.note(note, *call, "")?;
                }
                Ok(())
            }
            Event::Waited(call, at) if self.is_wanted(Some(call)) => {
                let pauses = call.pauses.unwrap_or(0);
                let depth = call.depth.saturating_add(1);
                self.line(Some(at.line), depth, &format!("waited {pauses} pauses for MM"))
            }
            Event::Note(note, call) if self.is_wanted(*call) || note.level >= Level::Error => {
                self.note(note, *call, "")
            }
            Event::End(call) if self.is_wanted(Some(call)) => self.end(call),
            _ => Ok(()),
        }
    }
}
