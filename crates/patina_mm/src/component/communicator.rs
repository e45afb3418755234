//! Carries messages to MM handlers and their answers back.

mod after_calls;
mod announced_move;
mod client;
mod executor;
mod failure;
mod ids;
#[cfg(any(test, feature = "mockall"))]
mod mock;
mod request;
mod requested_move;
mod response;
mod status;
mod tag;
mod tpl;

pub(crate) use client::Sealed;
#[cfg(test)]
pub(crate) use client::{Client, State};
#[cfg(any(test, feature = "mockall"))]
pub use executor::MockMmExecutor;
pub use executor::{MmExecutor, RealMmExecutor};
#[cfg(any(test, feature = "mockall"))]
pub use mock::MockMmCommunication;
pub use request::MmCommunicationExt;
pub use response::ResponseReader;
pub use status::Status;
pub(crate) use status::error_of;
pub(crate) use tpl::{Raised, raise_to_notify};

use crate::config::{
    CommunicateBuffer, ConfigurationError, HeaderFormat, MmCommunicationConfiguration,
    MmCommunicationOptions, MmiPort, check_buffers,
};
use crate::service::SwMmiTrigger;
use alloc::rc::Rc;
use alloc::vec::Vec;
#[cfg(not(test))]
use client::{Client, State};
use core::fmt;
use core::panic::UnwindSafe;
use ids::Ids;
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::uefi_services::tpl::TplServices;
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use patina::{Guid, writelncrlf};
use tag::{CallTag, Clock};

/// How one call is made. The default is what the comm buffer says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// The communicate header; `None` for the comm buffer's own, see [`CommunicateBuffer::with_header`].
    pub header: Option<HeaderFormat>,
    /// What a v3 header says in MessageSize: how much of the message is meant to be read, where its end is room for the
    /// response. `None` for all of it. A v1 header has no such field.
    pub message_size: Option<u64>,
    /// Whether the message may be empty: a handler may need no more than its GUID. MM that is entered by secure monitor calls
    /// takes no empty message even then, like edk2's driver for it.
    pub may_be_empty: bool,
}

impl CallOptions {
    /// What the comm buffer says.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            header: None,
            message_size: None,
            may_be_empty: false,
        }
    }

    /// Has the message carry this header.
    #[must_use]
    pub const fn with_header(self, header: HeaderFormat) -> Self {
        Self {
            header: Some(header),
            ..self
        }
    }

    /// Has a v3 header say this in MessageSize.
    #[must_use]
    pub const fn with_message_size(self, message_size: u64) -> Self {
        Self {
            message_size: Some(message_size),
            ..self
        }
    }

    /// Sends an empty message, too.
    #[must_use]
    pub const fn with_empty_message(self) -> Self {
        Self {
            may_be_empty: true,
            ..self
        }
    }
}

/// Sends messages to MM handlers.
///
/// An implementation needs [`Self::communicate`] only; the provided methods then copy what it returns. Those of
/// [`MmCommunicator`] do without that copy, and without an allocation of their own. [`MmCommunicationExt`] adds calls whose request
/// and response are types.
pub trait MmCommunication {
    /// Sends `data_buffer` to the handler `recipient` through the comm buffer `id` and returns exactly the bytes that it
    /// answered, which may be shorter or longer than the request.
    ///
    /// If MM is entered through x86 ports and the comm buffer has no status mailbox, the client cannot see whether a
    /// handler, or MM at all, took the message: then `data_buffer` itself comes back, as `Ok`. [`MmCommunicator`] warns
    /// of such buffers when it is dispatched. A handler whose response always differs from its request avoids this.
    ///
    /// # Errors
    ///
    /// Each [`Status`] is one cause, and says whose fault it is. Afterwards, as after success, neither request nor response
    /// stands in the comm buffer.
    ///
    /// # Example
    ///
    /// ```
    /// use patina::{BinaryGuid, Guid, component::service::Service};
    /// use patina_mm::service::MmCommunication;
    ///
    /// const ECHO: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");
    ///
    /// fn ask(mm: Service<dyn MmCommunication>) -> patina::error::Result<Vec<u8>> {
    ///     Ok(mm.communicate(0, b"anybody there?", Guid::from_ref(&ECHO))?)
    /// }
    /// ```
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status>;

