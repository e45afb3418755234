//! This machine as a site for the conformance suite.

use super::Services;
use super::control::Control;
use crate::chipset;
use crate::mm::{COMMAND_PORT, within_reach};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use log::Level;
use mm_comm::Ports;
use mm_comm::ports::NativePorts;
use mm_conformance::{Abilities, Site, recorder};
use mm_core::CommBuffer;
use ovmf_platform::devices::PM_BASE;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::events::HostEvents;
use patina_mm_test::protocols::HostProtocols;

/// Calls of the endurance scenario.
pub(super) const MANY_CALLS: u32 = 100_000;

/// The real machine. Each client has its own protocol database and events: an announcement of one
/// moves no other client's comm buffer, and no other code sees the end of DXE twice. `traffic`
/// tests those of the core.
pub(super) struct Q35Site {
    services: Services,
    latency: Cell<u32>,
    protocols: Cell<&'static HostProtocols>,
    events: Cell<&'static HostEvents>,
}

impl Q35Site {
    pub(super) fn new(services: Services) -> Self {
        Self {
            services,
            latency: Cell::new(1),
            protocols: Cell::new(Box::leak(Box::default())),
            events: Cell::new(Box::leak(Box::default())),
        }
    }

    fn control(&self) -> Control {
        Control(self.services.mm)
    }
}

impl Site for Q35Site {
    fn abilities(&self) -> Abilities {
        Abilities::all().difference(Abilities::SECURE_CALLS | Abilities::NO_MM)
    }

    fn power_on(&self, latency: u32) {
        self.latency.set(latency);
        self.protocols.set(Box::leak(Box::default()));
        self.events.set(Box::leak(Box::default()));
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        let pages = self.services.memory.allocate_zero_pages(pages, within_reach());
        pages.ok()?.into_raw_ptr()
    }

    fn ports(&self) -> Box<dyn Ports> {
        Box::new(SlowPorts {
            ports: chipset::ports(),
            latency: self.latency.get(),
            waiting: Cell::new(None),
        })
    }

    fn pm_base(&self) -> u16 {
        PM_BASE
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols.get()
    }

    fn events(&self) -> Option<&'static dyn EventServices> {
        Some(self.events.get())
    }

    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        self.control()
            .register(buffers)
            .map_err(|(status, text)| alloc::format!("{status}: {text}"))
    }

    fn mm_report(&self) -> Vec<String> {
        self.control().report()
    }

    fn many_calls(&self) -> u32 {
        MANY_CALLS
    }

    fn with_log(&self, level: Level, run: &mut dyn FnMut()) -> String {
        recorder::record(level, run)
    }
}

/// The processor's ports with a slow chipset: a write to the command port reaches the real port
/// after `latency` pauses. With a latency of 1 it is the real chipset, which takes the SMI at the
/// first pause at the latest.
struct SlowPorts {
    ports: NativePorts,
    latency: u32,
    /// The command on its way, and the pauses until it arrives. A second one does not overtake it:
    /// SMIs are not counted.
    waiting: Cell<Option<(u8, u32)>>,
}

impl Ports for SlowPorts {
    fn write_u8(&self, port: u16, value: u8) {
        if port != COMMAND_PORT || self.latency <= 1 {
            self.ports.write_u8(port, value);
        } else if self.waiting.get().is_none() {
            self.waiting.set(Some((value, self.latency)));
        }
    }

    fn read_u32(&self, port: u16) -> u32 {
        self.ports.read_u32(port)
    }

    fn write_u32(&self, port: u16, value: u32) {
        self.ports.write_u32(port, value);
    }

    fn read_mmio_u32(&self, address: usize) -> u32 {
        self.ports.read_mmio_u32(address)
    }

    fn write_mmio_u32(&self, address: usize, value: u32) {
        self.ports.write_mmio_u32(address, value);
    }

    fn pause(&self) {
        match self.waiting.get() {
            Some((command, 0 | 1)) => {
                self.waiting.set(None);
                self.ports.write_u8(COMMAND_PORT, command);
            }
            Some((command, left)) => self.waiting.set(Some((command, left.saturating_sub(1)))),
            None => {}
        }
        self.ports.pause();
    }
}
