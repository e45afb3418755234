use crate::request::{Handler, Request};
use mm_wire::{EfiStatus, Guid, guid};

/// Returns each message as its response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Echo {
    /// The GUID under which this project's machines register it.
    pub const GUID: Guid = guid!("f2090a29-5433-4fda-9dc4-bcebb1ba2ed3");
}

impl Handler for Echo {
    fn handle(&mut self, _request: &mut Request<'_>) -> Result<(), EfiStatus> {
        Ok(())
    }
}
