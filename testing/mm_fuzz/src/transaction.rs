//! Whole transactions of `mm_comm` against an MM that does anything, judged by a model of what a client believes.
//!
//! MM acts while the client waits, one act at each pause: it serves the request like an MM core, or
//! writes anything anywhere in the comm buffer and the mailbox. When the wait is over the model
//! reads what is there, decides what the result must be, and looks at the memory once the
//! transaction is over.

use crate::header::{Fields, MARKER, Name, Size, number};
use crate::memory::{Block, Purpose};
use arbitrary::{Arbitrary, Unstructured};
use mm_comm::error::LengthSource;
use mm_comm::transaction::wait_and_raise_again;
use mm_comm::{BeginError, Channel, ResponseError};

/// Region lengths: at and around the headers, a page, and more.
const LENGTHS: [usize; 10] = [24, 25, 32, 55, 56, 57, 64, 128, 512, 4096];
/// The most pauses that a case waits.
const MOST_POLLS: u16 = 64;

#[derive(Arbitrary, Debug)]
struct Case {
    len: u8,
    mailbox: bool,
    supervisors: bool,
    rounds: Vec<Round>,
}

#[derive(Arbitrary, Debug)]
struct Round {
    v3: bool,
    recipient: Name,
    len: Size,
    fill: u8,
    message_size: Option<Size>,
    /// What another driver did before.
    before: Vec<Act>,
    polls: u16,
    /// What MM does, an act for each pause.
    acts: Vec<Act>,
    take: Take,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Nothing,
    /// What an MM core does: a response of this length, and a status.
    Serve(Size, u8),
    Write(Field, u64),
    WriteBytes(u16, [u8; 8]),
    MailboxBytes(u8, u8),
    Guid(Name),
    Guid3(Name),
    /// Another call through the same channel, from a notification.
    Begin,
}

#[derive(Arbitrary, Debug)]
enum Field {
    Length,
    MessageSize,
    Status,
    ReturnSize(Size),
    LengthOf(Size),
    MessageSizeOf(Size),
}

#[derive(Arbitrary, Debug)]
enum Take {
    All,
    Parts(Vec<u8>),
    Short,
    Drop,
    /// The request is dropped before its result is read.
    DropRequest,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let len = LENGTHS[usize::from(case.len) % LENGTHS.len()];
    let region = Block::of(Purpose::Region, len, 0xee);
    let mailbox = case.mailbox.then(|| Block::of(Purpose::Mailbox, 24, 0xee));
    let channel = region.channel(mailbox).unwrap();
    if case.supervisors {
        channel.share_mailbox_as_supervisors();
    }
    assert!(
        region.bytes().iter().all(|byte| *byte == 0),
        "stale bytes after the take-over"
    );
    let machine = Machine {
        region,
        mailbox,
        channel,
    };
    for round in case.rounds.iter().take(8) {
        machine.round(round);
    }
    machine.honest_round();
    region.check_guards();
    mailbox.inspect(|mailbox| mailbox.check_guards());
}

struct Machine {
    region: &'static Block,
    mailbox: Option<&'static Block>,
    channel: Channel,
}

/// The result of a transaction that the model expects.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Response { at: usize, len: usize, reached: usize },
    NotProcessed,
    Status,
    BelowHeader,
    BeyondBuffer,
    Damaged,
    Changed,
    LengthBeyond,
}

impl Machine {
    fn len(&self) -> usize {
        self.region.shared().len()
    }

    fn is_pending(&self) -> bool {
        self.mailbox.is_some_and(|mailbox| mailbox.bytes()[0] != 0)
    }

