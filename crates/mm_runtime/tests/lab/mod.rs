//! A machine with a runtime driver, in one of its lives, as a site for the suite.

pub(crate) mod beside;
pub(crate) mod firmware;
pub(crate) mod memory;
pub(crate) mod secure;

use aarch64_monitor::Interface;
use firmware::Firmware;
use memory::Block;
use mm_comm::{Ports, SharedRegion, SmiCheck, SmiEnableRegister, smc};
use mm_conformance::c_abi::{self, Addresses};
use mm_conformance::lab::{CCall, CProtocol, CReply, SecureCalls};
use mm_conformance::sim::SimSite;
use mm_conformance::{Abilities, Lab, Setup, SetupFailure, Site};
use mm_core::CommBuffer;
use mm_runtime::{Configuration, InstallError, PortEntry, SecureEntry, Sink, install};
use mm_wire::hob::CommBufferPlace;
use mm_wire::{EfiStatus, PAGE_LEN};
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::tap::Tap;
use patina_mm_test::tpl::HostTpl;
use r_efi::efi;
use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::rc::Rc;

/// How far the operating system has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Boot services are available.
    Boot,
    /// Boot services have ended, and no memory has moved. An operating system that never changes
    /// addresses stays here.
    Left,
    /// All memory has moved.
    Moved,
    /// Only the comm buffer and its mailbox have moved.
    BufferMoved,
    /// Only the driver's own memory has moved.
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

/// How MM is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By x86 ports, on the simulated machine.
    Ports,
    /// By secure monitor calls.
    Secure(Interface),
}

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A driver's log, which is kept while it is recorded.
pub(crate) struct Lines;

impl Lines {
    /// The lines of this thread's drivers while `run` runs.
    pub(crate) fn record(run: impl FnOnce()) -> Vec<String> {
        LINES.set(Some(Vec::new()));
        run();
        LINES.take().unwrap()
    }

    fn add(line: fmt::Arguments<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(line.to_string());
            }
        });
    }
}

impl Sink for Lines {
    fn error(&self, line: fmt::Arguments<'_>) {
        Self::add(line);
    }

    fn trace(&self, line: fmt::Arguments<'_>) {
        Self::add(line);
    }

    fn note(&self, line: fmt::Arguments<'_>) {
        Self::add(line);
    }
}

/// How far apart physical and virtual address of a caller's buffer are, when that is allowed.
const APART: usize = 1 << 40;

/// A machine with MM, on which one driver can be installed.
#[derive(Clone)]
pub(crate) struct RuntimeMachine(pub(crate) Rc<Parts>);

pub(crate) struct Parts {
    pub(crate) life: Life,
    pub(crate) way: Way,
    pub(crate) firmware: Rc<Firmware>,
    pub(crate) machine: mm_sim::Machine,
    pub(crate) tap: Tap,
    pub(crate) buffer: Rc<Block>,
    pub(crate) mailbox: Option<Rc<Block>>,
}

/// A machine with MM, which knows one comm buffer, before a driver is installed on it.
pub(crate) fn power_on(life: Life) -> RuntimeMachine {
    let site = RuntimeSite::new(life, Way::Ports);
    let [buffer, mailbox] = [4, 1].map(|pages| site.block(pages));
    let tap = Tap::new(site.ports());
    let machine = site.machine(tap, buffer, Some(mailbox));
    site.tell_mm(&[machine.comm_buffer()]).unwrap();
    machine
}

/// A machine with a secure world, which knows one comm buffer, before a driver is installed on it.
pub(crate) fn power_on_secure(life: Life, interface: Interface) -> RuntimeMachine {
    let site = RuntimeSite::new(life, Way::Secure(interface));
    let buffer = site.block(4);
    secure::switch_on(interface, &buffer);
    site.machine(Tap::new(site.ports()), buffer, None)
}

/// The comm buffer in these blocks.
pub(crate) fn place(buffer: &Block, mailbox: Option<&Block>) -> CommBufferPlace {
    let pages = buffer.seen_from_outside().len() / PAGE_LEN;
    let mailbox = mailbox.map(|mailbox| mailbox.physical as u64);
    CommBufferPlace::new(buffer.physical as u64, pages as u64, mailbox).unwrap()
}

impl RuntimeMachine {
    pub(crate) fn install(&self, setup: &Setup) -> Result<(), InstallError> {
        self.install_with(setup, |configuration| configuration)
    }

