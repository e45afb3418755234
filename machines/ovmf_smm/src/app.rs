//! The entry point, the platform's configuration, and the components.

use crate::executor::{MmiCount, SmmCoreExecutor};
use crate::q35::{self, Q35};
use crate::smm_core::SmmCorePrivate;
use crate::tests::Tests;
use crate::{hobs, host_tests, site};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use core::cell::RefCell;
use core::fmt::{self, Write};
use mm_conformance::report::{NotOk, Report};
use patina::component::component;
use patina::component::params::{Commands, Config};
use patina::component::service::Service;
use patina::error::{EfiError, Result};
use patina_mm::component::communicator::MmCommunicator;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{
    AcpiBase, CommunicateBuffer, MmCommunicationConfiguration, MmCommunicationOptions, MmiPort,
};
use patina_mm::service::SwMmiTrigger;
use patina_mm_test::dispatcher::{Dispatched, Dispatcher};
use uefi_app::Firmware;
use uefi_app::console::Console;
use uefi_app::protocols::BootProtocols;

/// The comm buffer's identifier.
pub(crate) const BUFFER_ID: u8 = 0;

/// Pages of the comm buffer: as many as edk2 sets aside for Standalone MM.
pub(crate) const BUFFER_PAGES: usize = 128;

/// What edk2's own callers write to the command port.
const COMMAND: u8 = 0;

/// The report of the run.
pub(crate) type SharedReport = Rc<RefCell<Report<Console>>>;

uefi_app::application!(run);

/// `true` if everything went as it should.
fn run(firmware: Firmware) -> bool {
    let mode = firmware.mode();
    let report = SharedReport::new(RefCell::new(Report::new(Console)));
    let mmis = MmiCount::default();
    let memory = match firmware.allocate_runtime_pages(BUFFER_PAGES) {
        Ok(memory) => memory,
        Err(error) => {
            print(format_args!("no memory for a comm buffer: {error:?}"));
            return false;
        }
    };
    if mode.starts_with(b"demo") {
        return tell(firmware, memory);
    }
    if mode.starts_with(b"soak") {
        return site::soak(&report, firmware, mmis, memory);
    }
    host_tests::run(&mut report.borrow_mut(), firmware);
    // Not this repository's machines: what `cargo xtask test --machine own` boots may have them.
    let hobs = hobs::find(firmware);
    if !hobs.is_empty() {
        return hobs::run(&report, firmware, &hobs);
    }
    if let Err(error) = SmmCorePrivate::find(firmware, &BootProtocols::new(firmware.boot())) {
        let why = alloc::format!("no comm-buffer HOB, and no SMM core to reach: {error}");
        let mut report = report.borrow_mut();
        report.verdict("firmware.has_mm", Err(NotOk::Failed(why)));
        return report.finish(0);
    }

    let mut dispatcher = Dispatcher::new();
    match configuration(memory) {
        Ok(configuration) => dispatcher.storage().add_config(configuration),
        Err(error) => log::error!("no comm buffer: {error}"),
    }
    dispatcher.storage().add_config(MmCommunicationOptions {
        command_value: COMMAND,
        ..Default::default()
    });
    dispatcher
        .storage()
        .add_service(BootProtocols::new(firmware.boot()));
    dispatcher.add(SwMmiManager::new());
    dispatcher.add(SmmCommunicator {
        firmware,
        mmis: mmis.clone(),
    });
    dispatcher.add(Tests {
        firmware,
        report: report.clone(),
        mmis: mmis.clone(),
    });
    let outcome = dispatcher.dispatch();
    report
        .borrow_mut()
        .test("components.all_are_dispatched", || all_succeeded(&outcome));
    site::run(&report, firmware, mmis.clone(), memory);
    report.borrow_mut().finish(mmis.get())
}

/// Holds the demo's conversation.
fn tell(firmware: Firmware, memory: *mut u8) -> bool {
    // `cargo xtask demo --html` draws the log; the other output does not consist of log lines.
    log::set_max_level(log::LevelFilter::Trace);
    let place = "which is edk2's SMM core in C, inside OVMF";
    let told = match site::open(firmware, MmiCount::default(), memory) {
        Some(lab) => mm_conformance::demo::run(&lab, place, &mut print),
        None => Err(String::from("the chipset has no PMBASE")),
    };
    if let Err(why) = &told {
        print(format_args!("error: {why}"));
    }
    told.is_ok()
}

fn print(line: fmt::Arguments<'_>) {
    // Only a notification in the middle of a line finds the port taken; the transcript then lacks that line.
    let _ = writeln!(Console, "{line}");
}

/// The configuration that a platform's code would write: the ports, the ACPI base, the comm buffer.
fn configuration(memory: *mut u8) -> Result<MmCommunicationConfiguration> {
    let acpi_base = Q35::new().acpi_base().map_err(|error| {
        log::error!("{error}");
        EfiError::NotReady
    })?;
    // SAFETY: the pages were allocated for this and are never freed; the suite's lab has them when this buffer is done.
    let buffer =
        unsafe { CommunicateBuffer::from_raw_parts(memory, BUFFER_PAGES * mm_wire::PAGE_LEN, BUFFER_ID) };
    let buffer = buffer.map_err(|error| {
        log::error!("{error}");
        EfiError::DeviceError
    })?;
    Ok(MmCommunicationConfiguration {
        acpi_base: AcpiBase::Io(acpi_base),
        cmd_port: MmiPort::Smi(q35::COMMAND_PORT),
        data_port: MmiPort::Smi(q35::DATA_PORT),
        comm_buffers: vec![buffer],
        enable_comm_buffer_updates: false,
        updatable_buffer_id: None,
    })
}

pub(crate) fn all_succeeded(outcome: &Dispatched) -> core::result::Result<(), NotOk> {
    log::info!("{} components succeeded", outcome.succeeded.len());
    for (component, why) in &outcome.not_run {
        log::error!("{component} never ran: {why}");
    }
    for (component, error) in &outcome.failed {
        log::error!("{component} failed: {error}");
    }
    match (&outcome.not_run[..], &outcome.failed[..]) {
        ([], []) => Ok(()),
        (not_run, failed) => Err(NotOk::Failed(alloc::format!(
            "never ran: {not_run:?}, failed: {failed:?}"
        ))),
    }
}

/// Component: offers `MmCommunication` through the SMM core's shared block.
pub(crate) struct SmmCommunicator {
    pub(crate) firmware: Firmware,
    pub(crate) mmis: MmiCount,
}

#[component]
impl SmmCommunicator {
    fn entry_point(
        self,
        config: Config<MmCommunicationConfiguration>,
        options: Config<MmCommunicationOptions>,
        trigger: Service<dyn SwMmiTrigger>,
        mut commands: Commands,
    ) -> Result<()> {
        let protocols = BootProtocols::new(self.firmware.boot());
        let block = SmmCorePrivate::find(self.firmware, &protocols).map_err(|error| {
            log::error!("{error}");
            EfiError::NotFound
        })?;
        let communicator = MmCommunicator::with_executor(SmmCoreExecutor {
            block,
            boot: self.firmware.boot(),
            trigger,
            options: *options,
            mmis: self.mmis,
        });
        communicator.set_comm_buffers(config.comm_buffers.clone())?;
        commands.add_service(communicator);
        Ok(())
    }
}
