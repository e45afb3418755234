//! Makes calls of lines: which line belongs to which call, which calls are nested, and which never
//! ended.

use crate::decode::{self, Decoded, Direction};
use crate::guids;
use crate::input::Damage;
use crate::log::{Level, Line, Said, Shown, Tag};
use mm_wire::{Guid, HeaderFormat};
use serde::{Serialize, Serializer};
use std::io;

/// The most notes and the most MMIs that are kept of one call.
const KEPT: usize = 100;
/// How far apart the numbers of two nested calls can be: there are only that many comm buffers.
const DEEPEST: u32 = 256;

/// The place of something in the input, and its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// Line of the input, from 1.
    pub line: u64,
    /// Number of events before this one.
    pub order: u64,
    /// Microseconds of the platform's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub us: Option<u64>,
}

/// A message, or its start, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Where it is in the log.
    pub at: Moment,
    /// Its length in bytes.
    pub total: u64,
    /// The bytes that are known.
    #[serde(serialize_with = "as_hex")]
    pub bytes: Vec<u8>,
    /// The decoded bytes.
    pub decoded: Decoded,
}

/// A line inside a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Where it is.
    pub at: Moment,
    /// How bad it is.
    pub level: Level,
    /// The text.
    pub words: String,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "lowercase")]
pub enum CallEnd {
    /// The call has a response.
    Responded,
    /// The call has an error.
    Failed(String),
    /// The log does not say.
    Open(String),
}

/// A call, with everything that the log says about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// How often the machine was started before.
    pub boot: u32,
    /// The number that the crate gave it.
    pub number: Option<u32>,
    /// The comm buffer.
    pub buffer: u8,
    /// Number of calls around it.
    pub depth: usize,
    /// The handler.
    #[serde(serialize_with = "as_text")]
    pub recipient: Option<Guid>,
    /// The header in front of the request.
    #[serde(serialize_with = "as_debug")]
    pub header: Option<HeaderFormat>,
    /// Its first line.
    pub start: Moment,
    /// Its last line.
    pub end: Moment,
    /// Bytes of the request.
    pub sent: Option<u64>,
    /// Bytes of the response.
    pub back: Option<u64>,
    /// The request.
    pub request: Option<Message>,
    /// The response.
    pub response: Option<Message>,
    /// MMIs that were raised or taken in it.
    pub mmis: Vec<Note>,
    /// How often the mailbox was polled.
    pub pauses: Option<u64>,
    /// Other lines in it.
    pub notes: Vec<Note>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: CallEnd,
}

impl Call {
    fn new(tag: Tag, boot: u32, depth: usize, at: Moment) -> Self {
        Self {
            boot,
            number: tag.call,
            buffer: tag.buffer,
            depth,
            recipient: None,
            header: None,
            start: at,
            end: at,
            sent: None,
            back: None,
            request: None,
            response: None,
            mmis: Vec::new(),
            pauses: None,
            notes: Vec::new(),
            outcome: CallEnd::Open("the log does not show its end".to_owned()),
        }
    }

    /// `call 7`, or its comm buffer if the log has no number.
    #[must_use]
    pub fn name(&self) -> String {
        match self.number {
            Some(number) => format!("call {number}"),
            None => format!("a call through comm buffer {}", self.buffer),
        }
    }

    /// The handler that it is for, by name if it has one.
    #[must_use]
    pub fn to(&self) -> String {
        self.recipient.map_or_else(
            || "a recipient that the log does not show".to_owned(),
            guids::name,
        )
    }

    /// The problems of the call, in order.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        let decoded = [&self.request, &self.response].into_iter().flatten();
        let decoded = decoded.flat_map(|message| message.decoded.problems.iter().map(String::as_str));
        let outcome = match &self.outcome {
            CallEnd::Responded => None,
            CallEnd::Failed(why) | CallEnd::Open(why) => Some(why.as_str()),
        };
        decoded.chain(outcome)
    }

    fn is_about(&self, tag: Tag) -> bool {
        self.buffer == tag.buffer && (tag.call.is_none() || self.number == tag.call)
    }

    fn message(&self, direction: Direction, shown: Shown, at: Moment) -> Message {
        let decoded = self.recipient.map_or_else(Decoded::default, |recipient| {
            decode::message(recipient, direction, &shown.bytes, shown.total)
        });
        Message {
            at,
            total: shown.total,
            bytes: shown.bytes,
            decoded,
        }
    }
}

fn as_text<S: Serializer>(guid: &Option<Guid>, to: S) -> Result<S::Ok, S::Error> {
    guid.map(|guid| guid.to_string()).serialize(to)
}

