//! Every order of steps of a caller, of notifications that interrupt it, of buffer moves and of a hostile MM around one
//! transaction.
//!
//! The model is not a copy of the code: each state is reached by running the real channel and the
//! real transaction of `mm_comm` from the start, step by step. Two states are the same if memory,
//! mailbox, flags and results are. `stateright` visits all of them up to a number of steps, and
//! prints the shortest way to one that breaks a property of `docs/security.md`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is a finding, and in a model the fault of the model"
)]

use mm_comm::{BeginError, Channel, ResponseError, Staged};
use mm_fuzz::header::{Fields, number};
use mm_fuzz::memory::{Block, Purpose};
use mm_wire::{Guid, HeaderFormat};
use stateright::{Model, Property};
use std::hash::{Hash, Hasher};

/// Bytes of a comm buffer: a header, the message, and room for a longer response.
const LEN: usize = 40;
const HEADER_LEN: usize = 24;
const MESSAGE: [u8; 4] = [0xc5; 4];
const RESPONSE: [u8; 8] = [0x7e; 8];
const RECIPIENT: [u8; 16] = [0x11; 16];

/// One step of one of the actors. A step that is impossible in a state changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The caller writes its request into the buffer that is in use.
    Begin,
    /// The caller reads what MM left.
    Finish,
    /// The caller drops the request, as during a panic.
    Drop,
    /// A notification in the middle of a call makes another call.
    NestedBegin,
    /// A notification wants to keep the channel for itself.
    NestedHold,
    /// The platform announces that the buffer moves: it is retired, and its memory is used again if no call is in it.
    Move,
    /// MM serves the request in the old buffer, if one is announced.
    Serve,
    /// The same with an error.
    ServeWithError,
    /// MM writes another byte behind the message.
    WriteBody,
    /// MM makes the header's length huge, or smaller.
    Length(u64),
    /// MM writes ReturnBufferSize.
    Size(u64),
    /// MM gives the header to another recipient.
    Guid,
    /// MM, or another driver, writes IsCommBufferValid.
    Valid(u8),
}

const STEPS: [Step; 18] = [
    Step::Begin,
    Step::Finish,
    Step::Drop,
    Step::NestedBegin,
    Step::NestedHold,
    Step::Move,
    Step::Serve,
    Step::ServeWithError,
    Step::WriteBody,
    Step::Length(0),
    Step::Length(LEN as u64),
    Step::Size(HEADER_LEN as u64 - 1),
    Step::Size(HEADER_LEN as u64),
    Step::Size(LEN as u64),
    Step::Size(LEN as u64 + 1),
    Step::Guid,
    Step::Valid(0),
    Step::Valid(1),
];

/// The result that a caller got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Got {
    /// A response of this many bytes.
    Response(usize),
    /// MM did not take the request.
    NotProcessed,
    /// MM's status.
    Status,
    /// An impossible length.
    Length,
    /// A header that is not the request's.
    Header,
    /// The channel is in use.
    Busy,
    /// The buffer has moved.
    Retired,
    /// The mailbox announces a request of another driver.
    MailboxInUse,
}

/// The observable part of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    region: Vec<u8>,
    mailbox: Option<Vec<u8>>,
    in_use: bool,
    retired: bool,
    tracked: bool,
    /// Whether the memory belongs to another owner now.
    given_away: bool,
    got: Vec<Got>,
    /// The first property that was broken.
    broken: Option<&'static str>,
}

/// A state: the steps that lead to it, and what is observable. Only the latter distinguishes
/// states.
#[derive(Clone, Debug)]
pub struct State {
    way: Vec<Step>,
    seen: Seen,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.seen == other.seen
    }
}

impl Eq for State {}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seen.hash(state);
    }
}

/// The model of one comm buffer.
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    /// Whether it has a mailbox.
    pub mailbox: bool,
    /// How many steps are made at most.
    pub steps: usize,
    /// How many transactions are begun at most.
    pub begins: usize,
}

