//! What a machine provides, so that the suite can run on it.

use super::{CCall, CReply, Setup, SetupFailure};
use crate::c_abi;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use log::Level;
use mm_comm::{Ports, SharedRegion};
use mm_core::CommBuffer;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::component::service::uefi_services::tpl::Tpl;
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
#[cfg(doc)]
use patina_mm::service::MmCommunication;
use patina_mm_test::Dispatcher;
use patina_mm_test::tap::Tap;
use patina_mm_test::tpl::HostTpl;

bitflags::bitflags! {
    /// What a lab can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Abilities: u32 {
        /// The MM side is [`ConformanceMm`](crate::mm::ConformanceMm): its handlers respond, and it
        /// sends wrong responses on request.
        const CONTROLLED_MM = 1 << 0;
        /// edk2's variable service, or one that responds like it, is behind its GUID.
        const VARIABLES = 1 << 1;
        /// Comm buffers can have a status mailbox.
        const MAILBOX = 1 << 2;
        /// SMIs can be switched off and on at the chipset.
        const SMI_SWITCH = 1 << 3;
        /// Code can run in the middle of a call.
        const CALLBACKS = 1 << 4;
        /// The client's log can be read.
        const LOGS = 1 << 5;
        /// The time between the port write and MM's entry can be set.
        const LATENCY = 1 << 6;
        /// A comm buffer can be moved by the update protocol.
        const UPDATES = 1 << 7;
        /// MM understands v3 communicate headers.
        const V3_HEADERS = 1 << 8;
        /// The configuration can come from HOBs.
        const HOBS = 1 << 9;
        /// MMIs are raised through x86 ports.
        const PORTS = 1 << 10;
        /// MM is entered by secure monitor calls, one request at a time.
        const SECURE_CALLS = 1 << 11;
        /// The machine has an MM that takes requests.
        const MM = 1 << 12;
        /// The machine has no MM, and its firmware says so.
        const NO_MM = 1 << 13;
        /// The client's protocols for C can be called.
        const PRODUCED_PROTOCOLS = 1 << 14;
        /// A client can be set up over the firmware's protocols, or those of another client.
        const FIRMWARE_PROTOCOLS = 1 << 15;
        /// The boot's events can be signalled.
        const EVENTS = 1 << 16;
        /// The client of the MM supervisor can be asked.
        const SUPERVISOR = 1 << 17;
        /// edk2's variable driver can wait for its markers:
        /// [`Setup::variable_driver`](super::Setup::variable_driver).
        const VARIABLE_DRIVER = 1 << 18;
        /// MM reports if no handler took a request, or its handler failed.
        const NO_HANDLER_STATUS = 1 << 19;
        /// A response may be longer than its request.
        const LONGER_RESPONSES = 1 << 20;
    }
}

impl Abilities {
    /// The names of the abilities, for a report.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        self.iter_names().map(|(name, _)| name).collect()
    }
}

/// The machine that clients are set up on.
pub trait Site {
    /// What the machine can do. Scenarios that need more are skipped.
    fn abilities(&self) -> Abilities;

    /// Prepares the machine for the next client, as fresh as possible. An MMI is taken `latency`
    /// pauses after it was raised.
    fn power_on(&self, latency: u32) {
        let _ = latency;
    }

    /// Allocates memory: page-aligned, mapped one to one, with any contents, for exclusive use
    /// until the next [`Self::power_on`]. Memory that was allocated before the first call is kept.
    /// `None` if memory is short.
    fn allocate(&self, pages: usize) -> Option<*mut u8>;

    /// Where the lab and MM reach memory that [`Self::allocate`] returned. It differs from where
    /// the client reaches it if the operating system has chosen other addresses for the client.
    fn outside(&self, memory: *mut u8) -> *mut u8 {
        memory
    }

    /// Restores the contents that memory had before the lab looked at it. A site whose memory is
    /// zero has nothing to do.
    fn make_stale(&self, memory: &SharedRegion) {
        let _ = memory;
    }

