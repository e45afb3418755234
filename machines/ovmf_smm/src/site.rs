//! This machine as a site for the conformance suite. The MM side is edk2's, so its responses are not under our control.

use crate::app::{BUFFER_PAGES, SharedReport, SmmCommunicator};
use crate::executor::MmiCount;
use crate::q35::Q35;
use alloc::boxed::Box;
use alloc::string::String;
use core::cell::Cell;
use mm_comm::ports::NativePorts;
use mm_comm::{Ports, SharedRegion};
use mm_conformance::arena::Arena;
use mm_conformance::report::NotOk;
use mm_conformance::soak::{self, Through};
use mm_conformance::{Abilities, Lab, Site};
use mm_core::CommBuffer;
use mm_wire::PAGE_LEN;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::dispatcher::Dispatcher;
use patina_mm_test::events::HostEvents;
use patina_mm_test::protocols::HostProtocols;
use uefi_app::Firmware;
use uefi_app::protocols::BootProtocols;

/// Calls of the endurance scenario.
const MANY_CALLS: u32 = 10_000;

/// Stock OVMF with traditional SMM.
pub(crate) struct OvmfSite {
    firmware: Firmware,
    mmis: MmiCount,
    pm_base: u16,
    protocols: Cell<&'static HostProtocols>,
    events: Cell<&'static HostEvents>,
    arena: Arena,
}

/// Opens the lab in `memory`, the application's comm buffer, which is not in use any more; `None`
/// if the chipset does not have PMBASE or the memory is too small.
///
/// The SMM core copied the memory map long before the application started, and accepts a request
/// only in memory that was in use then. The firmware reserves little memory for runtime data, so
/// each client gets the same pages again.
pub(crate) fn open(firmware: Firmware, mmis: MmiCount, memory: *mut u8) -> Option<Lab> {
    let pm_base = Q35::new().acpi_base().ok()?;
    // SAFETY: the application allocated these pages for comm buffers and never frees them; only comm buffers and the
    // lab's observer use them, with volatile accesses.
    let arena = unsafe { SharedRegion::new(memory, BUFFER_PAGES * PAGE_LEN) }.ok()?;
    let protocols = Cell::new(fresh_protocols());
    let events = Cell::new(fresh_events());
    Lab::new(OvmfSite {
        firmware,
        mmis,
        pm_base,
        protocols,
        events,
        arena: Arena::new(arena),
    })
}

/// The protocols of one client: the firmware's own database has edk2's protocols of the same names, and keeps what a
/// former client installed.
fn fresh_protocols() -> &'static HostProtocols {
    Box::leak(Box::default())
}

/// The events of one client: those of the firmware are over.
fn fresh_events() -> &'static HostEvents {
    Box::leak(Box::default())
}

impl Site for OvmfSite {
    fn abilities(&self) -> Abilities {
        Abilities::MM
            | Abilities::NO_HANDLER_STATUS
            | Abilities::LONGER_RESPONSES
            | Abilities::PORTS
            | Abilities::VARIABLES
            | Abilities::SMI_SWITCH
            | Abilities::CALLBACKS
            | Abilities::PRODUCED_PROTOCOLS
            | Abilities::VARIABLE_DRIVER
            | Abilities::FIRMWARE_PROTOCOLS
            | Abilities::EVENTS
    }

    fn power_on(&self, _latency: u32) {
        self.arena.restart();
        self.protocols.set(fresh_protocols());
        self.events.set(fresh_events());
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        self.arena.allocate(pages)
    }

    fn ports(&self) -> Box<dyn Ports> {
        // SAFETY: a UEFI image runs in ring 0 (UEFI 2.11, 2.3.4). The ports are those of the lab's
        // configuration: the MMI ports and SMI_EN, none of which has access to memory.
        Box::new(unsafe { NativePorts::new() })
    }

    fn pm_base(&self) -> u16 {
        self.pm_base
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols.get()
    }

    fn firmware_protocols(&self) -> &'static dyn ProtocolServices {
        Box::leak(Box::new(BootProtocols::new(self.firmware.boot())))
    }

    fn events(&self) -> Option<&'static dyn EventServices> {
        Some(self.events.get())
    }

    fn add_communicator(&self, dispatcher: &mut Dispatcher) {
        dispatcher.add(SmmCommunicator {
            firmware: self.firmware,
            mmis: self.mmis.clone(),
        });
    }

    fn tell_mm(&self, _buffers: &[CommBuffer]) -> Result<(), String> {
        // Traditional SMM learns of a buffer with each request.
        Ok(())
    }

    fn many_calls(&self) -> u32 {
        MANY_CALLS
    }
}

/// Makes very many calls; `true` if each went well.
pub(crate) fn soak(report: &SharedReport, firmware: Firmware, mmis: MmiCount, memory: *mut u8) -> bool {
    let mut report = report.borrow_mut();
    let Some(lab) = open(firmware, mmis, memory) else {
        report.verdict("soak", Err(NotOk::Failed(String::from("no lab here"))));
        return report.finish(0);
    };
    log::set_max_level(log::LevelFilter::Off);
    let mmis = soak::run(
        &mut report,
        &lab,
        Through::Components,
        &uefi_app::firmware::free_memory,
    );
    report.finish(mmis)
}

/// Runs the suite.
pub(crate) fn run(report: &SharedReport, firmware: Firmware, mmis: MmiCount, memory: *mut u8) {
    let Some(lab) = open(firmware, mmis, memory) else {
        return report
            .borrow_mut()
            .verdict("conformance", Err(NotOk::Failed(String::from("no lab here"))));
    };
    // The client's log about the suite's deliberate mistakes is not printed.
    let level = log::max_level();
    log::set_max_level(log::LevelFilter::Off);
    report.borrow_mut().suite(&lab);
    log::set_max_level(level);
}
