//! Tests of MM in firmware that was not built for this suite, with its own handlers: edk2's, Project Mu's.

use crate::report::{NotOk, ensure, equal, failed};
use crate::variables::{VariableError, VariableService};
use alloc::format;
use alloc::vec::Vec;
use mm_wire::message::variable;
use mm_wire::{EfiStatus, Guid, guid};
use patina::standard::efi;
use patina_mm::component::communicator::Status;

/// A GUID that no MM environment has a handler for.
pub const NO_HANDLER: Guid = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

/// What a variable service takes at least.
const LEAST_PAYLOAD: u64 = 1024;

/// Sends a message to a handler, and returns its response.
pub type Send<'a> = &'a dyn Fn(Guid, &[u8]) -> Result<Vec<u8>, Status>;

/// MM of the firmware.
pub struct RealMm<'a> {
    /// Reaches its handlers.
    pub send: Send<'a>,
    /// The payload size of its variable service. `None` if it is not known, or if MM may lack the service.
    pub payload_size: Option<u64>,
    /// Whether MM can say that no handler took the message.
    pub tells_errors: bool,
    /// How many calls the endurance test makes; without any it is left out.
    pub calls: u32,
}

impl RealMm<'_> {
    /// Runs the tests. `verdict` gets the name and the result of each.
    pub fn test(&self, mut verdict: impl FnMut(&str, Result<(), NotOk>)) {
        let variables = VariableService(|message: &[u8]| (self.send)(variable::GUID, message));
        let size = match variables.payload_size() {
            Err(VariableError::Exchange(Status::MmReturned(efi::Status::NOT_FOUND)))
                if self.payload_size.is_none() =>
            {
                None
            }
            size => Some(size),
        };
        let served = |test: &dyn Fn() -> Result<(), NotOk>| match size {
            None => Err(NotOk::Skipped("this MM has no variable service".into())),
            Some(_) => test(),
        };
        verdict(
            "the_variable_service_tells_its_payload_size",
            served(&|| {
                let size = variables.payload_size()?;
                log::info!("the variable service takes {size} bytes");
                match self.payload_size {
                    Some(expected) => equal(size, expected),
                    None => ensure(size >= LEAST_PAYLOAD, format!("only {size} bytes")),
                }
            }),
        );
        verdict(
            "a_function_that_the_handler_does_not_know_is_its_own_error",
            served(&|| match variables.bare_call(99) {
                Err(VariableError::Service(EfiStatus::UNSUPPORTED)) => Ok(()),
                other => Err(failed(other)),
            }),
        );
        verdict("a_missing_handler_is_the_status_of_mm", self.missing_handler());
        if self.calls > 0 {
            verdict(
                &format!("{}_calls_work", self.calls),
                served(&|| {
                    let size = variables.payload_size()?;
                    (0..self.calls).try_for_each(|_| equal(variables.payload_size()?, size))
                }),
            );
        }
    }

    fn missing_handler(&self) -> Result<(), NotOk> {
        if !self.tells_errors {
            return Err(NotOk::Skipped("without a mailbox MM cannot say so".into()));
        }
        match (self.send)(NO_HANDLER, b"no handler takes this") {
            Err(Status::MmReturned(efi::Status::NOT_FOUND)) => Ok(()),
            // An MM that is not known may have another status for it.
            Err(Status::MmReturned(_)) if self.payload_size.is_none() => Ok(()),
            other => Err(failed(other)),
        }
    }
}
