//! The simulated machine as a site for the conformance suite.

use crate::lab::{self, Abilities, Lab, Site};
use crate::mm::ConformanceMm;
use crate::recorder;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use log::Level;
use mm_comm::{Ports, SharedRegion};
use mm_core::handlers::VariableStore;
use mm_core::{CommBuffer, Outcome, Visit};
use mm_sim::{Config, MAX_VARIABLE_LEN, Machine, VARIABLE_STORE_LEN};
use mm_wire::PAGE_LEN;
use patina::component::IntoComponent;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina_mm_test::dispatcher;
use patina_mm_test::events::HostEvents;
use patina_mm_test::protocols::HostProtocols;

/// The contents of a machine's memory before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ram {
    /// Zeros.
    #[default]
    Zero,
    /// 0xFF in each byte.
    Ones,
    /// Bytes of a pseudo-random sequence with this seed.
    Random(u64),
}

impl Ram {
    /// The contents of `len` bytes at this address; `None` if they are zero.
    fn contents(self, address: usize, len: usize) -> Option<Vec<u8>> {
        match self {
            Self::Zero => None,
            Self::Ones => Some(alloc::vec![0xff; len]),
            Self::Random(seed) => {
                let mut state = (seed ^ address as u64) | 1;
                let words = (0..len.div_ceil(8)).flat_map(|_| {
                    // Xorshift.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                });
                Some(words.take(len).collect())
            }
        }
    }
}

/// A simulated machine with the suite's own MM side in its MMRAM.
///
/// Memory is leaked, as a machine's memory outlives the programs in it: for processes that end
/// soon.
pub struct SimSite {
    machine: RefCell<Machine>,
    protocols: Cell<&'static HostProtocols>,
    events: Cell<&'static HostEvents>,
    last_visit: Rc<Cell<Option<Visit>>>,
    around_mm: Rc<RefCell<Option<AroundMm>>>,
    ram: Ram,
}

/// Code that runs instead of MM, and may let MM run.
type AroundMm = Rc<dyn Fn(&mut dyn FnMut())>;

impl SimSite {
    /// Switches a machine on.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ram(Ram::Zero)
    }

    /// Switches a machine on whose memory has these contents.
    #[must_use]
    pub fn with_ram(ram: Ram) -> Self {
        Self {
            machine: RefCell::new(Machine::new(Config::default())),
            protocols: Cell::new(Box::leak(Box::default())),
            events: Cell::new(Box::leak(Box::default())),
            last_visit: Rc::default(),
            around_mm: Rc::default(),
            ram,
        }
    }

    /// Opens a lab in a simulated machine.
    ///
    /// # Panics
    ///
    /// Never: the host's allocator aborts before memory is refused.
    #[must_use]
    pub fn lab() -> Lab {
        Self::new().into_lab()
    }

    /// Opens a lab in this machine.
    ///
    /// # Panics
    ///
    /// Never: the host's allocator aborts before memory is refused.
    #[must_use]
    pub fn into_lab(self) -> Lab {
        Lab::new(self).unwrap_or_else(|| unreachable!("a simulated machine has memory"))
    }
}

/// Dispatches one component beside the real `SwMmiManager` and `MmCommunicator`, with comm buffers
/// 0 and 1, on a simulated machine.
///
/// # Panics
///
/// Never: the default setup has memory, and the MM side takes its comm buffers.
#[must_use]
pub fn dispatch<I>(component: impl IntoComponent<I>) -> dispatcher::Dispatched {
    match lab::dispatch_beside(SimSite::new(), component) {
        Ok(outcome) => outcome,
        Err(failure) => unreachable!("the default setup works: {failure}"),
    }
}

impl SimSite {
    /// The machine that is switched on.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine.borrow().clone()
    }

    /// Makes each SMI run `around` instead of MM, which is passed to it.
    pub fn around_mm(&self, around: impl Fn(&mut dyn FnMut()) + 'static) {
        *self.around_mm.borrow_mut() = Some(Rc::new(around));
    }

    fn fill(&self, address: usize, len: usize) {
        if let Some(contents) = self.ram.contents(address, len) {
            self.machine.borrow().write_outside(address as u64, &contents);
        }
    }
}

impl Default for SimSite {
    fn default() -> Self {
        Self::new()
    }
}

impl Site for SimSite {
    fn abilities(&self) -> Abilities {
        Abilities::all() - Abilities::SECURE_CALLS - Abilities::NO_MM
    }

    fn power_on(&self, latency: u32) {
        self.machine.replace(Machine::new(Config {
            latency,
            ..Config::default()
        }));
        self.protocols.set(Box::leak(Box::default()));
        self.events.set(Box::leak(Box::default()));
    }

    fn allocate(&self, pages: usize) -> Option<*mut u8> {
        let memory = self.machine.borrow().allocate_pages(pages);
        self.fill(memory.addr(), pages * PAGE_LEN);
        Some(memory).filter(|memory| !memory.is_null())
    }

    fn make_stale(&self, memory: &SharedRegion) {
        self.fill(memory.as_ptr().addr(), memory.len());
    }

    fn ports(&self) -> Box<dyn Ports> {
        Box::new(self.machine.borrow().clone())
    }

    fn pm_base(&self) -> u16 {
        Config::default().pm_base
    }

    fn protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols.get()
    }

    fn events(&self) -> Option<&'static dyn EventServices> {
        Some(self.events.get())
    }

    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String> {
        let machine = self.machine.borrow();
        let largest = buffers
            .iter()
            .map(|buffer| buffer.region.len())
            .max()
            .unwrap_or(0);
        let scratch = alloc::vec![0; usize::try_from(largest).unwrap_or(0)].leak();
        let variables = VariableStore::new(alloc::vec![0; VARIABLE_STORE_LEN].leak(), MAX_VARIABLE_LEN);
        let mut mm = ConformanceMm::new(&[machine.mmram()], buffers.to_vec().leak(), scratch, variables)
            .map_err(|error| error.to_string())?;
        let (visit, around) = (Rc::clone(&self.last_visit), Rc::clone(&self.around_mm));
        machine.install_mm(move |memory, mmi| {
            let around = around.borrow().clone();
            let mut serve = || visit.set(Some(mm.enter(&mut *memory, mmi)));
            match around {
                Some(around) => around(&mut serve),
                None => serve(),
            }
        });
        machine.close_mmram();
        Ok(())
    }

    fn mm_report(&self) -> Vec<String> {
        let visit = self.last_visit.get();
        let outcomes = visit.iter().flat_map(|visit| visit.outcomes());
        outcomes
            .filter(|outcome| **outcome != Outcome::NoRequest)
            .map(ToString::to_string)
            .collect()
    }

    fn many_calls(&self) -> u32 {
        10_000
    }

    fn with_log(&self, level: Level, run: &mut dyn FnMut()) -> String {
        recorder::install();
        recorder::record(level, run)
    }
}
