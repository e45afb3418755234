//! One client, and what an observer sees of the machine around it.

use super::bring_up::install_ready_to_lock;
use super::components::event_group;
use super::moves::OUT_OF_MEMORY;
use super::observed::{Observed, Place};
#[cfg(doc)]
use super::{Abilities, Setup};
use super::{
    BootEvent, CCall, CProtocol, CReply, Call, Callback, ResponseTo, Site, SupervisorCall, Update, project_mu,
};
use crate::edk2::VariableSmmRuntimeDxe;
use crate::mm::Release;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mm_comm::mailbox::Mailbox;
use mm_comm::{Ports, SmiEnable, TriggerError};
use mm_core::CommBuffer;
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage};
use patina::component::service::Service;
use patina::component::service::uefi_services::tpl::Tpl;
use patina_mm::component::communicator::{CallOptions, MmCommunicator, Status};
use patina_mm::service::{MmCommunication, MmCommunicationExt, MmSupervisor, SupervisorError};
use patina_mm_test::tap::Tap;
use patina_mm_test::tpl::HostTpl;

/// One client that has come up, and what an observer sees of the machine around it. Clones are the
/// same client.
#[derive(Clone)]
pub struct Client(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) site: Rc<dyn Site>,
    pub(super) tap: Tap,
    pub(super) sender: Sender,
    pub(super) buffers: RefCell<Vec<Observed>>,
    pub(super) control_calls: Rc<Cell<u32>>,
    /// Where the buffers were when the client came up.
    pub(super) first_places: Vec<(u8, Place)>,
    pub(super) updatable: Option<u8>,
    pub(super) supervisor: Option<Service<dyn MmSupervisor>>,
    pub(super) serves_like: Option<Release>,
    pub(super) tpl: Rc<HostTpl>,
    pub(super) variable_driver: Option<VariableSmmRuntimeDxe>,
}

/// What carries the client's messages.
pub(super) enum Sender {
    /// Patina's components.
    Components(Service<dyn MmCommunication>),
    /// The site's own driver, through protocol 2.
    Driver,
}

