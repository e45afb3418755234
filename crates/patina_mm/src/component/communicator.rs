//! Carries messages to MM handlers and responses back. It is re-entrant: a notification in the
//! middle of a call may make a call through another comm buffer; through the same one it gets
//! [`Status::Busy`].
//!
//! | file | content |
//! |---|---|
//! | `client` | one call, from the look-up of its comm buffer to its line in the log |
//! | `executor` | enters MM |
//! | `buffers` | the list of comm buffers |
//! | `announced_move`, `requested_move` | moves of a comm buffer |
//! | `after_calls` | callbacks at the end of a call |
//! | `tpl` | calls that run at `TPL_NOTIFY` |
//! | `extras` | state that only some platforms need |
//! | `failure`, `ids` | what the log says |

mod after_calls;
mod announced_move;
mod buffers;
mod client;
mod executor;
mod extras;
mod failure;
mod ids;
mod requested_move;
mod tpl;

#[cfg(any(test, feature = "mockall"))]
pub use crate::service::MockMmCommunication;
pub use crate::service::{CallOptions, MmCommunication, MmCommunicationExt, ResponseReader, Status};
pub(crate) use client::Client;
#[cfg(any(test, feature = "mockall"))]
pub use executor::MockMmExecutor;
pub use executor::{MmExecutor, RealMmExecutor};
pub(crate) use tpl::raise_to_notify;

use crate::config::{
    CommunicateBuffer, ConfigurationError, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort,
};
use crate::service::{Clock, Sealed, SwMmiTrigger};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use announced_move::{Announcements, Watch};
use core::any::Any;
use core::fmt;
use core::marker::PhantomData;
use core::panic::UnwindSafe;
use ids::Ids;
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::uefi_services::tpl::TplServices;
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use patina::{Guid, writelncrlf};

/// Component and service: carries messages through the configured comm buffers.
///
/// As a component it waits for [`MmCommunicationConfiguration`], until the SDK or a component locks
/// it, for [`SwMmiTrigger`] and for the SDK's `ProtocolServices`, then offers [`MmCommunication`].
/// With another executor a platform makes and registers it itself:
///
/// ```
/// use patina_mm::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
/// use patina_mm::config::CommunicateBuffer;
/// use std::pin::Pin;
///
/// /// Plays a handler that responds to each message with its length.
/// struct Lengths;
///
/// impl MmExecutor for Lengths {
///     fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
///         let length = comm_buffer.get_message_length().map_err(|_| Status::InvalidDataBuffer)?;
///         comm_buffer.set_message(&length.to_le_bytes()).map_err(|_| Status::CommBufferInitError)
///     }
/// }
///
/// let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
/// let communicator = MmCommunicator::with_executor(Lengths);
/// communicator.set_test_comm_buffers(vec![CommunicateBuffer::new(Pin::new(memory), 0)]);
///
/// let recipient = patina::Guid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");
/// assert_eq!(communicator.communicate(0, b"hello", recipient), Ok(5_usize.to_le_bytes().to_vec()));
/// ```
#[derive(IntoService)]
#[service(dyn MmCommunication)]
pub struct MmCommunicator<E: MmExecutor + 'static = RealMmExecutor> {
    client: Client,
    executor: PhantomData<E>,
}

