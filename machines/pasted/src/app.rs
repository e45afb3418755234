//! The application.

use crate::memory::BootMemory;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::Cell;
use core::fmt::Write;
use core::marker::PhantomData;
use mm_wire::message::variable::{self, FunctionHeader, PayloadSize, function};
use patina::component::service::Service;
use patina::component::{IntoComponent, component};
use patina::pi::hob::{Hob, HobList};
use patina::{BinaryGuid, Guid};
use patina_mm::component::communicator::Status;
use patina_mm::service::MmCommunication;
use patina_mm_test::Dispatcher;
use uefi_app::Firmware;
use uefi_app::console::Console;
use uefi_app::protocols::BootProtocols;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Where the HOB list is (PI 1.9, volume 3, 4.3).
const HOB_LIST: BinaryGuid = BinaryGuid::from_string("7739f24c-93d7-11d4-9a3a-0090273fc14d");

/// The comm buffers that a platform may have.
const BUFFERS: [u8; 2] = [0, 1];

/// Replaces what `patina_dxe_core` has under these names.
mod core_of_this_application {
    use super::{Dispatcher, IntoComponent, PhantomData};

    /// Adds to the dispatcher; `L` says what.
    pub(crate) struct Add<'a, L>(pub(super) &'a mut Dispatcher, pub(super) PhantomData<L>);

    /// [`Add`] of components.
    pub(crate) struct Component;

    /// [`Add`] of configurations.
    pub(crate) struct Config;

    impl Add<'_, Component> {
        pub(crate) fn component<I>(&mut self, component: impl IntoComponent<I>) {
            self.0.add(component);
        }
    }

    impl Add<'_, Config> {
        #[allow(dead_code, reason = "not each machine needs a configuration")]
        pub(crate) fn config<C: Default + 'static>(&mut self, config: C) {
            self.0.storage().add_config(config);
        }
    }

    /// What a platform consists of.
    pub(crate) trait ComponentInfo {
        fn configs(_add: Add<'_, Config>) {}

        fn components(add: Add<'_, Component>);
    }
}

/// The Rust as `mm_doctor` wrote it.
mod board {
    use super::core_of_this_application as patina_dxe_core;

    include!(env!("PASTED_RUST"));

    /// Adds its components and configurations.
    pub(super) fn add(dispatcher: &mut super::Dispatcher) {
        Board::configs(Add(dispatcher, super::PhantomData));
        Board::components(Add(dispatcher, super::PhantomData));
    }
}

uefi_app::application!(run);

/// `true` if the Rust works here.
fn run(firmware: Firmware) -> bool {
    let result = try_out(firmware);
    let words = match &result {
        Ok(()) => "PASTED ok",
        Err(why) => why,
    };
    // Only a notification in the middle of a line finds the port taken.
    let _ = writeln!(Console, "{words}");
    result.is_ok()
}

fn try_out(firmware: Firmware) -> Result<(), String> {
    #[cfg(target_arch = "aarch64")]
    reserve(firmware)?;
    let mut dispatcher = Dispatcher::new();
    dispatcher
        .storage()
        .add_service(BootProtocols::new(firmware.boot()));
    dispatcher.storage().add_service(BootMemory(firmware.boot()));
    board::add(&mut dispatcher);
    let sent = Rc::new(Cell::new(0));
    dispatcher.add(Sender(Rc::clone(&sent)));
    let mut list = HobList::default();
    if let Some(start) = firmware.configuration_table(&HOB_LIST) {
        list.discover_hobs(start.cast_const());
    }
    for hob in list.iter() {
        if let Hob::GuidHob(hob, data) = hob {
            for parse in dispatcher.storage().get_hob_parsers(&hob.name) {
                parse(data, dispatcher.storage());
            }
        }
    }
    let outcome = dispatcher.dispatch();
    if !outcome.failed.is_empty() || !outcome.not_run.is_empty() {
        return Err(format!("PASTED failed: {outcome:?}"));
    }
    match sent.get() {
        0 => Err("PASTED failed: no comm buffer carried a message".into()),
        _ => Ok(()),
    }
}

/// Allocates the shared region, as the SAFETY comment of the Rust promises.
#[cfg(target_arch = "aarch64")]
fn reserve(firmware: Firmware) -> Result<(), String> {
    use aarch64_monitor::layout::SHARED;
    use patina::uefi::boot_services::BootServices as _;
    use patina::uefi::boot_services::allocation::AllocType;
    use patina::uefi::memory::EfiMemoryType;

    let [start, len] =
        [SHARED.start(), SHARED.len()].map(|number| usize::try_from(number).unwrap_or_default());
    let pages = len.div_ceil(mm_wire::PAGE_LEN);
    let allocated = firmware.boot().allocate_pages(
        AllocType::Address(start),
        EfiMemoryType::RuntimeServicesData,
        pages,
    );
    allocated
        .map(drop)
        .map_err(|status| format!("PASTED failed: the shared region is taken: {status:?}"))
}

/// Component: sends a message through each comm buffer.
struct Sender(Rc<Cell<usize>>);

#[component]
impl Sender {
    fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        let recipient = variable::GUID.to_bytes();
        let header = FunctionHeader::new(function::GET_PAYLOAD_SIZE);
        let request = [header.as_bytes(), PayloadSize::default().as_bytes()].concat();
        for id in BUFFERS {
            let response = match mm.communicate(id, &request, Guid::from_bytes(&recipient)) {
                Err(Status::CommBufferNotFound) => continue,
                response => response?,
            };
            let payload = response.get(size_of::<FunctionHeader>()..).unwrap_or_default();
            match PayloadSize::read_from_bytes(payload) {
                Ok(size) if size != PayloadSize::default() => {}
                _ => return Err(patina::error::EfiError::ProtocolError),
            }
            self.0.set(self.0.get().saturating_add(1));
            let _ = writeln!(Console, "PASTED comm buffer {id}: {} bytes back", response.len());
        }
        Ok(())
    }
}
