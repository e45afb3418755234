//! A machine with a runtime driver, in one of its lives.

mod c_abi;
pub(crate) mod firmware;
pub(crate) mod memory;
mod tap;

use c_abi::Addresses;
use firmware::Firmware;
use memory::Block;
use mm_comm::TriggerError;
use mm_comm::mailbox::Mailbox;
use mm_comm::{SmiCheck, SmiEnable, SmiEnableRegister};
use mm_conformance::lab::{
    Abilities, BootEvent, CCall, CProtocol, CReply, Call, Callback, Lab, LogLevel, Machine, MailboxSetup,
    Setup, SetupFailure, SupervisorCall, Update,
};
use mm_conformance::mm::ConformanceMm;
use mm_core::CommBuffer;
use mm_core::handlers::VariableStore;
use mm_runtime::{Configuration, InstallError, PortEntry, Silent, install};
use mm_sim::{Config, MAX_VARIABLE_LEN, VARIABLE_STORE_LEN};
use mm_wire::hob::CommBufferPlace;
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage, PAGE_LEN};
use patina_mm::component::communicator::Status;
use patina_mm::config::CommunicateBufferStatus;
use patina_mm::service::SupervisorError;
use r_efi::efi;
use std::rc::Rc;
use tap::Tap;

/// How far the operating system has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Boot services last.
    Boot,
    /// They have ended, and all memory is where it was. An operating system that never changes addresses stays here.
    Left,
    /// Everything is elsewhere.
    Moved,
    /// Only the comm buffer and its mailbox are elsewhere.
    BufferMoved,
    /// Only the driver's own memory is elsewhere.
    DriverMoved,
}

impl Life {
    pub(crate) const ALL: [Self; 5] = [
        Self::Boot,
        Self::Left,
        Self::Moved,
        Self::BufferMoved,
        Self::DriverMoved,
    ];

    pub(crate) const fn is_one_to_one(self) -> bool {
        matches!(self, Self::Boot | Self::Left)
    }
}

/// The lab for one life.
pub(crate) struct RuntimeLab(pub(crate) Life);

/// How far apart physical and virtual address of a caller's buffer are, when that is allowed.
const APART: usize = 1 << 40;

/// One driver, installed.
#[derive(Clone)]
pub(crate) struct RuntimeMachine(pub(crate) Rc<Parts>);

pub(crate) struct Parts {
    pub(crate) life: Life,
    pub(crate) firmware: Rc<Firmware>,
    pub(crate) machine: mm_sim::Machine,
    pub(crate) tap: Tap,
    pub(crate) buffer: Rc<Block>,
    pub(crate) mailbox: Option<Rc<Block>>,
}

/// A machine with MM, before a driver is installed on it.
pub(crate) fn power_on(life: Life, setup: &Setup) -> RuntimeMachine {
    let firmware = Firmware::boot();
    let machine = mm_sim::Machine::new(Config {
        latency: setup.latency,
        ..Config::default()
    });
    let first = &setup.buffers[0];
    let block = |pages: usize| {
        let block = firmware.allocate(pages);
        let outside = block.seen_from_outside();
        // Memory is as others left it.
        assert!(outside.write(0, &vec![0xff; outside.len()]));
        machine.add_ram(block.physical as u64, outside);
        block
    };
    let buffer = block(first.pages);
    let mailbox = (first.mailbox == MailboxSetup::OwnPage).then(|| block(1));
    let place = place(&buffer, mailbox.as_deref());
    let known = [CommBuffer {
        region: place.region(),
        mailbox: place.mailbox(),
    }];
    let scratch = vec![0; first.pages * PAGE_LEN].leak();
    let variables = VariableStore::new(vec![0; VARIABLE_STORE_LEN].leak(), MAX_VARIABLE_LEN);
    let mut mm = ConformanceMm::new(&[machine.mmram()], known.to_vec().leak(), scratch, variables).unwrap();
    machine.install_mm(move |memory, mmi| {
        mm.enter(memory, mmi);
    });
    machine.close_mmram();
    RuntimeMachine(Rc::new(Parts {
        life,
        firmware,
        tap: Tap::new(machine.clone()),
        machine,
        buffer,
        mailbox,
    }))
}

pub(crate) fn place(buffer: &Block, mailbox: Option<&Block>) -> CommBufferPlace {
    let pages = buffer.seen_from_outside().len() / PAGE_LEN;
    let mailbox = mailbox.map(|mailbox| mailbox.physical as u64);
    CommBufferPlace::new(buffer.physical as u64, pages as u64, mailbox).unwrap()
}

impl RuntimeMachine {
    pub(crate) fn install(&self, setup: &Setup) -> Result<(), InstallError> {
        self.install_with(setup, |configuration| configuration)
    }