    /// As [`Self::communicate`], with the response copied to the start of `out`; returns its length in bytes.
    ///
    /// [`MmCommunicator`] allocates nothing here, but where an announced move of a comm buffer is put into effect first.
    ///
    /// # Errors
    ///
    /// As [`Self::communicate`], and [`Status::ResponseTooLong`] where `out` is too short. MM has done what it was asked
    /// for by then, and the response is gone.
    fn communicate_into(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        out: &mut [u8],
    ) -> Result<usize, Status> {
        let mut result = Ok(0);
        self.communicate_with(id, message, recipient, CallOptions::new(), &mut |response| {
            result = response.read_rest(out);
        })?;
        result
    }

    /// As [`Self::communicate`], with the response lent to `take`, which is called once, and only where there is a response.
    ///
    /// [`MmCommunicator`] allocates nothing here, as in [`Self::communicate_into`].
    ///
    /// While `take` runs, the response still stands in the comm buffer: another call through this buffer gives
    /// [`Status::Busy`].
    ///
    /// # Errors
    ///
    /// As [`Self::communicate`], and [`Status::Unsupported`] where `options` asks an implementation for more than it has.
    ///
    /// # Example
    ///
    /// ```
    /// use patina::{BinaryGuid, Guid};
    /// use patina_mm::component::communicator::{CallOptions, Status};
    /// use patina_mm::config::HeaderFormat;
    /// use patina_mm::service::MmCommunication;
    ///
    /// const ECHO: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");
    ///
    /// /// Adds up a response of any length, with 16 bytes of memory.
    /// fn sum(mm: &dyn MmCommunication, message: &[u8]) -> Result<u64, Status> {
    ///     let mut sum = 0;
    ///     let v3 = CallOptions::new().with_header(HeaderFormat::V3);
    ///     mm.communicate_with(0, message, Guid::from_ref(&ECHO), v3, &mut |response| {
    ///         let mut chunk = [0; 16];
    ///         while response.remaining() > 0 {
    ///             sum += response.read(&mut chunk).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    ///         }
    ///     })?;
    ///     Ok(sum)
    /// }
    /// ```
    fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        if options.header.is_some_and(|header| header != HeaderFormat::V1) {
            return Err(Status::Unsupported);
        }
        let response = self.communicate(id, message, recipient)?;
        take(&mut ResponseReader::copied(&response, CallTag::of_buffer(id)));
        Ok(())
    }

    /// How many message bytes fit into the comm buffer `id` behind the header that `options` asks for.
    ///
    /// # Errors
    ///
    /// [`Status::CommBufferNotFound`], [`Status::CommBufferDisabled`], or [`Status::Unsupported`] where an implementation
    /// does not know.
    fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        let _ = (id, options);
        Err(Status::Unsupported)
    }

    /// Whether success of a call through the comm buffer `id` shows that MM took the message. Not so if MM is entered through
    /// x86 ports and the buffer has no status mailbox.
    fn confirms(&self, id: u8) -> bool {
        let _ = id;
        true
    }

    /// Registers `call` to run after every completed call, when its comm buffer is free again; calls rejected with
    /// [`Status::Busy`] do not count. For callers that got [`Status::Busy`] in a notification and cannot wait there.
    ///
    /// It runs at the caller's TPL, before the caller has its result. For a driver in C that is `TPL_NOTIFY`, before the
    /// response is written back; what `call` sends through C's protocols is rejected there.
    ///
    /// `call` may send. It does not run again for what is sent while it runs, unless another call was rejected with
    /// [`Status::Busy`] meanwhile.
    ///
    /// # Errors
    ///
    /// [`Status::Unsupported`] if an implementation does not know when its calls end.
    fn after_calls(&self, call: Rc<dyn Fn()>) -> Result<(), Status> {
        let _ = call;
        Err(Status::Unsupported)
    }

    /// What only this crate's components need of [`MmCommunicator`]: a platform without them does not link it.
    #[doc(hidden)]
    fn client(&self, _: Sealed) -> Option<Client<'_>> {
        None
    }
}

/// Component and service: carries messages through the configured comm buffers.
///
/// As a component it waits for the locked [`MmCommunicationConfiguration`], for [`SwMmiTrigger`] and for the SDK's
/// `ProtocolServices`, then offers [`MmCommunication`]. With another executor it is made and registered by hand:
///
/// ```
/// use patina_mm::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
/// use patina_mm::config::CommunicateBuffer;
/// use std::pin::Pin;
///
/// /// Plays a handler that answers every message with its length.
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
    state: State,
    executor: Option<E>,
}

