//! Messages to the MM image itself, through the platform's own comm buffer 1: comm buffer 0 may move.

use alloc::string::String;
use alloc::vec::Vec;
use mm_core::CommBuffer;
use mm_wire::EfiStatus;
use patina::Guid;
use patina_mm::component::communicator::Status;
use patina_mm::service::MmCommunication;
use q35_mm::control::{self, StateOfMm};
use q35_mm::handoff::BufferEntry;
use zerocopy::{FromBytes, IntoBytes};

/// The comm buffer that never moves.
pub(super) const FIXED_BUFFER: u8 = 1;

#[derive(Clone, Copy)]
pub(super) struct Control(pub(super) &'static dyn MmCommunication);

impl Control {
    fn ask(self, function: u64, body: &[u8]) -> Result<Vec<u8>, Status> {
        let message = [function.as_bytes(), body].concat();
        self.0.communicate(
            FIXED_BUFFER,
            &message,
            Guid::from_bytes(&control::GUID.to_bytes()),
        )
    }

    /// Asks MM for its own state.
    pub(super) fn state(self) -> Result<StateOfMm, String> {
        let response = self
            .ask(control::STATE, &[])
            .map_err(|status| alloc::format!("{status}"))?;
        StateOfMm::read_from_bytes(&response).map_err(|error| alloc::format!("{error}"))
    }

    /// Makes MM serve these comm buffers; if it refuses, returns its status and its text.
    pub(super) fn register(self, buffers: &[CommBuffer]) -> Result<(), (EfiStatus, String)> {
        let entries: Vec<BufferEntry> = buffers.iter().map(|buffer| (*buffer).into()).collect();
        let response = self.ask(control::BUFFERS, entries.as_bytes()).map_err(|status| {
            let text = alloc::format!("{status}");
            (EfiStatus::NO_RESPONSE, text)
        })?;
        let (status, text) = control::split(&response).unwrap_or((EfiStatus::NO_RESPONSE.0, &response));
        if status == EfiStatus::SUCCESS.0 {
            return Ok(());
        }
        Err((EfiStatus(status), String::from_utf8_lossy(text).into_owned()))
    }

    /// MM's report about the suite's comm buffers, line by line.
    pub(super) fn report(self) -> Vec<String> {
        match self.ask(control::REPORT, &[]) {
            Ok(text) => String::from_utf8_lossy(&text).lines().map(String::from).collect(),
            Err(status) => [alloc::format!("{status}")].to_vec(),
        }
    }

    /// Makes a handler in MM fault.
    pub(super) fn fault(self) -> Result<Vec<u8>, Status> {
        self.ask(control::FAULT, &[])
    }
}
