//! A request that has MM move the comm buffer that it came through.
//!
//! MM takes it from the old place, and answers in the new one: header and message go to the new buffer, the status to the new
//! mailbox, and the old ones are not touched any more (Project Mu, `UpdateCommBuffer.c`). Where MM refuses, it answers in the
//! old place. So the request is put into both, and the mailbox that MM has cleared says where the response is. Both places have
//! one. An executor that answers by hand does so in the new place.
//!
//! Meanwhile no announced move is put into effect: the caller has that turn ([`super::announced_move::Turn`]). No other call uses a
//! buffer that moves, and the new mailboxes are zeroed: MM looks at them from then on.
//!
//! MM may also move a buffer and then refuse the rest, so that the mailboxes stay. Then it announces that in the old mailbox,
//! leaves the request in the old buffer as it is, and answers in the new one. The list follows: what has moved is used in
//! the new place with the old mailbox.

use super::client::Client;
use super::failure::Failure;
use super::response::trace_request;
use super::tag::CallTag;
use super::{MmExecutor, ResponseReader, Status};
use crate::config::{CommunicateBuffer, check_buffers};
use alloc::vec::Vec;
use mm_comm::ResponseError;
use mm_wire::mailbox::MailboxImage;
use mm_wire::{Header, HeaderFormat, guid};

/// The comm buffers as they will be, and those that are then out of use.
struct Plan {
    all: Vec<CommunicateBuffer>,
    leaving: Vec<CommunicateBuffer>,
}

impl Client<'_> {
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
        let Plan { all, leaving } = self.plan(to)?;
        let others = leaving.iter().filter(|old| old.id() != id);
        let held: Vec<_> = others.map(|old| old.channel().hold()).collect::<Result<_, _>>()?;
        let mailboxes = to.iter().filter_map(|new| new.channel().mailbox());
        mailboxes.for_each(|mailbox| mailbox.write(&MailboxImage::default()));
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
        let failed = |error: ResponseError| Failure::response(error, &lent);
        // The other place is done with before the list changes: no call may find memory that is still to be wiped.
        if lent.is_answered(&there) {
            drop(here);
            let response = ResponseReader::in_place(lent.finish(there).map_err(failed)?, tag);
            return self.conclude(response, take, all, &leaving);
        }
        let in_old_place = ResponseReader::in_place(here.finish().map_err(failed)?, tag).read_to_vec()?;
        let mut in_new_place = in_old_place.clone();
        let is_untouched = in_old_place == message
            && new
                .channel()
                .region()
                .read(HeaderFormat::V1.header_len(), &mut in_new_place);
        drop(there);
        if is_untouched && in_new_place != message {
            take(&mut ResponseReader::copied(&in_new_place, tag));
            self.follow_in_part(executor, all, &leaving, id);
            drop(held);
            return Ok(in_new_place.len());
        }
        self.conclude(ResponseReader::copied(&in_old_place, tag), take, all, &leaving)
    }

    /// Lends the response to `take`, and if that says so, puts `all` in the place of the list, so that `leaving` is out of use.
    fn conclude(
        &self,
        mut response: ResponseReader<'_>,
        take: &mut dyn FnMut(&mut ResponseReader<'_>) -> bool,
        all: Vec<CommunicateBuffer>,
        leaving: &[CommunicateBuffer],
    ) -> Result<usize, Failure> {
        let answered = response.len();
        let is_moved = take(&mut response);
        drop(response);
        if is_moved {
            self.replace(all)?;
            for old in leaving {
                old.channel().retire();
                log::info!(target: "mm_comm", "comm buffer {} moved from {:p}, {} bytes", old.id(), old.as_ptr(), old.len());
            }
        }
        Ok(answered)
    }

    /// Follows MM, which moved the buffer `id` without its mailbox, and maybe others of `leaving`.
    fn follow_in_part(
        &self,
        executor: &dyn MmExecutor,
        mut all: Vec<CommunicateBuffer>,
        leaving: &[CommunicateBuffer],
        id: u8,
    ) {
        let mut moved = Vec::new();
        for old in leaving {
            let Some(entry) = all.iter_mut().find(|entry| entry.id() == old.id()) else {
                continue;
            };
            let has_moved = old.id() == id || probe(executor, old, entry) == Some(true);
            // A channel over this memory was made before, with the same checks.
            match entry.with_mailbox_of(old) {
                Ok(half) if has_moved => {
                    *entry = half;
                    moved.push(old);
                }
                _ => *entry = old.clone(),
            }
        }
        if self.replace(all).is_ok() {
            for old in moved {
                old.channel().retire();
                log::warn!(target: "mm_comm", "comm buffer {} moved, and its mailbox stays where it was", old.id());
            }
        }
    }

    /// Replaces the list of comm buffers. What is freed is freed once the list can be looked at again: a notification may come
    /// with that.
    fn replace(&self, all: Vec<CommunicateBuffer>) -> Result<(), Failure> {
        let former = self
            .buffers
            .try_borrow_mut()
            .map(|mut buffers| core::mem::replace(&mut *buffers, all));
        former.map(drop).map_err(|_looked_at| {
            let why = "the comm buffers moved, and the list could not follow";
            Failure::also(Status::Busy, why)
        })
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
        let shares_otherwise = |new: &&CommunicateBuffer| {
            let old = leaving.iter().find(|old| old.id() == new.id());
            old.is_some_and(|old| old.has_shared_mailbox() != new.has_shared_mailbox())
        };
        if to.iter().any(|new| shares_otherwise(&new)) {
            let why = "one place of a comm buffer shares the users' mailbox (with_shared_mailbox), the other does not";
            return Err(Failure::also(Status::InvalidDataBuffer, why));
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

/// A GUID without a handler.
const UNKNOWN: mm_wire::Guid = guid!("d9cd1dc0-1c38-4d29-8a5b-2b1e7a0c5f36");

/// Asks MM from which of two places it takes requests that are announced in the mailbox of `old`, whose channel the caller
/// holds: one byte is in the old place and two are in the new one, and MM says how many it found. `None` if it does not say.
fn probe(executor: &dyn MmExecutor, old: &CommunicateBuffer, new: &CommunicateBuffer) -> Option<bool> {
    let mailbox = old.channel().mailbox()?;
    let places = [(old, 1), (new, 2)].map(|(buffer, len)| (buffer.channel().region(), len));
    let header_len = HeaderFormat::V1.header_len();
    for (region, len) in places {
        let header = Header::new(HeaderFormat::V1, UNKNOWN, len)?;
        let is_written = region.write(0, header.encode().as_ref()) && region.write(header_len, &[0; 2]);
        is_written.then_some(())?;
    }
    mailbox.write(&old.channel().armed());
    let entered = executor.execute_mm(&mut old.clone());
    let image = mailbox.read();
    mailbox.withdraw();
    for (region, _) in places {
        let is_wiped = region.wipe(0, header_len.saturating_add(2));
        debug_assert!(is_wiped, "it was written to before");
    }
    let found = image.return_buffer_size().checked_sub(header_len as u64);
    match (entered, image.is_pending(), found) {
        (Ok(()), false, Some(1)) => Some(false),
        (Ok(()), false, Some(2)) => Some(true),
        _ => None,
    }
}
