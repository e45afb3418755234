//! The MM core of the secure world: one request at a time, in a comm buffer that is known.

use crate::memory::Window;
use mm_comm::SharedRegion;
use mm_core::handlers::VariableStore;
use mm_core::{CommBuffer, MmCore, Mmi, Outcome, SystemMemory};
use mm_liar::State;
use mm_wire::header::{LENGTH_OFFSET, MAX_HEADER_LEN};
use mm_wire::{AddressRange, EfiStatus, Header, HeaderFormat};

/// Bytes of the first comm buffer, which corresponds to the one in a partition's manifest.
pub const FIRST_BUFFER_LEN: u64 = 0x1_0000;

/// How many comm buffers there can be.
pub const MAX_BUFFERS: usize = 8;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no handler for it, or its handler failed.
    NotSupported,
    /// The buffer holds no request, or one that does not fit into it.
    InvalidParameters,
    /// The address is not a comm buffer's, or the memory is not for sharing.
    Denied,
    /// The request is larger than the memory that MM has for a copy.
    NoMemory,
}

impl CallError {
    /// The code of SPM_MM.
    #[must_use]
    pub const fn spm_mm(self) -> i32 {
        match self {
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -3,
            Self::NoMemory => -5,
        }
    }

    /// The code of FFA_ERROR.
    #[must_use]
    pub const fn ffa(self) -> i32 {
        match self {
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -6,
            Self::NoMemory => -3,
        }
    }
}

/// The MM core, its memory, and the buffers that it serves.
#[derive(Debug)]
pub struct Mm<'a> {
    ram: SharedRegion,
    shared: AddressRange,
    buffers: [Option<AddressRange>; MAX_BUFFERS],
    core: Core<'a>,
}

/// The core's own memory.
#[derive(Debug)]
struct Core<'a> {
    mmram: AddressRange,
    scratch: &'a mut [u8],
    variables: VariableStore<'a>,
    requests: u64,
    /// Where the last request was, and its header, if it had one.
    last: Option<(AddressRange, Header)>,
}

impl<'a> Mm<'a> {
    /// Makes an MM core. `ram` is all non-secure RAM, `shared` the part of it that comm buffers may
    /// lie in. The first [`FIRST_BUFFER_LEN`] bytes of that are a comm buffer until [`Self::set_buffer`] names others.
    #[must_use]
    pub const fn new(
        ram: SharedRegion,
        shared: AddressRange,
        mmram: AddressRange,
        scratch: &'a mut [u8],
        variables: VariableStore<'a>,
    ) -> Self {
        let mut buffers = [None; MAX_BUFFERS];
        buffers[0] = AddressRange::new(shared.start(), FIRST_BUFFER_LEN);
        Self {
            ram,
            shared,
            buffers,
            core: Core {
                mmram,
                scratch,
                variables,
                requests: 0,
                last: None,
            },
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
        self.core.requests
    }

    /// Where the last request was, and its header, if it had one: for a demo.
    #[must_use]
    pub const fn last_request(&self) -> Option<(AddressRange, Header)> {
        self.core.last
    }

    /// Makes memory a comm buffer, in the place of the one with this number. Buffer 0 is the first:
    /// all earlier buffers are forgotten. After an error all stay as they were.
    ///
    /// # Errors
    ///
    /// [`CallError::Denied`] if it does not lie in the shared region, [`CallError::InvalidParameters`]
    /// if there is no such memory or buffer, it overlaps another buffer, or the core would not
    /// serve it.
    pub fn set_buffer(&mut self, index: u64, start: u64, len: u64) -> Result<(), CallError> {
        let region = AddressRange::new(start, len).ok_or(CallError::InvalidParameters)?;
        if !self.shared.contains(region) {
            return Err(CallError::Denied);
        }
        let mut buffers = self.buffers;
        if index == 0 {
            buffers = [None; MAX_BUFFERS];
        }
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| buffers.get_mut(index))
            .ok_or(CallError::InvalidParameters)?;
        // It replaces the buffer of that number, which it may overlap.
        *slot = None;
        if buffers.iter().flatten().any(|other| other.overlaps(region)) {
            return Err(CallError::InvalidParameters);
        }
        let buffer = CommBuffer {
            region,
            mailbox: None,
        };
        if MmCore::new(&[self.core.mmram], &[buffer], self.core.scratch).is_err() {
            return Err(CallError::InvalidParameters);
        }
        if let Some(slot) = usize::try_from(index)
            .ok()
            .and_then(|index| buffers.get_mut(index))
        {
            *slot = Some(region);
        }
        self.buffers = buffers;
        Ok(())
    }

    /// Serves the request in the comm buffer that starts at `address`.
    ///
    /// # Errors
    ///
    /// [`CallError`] says why no response is in the buffer.
    pub fn serve(&mut self, address: u64) -> Result<(), CallError> {
        let region = self
            .buffers
            .iter()
            .flatten()
            .find(|region| region.start() == address)
            .ok_or(CallError::Denied)?;
        let region = *region;
        let mut window = Window::new(&self.ram, region).ok_or(CallError::Denied)?;
        match self.core.dispatch(region, &mut window)? {
            Outcome::Dispatched {
                status: EfiStatus::SUCCESS,
                ..
            } => Ok(()),
            Outcome::Dispatched { .. } | Outcome::NoHandler { .. } => Err(CallError::NotSupported),
            _ => Err(CallError::InvalidParameters),
        }
    }

