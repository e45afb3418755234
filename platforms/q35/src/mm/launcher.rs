//! Copies the MM image into SMRAM, and locks SMRAM.
//!
//! 1. SMRAM is opened, the image copied there, and the data that MM needs is written behind it.
//! 2. Code that moves SMBASE into SMRAM is copied to 0x38000, in ordinary memory, where the first
//!    SMI starts. Then SMIs are switched on, and the first one is raised.
//! 3. The second one starts MM, which reports whether it accepts that data.
//! 4. SMRAM is closed, which is checked, and locked, and SMIs are locked on. Until the next reset
//!    only MM reaches SMRAM.
//!
//! All of it happens before any driver is started, and before any code from outside this firmware
//! runs. SMRAM is locked even if one of the steps failed, so that no other code can put its own MM
//! there; if the launcher did not run at all, `guard` locks it.
//!
//! A failed launch leaves SMIs switched off, but they can be switched on again: under QEMU any code
//! in ring 0 can switch them on, and run its own code in System Management Mode if SMBASE was not
//! moved, or if SMRAM is exposed. It can do so under any firmware without MM. Nothing relies on MM
//! then, and SMRAM does not hold secrets.

use super::memory::{self, FirstSmi};
use crate::chipset::{PciByte, Q35Chipset, ports};
use alloc::vec::Vec;
use core::cell::Cell;
use mm_comm::ich9::{self, Ich9Error};
use mm_comm::{Ports, SharedRegion};
use mm_core::CommBuffer;
use mm_wire::{AddressRange, PAGE_LEN};
use ovmf_platform::devices::PM_BASE;
use patina::component::service::IntoService;
use patina::component::service::memory::{MemoryError, MemoryManager};
use patina::component::service::uefi_services::config_table::ConfigurationTableServices;
use patina::error::{EfiError, Result};
use patina_mm::service::PlatformMmControl;
use q35_mm::chipset::{
    CLOSED, COMMAND, COMMAND_PORT, DATA_PORT, NotLocked, OPEN, ProcessorsError, first_smi, lock,
    lock_without_mm, require_one_processor,
};
use q35_mm::handoff::{HandOff, STATE_OFFSET, State};
use q35_mm::layout::{HANDOFF, LARGEST_BUFFER, SMBASE, SMRAM_BASE};
use thiserror::Error;
use zerocopy::IntoBytes;

/// SMRAM from its start to the last byte that is not zero (`build.rs`).
pub(crate) const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/smram.bin"));

/// `mov dword ptr [0x3ff00], SMBASE; rsm`, as 16-bit code: the field SMBASE of the save state.
const MOVE_SMBASE: [u8; 14] = {
    let [b0, b1, b2, b3] = SMBASE.to_le_bytes();
    [
        0x66, 0x67, 0xc7, 0x05, 0x00, 0xff, 0x03, 0x00, b0, b1, b2, b3, 0x0f, 0xaa,
    ]
};

/// The offset of the save state's revision behind the first SMI's entry, and its value in the
/// layout that has the field SMBASE where `MOVE_SMBASE` writes it (AMD64 volume 2, table 10-1).
const REVISION_OFFSET: usize = 0x7efc;
const REVISION: u32 = 0x2_0064;

/// Bytes by which MM's memory is recognised from outside.
const LOOK: usize = 64;

/// Pauses to wait for an SMI.
const PATIENCE: u32 = 100_000;

/// Why MM was not launched.
#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    Processors(#[from] ProcessorsError),
    #[error(transparent)]
    Ich9(#[from] Ich9Error),
    #[error("PMBASE is {found:#x} in the LPC bridge; this firmware takes SMI_EN to be behind {expected:#x}")]
    PmBase { found: u16, expected: u16 },
    #[error("SMRAM is locked already: its register is {0:#x}")]
    AlreadyLocked(u8),
    #[error("SMRAM cannot be mapped: {0}")]
    NotMapped(EfiError),
    #[error("SMRAM cannot be reached")]
    Window,
    #[error("the MM image has {0} bytes, more than SMRAM takes")]
    Image(usize),
    #[error("{0} comm buffers are more than can be handed to MM")]
    TooManyBuffers(usize),
    #[error("the memory of the first SMI is not free: {0:?}")]
    FirstSmiMemory(MemoryError),
    #[error("the first SMI did not come, or left revision {0:#x} in its save state")]
    NoFirstSmi(u32),
    #[error("MM did not start: it left state {0}")]
    NotStarted(u64),
    #[error("MM refused its comm buffers; the serial line says why")]
    Refused,
    #[error("closed SMRAM can be read from outside: no VGA device covers it")]
    Exposed,
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
}

/// Launches MM when [`patina_mm`] asks for it, before the first MMI.
#[derive(IntoService)]
#[service(dyn PlatformMmControl)]
pub(crate) struct Launcher {
    buffers: Vec<CommBuffer>,
    memory: &'static dyn MemoryManager,
    tables: &'static dyn ConfigurationTableServices,
    /// The result of the launch; `None` before it.
    outcome: Cell<Option<Result<()>>>,
}

impl PlatformMmControl for Launcher {
    /// Launches MM once. A second call returns the same result, and leaves the machine alone,
    /// because MM may be running.
    fn init(&self) -> Result<()> {
        let outcome = self.outcome.get().unwrap_or_else(|| self.launch_and_lock());
        self.outcome.set(Some(outcome));
        outcome
    }
}

