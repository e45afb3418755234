//! What a communicator does, without the type of its executor: compiled once, however many executors there are.

use super::after_calls::{AfterCalls, Wakes};
use super::failure::Failure;
use super::ids::Ids;
use super::response::trace_request;
use super::tag::{CallTag, Clock};
use super::{CallOptions, MmExecutor, Raised, ResponseReader, Status, announced_move, raise_to_notify};
use crate::config::CommunicateBuffer;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{BorrowError, Cell, RefCell};
use core::fmt;
use mm_comm::BeginError;
use patina::Guid;
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::TplServices;

/// What a communicator keeps, whatever its executor is.
#[derive(Default)]
pub struct State {
    /// Borrowed only to look up or replace a buffer, never while MM or an executor runs.
    pub(super) buffers: RefCell<Vec<CommunicateBuffer>>,
    /// Whether MM is entered by secure monitor calls, and so takes no message without bytes.
    pub(super) by_secure_calls: bool,
    /// How many calls there were; log lines name a call by this number.
    pub(super) calls: Cell<u32>,
    pub(super) clock: Option<Clock>,
    pub(super) updates: Option<Rc<announced_move::Pending>>,
    pub(super) after_calls: AfterCalls,
    /// The buffers whose calls run at `TPL_NOTIFY`. Borrowed only to add one or to look one up.
    pub(super) at_notify: RefCell<Vec<(u8, Service<dyn TplServices>)>>,
    /// The MM supervisor's and the users' comm buffer, if they share their mailbox.
    pub(super) one_mailbox: Cell<Option<[u8; 2]>>,
    /// Whether MM is entered through x86 ports, which tell nothing about it.
    pub(super) enters_by_ports: bool,
}

/// A communicator, without the type of its executor.
#[derive(Clone, Copy)]
pub struct Client<'c> {
    pub(crate) state: &'c State,
    pub(crate) executor: Option<&'c dyn MmExecutor>,
}

impl core::ops::Deref for Client<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state
    }
}

/// Only this crate can make one, and so ask for a [`Client`].
pub struct Sealed(());

impl Sealed {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

impl State {
    /// The identifier of the buffer that shares its mailbox with the buffer `id`.
    pub(super) fn beside(&self, id: u8) -> Option<u8> {
        match self.one_mailbox.get()? {
            [first, second] if first == id => Some(second),
            [first, second] if second == id => Some(first),
            _ => None,
        }
    }

    /// Finds an enabled buffer. A copy of the handle, so that nothing is borrowed while MM runs.
    pub(super) fn buffer(&self, id: u8) -> Result<CommunicateBuffer, Failure> {
        let find = |buffers: &[CommunicateBuffer]| {
            let mut of_id = buffers.iter().filter(|buffer| buffer.id() == id);
            let first = of_id.clone().next();
            // A disabled buffer does not hide the one that replaces it.
            let enabled = of_id.find(|buffer| buffer.is_enabled());
            match enabled.or(first) {
                Some(buffer) => Ok(buffer.clone()),
                None if buffers.is_empty() => Err(Status::NoCommBuffer.into()),
                None => Err(Failure::unknown_buffer()),
            }
        };
        let found = self.look(find).map_err(|_replaced| {
            let why = "the list of comm buffers is being replaced by a call that this one interrupted";
            Failure::also(Status::Busy, why)
        })?;
        let buffer = found?;
        if !buffer.is_enabled() {
            return Err(Status::CommBufferDisabled.into());
        }
        Ok(buffer)
    }

    /// Looks at the list of comm buffers. Where a call through the buffer that may move is never to be refused, no
    /// notification comes meanwhile: it would find the list borrowed, and could not put a move into effect.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[CommunicateBuffer]) -> T) -> Result<T, BorrowError> {
        let _raised = self.raise_for_updates();
        let buffers = self.buffers.try_borrow()?;
        let seen = look(&buffers);
        drop(buffers);
        Ok(seen)
    }
}