#[expect(clippy::ref_option, reason = "serde passes the field")]
fn as_debug<S: Serializer>(header: &Option<HeaderFormat>, to: S) -> Result<S::Ok, S::Error> {
    header.map(|header| format!("{header:?}")).serialize(to)
}

fn as_hex<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Hex(bytes))
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An event in the input, in its order.
#[derive(Debug)]
pub enum Event<'a> {
    /// The next input begins: its name and its kind.
    Input(&'a str, &'a str),
    /// The calls' numbers start again: the machine was started again.
    Restart(Moment, u32),
    /// A request was staged.
    Request(&'a Call),
    /// A response was read.
    Response(&'a Call),
    /// An MMI was raised, or taken; in this call if one was in progress.
    Mmi(&'a Note, Option<&'a Call>),
    /// A call looked for its response.
    Waited(&'a Call, Moment),
    /// Another line; in this call if one was in progress.
    Note(&'a Note, Option<&'a Call>),
    /// A call is over, or the log has no more lines about it.
    End(&'a Call),
    /// A line that cannot be read.
    Damaged(&'a Damage),
    /// A dump of memory.
    Dump(&'a crate::dump::Dump),
}

/// Takes events as they come.
pub trait Sink {
    /// Takes one event.
    ///
    /// # Errors
    ///
    /// The output's error.
    fn event(&mut self, event: &Event<'_>) -> io::Result<()>;
}

impl<F: FnMut(&Event<'_>) -> io::Result<()>> Sink for F {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        self(event)
    }
}

/// The calls that are in progress at a place in the log.
#[derive(Debug, Default)]
pub struct Calls {
    open: Vec<Call>,
    boot: u32,
    /// The lowest and the highest number of a call since the machine was started.
    numbers: Option<(u32, u32)>,
    order: u64,
}

impl Calls {
    fn moment(&mut self, line: u64, us: Option<u64>) -> Moment {
        let order = self.order;
        self.order = order.saturating_add(1);
        Moment { line, order, us }
    }

    /// Takes a line of the log.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::event`].
    pub fn take(&mut self, number: u64, line: Line, sink: &mut dyn Sink) -> io::Result<()> {
        let Line { level, tag, said } = line;
        let at = self.moment(number, tag.and_then(|tag| tag.us));
        let note = |words| Note { at, level, words };
        let Some(tag) = tag else {
            return match said {
                Said::Mmi(words) => self.mmi(&note(words), sink),
                Said::Note(words) => self.note(&note(words), None, sink),
                _ => Ok(()),
            };
        };
        match said {
            Said::Request {
                recipient,
                header,
                shown,
            } => {
                self.restart(tag, true, at, sink)?;
                self.close_stale(tag, sink)?;
                let mut call = Call::new(tag, self.boot, self.open.len(), at);
                call.recipient = Some(recipient);
                call.header = Some(header);
                call.sent = Some(shown.total);
                call.request = Some(call.message(Direction::Request, shown, at));
                sink.event(&Event::Request(&call))?;
                self.open.push(call);
            }
            Said::Response(shown) => {
                if !self.open.iter().any(|call| call.is_about(tag)) {
                    self.close_stale(tag, sink)?;
                }
                let index = self.find_or_open(tag, at, sink)?;
                if let Some(call) = self.open.get_mut(index) {
                    call.end = at;
                    call.back = Some(shown.total);
                    call.response = Some(call.message(Direction::Response, shown, at));
                    sink.event(&Event::Response(call))?;
                }
            }
            Said::End {
                sent,
                recipient,
                result,
            } => {
                let index = self.find_or_open(tag, at, sink)?;
                self.close_from(index.saturating_add(1), sink)?;
                if let Some(mut call) = self.open.pop() {
                    call.end = at;
                    call.recipient = Some(recipient);
                    call.sent = Some(sent);
                    call.outcome = match result {
                        Ok(back) => {
                            call.back = Some(back);
                            CallEnd::Responded
                        }
                        Err(why) => CallEnd::Failed(why),
                    };
                    sink.event(&Event::End(&call))?;
                }
            }
            Said::Waited { pauses } => {
                if let Some(call) = self.open.iter_mut().rfind(|call| call.is_about(tag)) {
                    call.pauses = Some(call.pauses.unwrap_or(0).saturating_add(pauses));
                    sink.event(&Event::Waited(call, at))?;
                }
            }
            Said::Mmi(words) => self.mmi(&note(words), sink)?,
            Said::Note(words) => self.note(&note(words), Some(tag), sink)?,
        }
        Ok(())
    }

    /// Takes an MMI that was raised or taken. If only QEMU's log reports it, [`Self::taken`] adds
    /// when that was.
    fn mmi(&mut self, note: &Note, sink: &mut dyn Sink) -> io::Result<()> {
        let call = self.open.last_mut();
        if let Some(call) = call.filter(|call| call.mmis.len() < KEPT) {
            call.mmis.push(note.clone());
        }
        sink.event(&Event::Mmi(note, self.open.last()))
    }

    /// Takes an MMI that QEMU saw.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::event`].
    pub fn taken(&mut self, line: u64, level: Level, words: String, sink: &mut dyn Sink) -> io::Result<()> {
        let at = self.moment(line, None);
        self.mmi(&Note { at, level, words }, sink)
    }

    fn note(&mut self, note: &Note, tag: Option<Tag>, sink: &mut dyn Sink) -> io::Result<()> {
        let index = match tag {
            Some(tag) => self.open.iter().rposition(|call| call.is_about(tag)),
            None => self.open.len().checked_sub(1),
        };
        let call = index.and_then(|index| self.open.get_mut(index));
        if let Some(call) = call.filter(|call| call.notes.len() < KEPT) {
            call.notes.push(note.clone());
        }
        sink.event(&Event::Note(note, index.and_then(|index| self.open.get(index))))
    }

    /// The index of the call that a line is about; an unknown call starts with this line.
    fn find_or_open(&mut self, tag: Tag, at: Moment, sink: &mut dyn Sink) -> io::Result<usize> {
        if let Some(index) = self.open.iter().rposition(|call| call.is_about(tag)) {
            return Ok(index);
        }
        self.restart(tag, false, at, sink)?;
        let index = self.open.len();
        self.open.push(Call::new(tag, self.boot, index, at));
        Ok(index)
    }

    /// Notices that the numbers start again. Calls that interrupt each other may come in another
    /// order, but not by much: in a log without requests, the end of call 1 comes behind those of the
    /// calls in it.
    fn restart(&mut self, tag: Tag, is_request: bool, at: Moment, sink: &mut dyn Sink) -> io::Result<()> {
        let Some(number) = tag.call else {
            return Ok(());
        };
        let is_new = self.numbers.is_some_and(|(lowest, highest)| {
            number == 1 && (is_request || lowest != 2) || number.saturating_add(DEEPEST) < highest
        });
        if is_new {
            for call in &mut self.open {
                call.outcome = CallEnd::Open("the machine was started again before its end".to_owned());
            }
            self.close_from(0, sink)?;
            self.boot = self.boot.saturating_add(1);
            sink.event(&Event::Restart(at, self.boot))?;
            self.numbers = None;
        }
        let (lowest, highest) = self.numbers.unwrap_or((number, number));
        self.numbers = Some((lowest.min(number), highest.max(number)));
        Ok(())
    }

    /// Closes earlier calls that used this buffer: they have ended by now.
    fn close_stale(&mut self, tag: Tag, sink: &mut dyn Sink) -> io::Result<()> {
        while let Some(stale) = self.open.iter().rposition(|call| call.buffer == tag.buffer) {
            self.close_from(stale, sink)?;
        }
        Ok(())
    }

    /// Closes the calls from this one on, the innermost first.
    fn close_from(&mut self, index: usize, sink: &mut dyn Sink) -> io::Result<()> {
        while self.open.len() > index {
            if let Some(call) = self.open.pop() {
                sink.event(&Event::End(&call))?;
            }
        }
        Ok(())
    }

    /// Closes what is still open at the end of the input.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::event`].
    pub fn finish(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        self.close_from(0, sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Parser;

    const GUID: &str = "ed32d533-99e6-4209-9cc0-2d72cdd998a7";

    /// The events of these lines, in short.
    fn events(lines: &[String]) -> Vec<String> {
        let mut calls = Calls::default();
        let mut seen = Vec::new();
        let mut sink = |event: &Event<'_>| {
            seen.push(match event {
                Event::Request(call) => format!("{} request, depth {}", call.name(), call.depth),
                Event::Response(call) => format!("{} response", call.name()),
                Event::End(call) => format!("{} end: {:?}", call.name(), call.outcome),
                Event::Mmi(_, call) => format!("MMI in {}", call.map_or("none".to_owned(), Call::name)),
                Event::Note(note, call) => {
                    format!("{} in {}", note.words, call.map_or("none".to_owned(), Call::name))
                }
                Event::Waited(call, _) => format!("{} waited {:?}", call.name(), call.pauses),
                Event::Restart(_, boot) => format!("boot {boot}"),
                other => format!("{other:?}"),
            });
            Ok(())
        };
        for (number, line) in (1..).zip(lines) {
            let line = Parser::default().parse(line.as_bytes()).unwrap().unwrap();
            calls.take(number, line, &mut sink).unwrap();
        }
        calls.finish(&mut sink).unwrap();
        seen
    }

    fn request(call: u32, buffer: u8) -> String {
        format!("call {call}, comm buffer {buffer}: request to {GUID}, V1 header, 1 of 1 bytes: [00]")
    }

    fn response(call: u32, buffer: u8) -> String {
        format!("call {call}, comm buffer {buffer}: response, 1 of 1 bytes: [00]")
    }

    fn end(call: u32, buffer: u8) -> String {
        format!("call {call}, comm buffer {buffer}: 1 bytes to {GUID}, 1 bytes back")
    }

    #[test]
    fn calls_inside_calls_keep_their_lines_apart() {
        let mmi = "MMI raised: command 0xff, data 0x00".to_owned();
        let seen = events(&[
            request(1, 0),
            request(2, 1),
            mmi.clone(),
            "comm buffer 1: waited 3 pauses for MM".to_owned(),
            response(2, 1),
            end(2, 1),
            mmi.clone(),
            "ERROR comm buffer 0: something".to_owned(),
            response(1, 0),
            end(1, 0),
            mmi,
        ]);
        assert_eq!(
            seen,
            [
                "call 1 request, depth 0",
                "call 2 request, depth 1",
                "MMI in call 2",
                "call 2 waited Some(3)",
                "call 2 response",
                "call 2 end: Responded",
                "MMI in call 1",
                "something in call 1",
                "call 1 response",
                "call 1 end: Responded",
                "MMI in none",
            ]
        );
    }

    #[test]
    fn a_log_that_starts_in_the_middle_or_has_no_trace_lines_still_gives_calls() {
        let seen = events(&[response(8, 0), end(8, 0), end(9, 0), request(10, 0)]);
        assert_eq!(
            seen,
            [
                "call 8 response",
                "call 8 end: Responded",
                "call 9 end: Responded",
                "call 10 request, depth 0",
                "call 10 end: Open(\"the log does not show its end\")",
            ]
        );
    }

    #[test]
    fn a_machine_that_starts_again_is_noticed() {
        let seen = events(&[request(1, 0), end(1, 0), request(2, 0), request(1, 0), end(1, 0)]);
        assert_eq!(
            seen[2..],
            [
                "call 2 request, depth 0",
                "call 2 end: Open(\"the machine was started again before its end\")",
                "boot 1",
                "call 1 request, depth 0",
                "call 1 end: Responded",
            ]
        );
    }

    #[test]
    fn the_first_call_may_end_behind_those_in_it() {
        let seen = events(&[end(2, 1), end(3, 1), end(1, 0), end(4, 0), end(1, 0)]);
        assert_eq!(
            seen,
            [
                "call 2 end: Responded",
                "call 3 end: Responded",
                "call 1 end: Responded",
                "call 4 end: Responded",
                "boot 1",
                "call 1 end: Responded",
            ]
        );
    }

    #[test]
    fn a_call_that_finds_its_buffer_busy_does_not_end_the_one_that_uses_it() {
        let busy = format!("call 2, comm buffer 0: 1 bytes to {GUID}: caller: busy");
        let seen = events(&[request(1, 0), busy, response(1, 0), end(1, 0)]);
        assert_eq!(
            seen,
            [
                "call 1 request, depth 0",
                "call 2 end: Failed(\"caller: busy\")",
                "call 1 response",
                "call 1 end: Responded",
            ]
        );
    }

    #[test]
    fn calls_of_which_only_responses_are_left_do_not_pile_up() {
        let lines: Vec<String> = (1..40_000).map(|call| response(call, 0)).collect();
        let seen = events(&lines);
        assert_eq!(
            seen[..3],
            [
                "call 1 response",
                "call 1 end: Open(\"the log does not show its end\")",
                "call 2 response",
            ]
        );
    }

    #[test]
    fn a_call_whose_end_is_missing_ends_when_its_buffer_is_used_again() {
        let seen = events(&[request(1, 0), request(2, 1), request(3, 0), end(3, 0)]);
        assert_eq!(
            seen[2..4],
            [
                "call 2 end: Open(\"the log does not show its end\")",
                "call 1 end: Open(\"the log does not show its end\")",
            ]
        );
    }
}