impl<E: MmExecutor + 'static> MmCommunicator<E> {
    fn over(client: Client) -> Self {
        Self {
            client,
            executor: PhantomData,
        }
    }

    /// Makes a communicator that enters MM through `executor`. It does not have comm buffers yet.
    #[must_use]
    pub fn with_executor(executor: E) -> Self {
        Self::over(Client {
            executor: Some(Box::new(executor)),
            ..Client::default()
        })
    }

    /// Replaces the comm buffers.
    ///
    /// # Errors
    ///
    /// [`ConfigurationError::DuplicateBufferId`], [`ConfigurationError::SharedMemory`], and
    /// [`ConfigurationError::BuffersBusy`] if code that this call interrupted looks at them. The
    /// buffers stay as they were.
    pub fn set_comm_buffers(&self, buffers: Vec<CommunicateBuffer>) -> Result<(), ConfigurationError> {
        self.client.buffers.replace(buffers)
    }

    /// Replaces the comm buffers; a set that [`Self::set_comm_buffers`] refuses is logged and
    /// changes nothing.
    pub fn set_test_comm_buffers(&self, buffers: Vec<CommunicateBuffer>) {
        if let Err(error) = self.set_comm_buffers(buffers) {
            log_line!(Error, "mm_comm", "the comm buffers stay as they were: {error}");
        }
    }

    /// Like [`MmCommunication::communicate_with`], for a message with a v1 header that makes MM
    /// move comm buffers to `to`. It goes through the one of them whose identifier is `id`. `take`
    /// returns whether they moved; then `to` replaces the buffers with the same identifiers.
    ///
    /// MM responds in the new place or, if it refuses, in the old one. The message must be such
    /// that no response equals it. A move that the platform announces meanwhile is applied
    /// afterwards; a call through a buffer that moves gets [`Status::Busy`] until then.
    ///
    /// MM may move a buffer and then refuse the rest. Then `take` gets the refusal, and what has
    /// moved is used in its new place with its old mailbox.
    ///
    /// # Errors
    ///
    /// Those of [`MmCommunication::communicate`]; [`Status::Busy`] if one of the buffers is in use,
    /// or is being moved by a call that this one interrupted; [`Status::InvalidDataBuffer`] if `to`
    /// shares memory with a comm buffer, or the buffer `id` has no status mailbox in its old or its
    /// new place; [`Status::CommBufferDisabled`] if one of `to` is disabled;
    /// [`Status::CommBufferNotFound`] if `id` is not among them.
    pub fn communicate_and_move(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        to: &[CommunicateBuffer],
        take: &mut dyn FnMut(&mut ResponseReader<'_>) -> bool,
    ) -> Result<(), Status> {
        self.client.communicate_and_move(id, message, recipient, to, take)
    }

    /// Makes calls through the comm buffer `id` run at `TPL_NOTIFY`, so that no notification can
    /// interrupt one and get [`Status::Busy`] from the same buffer. For buffers that are shared
    /// with callers that cannot handle `Busy`. The closure of [`MmCommunication::communicate_with`]
    /// then runs at that level, too.
    ///
    /// A move of the buffer, announced or requested, also runs at `TPL_NOTIFY`. A caller above that
    /// stays at its level. There is one TPL: `tpl` is used for all buffers from now on.
    pub fn run_at_notify(&self, id: u8, tpl: Service<dyn TplServices>) {
        self.client.run_at_notify(id, tpl);
    }
}

#[component]
impl MmCommunicator {
    /// Makes the component. It has comm buffers and a way into MM when it is dispatched.
    #[must_use]
    pub fn new() -> Self {
        Self::over(Client::default())
    }

    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        trigger: Service<dyn SwMmiTrigger>,
        protocols: Service<dyn ProtocolServices>,
        optional: Optional,
        commands: Commands,
    ) -> patina::error::Result<()> {
        let watch = (Announcements::watch as Watch, protocols);
        self.start(&config, *options, trigger, Some(watch), optional, commands)
    }
}

/// Services that a communicator uses if they exist.
type Optional = (Option<Service<dyn TplServices>>, Option<Clock>);

/// Component: like [`MmCommunicator`], for a platform that does not set
/// [`enable_comm_buffer_updates`](MmCommunicationConfiguration::enable_comm_buffer_updates). It does
/// not link the code for announced moves of a comm buffer.
///
/// With that setting it fails: `MmCommunicator` is the component then.
#[derive(Debug, Default)]
pub struct FixedMmCommunicator {}

#[component]
impl FixedMmCommunicator {
    /// Makes the component.
    #[must_use]
    pub const fn new() -> Self {
        Self {}
    }

    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        trigger: Service<dyn SwMmiTrigger>,
        optional: Optional,
        commands: Commands,
    ) -> patina::error::Result<()> {
        MmCommunicator::new().start(&config, *options, trigger, None, optional, commands)
    }
}