    /// Serves the request at `address` as edk2's StandaloneMm for Arm does.
    ///
    /// | step | edk2, `ArmPkg` |
    /// |---|---|
    /// | address and message are in the shared region, else DENIED | `ValidateMmCommBufferAddr` |
    /// | MessageLength or BufferSize bytes are copied, or NO_MEMORY | `PiMmStandaloneMmCpuDriverEntry` |
    /// | handlers get and set MessageLength or MessageSize | `PiMmCpuTpFwRootMmiHandler` |
    /// | as many bytes are copied back; success | `PiMmStandaloneMmCpuDriverEntry` |
    ///
    /// Success does not depend on what the handlers did, or on whether there is one. BufferSize
    /// stays as it was.
    ///
    /// Two things that the real one does are left out: a length that wraps with its header (v1),
    /// and a BufferSize that is smaller than the message, make it read its own memory. They are
    /// DENIED.
    ///
    /// # Errors
    ///
    /// [`CallError::Denied`] and [`CallError::NoMemory`].
    pub fn serve_as_standalone_mm(&mut self, address: u64) -> Result<(), CallError> {
        /// Bytes of EFI_MM_COMMUNICATE_HEADER with the first byte of its data, in C.
        const MINIMUM: u64 = 32;
        let room = AddressRange::new(address, MINIMUM)
            .filter(|start| self.shared.contains(*start))
            .and_then(|_| self.shared.end().checked_sub(address))
            .and_then(|len| AddressRange::new(address, len))
            .ok_or(CallError::Denied)?;
        let window = Window::new(&self.ram, room).ok_or(CallError::Denied)?;
        let mut header = [0; MAX_HEADER_LEN];
        let header_len = usize::try_from(room.len()).map_or(MAX_HEADER_LEN, |len| len.min(MAX_HEADER_LEN));
        let header = header.get_mut(..header_len).unwrap_or_default();
        if !window.read(address, header) {
            return Err(CallError::Denied);
        }
        let header = Header::parse(header).map_err(|_malformed| CallError::Denied)?;
        let message_len = match header.format() {
            HeaderFormat::V1 => header.message_len(),
            HeaderFormat::V3 => header.message_size(),
        };
        let needed = message_len
            .checked_add(header.format().header_len() as u64)
            .ok_or(CallError::Denied)?;
        if needed > room.len() || needed > header.total_len() {
            return Err(CallError::Denied);
        }
        let copied = AddressRange::new(address, header.total_len())
            .filter(|copied| room.contains(*copied))
            .ok_or(CallError::NoMemory)?;
        let mut view = StandaloneView {
            window,
            buffer_size: (header.format() == HeaderFormat::V3).then_some((address, needed)),
        };
        self.core
            .dispatch(copied, &mut view)
            .map(drop)
            .map_err(|_no_room| CallError::NoMemory)
    }
}

impl Core<'_> {
    /// Calls the handlers for the request in `region`, which is also the room for their response.
    fn dispatch(
        &mut self,
        region: AddressRange,
        memory: &mut dyn SystemMemory,
    ) -> Result<Outcome, CallError> {
        let buffers = [CommBuffer {
            region,
            mailbox: None,
        }];
        let Ok(mut core) = MmCore::new(&[self.mmram], &buffers, self.scratch) else {
            return Err(CallError::InvalidParameters);
        };
        self.requests = self.requests.saturating_add(1);
        let mut header = [0; MAX_HEADER_LEN];
        memory.read(region.start(), &mut header);
        self.last = Header::parse(&header).ok().map(|header| (region, header));
        let visit = mm_liar::enter(
            &mut core,
            &buffers,
            &mut self.variables,
            // Nothing is kept: a late response needs a mailbox.
            &mut State::default(),
            memory,
            Mmi::default(),
        );
        visit
            .outcomes()
            .first()
            .copied()
            .ok_or(CallError::InvalidParameters)
    }
}

/// A v3 header as StandaloneMm's handlers see it: its BufferSize covers header and message, and a
/// change of it is lost.
struct StandaloneView<'a> {
    window: Window<'a>,
    /// Where the header is, and its BufferSize as the handlers see it.
    buffer_size: Option<(u64, u64)>,
}

impl SystemMemory for StandaloneView<'_> {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let read = self.window.read(address, out);
        if let Some((header, buffer_size)) = self.buffer_size
            && header == address
            && let Some(field) = out.get_mut(LENGTH_OFFSET..).and_then(<[u8]>::first_chunk_mut)
        {
            *field = buffer_size.to_le_bytes();
        }
        read
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let is_buffer_size = self
            .buffer_size
            .is_some_and(|(header, _)| address.checked_sub(header) == Some(LENGTH_OFFSET as u64));
        is_buffer_size || self.window.write(address, bytes)
    }
}
