//! A simulated machine with the real components, and handlers in MM that a test writes.

use crate::Dispatcher;
use crate::clock::HostClock;
use crate::events::{HostEvents, SharedEvents};
use crate::protocols::{HostProtocols, SharedProtocols};
use crate::tap::Tap;
use crate::tpl::{HostTpl, SharedTpl};
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use mm_comm::{Ports as _, SmiEnable};
use mm_core::{CommBuffer, Handler, MmCore, Mmi, Registration, Request, SystemMemory};
use mm_sim::Config;
use mm_wire::{EfiStatus, Guid, Header, MailboxImage};
use patina::BinaryGuid;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::uefi_services::tpl::{Tpl, TplServices as _};
use patina::component::service::{IntoService, Service};
use patina::component::{IntoComponent, Storage, component};
use patina::error::EfiError;
use patina::standard::efi;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmiPort};
use patina_mm::service::MmCommunication;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// What a handler returns: the response's bytes, or the error with which it fails.
///
/// The error stays in MM, as in edk2's MM core: the component gets `EFI_NOT_FOUND` for each error.
/// A handler that wants to say more puts a status into its response.
pub type Reply = Result<Vec<u8>, EfiError>;

/// Pages of each comm buffer.
const BUFFER_PAGES: usize = 4;
/// The comm buffers' identifiers.
const BUFFERS: [u8; 2] = [0, 1];
/// Bytes of a message that the transcript shows.
const SHOWN: usize = 64;
/// The recipient of [`Machine::while_busy`].
const BUSY: BinaryGuid = BinaryGuid::from_string("a0a4f7f6-6c5d-4a38-8a5d-95a6b1c1e0b7");

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No handler takes it: `Status::MmReturned` with `EFI_NOT_FOUND`.
    NoHandler,
    /// MM never looks at it, and the component waits until its timeout: `Status::NotProcessed`.
    NotTaken,
    /// MM takes it only after the component has polled the mailbox this often. Up to the timeout
    /// (`MmCommunicationOptions::completion_polls`) that is not an error.
    Late {
        /// Number of polls.
        pauses: u32,
    },
    /// The response ends after this many bytes.
    Cut {
        /// Bytes of the response that are left.
        len: usize,
    },
    /// MM claims to have returned this many bytes, communicate header included:
    /// `Status::ResponseBelowHeader` or `Status::ResponseBeyondBuffer`, if that is impossible.
    Claims {
        /// The number that MM claims.
        bytes: u64,
    },
    /// MM returns this error in the status mailbox: `Status::MmReturned`.
    Returned(EfiError),
}

/// A request that reached MM, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The comm buffer.
    pub buffer: u8,
    /// The handler that it was for.
    pub recipient: BinaryGuid,
    /// The message.
    pub request: Vec<u8>,
    /// The response, or the status that MM returned; `None` if MM did not process the request.
    pub response: Option<Result<Vec<u8>, EfiError>>,
}

/// A simulated machine: see the [crate's documentation](crate).
///
/// It has comm buffers 0 and 1 with a status mailbox each, SMIs that are on, the services
/// `MmCommunication`, `SwMmiTrigger`, `ProtocolServices`, `EventServices`, `TplServices` and
/// `ArchTimerFunctionality`, and only the handlers that the test adds. If a test panics, it prints
/// its [`Self::transcript`].
pub struct Machine {
    inner: Rc<Inner>,
    /// Whether this is the test's own handle, which prints the transcript.
    is_owner: bool,
}

struct Inner {
    hardware: mm_sim::Machine,
    tap: Tap,
    dispatcher: RefCell<Dispatcher>,
    mm: Service<dyn MmCommunication>,
    protocols: &'static HostProtocols,
    events: &'static HostEvents,
    tpl: Rc<HostTpl>,
    mm_side: Rc<MmSide>,
}

/// The MM side.
struct MmSide {
    buffers: &'static [CommBuffer],
    core: RefCell<MmCore<'static>>,
    handlers: RefCell<Vec<(Guid, Box<dyn Handler>)>>,
    faults: RefCell<VecDeque<Fault>>,
    /// The fault of the current call.
    current: Cell<Option<Fault>>,
    exchanges: RefCell<Vec<Exchange>>,
    transcript: RefCell<Vec<String>>,
}

impl Machine {
    /// Switches a machine on, and dispatches the real `SwMmiManager` and `MmCommunicator`.
    ///
    /// # Panics
    ///
    /// Never: the machine has what both need.
    #[must_use]
    pub fn new() -> Self {
        let hardware = mm_sim::Machine::new(Config::default());
        match Self::on(&hardware) {
            Ok(machine) => machine,
            Err(why) => unreachable!("a simulated machine has what the components need: {why}"),
        }
    }