    /// Installs a driver whose SMI_EN is memory-mapped, and whose page is to be marked.
    pub(crate) fn install_with_register(&self, smi_en: usize) -> Result<(), InstallError> {
        let parts = &*self.0;
        let mut trigger = parts.machine.trigger(SmiCheck::Require);
        trigger.smi_enable = Some(SmiEnableRegister::Mmio(smi_en));
        let entry = PortEntry {
            ports: parts.tap.clone(),
            trigger,
            command: 0xff,
            data: 0,
        };
        let configuration = Configuration {
            map_registers: true,
            ..Configuration::new(place(&parts.buffer, parts.mailbox.as_deref()))
        };
        // SAFETY: as in `install_with`.
        unsafe { install(parts.firmware.system_table(), &configuration, entry, Silent) }
    }

    pub(crate) fn install_with(
        &self,
        setup: &Setup,
        configure: impl Fn(Configuration) -> Configuration,
    ) -> Result<(), InstallError> {
        let Parts {
            firmware,
            machine,
            tap,
            buffer,
            mailbox,
            ..
        } = &*self.0;
        let check = match setup.enable_smis {
            true => SmiCheck::Enable,
            false => SmiCheck::Require,
        };
        let mut trigger = machine.trigger(check);
        if !setup.acpi_base {
            trigger.smi_enable = None;
        }
        let entry = PortEntry {
            ports: tap.clone(),
            trigger,
            command: setup.command_value.unwrap_or(0xff),
            data: setup.data_value,
        };
        let configuration = Configuration {
            completion_polls: setup.polls,
            ..Configuration::new(place(buffer, mailbox.as_deref()))
        };
        // SAFETY: the firmware's table; the comm buffer is for this alone, and no pointer in entry and sink is to memory that
        // moves.
        unsafe { install(firmware.system_table(), &configure(configuration), entry, Silent) }
    }

    /// Lets the operating system take over, as far as it comes in this life.
    pub(crate) fn live(&self) {
        let Parts {
            life,
            firmware,
            buffer,
            mailbox,
            ..
        } = &*self.0;
        if *life == Life::Boot {
            return;
        }
        firmware.exit_boot_services();
        let its_own = [
            Some(buffer.physical),
            mailbox.as_ref().map(|block| block.physical),
        ];
        let is_buffer = |block: &Block| its_own.contains(&Some(block.physical));
        match life {
            Life::Boot | Life::Left => {}
            Life::Moved => firmware.set_virtual_address_map(|_| true),
            Life::BufferMoved => firmware.set_virtual_address_map(is_buffer),
            Life::DriverMoved => firmware.set_virtual_address_map(|block| !is_buffer(block)),
        }
    }

    /// The addresses that a caller gives for a buffer of its own.
    fn addresses(&self, protocol: CProtocol, virt: usize) -> Addresses {
        let apart = matches!(protocol, CProtocol::TwoApart | CProtocol::ThreeApart);
        let physical = match virt {
            0 => 0,
            // C callers know both.
            virt if apart || !self.0.life.is_one_to_one() => virt + APART,
            virt => virt,
        };
        Addresses { physical, virt }
    }
}

impl Lab for RuntimeLab {
    fn abilities(&self) -> Abilities {
        Abilities::all()
            - Abilities::SECURE_CALLS
            - Abilities::NO_MM
            - Abilities::LOGS
            - Abilities::UPDATES
            - Abilities::HOBS
            - Abilities::FIRMWARE_PROTOCOLS
            - Abilities::EVENTS
            - Abilities::SUPERVISOR
            - Abilities::VARIABLE_DRIVER
    }

    fn bring_up(&self, setup: &Setup) -> Result<Box<dyn Machine>, SetupFailure> {
        let machine = power_on(self.0, setup);
        machine
            .install(setup)
            .map_err(|_error| SetupFailure::Impossible("the driver did not install its protocols"))?;
        machine.live();
        Ok(Box::new(machine))
    }

    fn adopt(&self, _: u64, _: usize, _: Option<u64>) -> Result<(), CommunicateBufferStatus> {
        Err(CommunicateBufferStatus::NoBuffer)
    }

    fn scratch(&self) -> u64 {
        0
    }

    fn many_calls(&self) -> u32 {
        10_000
    }

    fn with_log(&self, _: LogLevel, run: &mut dyn FnMut()) -> String {
        run();
        String::new()
    }
}

impl Machine for RuntimeMachine {
    /// Through protocol 2, with all the room that there is.
    fn communicate(&self, _: u8, message: &[u8], recipient: Guid) -> Result<Vec<u8>, Status> {
        let mut bytes = Header::new(HeaderFormat::V1, recipient, message.len() as u64)
            .map(|header| header.encode().as_ref().to_vec())
            .unwrap();
        bytes.extend_from_slice(message);
        let len = bytes.len().max(self.0.buffer.seen_from_outside().len());
        bytes.resize(len, 0);
        let call = CCall {
            protocol: CProtocol::Two,
            bytes: Some(bytes),
            comm_size: Some(len),
        };
        let reply = self.call_c(&call).ok_or(Status::Unsupported)?;
        match reply.status {
            EfiStatus::SUCCESS => Ok(reply.bytes[24..reply.comm_size.unwrap()].to_vec()),
            EfiStatus::ALREADY_STARTED => Err(Status::Busy),
            EfiStatus::BAD_BUFFER_SIZE if message.is_empty() => Err(Status::InvalidDataBuffer),
            EfiStatus::BAD_BUFFER_SIZE => Err(Status::CommBufferTooSmall),
            EfiStatus::NO_RESPONSE => Err(Status::NotProcessed),
            // C does not say why no MMI was raised.
            EfiStatus::NOT_READY => Err(Status::MmiNotRaised(TriggerError::NoPortIo)),
            EfiStatus::PROTOCOL_ERROR => Err(Status::InvalidResponse),
            status => Err(Status::MmReturned(efi::Status::from_usize(
                usize::try_from(status.0).unwrap(),
            ))),
        }
    }