impl MmCommunicator {
    /// Makes this the service, with the comm buffers of `config`. `watch` is for announced moves,
    /// which are an error without it.
    // Inlined: otherwise its many arguments are copied through each layer of the SDK's calls.
    #[inline(always)]
    fn start(
        mut self,
        config: &MmCommunicationConfiguration,
        options: MmCommunicationOptions,
        trigger: Service<dyn SwMmiTrigger>,
        watch: Option<(Watch, Service<dyn ProtocolServices>)>,
        (tpl, clock): Optional,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        self.set_comm_buffers(buffers::those(&config.comm_buffers, &|_| true))
            .inspect_err(|error| log_line!(Error, "mm_comm", "no MM communication: {error}"))?;
        self.client.executor = Some(Box::new(RealMmExecutor::with_options(trigger, options)));
        let extras = self.client.extras.make_or_abort();
        extras.port.set(Some(config.cmd_port));
        extras.clock.set(clock);
        self.keep_others_out(config, tpl);
        if config.enable_comm_buffer_updates
            && let Some(id) = config.updatable_buffer_id
        {
            let Some((watch, protocols)) = watch else {
                log_line!(
                    Error,
                    "mm_comm",
                    "platform: no MM communication: comm buffer {id} may move (enable_comm_buffer_updates), which needs the \
                     component MmCommunicator instead of FixedMmCommunicator"
                );
                return Err(EfiError::InvalidParameter);
            };
            // It is set only once.
            let _ = extras.announcements.set(watch(id, protocols)?);
        }
        log_line!(Info, "mm_comm", "{}", config.summary());
        warn_of_missing_buffers(config);
        warn_of_silence(config);
        commands.add_service(self);
        Ok(())
    }

    /// Makes calls run at `TPL_NOTIFY` if a notification in the middle of one could damage it:
    ///
    /// - The firmware's own MM driver may use the buffer, too. That driver is not re-entrant and
    ///   would overwrite the request.
    /// - The buffer has no status mailbox: if other code raises an MMI before the response is read,
    ///   MM takes the contents of the buffer for a request again.
    fn keep_others_out(&self, config: &MmCommunicationConfiguration, tpl: Option<Service<dyn TplServices>>) {
        let enabled = || config.comm_buffers.iter().filter(|buffer| buffer.is_enabled());
        let mut ids = Ids::default();
        // The driver that will announce a buffer may use it, too.
        let mut awaited = config
            .updatable_buffer_id
            .filter(|_| config.enable_comm_buffer_updates);
        for buffer in enabled() {
            awaited = awaited.filter(|id| *id != buffer.id());
            if buffer.is_shared_with_firmware() {
                ids.add(buffer.id());
            }
        }
        awaited.into_iter().for_each(|id| ids.add(id));
        let Some(tpl) = tpl else {
            if !ids.is_empty() {
                log_line!(
                    Warn,
                    "mm_comm",
                    "platform: without TplServices a notification that calls the firmware's MM driver overwrites the request \
                     in comm buffers {ids}"
                );
            }
            return;
        };
        if matches!(config.cmd_port, MmiPort::Smi(_)) {
            let silent = enabled().filter(|buffer| !buffer.has_status_mailbox());
            silent.for_each(|buffer| ids.add(buffer.id()));
        }
        ids.iter().for_each(|id| self.run_at_notify(id, tpl));
    }
}

/// Warns about calls and moves that cannot work with the configured comm buffers.
fn warn_of_missing_buffers(config: &MmCommunicationConfiguration) {
    let ids = Ids::of(&config.comm_buffers);
    match (config.enable_comm_buffer_updates, config.updatable_buffer_id) {
        (true, Some(id)) if !ids.has(id) => log_line!(
            Warn,
            "mm_comm",
            "platform: updatable_buffer_id is {id}, which no comm buffer has; there are: {ids}. Calls through it fail until \
             a place for it is announced"
        ),
        (true, Some(_)) => {}
        (updates, id) => {
            if updates || id.is_some() {
                log_line!(
                    Warn,
                    "mm_comm",
                    "platform: no comm buffer will move: {} is not set",
                    if updates {
                        "updatable_buffer_id"
                    } else {
                        "enable_comm_buffer_updates"
                    }
                );
            }
            if ids.is_empty() {
                log_line!(
                    Error,
                    "mm_comm",
                    "platform: there is no comm buffer: every call will fail with NoCommBuffer. Add comm_buffers to \
                     MmCommunicationConfiguration, or the component MmHobConfiguration"
                );
            }
        }
    }
}

/// Warns about comm buffers in which a response cannot be distinguished from the request: an MMI
/// through ports reports nothing, and without a mailbox MM cannot report anything either.
fn warn_of_silence(config: &MmCommunicationConfiguration) {
    let ids = Ids::of_those(&config.comm_buffers, |buffer| !buffer.has_status_mailbox());
    if matches!(config.cmd_port, MmiPort::Smi(_)) && !ids.is_empty() {
        log_line!(
            Warn,
            "mm_comm",
            "platform: comm buffers {ids} have no status mailbox: a request that MM did not take looks as if it was answered \
             with its own bytes"
        );
    }
}

