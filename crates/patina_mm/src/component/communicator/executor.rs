//! How a communicator enters MM.

use crate::config::{CommunicateBuffer, CommunicateBufferStatus, MmCommunicationOptions};
use crate::log_line;
use crate::service::{MmProgress, MmiError, Sealed, Status, SwMmiTrigger, shown};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::{self, Display as _};
use core::sync::atomic::{AtomicU64, Ordering};
use mm_comm::transaction;
use mm_wire::EfiStatus;
use patina::component::service::Service;
use patina::error::EfiError;

/// Makes MM process the request in a comm buffer.
///
/// Host tests, and platforms whose MM is entered in another way, implement it. When it is called,
/// header and message are in the buffer, and its mailbox, if it has one, announces them. An
/// executor may
///
/// - let real MM, or code that plays MM, write the response to the buffer's memory and mailbox; or
/// - respond by hand with [`set_message_info`](CommunicateBuffer::set_message_info) and
///   [`set_message`](CommunicateBuffer::set_message), or with [`reset`](CommunicateBuffer::reset)
///   alone: exactly those bytes are the response, even if it is empty, and the mailbox is not read;
///   or
/// - replace the comm buffer that it was lent by another one: the response is that buffer's
///   message.
pub trait MmExecutor {
    /// Makes MM process the request in `comm_buffer`.
    ///
    /// # Errors
    ///
    /// The error is the caller's; the request is wiped from the buffer.
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status>;

    /// Writes for the log why the last call through `comm_buffer` failed with `status`. The
    /// communicator logs each failed call in one line, which ends with this text.
    ///
    /// # Errors
    ///
    /// Those of the formatter.
    fn explain(
        &self,
        status: Status,
        comm_buffer: &CommunicateBuffer,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let _ = comm_buffer;
        status.fmt(f)
    }

    /// The message in a comm buffer with which this executor replaced the one that it was lent.
    #[doc(hidden)]
    fn message_in(
        &self,
        replacement: &CommunicateBuffer,
        _: Sealed,
    ) -> Result<Vec<u8>, CommunicateBufferStatus> {
        replacement.get_message()
    }
}

#[cfg(any(test, feature = "mockall"))]
mockall::mock! {
    /// A [`MmExecutor`] that expects calls of `execute_mm`. The provided method is the trait's.
    pub MmExecutor {}
    impl MmExecutor for MmExecutor {
        fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status>;
    }
}

#[cfg(any(test, feature = "mockall"))]
impl fmt::Debug for MockMmExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockMmExecutor").finish_non_exhaustive()
    }
}

/// Enters MM through the [`SwMmiTrigger`] service. If that only raises an MMI, this waits until the
/// mailbox says that MM processed the request. If MM does not for a while, and the trigger allows
/// it ([`MmProgress::RaisedRepeatable`]), one more MMI is raised: see
/// [`transaction::wait_and_raise_again`].
pub struct RealMmExecutor {
    trigger: Service<dyn SwMmiTrigger>,
    options: MmCommunicationOptions,
    /// The last attempt, for the log. If a notification makes another attempt before this one is
    /// logged, the log line has only the status.
    last: Box<Attempt>,
}

/// How MM was entered for a call. Atomic, and in a box: the executor is `Sync`.
#[derive(Default)]
struct Attempt {
    /// The call that it was made for ([`CommunicateBuffer::loan`]): the buffer, then the transaction.
    loan: AtomicU64,
    /// The status of the platform's trigger, which failed, or the number of MMIs that were raised and
    /// of polls of the mailbox.
    outcome: AtomicU64,
}

impl Attempt {
    fn number(buffer: &CommunicateBuffer) -> u64 {
        let (id, transaction) = buffer.loan();
        u64::from(id) << 32 | u64::from(transaction)
    }

    /// The loan first: if a notification makes an attempt between the two, the loan is that one's.
    fn note(&self, loan: u64, outcome: u64) {
        if !log_line::ARE_LINKED {
            return;
        }
        self.loan.store(loan, Ordering::Release);
        self.outcome.store(outcome, Ordering::Release);
    }

    fn failed(&self, loan: u64, error: EfiError) {
        if log_line::ARE_LINKED {
            self.note(loan, shown(error).0);
        }
    }

    fn waited(&self, loan: u64, mmis: u32, polls: u32) {
        self.note(loan, u64::from(mmis) << 32 | u64::from(polls));
    }

    /// The outcome, if this was the last attempt.
    fn of(&self, buffer: &CommunicateBuffer) -> Option<u64> {
        (self.loan.load(Ordering::Acquire) == Self::number(buffer))
            .then(|| self.outcome.load(Ordering::Acquire))
    }
}