impl Launcher {
    fn launch_and_lock(&self) -> Result<()> {
        let launched = self.launch();
        let locked = match launched {
            Ok(()) => lock(&Q35Chipset),
            // An SMI might still run the code at 0x38000.
            Err(_) => lock_without_mm(&Q35Chipset),
        };
        let failures = [launched.err(), locked.err().map(LaunchError::NotLocked)];
        let mut failures = failures.into_iter().flatten().peekable();
        if failures.peek().is_none() {
            log::info!(
                "MM runs in SMRAM, which is locked: {} bytes of image",
                IMAGE.len()
            );
            return Ok(());
        }
        for failure in failures {
            log::error!("platform: MM was not launched: {failure}");
        }
        Err(EfiError::DeviceError)
    }

    pub(super) fn new(
        buffers: Vec<CommBuffer>,
        memory: &'static dyn MemoryManager,
        tables: &'static dyn ConfigurationTableServices,
    ) -> Self {
        Self {
            buffers,
            memory,
            tables,
            outcome: Cell::new(None),
        }
    }

    fn launch(&self) -> core::result::Result<(), LaunchError> {
        require_one_processor(&Q35Chipset)?;
        let found = ich9::pm_base(Some(&ports()))?;
        if found != PM_BASE {
            let expected = PM_BASE;
            return Err(LaunchError::PmBase { found, expected });
        }
        let smram = &memory::smram_window(self.tables).map_err(LaunchError::NotMapped)?;
        PciByte::SMRAM.write(OPEN);
        let register = PciByte::SMRAM.read();
        if register != OPEN {
            return Err(LaunchError::AlreadyLocked(register));
        }
        let block = HandOff::new(&self.buffers).ok_or(LaunchError::TooManyBuffers(self.buffers.len()))?;
        let (handoff, state_at) = (offset(HANDOFF)?, offset(HANDOFF.saturating_add(STATE_OFFSET))?);
        let copied =
            smram.wipe(0, smram.len()) && smram.write(0, IMAGE) && smram.write(handoff, block.as_bytes());
        if !copied {
            return Err(LaunchError::Image(IMAGE.len()));
        }

        first_smi(&Q35Chipset, || self.place_first_code(), move_smbase)?;
        let state = wait_for(State::New.number(), || read_u64(smram, state_at));
        match State::of_number(state) {
            Some(State::Ready) => close(smram),
            Some(State::Refused) => Err(LaunchError::Refused),
            _ => Err(LaunchError::NotStarted(state)),
        }
    }

    /// Copies the code to the address at which the first SMI starts.
    fn place_first_code(&self) -> core::result::Result<FirstSmi, LaunchError> {
        let first = FirstSmi::take(self.memory)?;
        if first.pages().write(0, &MOVE_SMBASE) {
            Ok(first)
        } else {
            Err(LaunchError::Window)
        }
    }
}

/// Raises the first SMI, whose code is in place.
fn move_smbase(first: &FirstSmi) -> core::result::Result<(), LaunchError> {
    let revision = wait_for(0, || {
        let mut revision = [0; 4];
        // The offset lies within the pages.
        let _ = first.pages().read(REVISION_OFFSET, &mut revision);
        u32::from_le_bytes(revision)
    });
    if revision == REVISION {
        Ok(())
    } else {
        Err(LaunchError::NoFirstSmi(revision))
    }
}

/// Raises an SMI, and reads until the value is not `unchanged` any more.
fn wait_for<T: PartialEq + Copy>(unchanged: T, look: impl Fn() -> T) -> T {
    let ports = ports();
    ports.write_u8(DATA_PORT, 0);
    ports.write_u8(COMMAND_PORT, COMMAND);
    let looks = (0..PATIENCE).map(|_| {
        ports.pause();
        look()
    });
    looks
        .into_iter()
        .find(|seen| *seen != unchanged)
        .unwrap_or(unchanged)
}

fn offset(address: u64) -> core::result::Result<usize, LaunchError> {
    let offset = address
        .checked_sub(SMRAM_BASE)
        .and_then(|offset| usize::try_from(offset).ok());
    offset.ok_or(LaunchError::Window)
}

fn read_u64(region: &SharedRegion, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    // If it cannot be read, this is zero.
    let _ = region.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Closes SMRAM to all code outside MM, and checks that it is closed: if nothing else is at its
/// addresses, QEMU leaves it open to all.
fn close(smram: &SharedRegion) -> core::result::Result<(), LaunchError> {
    PciByte::SMRAM.write(CLOSED);
    let (image, mut seen) = (IMAGE.first_chunk::<LOOK>(), [0; LOOK]);
    if image.is_some() && smram.read(0, &mut seen) && image != Some(&seen) {
        return Ok(());
    }
    Err(LaunchError::Exposed)
}

/// Where comm buffer 0 may move to.
#[derive(Clone, Copy, Debug, IntoService)]
#[service(BufferToCome)]
pub(crate) struct BufferToCome(pub(crate) CommBuffer);

impl BufferToCome {
    /// Pages of the buffer: as many as MM can copy.
    const PAGES: usize = LARGEST_BUFFER;

    pub(super) fn reserve(memory: &dyn MemoryManager) -> Result<Self> {
        let start = memory::runtime_pages(memory, Self::PAGES)?;
        let mailbox = memory::runtime_pages(memory, 1)?;
        let region =
            AddressRange::new(start, (Self::PAGES * PAGE_LEN) as u64).ok_or(EfiError::OutOfResources)?;
        Ok(Self(CommBuffer {
            region,
            mailbox: Some(mailbox),
        }))
    }
}
