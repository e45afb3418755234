//! Why a call failed, with what a [`Status`] cannot carry: the end of the call's one line in the log.

use super::ids::Ids;
use super::{MmExecutor, Status};
use crate::config::{CommunicateBuffer, ConfigurationError};
use core::fmt::{self, Display as _};
use mm_comm::{BeginError, ResponseError};
use mm_wire::AddressRange;

/// What the caller gets, and what the log says.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Status,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The status says it all.
    Status,
    /// The status, and this.
    Also(&'static str),
    /// No comm buffer has the identifier.
    UnknownBuffer,
    Begin(BeginError),
    Response(ResponseError),
    /// The executor knows more about this buffer.
    Executor(CommunicateBuffer),
    Move(ConfigurationError),
    MoveOver(AddressRange),
}

impl Failure {
    pub(super) const fn also(status: Status, why: &'static str) -> Self {
        Self {
            status,
            why: Why::Also(why),
        }
    }

    /// No comm buffer has the identifier.
    pub(super) const fn unknown_buffer() -> Self {
        Self {
            status: Status::CommBufferNotFound,
            why: Why::UnknownBuffer,
        }
    }

    /// The executor failed, or can say why there is no response.
    pub(super) fn executor(status: Status, buffer: &CommunicateBuffer) -> Self {
        Self {
            status,
            why: Why::Executor(buffer.clone()),
        }
    }

    /// What MM left in `buffer` is not a response.
    pub(super) fn response(error: ResponseError, buffer: &CommunicateBuffer) -> Self {
        let status = Status::from(error);
        match error {
            ResponseError::NotProcessed | ResponseError::Mm(_) => Self::executor(status, buffer),
            error => Self {
                status,
                why: Why::Response(error),
            },
        }
    }

    /// The comm buffers that were to move would get in each other's way.
    pub(super) const fn of_move(error: ConfigurationError) -> Self {
        Self {
            status: Status::InvalidDataBuffer,
            why: Why::Move(error),
        }
    }

    /// Comm buffers were to move to where they are.
    pub(super) const fn move_over(range: AddressRange) -> Self {
        Self {
            status: Status::InvalidDataBuffer,
            why: Why::MoveOver(range),
        }
    }

    /// For the log. `executor` is the one that made the call, `buffers` are those that there are.
    #[cold]
    pub(super) fn explain(
        &self,
        executor: Option<&dyn MmExecutor>,
        buffers: impl FnOnce() -> Option<Ids>,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let status = self.status;
        match (&self.why, executor) {
            (Why::Status, _) | (Why::Executor(_), None) => status.fmt(f),
            (Why::Also(why), _) => write!(f, "{status}: {why}"),
            (Why::UnknownBuffer, _) => match buffers() {
                Some(ids) => write!(f, "{status}; {ids}"),
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
        Self {
            status,
            why: Why::Status,
        }
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        Self {
            status: error.into(),
            why: Why::Begin(error),
        }
    }
}