impl RealMmExecutor {
    /// Makes an executor with the default options.
    #[must_use]
    pub fn new(sw_mmi_trigger_service: Service<dyn SwMmiTrigger>) -> Self {
        Self::with_options(sw_mmi_trigger_service, MmCommunicationOptions::DEFAULT)
    }

    /// Makes an executor with the platform's options: the command and data values, and how long to
    /// wait.
    #[must_use]
    pub fn with_options(trigger: Service<dyn SwMmiTrigger>, options: MmCommunicationOptions) -> Self {
        Self {
            trigger,
            options,
            last: Box::default(),
        }
    }
}

impl MmExecutor for RealMmExecutor {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        let loan = Attempt::number(comm_buffer);
        let (id, address) = (comm_buffer.id(), comm_buffer.as_ptr().addr() as u64);
        let enter = || {
            self.trigger
                .enter_mm(address, self.options.command_value, self.options.data_value)
        };
        let progress = enter().inspect_err(|error| {
            if let MmiError::Failed(error) = error {
                self.last.failed(loan, *error);
            }
        })?;
        if progress == MmProgress::Returned {
            return Ok(());
        }
        let mut mmis = 1;
        let again = || match enter() {
            Ok(_) => mmis = 2,
            Err(error) => {
                log_line!(
                    Warn,
                    "mm_comm",
                    "comm buffer {id}: no second MMI was raised: {error}"
                );
            }
        };
        let (channel, polls) = (comm_buffer.channel(), self.options.completion_polls);
        let pause = || self.trigger.pause();
        let pauses = match progress {
            MmProgress::RaisedRepeatable => transaction::wait_and_raise_again(channel, polls, again, pause),
            _ => transaction::wait(channel, polls, pause),
        };
        self.last.waited(loan, mmis, pauses);
        log_line!(
            Trace,
            "mm_comm",
            "comm buffer {id}: waited {pauses} pauses for MM"
        );
        Ok(())
    }

    fn explain(
        &self,
        status: Status,
        comm_buffer: &CommunicateBuffer,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        if !log_line::ARE_LINKED {
            return Ok(());
        }
        match (status, self.last.of(comm_buffer)) {
            (Status::NotProcessed, Some(waited)) => {
                let (mmis, polls) = (waited >> 32, waited & u64::from(u32::MAX));
                let (len, at) = (comm_buffer.len(), comm_buffer.as_ptr());
                write!(f, "{status}. The comm buffer has {len} bytes at {at:p}")?;
                if let Some(mailbox) = comm_buffer.channel().mailbox() {
                    write!(f, ", its mailbox at {:p}", mailbox.region().as_ptr())?;
                }
                write!(f, " was polled {polls} times; MMIs raised: {mmis}. ")?;
                let (command, data) = (self.options.command_value, self.options.data_value);
                self.trigger.describe_mmi(command, data, f)?;
                f.write_str(". See docs/troubleshooting.md#mmi-but-no-response")
            }
            // The status cannot carry the trigger's own error.
            (Status::SwMmiFailed, Some(error)) => write!(f, "{status}: {}", EfiStatus(error)),
            _ => status.fmt(f),
        }
    }

    // This executor never replaces the buffer that it is lent, so a platform that uses only this
    // executor does not link the code for a replaced one.
    fn message_in(&self, _: &CommunicateBuffer, _: Sealed) -> Result<Vec<u8>, CommunicateBufferStatus> {
        Err(CommunicateBufferStatus::NoBuffer)
    }
}