    fn on(hardware: &mm_sim::Machine) -> Result<Self, String> {
        let mut buffers = Vec::new();
        let mut comm_buffers = Vec::new();
        for id in BUFFERS {
            let buffer = hardware
                .allocate_buffer(BUFFER_PAGES, true)
                .map_err(|error| format!("{error}"))?;
            comm_buffers.push(configured(id, buffer)?);
            buffers.push(buffer);
        }
        let tap = Tap::new(Box::new(hardware.clone()));
        let protocols: &'static HostProtocols = Box::leak(Box::default());
        let tpl = Rc::new(HostTpl::default());
        let events: &'static HostEvents = Box::leak(Box::new(HostEvents::at(Rc::clone(&tpl))));
        let config = Config::default();
        let mut dispatcher = Dispatcher::new();
        let storage = dispatcher.storage();
        storage.add_config(MmCommunicationConfiguration {
            acpi_base: AcpiBase::Io(config.pm_base),
            cmd_port: MmiPort::Smi(config.command_port),
            data_port: MmiPort::Smi(config.data_port),
            comm_buffers,
            enable_comm_buffer_updates: false,
            updatable_buffer_id: None,
        });
        storage.add_service(SharedProtocols(protocols));
        storage.add_service(SharedEvents(events));
        storage.add_service(SharedTpl(Rc::clone(&tpl)));
        storage.add_service(HostClock::default());
        dispatcher.add(SwMmiManager::with_ports(tap.clone()));
        dispatcher.add(MmCommunicator::new());
        let found = Rc::new(Cell::new(None));
        dispatcher.add(Finder(Rc::clone(&found)));
        let outcome = dispatcher.run();
        let mm = found.take().ok_or_else(|| format!("{outcome:?}"))?;

        let mm_side = MmSide::new(hardware, buffers)?;
        let entered = Rc::clone(&mm_side);
        hardware.install_mm(move |memory, mmi| entered.enter(memory, mmi));
        hardware.close_mmram();
        let (ended, timing) = (Rc::clone(&mm_side), hardware.clone());
        mm.after_calls(Rc::new(move || {
            ended.current.set(None);
            if timing.is_smi_pending() {
                // MM was so late that the request was withdrawn.
                ended
                    .faults
                    .borrow_mut()
                    .pop_front_if(|fault| matches!(fault, Fault::Late { .. }));
                settle(&timing);
            }
            timing.set_latency(ended.latency());
        }))
        .map_err(|status| format!("{status}"))?;
        Ok(Self {
            inner: Rc::new(Inner {
                hardware: hardware.clone(),
                tap,
                dispatcher: RefCell::new(dispatcher),
                mm,
                protocols,
                events,
                tpl,
                mm_side,
            }),
            is_owner: true,
        })
    }