impl<E: MmExecutor + 'static> MmCommunicator<E> {
    /// Makes a communicator that enters MM through `executor`. It has no comm buffer yet.
    #[must_use]
    pub fn with_executor(executor: E) -> Self {
        Self {
            state: State::default(),
            executor: Some(executor),
        }
    }

    /// The same, without the executor's type.
    fn as_client(&self) -> Client<'_> {
        let executor = self.executor.as_ref();
        Client {
            state: &self.state,
            executor: executor.map(|executor| -> &dyn MmExecutor { executor }),
        }
    }

    /// Replaces the comm buffers.
    ///
    /// # Errors
    ///
    /// [`ConfigurationError::DuplicateBufferId`], [`ConfigurationError::SharedMemory`], and
    /// [`ConfigurationError::BuffersBusy`] where the code that this call interrupted is looking at them; the buffers stay
    /// as they were.
    pub fn set_comm_buffers(&self, buffers: Vec<CommunicateBuffer>) -> Result<(), ConfigurationError> {
        check_buffers(&buffers)?;
        let Ok(mut current) = self.state.buffers.try_borrow_mut() else {
            return Err(ConfigurationError::BuffersBusy);
        };
        let one_mailbox = buffers.iter().find_map(|first| {
            let second = buffers.iter().find(|second| first.shares_mailbox_with(second))?;
            Some([first.id(), second.id()])
        });
        self.state.one_mailbox.set(one_mailbox);
        let former = core::mem::replace(&mut *current, buffers);
        drop(current);
        drop(former);
        Ok(())
    }

    /// Replaces the comm buffers; a set that [`Self::set_comm_buffers`] refuses is logged and changes nothing.
    pub fn set_test_comm_buffers(&self, buffers: Vec<CommunicateBuffer>) {
        if let Err(error) = self.set_comm_buffers(buffers) {
            log::error!(target: "mm_comm", "the comm buffers stay as they were: {error}");
        }
    }

    /// Like [`MmCommunication::communicate_with`], for a message with a v1 header that has MM move comm buffers to `to`, through
    /// the one of them whose identifier is `id`. `take` says whether they moved; then `to` takes the place of the buffers with
    /// the same identifiers.
    ///
    /// MM answers in the new place or, if it refuses, in the old one. The message must be such that no response is the same as
    /// the message. A move that the platform announces meanwhile is put into effect afterwards; a call through a buffer that
    /// moves gets [`Status::Busy`] until then.
    ///
    /// MM may move a buffer and then refuse the rest. Then `take` is lent the refusal, and what has moved is used in its new
    /// place with its old mailbox.
    ///
    /// # Errors
    ///
    /// As [`MmCommunication::communicate`]; [`Status::Busy`] if one of the buffers that are to move is in use, or is being moved
    /// by a call that this one interrupted; [`Status::InvalidDataBuffer`] if `to` shares memory with a buffer of now, or the
    /// buffer `id` has no status mailbox in its old or its new place, [`Status::CommBufferDisabled`] if one of `to` is
    /// disabled, and [`Status::CommBufferNotFound`] if `id` is not among them.
    pub fn communicate_and_move(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        to: &[CommunicateBuffer],
        take: &mut dyn FnMut(&mut ResponseReader<'_>) -> bool,
    ) -> Result<(), Status> {
        self.as_client()
            .communicate_and_move(id, message, recipient, to, take)
    }

    /// Makes calls through the comm buffer `id` run at `TPL_NOTIFY`, so that no notification interrupts one to make another one
    /// through the same buffer, and gets [`Status::Busy`]. For buffers that are shared with callers that cannot handle that. What
    /// is lent to the closure of [`MmCommunication::communicate_with`] is then read at that level, too.
    ///
    /// A move of the buffer, announced or requested, runs at `TPL_NOTIFY`, too. A caller above that stays at its level. Called
    /// once more for the same buffer, this replaces `tpl`.
    ///
    /// # Errors
    ///
    /// [`Status::Busy`] in the middle of another call of this function.
    pub fn run_at_notify(&self, id: u8, tpl: Service<dyn TplServices>) -> Result<(), Status> {
        self.state.run_at_notify(id, tpl)
    }
}