impl fmt::Debug for RealMmExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealMmExecutor")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::sw_mmi_manager::{ScriptedMmi, ScriptedTrigger};
    use crate::service::MockSwMmiTrigger;
    use alloc::boxed::Box;
    use alloc::string::{String, ToString};
    use alloc::vec;
    use mm_wire::{EfiStatus, Guid, HeaderFormat, MailboxImage};
    use patina::error::EfiError;

    /// Sends a message to `buffer`, and returns whether the mailbox shows that it was taken, and
    /// what the log says.
    fn run(buffer: &CommunicateBuffer, trigger: impl SwMmiTrigger + 'static) -> (bool, String) {
        let trigger: Box<dyn SwMmiTrigger> = Box::new(trigger);
        let executor = RealMmExecutor::new(Service::mock(trigger));
        let staged = buffer
            .channel()
            .begin(HeaderFormat::V1, Guid::ZERO, b"x")
            .unwrap();
        let mut lent = buffer.lend(staged.number(), HeaderFormat::V1);
        assert_eq!(executor.execute_mm(&mut lent), Ok(()));
        let said = fmt::from_fn(|f| executor.explain(Status::NotProcessed, &lent, f)).to_string();
        (staged.finish().is_ok(), said)
    }

    #[test]
    fn another_mmi_that_fails_does_not_undo_the_first() {
        for was_taken in [true, false] {
            let buffer = CommunicateBuffer::of_a_page(0);
            let mm = buffer.clone();
            let second: ScriptedMmi = Box::new(move || {
                // MM takes the request of the first case after the last poll.
                if was_taken {
                    let response = MailboxImage::answered(EfiStatus::SUCCESS, 25);
                    mm.channel().mailbox().unwrap().write(&response);
                }
                Err(EfiError::NotReady)
            });
            let first: ScriptedMmi = Box::new(|| Ok(()));
            let script = ScriptedTrigger::new(MmProgress::RaisedRepeatable, vec![first, second]);
            // The mailbox decides, not the second MMI.
            assert_eq!(run(&buffer, script).0, was_taken);
        }
    }

    fn explained(executor: &dyn MmExecutor, status: Status, buffer: &CommunicateBuffer) -> String {
        fmt::from_fn(|f| executor.explain(status, buffer, f)).to_string()
    }

    #[test]
    fn only_the_last_attempt_of_this_call_is_explained() {
        let buffer = CommunicateBuffer::of_a_page(9);
        let lent = buffer.lend(5, HeaderFormat::V1);
        assert_eq!(Attempt::number(&lent), 9 << 32 | 5);
        let attempt = Attempt::default();
        attempt.waited(Attempt::number(&lent), 2, 7);
        assert_eq!(attempt.of(&lent), Some(2 << 32 | 7));
        let others = [buffer.lend(6, HeaderFormat::V1), CommunicateBuffer::of_a_page(8)];
        for other in &others {
            assert_eq!(attempt.of(other), None);
        }
        attempt.failed(Attempt::number(&lent), EfiError::NotReady);
        assert_eq!(attempt.of(&lent), Some(EfiStatus::NOT_READY.0));
    }

    #[test]
    fn error_of_the_platforms_trigger_is_in_the_explanation() {
        let buffer = CommunicateBuffer::of_a_page(0);
        let mut trigger = MockSwMmiTrigger::new();
        trigger
            .expect_trigger_sw_mmi()
            .returning(|_, _| Err(EfiError::NotReady));
        let trigger: Box<dyn SwMmiTrigger> = Box::new(trigger);
        let executor = RealMmExecutor::new(Service::mock(trigger));
        let mut lent = buffer.lend(1, HeaderFormat::V1);
        assert_eq!(executor.execute_mm(&mut lent), Err(Status::SwMmiFailed));
        let said = explained(&executor, Status::SwMmiFailed, &lent);
        assert!(said.contains("EFI_NOT_READY"), "{said}");
        let other = explained(&executor, Status::SwMmiFailed, &buffer.lend(2, HeaderFormat::V1));
        assert_eq!(other, Status::SwMmiFailed.to_string());
    }

    #[test]
    fn executor_of_a_platform_is_explained_by_the_status() {
        let buffer = CommunicateBuffer::of_a_page(0);
        let said = explained(&MockMmExecutor::new(), Status::NotProcessed, &buffer);
        assert_eq!(said, Status::NotProcessed.to_string());
    }

    #[test]
    fn the_real_executor_replaces_no_buffer() {
        let trigger: Box<dyn SwMmiTrigger> = Box::new(MockSwMmiTrigger::new());
        let executor = RealMmExecutor::new(Service::mock(trigger));
        let mut buffer = CommunicateBuffer::of_a_page(0);
        buffer
            .set_message_info(patina::Guid::from_bytes(&[1; 16]))
            .unwrap();
        buffer.set_message(b"by hand").unwrap();
        let replaced = executor.message_in(&buffer, Sealed::new());
        assert_eq!(replaced, Err(CommunicateBufferStatus::NoBuffer));
        assert_eq!(
            MockMmExecutor::new().message_in(&buffer, Sealed::new()),
            Ok(b"by hand".to_vec())
        );
    }

    #[test]
    fn a_platforms_own_trigger_raises_one_mmi_per_call() {
        let buffer = CommunicateBuffer::of_a_page(0);
        let mut trigger = MockSwMmiTrigger::new();
        trigger.expect_trigger_sw_mmi().times(1).returning(|_, _| Ok(()));
        let (was_taken, said) = run(&buffer, trigger);
        assert!(!was_taken);
        assert!(said.contains("polled 100000 times; MMIs raised: 1"), "{said}");
        assert!(said.contains("own SwMmiTrigger was given command 0xff"), "{said}");
    }
}
