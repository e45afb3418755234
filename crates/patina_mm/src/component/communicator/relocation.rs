//! A request that has MM move the comm buffer that it came through.
//!
//! MM takes it from the old place, and answers in the new one: header and message go to the new buffer, the status to the new
//! mailbox, and the old ones are not touched any more (Project Mu, `UpdateCommBuffer.c`). Where MM refuses, it answers in the
//! old place. So the request is put into both, and the mailbox that MM has cleared says where the response is. Both places have
//! one. An executor that answers by hand does so in the new place.
//!
//! Meanwhile no announced move is put into effect: the caller has that turn ([`super::update::Turn`]).

use super::failure::Failure;
use super::response::trace_request;
use super::tag::CallTag;
use super::{MmCommunicator, MmExecutor, ResponseReader, Status};
use crate::config::{CommunicateBuffer, check_buffers};
use alloc::vec::Vec;
use mm_wire::HeaderFormat;

/// The comm buffers as they will be, and those that are then out of use.
struct Plan {
    all: Vec<CommunicateBuffer>,
    leaving: Vec<CommunicateBuffer>,
}

impl<E: MmExecutor + 'static> MmCommunicator<E> {
    /// Makes the exchange, and if `take` says so, puts `to` in the place of the buffers with the same identifiers.
    /// Returns the bytes of the response.
    pub(super) fn exchange_and_move(
        &self,
        tag: CallTag,
        message: &[u8],
        recipient: mm_wire::Guid,
        to: &[CommunicateBuffer],
        take: &mut dyn FnMut(&mut ResponseReader<'_>) -> bool,
    ) -> Result<usize, Failure> {
        let id = tag.buffer;
        let executor = self.executor()?;
        let old = self.buffer(id)?;
        let new = to
            .iter()
            .find(|new| new.id() == id)
            .ok_or(Status::CommBufferNotFound)?;
        if !(old.has_status_mailbox() && new.has_status_mailbox()) {
            let why = "its old and its new place need a status mailbox, which tells where the response is";
            return Err(Failure::also(Status::InvalidDataBuffer, why));
        }
        let plan = self.plan(to)?;
        let begin = |buffer| CommunicateBuffer::channel(buffer).begin(HeaderFormat::V1, recipient, message);
        let here = begin(&old)?;
        let there = begin(new)?;
        trace_request(tag, recipient, HeaderFormat::V1, message);
        // The wait is for the new mailbox: a refusal is the rare case, and costs one more MMI and the rest of the wait.
        let mut lent = new.lend(there.number(), HeaderFormat::V1);
        executor
            .execute_mm(&mut lent)
            .map_err(|status| Failure::executor(status, &lent))?;
        if !lent.is_same(new) {
            let why =
                "the executor put another comm buffer in the place of the one that is about to be moved";
            return Err(Failure::also(Status::InvalidResponse, why));
        }
        let has_arrived = there.is_answered();
        // The other place is done with before the list changes: nobody may be told of memory that is still to be wiped.
        let response = if has_arrived {
            drop(here);
            there.finish()
        } else {
            drop(there);
            here.finish()
        };
        let response = response.map_err(|error| Failure::response(error, &lent))?;
        let answered = response.len();
        if take(&mut ResponseReader::in_place(response, tag)) {
            // What is freed is freed once the list can be looked at again: a notification may come with that.
            let former = self
                .buffers
                .try_borrow_mut()
                .map(|mut buffers| core::mem::replace(&mut *buffers, plan.all));
            drop(former.map_err(|_looked_at| {
                Failure::also(
                    Status::Busy,
                    "the comm buffers moved, and the list could not follow",
                )
            })?);
            plan.leaving.iter().for_each(|old| old.channel().retire());
            for new in to {
                log::info!(target: "mm_comm", "comm buffer {} moved to {:p}, {} bytes", new.id(), new.as_ptr(), new.len());
            }
        }
        Ok(answered)
    }

    /// Checks that `to` can be moved to: none of it is disabled, no memory is shared with a buffer of now, and none that leaves
    /// is in use.
    fn plan(&self, to: &[CommunicateBuffer]) -> Result<Plan, Failure> {
        let in_use = || {
            let why = "the list of comm buffers is in use by a call that this one interrupted";
            Failure::also(Status::Busy, why)
        };
        // Once exclusively, so that the list can be replaced later on: whatever interrupts this gives its borrow back.
        self.buffers
            .try_borrow_mut()
            .map(drop)
            .map_err(|_in_use| in_use())?;
        let is_leaving = |buffer: &CommunicateBuffer| to.iter().any(|new| new.id() == buffer.id());
        let (leaving, mut all): (Vec<_>, Vec<_>) = self
            .look(|buffers| buffers.iter().cloned().partition(is_leaving))
            .map_err(|_in_use| in_use())?;
        if to.iter().any(|new| !new.is_enabled()) {
            let why = "a comm buffer cannot move to one that is disabled";
            return Err(Failure::also(Status::CommBufferDisabled, why));
        }
        if leaving.iter().any(|buffer| buffer.channel().is_in_use()) {
            let why = "a call that this one interrupted uses one of the comm buffers that are to move";
            return Err(Failure::also(Status::Busy, why));
        }
        for new in to {
            let old = leaving
                .iter()
                .find(|old| old.id() == new.id() && old.is_enabled());
            all.push(old.map_or_else(|| new.clone(), |old| new.clone().in_place_of(old)));
        }
        let ranges = |buffers: &[CommunicateBuffer]| -> Vec<_> {
            let ranges = buffers.iter().flat_map(CommunicateBuffer::ranges);
            ranges.flatten().collect()
        };
        let (new, old) = (ranges(to), ranges(&leaving));
        if let Some(range) = new.iter().find(|new| old.iter().any(|old| old.overlaps(**new))) {
            return Err(Failure::move_over(*range));
        }
        check_buffers(&all).map_err(Failure::of_move)?;
        Ok(Plan { all, leaving })
    }
}
