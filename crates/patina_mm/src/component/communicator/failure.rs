//! Why a call failed, with the facts that a [`Status`] does not have: the end of the call's line in
//! the log.

use super::executor::MmExecutor;
use super::ids::Ids;
use crate::config::{CommunicateBuffer, ConfigurationError};
use crate::log_line;
use crate::service::Status;
use core::fmt::{self, Display as _};
use mm_comm::{BeginError, ResponseError};
use mm_wire::AddressRange;

/// The status for the caller, and what the log adds to it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Status,
    why: <ThisBuild as Keeps>::Why,
}

/// A build with log lines, or without.
struct Build<const HAS_LOG_LINES: bool>;

/// What a [`Failure`] keeps for the log: nothing in a build without log lines.
trait Keeps {
    type Why: fmt::Debug;

    fn keep(why: Why) -> Self::Why;

    fn kept(why: &Self::Why) -> &Why;
}

impl Keeps for Build<true> {
    type Why = Why;

    fn keep(why: Why) -> Why {
        why
    }

    fn kept(why: &Why) -> &Why {
        why
    }
}

impl Keeps for Build<false> {
    type Why = ();

    fn keep(_: Why) {}

    fn kept((): &()) -> &Why {
        const { &Why::Status }
    }
}

type ThisBuild = Build<{ log_line::ARE_LINKED }>;

#[derive(Debug)]
enum Why {
    /// The log adds nothing to the status.
    Status,
    /// The log adds this text.
    Also(&'static str),
    /// No comm buffer has the identifier.
    UnknownBuffer,
    Begin(BeginError),
    Response(ResponseError),
    /// What the executor says about this buffer.
    Executor(CommunicateBuffer),
    Move(ConfigurationError),
    MoveOver(AddressRange),
}

impl Failure {
    #[inline]
    fn new(status: Status, why: Why) -> Self {
        let why = ThisBuild::keep(why);
        Self { status, why }
    }

    pub(super) fn also(status: Status, why: &'static str) -> Self {
        Self::new(status, Why::Also(why))
    }

    /// No comm buffer has the identifier.
    pub(super) fn unknown_buffer() -> Self {
        Self::new(Status::CommBufferNotFound, Why::UnknownBuffer)
    }

    /// The executor failed, or knows why MM did not respond.
    pub(super) fn executor(status: Status, buffer: &CommunicateBuffer) -> Self {
        if !log_line::ARE_LINKED {
            return status.into();
        }
        Self::new(status, Why::Executor(buffer.clone()))
    }

    /// MM left something in `buffer` that is not a response.
    #[cold]
    #[inline(never)]
    pub(super) fn response(error: Option<ResponseError>, buffer: &CommunicateBuffer) -> Self {
        let error = error.unwrap_or(ResponseError::NotProcessed);
        let status = Status::from(error);
        match error {
            ResponseError::NotProcessed | ResponseError::Mm(_) => Self::executor(status, buffer),
            error => Self::new(status, Why::Response(error)),
        }
    }

    /// The comm buffers would collide after the move.
    pub(super) fn of_move(error: ConfigurationError) -> Self {
        Self::new(Status::InvalidDataBuffer, Why::Move(error))
    }

    /// The new place of a comm buffer overlaps its old one.
    pub(super) fn move_over(range: AddressRange) -> Self {
        Self::new(Status::InvalidDataBuffer, Why::MoveOver(range))
    }

    /// Writes it for the log. `executor` made the call, `buffers` has the identifiers that exist.
    #[cold]
    pub(super) fn explain(
        &self,
        executor: Option<&dyn MmExecutor>,
        buffers: impl FnOnce() -> Option<Ids>,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let status = self.status;
        match (ThisBuild::kept(&self.why), executor) {
            (Why::Status, _) | (Why::Executor(_), None) => status.fmt(f),
            (Why::Also(why), _) => write!(f, "{status}: {why}"),
            (Why::UnknownBuffer, _) => match buffers() {
                Some(ids) => write!(f, "{status}; there are: {ids}"),
                None => status.fmt(f),
            },
            (Why::Begin(error), _) => error.fmt(f),
            (Why::Response(error), _) => error.fmt(f),
            (Why::Executor(buffer), Some(executor)) => executor.explain(status, buffer, f),
            (Why::Move(error), _) => write!(f, "caller: comm buffers cannot move: {error}"),
            (Why::MoveOver(range), _) => {
                write!(f, "caller: comm buffers cannot move to {range}, where they are")
            }
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::new(status, Why::Status)
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        Self::new(error.into(), Why::Begin(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure as the log has it.
    struct Line(Failure);

    impl fmt::Display for Line {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.explain(None, || None, f)
        }
    }

    #[test]
    fn an_impossible_move_logs_where_the_buffers_are() {
        use alloc::string::ToString;
        let range = AddressRange::new(0x1000, 0x1000).unwrap();
        let over = Failure::move_over(range);
        assert_eq!(over.status, Status::InvalidDataBuffer);
        assert_eq!(
            Line(over).to_string(),
            "caller: comm buffers cannot move to 0x1000..0x2000, where they are"
        );
        let moved = Failure::of_move(ConfigurationError::BuffersBusy);
        assert!(
            Line(moved)
                .to_string()
                .starts_with("caller: comm buffers cannot move: ")
        );
        // The list of identifiers cannot be read now.
        let unknown = Line(Failure::unknown_buffer()).to_string();
        assert_eq!(unknown, Status::CommBufferNotFound.to_string());
    }
}
