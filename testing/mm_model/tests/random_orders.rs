//! The transaction as a state machine: long random orders of steps of a caller, of the calls that interrupt it, of other
//! drivers and of MM, each compared with a reference model. `all_orders.rs` has every order, but only short ones and few
//! values.
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests may panic"
)]

use mm_comm::{BeginError, Channel, ResponseError, Staged};
use mm_fuzz::header::{Fields, Name, number};
use mm_fuzz::memory::{Block, Purpose};
use mm_wire::HeaderFormat;
use proptest::prelude::*;

/// Bytes of the comm buffer, and of its status mailbox.
const LEN: usize = 200;
const MAILBOX_LEN: usize = 24;
const STATUS_AT: usize = 8;
const SIZE_AT: usize = 16;
const RECIPIENT: Name = Name::Known(1);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The caller writes a request of this length.
    Begin {
        v3: bool,
        len: usize,
        fill: u8,
    },
    /// The caller looks whether its request is still there.
    Check,
    /// The caller reads what MM left, or drops its request.
    Finish,
    Drop,
    /// A notification reserves the channel for a moment.
    Hold,
    /// MM serves a request: a message of this length.
    Serve {
        len: usize,
        fill: u8,
    },
    /// MM ends a request with this status.
    Status(u64),
    /// MM ends a request with this ReturnBufferSize.
    Size(u64),
    /// MM, or another driver, writes these bytes.
    Write {
        at: usize,
        bytes: [u8; 8],
    },
    /// Another driver announces a request, or ends it.
    Valid(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let near = |limit: usize| prop_oneof![4 => 0..limit, 1 => limit - 4..limit + 12];
    // Near the lengths that are limits, or any number.
    let number = || {
        prop_oneof![
            3 => 0..LEN as u64 + 40,
            1 => Just(24), 1 => Just(56), 1 => Just(LEN as u64), 1 => Just(LEN as u64 + 1),
            1 => any::<u64>(),
        ]
    };
    let step = prop_oneof![
        6 => (any::<bool>(), near(LEN - 24), any::<u8>()).prop_map(|(v3, len, fill)| Step::Begin { v3, len, fill }),
        1 => Just(Step::Check),
        5 => Just(Step::Finish),
        1 => Just(Step::Drop),
        1 => Just(Step::Hold),
        5 => (near(LEN - 24), any::<u8>()).prop_map(|(len, fill)| Step::Serve { len, fill }),
        1 => number().prop_map(Step::Status),
        1 => number().prop_map(Step::Size),
        1 => (0..LEN - 8, any::<[u8; 8]>()).prop_map(|(at, bytes)| Step::Write { at, bytes }),
        // The header's length, and the first word of its GUID.
        1 => number().prop_map(|number| Step::Write { at: 16, bytes: number.to_le_bytes() }),
        1 => any::<[u8; 8]>().prop_map(|bytes| Step::Write { at: 0, bytes }),
        1 => (0..3_u8).prop_map(Step::Valid),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The kind of a result; numbers in it are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Response(Vec<u8>),
    NotProcessed,
    Status,
    BelowHeader,
    BeyondBuffer,
    Damaged,
    OtherRecipient,
    /// The model does not know it.
    Unknown,
}

impl Ended {
    fn of(error: &ResponseError) -> Self {
        match error {
            ResponseError::NotProcessed => Self::NotProcessed,
            ResponseError::Mm(_) => Self::Status,
            ResponseError::ResponseBelowHeader { .. } => Self::BelowHeader,
            ResponseError::ResponseBeyondBuffer { .. } => Self::BeyondBuffer,
            ResponseError::HeaderDamaged(_) => Self::Damaged,
            ResponseError::RecipientChanged { .. } => Self::OtherRecipient,
            _ => Self::Unknown,
        }
    }
}

/// What the memory holds, and which request is in it.
struct Model {
    region: Vec<u8>,
    mailbox: Vec<u8>,
    /// The header of the request that has begun.
    request: Option<Fields>,
    begun: u32,
}

impl Model {
    fn is_pending(&self) -> bool {
        self.mailbox[0] != 0
    }

    /// The result of a request that begins: why it is refused, if it is.
    fn begin(&mut self, header: Fields, message: &[u8]) -> Option<BeginError> {
        let capacity = LEN - header.len();
        if message.is_empty() {
            return Some(BeginError::EmptyMessage);
        }
        if message.len() > capacity {
            return Some(BeginError::MessageTooLarge {
                len: message.len(),
                capacity,
            });
        }
        if self.request.is_some() {
            return Some(BeginError::Busy);
        }
        if self.is_pending() {
            return Some(BeginError::MailboxInUse);
        }
        let bytes = [header.write().as_slice(), message].concat();
        self.region[..bytes.len()].copy_from_slice(&bytes);
        self.mailbox.fill(0);
        self.mailbox[0] = 1;
        self.request = Some(header);
        self.begun += 1;
        None
    }

    /// What a request ends with.
    fn end(&self, request: Fields) -> Ended {
        let size = number(&self.mailbox, SIZE_AT);
        let found = Fields::read(&self.region);
        if self.is_pending() {
            return Ended::NotProcessed;
        }
        if number(&self.mailbox, STATUS_AT) != 0 {
            return Ended::Status;
        }
        if size > LEN as u64 {
            return Ended::BeyondBuffer;
        }
        let Some(len) = (size as usize).checked_sub(request.len()) else {
            return Ended::BelowHeader;
        };
        let Some(found) = found else { return Ended::Damaged };
        if (found.v3, found.guid) != (request.v3, request.guid) {
            return Ended::OtherRecipient;
        }
        if found.total() > LEN as u128 {
            return Ended::BeyondBuffer;
        }
        Ended::Response(self.region[request.len()..][..len].to_vec())
    }
}

/// The real channel beside its model.
struct Pair<'c> {
    region: &'static Block,
    mailbox: &'static Block,
    channel: &'c Channel,
    staged: Option<Staged<'c>>,
    model: Model,
}

