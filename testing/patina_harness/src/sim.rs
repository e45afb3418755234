//! The simulated machine as a site for the conformance suite.

use crate::dispatcher;
use crate::events::HostEvents;
use crate::lab::{self, PatinaLab, Site};
use crate::protocols::HostProtocols;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};
use mm_comm::{Ports, SharedRegion};
use mm_conformance::lab::{Abilities, LogLevel};
use mm_conformance::mm::ConformanceMm;
use mm_core::handlers::VariableStore;
use mm_core::{CommBuffer, Outcome, Visit};
use mm_sim::{Config, MAX_VARIABLE_LEN, Machine, VARIABLE_STORE_LEN};
use mm_wire::PAGE_LEN;
use patina::component::IntoComponent;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use std::thread_local;

/// What is in a machine's memory before anybody uses it.
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
    /// What is in `len` bytes at this address; `None` if they are zero.
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
/// Memory is leaked, as a machine's memory outlives the programs in it: for processes that end soon.
pub struct SimSite {
    machine: RefCell<Machine>,
    protocols: Cell<&'static HostProtocols>,
    events: Cell<&'static HostEvents>,
    last_visit: Rc<Cell<Option<Visit>>>,
    ram: Ram,
}

impl SimSite {
    /// Switches a machine on.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ram(Ram::Zero)
    }

    /// Switches a machine on whose memory has this in it.
    #[must_use]
    pub fn with_ram(ram: Ram) -> Self {
        Self {
            machine: RefCell::new(Machine::new(Config::default())),
            protocols: Cell::new(Box::leak(Box::default())),
            events: Cell::new(Box::leak(Box::default())),
            last_visit: Rc::default(),
            ram,
        }
    }

    /// Opens a lab in a simulated machine.
    ///
    /// # Panics
    ///
    /// Never: the host's allocator aborts before memory is refused.
    #[must_use]
    pub fn lab() -> PatinaLab<Self> {
        Self::new().into_lab()
    }

    /// Opens a lab in this machine.
    ///
    /// # Panics
    ///
    /// Never: the host's allocator aborts before memory is refused.
    #[must_use]
    pub fn into_lab(self) -> PatinaLab<Self> {
        PatinaLab::new(self).unwrap_or_else(|| unreachable!("a simulated machine has memory"))
    }
}

/// Dispatches one component beside the real `SwMmiManager` and `MmCommunicator`, with comm buffers 0 and 1, on a simulated
/// machine.
///
/// # Panics
///
/// Never: the default setup has memory, and the MM side takes its comm buffers.
#[must_use]
pub fn dispatch<I>(component: impl IntoComponent<I>) -> dispatcher::Outcome {
    match lab::dispatch_beside(SimSite::new(), component) {
        Ok(outcome) => outcome,
        Err(failure) => unreachable!("the default setup works: {failure}"),
    }
}

impl SimSite {
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
        let visit = Rc::clone(&self.last_visit);
        machine.install_mm(move |memory, mmi| {
            visit.set(Some(mm.enter(memory, mmi)));
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

    fn with_log(&self, level: LogLevel, run: &mut dyn FnMut()) -> String {
        // Fails where a logger is installed already: then it is this one, or the record stays empty and the scenario
        // says so.
        let _ = log::set_logger(&Recorder);
        log::set_max_level(LevelFilter::Trace);
        let level = match level {
            LogLevel::Debug => Level::Debug,
            LogLevel::Trace => Level::Trace,
        };
        RECORD.set(Some((level, String::new())));
        run();
        RECORD.take().map_or_else(String::new, |(_, text)| text)
    }
}

thread_local! {
    /// What this thread records, up to which level.
    static RECORD: RefCell<Option<(Level, String)>> = const { RefCell::new(None) };
}

/// Records what a thread logs while it wants to know.
struct Recorder;

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        RECORD.with_borrow(|record| {
            record
                .as_ref()
                .is_some_and(|(level, _)| metadata.level() <= *level)
        })
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            RECORD.with_borrow_mut(|recorded| {
                if let Some((_, text)) = recorded {
                    // Writing to a string does not fail.
                    let _ = writeln!(text, "{} {}: {}", record.level(), record.target(), record.args());
                }
            });
        }
    }

    fn flush(&self) {}
}
