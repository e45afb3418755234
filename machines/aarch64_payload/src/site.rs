//! A machine with a secure world as a site for the suite.

use aarch64_monitor::Interface;
use aarch64_monitor::layout::SET_BUFFER;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::cell::Cell;
use log::Level;
use mm_comm::SharedRegion;
use mm_comm::smc::{Conduit, spm_mm};
use mm_conformance::arena::Arena;
use mm_conformance::conduit::Calls;
use mm_conformance::lab::SecureCalls;
use mm_conformance::{Abilities, Site, recorder};
use mm_core::CommBuffer;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::protocols::HostProtocols;

/// Calls of the endurance scenario.
const MANY_CALLS: u32 = 10_000;

/// The machine, behind the conduit `C`.
pub struct SmcSite<C> {
    interface: Interface,
    calls: Calls<C>,
    shared: Arena,
    protocols: Cell<&'static dyn ProtocolServices>,
    own_protocols: bool,
}

impl<C: Conduit + 'static> SmcSite<C> {
    /// Takes over the memory that both worlds share.
    #[must_use]
    pub fn new(
        interface: Interface,
        shared: SharedRegion,
        protocols: Option<&'static dyn ProtocolServices>,
    ) -> Self {
        Self {
            interface,
            calls: Calls::new(spm_mm::MM_COMMUNICATE),
            shared: Arena::new(shared),
            own_protocols: protocols.is_none(),
            protocols: Cell::new(protocols.unwrap_or_else(|| Box::leak(Box::<HostProtocols>::default()))),
        }
    }
}

/// Makes one of the monitor's own calls.
pub(crate) fn monitor<C: Conduit>(function: u32, [x1, x2, x3]: [u64; 3]) -> u64 {
    let mut arguments = [0; 17];
    for (argument, value) in arguments.iter_mut().zip([x1, x2, x3]) {
        *argument = value;
    }
    let [x0, ..] = C::call64(function, arguments);
    x0
}

impl<C: Conduit + 'static> Site for SmcSite<C> {
    fn abilities(&self) -> Abilities {
        let here = Abilities::SECURE_CALLS | Abilities::LOGS;
        if let Interface::NoMm | Interface::NoEl3 = self.interface {
            return here | Abilities::NO_MM;
        }
        // Protocols that a client installs in a firmware's database would still be there for the
        // next client.
        let protocols = if self.own_protocols {
            Abilities::PRODUCED_PROTOCOLS | Abilities::FIRMWARE_PROTOCOLS | Abilities::VARIABLE_DRIVER
        } else {
            Abilities::empty()
        };
        // StandaloneMm always returns success, and copies no more back than it got.
        let mm_core = match self.interface {
            Interface::StandaloneMm => Abilities::empty(),
            _ => Abilities::NO_HANDLER_STATUS | Abilities::LONGER_RESPONSES,
        };
        here | protocols
            | mm_core
            | Abilities::MM
            | Abilities::CONTROLLED_MM
            | Abilities::VARIABLES
            | Abilities::CALLBACKS
            | Abilities::V3_HEADERS
    }

    fn power_on(&self, _latency: u32) {
        self.shared.restart();
        if self.own_protocols {
            self.protocols.set(Box::leak(Box::<HostProtocols>::default()));
        }
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        self.shared.allocate(pages)
    }

    fn secure_calls(&self) -> Option<&dyn SecureCalls> {
        Some(&self.calls)
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols.get()
    }

    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        for (index, buffer) in buffers.iter().enumerate() {
            let region = buffer.region;
            match monitor::<C>(SET_BUFFER, [index as u64, region.start(), region.len()]) {
                0 => {}
                code => return Err(format!("the secure world does not take {region}: {code:#x}")),
            }
        }
        Ok(())
    }

    fn many_calls(&self) -> u32 {
        MANY_CALLS
    }

    fn with_log(&self, level: Level, run: &mut dyn FnMut()) -> String {
        recorder::record(level, run)
    }
}