impl Pair<'_> {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.region.put(at, bytes);
        self.model.region[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write_mailbox(&mut self, at: usize, bytes: &[u8]) {
        self.mailbox.put(at, bytes);
        self.model.mailbox[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// MM ends a request, whether one is announced or not.
    fn respond(&mut self, status: u64, size: u64) {
        self.write_mailbox(STATUS_AT, &status.to_le_bytes());
        self.write_mailbox(SIZE_AT, &size.to_le_bytes());
        self.write_mailbox(0, &[0]);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Begin { v3, len, fill } => {
                let header = Fields {
                    v3,
                    guid: RECIPIENT.bytes(),
                    counted: len as u64,
                    message_size: len as u64,
                };
                let message = vec![fill; len];
                let format = if v3 { HeaderFormat::V3 } else { HeaderFormat::V1 };
                let refused = self.model.begin(header, &message);
                match self.channel.begin(format, RECIPIENT.guid(), &message) {
                    Ok(staged) => {
                        assert_eq!(refused, None);
                        assert!(self.staged.replace(staged).is_none(), "two at once");
                    }
                    Err(error) => assert_eq!(refused, Some(error)),
                }
            }
            Step::Check => {
                if let (Some(staged), Some(request)) = (&self.staged, self.model.request) {
                    let found = Fields::read(&self.model.region);
                    let is_there =
                        found.is_some_and(|found| (found.v3, found.guid) == (request.v3, request.guid));
                    assert_eq!(staged.check().is_ok(), is_there);
                }
            }
            Step::Finish => self.finish(),
            Step::Drop => {
                if self.staged.take().is_some() {
                    self.model.request = None;
                    self.over(None);
                }
            }
            Step::Hold => {
                let is_held = self.channel.hold().is_ok();
                assert_eq!(is_held, self.model.request.is_none());
            }
            Step::Serve { len, fill } => {
                // Like an MM core: the header stays, and what does not fit is not written.
                let header_len = self.model.request.map_or(24, |request| request.len());
                let len = len.min(LEN - header_len);
                self.write(header_len, &vec![fill; len]);
                self.respond(0, (header_len + len) as u64);
            }
            Step::Status(status) => self.respond(status, 24),
            Step::Size(size) => self.respond(0, size),
            Step::Write { at, bytes } => self.write(at, &bytes),
            Step::Valid(valid) => self.write_mailbox(0, &[valid]),
        }
    }

    fn finish(&mut self) {
        let (Some(staged), Some(request)) = (self.staged.take(), self.model.request.take()) else {
            return;
        };
        let expected = self.model.end(request);
        let seen = match staged.finish() {
            Ok(response) => {
                let mut bytes = vec![0; response.len()];
                assert!(response.copy_to(&mut bytes).is_some());
                Ended::Response(bytes)
            }
            Err(error) => Ended::of(&error),
        };
        assert_eq!(seen, expected);
        match expected {
            Ended::Response(message) => {
                self.over(Some(request.len() + message.len().max(request.counted as usize)))
            }
            _ => self.over(None),
        }
    }

    /// A transaction has ended. It has wiped this many bytes at least, or all.
    fn over(&mut self, wiped: Option<usize>) {
        let now = self.region.bytes();
        let wiped = wiped.unwrap_or(LEN);
        assert!(
            now[..wiped].iter().all(|byte| *byte == 0),
            "bytes stay: {now:02x?}"
        );
        let behind = now.iter().zip(&self.model.region).skip(wiped);
        for (now, before) in behind {
            assert!(
                *now == 0 || now == before,
                "{now:#x} was written where {before:#x} was"
            );
        }
        self.model.region = now;
        // The request is withdrawn, and MM's numbers mean nothing any more.
        self.model.mailbox = self.mailbox.bytes();
        assert!(!self.model.is_pending(), "a request is still announced");
    }

    fn compare(&self) {
        assert_eq!(self.region.bytes(), self.model.region);
        assert_eq!(self.mailbox.bytes(), self.model.mailbox);
        assert_eq!(self.channel.is_in_use(), self.model.request.is_some());
        assert_eq!(self.channel.transaction(), self.model.begun);
        self.region.check_guards();
        self.mailbox.check_guards();
    }
}

proptest! {
    #[test]
    fn each_step_of_a_transaction_does_what_the_model_does(steps in steps()) {
        let region = Block::of(Purpose::Region, LEN, 0x3c);
        let mailbox = Block::of(Purpose::Mailbox, MAILBOX_LEN, 0x3c);
        let channel = region.channel(Some(mailbox)).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut pair = Pair {
            region,
            mailbox,
            channel: &channel,
            staged: None,
            model: Model {
                region: vec![0; LEN],
                mailbox: mailbox.bytes(),
                request: None,
                begun: 0,
            },
        };
        pair.compare();
        for step in steps {
            pair.take(step);
            pair.compare();
        }
    }
}