    /// Another handle, for code that runs later.
    fn handle(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
            is_owner: false,
        }
    }

    /// Adds a handler in MM: it gets the message, and returns the response.
    #[must_use]
    pub fn handler(self, recipient: BinaryGuid, mut handler: impl FnMut(&[u8]) -> Reply + 'static) -> Self {
        self.mm_handler(recipient, move |request: &mut Request<'_>| {
            let response = handler(request.message()).map_err(to_status)?;
            // If the response does not fit, the handler could not send it.
            request
                .respond(&response)
                .map_err(|_no_room| EfiStatus::BUFFER_TOO_SMALL)
        })
    }

    /// Adds a handler of [`mm_core`], such as its variable store or its supervisor.
    #[must_use]
    pub fn mm_handler(self, recipient: BinaryGuid, handler: impl Handler + 'static) -> Self {
        let recipient = Guid::from_bytes(*recipient.as_bytes());
        let mut handlers = self.inner.mm_side.handlers.borrow_mut();
        handlers.push((recipient, Box::new(handler)));
        drop(handlers);
        self
    }

    /// Adds a service for the component under test.
    #[must_use]
    pub fn service(self, service: impl IntoService + 'static) -> Self {
        self.storage(|storage| storage.add_service(service));
        self
    }

    /// Adds a configuration for the component under test. The next [`Self::dispatch`] locks it.
    #[must_use]
    pub fn config<C: Default + 'static>(self, config: C) -> Self {
        self.storage(|storage| storage.add_config(config));
        self
    }

    fn storage(&self, change: impl FnOnce(&mut Storage)) {
        change(self.inner.dispatcher.borrow_mut().storage());
    }

    /// Dispatches a component, and returns what its entry point returned.
    ///
    /// # Errors
    ///
    /// The component's own.
    ///
    /// # Panics
    ///
    /// If the component never ran, because a service or configuration that it names is missing, or
    /// if this is called in the middle of another component's entry point.
    #[track_caller]
    #[expect(clippy::panic, reason = "it fails the test, with what is missing")]
    pub fn dispatch<I>(&self, component: impl IntoComponent<I>) -> patina::error::Result<()> {
        let Ok(mut dispatcher) = self.inner.dispatcher.try_borrow_mut() else {
            panic!("a component is dispatched in the middle of another one's entry point");
        };
        dispatcher.add(component);
        let outcome = dispatcher.run();
        drop(dispatcher);
        settle(&self.inner.hardware);
        if let Some((name, missing)) = outcome.not_run.first() {
            panic!("{name} was not dispatched, it lacks: {missing}");
        }
        let said = |name: &Cow<'static, str>, what: &dyn fmt::Display| {
            self.inner
                .mm_side
                .say(format_args!("{name} was dispatched: {what}"));
        };
        outcome.succeeded.iter().for_each(|name| said(name, &"success"));
        match outcome.failed.into_iter().next() {
            Some((name, error)) => {
                said(&name, &format_args!("{error:?}"));
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// The service that components send messages with.
    #[must_use]
    pub fn mm(&self) -> Service<dyn MmCommunication> {
        self.inner.mm
    }

    /// Makes something go wrong with the next request; each further call with the one after.
    pub fn fault(&self, fault: Fault) {
        let mm_side = &self.inner.mm_side;
        mm_side.faults.borrow_mut().push_back(fault);
        self.inner.hardware.set_latency(mm_side.latency());
    }

    /// Switches the chipset's SMIs off or on: `Status::MmiNotRaised` while they are off.
    pub fn switch_smis(&self, on: bool) {
        let hardware = &self.inner.hardware;
        let apmc = SmiEnable::APMC.bits();
        let value = hardware.smi_enable();
        hardware.set_smi_enable(if on { value | apmc } else { value & !apmc });
        let now = if on { "on" } else { "off" };
        self.inner.mm_side.say(format_args!("SMIs are {now}"));
    }

    /// Runs code in the middle of the next call, like a notification that interrupts it: the
    /// request is in the comm buffer, and MM has not been entered.
    pub fn interrupt(&self, code: impl FnOnce(&Self) + 'static) {
        let machine = self.handle();
        self.inner.tap.before_next_write(Box::new(move || {
            machine.inner.mm_side.say(format_args!("the call is interrupted"));
            code(&machine);
        }));
    }

    /// Runs code while a comm buffer is in use: a call through it gives `Status::Busy`.
    ///
    /// # Panics
    ///
    /// If there is no such comm buffer, or SMIs are off.
    #[track_caller]
    #[expect(clippy::panic, reason = "it fails the test")]
    pub fn while_busy<T: 'static>(&self, buffer: u8, code: impl FnOnce(&Self) -> T + 'static) -> T {
        let result = Rc::new(Cell::new(None));
        let seen = Rc::clone(&result);
        self.interrupt(move |machine| seen.set(Some(code(machine))));
        let held = self.inner.mm.communicate(buffer, b"busy", BUSY.as_guid());
        match result.take() {
            Some(result) => result,
            None => panic!("comm buffer {buffer} cannot be held: {held:?}"),
        }
    }

    /// Signals all events of a group, such as ready to boot.
    pub fn signal(&self, group: BinaryGuid) {
        self.inner
            .mm_side
            .say(format_args!("event group {group:?} is signalled"));
        // A group that does not exist has no listener.
        let _ = self.inner.events.signal_group(group);
    }

    /// Installs a protocol without an interface, such as ready to lock.
    pub fn install_marker(&self, protocol: BinaryGuid) {
        self.inner
            .mm_side
            .say(format_args!("protocol {protocol:?} is installed"));
        // A new handle takes any protocol.
        let _ = self.inner.protocols.install_marker(None, protocol);
    }

    /// Runs code at a task priority level.
    pub fn at_tpl<T>(&self, tpl: Tpl, code: impl FnOnce() -> T) -> T {
        let before = self.inner.tpl.raise_tpl(tpl);
        let result = code();
        self.inner.tpl.restore_tpl(before);
        result
    }

    /// Runs code as a notification: at once, or as soon as the level is below `tpl`.
    pub fn notify(&self, tpl: Tpl, code: impl FnOnce(&Self) + 'static) {
        let machine = self.handle();
        self.inner.tpl.notify(tpl, Box::new(move || code(&machine)));
    }

    /// The protocols that components find.
    #[must_use]
    pub fn protocols(&self) -> &'static dyn ProtocolServices {
        self.inner.protocols
    }

    /// The events that components find.
    #[must_use]
    pub fn events(&self) -> &'static dyn EventServices {
        self.inner.events
    }

    /// The requests that reached MM so far, oldest first.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.inner.mm_side.exchanges.borrow().clone()
    }

    /// How many MMIs MM took.
    #[must_use]
    pub fn mmis(&self) -> usize {
        settle(&self.inner.hardware);
        self.inner.hardware.smis_taken()
    }

    /// Forgets the requests and the transcript so far. A test that makes very many requests then
    /// takes constant memory.
    pub fn forget(&self) {
        self.inner.mm_side.exchanges.borrow_mut().clear();
        self.inner.mm_side.transcript.borrow_mut().clear();
    }

    /// What happened, line by line.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.inner.mm_side.transcript.borrow().join("\n")
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("hardware", &self.inner.hardware)
            .finish_non_exhaustive()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.is_owner && std::thread::panicking() {
            std::eprintln!("what happened on the simulated machine:\n{}", self.transcript());
        }
    }
}

