//! The firmware's driver as a site for the conformance suite: its scenarios for callers in C.

use crate::app::{self, Life};
use crate::requests::Requests;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use mm_comm::{Ports, SharedRegion};
use mm_conformance::c_abi::{self, Addresses};
use mm_conformance::lab::{CCall, CProtocol, CReply, NoPorts};
use mm_conformance::{Abilities, Scenario, Setup, SetupFailure, Site};
use mm_core::CommBuffer;
use mm_wire::PAGE_LEN;
use mm_wire::hob::CommBufferPlace;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::protocols::HostProtocols;
use patina_mm_test::tap::Tap;

/// How far apart the two addresses of a caller's buffer are, when they may differ.
const APART: usize = 1 << 40;

/// The driver and its comm buffer, at their addresses of one life.
pub(crate) struct RuntimeSite {
    pub(crate) life: Life,
    /// Protocols 1 to 3.
    pub(crate) interfaces: [usize; 3],
    /// Where MM finds the comm buffer.
    pub(crate) buffer: CommBufferPlace,
    pub(crate) buffer_at: usize,
    pub(crate) mailbox_at: Option<usize>,
    pub(crate) requests: Rc<Requests>,
    pub(crate) client: Client,
}

/// The state of the current client.
pub(crate) struct Client {
    /// How many pieces of memory it got.
    pieces: Cell<usize>,
    /// Where requests are counted.
    tap: RefCell<Option<Tap>>,
    protocols: &'static HostProtocols,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self {
            pieces: Cell::new(0),
            tap: RefCell::default(),
            protocols: Box::leak(Box::default()),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page {
    _bytes: [u8; PAGE_LEN],
}

/// Whether a scenario can run in a life: only those for callers in C.
pub(crate) fn is_playable(life: Life, scenario: &Scenario) -> bool {
    let is_for_c = match scenario.name {
        "c_addresses_must_agree" => life != Life::Moved,
        name => name.starts_with("c_"),
    };
    is_for_c && ABILITIES.contains(scenario.needs)
}

const ABILITIES: Abilities = Abilities::MM
    .union(Abilities::CONTROLLED_MM)
    .union(Abilities::VARIABLES)
    .union(Abilities::V3_HEADERS)
    .union(Abilities::PRODUCED_PROTOCOLS)
    .union(Abilities::NO_HANDLER_STATUS)
    .union(Abilities::LONGER_RESPONSES)
    .union(if cfg!(target_arch = "aarch64") {
        Abilities::SECURE_CALLS
    } else {
        Abilities::PORTS.union(Abilities::MAILBOX)
    });

impl RuntimeSite {
    fn addresses(&self, protocol: CProtocol, virt: *mut c_void) -> Addresses {
        let apart = matches!(protocol, CProtocol::TwoApart | CProtocol::ThreeApart);
        let physical = match virt.is_null() {
            // Callers in C give both addresses; the driver uses the virtual one.
            false if apart || self.life == Life::Moved => virt.wrapping_byte_add(APART),
            _ => virt,
        };
        Addresses { physical, virt }
    }

    fn call(&self, call: &CCall, memory: Option<&SharedRegion>) -> Option<CReply> {
        let [one, two, three] = self.interfaces;
        let interface = match call.protocol {
            CProtocol::One => one,
            CProtocol::Two | CProtocol::TwoApart | CProtocol::TwoInPlace(_) => two,
            CProtocol::Three | CProtocol::ThreeApart | CProtocol::ThreeInPlace(_) => three,
        };
        let Some(memory) = memory else {
            return Some(c_abi::elsewhere(call, |virt, comm_size| {
                let addresses = self.addresses(call.protocol, virt);
                app::invoke(interface, call.protocol, addresses, comm_size)
            }));
        };
        let physical = usize::try_from(self.buffer.region().start()).ok()?;
        let addresses = Addresses {
            physical: ptr::with_exposed_provenance_mut(physical),
            virt: memory.as_ptr().cast(),
        };
        c_abi::in_place(memory, call, |comm_size| {
            app::invoke(interface, call.protocol, addresses, comm_size)
        })
    }
}

impl Site for RuntimeSite {
    fn abilities(&self) -> Abilities {
        ABILITIES
    }

    fn power_on(&self, _: u32) {
        self.client.pieces.set(0);
        self.client.tap.replace(None);
    }

    /// The first piece is the driver's comm buffer, a page behind it its mailbox, all others are this program's.
    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        let piece = self.client.pieces.get();
        self.client.pieces.set(piece.saturating_add(1));
        let len = pages.saturating_mul(PAGE_LEN) as u64;
        let its_own = match piece {
            0 if len == self.buffer.region().len() => Some(self.buffer_at),
            1 if pages == 1 => self.mailbox_at,
            _ => None,
        };
        match its_own {
            Some(address) => Some(ptr::with_exposed_provenance_mut(address)),
            None => {
                let page = Page {
                    _bytes: [0; PAGE_LEN],
                };
                let pages = alloc::vec![page; pages].leak();
                Some(pages.as_mut_ptr().cast())
            }
        }
    }

    /// They are for counting.
    fn ports(&self) -> Box<dyn Ports> {
        Box::new(NoPorts)
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.client.protocols
    }

    /// The driver is installed already, with the usual configuration.
    fn install_driver(
        &self,
        setup: &Setup,
        buffer: CommBuffer,
        ports: &Tap,
    ) -> Option<Result<(), SetupFailure>> {
        let usual = Setup {
            produced: setup.produced,
            ..Setup::default()
        };
        self.client.tap.replace(Some(ports.clone()));
        let is_its_own = buffer.region.start() == self.buffer_at as u64;
        Some(if *setup == usual && is_its_own {
            Ok(())
        } else {
            Err(SetupFailure::Impossible("the driver is there already"))
        })
    }

    /// MM counts the requests, and what it counted is written to the ports that the suite looks at.
    fn call_c(&self, call: &CCall, memory: Option<&SharedRegion>) -> Option<CReply> {
        let before = self.requests.taken();
        let reply = self.call(call, memory);
        let taken = self.requests.taken().saturating_sub(before);
        let (command, _) = self.mmi_ports();
        if let Some(tap) = &*self.client.tap.borrow() {
            (0..taken).for_each(|_| tap.write_u8(command, 0));
        }
        reply
    }

    /// MM knows the driver's comm buffer already.
    fn tell_mm(&self, _: &[CommBuffer]) -> Result<(), String> {
        Ok(())
    }

    fn many_calls(&self) -> u32 {
        1000
    }
}
