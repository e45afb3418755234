//! x86 firmware does not have a secure world. The types here have no values, so code that handles a
//! value is not linked.

use core::fmt;
use mm_comm::smc::SmcError;

/// The component does not have inputs for a secure world.
pub(crate) type Inputs<'a> = ();

#[derive(Clone, Copy, Debug)]
pub(super) enum Connect {}

#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {}

#[derive(Debug)]
pub(super) enum Way {}

pub(super) const NATIVE: Option<Connect> = None;

impl Plan {
    pub(super) fn new(connect: Connect, _: u32, (): &Inputs<'_>) -> Option<Self> {
        match connect {}
    }

    pub(super) fn open(self, (): &Inputs<'_>) -> Result<Way, SmcError> {
        match self {}
    }
}

impl Way {
    pub(super) fn communicate(&self, _: u64) -> Result<(), SmcError> {
        match *self {}
    }
}

impl fmt::Display for Way {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
