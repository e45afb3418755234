//! What this platform tests in the guest, and the demo. Feature `conformance`.
//!
//! | module | content |
//! |---|---|
//! | `tests` | the tests of this platform |
//! | `traffic` | messages from a timer, from early in the boot on, while the comm buffer moves |
//! | `site` | this machine as a place for the conformance suite |
//! | `control` | messages to the MM image itself |

mod control;
mod site;
mod tests;
mod traffic;

use crate::mm::BufferToCome;
use alloc::vec::Vec;
use control::Control;
use core::fmt::Write;
use log::LevelFilter;
use mm_conformance::report::Report;
use mm_conformance::test_protocol::{Findings, Task, TestProtocol};
use mm_conformance::{Lab, demo};
use ovmf_platform::devices::Console;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::memory::MemoryManager;
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::component::service::uefi_services::event::EventServices;
use patina::component::service::uefi_services::image::ImageServices;
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt};
use patina::component::service::uefi_services::timer_event::TimerEventServices;
use patina::error::Result;
use patina_mm::service::{MmCommunication, PlatformMmControl, SwMmiTrigger};
use site::Q35Site;
use spin::Mutex;
use traffic::Traffic;

/// MM's response to the example component; `None` until it was dispatched and got a response.
static EXAMPLES_RESPONSE: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// Keeps MM's response to the example component, for a test.
pub(crate) fn keep_the_examples_response(response: Vec<u8>) {
    *EXAMPLES_RESPONSE.lock() = Some(response);
}

/// Everything that the tests use.
#[derive(Clone, Copy)]
struct Services {
    mm: &'static dyn MmCommunication,
    trigger: &'static dyn SwMmiTrigger,
    launcher: &'static dyn PlatformMmControl,
    memory: &'static dyn MemoryManager,
    images: &'static dyn ImageServices,
    tables: &'static dyn ConfigurationTableServices,
    protocols: &'static dyn ProtocolServices,
    events: &'static dyn EventServices,
    timers: &'static dyn TimerEventServices,
}

/// The services that reach MM.
type MmServices = (
    Service<dyn MmCommunication>,
    Service<dyn SwMmiTrigger>,
    Service<dyn PlatformMmControl>,
    Service<BufferToCome>,
);

/// Component: publishes the test protocol, and starts the traffic that goes on until the tests.
pub(crate) struct SelfTest;

#[component]
impl SelfTest {
    fn entry_point(
        self,
        (mm, trigger, launcher, to_come): MmServices,
        (memory, images, tables): (
            Service<dyn MemoryManager>,
            Service<dyn ImageServices>,
            Service<dyn ConfigurationTableServices>,
        ),
        (protocols, events, timers): (
            Service<dyn ProtocolServices>,
            Service<dyn EventServices>,
            Service<dyn TimerEventServices>,
        ),
    ) -> Result<()> {
        let services = Services {
            mm: *mm,
            trigger: *trigger,
            launcher: *launcher,
            memory: *memory,
            images: *images,
            tables: *tables,
            protocols: *protocols,
            events: *events,
            timers: *timers,
        };
        let traffic = Traffic::start(services, to_come.0)?;
        let interface =
            TestProtocol::publishable(move |task, findings| run(services, &traffic, task, findings));
        services
            .protocols
            .install_protocol::<TestProtocol>(None, interface)?;
        Ok(())
    }
}

/// Does what the application asks for; `true` if all went well.
fn run(services: Services, traffic: &Traffic, task: Task, findings: Findings) -> bool {
    traffic.stop();
    let control = Control(services.mm);
    let Some(lab) = Lab::new(Q35Site::new(services)) else {
        log::error!("no memory for the conformance suite");
        return false;
    };
    match task {
        Task::Test | Task::PlatformTest => {
            let mut report = Report::new(Console);
            tests::platform(&mut report, services, traffic, findings);
            let smis = match task {
                Task::PlatformTest => control.state().map_or(0, |state| state.smis.get()),
                _ => tests::suite(&mut report, &lab, control),
            };
            tests::fault(&mut report, services);
            report.finish(smis)
        }
        Task::Soak => tests::soak(&lab, control, findings),
        Task::Demo => {
            // The demo makes its mistakes on purpose.
            log::set_max_level(LevelFilter::Off);
            let mut print = |line: core::fmt::Arguments<'_>| {
                // The serial port takes everything.
                let _ = writeln!(Console, "{line}");
            };
            let place = "which is Rust in SMRAM, behind real SMIs of QEMU's Q35 machine";
            demo::run(&lab, place, &mut print)
                .inspect_err(|why| log::error!("{why}"))
                .is_ok()
        }
    }
}
