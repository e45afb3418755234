//! The MM core of the secure world: one request at a time, in a comm buffer that is known.

use crate::memory::Window;
use mm_comm::SharedRegion;
use mm_conformance::mm::State;
use mm_core::handlers::VariableStore;
use mm_core::{CommBuffer, MmCore, Mmi, Outcome};
use mm_wire::{AddressRange, EfiStatus};

/// How many comm buffers there can be.
pub const MAX_BUFFERS: usize = 8;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No handler took it, or its handler failed.
    NotSupported,
    /// The buffer holds no request, or one that does not fit into it.
    InvalidParameters,
    /// The address is no comm buffer's, or the memory is not for sharing.
    Denied,
}

impl Refusal {
    /// What SPM_MM says.
    #[must_use]
    pub const fn spm_mm(self) -> i32 {
        match self {
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -3,
        }
    }

    /// What FFA_ERROR says.
    #[must_use]
    pub const fn ffa(self) -> i32 {
        match self {
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -6,
        }
    }
}

/// The MM core, its memory, and the buffers that it serves.
#[derive(Debug)]
pub struct Mm<'a> {
    ram: SharedRegion,
    shared: AddressRange,
    mmram: AddressRange,
    scratch: &'a mut [u8],
    variables: VariableStore<'a>,
    buffers: [Option<AddressRange>; MAX_BUFFERS],
    requests: u64,
}

impl<'a> Mm<'a> {
    /// Makes an MM core. `ram` is all non-secure RAM, `shared` the part of it that comm buffers may lie in.
    #[must_use]
    pub const fn new(
        ram: SharedRegion,
        shared: AddressRange,
        mmram: AddressRange,
        scratch: &'a mut [u8],
        variables: VariableStore<'a>,
    ) -> Self {
        Self {
            ram,
            shared,
            mmram,
            scratch,
            variables,
            buffers: [None; MAX_BUFFERS],
            requests: 0,
        }
    }

    /// All non-secure RAM.
    #[must_use]
    pub const fn ram(&self) -> &SharedRegion {
        &self.ram
    }

    /// How many requests the core was given.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// Makes memory a comm buffer. Buffer 0 is the first: those that there were are forgotten.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where it does not lie in the shared region, [`Refusal::InvalidParameters`] where there is no such
    /// memory or buffer, it overlaps another buffer, or the core would not serve it.
    pub fn set_buffer(&mut self, index: u64, start: u64, len: u64) -> Result<(), Refusal> {
        let region = AddressRange::new(start, len).ok_or(Refusal::InvalidParameters)?;
        if !self.shared.contains(region) {
            return Err(Refusal::Denied);
        }
        if index == 0 {
            self.buffers = [None; MAX_BUFFERS];
        }
        if self.buffers.iter().flatten().any(|other| other.overlaps(region)) {
            return Err(Refusal::InvalidParameters);
        }
        let buffer = CommBuffer {
            region,
            mailbox: None,
        };
        if MmCore::new(&[self.mmram], &[buffer], self.scratch).is_err() {
            return Err(Refusal::InvalidParameters);
        }
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.buffers.get_mut(index))
            .ok_or(Refusal::InvalidParameters)?;
        *slot = Some(region);
        Ok(())
    }

    /// Serves the request in the comm buffer that starts at `address`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] says why no response stands in the buffer.
    pub fn serve(&mut self, address: u64) -> Result<(), Refusal> {
        let region = self
            .buffers
            .iter()
            .flatten()
            .find(|region| region.start() == address)
            .ok_or(Refusal::Denied)?;
        let buffers = [CommBuffer {
            region: *region,
            mailbox: None,
        }];
        let mut window = Window::new(&self.ram, *region).ok_or(Refusal::Denied)?;
        let Ok(mut core) = MmCore::new(&[self.mmram], &buffers, self.scratch) else {
            return Err(Refusal::InvalidParameters);
        };
        self.requests = self.requests.saturating_add(1);
        let visit = mm_conformance::mm::enter(
            &mut core,
            &buffers,
            &mut self.variables,
            // Without a mailbox it says at once what it has to say.
            &mut State::default(),
            &mut window,
            Mmi::default(),
        );
        match visit.outcomes().first() {
            Some(Outcome::Dispatched {
                status: EfiStatus::SUCCESS,
                ..
            }) => Ok(()),
            Some(Outcome::Dispatched { .. } | Outcome::NoHandler { .. }) => Err(Refusal::NotSupported),
            _ => Err(Refusal::InvalidParameters),
        }
    }
}
