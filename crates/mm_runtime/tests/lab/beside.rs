//! Patina's components and a runtime driver on one machine, with one MM and a comm buffer for each.

use super::{Life, RuntimeMachine, RuntimeSite, Way};
use mm_comm::Ports;
use mm_conformance::{Abilities, Site};
use mm_core::CommBuffer;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::tap::Tap;
use std::cell::RefCell;
use std::rc::Rc;

/// The machine. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Beside(Rc<Parts>);

struct Parts {
    site: RuntimeSite,
    driver: RefCell<Option<RuntimeMachine>>,
}

impl Beside {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Parts {
            site: RuntimeSite::new(Life::Boot, Way::Ports),
            driver: RefCell::default(),
        }))
    }

    /// Where the runtime driver can be installed, once the machine is on.
    pub(crate) fn driver(&self) -> RuntimeMachine {
        self.0.driver.borrow().clone().unwrap()
    }
}

impl Site for Beside {
    fn abilities(&self) -> Abilities {
        self.0.site.sim.abilities()
    }

    fn power_on(&self, latency: u32) {
        let site = &self.0.site;
        site.power_on(latency);
        let [buffer, mailbox] = [4, 1].map(|pages| site.block(pages));
        let driver = site.machine(Tap::new(site.ports()), buffer, Some(mailbox));
        self.0.driver.replace(Some(driver));
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        self.0.site.sim.allocate(pages)
    }

    fn ports(&self) -> Box<dyn Ports> {
        self.0.site.ports()
    }

    fn pm_base(&self) -> u16 {
        self.0.site.pm_base()
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.0.site.protocols()
    }

    fn events(&self) -> Option<&'static dyn EventServices> {
        self.0.site.sim.events()
    }

    /// MM gets the driver's buffer, too, behind the others.
    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        let all = [buffers, &[self.driver().comm_buffer()]].concat();
        self.0.site.sim.tell_mm(&all)
    }

    fn many_calls(&self) -> u32 {
        self.0.site.many_calls()
    }
}