    /// Installs a driver whose SMI_EN is memory-mapped, and marks its page as runtime memory.
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
            ..Configuration::new(self.place())
        };
        // SAFETY: the firmware's table; the comm buffer is for this driver alone, and no pointer in
        // entry and sink is to memory that moves.
        unsafe { install(parts.firmware.system_table(), &configuration, entry, Lines) }
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
            way,
            ..
        } = &*self.0;
        let configuration = configure(Configuration {
            completion_polls: setup.polls,
            ..Configuration::new(self.place())
        });
        let system_table = firmware.system_table();
        if let Way::Secure(_) = way {
            let connection = smc::connect::<secure::InProcess>(smc::Setup::default(), &mut secure::two_pages);
            let entry = SecureEntry::new(connection.unwrap());
            // SAFETY: the firmware's table; the comm buffer is for this driver alone, and neither
            // entry nor sink has a pointer.
            return unsafe { install(system_table, &configuration, entry, Lines) };
        }
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
        // SAFETY: the firmware's table; the comm buffer is for this driver alone, and no pointer in
        // entry and sink is to memory that moves.
        unsafe { install(system_table, &configuration, entry, Lines) }
    }

    /// The driver's comm buffer.
    pub(crate) fn place(&self) -> CommBufferPlace {
        place(&self.0.buffer, self.0.mailbox.as_deref())
    }

    fn comm_buffer(&self) -> CommBuffer {
        let place = self.place();
        CommBuffer {
            region: place.region(),
            mailbox: place.mailbox(),
        }
    }

    /// Makes a call of protocol 2 from another thread. To be called after `ExitBootServices`: boot
    /// services are this thread's.
    pub(crate) fn caller_on_another_processor(&self, bytes: &[u8]) -> impl FnOnce() -> EfiStatus + use<> {
        let call = CCall {
            protocol: CProtocol::Two,
            bytes: Some(bytes.to_vec()),
            comm_size: Some(bytes.len()),
        };
        let guid = efi::Guid::from_bytes(c_abi::guid(call.protocol).as_bytes());
        let interface = self.0.firmware.interface(guid).unwrap();
        let there = move || {
            let interface = ptr::with_exposed_provenance::<c_void>(interface);
            let reply = c_abi::elsewhere(&call, |virt, comm_size| {
                let addresses = Addresses { physical: virt, virt };
                // SAFETY: the driver's interface of this protocol, which may be called on any
                // processor. The buffer is as long as `comm_size` says.
                unsafe { c_abi::invoke(interface, call.protocol, addresses, comm_size) }
            });
            reply.status
        };
        || std::thread::spawn(there).join().unwrap()
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

    /// Calls one of the protocols. The caller's bytes are in the comm buffer if `in_place`.
    fn call(&self, call: &CCall, in_place: bool) -> Option<CReply> {
        let guid = efi::Guid::from_bytes(c_abi::guid(call.protocol).as_bytes());
        let interface = self.0.firmware.interface(guid)?;
        let interface = ptr::with_exposed_provenance::<c_void>(interface);
        let pointer = ptr::with_exposed_provenance_mut::<c_void>;
        let invoke = |addresses, comm_size: &mut Option<usize>| {
            // SAFETY: the driver's interface of this protocol. The buffer is null, or as long as
            // its header or `comm_size` says; the driver checks both.
            unsafe { c_abi::invoke(interface, call.protocol, addresses, comm_size) }
        };
        if !in_place {
            return Some(c_abi::elsewhere(call, |virt, comm_size| {
                invoke(self.addresses(call.protocol, virt), comm_size)
            }));
        }
        let buffer = &self.0.buffer;
        let addresses = Addresses {
            physical: pointer(buffer.physical),
            virt: pointer(buffer.translate(buffer.physical)?),
        };
        c_abi::in_place(&buffer.seen_from_outside(), call, |comm_size| {
            invoke(addresses, comm_size)
        })
    }

    pub(crate) fn call_c(&self, call: &CCall) -> Option<CReply> {
        self.call(call, false)
    }

    /// The addresses that a caller gives for its own buffer.
    fn addresses(&self, protocol: CProtocol, virt: *mut c_void) -> Addresses {
        let apart = matches!(protocol, CProtocol::TwoApart | CProtocol::ThreeApart);
        let physical = match virt.is_null() {
            // C callers give both addresses.
            false if apart || !self.0.life.is_one_to_one() => virt.wrapping_byte_add(APART),
            _ => virt,
        };
        Addresses { physical, virt }
    }

    /// How many MMIs the driver has raised.
    pub(crate) fn mmis(&self) -> usize {
        let command = mm_sim::Config::default().command_port;
        let writes = self.0.tap.writes();
        writes.iter().filter(|(port, _)| *port == command).count()
    }
}

/// The simulated machine with a firmware, which installs a runtime driver for each client.
pub(crate) struct RuntimeSite {
    life: Life,
    way: Way,
    sim: SimSite,
    firmware: RefCell<Rc<Firmware>>,
    /// Memory of the client that is up.
    blocks: RefCell<Vec<Rc<Block>>>,
    installed: RefCell<Option<RuntimeMachine>>,
}

impl RuntimeSite {
    fn new(life: Life, way: Way) -> Self {
        Self {
            life,
            way,
            sim: SimSite::new(),
            firmware: RefCell::new(Firmware::boot()),
            blocks: RefCell::default(),
            installed: RefCell::default(),
        }
    }

    /// Opens a lab for one life.
    pub(crate) fn lab(life: Life, way: Way) -> Lab {
        Lab::new(Self::new(life, way)).unwrap()
    }

    /// Runtime memory that MM reaches.
    fn block(&self, pages: usize) -> Rc<Block> {
        let block = self.firmware.borrow().allocate(pages);
        make_stale(&block.seen_from_outside());
        self.sim
            .machine()
            .add_ram(block.physical as u64, block.seen_from_outside());
        self.blocks.borrow_mut().push(Rc::clone(&block));
        block
    }