impl Model for Transaction {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.state(Vec::new())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        if state.way.len() < self.steps && state.seen.broken.is_none() {
            actions.extend(STEPS);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let begins = last.way.iter().filter(|step| **step == Step::Begin).count();
        if step == Step::Begin && begins >= self.begins {
            return None;
        }
        let mut way = last.way.clone();
        way.push(step);
        let next = self.state(way);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn was_got(state: &State, got: Got) -> bool {
            state.seen.got.contains(&got)
        }
        let mut properties = vec![
            Property::always("no property is broken", |_, state: &State| {
                state.seen.broken.is_none()
            }),
            Property::always("a channel in use has a request", |_, state: &State| {
                state.seen.in_use == state.seen.tracked
            }),
            Property::always("memory that was given away is not used", |_, state: &State| {
                !(state.seen.given_away && state.seen.in_use)
            }),
            // Without these properties the others could hold because nothing happens.
            Property::sometimes("a response is believed", |_, state: &State| {
                was_got(state, Got::Response(RESPONSE.len()))
            }),
            Property::sometimes("an empty response is believed", |_, state: &State| {
                was_got(state, Got::Response(0))
            }),
            Property::sometimes("a nested call is busy", |_, state: &State| {
                was_got(state, Got::Busy)
            }),
            Property::sometimes("a header is refused", |_, state: &State| {
                was_got(state, Got::Header)
            }),
            Property::sometimes("a length is refused", |_, state: &State| {
                was_got(state, Got::Length)
            }),
            Property::sometimes("a buffer that moved refuses a call", |_, state: &State| {
                was_got(state, Got::Retired)
            }),
            Property::sometimes("memory is given away", |_, state: &State| state.seen.given_away),
        ];
        if self.mailbox {
            properties.extend([
                Property::sometimes("a request that was not taken is noticed", |_, state: &State| {
                    was_got(state, Got::NotProcessed)
                }),
                Property::sometimes("MM's status is believed", |_, state: &State| {
                    was_got(state, Got::Status)
                }),
                Property::sometimes("a foreign request is left alone", |_, state: &State| {
                    was_got(state, Got::MailboxInUse)
                }),
            ]);
        }
        properties
    }
}

impl Transaction {
    fn state(&self, way: Vec<Step>) -> State {
        let seen = self.run(&way);
        State { way, seen }
    }

    /// Runs the real code along `way`.
    fn run(&self, way: &[Step]) -> Seen {
        let region = Block::of(Purpose::Region, LEN, 0xee);
        let mailbox = self.mailbox.then(|| Block::of(Purpose::Mailbox, 24, 0xee));
        let channel = region.channel(mailbox).unwrap();
        let mut run = Run {
            region,
            mailbox,
            channel: &channel,
            staged: None,
            seen: Seen::default(),
        };
        for step in way {
            run.step(*step);
        }
        let mut seen = run.seen;
        seen.region = region.bytes();
        seen.mailbox = mailbox.map(Block::bytes);
        seen.in_use = channel.is_in_use();
        seen.retired = channel.is_retired();
        seen.tracked = channel.tracked().is_some();
        region.check_guards();
        // Ends the transaction in progress, which is not part of the state.
        drop(run.staged);
        if region.bytes().iter().any(|byte| *byte == MESSAGE[0]) {
            seen.broken
                .get_or_insert("the message stays after its transaction");
        }
        seen
    }
}

struct Run<'c> {
    region: &'static Block,
    mailbox: Option<&'static Block>,
    channel: &'c Channel,
    staged: Option<Staged<'c>>,
    seen: Seen,
}

impl<'c> Run<'c> {
    fn require(&mut self, holds: bool, property: &'static str) {
        if !holds {
            self.seen.broken.get_or_insert(property);
        }
    }

    fn is_announced(&self) -> bool {
        self.mailbox.is_none_or(|mailbox| mailbox.bytes()[0] != 0)
    }

    fn step(&mut self, step: Step) {
        let mailbox = |run: &Self, offset: usize, bytes: &[u8]| {
            run.mailbox.inspect(|mailbox| mailbox.put(offset, bytes));
        };
        match step {
            Step::Begin if self.staged.is_none() => self.begin(),
            Step::Finish => self.finish(),
            Step::Drop => {
                if let Some(staged) = self.staged.take() {
                    drop(staged);
                    let is_zero = self.region.bytes().iter().all(|byte| *byte == 0);
                    self.require(is_zero, "a request that is given up leaves nothing");
                    self.check_end();
                }
            }
            Step::NestedBegin | Step::NestedHold if self.staged.is_some() => {
                let before = (self.region.bytes(), self.mailbox.map(Block::bytes));
                let is_busy = match step {
                    Step::NestedHold => self.channel.hold().map(drop).is_err(),
                    _ => matches!(
                        self.channel.begin(HeaderFormat::V1, recipient(), &[1]),
                        Err(BeginError::Busy)
                    ),
                };
                self.require(is_busy, "one transaction at a time");
                let after = (self.region.bytes(), self.mailbox.map(Block::bytes));
                self.require(before == after, "a nested call leaves the outer request alone");
                self.seen.got.push(Got::Busy);
            }
            Step::Move => {
                self.channel.retire();
                if !self.channel.is_in_use() && !self.seen.given_away {
                    self.seen.given_away = true;
                    let message = self.region.bytes().contains(&MESSAGE[0]);
                    self.require(!message, "memory that is given away has no message in it");
                }
            }
            Step::Serve | Step::ServeWithError => self.serve(step == Step::ServeWithError),
            Step::WriteBody => self.region.put(HEADER_LEN + MESSAGE.len() + 2, &[0x99]),
            Step::Length(len) => self.region.put(16, &len.to_le_bytes()),
            Step::Size(size) => mailbox(self, 16, &size.to_le_bytes()),
            Step::Guid => self.region.put(0, &[0x22; 16]),
            Step::Valid(valid) => mailbox(self, 0, &[valid]),
            Step::Begin | Step::NestedBegin | Step::NestedHold => {}
        }
    }

