//! The conformance suite above an AArch64 secure world.
//!
//! ```text
//! suite ─► Lab ─► SwMmiManager, MmCommunicator ─► SMC ─► aarch64_monitor ─► mm_core
//! ```
//!
//! | program | where |
//! |---|---|
//! | `aarch64_payload` | at EL1, right above the monitor |
//! | `aarch64_app` | a UEFI application on Debian's firmware above the same monitor |
//! | the test `host` | in a process, with a conduit that calls the monitor's secure world as a library |
//!
//! | module | content |
//! |---|---|
//! | [`site`] | the machine as a place to run the suite |
//! | [`tests`] | what this machine must show besides |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod site;
pub mod tests;

use aarch64_monitor::Interface;
use alloc::string::String;
use core::fmt;
use core::fmt::Write;
use mm_comm::SharedRegion;
use mm_comm::smc::Conduit;
use mm_conformance::soak::{self, Through};
use mm_conformance::{Lab, NotOk, Report, conduit, recorder};
use patina::component::service::uefi_services::protocol::ProtocolServices;
use site::SmcSite;

/// Fills the floating point and vector registers, runs code, and returns how many halves of them
/// have changed since.
pub type Vectors<'a> = &'a dyn Fn(&mut dyn FnMut()) -> u64;

/// What a run has to know about its machine.
pub struct Place<'a> {
    /// How the secure world presents itself.
    pub interface: Interface,
    /// The memory that both worlds share.
    pub shared: &'a dyn Fn() -> Option<SharedRegion>,
    /// The protocol database; `None` for one in memory.
    pub protocols: Option<&'static dyn ProtocolServices>,
    /// The vector registers; `None` if the program's own code uses them.
    pub vectors: Option<Vectors<'a>>,
}

impl Place<'_> {
    fn lab<C: Conduit + 'static>(&self) -> Result<Lab, String> {
        let shared = (self.shared)().ok_or("no shared memory")?;
        Lab::new(SmcSite::<C>::new(self.interface, shared, self.protocols))
            .ok_or_else(|| String::from("too little shared memory"))
    }
}

/// Runs all tests; `true` if none failed.
pub fn run<C: Conduit + 'static>(place: &Place<'_>, report: &mut Report<impl Write>) -> bool {
    be_quiet();
    tests::run::<C>(place, report);
    count::<C, _>(place, report, &mut |report| match place.lab::<C>() {
        Ok(lab) => report.suite(&lab),
        Err(why) => report.verdict("conformance", Err(NotOk::Failed(why))),
    })
}

/// Makes very many calls; `true` if each went well.
pub fn soak<C: Conduit + 'static>(
    place: &Place<'_>,
    report: &mut Report<impl Write>,
    free_memory: &dyn Fn() -> Option<u64>,
) -> bool {
    be_quiet();
    count::<C, _>(place, report, &mut |report| match place.lab::<C>() {
        Ok(lab) => {
            soak::run(report, &lab, Through::Components, free_memory);
        }
        Err(why) => report.verdict("soak", Err(NotOk::Failed(why))),
    })
}

/// The client's log is not printed: mistakes are made on purpose.
fn be_quiet() {
    recorder::install();
    log::set_max_level(log::LevelFilter::Off);
}

/// Runs tests, and then compares the requests that they made with those that the secure world served.
fn count<C: Conduit + 'static, W: Write>(
    place: &Place<'_>,
    report: &mut Report<W>,
    run: &mut dyn FnMut(&mut Report<W>),
) -> bool {
    let before = (
        conduit::total_requests(),
        tests::requests_served::<C>(place.interface),
    );
    run(report);
    let made = conduit::total_requests().saturating_sub(before.0) as u64;
    report.test("secure_world.every_request_was_served_once", || {
        let served = tests::requests_served::<C>(place.interface).saturating_sub(before.1);
        if served == made {
            Ok(())
        } else {
            Err(NotOk::Failed(alloc::format!(
                "{made} requests, {served} were served"
            )))
        }
    });
    report.finish(made)
}

/// Holds the demo's conversation.
///
/// # Errors
///
/// Why it ended.
pub fn demo<C: Conduit + 'static>(
    place: &Place<'_>,
    name: &str,
    out: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<(), String> {
    log::set_max_level(log::LevelFilter::Off);
    mm_conformance::demo::run(&place.lab::<C>()?, name, out)
}
