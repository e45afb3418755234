//! The ways into traditional SMM. An unsafe island (`docs/unsafe.md`).
//!
//! edk2's SMM core does not know a status mailbox and does not change the header in the comm buffer: it returns the
//! response's length elsewhere. So the executor that raises the SMI itself passes that length to the communicator.

use crate::smm_core::{RequestError, SmmCorePrivate};
use alloc::rc::Rc;
use core::cell::Cell;
use mm_comm::SharedRegion;
use mm_wire::{EfiStatus, HeaderFormat};
use patina::component::service::Service;
use patina::standard::efi;
use patina::uefi::boot_services::StandardBootServices;
use patina_mm::component::communicator::{MmExecutor, Status};
use patina_mm::component::protocols::FirmwareMmExecutor;
use patina_mm::component::sw_mmi_manager::MmiError;
use patina_mm::config::{CommunicateBuffer, CommunicateBufferStatus, MmCommunicationOptions};
use patina_mm::service::SwMmiTrigger;

const HEADER_LEN: usize = HeaderFormat::V1.header_len();

/// How many MMIs the application has raised, itself or through the firmware.
#[derive(Clone, Debug, Default)]
pub(crate) struct MmiCount(Rc<Cell<u64>>);

impl MmiCount {
    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }

    fn count(&self) {
        self.0.set(self.0.get().saturating_add(1));
    }
}

/// Raises the SMI through `SwMmiTrigger`, with the request in the block that the SMM core looks into.
pub(crate) struct SmmCoreExecutor {
    pub(crate) block: SmmCorePrivate,
    pub(crate) boot: &'static StandardBootServices,
    pub(crate) trigger: Service<dyn SwMmiTrigger>,
    /// The values for the ports.
    pub(crate) options: MmCommunicationOptions,
    pub(crate) mmis: MmiCount,
}

impl MmExecutor for SmmCoreExecutor {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        let raise = || {
            self.trigger
                .raise_mmi(self.options.command_value, self.options.data_value)
                .inspect(|()| self.mmis.count())
        };
        let len = request_len(comm_buffer)?;
        let response = self
            .block
            .request(self.boot, comm_buffer.as_ptr(), len, raise, || {
                self.trigger.pause()
            });
        hand_over(comm_buffer, response.map_err(Status::from)?)
    }
}

impl From<RequestError<MmiError>> for Status {
    fn from(error: RequestError<MmiError>) -> Self {
        match error {
            RequestError::Trigger(error) => error.into(),
            RequestError::NotTaken => Self::NotProcessed,
            RequestError::Mm(status) => returned(status),
        }
    }
}

/// Counts the MMIs that the firmware raises for `patina_mm`'s own executor over its protocol.
pub(crate) struct CountedFirmwareExecutor {
    pub(crate) executor: FirmwareMmExecutor,
    pub(crate) mmis: MmiCount,
}

impl MmExecutor for CountedFirmwareExecutor {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        self.mmis.count();
        self.executor.execute_mm(comm_buffer)
    }
}

fn returned(status: EfiStatus) -> Status {
    Status::MmReturned(usize::try_from(status.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize))
}

/// The request's bytes, header included.
fn request_len(comm_buffer: &CommunicateBuffer) -> Result<usize, Status> {
    let len = comm_buffer.get_message_length().map_err(unusable)?;
    Ok(len.saturating_add(HEADER_LEN))
}

/// Responds with the bytes behind the header. MM says that there are `claimed` bytes, header included.
fn hand_over(comm_buffer: &mut CommunicateBuffer, claimed: u64) -> Result<(), Status> {
    let capacity = comm_buffer.len();
    let total = usize::try_from(claimed)
        .ok()
        .filter(|total| *total <= capacity)
        .ok_or(Status::ResponseBeyondBuffer { claimed, capacity })?;
    let len = total.checked_sub(HEADER_LEN).ok_or(Status::ResponseBelowHeader {
        claimed,
        minimum: HEADER_LEN,
    })?;
    comm_buffer.accept_in_place(len).map_err(unusable)
}

/// Copies bytes out of a comm buffer's memory; `false` if they are not all in it.
pub(crate) fn read_memory(comm_buffer: &CommunicateBuffer, offset: usize, out: &mut [u8]) -> bool {
    // SAFETY: the bytes are the comm buffer's, which lives at least as long as this borrow, and whose contract is that
    // no reference into them is used.
    let region = unsafe { SharedRegion::new(comm_buffer.as_ptr(), comm_buffer.len()) };
    region.is_ok_and(|region| region.read(offset, out))
}

fn unusable(error: CommunicateBufferStatus) -> Status {
    log::error!(target: "mm_comm", "{error}");
    Status::InvalidResponse
}