    fn begin(&mut self) {
        let announced = self.mailbox.is_some() && self.is_announced();
        let before = self.region.bytes();
        match self.channel.begin(HeaderFormat::V1, recipient(), &MESSAGE) {
            Ok(staged) => {
                self.require(
                    !self.channel.is_retired(),
                    "no transaction begins in a buffer that moved",
                );
                self.require(!announced, "a foreign request is left alone");
                self.staged = Some(staged);
                let request = Fields::read(&self.region.bytes()).unwrap();
                self.require(
                    request.guid == RECIPIENT
                        && request.counted == MESSAGE.len() as u64
                        && self.is_announced(),
                    "a request is whole when it is announced",
                );
            }
            Err(error) => {
                let same = before == self.region.bytes()
                    && announced == (self.mailbox.is_some() && self.is_announced());
                self.require(same, "a refused call changes nothing");
                self.seen.got.push(match error {
                    BeginError::Retired => Got::Retired,
                    BeginError::MailboxInUse => Got::MailboxInUse,
                    _ => Got::Busy,
                });
            }
        }
    }

    fn finish(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        let (left, mailbox) = (self.region.bytes(), self.mailbox.map(Block::bytes));
        let expected = judge(&left, mailbox.as_deref());
        let mut got_bytes = Vec::new();
        let got = match staged.finish() {
            Ok(response) => {
                let mut out = [0; LEN];
                let taken = response.copy_to(&mut out).unwrap();
                got_bytes.extend_from_slice(taken);
                Got::Response(got_bytes.len())
            }
            Err(ResponseError::NotProcessed) => Got::NotProcessed,
            Err(ResponseError::Mm(_)) => Got::Status,
            Err(ResponseError::RecipientChanged { .. } | ResponseError::HeaderDamaged(_)) => Got::Header,
            Err(_) => Got::Length,
        };
        self.require(got == expected, "the result is what MM left, and no other");
        if let Got::Response(len) = got {
            self.require(
                got_bytes == left[HEADER_LEN..HEADER_LEN + len],
                "the response is MM's",
            );
        } else {
            let is_zero = self.region.bytes().iter().all(|byte| *byte == 0);
            self.require(is_zero, "an error wipes the whole buffer");
        }
        self.seen.got.push(got);
        self.check_end();
    }

    /// Checks what must be true after each transaction.
    fn check_end(&mut self) {
        let free = !self.channel.is_in_use() && self.channel.tracked().is_none();
        self.require(free, "the channel is free after a transaction");
        let withdrawn = self.mailbox.is_none() || !self.is_announced();
        self.require(withdrawn, "nothing is announced after a transaction");
        let no_message = !self.region.bytes().contains(&MESSAGE[0]);
        self.require(no_message, "the message is wiped");
    }

    /// Serves the request as an MM core does, in time or late.
    fn serve(&self, fails: bool) {
        let memory = self.region.bytes();
        let is_request = |header: &Fields| header.counted > 0 && header.total() <= LEN as u128;
        if !self.is_announced() || !Fields::read(&memory).is_some_and(|header| is_request(&header)) {
            return;
        }
        self.region.put(HEADER_LEN, &RESPONSE);
        match self.mailbox {
            Some(mailbox) => {
                let result = [u64::from(fails), (HEADER_LEN + RESPONSE.len()) as u64];
                mailbox.put(8, &result.map(u64::to_le_bytes).concat());
                mailbox.put(0, &[0]);
            }
            None => self.region.put(16, &(RESPONSE.len() as u64).to_le_bytes()),
        }
    }
}

fn recipient() -> Guid {
    Guid::from_bytes(RECIPIENT)
}

/// The result that a client must return for what MM left.
fn judge(left: &[u8], mailbox: Option<&[u8]>) -> Got {
    let mut told = None;
    if let Some(mailbox) = mailbox {
        if mailbox[0] != 0 {
            return Got::NotProcessed;
        }
        if number(mailbox, 8) != 0 {
            return Got::Status;
        }
        let size = number(mailbox, 16);
        if !(HEADER_LEN as u64..=LEN as u64).contains(&size) {
            return Got::Length;
        }
        told = Some(size as usize - HEADER_LEN);
    }
    match Fields::read(left) {
        Some(header) if header.guid != RECIPIENT => Got::Header,
        None => Got::Header,
        Some(header) if header.total() > LEN as u128 => Got::Length,
        Some(header) => Got::Response(told.unwrap_or(header.counted as usize)),
    }
}