    fn round(&self, round: &Round) {
        for act in &round.before {
            // No transaction is in progress: the act only writes memory.
            if !matches!(act, Act::Begin | Act::Serve(..)) {
                self.act(act);
            }
        }
        let len = self.len();
        let message_len = round.len.of(len).min(len as u64 + 70) as usize;
        let message: Vec<u8> = (0..message_len)
            .map(|at| round.fill.wrapping_add(at as u8) | 1)
            .collect();
        let message_size = round.message_size.map(|size| size.of(message_len));
        let sent = Fields {
            v3: round.v3,
            guid: round.recipient.bytes(),
            counted: message_len as u64,
            message_size: message_size.filter(|_| round.v3).unwrap_or(message_len as u64),
        };
        let (before, mailbox_before) = (self.region.bytes(), self.mailbox.map(Block::bytes));
        let refusal = self.refusal(&sent, &message, message_size.is_some());
        let begun = match message_size {
            None => self
                .channel
                .begin(sent.format(), round.recipient.guid(), &message),
            Some(_) => {
                self.channel
                    .begin_sized(sent.format(), round.recipient.guid(), &message, message_size)
            }
        };
        let staged = match (begun, refusal) {
            (Ok(staged), None) => staged,
            (Err(found), Some(expected)) => {
                assert_eq!(found, expected);
                assert_eq!(self.region.bytes(), before, "a refusal changed the comm buffer");
                assert_eq!(
                    self.mailbox.map(Block::bytes),
                    mailbox_before,
                    "a refusal changed the mailbox"
                );
                assert!(!self.channel.is_in_use());
                return;
            }
            (begun, refusal) => panic!("{begun:?}, expected {refusal:?}"),
        };
        // The request is in memory as the specification says.
        let request = self.region.bytes();
        assert_eq!(request[..sent.len()], sent.write());
        assert_eq!(request[sent.len()..][..message_len], message);
        if let Some(mailbox) = self.mailbox {
            let talk = u8::from(self.channel.shares_mailbox_as_supervisors());
            let mut armed = [0; 24];
            armed[..2].copy_from_slice(&[1, talk]);
            assert_eq!(mailbox.bytes(), armed);
        }
        staged.check().unwrap();

        let mut acts = round.acts.iter();
        let polls = round.polls % MOST_POLLS;
        let mut raised = 0;
        let pauses = wait_and_raise_again(
            &self.channel,
            polls.into(),
            || raised += 1,
            || {
                if let Some(act) = acts.next() {
                    self.act(act);
                }
            },
        );
        assert!(
            raised <= 1 && pauses <= u32::from(polls.max(16)),
            "{pauses} pauses of {polls}"
        );
        assert!(self.channel.is_in_use());

        let left = self.region.bytes();
        if matches!(round.take, Take::DropRequest) {
            drop(staged);
            return self.check_end(&vec![0; left.len()]);
        }
        let expected = self.expected(&sent, &left);
        match (staged.finish(), &expected) {
            (Ok(response), Expected::Response { at, len, .. }) => {
                assert_eq!(response.len(), *len);
                take(response, &round.take, &left[*at..][..*len]);
            }
            (Err(error), expected) => {
                let found = match error {
                    ResponseError::NotProcessed => Expected::NotProcessed,
                    ResponseError::Mm(_) => Expected::Status,
                    ResponseError::ResponseBelowHeader { .. } => Expected::BelowHeader,
                    ResponseError::RecipientChanged { .. } => Expected::Changed,
                    ResponseError::ResponseBeyondBuffer { told_by, .. } => match told_by {
                        LengthSource::Mailbox => Expected::BeyondBuffer,
                        LengthSource::Header => Expected::LengthBeyond,
                    },
                    ResponseError::HeaderDamaged(_) => Expected::Damaged,
                    other => panic!("{other}"),
                };
                assert_eq!(&found, expected, "{error}");
                assert!(error.status().is_error());
            }
            (Ok(_), expected) => panic!("a response, expected {expected:?}"),
        }
        let mut after = left;
        match expected {
            Expected::Response { reached, .. } => after[..reached].fill(0),
            _ => after.fill(0),
        }
        self.check_end(&after);
    }

    /// Why this request cannot begin.
    fn refusal(&self, sent: &Fields, message: &[u8], sized: bool) -> Option<BeginError> {
        let capacity = self.len().saturating_sub(sent.len());
        if message.is_empty() && !sized {
            return Some(BeginError::EmptyMessage);
        }
        if message.len() > capacity || self.len() < sent.len() {
            return Some(BeginError::MessageTooLarge {
                len: message.len(),
                capacity,
            });
        }
        if !sent.v3 && sent.guid == MARKER {
            return Some(BeginError::RecipientIsMarker(mm_wire::Guid::from_bytes(MARKER)));
        }
        if sent.message_size > sent.counted {
            return Some(BeginError::MessageSizeBeyondMessage {
                message_size: sent.message_size,
                len: message.len(),
            });
        }
        self.is_pending().then_some(BeginError::MailboxInUse)
    }

    /// The result that a client must return for what MM left.
    fn expected(&self, sent: &Fields, left: &[u8]) -> Expected {
        let mut told = None;
        if let Some(mailbox) = self.mailbox {
            let mailbox = mailbox.bytes();
            if mailbox[0] != 0 {
                return Expected::NotProcessed;
            }
            if number(&mailbox, 8) != 0 {
                return Expected::Status;
            }
            let size = number(&mailbox, 16);
            if size > left.len() as u64 {
                return Expected::BeyondBuffer;
            }
            if size < sent.len() as u64 {
                return Expected::BelowHeader;
            }
            told = Some(size as usize - sent.len());
        }
        let Some(found) = Fields::read(left) else {
            return Expected::Damaged;
        };
        if (found.v3, found.guid) != (sent.v3, sent.guid) {
            return Expected::Changed;
        }
        if found.total() > left.len() as u128 {
            return Expected::LengthBeyond;
        }
        let in_header = if !sent.v3 || found.counted != sent.counted {
            found.counted
        } else if found.message_size > found.counted {
            if told.is_none() {
                return Expected::Damaged;
            }
            0
        } else {
            found.message_size
        };
        let len = told.unwrap_or(in_header as usize);
        let reached = len.max(found.counted as usize).max(sent.counted as usize);
        Expected::Response {
            at: sent.len(),
            len,
            reached: reached + sent.len(),
        }
    }

