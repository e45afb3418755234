//! The work of a communicator, re-entrant calls included. Compiled once, not once for each type of
//! executor.

use super::after_calls::Wakes;
use super::announced_move::{Announcements, MoveLock};
use super::buffers::{self, Buffers};
use super::executor::MmExecutor;
use super::extras::LazyExtras;
use super::failure::Failure;
use super::ids::Ids;
use super::tpl::{Raised, raise_to_notify};
use crate::config::{CommunicateBuffer, HeaderFormat, MmiPort};
use crate::service::{CallOptions, CallTag, MmCommunication, ResponseReader, Sealed, Status, trace_request};
use alloc::boxed::Box;
use core::cell::{BorrowError, Cell};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use mm_comm::BeginError;
use mm_wire::text::Shown;
use patina::Guid;
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::TplServices;

/// A communicator, without the type of its executor.
#[derive(Default)]
pub(crate) struct Client {
    pub(super) executor: Option<Box<dyn MmExecutor>>,
    pub(super) buffers: Buffers,
    /// Number of calls so far; log lines name a call by it.
    pub(super) calls: Cell<u32>,
    /// Number of calls that got [`Status::Busy`].
    pub(super) rejected: AtomicU32,
    pub(super) extras: LazyExtras,
}

impl Client {
    /// The client that is behind the service, if it is this crate's.
    pub(crate) fn of(mm: &dyn MmCommunication) -> Option<&Self> {
        mm.internals(Sealed::new())?.downcast_ref()
    }