#[component]
impl MmCommunicator {
    /// Makes the component. Until it is dispatched it has neither comm buffers nor a way into MM.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::default(),
            executor: None,
        }
    }

    fn entry_point(
        mut self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        trigger: Service<dyn SwMmiTrigger>,
        protocols: Service<dyn ProtocolServices>,
        (tpl, clock): (Option<Service<dyn TplServices>>, Option<Clock>),
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        self.set_comm_buffers(config.comm_buffers.clone())
            .inspect_err(|error| log::error!(target: "mm_comm", "no MM communication: {error}"))?;
        self.executor = Some(RealMmExecutor::with_options(trigger, *options));
        self.state.by_secure_calls = matches!(config.cmd_port, MmiPort::Smc(_));
        self.state.enters_by_ports = matches!(config.cmd_port, MmiPort::Smi(_));
        self.state.clock = clock;
        self.keep_others_out(&config, tpl);
        if config.enable_comm_buffer_updates
            && let Some(id) = config.updatable_buffer_id
        {
            let updates = announced_move::Pending::about(id).ok_or(EfiError::OutOfResources)?;
            updates.watch(&protocols).inspect_err(|error| {
                log::error!(target: "mm_comm", "no MM communication: updates cannot be watched: {error:?}");
            })?;
            self.state.updates = Some(updates);
        }
        log::info!(target: "mm_comm", "{}", config.summary());
        warn_of_missing_buffers(&config);
        warn_of_silence(&config);
        commands.add_service(self);
        Ok(())
    }
}

impl MmCommunicator {
    /// Makes calls run at `TPL_NOTIFY` if what a notification does in the middle of one would spoil it:
    ///
    /// - The firmware's own MM driver may use the buffer, too. That driver is not re-entrant and would overwrite the request.
    /// - The buffer has no status mailbox: each MMI that other code raises before the response is read makes MM take
    ///   what is in the buffer for a request once more.
    fn keep_others_out(
        &mut self,
        config: &MmCommunicationConfiguration,
        tpl: Option<Service<dyn TplServices>>,
    ) {
        let enabled = || config.comm_buffers.iter().filter(|buffer| buffer.is_enabled());
        let shared = enabled().filter(|buffer| buffer.is_shared_with_firmware());
        let mut shared: Vec<u8> = shared.map(CommunicateBuffer::id).collect();
        if let Some(id) = config
            .updatable_buffer_id
            .filter(|_| config.enable_comm_buffer_updates)
            && !enabled().any(|buffer| buffer.id() == id)
        {
            // The driver that will announce it may use it.
            shared.push(id);
        }
        let Some(tpl) = tpl else {
            if !shared.is_empty() {
                log::warn!(
                    target: "mm_comm",
                    "platform: there are no TplServices: a notification that calls the firmware's MM driver in the middle of a \
                     call through comm buffers {shared:?} will overwrite the request"
                );
            }
            return;
        };
        let through_ports = matches!(config.cmd_port, MmiPort::Smi(_));
        let silent = enabled().filter(|buffer| through_ports && !buffer.has_status_mailbox());
        let ids = shared.into_iter().chain(silent.map(CommunicateBuffer::id));
        self.state.at_notify.get_mut().extend(ids.map(|id| (id, tpl)));
    }
}

/// Says which calls and moves cannot work with the comm buffers that there are.
fn warn_of_missing_buffers(config: &MmCommunicationConfiguration) {
    let ids = Ids::of(&config.comm_buffers);
    match (config.enable_comm_buffer_updates, config.updatable_buffer_id) {
        (true, Some(id)) if !ids.has(id) => log::warn!(
            target: "mm_comm",
            "platform: updatable_buffer_id is {id}, and no comm buffer has this identifier; {ids}. Calls through it fail \
             until a place for it is announced"
        ),
        (true, Some(_)) | (false, None) => {}
        (true, None) => log::warn!(
            target: "mm_comm",
            "platform: enable_comm_buffer_updates is set, but updatable_buffer_id is None: no comm buffer will move"
        ),
        (false, Some(id)) => log::warn!(
            target: "mm_comm",
            "platform: updatable_buffer_id is {id}, but enable_comm_buffer_updates is not set: no comm buffer will move"
        ),
    }
    let may_come = config.enable_comm_buffer_updates && config.updatable_buffer_id.is_some();
    if config.comm_buffers.is_empty() && !may_come {
        log::error!(
            target: "mm_comm",
            "platform: MmCommunicationConfiguration has no comm buffer: every call will fail with NoCommBuffer. Add \
             comm_buffers, or the component MmHobConfiguration"
        );
    }
}