/// Takes an SMI that is still pending: no caller waits for an SMI without a message.
fn settle(hardware: &mm_sim::Machine) {
    hardware.set_latency(0);
    hardware.pause();
    hardware.set_latency(Config::default().latency);
}

/// Component: finds the service for the test.
struct Finder(Rc<Cell<Option<Service<dyn MmCommunication>>>>);

#[component]
impl Finder {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        self.0.set(Some(mm));
        Ok(())
    }
}

/// The client's side of a comm buffer.
fn configured(id: u8, buffer: CommBuffer) -> Result<CommunicateBuffer, String> {
    let len = usize::try_from(buffer.region.len()).map_err(|error| format!("{error}"))?;
    // SAFETY: the simulated machine allocated region and mailbox for this buffer, hands them out
    // once, and never frees them.
    unsafe { CommunicateBuffer::from_firmware_region(buffer.region.start(), len, id, buffer.mailbox) }
        .map_err(|status| format!("{status:?}"))
}

fn to_status(error: EfiError) -> EfiStatus {
    EfiStatus(efi::Status::from(error).as_usize() as u64)
}

fn to_error(status: EfiStatus) -> EfiError {
    usize::try_from(status.0)
        .map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
        .into()
}

impl MmSide {
    fn new(hardware: &mm_sim::Machine, buffers: Vec<CommBuffer>) -> Result<Rc<Self>, String> {
        let largest = buffers.iter().map(|buffer| buffer.region.len()).max();
        let scratch = alloc::vec![0; largest.and_then(|len| usize::try_from(len).ok()).unwrap_or(0)];
        let buffers: &'static [CommBuffer] = buffers.leak();
        let core =
            MmCore::new(&[hardware.mmram()], buffers, scratch.leak()).map_err(|error| format!("{error}"))?;
        Ok(Rc::new(Self {
            buffers,
            core: RefCell::new(core),
            handlers: RefCell::default(),
            faults: RefCell::default(),
            current: Cell::default(),
            exchanges: RefCell::default(),
            transcript: RefCell::default(),
        }))
    }

    fn say(&self, words: fmt::Arguments<'_>) {
        let mut transcript = self.transcript.borrow_mut();
        let number = transcript.len().saturating_add(1);
        transcript.push(format!("{number:>4}  {words}"));
    }

    /// After how many pauses the next MMI is taken.
    fn latency(&self) -> u32 {
        match self.faults.borrow().front() {
            Some(Fault::Late { pauses }) => *pauses,
            _ => Config::default().latency,
        }
    }