    /// See [`MmCommunication::communicate_with`].
    pub(super) fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        self.exchange_with(id, self.tpl_for(id), message, recipient, |tag, recipient| {
            self.apply_announced(id)?;
            self.exchange(tag, message, recipient, options, take)
        })
    }

    /// See [`MmCommunication::message_capacity`].
    pub(super) fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        let work = || {
            self.apply_announced(id)?;
            self.buffer(id)
        };
        let log = |result: Result<_, Failure>| {
            result.map_err(|failure| {
                let why = self.explain(&failure);
                log_line!(Error, "mm_comm", "{}: {why}", CallTag::of_buffer(id));
                failure.status
            })
        };
        // This is not a call, but it may apply a move; a call that interrupted it then waits for
        // its end.
        let buffer = self.call(None, Wakes::IfRejected, work, log)?;
        Ok(buffer
            .channel()
            .capacity(options.header.unwrap_or(buffer.header())))
    }

    /// Lets `exchange` make one exchange with MM, which returns the number of response bytes, and
    /// logs its end.
    pub(super) fn exchange_with(
        &self,
        id: u8,
        tpl: Option<Service<dyn TplServices>>,
        message: &[u8],
        recipient: Guid<'_>,
        exchange: impl FnOnce(&CallTag, [u8; 16]) -> Result<usize, Failure>,
    ) -> Result<(), Status> {
        let recipient = recipient.as_bytes();
        let sent = message.len();
        let tag = self.new_call(id);
        let work = || exchange(&tag, recipient);
        let log = |result: Result<usize, Failure>| match result {
            Ok(returned) => {
                if log::log_enabled!(target: "mm_comm", log::Level::Debug) {
                    log_end(&tag, sent, recipient, returned);
                }
                Ok(())
            }
            Err(failure) => Err(self.log_failure(&tag, sent, recipient, &failure)),
        };
        self.call(tpl, Wakes::Always, work, log)
    }

    /// What each call does around its `work`: it raises the TPL with `tpl`, and when the TPL is
    /// restored, logs the result with `log` and runs the callbacks that wait for its end.
    fn call<T, R>(
        &self,
        tpl: Option<Service<dyn TplServices>>,
        wakes: Wakes,
        work: impl FnOnce() -> Result<T, Failure>,
        log: impl FnOnce(Result<T, Failure>) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let rejected = self.rejected.load(Ordering::Acquire);
        let raised = tpl.and_then(raise_to_notify);
        let result = work();
        drop(raised);
        let result = log(result);
        if matches!(result, Err(Status::Busy)) {
            self.rejected.fetch_add(1, Ordering::AcqRel);
        } else if let Some(extras) = self.extras.get() {
            let was_rejected = self.rejected.load(Ordering::Acquire) != rejected;
            extras.after_calls.call_has_ended(was_rejected, wakes);
        }
        result
    }

    /// The configured way into MM, if there is one.
    pub(super) fn port(&self) -> Option<MmiPort> {
        self.extras.get()?.port.get()
    }

    /// Counts a call, and names it for the log.
    fn new_call(&self, buffer: u8) -> CallTag {
        self.calls.update(|calls| calls.wrapping_add(1));
        CallTag {
            number: Some(self.calls.get()),
            clock: self.extras.get().and_then(|extras| extras.clock.get()),
            buffer,
        }
    }

    /// Finds an enabled buffer.
    pub(super) fn buffer(&self, id: u8) -> Result<CommunicateBuffer, Failure> {
        self.look(|list| buffers::find(list, id)).map_err(|_replaced| {
            let why = "the list of comm buffers is being replaced by a call that this one interrupted";
            Failure::also(Status::Busy, why)
        })?
    }

    /// Looks at the list of comm buffers. If calls through the buffer that may move run at
    /// `TPL_NOTIFY`, this does too: otherwise a notification would find the list borrowed, could
    /// not apply a move, and would get [`Status::Busy`].
    pub(super) fn look<T>(&self, look: impl FnOnce(&[CommunicateBuffer]) -> T) -> Result<T, BorrowError> {
        let _raised = self.raise_for_moves();
        self.buffers.look(look)
    }

    /// The service that raises the TPL, if calls through this buffer run at `TPL_NOTIFY`.
    pub(super) fn tpl_for(&self, id: u8) -> Option<Service<dyn TplServices>> {
        let at_notify = &self.extras.get()?.at_notify;
        let services = at_notify.services()?;
        let is_beside = || self.buffers.beside(id).is_some_and(|other| at_notify.has(other));
        (at_notify.has(id) || is_beside()).then_some(services)
    }

    /// Raises the TPL if calls through the buffer that may move run at `TPL_NOTIFY`.
    fn raise_for_moves(&self) -> Option<Raised> {
        self.tpl_for(self.announced_id()?).and_then(raise_to_notify)
    }

    /// The buffer whose moves are announced.
    pub(super) fn announced_id(&self) -> Option<u8> {
        self.announcements().map(|announcements| announcements.id())
    }

    fn announcements(&self) -> Option<&Announcements> {
        self.extras
            .get()?
            .announcements
            .get()
            .map(|announcements| &**announcements)
    }

    /// Applies announced moves, if there can be any. [`Status::Busy`] if that has to wait and `id` is
    /// the buffer that moves.
    #[inline]
    fn apply_announced(&self, id: u8) -> Result<(), Failure> {
        match self.announcements() {
            None => Ok(()),
            Some(announcements) => self.apply(announcements, id),
        }
    }

    #[inline(never)]
    fn apply(&self, announcements: &Announcements, id: u8) -> Result<(), Failure> {
        let _raised = self.raise_for_moves();
        let is_applied = announcements.lock().is_some_and(|lock| lock.apply(&self.buffers));
        if !is_applied && announcements.id() == id {
            let why = "it is being moved by a call that this one interrupted";
            return Err(Failure::also(Status::Busy, why));
        }
        Ok(())
    }

    /// Applies announced moves, and keeps others from being applied while the buffers move to `to`.
    /// [`Status::Busy`] if a call that this one interrupted moves buffers, or has to end before a
    /// buffer of `to` can be where it was announced.
    pub(super) fn lock_moves(&self, to: &[CommunicateBuffer]) -> Result<Option<MoveLock<'_>>, Failure> {
        let Some(announcements) = self.announcements() else {
            return Ok(None);
        };
        let busy = |why| Failure::also(Status::Busy, why);
        let lock = announcements
            .lock()
            .ok_or_else(|| busy("a comm buffer is being moved by a call that this one interrupted"))?;
        if !lock.apply(&self.buffers) && to.iter().any(|new| new.id() == announcements.id()) {
            return Err(busy(
                "the announced move of one of them waits for a call that this one interrupted",
            ));
        }
        Ok(Some(lock))
    }

    /// Makes calls through a comm buffer run at `TPL_NOTIFY`.
    pub(crate) fn run_at_notify(&self, id: u8, tpl: Service<dyn TplServices>) {
        self.extras.make_or_abort().at_notify.add(id, tpl);
    }

    /// Whether calls through this buffer run at `TPL_NOTIFY`.
    #[cfg(test)]
    pub(crate) fn runs_at_notify(&self, id: u8) -> bool {
        self.tpl_for(id).is_some()
    }

    /// Logs why a call failed, in one line. Returns its status.
    #[cold]
    #[inline(never)]
    fn log_failure(&self, tag: &CallTag, sent: usize, recipient: [u8; 16], failure: &Failure) -> Status {
        let (recipient, why) = (shown(recipient), self.explain(failure));
        log_line!(Error, "mm_comm", "{tag}: {sent} bytes to {recipient}: {why}");
        failure.status
    }

    /// A failure for the log.
    fn explain(&self, failure: &Failure) -> impl fmt::Display {
        fmt::from_fn(|f| failure.explain(self.executor.as_deref(), || self.look(Ids::of).ok(), f))
    }

    /// The way into MM.
    pub(super) fn executor(&self) -> Result<&dyn MmExecutor, Failure> {
        self.executor
            .as_deref()
            .ok_or_else(|| not_dispatched(Status::SwMmiServiceNotAvailable))
    }

    /// Refuses messages that MM does not take. Returns the way into MM.
    fn check(&self, message: &[u8], options: CallOptions) -> Result<&dyn MmExecutor, Failure> {
        let has_no_bytes = options.message_size.map_or(message.is_empty(), |size| size == 0);
        let by_secure_calls = || matches!(self.port(), Some(MmiPort::Smc(_)));
        if (message.is_empty() && !options.may_be_empty) || (has_no_bytes && by_secure_calls()) {
            return Err(Status::InvalidDataBuffer.into());
        }
        self.executor()
    }

    /// Fails if no enabled buffer has the identifier. Without any buffer that is the first error of
    /// a call, otherwise the last one.
    #[cold]
    #[inline(never)]
    fn require_buffer(&self, id: u8, message: &[u8], options: CallOptions) -> Result<(), Failure> {
        let found = self.buffer(id).map(drop);
        match (&found, &self.executor) {
            (Err(failure), Some(_)) if failure.status == Status::NoCommBuffer => return found,
            (Err(failure), None) if failure.status == Status::NoCommBuffer => {
                return Err(not_dispatched(Status::NoCommBuffer));
            }
            _ => {}
        }
        self.check(message, options)?;
        found
    }

    /// Makes one exchange. Returns the number of response bytes.
    fn exchange(
        &self,
        tag: &CallTag,
        message: &[u8],
        recipient: [u8; 16],
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<usize, Failure> {
        // The buffer is looked up again if it moves.
        loop {
            let found = self.look(|list| buffers::enabled(list, tag.buffer));
            let Ok(Some(buffer)) = found else {
                self.require_buffer(tag.buffer, message, options)?;
                continue;
            };
            let format = options.header.unwrap_or(buffer.header());
            let options = of_format(format, options);
            let executor = self.check(message, options)?;
            // One mailbox for two buffers announces one request at a time.
            let beside = self
                .buffers
                .beside(tag.buffer)
                .and_then(|other| self.buffer(other).ok());
            let _held = beside
                .as_ref()
                .filter(|other| other.shares_mailbox_with(&buffer))
                .map(|other| other.channel().hold())
                .transpose()?;
            let format = options.header.unwrap_or(buffer.header());
            let staged = match buffer
                .channel()
                .begin_to(format, recipient, message, options.message_size)
            {
                // The buffer moved after it was looked up, and nothing was written: the exchange
                // starts again in the new place.
                Err(BeginError::Retired) => continue,
                Ok(staged) => staged,
                Err(error) => return Err(not_sent(error)),
            };
            trace_request(tag, recipient, format, message);
            staged.check().map_err(not_sent)?;
            let mut lent = buffer.lend(staged.number(), format);
            executor
                .execute_mm(&mut lent)
                .map_err(|status| Failure::executor(status, &lent))?;
            if !lent.is_same(&buffer) {
                drop(staged);
                return take_from_another(executor, &lent, tag, take);
            }
            let mut error = None;
            let Some(response) = lent.finish(staged, &mut error) else {
                return Err(Failure::response(error, &lent));
            };
            let returned = response.len();
            take(&mut ResponseReader::in_place(response, tag));
            return Ok(returned);
        }
    }
}

