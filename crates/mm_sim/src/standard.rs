//! A real MM core with the handlers that tests talk to.

use mm_core::handlers::{Echo, Supervisor, VariableStore};
use mm_core::{CommBuffer, Handler, MmCore, Mmi, Registration, RootHandler, SetupError, SystemMemory, Visit};
use mm_wire::message::{supervisor, variable};
use mm_wire::{AddressRange, Guid};

/// The version that the standard machine's supervisor returns.
pub const SUPERVISOR: Supervisor = Supervisor {
    version: 0x0001_0002,
    patch_level: 0x0003_0004,
};

/// Bytes of the standard machine's variable store.
pub const VARIABLE_STORE_LEN: usize = 0x1_0000;

/// Bytes that name and data of one variable may have there.
pub const MAX_VARIABLE_LEN: usize = 0x2000;

/// An MM core with [`Echo`], [`SUPERVISOR`] and an empty [`VariableStore`], to which a test can add
/// handlers.
///
/// Its memory lives until the process ends, as a machine's RAM does.
pub struct StandardMm {
    core: MmCore<'static>,
    handlers: Vec<(Guid, Box<dyn Handler>)>,
    root_handlers: Vec<Box<dyn RootHandler>>,
}

impl StandardMm {
    /// Makes an MM core for these comm buffers.
    ///
    /// # Errors
    ///
    /// Those of [`MmCore::new`].
    pub fn new(mmram: AddressRange, buffers: &[CommBuffer]) -> Result<Self, SetupError> {
        let largest = buffers.iter().map(|buffer| buffer.region.len()).max();
        let scratch_len = usize::try_from(largest.unwrap_or(0)).unwrap_or(0);
        let core = MmCore::new(&[mmram], buffers.to_vec().leak(), vec![0; scratch_len].leak())?;
        let variables = VariableStore::new(vec![0; VARIABLE_STORE_LEN].leak(), MAX_VARIABLE_LEN);
        Ok(Self {
            core,
            handlers: vec![
                (Echo::GUID, Box::new(Echo)),
                (supervisor::GUID, Box::new(SUPERVISOR)),
                (variable::GUID, Box::new(variables)),
            ],
            root_handlers: vec![],
        })
    }

    /// Adds a handler behind the existing ones.
    #[must_use]
    pub fn with_handler(mut self, recipient: Guid, handler: impl Handler + 'static) -> Self {
        self.handlers.push((recipient, Box::new(handler)));
        self
    }

    /// Adds a root handler behind the existing ones.
    #[must_use]
    pub fn with_root_handler(mut self, handler: impl RootHandler + 'static) -> Self {
        self.root_handlers.push(Box::new(handler));
        self
    }

    /// Serves one MMI.
    pub fn enter(&mut self, memory: &mut dyn SystemMemory, mmi: Mmi) -> Visit {
        let mut handlers: Vec<Registration<'_>> = self
            .handlers
            .iter_mut()
            .map(|(recipient, handler)| (*recipient, &mut **handler as &mut dyn Handler))
            .collect();
        let mut root_handlers: Vec<&mut dyn RootHandler> = self
            .root_handlers
            .iter_mut()
            .map(|handler| &mut **handler as &mut dyn RootHandler)
            .collect();
        self.core.enter(memory, mmi, &mut handlers, &mut root_handlers)
    }
}