impl Client {
    /// Sends a message and waits for the response.
    ///
    /// # Errors
    ///
    /// The client's own error.
    pub fn communicate(&self, buffer: u8, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status> {
        match &self.0.sender {
            Sender::Components(mm) => {
                mm.communicate(buffer, message, patina::Guid::from_bytes(&recipient.to_bytes()))
            }
            Sender::Driver => self.communicate_in_c(buffer, message, recipient),
        }
    }

    /// Sends a message through protocol 2, with as much room for the response as the comm buffer
    /// has.
    fn communicate_in_c(&self, buffer: u8, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status> {
        const HEADER_LEN: usize = HeaderFormat::V1.header_len();
        let header = Header::new(HeaderFormat::V1, recipient, message.len() as u64);
        let header = header.ok_or(Status::InvalidRecipient)?;
        let mut bytes = [header.encode().as_ref(), message].concat();
        let room = self.capacity(buffer) + HEADER_LEN;
        bytes.resize(bytes.len().max(room), 0);
        let call = CCall {
            protocol: CProtocol::Two,
            comm_size: Some(bytes.len()),
            bytes: Some(bytes),
        };
        let mut reply = self.call_c(&call).ok_or(Status::Unsupported)?;
        match reply.status {
            EfiStatus::SUCCESS => {
                reply.bytes.truncate(reply.comm_size.unwrap_or(0));
                Ok(reply.bytes.split_off(HEADER_LEN.min(reply.bytes.len())))
            }
            EfiStatus::ALREADY_STARTED => Err(Status::Busy),
            EfiStatus::BAD_BUFFER_SIZE if message.is_empty() => Err(Status::InvalidDataBuffer),
            EfiStatus::BAD_BUFFER_SIZE => Err(Status::CommBufferTooSmall),
            EfiStatus::NO_RESPONSE => Err(Status::NotProcessed),
            // The status for C does not say why no MMI was raised.
            EfiStatus::NOT_READY => Err(Status::MmiNotRaised(TriggerError::NoPortIo)),
            EfiStatus::PROTOCOL_ERROR => Err(Status::InvalidResponse),
            status => Err(Status::MmReturned(crate::scenarios::efi_status(status))),
        }
    }

    /// Like [`Self::communicate`], but sends in another way. The site's own driver knows only one.
    ///
    /// # Errors
    ///
    /// The client's own error.
    pub fn communicate_as(
        &self,
        call: Call,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, Status> {
        let Sender::Components(mm) = &self.0.sender else {
            return self.communicate(buffer, message, recipient);
        };
        let recipient = patina::Guid::from_bytes(&recipient.to_bytes());
        let options = call.header.map_or(CallOptions::new(), |header| {
            CallOptions::new().with_header(header)
        });
        match call.response {
            ResponseTo::Allocation => mm.communicate(buffer, message, recipient),
            ResponseTo::Slice(room) => {
                let mut out = alloc::vec![0; room];
                mm.communicate_into(buffer, message, recipient, &mut out)
                    .map(|len| out.drain(..len).collect())
            }
            ResponseTo::Closure(step) => {
                let mut response = Vec::new();
                let mut chunk = alloc::vec![0; step];
                mm.communicate_with(buffer, message, recipient, options, &mut |reader| {
                    while reader.remaining() > 0 {
                        response.extend_from_slice(reader.read(&mut chunk));
                    }
                })
                .map(|()| response)
            }
            ResponseTo::Type16 => mm
                .request_with(buffer, message, recipient, options)
                .map(|response: [u8; 16]| response.to_vec()),
        }
    }

    /// Like [`Self::communicate`], but runs `callback` once in the middle of the call: the request
    /// is in the buffer, MM has not been entered. Needs [`Abilities::CALLBACKS`].
    ///
    /// # Errors
    ///
    /// The error of the outer call.
    pub fn communicate_around(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
        callback: Callback,
    ) -> Result<Vec<u8>, Status> {
        let inside = self.clone();
        let code = Box::new(move || callback(&inside));
        match self.0.site.secure_calls() {
            Some(calls) => calls.before_next_request(code),
            None => self.0.tap.before_next_write(code),
        }
        self.communicate(buffer, message, recipient)
    }

    /// Runs `code` as a notification at `TPL_CALLBACK`: at once, or as soon as the TPL is below
    /// that. Needs [`Abilities::CALLBACKS`].
    pub fn notify(&self, code: Callback) {
        let client = self.clone();
        let code = Box::new(move || code(&client));
        self.0.site.notify(&self.0.tpl, code);
    }

    /// Like [`Self::notify`], at another task priority level.
    pub fn notify_at(&self, level: Tpl, code: Callback) {
        let client = self.clone();
        self.0.tpl.notify(level, Box::new(move || code(&client)));
    }

    /// The service that the client offers; `None` if it is the site's own driver.
    #[must_use]
    pub fn service(&self) -> Option<&dyn MmCommunication> {
        match &self.0.sender {
            Sender::Components(mm) => Some(**mm),
            Sender::Driver => None,
        }
    }

    /// Where a comm buffer and its mailbox are.
    #[must_use]
    pub fn comm_buffer(&self, buffer: u8) -> Option<CommBuffer> {
        self.with_buffer(buffer, Observed::comm_buffer).flatten()
    }

    /// The markers that edk2's variable driver has found, in order, and the result of its first
    /// call with the first one. Empty without [`Setup::variable_driver`].
    #[must_use]
    pub fn variable_driver(&self) -> Vec<(Guid, Option<CReply>)> {
        let driver = self.0.variable_driver.as_ref();
        driver.map(VariableSmmRuntimeDxe::seen).unwrap_or_default()
    }

    /// Starts Project Mu's MmDxeSupport: it moves both comm buffers, announces the users' alone,
    /// and from then on sends the boot's events to the supervisor. Its MMIs are not counted. Needs
    /// [`Abilities::SUPERVISOR`] and [`Abilities::UPDATES`].
    ///
    /// # Errors
    ///
    /// [`Status::NotProcessed`] if it does not start.
    pub fn start_project_mus_driver(&self) -> Result<(), Status> {
        project_mu::start_driver(self).ok_or(Status::NotProcessed)
    }

    /// Calls one of the protocols for C; `None` if it is not installed. Needs
    /// [`Abilities::PRODUCED_PROTOCOLS`].
    #[must_use]
    pub fn call_c(&self, call: &CCall) -> Option<CReply> {
        match call.protocol {
            CProtocol::TwoInPlace(id) | CProtocol::ThreeInPlace(id) => self
                .with_buffer(id, |buffer| self.0.site.call_c(call, Some(&buffer.region)))
                .flatten(),
            _ => self.0.site.call_c(call, None),
        }
    }

    /// Sends a message as the firmware's own driver for this comm buffer does. Needs
    /// [`Abilities::PORTS`] and [`Abilities::MAILBOX`].
    ///
    /// edk2, `ProcessCommunicationBuffer` in
    /// StandaloneMmPkg/Drivers/MmCommunicationDxe/MmCommunicationDxe.c: the driver does not check
    /// whether its buffer is in use, trusts that the trigger returns after MM, and leaves the
    /// message behind.
    ///
    /// # Errors
    ///
    /// The status that the driver's function returns.
    pub fn call_firmware_driver(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, EfiStatus> {
        let header = Header::new(HeaderFormat::V1, recipient, message.len() as u64);
        let sent = [
            header.ok_or(EfiStatus::INVALID_PARAMETER)?.encode().as_ref(),
            message,
        ]
        .concat();
        self.with_buffer(buffer, |buffer| {
            let mailbox = buffer.mailbox.as_ref()?;
            let announced = buffer.region.write(0, &sent) && mailbox.region().write(0, &[1]);
            let (command, data) = self.ports();
            self.0.tap.write_u8(data, 0);
            self.0.tap.write_u8(command, 0);
            (0..16).for_each(|_| self.0.tap.pause());
            let result = mailbox.read();
            let len = usize::try_from(result.return_buffer_size()).ok()?;
            let mut received = alloc::vec![0; len];
            let copied = buffer.region.read(0, &mut received) && mailbox.region().write(0, &[0]);
            (announced && copied).then_some(())?;
            Some(match result.return_status() {
                EfiStatus::SUCCESS => Ok(received.split_off(len.min(24))),
                status => Err(status),
            })
        })
        .flatten()
        .unwrap_or(Err(EfiStatus::UNSUPPORTED))
    }

    /// Signals an event of the boot. Needs [`Abilities::EVENTS`].
    pub fn signal(&self, event: BootEvent) {
        let Some(group) = event_group(event) else {
            return install_ready_to_lock(&*self.0.site);
        };
        let signalled = self.0.site.events().map(|events| events.signal_group(group));
        if signalled != Some(Ok(())) {
            log::error!("{event:?} was not signalled: {signalled:?}");
        }
    }

    /// Sends a request through the MM supervisor's client. Needs [`Abilities::SUPERVISOR`].
    ///
    /// # Errors
    ///
    /// The client's own error.
    pub fn ask_supervisor(&self, call: &SupervisorCall) -> Result<Vec<u8>, SupervisorError> {
        let supervisor = self.0.supervisor.as_ref().ok_or(Status::Unsupported)?;
        match call {
            SupervisorCall::Version => supervisor.version().map(|version| {
                let level = version.max_request_level.get().to_le_bytes();
                let fields = [version.version.to_bytes(), version.patch_level.to_bytes()];
                [fields.concat().as_slice(), level.get(..4).unwrap_or_default()].concat()
            }),
            SupervisorCall::Unblock(memory) => {
                supervisor.unblock_memory(&(*memory).into()).map(|()| Vec::new())
            }
            SupervisorCall::Move(to) => self.move_both(**supervisor, *to),
            SupervisorCall::MoveMixedUp => {
                let [Some(own), Some(users)] = [self.fresh(0, 4), self.fresh(1, 4)] else {
                    return Err(OUT_OF_MEMORY.into());
                };
                supervisor
                    .move_comm_buffers(users.handle, own.handle)
                    .map(|()| Vec::new())
            }
            SupervisorCall::Policy(room) => {
                let mut out = alloc::vec![0xee; *room];
                supervisor
                    .fetch_policy(&mut out)
                    .map(|len| out.drain(..len).collect())
            }
        }
    }

    pub(super) fn with_buffer<T>(&self, id: u8, look: impl FnOnce(&Observed) -> T) -> Option<T> {
        let buffers = self.0.buffers.borrow();
        buffers.iter().find(|buffer| buffer.id == id).map(look)
    }

    /// How many bytes a message through this buffer can have.
    #[must_use]
    pub fn capacity(&self, buffer: u8) -> usize {
        let header = HeaderFormat::V1.header_len();
        self.with_buffer(buffer, |buffer| buffer.region.len() - header)
            .unwrap_or(0)
    }

    /// Copies the whole comm buffer, as any bus master sees it.
    #[must_use]
    pub fn region(&self, buffer: u8) -> Vec<u8> {
        self.with_buffer(buffer, |buffer| {
            let mut copy = alloc::vec![0; buffer.region.len()];
            if !buffer.region.read(0, &mut copy) {
                copy.clear();
            }
            copy
        })
        .unwrap_or_default()
    }

    /// Copies the mailbox; `None` if the buffer has none.
    #[must_use]
    pub fn mailbox(&self, buffer: u8) -> Option<MailboxImage> {
        self.with_buffer(buffer, |buffer| buffer.mailbox.as_ref().map(Mailbox::read))
            .flatten()
    }

    /// Writes the mailbox, like other code would.
    pub fn write_mailbox(&self, buffer: u8, image: MailboxImage) {
        self.with_buffer(buffer, |buffer| {
            buffer.mailbox.as_ref().map(|mailbox| mailbox.write(&image))
        });
    }

    /// Takes a buffer out of use through one clone of its handle.
    pub fn disable(&self, buffer: u8) {
        self.with_buffer(buffer, |buffer| buffer.handle.clone().disable());
    }

    /// What was written to I/O ports, byte by byte, since the client came up.
    #[must_use]
    pub fn port_writes(&self) -> Vec<(u16, u8)> {
        self.0.tap.writes()
    }

    /// The machine's command port and data port.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        self.0.site.mmi_ports()
    }

    /// How many MMIs the client has raised: its writes to the command port, or its secure monitor
    /// calls.
    #[must_use]
    pub fn mmis(&self) -> usize {
        if let Some(calls) = self.0.site.secure_calls() {
            return calls.requests();
        }
        let (command, _) = self.ports();
        let writes = self.0.tap.writes();
        writes.iter().filter(|(port, _)| *port == command).count()
    }

    /// The same, and counts from 0 again.
    #[must_use]
    pub fn take_mmis(&self) -> usize {
        let mmis = self.mmis();
        drop(self.0.tap.take_writes());
        if let Some(calls) = self.0.site.secure_calls() {
            calls.forget_requests();
        }
        mmis
    }

    fn smi_en(&self) -> u16 {
        self.0.site.pm_base() + 0x30
    }

    /// Switches SMIs at the chipset. Needs [`Abilities::SMI_SWITCH`].
    pub fn switch_smis(&self, on: bool) {
        let others = self.0.tap.read_u32(self.smi_en()) & !SmiEnable::APMC.bits();
        let bit = if on { SmiEnable::APMC.bits() } else { 0 };
        self.0.tap.write_u32(self.smi_en(), others | bit);
    }

    /// Makes the chipset ignore writes to SMI_EN, or take them again. Needs
    /// [`Abilities::SMI_SWITCH`].
    pub fn lock_smis(&self, locked: bool) {
        self.0.tap.lock(locked.then(|| self.smi_en()));
    }

    /// Whether SMIs are on at the chipset. Needs [`Abilities::SMI_SWITCH`].
    #[must_use]
    pub fn smis_are_on(&self) -> bool {
        SmiEnable::from_bits_truncate(self.0.tap.read_u32(self.smi_en())).is_all()
    }

    /// How often the platform's hook was called.
    #[must_use]
    pub fn platform_control_calls(&self) -> u32 {
        self.0.control_calls.get()
    }

    /// Announces another place for the updatable buffer. Needs [`Abilities::UPDATES`].
    pub fn announce(&self, update: Update) {
        if let Err(failure) = self.move_buffer(update) {
            log::error!("the update could not be announced: {failure}");
        }
    }

    /// The debug output of a communicator with the client's comm buffers.
    #[must_use]
    pub fn describe(&self) -> String {
        // The client's own communicator is behind its service, which cannot be printed. So this
        // prints another communicator with the same buffers.
        let like = MmCommunicator::new();
        let buffers = self.0.buffers.borrow();
        like.set_test_comm_buffers(buffers.iter().map(|buffer| buffer.handle.clone()).collect());
        alloc::format!("{like:?}")
    }

    /// The comm buffers in words, a line each.
    #[must_use]
    pub fn describe_buffers(&self) -> Vec<String> {
        let describe = |buffer: &Observed| {
            let mailbox = match &buffer.mailbox {
                Some(mailbox) => alloc::format!("mailbox at {:p}", mailbox.region().as_ptr()),
                None => String::from("no mailbox"),
            };
            let (id, len, at) = (buffer.id, buffer.region.len(), buffer.region.as_ptr());
            alloc::format!("comm buffer {id} {len} bytes at {at:p}, {mailbox}")
        };
        self.0.buffers.borrow().iter().map(describe).collect()
    }

    /// MM's report of what it did at the last MMI, line by line; empty if the MM side is not ours.
    #[must_use]
    pub fn mm_report(&self) -> Vec<String> {
        self.0.site.mm_report()
    }
}