    /// What must be true after each transaction.
    fn check_end(&self, expected: &[u8]) {
        assert_eq!(
            self.region.bytes(),
            expected,
            "the comm buffer after the transaction"
        );
        assert!(!self.channel.is_in_use());
        assert_eq!(self.channel.tracked(), None);
        if let Some(mailbox) = self.mailbox {
            let mailbox = mailbox.bytes();
            assert_eq!(mailbox[0], 0, "the mailbox announces a request after its end");
            if self.channel.shares_mailbox_as_supervisors() {
                assert_eq!(
                    mailbox[1], 0,
                    "the mailbox still says that it is the supervisor's"
                );
            }
        }
    }

    fn act(&self, act: &Act) {
        let len = self.len();
        let mailbox = |offset: usize, bytes: &[u8]| {
            self.mailbox.inspect(|mailbox| mailbox.put(offset, bytes));
        };
        match act {
            Act::Nothing => {}
            Act::Serve(size, status) => self.serve(size.of(len), *status),
            Act::Write(field, value) => match field {
                Field::Length => self.region.put(16, &value.to_le_bytes()),
                Field::MessageSize => self.region.put(48, &value.to_le_bytes()),
                Field::LengthOf(size) => self.region.put(16, &size.of(len).to_le_bytes()),
                Field::MessageSizeOf(size) => self.region.put(48, &size.of(len).to_le_bytes()),
                Field::Status => mailbox(8, &value.to_le_bytes()),
                Field::ReturnSize(size) => mailbox(16, &size.of(len).to_le_bytes()),
            },
            Act::WriteBytes(offset, bytes) => self.region.put(usize::from(*offset) % len, bytes),
            Act::MailboxBytes(offset, byte) => mailbox(usize::from(*offset) % 24, &[*byte]),
            Act::Guid(name) => self.region.put(0, &name.bytes()),
            Act::Guid3(name) => self.region.put(32, &name.bytes()),
            Act::Begin => {
                let memory = self.region.bytes();
                let nested = self
                    .channel
                    .begin(mm_wire::HeaderFormat::V1, Name::Known(0).guid(), &[1]);
                if len > 24 {
                    assert_eq!(nested.unwrap_err(), BeginError::Busy);
                }
                assert_eq!(
                    self.region.bytes(),
                    memory,
                    "a nested call changed the outer request"
                );
            }
        }
    }

    /// Serves the request as an MM core does; `size` is the response's length, as far as it fits.
    fn serve(&self, size: u64, status: u8) {
        if self.mailbox.is_some() && !self.is_pending() {
            return;
        }
        let memory = self.region.bytes();
        let Some(header) = Fields::read(&memory).filter(|header| header.total() <= memory.len() as u128)
        else {
            return;
        };
        let room = memory.len() - header.len();
        let len = (size as usize).min(room);
        self.region.put(header.len(), &vec![0xc3; len]);
        match self.mailbox {
            Some(mailbox) => {
                let total = (header.len() + len) as u64;
                mailbox.put(8, &[u64::from(status), total].map(u64::to_le_bytes).concat());
                mailbox.put(0, &[0]);
            }
            None if header.v3 && len as u64 <= header.counted => {
                self.region.put(48, &(len as u64).to_le_bytes())
            }
            None if header.v3 => self.region.put(16, &(len as u64 + 56).to_le_bytes()),
            None => self.region.put(16, &(len as u64).to_le_bytes()),
        }
    }

    /// Whatever happened before, a request that MM serves gets its response.
    fn honest_round(&self) {
        let len = self.len();
        self.mailbox.inspect(|mailbox| mailbox.put(0, &[0; 24]));
        if len <= 24 {
            return;
        }
        let staged = self
            .channel
            .begin(mm_wire::HeaderFormat::V1, Name::Known(1).guid(), &[7])
            .unwrap();
        self.serve(1, 0);
        let mut out = [0; 1];
        assert_eq!(staged.finish().unwrap().copy_to(&mut out).unwrap(), [0xc3]);
        self.check_end(&{
            let mut after = self.region.bytes();
            after[..25].fill(0);
            after
        });
    }
}

/// Copies the response out in one of the possible ways.
fn take(mut response: mm_comm::Response<'_>, how: &Take, expected: &[u8]) {
    match how {
        Take::All => {
            let mut out = vec![0; expected.len() + 1];
            assert_eq!(response.copy_to(&mut out).unwrap(), expected);
        }
        Take::Parts(parts) => {
            let mut all = Vec::new();
            for part in parts {
                let mut out = vec![0; usize::from(*part)];
                all.extend_from_slice(response.read(&mut out));
                assert_eq!(response.remaining(), expected.len() - all.len());
            }
            assert_eq!(all, expected[..all.len()]);
        }
        Take::Short => {
            if let Some(short) = expected.len().checked_sub(1) {
                let mut out = vec![0x99; short];
                assert!(response.copy_to(&mut out).is_none());
                assert_eq!(out, vec![0x99; short], "a slice that is too short was written to");
            }
        }
        Take::Drop | Take::DropRequest => {}
    }
}