    fn communicate_as(
        &self,
        _: Call,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
    ) -> Result<Vec<u8>, Status> {
        self.communicate(buffer, message, recipient)
    }

    fn communicate_around(
        &self,
        buffer: u8,
        message: &[u8],
        recipient: Guid,
        callback: Callback,
    ) -> Result<Vec<u8>, Status> {
        let inside = self.clone();
        self.0.tap.before_next_write(Box::new(move || callback(&inside)));
        self.communicate(buffer, message, recipient)
    }

    fn notify(&self, code: Callback) {
        let machine = self.clone();
        let code: Box<dyn FnOnce()> = Box::new(move || code(&machine));
        match self.0.life {
            Life::Boot => self.0.firmware.notify(efi::TPL_CALLBACK, code),
            // Notifications have ended with boot services; another processor does not wait.
            _ => code(),
        }
    }

    fn call_c(&self, call: &CCall) -> Option<CReply> {
        let interface = self.0.firmware.interface(c_abi::guid(call.protocol))?;
        if matches!(
            call.protocol,
            CProtocol::TwoInPlace(_) | CProtocol::ThreeInPlace(_)
        ) {
            let buffer = &self.0.buffer;
            let addresses = Addresses {
                physical: buffer.physical,
                virt: buffer.translate(buffer.physical)?,
            };
            return c_abi::call_in_place(interface, &buffer.seen_from_outside(), addresses, call);
        }
        let mut bytes = call.bytes.clone();
        let mut comm_size = call.comm_size;
        let virt = bytes
            .as_mut()
            .map_or(0, |bytes| bytes.as_mut_ptr().expose_provenance());
        let addresses = self.addresses(call.protocol, virt);
        let status = c_abi::call(interface, call.protocol, addresses, &mut comm_size);
        Some(CReply {
            status,
            bytes: bytes.unwrap_or_default(),
            comm_size,
        })
    }

    fn call_firmware_driver(&self, _: u8, _: &[u8], _: Guid) -> Result<Vec<u8>, EfiStatus> {
        Err(EfiStatus::UNSUPPORTED)
    }

    fn signal(&self, _: BootEvent) {}

    fn ask_supervisor(&self, _: &SupervisorCall) -> Result<Vec<u8>, SupervisorError> {
        Err(Status::Unsupported.into())
    }

    fn capacity(&self, _: u8) -> usize {
        self.0.buffer.seen_from_outside().len() - HeaderFormat::V1.header_len()
    }

    fn region(&self, _: u8) -> Vec<u8> {
        let outside = self.0.buffer.seen_from_outside();
        let mut bytes = vec![0; outside.len()];
        assert!(outside.read(0, &mut bytes));
        bytes
    }

    fn mailbox(&self, _: u8) -> Option<MailboxImage> {
        self.0.mailbox.as_deref().map(|block| seen(block).read())
    }

    fn write_mailbox(&self, _: u8, image: MailboxImage) {
        if let Some(block) = &self.0.mailbox {
            seen(block).write(&image);
        }
    }

    fn disable(&self, _: u8) {}

    fn port_writes(&self) -> Vec<(u16, u8)> {
        self.0.tap.writes()
    }

    fn ports(&self) -> (u16, u16) {
        (Config::default().command_port, Config::default().data_port)
    }

    fn switch_smis(&self, on: bool) {
        let smi_en = self.0.machine.smi_enable() & !SmiEnable::APMC.bits();
        let bit = if on { SmiEnable::APMC.bits() } else { 0 };
        self.0.machine.set_smi_enable(smi_en | bit);
    }

    fn lock_smis(&self, locked: bool) {
        self.0.tap.lock(locked);
    }

    fn smis_are_on(&self) -> bool {
        SmiEnable::from_bits_truncate(self.0.machine.smi_enable()).is_all()
    }

    fn platform_control_calls(&self) -> u32 {
        0
    }

    fn announce(&self, _: Update) {}

    fn describe(&self) -> String {
        String::new()
    }

    fn describe_buffers(&self) -> Vec<String> {
        Vec::new()
    }

    fn mm_report(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The mailbox in a block, as MM sees it.
fn seen(block: &Block) -> Mailbox {
    // SAFETY: the block's outside view, which stays.
    unsafe { Mailbox::new(block.seen_from_outside().as_ptr()) }.unwrap()
}