/// The options as a header of this format has them: v1 does not have MessageSize.
fn of_format(format: HeaderFormat, options: CallOptions) -> CallOptions {
    let message_size = options.message_size.filter(|_| format == HeaderFormat::V3);
    CallOptions {
        message_size,
        ..options
    }
}

/// The failure of a call that did not reach MM.
#[cold]
#[inline(never)]
fn not_sent(error: BeginError) -> Failure {
    error.into()
}

/// A recipient in the form that log lines print.
const fn shown(recipient: [u8; 16]) -> Shown {
    Shown(mm_wire::Guid::from_bytes(recipient))
}

/// Logs how a call ended, in one line.
#[cold]
#[inline(never)]
fn log_end(tag: &CallTag, sent: usize, recipient: [u8; 16], returned: usize) {
    let recipient = shown(recipient);
    log_line!(
        Debug,
        "mm_comm",
        "{tag}: {sent} bytes to {recipient}, {returned} bytes back"
    );
}

/// An executor may respond by replacing the comm buffer that it was lent with another one that
/// holds a message. Returns the number of response bytes.
#[cold]
#[inline(never)]
fn take_from_another(
    executor: &dyn MmExecutor,
    buffer: &CommunicateBuffer,
    tag: &CallTag,
    take: &mut dyn FnMut(&mut ResponseReader<'_>),
) -> Result<usize, Failure> {
    let message = executor.message_in(buffer, Sealed::new()).map_err(|_damaged| {
        let why = "the executor replaced the comm buffer that it was lent by another one without a message";
        Failure::also(Status::InvalidResponse, why)
    })?;
    take(&mut ResponseReader::copied(&message, tag));
    Ok(message.len())
}

/// A call came before the component was dispatched.
fn not_dispatched(status: Status) -> Failure {
    let why = "MmCommunicator was not dispatched yet; take the Service<dyn MmCommunication> as a parameter";
    Failure::also(status, why)
}