// A call that panics ends its transaction and restores the TPL during the unwinding; lists are not
// borrowed while other code runs.
impl<E: MmExecutor + UnwindSafe> UnwindSafe for MmCommunicator<E> {}
// No field refers to its own address.
impl<E: MmExecutor + Unpin> Unpin for MmCommunicator<E> {}

impl<E: MmExecutor + 'static> MmCommunication for MmCommunicator<E> {
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status> {
        let (mut bytes, mut failed) = (Vec::new(), None);
        self.communicate_with(id, data_buffer, recipient, CallOptions::new(), &mut |response| {
            if let Err(status) = response.read_to(&mut bytes) {
                failed = Some(status);
            }
        })?;
        failed.map_or(Ok(bytes), Err)
    }

    fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        self.client
            .communicate_with(id, message, recipient, options, take)
    }

    fn confirms(&self, id: u8) -> bool {
        let has_mailbox = |buffer: CommunicateBuffer| buffer.has_status_mailbox();
        !matches!(self.client.port(), Some(MmiPort::Smi(_))) || self.client.buffer(id).is_ok_and(has_mailbox)
    }

    fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        self.client.message_capacity(id, options)
    }

    fn after_calls(&self, callback: Rc<dyn Fn()>) -> Result<(), Status> {
        self.client.extras.make()?.after_calls.add(callback)
    }

    fn internals(&self, _: Sealed) -> Option<&dyn Any> {
        Some(&self.client)
    }
}

/// Refuses a component that sends through a comm buffer that does not exist. An implementation that
/// does not know its buffers is assumed to have it.
pub(crate) fn require_buffer(mm: &dyn MmCommunication, id: u8, user: &str) -> patina::error::Result<()> {
    match mm.message_capacity(id, CallOptions::new()) {
        // The previous log line lists the buffers that exist.
        Err(status @ (Status::CommBufferNotFound | Status::NoCommBuffer)) => {
            log_line!(
                Error,
                "mm_comm",
                "platform: {user} cannot work: comm buffer {id} does not exist"
            );
            Err(status.into())
        }
        _ => Ok(()),
    }
}

impl Default for MmCommunicator {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: MmExecutor + 'static> fmt::Debug for MmCommunicator<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writelncrlf!(f, "MM Communicator:")?;
        // One buffer at a time, so that the list is not borrowed while this prints.
        let mut index: usize = 0;
        loop {
            match self.client.look(|buffers| buffers.get(index).cloned()) {
                Ok(Some(buffer)) => writelncrlf!(f, "Comm Buffer: {buffer:?}")?,
                Ok(None) => break,
                Err(error) => {
                    writelncrlf!(f, "Comm Buffers: {error}")?;
                    break;
                }
            }
            index = index.saturating_add(1);
        }
        writelncrlf!(f, "MM Executor Set: {}", self.client.executor.is_some())
    }
}

#[cfg(test)]
mod tests {
    mod interrupted;

    use super::*;
    use crate::config::{CommunicateBufferStatus, HeaderFormat};
    use alloc::boxed::Box;
    use alloc::{format, vec};
    use core::cell::RefCell;
    use core::pin::Pin;
    use std::string::String;

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

    fn buffer(id: u8) -> CommunicateBuffer {
        let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
        CommunicateBuffer::new(Pin::new(memory), id)
    }