impl Client<'_> {
    /// See [`MmCommunication::communicate_with`].
    pub(super) fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        let recipient = mm_wire::Guid::from_bytes(recipient.as_bytes());
        let tag = self.new_call(id);
        let work = || {
            self.settle(id)?;
            self.exchange(tag, message, recipient, options, take)
        };
        self.call(
            self.tpl_for(id),
            work,
            |result| self.log_end(tag, message.len(), recipient, result),
            Wakes::Always,
        )
        .map(drop)
    }

    /// See [`MmCommunicator::communicate_and_move`].
    pub(crate) fn communicate_and_move(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        to: &[CommunicateBuffer],
        take: &mut dyn FnMut(&mut ResponseReader<'_>) -> bool,
    ) -> Result<(), Status> {
        let recipient = mm_wire::Guid::from_bytes(recipient.as_bytes());
        let tag = self.new_call(id);
        let updatable = self.updates.as_ref().map(|updates| updates.id());
        let moving = to.iter().map(CommunicateBuffer::id).chain(updatable);
        let tpl = core::iter::once(id).chain(moving).find_map(|id| self.tpl_for(id));
        let work = || {
            let turn = self.hold_updates(to)?;
            let result = self.exchange_and_move(tag, message, recipient, to, take);
            drop(turn);
            result
        };
        self.call(
            tpl,
            work,
            |result| self.log_end(tag, message.len(), recipient, result),
            Wakes::Always,
        )
        .map(drop)
    }

    /// See [`MmCommunication::message_capacity`].
    pub(super) fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        let work = || {
            self.settle(id)?;
            self.buffer(id)
        };
        let log = |result: Result<_, Failure>| {
            result.map_err(|failure| {
                let why = self.explain(&failure);
                log::error!(target: "mm_comm", "{}: {why}", CallTag::of_buffer(id));
                failure.status
            })
        };
        // Not a call, but a call that came while it put a move into effect may wait for its end.
        let buffer = self.call(None, work, log, Wakes::IfRefused)?;
        Ok(buffer
            .channel()
            .capacity(options.header.unwrap_or(buffer.header())))
    }

    /// Whether the comm buffer with the identifier of `place` has the memory of `place`. Its mailbox may be another one.
    pub(crate) fn is_at(&self, place: &CommunicateBuffer) -> bool {
        let [expected, _] = place.ranges();
        self.buffer(place.id())
            .is_ok_and(|buffer| buffer.ranges()[0] == expected)
    }

    /// What every call does around its `work`: it raises the TPL with `tpl`, and when the level is back, logs the result with
    /// `log` and runs what waits for the end of a call.
    fn call<T>(
        &self,
        tpl: Option<Service<dyn TplServices>>,
        work: impl FnOnce() -> Result<T, Failure>,
        log: impl FnOnce(Result<T, Failure>) -> Result<T, Status>,
        wakes: Wakes,
    ) -> Result<T, Status> {
        let refusals = self.after_calls.refusals();
        let raised = tpl.and_then(raise_to_notify);
        let result = work();
        drop(raised);
        let result = log(result);
        if matches!(result, Err(Status::Busy)) {
            self.after_calls.count_refusal();
        } else {
            self.after_calls.call_has_ended(refusals, wakes);
        }
        result
    }
}

impl State {
    /// Counts a call, and names it for the log.
    pub(super) fn new_call(&self, buffer: u8) -> CallTag {
        self.calls.update(|calls| calls.wrapping_add(1));
        CallTag {
            number: Some(self.calls.get()),
            clock: self.clock,
            buffer,
        }
    }

    /// The services that raise the TPL, where calls through this buffer run at `TPL_NOTIFY`.
    pub(super) fn tpl_for(&self, id: u8) -> Option<Service<dyn TplServices>> {
        let at_notify = self.at_notify.try_borrow().ok()?;
        let ids = [Some(id), self.beside(id)];
        let mut raised = at_notify.iter();
        raised
            .find(|(at, _)| ids.contains(&Some(*at)))
            .map(|(_, tpl)| *tpl)
    }

    /// Raises the TPL where calls through the buffer that may move run at `TPL_NOTIFY`.
    pub(super) fn raise_for_updates(&self) -> Option<Raised> {
        let updates = self.updates.as_ref()?;
        self.tpl_for(updates.id()).and_then(raise_to_notify)
    }

    /// Puts announced moves into effect. [`Status::Busy`] where that has to wait and `id` is the buffer that moves.
    pub(super) fn settle(&self, id: u8) -> Result<(), Failure> {
        let Some(updates) = &self.updates else {
            return Ok(());
        };
        let _raised = self.raise_for_updates();
        let is_settled = updates.turn().is_some_and(|turn| turn.apply(&self.buffers));
        if !is_settled && updates.id() == id {
            let why = "it is being moved by a call that this one interrupted";
            return Err(Failure::also(Status::Busy, why));
        }
        Ok(())
    }

    /// Puts announced moves into effect, and keeps others from coming while `to` is moved to. [`Status::Busy`] where a call
    /// that this one interrupted does the same, or has to end before a buffer of `to` can be where it was announced.
    pub(super) fn hold_updates(
        &self,
        to: &[CommunicateBuffer],
    ) -> Result<Option<announced_move::Turn<'_>>, Failure> {
        let Some(updates) = &self.updates else {
            return Ok(None);
        };
        let id = updates.id();
        let busy = |why| Failure::also(Status::Busy, why);
        let turn = updates
            .turn()
            .ok_or_else(|| busy("a comm buffer is being moved by a call that this one interrupted"))?;
        if !turn.apply(&self.buffers) && to.iter().any(|new| new.id() == id) {
            return Err(busy(
                "the announced move of one of them waits for a call that this one interrupted",
            ));
        }
        Ok(Some(turn))
    }

    /// Whether calls through this buffer run at `TPL_NOTIFY`.
    #[cfg(test)]
    pub(crate) fn runs_at_notify(&self, id: u8) -> bool {
        self.tpl_for(id).is_some()
    }

    /// See [`MmCommunicator::run_at_notify`].
    pub(crate) fn run_at_notify(&self, id: u8, tpl: Service<dyn TplServices>) -> Result<(), Status> {
        let mut at_notify = self
            .at_notify
            .try_borrow_mut()
            .map_err(|_looked_at| Status::Busy)?;
        match at_notify.iter_mut().find(|(at, _)| *at == id) {
            Some((_, former)) => *former = tpl,
            None => at_notify.push((id, tpl)),
        }
        Ok(())
    }
}

