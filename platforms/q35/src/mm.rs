//! Management Mode on this machine: what launches it, and what it learns about comm buffers.
//!
//! ```text
//! HOBs ─┬─► MmLaunch ── PlatformMmControl ──────────────────┐
//!       └─► MmHobConfiguration ── final configuration ──► SwMmiManager ── SwMmiTrigger ──► MmCommunicator
//! ```

pub(crate) mod comm_buffer_hobs;
mod guard;
mod launcher;
mod memory;

pub(crate) use guard::SmramGuard;
pub(crate) use launcher::BufferToCome;
use launcher::Launcher;
pub(crate) use q35_mm::chipset::COMMAND;
#[cfg(feature = "conformance")]
pub(crate) use {
    launcher::IMAGE,
    memory::{smram_window, within_reach},
    q35_mm::chipset::COMMAND_PORT,
};

use alloc::vec::Vec;
use mm_core::CommBuffer;
use mm_wire::hob::{COMM_REGION_HOB_GUID, CommBufferPlace, CommRegion, PlaceError};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::hob::{FromHob, Hob, HobParseError};
use patina::component::params::Commands;
use patina::component::service::Service;
use patina::component::service::memory::MemoryManager;
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};
use q35_mm::handoff::RUNTIME_BUFFER_HOB;

/// A comm-region HOB, or why it is not a valid one.
struct CommRegionHob(core::result::Result<CommRegion, PlaceError>);

impl FromHob for CommRegionHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_bytes(&COMM_REGION_HOB_GUID.to_bytes());

    fn parse(data: &[u8]) -> core::result::Result<Self, HobParseError> {
        Ok(Self(CommRegion::of_hob(data)))
    }
}

/// The HOB of the runtime driver's comm buffer, or why it is not valid. Only MM gets it: the driver finds it by itself.
struct RuntimeBufferHob(core::result::Result<CommBufferPlace, PlaceError>);

impl FromHob for RuntimeBufferHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_bytes(&RUNTIME_BUFFER_HOB.to_bytes());

    fn parse(data: &[u8]) -> core::result::Result<Self, HobParseError> {
        Ok(Self(CommBufferPlace::of_buffer_hob(data)))
    }
}

/// Component: offers the [`Launcher`], which passes to MM what the PEI phase left in HOBs.
///
/// `MmHobConfiguration` makes this side's configuration of the same HOBs. Comm buffer 0 may move:
/// MM serves only buffers that it knows before SMRAM is locked, so the memory that it may move to
/// is reserved here, as the service [`BufferToCome`].
pub(crate) struct MmLaunch;

#[component]
impl MmLaunch {
    fn entry_point(
        self,
        hobs: Hob<CommRegionHob>,
        runtime: Hob<RuntimeBufferHob>,
        memory: Service<dyn MemoryManager>,
        tables: Service<dyn ConfigurationTableServices>,
        mut commands: Commands,
    ) -> Result<()> {
        let regions = hobs.iter().map(|hob| hob.0.map(|region| region.place));
        let places = regions.chain(runtime.iter().map(|hob| hob.0));
        let places: Vec<CommBufferPlace> =
            places.collect::<core::result::Result<_, _>>().map_err(|error| {
                log::error!("MM is not launched: {error}");
                EfiError::InvalidParameter
            })?;
        let to_come = BufferToCome::reserve(*memory)?;
        let known = places.iter().map(|place| CommBuffer {
            region: place.region(),
            mailbox: place.mailbox(),
        });
        let buffers = known.chain([to_come.0]).collect();
        commands.add_service(to_come);
        commands.add_service(Launcher::new(buffers, *memory, *tables));
        Ok(())
    }
}