/// Says which comm buffers cannot tell a response from none: an MMI through ports reports nothing, and where there is no
/// mailbox MM has nowhere to.
fn warn_of_silence(config: &MmCommunicationConfiguration) {
    let without = config
        .comm_buffers
        .iter()
        .filter(|buffer| !buffer.has_status_mailbox());
    let ids: Vec<u8> = without.map(CommunicateBuffer::id).collect();
    if matches!(config.cmd_port, MmiPort::Smi(_)) && !ids.is_empty() {
        log::warn!(
            target: "mm_comm",
            "platform: comm buffers {ids:?} have no status mailbox: a request that no handler took, or MM never saw, will \
             look as if it was answered with its own bytes"
        );
    }
}

// A call that panics ends its transaction, and lowers the TPL, on its way out; no borrow of a list outlives a look at it.
impl<E: MmExecutor + UnwindSafe> UnwindSafe for MmCommunicator<E> {}
// The executor is the only part of it that a pin could matter to.
impl<E: MmExecutor + Unpin> Unpin for MmCommunicator<E> {}

impl<E: MmExecutor + 'static> MmCommunication for MmCommunicator<E> {
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status> {
        let mut result = Ok(Vec::new());
        self.communicate_with(id, data_buffer, recipient, CallOptions::new(), &mut |response| {
            result = response.read_to_vec();
        })?;
        result
    }

    fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        self.as_client()
            .communicate_with(id, message, recipient, options, take)
    }

    fn confirms(&self, id: u8) -> bool {
        let has_mailbox = |buffer: CommunicateBuffer| buffer.has_status_mailbox();
        !self.state.enters_by_ports || self.state.buffer(id).is_ok_and(has_mailbox)
    }

    fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        self.as_client().message_capacity(id, options)
    }

    fn after_calls(&self, call: Rc<dyn Fn()>) -> Result<(), Status> {
        self.state.after_calls.add(call)
    }

    fn client(&self, _: Sealed) -> Option<Client<'_>> {
        Some(self.as_client())
    }
}

/// Refuses a component that sends through a comm buffer that does not exist. An implementation that does not tell is
/// believed to have it.
pub(crate) fn require_buffer(mm: &dyn MmCommunication, id: u8, user: &str) -> patina::error::Result<()> {
    match mm.message_capacity(id, CallOptions::new()) {
        // The line before this one lists those that there are.
        Err(status @ (Status::CommBufferNotFound | Status::NoCommBuffer)) => {
            log::error!(target: "mm_comm", "platform: {user} cannot work: comm buffer {id} does not exist");
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
        // One after the other, so that nothing is borrowed while it prints.
        let mut index: usize = 0;
        loop {
            match self.state.look(|buffers| buffers.get(index).cloned()) {
                Ok(Some(buffer)) => writelncrlf!(f, "Comm Buffer: {buffer:?}")?,
                Ok(None) => break,
                Err(error) => {
                    writelncrlf!(f, "Comm Buffers: {error}")?;
                    break;
                }
            }
            index = index.saturating_add(1);
        }
        writelncrlf!(f, "MM Executor Set: {}", self.executor.is_some())
    }
}

#[cfg(test)]
mod tests {
    mod interrupted;

    use super::*;
    use crate::config::CommunicateBufferStatus;
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

    /// Runs a closure in MM's place.
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
    fn an_executors_error_is_the_callers_and_nothing_stays_behind() {
        let failing = communicator(Play(|_: &mut CommunicateBuffer| Err(Status::SwMmiFailed)), &[0]);
        let handle = failing.state.buffer(0).unwrap();
        assert_eq!(
            failing.communicate(0, b"secret", RECIPIENT.as_guid()),
            Err(Status::SwMmiFailed)
        );
        let mut all = [0xff; 4096];
        assert!(handle.channel().region().read(0, &mut all));
        assert_eq!(all, [0; 4096]);
    }

    #[test]
    fn an_executor_answers_by_hand_with_any_length() {
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
        let handle = communicator.state.buffer(0).unwrap();
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
    fn executor_may_put_another_buffer_in_the_place_of_the_one_it_was_lent() {
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

    /// What another handle of a buffer in use is told by the functions that write.
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
            // One that was lent for an earlier call.
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
        let looking = communicator.state.buffers.borrow();
        let error = communicator.set_comm_buffers(vec![buffer(1)]).unwrap_err();
        communicator.set_test_comm_buffers(vec![buffer(1)]);
        drop(looking);
        assert_eq!(error, ConfigurationError::BuffersBusy);
        assert_eq!(
            patina::error::EfiError::from(error),
            patina::error::EfiError::AlreadyStarted
        );
        assert_eq!(
            communicator.state.buffer(4).map(|buffer| buffer.id()).ok(),
            Some(4)
        );
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