    /// The block that starts at this physical address.
    fn block_at(&self, physical: u64) -> Option<Rc<Block>> {
        let blocks = self.blocks.borrow();
        blocks
            .iter()
            .find(|block| block.physical as u64 == physical)
            .map(Rc::clone)
    }

    fn machine(&self, tap: Tap, buffer: Rc<Block>, mailbox: Option<Rc<Block>>) -> RuntimeMachine {
        RuntimeMachine(Rc::new(Parts {
            life: self.life,
            way: self.way,
            firmware: Rc::clone(&self.firmware.borrow()),
            machine: self.sim.machine(),
            tap,
            buffer,
            mailbox,
        }))
    }
}

/// Fills memory with what other code may have left there.
fn make_stale(memory: &SharedRegion) {
    assert!(memory.write(0, &vec![0xff; memory.len()]));
}

impl Site for RuntimeSite {
    fn abilities(&self) -> Abilities {
        if let Way::Secure(interface) = self.way {
            let of_this_mm = match interface {
                Interface::StandaloneMm => Abilities::empty(),
                _ => Abilities::NO_HANDLER_STATUS | Abilities::LONGER_RESPONSES,
            };
            return of_this_mm
                | Abilities::SECURE_CALLS
                | Abilities::PRODUCED_PROTOCOLS
                | Abilities::MM
                | Abilities::CONTROLLED_MM
                | Abilities::VARIABLES
                | Abilities::CALLBACKS
                | Abilities::V3_HEADERS;
        }
        self.sim.abilities()
            - Abilities::LOGS
            - Abilities::UPDATES
            - Abilities::HOBS
            - Abilities::FIRMWARE_PROTOCOLS
            - Abilities::EVENTS
            - Abilities::SUPERVISOR
            - Abilities::VARIABLE_DRIVER
    }

    fn power_on(&self, latency: u32) {
        self.sim.power_on(latency);
        self.firmware.replace(Firmware::boot());
        self.blocks.take();
        self.installed.take();
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        Some(ptr::with_exposed_provenance_mut(self.block(pages).physical))
    }

    fn outside(&self, memory: *mut u8) -> *mut u8 {
        let blocks = self.blocks.borrow();
        let outside = blocks.iter().find_map(|block| {
            let offset = memory.addr().checked_sub(block.physical)?;
            let seen = block.seen_from_outside();
            (offset < seen.len()).then(|| seen.as_ptr().wrapping_add(offset))
        });
        outside.unwrap_or(memory)
    }

    fn make_stale(&self, memory: &SharedRegion) {
        make_stale(memory);
    }

    fn secure_calls(&self) -> Option<&dyn SecureCalls> {
        matches!(self.way, Way::Secure(_)).then_some(&secure::Calls)
    }

    fn ports(&self) -> Box<dyn Ports> {
        self.sim.ports()
    }

    fn pm_base(&self) -> u16 {
        self.sim.pm_base()
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.sim.protocols()
    }

    fn install_driver(
        &self,
        setup: &Setup,
        buffer: CommBuffer,
        ports: &Tap,
    ) -> Option<Result<(), SetupFailure>> {
        let memory = self.block_at(buffer.region.start())?;
        let mailbox = buffer.mailbox.and_then(|mailbox| self.block_at(mailbox));
        if let Some(mailbox) = &mailbox {
            make_stale(&mailbox.seen_from_outside());
        }
        make_stale(&memory.seen_from_outside());
        let machine = self.machine(ports.clone(), memory, mailbox);
        match self.way {
            Way::Ports => self.sim.tell_mm(&[buffer]).ok()?,
            Way::Secure(interface) => secure::switch_on(interface, &machine.0.buffer),
        }
        let installed = machine.install(setup).ok();
        machine.live();
        self.installed.replace(Some(machine));
        Some(installed.ok_or(SetupFailure::Impossible(
            "the driver did not install its protocols",
        )))
    }

    fn call_c(&self, call: &CCall, memory: Option<&SharedRegion>) -> Option<CReply> {
        let machine = self.installed.borrow().clone();
        machine?.call(call, memory.is_some())
    }

    fn notify(&self, _: &HostTpl, code: Box<dyn FnOnce()>) {
        match self.life {
            Life::Boot => {
                let firmware = Rc::clone(&self.firmware.borrow());
                firmware.notify(efi::TPL_CALLBACK, code);
            }
            // Notifications have ended with boot services, and a call on another processor does not
            // wait.
            _ => code(),
        }
    }

    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        match self.way {
            Way::Ports => self.sim.tell_mm(buffers),
            // Its secure world got the buffer when the driver was installed.
            Way::Secure(_) => Ok(()),
        }
    }

    fn mm_report(&self) -> Vec<String> {
        self.sim.mm_report()
    }

    fn many_calls(&self) -> u32 {
        match self.way {
            Way::Ports => self.sim.many_calls(),
            Way::Secure(_) => 500,
        }
    }
}
