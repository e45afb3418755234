//! The configuration of a platform's MM environment.
//!
//! [`MmCommunicationConfiguration`] is the one required config value. [`MmCommunicationOptions`] is
//! a second, optional one, for settings whose defaults fit most platforms; [`SmcOptions`] is a
//! third, for AArch64.

mod buffer;
mod configuration;
mod options;
mod ports;
mod smc;

pub use buffer::{CommunicateBuffer, CommunicateBufferStatus};
pub(crate) use configuration::check_buffers;
pub use configuration::{ConfigurationError, MmCommunicationConfiguration};
pub use mm_wire::{AddressRange, HeaderFormat};
pub use options::{MmCommunicationOptions, SmiCheck};
pub use ports::{AcpiBase, MmiPort};
pub(crate) use smc::HAS_SECURE_CALLS;
pub use smc::{Patience, PsciConduit, SmcOptions, TimeLimit};