    /// Serves an MMI.
    fn enter(&self, memory: &mut dyn SystemMemory, mmi: Mmi) {
        let pending: Vec<_> = (BUFFERS.into_iter().zip(self.buffers))
            .filter_map(|(id, buffer)| Some((id, *buffer, staged(*buffer, memory)?)))
            .collect();
        if pending.is_empty() {
            self.say(format_args!(
                "MMI, command {:#04x}, data {:#04x}: no request",
                mmi.command, mmi.data
            ));
            return;
        }
        // A call has one fault, however many MMIs it raises. The machine's own calls have none.
        let is_held = pending
            .iter()
            .all(|(.., (header, _))| header.recipient().to_bytes() == *BUSY.as_bytes());
        if self.current.get().is_none() && !is_held {
            self.current.set(self.faults.borrow_mut().pop_front());
        }
        let fault = self.current.get();
        if fault == Some(Fault::NotTaken) {
            self.say(format_args!("MMI: MM does not look at the request"));
            pending
                .into_iter()
                .for_each(|(id, _, (header, request))| self.record(id, header, request, None));
            return;
        }
        let mut handlers = self.handlers.borrow_mut();
        let mut registered: Vec<Registration<'_>> = match fault {
            Some(Fault::NoHandler) => Vec::new(),
            _ => (handlers.iter_mut())
                .map(|(recipient, handler)| (*recipient, &mut **handler as &mut dyn Handler))
                .collect(),
        };
        self.core
            .borrow_mut()
            .enter(memory, mmi, &mut registered, &mut []);
        drop(registered);
        drop(handlers);
        for (id, buffer, (header, request)) in pending {
            spoil(buffer, header, fault, memory);
            let response = answered(buffer, header, memory);
            if header.recipient().to_bytes() != *BUSY.as_bytes() {
                self.record(id, header, request, response);
            }
        }
    }

    fn record(
        &self,
        buffer: u8,
        header: Header,
        request: Vec<u8>,
        response: Option<Result<Vec<u8>, EfiError>>,
    ) {
        let to = header.recipient();
        let sent = Shown(&request);
        match &response {
            None => self.say(format_args!("comm buffer {buffer}, {to}: {sent}, not processed")),
            Some(Ok(response)) => {
                let back = Shown(response);
                self.say(format_args!("comm buffer {buffer}, {to}: {sent} -> {back}"));
            }
            Some(Err(error)) => self.say(format_args!("comm buffer {buffer}, {to}: {sent} -> {error:?}")),
        }
        self.exchanges.borrow_mut().push(Exchange {
            buffer,
            recipient: BinaryGuid::from_bytes(&to.to_bytes()),
            request,
            response,
        });
    }
}

/// Reads bytes as MM does; `None` if there is no such memory.
fn read(memory: &mut dyn SystemMemory, address: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = alloc::vec![0; len];
    memory.read(address, &mut bytes).then_some(bytes)
}

fn mailbox(buffer: CommBuffer, memory: &mut dyn SystemMemory) -> Option<MailboxImage> {
    let bytes = read(memory, buffer.mailbox?, mm_wire::mailbox::MAILBOX_LEN)?;
    MailboxImage::read_from_bytes(&bytes).ok()
}

/// The request that a comm buffer announces.
fn staged(buffer: CommBuffer, memory: &mut dyn SystemMemory) -> Option<(Header, Vec<u8>)> {
    mailbox(buffer, memory).filter(MailboxImage::is_pending)?;
    let len = usize::try_from(buffer.region.len()).ok()?;
    let bytes = read(memory, buffer.region.start(), len)?;
    let header = Header::parse(&bytes).ok()?;
    let message = bytes.get(header.format().header_len()..)?;
    let len = usize::try_from(header.message_len()).ok()?;
    Some((header, message.get(..len)?.to_vec()))
}

/// Changes the response to what the fault asks for.
fn spoil(buffer: CommBuffer, header: Header, fault: Option<Fault>, memory: &mut dyn SystemMemory) {
    let (Some(image), Some(address)) = (mailbox(buffer, memory), buffer.mailbox) else {
        return;
    };
    let header_len = header.format().header_len() as u64;
    let (status, size) = (image.return_status(), image.return_buffer_size());
    let spoiled = match fault {
        Some(Fault::Cut { len }) => {
            MailboxImage::answered(status, size.min(header_len.saturating_add(len as u64)))
        }
        Some(Fault::Claims { bytes }) => MailboxImage::answered(status, bytes),
        Some(Fault::Returned(error)) => MailboxImage::answered(to_status(error), size),
        _ => return,
    };
    // The memory was read just now, so the write succeeds.
    let _ = memory.write(address, spoiled.as_bytes());
}

/// The response or status that the client finds.
fn answered(
    buffer: CommBuffer,
    header: Header,
    memory: &mut dyn SystemMemory,
) -> Option<Result<Vec<u8>, EfiError>> {
    let image = mailbox(buffer, memory)?;
    if image.is_pending() {
        return None;
    }
    if image.return_status() != EfiStatus::SUCCESS {
        return Some(Err(to_error(image.return_status())));
    }
    let header_len = header.format().header_len();
    let total = usize::try_from(image.return_buffer_size().min(buffer.region.len())).ok()?;
    let bytes = read(memory, buffer.region.start(), total)?;
    Some(Ok(bytes.get(header_len..).unwrap_or_default().to_vec()))
}

/// The start of a message.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..SHOWN).unwrap_or(self.0);
        let rest = if shown.len() < self.0.len() { " ..." } else { "" };
        write!(f, "{} bytes {shown:02x?}{rest}", self.0.len())
    }
}
