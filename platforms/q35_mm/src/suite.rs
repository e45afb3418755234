//! The conformance suite's MM side, and the handler by which the suite controls it.
//!
//! The suite brings up many clients, each with its own comm buffers, long after SMRAM was locked.
//! It registers them here, through a comm buffer of the hand-off. A buffer of the hand-off that is
//! registered is the suite's from then on. A platform's image has no such handler.

use crate::hardware::Outside;
use crate::serve::{Buffers, check, respond};
use core::fmt::{self, Write};
use mm_core::handlers::VariableStore;
use mm_core::{CommBuffer, MmCore, Mmi, Outcome, Request, Visit};
use mm_wire::EfiStatus;
use q35_mm::control;
use q35_mm::handoff;
use q35_mm::layout::SMRAM;

/// The suite's comm buffers.
type SuiteBuffers = Buffers<{ control::MAX_BUFFERS }>;

/// The suite's and the platform's comm buffers.
type AllBuffers = Buffers<{ control::MAX_BUFFERS + handoff::MAX_BUFFERS }>;

/// The MM side of the suite.
pub(crate) struct Suite {
    buffers: SuiteBuffers,
    state: mm_liar::State,
    /// The result of the last SMI with a request in these buffers.
    last: Option<Visit>,
}

impl Suite {
    pub(crate) const fn new() -> Self {
        Self {
            buffers: SuiteBuffers::new(),
            state: mm_liar::State::NEW,
            last: None,
        }
    }

    pub(crate) fn buffers(&self) -> impl Iterator<Item = &CommBuffer> {
        self.buffers.as_slice().iter()
    }

    /// Whether it is one of the suite's.
    pub(crate) fn has(&self, buffer: &CommBuffer) -> bool {
        self.buffers().any(|own| own == buffer)
    }

    pub(crate) fn set_buffers(&mut self, buffers: SuiteBuffers) {
        self.buffers = buffers;
        self.state = mm_liar::State::NEW;
        self.last = None;
    }

    pub(crate) fn enter(&mut self, scratch: &mut [u8], variables: &mut VariableStore<'_>, mmi: Mmi) {
        let buffers = self.buffers.as_slice();
        // `Control` accepted them.
        let Ok(mut core) = MmCore::new(&[SMRAM], buffers, scratch) else {
            return;
        };
        let state = &mut self.state;
        let visit = mm_liar::enter(&mut core, buffers, variables, state, &mut Outside, mmi);
        if outcomes(&visit).next().is_some() {
            self.last = Some(visit);
        }
    }
}

fn outcomes(visit: &Visit) -> impl Iterator<Item = &Outcome> {
    visit
        .outcomes()
        .iter()
        .filter(|outcome| **outcome != Outcome::NoRequest)
}

/// Handles the functions of [`control`] that only tests need.
pub(crate) struct Control<'a> {
    suite: &'a Suite,
    platform: &'a [CommBuffer],
    new_buffers: Option<SuiteBuffers>,
}

impl<'a> Control<'a> {
    pub(crate) const fn new(suite: &'a Suite, platform: &'a [CommBuffer]) -> Self {
        Self {
            suite,
            platform,
            new_buffers: None,
        }
    }

    /// The buffers that were registered.
    pub(crate) fn into_new_buffers(self) -> Option<SuiteBuffers> {
        self.new_buffers
    }

    pub(crate) fn handle(&mut self, function: u64, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        match function {
            control::BUFFERS => self.register(request),
            control::REPORT => {
                let mut text = Text::new();
                for outcome in self.suite.last.iter().flat_map(outcomes) {
                    // Text that does not fit is cut off.
                    let _ = writeln!(text, "{outcome}");
                }
                respond(request, text.as_bytes())
            }
            control::FAULT => {
                core::hint::black_box(bottomless(1));
                Ok(())
            }
            _ => Err(EfiStatus::UNSUPPORTED),
        }
    }

    /// Responds with a status, and with the reason as text.
    fn register(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        let entries = control::split(request.message())
            .and_then(|(_, body)| control::buffer_entries(body))
            .ok_or(EfiStatus::INVALID_PARAMETER)?;
        let count = entries.len();
        let buffers = entries.iter().filter_map(handoff::BufferEntry::comm_buffer);
        let new = SuiteBuffers::collect(buffers.clone()).filter(|new| new.as_slice().len() == count);
        let others = self.platform.iter().copied();
        let others = others.filter(|other| buffers.clone().all(|new| new != *other));
        let all = AllBuffers::collect(others.chain(buffers.clone()));
        let mut text = Text::new();
        let status = match (new, all) {
            (Some(new), Some(all)) => match check(all.as_slice()) {
                Ok(()) => {
                    self.new_buffers = Some(new);
                    EfiStatus::SUCCESS
                }
                Err(unfit) => {
                    // Text that does not fit is cut off.
                    let _ = write!(text, "{unfit}");
                    EfiStatus::ACCESS_DENIED
                }
            },
            _ => EfiStatus::INVALID_PARAMETER,
        };
        request
            .set_len(text.as_bytes().len().saturating_add(size_of::<u64>()))
            .map_err(|_no_room| EfiStatus::BUFFER_TOO_SMALL)?;
        if let Some((number, rest)) = request.message_mut().split_first_chunk_mut::<8>() {
            *number = status.0.to_le_bytes();
            rest.copy_from_slice(text.as_bytes());
        }
        Ok(())
    }
}

/// Short text without an allocator; what does not fit is cut off.
struct Text {
    bytes: [u8; 512],
    len: usize,
}

impl Text {
    const fn new() -> Self {
        Self {
            bytes: [0; 512],
            len: 0,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

#[expect(unconditional_recursion, reason = "it exhausts the stack on purpose")]
/// Calls itself until the stack ends: each call keeps memory that the one below reads.
fn bottomless(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    let below = bottomless(depth.wrapping_add(1));
    frame.iter().fold(below, |sum, word| sum ^ word)
}
