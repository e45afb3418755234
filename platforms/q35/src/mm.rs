//! Management Mode on this machine: who launches it, and what it is told.
//!
//! ```text
//! HOBs ─┬─► MmLaunch ── PlatformMmControl ──────────────────┐
//!       └─► MmHobConfiguration ── locked configuration ──► SwMmiManager ── SwMmiTrigger ──► MmCommunicator
//! ```

pub(crate) mod comm_buffer_hobs;
mod guard;
mod launcher;
mod memory;

pub(crate) use guard::SmramGuard;
use launcher::Launcher;
pub(crate) use launcher::{BufferToCome, COMMAND};
#[cfg(feature = "conformance")]
pub(crate) use {
    launcher::{COMMAND_PORT, IMAGE},
    memory::{smram_window, within_reach},
};

use alloc::vec::Vec;
use mm_core::CommBuffer;
use mm_wire::hob::{CommBufferPlace, CommRegion, PlaceError};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::hob::{FromHob, Hob, HobParseError};
use patina::component::params::Commands;
use patina::component::service::Service;
use patina::component::service::memory::MemoryManager;
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};

/// A comm-region HOB, or why it is none.
struct CommRegionHob(core::result::Result<CommRegion, PlaceError>);

impl FromHob for CommRegionHob {
    const HOB_GUID: BinaryGuid = BinaryGuid::from_string("d4ffc718-fb82-4274-9afc-aa8b1eef5293");

    fn parse(data: &[u8]) -> core::result::Result<Self, HobParseError> {
        Ok(Self(CommRegion::of_hob(data)))
    }
}

/// Component: offers the [`Launcher`], which tells MM what the PEI phase left in HOBs.
///
/// `MmHobConfiguration` makes this side's configuration of the same HOBs. Comm buffer 0 may move: MM serves only what it is
/// told of before SMRAM is locked, so the place that it may move to is set aside here, as the service [`BufferToCome`].
pub(crate) struct MmLaunch;

#[component]
impl MmLaunch {
    fn entry_point(
        self,
        hobs: Hob<CommRegionHob>,
        memory: Service<dyn MemoryManager>,
        tables: Service<dyn ConfigurationTableServices>,
        mut commands: Commands,
    ) -> Result<()> {
        let places = hobs.iter().map(|hob| hob.0.map(|region| region.place));
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