impl Client<'_> {
    /// Logs what became of a call, in one line.
    pub(super) fn log_end(
        &self,
        tag: CallTag,
        sent: usize,
        recipient: mm_wire::Guid,
        result: Result<usize, Failure>,
    ) -> Result<usize, Status> {
        match &result {
            Ok(answered) => {
                log::debug!(target: "mm_comm", "{tag}: {sent} bytes to {recipient}, {answered} bytes back");
            }
            Err(failure) => {
                let why = self.explain(failure);
                log::error!(target: "mm_comm", "{tag}: {sent} bytes to {recipient}: {why}");
            }
        }
        result.map_err(|failure| failure.status)
    }

    /// A failure for the log.
    pub(super) fn explain(&self, failure: &Failure) -> impl fmt::Display {
        fmt::from_fn(|f| failure.explain(self.executor, || self.look(Ids::of).ok(), f))
    }

    /// The way into MM.
    pub(super) fn executor(&self) -> Result<&dyn MmExecutor, Failure> {
        self.executor
            .ok_or_else(|| not_dispatched(Status::SwMmiServiceNotAvailable))
    }

    /// Makes one exchange. Returns the bytes of the response.
    pub(super) fn exchange(
        &self,
        tag: CallTag,
        message: &[u8],
        recipient: mm_wire::Guid,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<usize, Failure> {
        // Looked up first, and again if it moves: no buffer at all is the first of the errors, another one the last.
        let mut found = self.buffer(tag.buffer);
        if let Err(failure) = &found
            && failure.status == Status::NoCommBuffer
        {
            return Err(match self.executor {
                Some(_) => Status::NoCommBuffer.into(),
                None => not_dispatched(Status::NoCommBuffer),
            });
        }
        let has_no_bytes = options.message_size.map_or(message.is_empty(), |size| size == 0);
        if (message.is_empty() && !options.may_be_empty) || (has_no_bytes && self.by_secure_calls) {
            return Err(Status::InvalidDataBuffer.into());
        }
        let executor = self.executor()?;
        loop {
            let buffer = found?;
            // One mailbox for two buffers announces one request at a time.
            let beside = self.beside(tag.buffer).and_then(|other| self.buffer(other).ok());
            let _held = beside
                .as_ref()
                .filter(|other| other.shares_mailbox_with(&buffer))
                .map(|other| other.channel().hold())
                .transpose()?;
            let format = options.header.unwrap_or(buffer.header());
            let staged = match buffer
                .channel()
                .begin_sized(format, recipient, message, options.message_size)
            {
                // It moved after it was looked up: nothing was written, so this starts again in the new place.
                Err(BeginError::Retired) => {
                    found = self.buffer(tag.buffer);
                    continue;
                }
                staged => staged?,
            };
            trace_request(tag, recipient, format, message);
            staged.check()?;
            let mut lent = buffer.lend(staged.number(), format);
            executor
                .execute_mm(&mut lent)
                .map_err(|status| Failure::executor(status, &lent))?;
            if !lent.is_same(&buffer) {
                drop(staged);
                return take_from_another(&lent, tag, take);
            }
            let response = lent
                .finish(staged)
                .map_err(|error| Failure::response(error, &lent))?;
            let answered = response.len();
            take(&mut ResponseReader::in_place(response, tag));
            return Ok(answered);
        }
    }
}

/// An executor may respond by putting another comm buffer, with a message in it, in the place of the one that it was lent.
/// Returns the bytes of the response.
fn take_from_another(
    buffer: &CommunicateBuffer,
    tag: CallTag,
    take: &mut dyn FnMut(&mut ResponseReader<'_>),
) -> Result<usize, Failure> {
    let message = buffer.get_message().map_err(|_damaged| {
        let why = "the executor put another comm buffer in the place of the one that it was lent, without a message";
        Failure::also(Status::InvalidResponse, why)
    })?;
    take(&mut ResponseReader::copied(&message, tag));
    Ok(message.len())
}

/// A call came before the component was dispatched.
const fn not_dispatched(status: Status) -> Failure {
    let why = "MmCommunicator was not dispatched yet; take the Service<dyn MmCommunication> as a parameter";
    Failure::also(status, why)
}
