//! The lab: it brings up clients of MM on the machine of a [`Site`], in any way that a [`Setup`]
//! describes.
//!
//! A [`Client`] is usually made of Patina's components: a fresh `Storage` in which the real
//! `SwMmiManager` and `MmCommunicator` are dispatched. A site can install its own driver instead,
//! which has only the protocols for C. What differs from machine to machine is behind [`Site`].
//!
//! | file | content |
//! |---|---|
//! | `site` | what a machine provides, and what it can do |
//! | `setup`, `request` | how a client comes up, and what a scenario asks of it |
//! | `bring_up`, `components` | how it comes up, and the components around it |
//! | `client`, `observed` | the client, and its comm buffers as an observer sees them |
//! | `moves` | comm buffers that move |
//! | `project_mu` | Project Mu's supervisors and their driver in C |

mod bring_up;
mod client;
mod components;
mod moves;
mod observed;
mod project_mu;
mod request;
mod setup;
mod site;

pub use client::Client;
pub use log::Level as LogLevel;
pub use request::{
    BootEvent, CCall, CProtocol, CReply, Call, Callback, Move, Piece, ResponseTo, SupervisorCall, Update,
    UpdatePlace,
};
pub use setup::{
    BufferSetup, ControlSetup, HobKind, HobSetup, LockSetup, MailboxSetup, PortSetup, Remains, Setup,
    SetupFailure,
};
pub use site::{Abilities, NoPorts, SecureCalls, Site};

use alloc::rc::Rc;
use alloc::string::String;
use patina::component::IntoComponent;
use patina_mm::config::{CommunicateBuffer, CommunicateBufferStatus};
use patina_mm_test::dispatcher::Dispatched;
use patina_mm_test::tap::Tap;

/// The lab on the machine of a site.
pub struct Lab {
    site: Rc<dyn Site>,
    scratch: *mut u8,
}

/// Pages that [`Lab::scratch`] has.
const SCRATCH_PAGES: usize = 8;

impl Lab {
    /// Opens the lab; `None` if the site has no memory for it.
    #[must_use]
    pub fn new(site: impl Site + 'static) -> Option<Self> {
        let scratch = site.allocate(SCRATCH_PAGES)?;
        let site = Rc::new(site);
        Some(Self { site, scratch })
    }

    /// What its machine can do.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        self.site.abilities()
    }

    /// Sets a client up.
    ///
    /// # Errors
    ///
    /// [`SetupFailure`] says which part refused.
    pub fn bring_up(&self, setup: &Setup) -> Result<Client, SetupFailure> {
        Client::bring_up(Rc::clone(&self.site), setup)
    }

    /// Takes over memory as a comm buffer, and drops the buffer again.
    ///
    /// # Errors
    ///
    /// [`CommunicateBufferStatus`] says why the memory is refused.
    pub fn adopt(
        &self,
        address: u64,
        len: usize,
        mailbox: Option<u64>,
    ) -> Result<(), CommunicateBufferStatus> {
        // SAFETY: the suite passes memory inside `scratch`, which nothing else uses, or addresses
        // that are refused. The buffer is dropped here.
        unsafe { CommunicateBuffer::from_firmware_region(address, len, 0, mailbox) }.map(drop)
    }

    /// The address of memory that [`Self::adopt`] may be tried with: 8 pages, aligned, mapped one
    /// to one.
    #[must_use]
    pub fn scratch(&self) -> u64 {
        self.scratch.expose_provenance() as u64
    }

    /// How many calls an endurance scenario makes.
    #[must_use]
    pub fn many_calls(&self) -> u32 {
        self.site.many_calls()
    }

    /// Records the client's log while `run` runs, up to `level`. Needs [`Abilities::LOGS`].
    pub fn with_log(&self, level: LogLevel, run: &mut dyn FnMut()) -> String {
        self.site.with_log(level, run)
    }
}

/// Dispatches a component beside a client of the default setup.
///
/// # Errors
///
/// [`SetupFailure::Impossible`] if the site lacks memory, or its MM side refuses the comm buffers.
pub fn dispatch_beside<I>(
    site: impl Site,
    component: impl IntoComponent<I>,
) -> Result<Dispatched, SetupFailure> {
    let setup = Setup::default();
    site.power_on(setup.latency);
    let buffers = bring_up::lay_out(&site, &setup)?;
    let mut dispatcher = bring_up::prepare(&site, &setup, &buffers, &Tap::new(site.ports()));
    dispatcher.add(component);
    bring_up::tell_mm(&site, None, &buffers, &[])?;
    Ok(dispatcher.dispatch())
}