    /// The way into MM if it is entered by secure monitor calls. The x86 ports below are then not
    /// used.
    fn secure_calls(&self) -> Option<&dyn SecureCalls> {
        None
    }

    /// The processor's ports.
    fn ports(&self) -> Box<dyn Ports> {
        Box::new(NoPorts)
    }

    /// The command port and the data port.
    fn mmi_ports(&self) -> (u16, u16) {
        (0xb2, 0xb3)
    }

    /// The base of the ACPI registers in I/O space.
    fn pm_base(&self) -> u16 {
        0
    }

    /// The protocol database that the client uses.
    fn protocols(&self) -> &'static dyn ProtocolServices;

    /// The database with the MM communication protocols that the firmware itself installed, or else
    /// the client's own.
    fn firmware_protocols(&self) -> &'static dyn ProtocolServices {
        self.protocols()
    }

    /// The events that the client uses; `None` if the site has none.
    fn events(&self) -> Option<&'static dyn EventServices> {
        None
    }

    /// Adds the component that offers [`MmCommunication`].
    fn add_communicator(&self, dispatcher: &mut Dispatcher) {
        dispatcher.add(MmCommunicator::new());
    }

    /// Installs the site's own driver, which offers only the protocols for C, instead of Patina's
    /// components; returns `None` if those should be dispatched. MM knows the comm buffer.
    fn install_driver(
        &self,
        setup: &Setup,
        buffer: CommBuffer,
        ports: &Tap,
    ) -> Option<Result<(), SetupFailure>> {
        let _ = (setup, buffer, ports);
        None
    }

    /// Calls one of the protocols for C. The caller's buffer is at the start of `memory`, a comm
    /// buffer, if that is given. `None` if the protocol is not installed.
    fn call_c(&self, call: &CCall, memory: Option<&SharedRegion>) -> Option<CReply> {
        match memory {
            Some(memory) => c_abi::call_in_place(self.protocols(), memory, call),
            None => c_abi::call(self.protocols(), call),
        }
    }

    /// Runs `code` as a notification at `TPL_CALLBACK`: now, or as soon as the TPL is below that.
    fn notify(&self, tpl: &HostTpl, code: Box<dyn FnOnce()>) {
        tpl.notify(Tpl::Callback, code);
    }

    /// Passes the comm buffers to the MM side, if that is ours.
    ///
    /// # Errors
    ///
    /// Why MM refuses them.
    fn tell_mm(&self, buffers: &[CommBuffer]) -> Result<(), String>;

    /// MM's report of what it did at the last MMI; empty if the MM side is not ours.
    fn mm_report(&self) -> Vec<String> {
        Vec::new()
    }

    /// How many calls an endurance scenario makes.
    fn many_calls(&self) -> u32;

    /// Records what the client logs while `run` runs, up to `level`.
    fn with_log(&self, level: Level, run: &mut dyn FnMut()) -> String {
        let _ = level;
        run();
        String::new()
    }
}

/// Secure monitor calls, observed.
pub trait SecureCalls {
    /// The function identifier that the platform configures.
    fn function(&self) -> u32;

    /// Makes the component that offers `SwMmiTrigger`, for a client that comes up now.
    fn trigger(&self) -> SwMmiManager;

    /// How many requests reached MM since the client came up.
    fn requests(&self) -> usize;

    /// Makes [`Self::requests`] count from 0 again.
    fn forget_requests(&self);

    /// Runs `code` once, before the next request reaches MM.
    fn before_next_request(&self, code: Box<dyn FnOnce()>);
}

/// The ports of a machine that has none: they read as zero.
#[derive(Clone, Copy, Debug)]
pub struct NoPorts;

impl Ports for NoPorts {
    fn write_u8(&self, _: u16, _: u8) {}
    fn read_u32(&self, _: u16) -> u32 {
        0
    }
    fn write_u32(&self, _: u16, _: u32) {}
    fn read_mmio_u32(&self, _: usize) -> u32 {
        0
    }
    fn write_mmio_u32(&self, _: usize, _: u32) {}
    fn pause(&self) {}
}