    fn communicator<E: MmExecutor>(executor: E, ids: &[u8]) -> &'static MmCommunicator<E> {
        let communicator = Box::leak(Box::new(MmCommunicator::with_executor(executor)));
        communicator
            .set_comm_buffers(ids.iter().map(|id| buffer(*id)).collect())
            .unwrap();
        communicator
    }

    /// Runs a closure instead of MM.
    struct Play<F>(F);

    impl<F: Fn(&mut CommunicateBuffer) -> Result<(), Status>> MmExecutor for Play<F> {
        fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
            (self.0)(comm_buffer)
        }
    }

    #[test]
    fn the_communicator_prints_itself_in_the_middle_of_a_call() {
        use std::cell::{Cell, RefCell};
        thread_local! {
            static OUTER: Cell<Option<&'static dyn fmt::Debug>> = const { Cell::new(None) };
            static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
        }
        let outer = communicator(
            Play(|_: &mut CommunicateBuffer| {
                TEXT.set(OUTER.get().map(|outer| format!("{outer:?}")).unwrap_or_default());
                Ok(())
            }),
            &[0],
        );
        OUTER.set(Some(outer));
        outer.communicate(0, b"secret", RECIPIENT.as_guid()).unwrap();
        let text = TEXT.take();
        assert!(text.contains("in_use: true"), "{text}");
        assert!(text.contains("MM Executor Set: true"), "{text}");
        assert!(!text.contains("115, 101, 99"), "{text}");
    }

    #[test]
    fn executors_error_is_the_callers_and_leaves_nothing_behind() {
        let failing = communicator(Play(|_: &mut CommunicateBuffer| Err(Status::SwMmiFailed)), &[0]);
        let handle = failing.client.buffer(0).unwrap();
        assert_eq!(
            failing.communicate(0, b"secret", RECIPIENT.as_guid()),
            Err(Status::SwMmiFailed)
        );
        let mut all = [0xff; 4096];
        assert!(handle.channel().region().read(0, &mut all));
        assert_eq!(all, [0; 4096]);
    }

    #[test]
    fn executor_responds_by_hand_with_any_length() {
        for response in [&b""[..], b"x", &[7; 4072]] {
            let by_hand = communicator(
                Play(move |buffer: &mut CommunicateBuffer| {
                    buffer.reset();
                    buffer
                        .set_message_info(RECIPIENT.as_guid())
                        .map_err(|_status| Status::CommBufferInitError)?;
                    buffer
                        .set_message(response)
                        .map_err(|_status| Status::CommBufferInitError)
                }),
                &[0],
            );
            assert_eq!(
                by_hand.communicate(0, b"request", RECIPIENT.as_guid()).as_deref(),
                Ok(response)
            );
        }
    }

    /// Responds to `request` by hand, in a call with this header.
    fn respond(
        header: HeaderFormat,
        by_hand: impl Fn(&mut CommunicateBuffer) -> Result<(), Status> + 'static,
    ) -> Result<Vec<u8>, Status> {
        let communicator = communicator(Play(by_hand), &[0]);
        let handle = communicator.client.buffer(0).unwrap();
        let options = CallOptions::new().with_header(header);
        let mut response = Ok(vec![]);
        communicator.communicate_with(0, b"request", RECIPIENT.as_guid(), options, &mut |reader| {
            response = reader.read_to_vec();
        })?;
        let mut all = [0xff; 4096];
        assert!(handle.channel().region().read(0, &mut all));
        assert_eq!(all, [0; 4096]);
        response
    }

    #[test]
    fn response_by_hand_is_trusted_as_in_the_published_crate() {
        let other = || Guid::from_string("00000000-0000-0000-0000-000000000001");
        for header in [HeaderFormat::V1, HeaderFormat::V3] {
            let usual = respond(header, |buffer| {
                buffer.reset();
                buffer.set_message_info(RECIPIENT.as_guid())?;
                Ok(buffer.set_message(b"response")?)
            });
            assert_eq!(usual, Ok(b"response".to_vec()));
            let for_another = respond(header, move |buffer| {
                buffer.set_message_info(other())?;
                Ok(buffer.set_message(b"other")?)
            });
            assert_eq!(for_another, Ok(b"other".to_vec()));
            let length_kept = respond(header, move |buffer| Ok(buffer.set_message_info(other())?));
            assert_eq!(length_kept, Ok(b"request".to_vec()));
            let only_reset = respond(header, |buffer| {
                buffer.reset();
                Ok(())
            });
            assert_eq!(only_reset, Ok(vec![]));
        }
    }

    #[test]
    fn executor_may_replace_the_buffer_that_it_was_lent() {
        let by_another = |message: &'static [u8]| {
            respond(HeaderFormat::V1, move |lent| {
                let mut other = buffer(7);
                if !message.is_empty() {
                    other.set_message_info(RECIPIENT.as_guid())?;
                    other.set_message(message)?;
                }
                *lent = other;
                Ok(())
            })
        };
        assert_eq!(by_another(b"elsewhere"), Ok(b"elsewhere".to_vec()));
        assert_eq!(by_another(b""), Ok(vec![]));
        let by_clone = respond(HeaderFormat::V1, |lent| {
            let mut clone = lent.clone();
            clone.set_message(b"clone")?;
            *lent = clone;
            Ok(())
        });
        assert_eq!(by_clone, Ok(b"clone".to_vec()));
        let damaged = respond(HeaderFormat::V1, |lent| {
            let other = buffer(7);
            assert!(other.channel().region().write(0, &[7; 24]));
            *lent = other;
            Ok(())
        });
        assert_eq!(damaged, Err(Status::InvalidResponse));
    }

    #[test]
    fn executors_question_mark_takes_errors_of_comm_buffers() {
        use CommunicateBufferStatus as Buffer;
        let too_large = respond(HeaderFormat::V1, |buffer| Ok(buffer.set_message(&[0; 5000])?));
        assert_eq!(too_large, Err(Status::CommBufferTooSmall));
        for (status, expected) in [
            (Buffer::TooSmallForHeader, Status::CommBufferTooSmall),
            (Buffer::InvalidRecipient, Status::InvalidResponse),
            (Buffer::NoBuffer, Status::CommBufferInitError),
            (Buffer::NotAligned, Status::CommBufferInitError),
            (Buffer::AddressValidationFailed, Status::CommBufferInitError),
        ] {
            assert_eq!(Status::from(status), expected);
        }
    }

    /// Another handle of a buffer in use cannot write.
    fn write_with_another_handle(mut other: CommunicateBuffer) {
        let refused = Err(CommunicateBufferStatus::NoBuffer);
        other.reset();
        assert_eq!(other.set_message_info(RECIPIENT.as_guid()), refused);
        assert_eq!(other.set_message(b"not MM's"), refused);
        assert_eq!(other.accept_in_place(3), refused);
        assert_eq!(other.set_comm_buffer_valid(), refused);
    }

    #[test]
    fn other_handles_neither_respond_in_mms_place_nor_wipe_a_request() {
        let shared = CommunicateBuffer::of_a_page(0);
        let (other, stale) = (shared.clone(), RefCell::new(None));
        let communicator = MmCommunicator::with_executor(Play(move |lent: &mut CommunicateBuffer| {
            write_with_another_handle(other.clone());
            // A handle that was lent for an earlier call.
            stale.take().into_iter().for_each(write_with_another_handle);
            stale.replace(Some(lent.clone()));
            let mut request = [0; 7];
            assert!(other.channel().region().read(24, &mut request));
            assert_eq!(&request, b"request");
            let refused = mm_wire::MailboxImage::answered(mm_wire::EfiStatus::ACCESS_DENIED, 0);
            other.channel().mailbox().unwrap().write(&refused);
            Ok(())
        }));
        communicator.set_comm_buffers(vec![shared]).unwrap();
        for _ in 0..3 {
            let denied = Status::MmReturned(patina::standard::efi::Status::ACCESS_DENIED);
            let response = communicator.communicate(0, b"request", RECIPIENT.as_guid());
            assert_eq!(response, Err(denied));
        }
    }

    #[test]
    fn disabled_buffer_does_not_hide_the_one_that_replaces_it() {
        let (mut old, new) = (buffer(4), buffer(4));
        old.disable();
        for buffers in [vec![old.clone(), new.clone()], vec![new.clone(), old.clone()]] {
            let echo = MmCommunicator::with_executor(Play(|_: &mut CommunicateBuffer| Ok(())));
            echo.set_comm_buffers(buffers).unwrap();
            assert_eq!(
                echo.communicate(4, b"x", RECIPIENT.as_guid()).as_deref(),
                Ok(&b"x"[..])
            );
        }
        let communicator = MmCommunicator::with_executor(Play(|_: &mut CommunicateBuffer| Ok(())));
        communicator.set_comm_buffers(vec![old.clone(), old]).unwrap();
        assert_eq!(
            communicator.communicate(4, b"x", RECIPIENT.as_guid()),
            Err(Status::CommBufferDisabled)
        );
    }

    #[test]
    fn a_refused_set_of_buffers_changes_nothing() {
        let communicator = communicator(Play(|_: &mut CommunicateBuffer| Ok(())), &[4]);
        communicator.set_test_comm_buffers(vec![buffer(1), buffer(1)]);
        assert_eq!(
            communicator.set_comm_buffers(vec![buffer(1), buffer(1)]),
            Err(ConfigurationError::DuplicateBufferId { id: 1 })
        );
        assert_eq!(
            communicator.communicate(4, b"x", RECIPIENT.as_guid()).as_deref(),
            Ok(&b"x"[..])
        );
    }

    #[test]
    fn buffers_that_interrupted_code_looks_at_are_not_replaced() {
        let communicator = communicator(Play(|_: &mut CommunicateBuffer| Ok(())), &[4]);
        let looking = communicator.client.buffers.look(|_| {
            let error = communicator.set_comm_buffers(vec![buffer(1)]).unwrap_err();
            communicator.set_test_comm_buffers(vec![buffer(1)]);
            error
        });
        let error = looking.unwrap();
        assert_eq!(error, ConfigurationError::BuffersBusy);
        assert_eq!(
            patina::error::EfiError::from(error),
            patina::error::EfiError::AlreadyStarted
        );
        assert_eq!(
            communicator.client.buffer(4).map(|buffer| buffer.id()).ok(),
            Some(4)
        );
    }

    #[test]
    fn calls_run_at_notify_only_where_other_code_could_damage_them() {
        use patina::component::service::uefi_services::tpl::{MockTplServices, PreviousTpl};
        let mut disabled = buffer(3);
        disabled.disable();
        let firmwares = CommunicateBuffer::of_a_page(4).shared_with_firmware();
        let buffers = vec![CommunicateBuffer::of_a_page(1), buffer(2), disabled, firmwares];
        for (cmd_port, expected) in [
            (MmiPort::Smi(0xb2), [false, true, false, true]),
            (MmiPort::Smc(0xc400_0041), [false, false, false, true]),
        ] {
            let mut tpl = MockTplServices::new();
            tpl.expect_raise_tpl()
                .returning(|_| PreviousTpl::from_raw(patina::standard::efi::TPL_APPLICATION));
            tpl.expect_restore_tpl().returning(drop);
            let tpl: Box<dyn TplServices> = Box::new(tpl);
            let communicator = MmCommunicator::new();
            let config = MmCommunicationConfiguration {
                cmd_port,
                comm_buffers: buffers.clone(),
                ..Default::default()
            };
            let tpl = Service::mock(tpl);
            communicator.keep_others_out(&config, Some(tpl));
            let at_notify = |id| communicator.client.runs_at_notify(id);
            assert_eq!([1, 2, 3, 4].map(at_notify), expected, "{cmd_port:?}");
            // The buffer that moves: one that is there already, and one that will be announced.
            for (id, is_awaited) in [(1, false), (9, true)] {
                let config = MmCommunicationConfiguration {
                    enable_comm_buffer_updates: true,
                    updatable_buffer_id: Some(id),
                    ..config.clone()
                };
                communicator.keep_others_out(&config, Some(tpl));
                assert_eq!(at_notify(id), is_awaited, "{id}");
            }
        }
    }

    #[test]
    fn success_confirms_unless_an_mmi_was_raised_for_a_buffer_without_mailbox() {
        let communicator = MmCommunicator::with_executor(Play(|_: &mut CommunicateBuffer| Ok(())));
        communicator
            .set_comm_buffers(vec![CommunicateBuffer::of_a_page(1), buffer(2)])
            .unwrap();
        for (port, expected) in [
            (MmiPort::Smi(0xb2), [true, false, false]),
            (MmiPort::Smc(0xc400_0041), [true, true, true]),
        ] {
            communicator.client.extras.make_or_abort().port.set(Some(port));
            let confirms = [1, 2, 3].map(|id| communicator.confirms(id));
            assert_eq!(confirms, expected, "{port:?}");
        }
    }

    #[test]
    fn first_mistake_of_a_call_is_the_error() {
        let answers = || Play(|_: &mut CommunicateBuffer| Ok(()));
        let with_buffer = communicator(answers(), &[0]);
        let without_buffer = communicator(answers(), &[]);
        let ask = |communicator: &MmCommunicator<_>, id, message: &[u8]| {
            communicator.communicate(id, message, RECIPIENT.as_guid()).err()
        };
        assert_eq!(ask(with_buffer, 0, b"x"), None);
        assert_eq!(ask(with_buffer, 1, b"x"), Some(Status::CommBufferNotFound));
        assert_eq!(ask(with_buffer, 1, b""), Some(Status::InvalidDataBuffer));
        assert_eq!(ask(without_buffer, 1, b"x"), Some(Status::NoCommBuffer));
        assert_eq!(ask(without_buffer, 1, b""), Some(Status::NoCommBuffer));
        assert_eq!(without_buffer.client.announced_id(), None);
        // The component was not dispatched.
        let idle = MmCommunicator::new();
        let ask = |id, message: &[u8]| idle.communicate(id, message, RECIPIENT.as_guid()).err();
        assert_eq!(ask(1, b"x"), Some(Status::NoCommBuffer));
        idle.set_test_comm_buffers(vec![buffer(0)]);
        assert_eq!(ask(1, b"x"), Some(Status::SwMmiServiceNotAvailable));
        assert_eq!(ask(1, b""), Some(Status::InvalidDataBuffer));
    }

    #[test]
    fn buffers_that_share_a_mailbox_are_beside_each_other() {
        let client = Client::default();
        assert_eq!(client.buffers.beside(0), None);
        let users = CommunicateBuffer::of_a_page(5);
        let supervisors = CommunicateBuffer::of_a_page(3)
            .with_shared_mailbox()
            .with_mailbox_of(&users)
            .unwrap();
        client
            .buffers
            .replace(vec![supervisors, buffer(4), users])
            .unwrap();
        let beside: Vec<_> = (2..7).map(|id| client.buffers.beside(id)).collect();
        assert_eq!(beside, [None, Some(5), None, Some(3), None]);
    }

    #[test]
    fn secure_calls_take_a_message_with_any_number_of_bytes_but_none() {
        let communicator = communicator(Play(|_: &mut CommunicateBuffer| Ok(())), &[0]);
        let port = &communicator.client.extras.make_or_abort().port;
        port.set(Some(MmiPort::Smc(0xc400_0041)));
        for (size, expected) in [(0, Err(Status::InvalidDataBuffer)), (1, Ok(())), (4, Ok(()))] {
            let options = CallOptions::new()
                .with_header(HeaderFormat::V3)
                .with_message_size(size);
            let sent = communicator.communicate_with(0, b"1234", RECIPIENT.as_guid(), options, &mut |_| {});
            assert_eq!(sent, expected, "{size}");
        }
    }

    #[test]
    fn v1_message_has_bytes_whatever_message_size_says() {
        let communicator = communicator(Play(|_: &mut CommunicateBuffer| Ok(())), &[0]);
        // Secure monitor calls do not carry messages without bytes.
        let port = &communicator.client.extras.make_or_abort().port;
        port.set(Some(MmiPort::Smc(0xc400_0041)));
        let ask = |header| {
            let options = CallOptions::new().with_header(header).with_message_size(0);
            communicator.communicate_with(0, b"x", RECIPIENT.as_guid(), options, &mut |_| {})
        };
        assert_eq!(ask(HeaderFormat::V3), Err(Status::InvalidDataBuffer));
        assert_eq!(ask(HeaderFormat::V1), Ok(()));
    }

    #[test]
    fn callbacks_run_after_one_of_them_has_panicked() {
        use std::cell::Cell;
        let communicator = communicator(Play(|_: &mut CommunicateBuffer| Ok(())), &[0]);
        let runs: &'static Cell<u32> = Box::leak(Box::new(Cell::new(0)));
        let callback = || {
            runs.set(runs.get() + 1);
            assert_ne!(runs.get(), 1, "a log sink may panic");
        };
        communicator.after_calls(Rc::new(callback)).unwrap();
        let call = || communicator.communicate(0, b"x", RECIPIENT.as_guid());
        assert!(std::panic::catch_unwind(core::panic::AssertUnwindSafe(call)).is_err());
        assert_eq!(call().as_deref(), Ok(&b"x"[..]));
        assert_eq!(runs.get(), 2);
    }

    #[test]
    fn before_dispatch_there_is_no_way_into_mm() {
        let communicator = MmCommunicator::new();
        assert_eq!(
            communicator.communicate(0, b"x", RECIPIENT.as_guid()),
            Err(Status::NoCommBuffer)
        );
        communicator.set_test_comm_buffers(vec![buffer(0)]);
        assert_eq!(
            communicator.communicate(0, b"", RECIPIENT.as_guid()),
            Err(Status::InvalidDataBuffer)
        );
        assert_eq!(
            communicator.communicate(0, b"x", RECIPIENT.as_guid()),
            Err(Status::SwMmiServiceNotAvailable)
        );
    }
}
