//! A requested move: a message that makes MM move the comm buffer that it comes through.
//!
//! MM takes the request from the old place and responds in the new one: header and message are in
//! the new buffer, the status is in the new mailbox, and MM does not touch the old ones any more
//! (Project Mu, `UpdateCommBuffer.c`). If MM refuses, it responds in the old place. So the request
//! is written to both, and the mailbox that MM cleared says which of them has the response. Both
//! places have a mailbox. An executor that responds by hand does so in the new place.
//!
//! The caller has the [`MoveLock`](super::announced_move::MoveLock), so that no announced move is
//! applied meanwhile. No other call uses a buffer that moves. The new mailboxes are zeroed, because
//! MM looks at them from the request on.
//!
//! MM may also move a buffer and then refuse the rest, so that the mailboxes stay. Then it
//! announces that in the old mailbox, leaves the request in the old buffer as it is, and responds
//! in the new one. The communicator follows: it uses what moved in the new place, with the old
//! mailbox.

use super::buffers::Plan;
use super::client::Client;
use super::executor::MmExecutor;
use super::failure::Failure;
use crate::config::{CommunicateBuffer, ConfigurationError};
use crate::service::{CallTag, ResponseReader, Status, trace_request};
use alloc::vec::Vec;
use mm_comm::ResponseError;
use mm_wire::mailbox::MailboxImage;
use mm_wire::{AddressRange, Header, HeaderFormat, guid};
use patina::Guid;

/// Reads the response, and returns whether MM moved the buffers.
type Take<'t> = &'t mut dyn FnMut(&mut ResponseReader<'_>) -> bool;

impl Client {
    /// See [`MmCommunicator::communicate_and_move`](super::MmCommunicator::communicate_and_move).
    pub(crate) fn communicate_and_move(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        to: &[CommunicateBuffer],
        take: Take<'_>,
    ) -> Result<(), Status> {
        let moving = to.iter().map(CommunicateBuffer::id).chain(self.announced_id());
        let tpl = core::iter::once(id).chain(moving).find_map(|id| self.tpl_for(id));
        self.exchange_with(id, tpl, message, recipient, |tag, recipient| {
            let lock = self.lock_moves(to)?;
            let result = self.exchange_and_move(tag, message, recipient, to, take);
            drop(lock);
            result
        })
    }

    /// Makes the exchange and, if `take` returns true, replaces the buffers that have the
    /// identifiers of `to`. Returns the number of response bytes.
    fn exchange_and_move(
        &self,
        tag: &CallTag,
        message: &[u8],
        recipient: [u8; 16],
        to: &[CommunicateBuffer],
        take: Take<'_>,
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
        let plan = self.plan_move(to)?;
        let others = plan.old.iter().filter(|old| old.id() != id);
        let others: Vec<_> = others.cloned().collect();
        let held: Vec<_> = others
            .iter()
            .map(|old| old.channel().hold())
            .collect::<Result<_, _>>()?;
        let mailboxes = to.iter().filter_map(|new| new.channel().mailbox());
        mailboxes.for_each(|mailbox| mailbox.write(&MailboxImage::default()));
        let guid = mm_wire::Guid::from_bytes(recipient);
        let begin = |buffer| CommunicateBuffer::channel(buffer).begin(HeaderFormat::V1, guid, message);
        let here = begin(&old)?;
        let there = begin(new)?;
        trace_request(tag, recipient, HeaderFormat::V1, message);
        // The executor waits for the new mailbox: a refusal is rare, and costs one more MMI and the
        // rest of the wait.
        let mut lent = new.lend(there.number(), HeaderFormat::V1);
        executor
            .execute_mm(&mut lent)
            .map_err(|status| Failure::executor(status, &lent))?;
        if !lent.is_same(new) {
            let why = "the executor replaced the comm buffer that is about to move by another one";
            return Err(Failure::also(Status::InvalidResponse, why));
        }
        let failed = |error: ResponseError| Failure::response(Some(error), &lent);
        // The transaction in the other place ends before the list changes: no call may find memory
        // that is still to be wiped.
        if lent.is_answered(&there) {
            drop(here);
            let mut error = None;
            let response = lent.finish(there, &mut error);
            let response = response.ok_or_else(|| Failure::response(error, &lent))?;
            let response = ResponseReader::in_place(response, tag);
            return self.conclude(response, take, plan);
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
            self.follow_in_part(executor, plan, id);
            drop(held);
            return Ok(in_new_place.len());
        }
        self.conclude(ResponseReader::copied(&in_old_place, tag), take, plan)
    }

    /// Lends the response to `take`, and makes the move if that returns true. Returns the number of
    /// response bytes.
    fn conclude(
        &self,
        mut response: ResponseReader<'_>,
        take: Take<'_>,
        plan: Plan,
    ) -> Result<usize, Failure> {
        let answered = response.len();
        let is_moved = take(&mut response);
        drop(response);
        if is_moved {
            let old = self.buffers.commit(plan).map_err(|_looked_at| {
                let why = "the comm buffers moved, and the list could not follow";
                Failure::also(Status::Busy, why)
            })?;
            for old in old {
                log_line!(
                    Info,
                    "mm_comm",
                    "comm buffer {} moved from {:p}, {} bytes",
                    old.id(),
                    old.as_ptr(),
                    old.len()
                );
            }
        }
        Ok(answered)
    }

    /// Follows MM, which moved the buffer `id` without its mailbox, and maybe other buffers too.
    fn follow_in_part(&self, executor: &dyn MmExecutor, plan: Plan, id: u8) {
        let half = |old: &CommunicateBuffer| {
            let new = plan.all.iter().find(|new| new.id() == old.id())?;
            let has_moved = old.id() == id || probe(executor, old, new) == Some(2);
            // Fails if the old mailbox is in the new memory; then the old place stays in use.
            new.with_mailbox_of(old).ok().filter(|_| has_moved)
        };
        let halves: Vec<_> = plan.old.iter().filter_map(half).collect();
        let moved = self
            .buffers
            .plan(&halves)
            .and_then(|plan| self.buffers.commit(plan));
        match moved {
            Ok(moved) => moved.iter().for_each(|old| {
                log_line!(
                    Warn,
                    "mm_comm",
                    "comm buffer {} moved, and its mailbox stays where it was",
                    old.id()
                )
            }),
            Err(error) => log_line!(
                Error,
                "mm_comm",
                "comm buffer {id} moved, and the list could not follow: {error}"
            ),
        }
    }

    /// Checks that `to` can be moved to: none is disabled, none shares memory with a comm buffer,
    /// and none that it replaces is in use.
    fn plan_move(&self, to: &[CommunicateBuffer]) -> Result<Plan, Failure> {
        if to.iter().any(|new| !new.is_enabled()) {
            let why = "a comm buffer cannot move to one that is disabled";
            return Err(Failure::also(Status::CommBufferDisabled, why));
        }
        let plan = self.buffers.plan(to).map_err(|error| match error {
            ConfigurationError::BuffersBusy => {
                let why = "the list of comm buffers is in use by a call that this one interrupted";
                Failure::also(Status::Busy, why)
            }
            error => Failure::of_move(error),
        })?;
        if plan.old.iter().any(|old| old.channel().is_in_use()) {
            let why = "a call that this one interrupted uses one of the comm buffers that are to move";
            return Err(Failure::also(Status::Busy, why));
        }
        let shares_otherwise = |new: &CommunicateBuffer| {
            let old = plan.old.iter().find(|old| old.id() == new.id());
            old.is_some_and(|old| old.has_shared_mailbox() != new.has_shared_mailbox())
        };
        if to.iter().any(shares_otherwise) {
            let why = "one place of a comm buffer shares the users' mailbox (with_shared_mailbox), the other does not";
            return Err(Failure::also(Status::InvalidDataBuffer, why));
        }
        let ranges = |buffers: &[CommunicateBuffer]| -> Vec<AddressRange> {
            let ranges = buffers.iter().flat_map(CommunicateBuffer::ranges);
            ranges.flatten().collect()
        };
        let (new, old) = (ranges(to), ranges(&plan.old));
        match new.iter().find(|new| old.iter().any(|old| old.overlaps(**new))) {
            Some(range) => Err(Failure::move_over(*range)),
            None => Ok(plan),
        }
    }

    /// Whether the comm buffer with the identifier of `place` has the memory of `place`. Its
    /// mailbox may be another one.
    pub(crate) fn is_at(&self, place: &CommunicateBuffer) -> bool {
        let [expected, _] = place.ranges();
        self.buffer(place.id())
            .is_ok_and(|buffer| buffer.ranges()[0] == expected)
    }
}

/// A GUID without a handler.
const UNKNOWN: mm_wire::Guid = guid!("d9cd1dc0-1c38-4d29-8a5b-2b1e7a0c5f36");

/// Asks MM from which of two places it takes requests that are announced in the mailbox of `old`,
/// whose channel the caller holds: one byte is in the old place, two are in the new one, and MM
/// says how many it found. `None` if it does not say.
fn probe(executor: &dyn MmExecutor, old: &CommunicateBuffer, new: &CommunicateBuffer) -> Option<u64> {
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
    if entered.is_err() || image.is_pending() {
        return None;
    }
    image.return_buffer_size().checked_sub(header_len as u64)
}

#[cfg(test)]
mod tests {
    use super::super::executor::MockMmExecutor;
    use super::*;
    use alloc::boxed::Box;
    use core::pin::Pin;
    use mm_wire::{EfiStatus, MailboxImage};

    #[test]
    fn probe_tells_what_mm_found_and_leaves_nothing_behind() {
        let not_processed = Err(Status::NotProcessed);
        for (result, size, found) in [
            (Ok(()), Some(25), Some(1)),
            (Ok(()), Some(26), Some(2)),
            (Ok(()), Some(23), None),
            (Ok(()), None, None),
            (not_processed, Some(26), None),
            (not_processed, None, None),
        ] {
            let (old, new) = (CommunicateBuffer::of_a_page(0), CommunicateBuffer::of_a_page(0));
            let places = [old.clone(), new.clone()];
            let mut mm = MockMmExecutor::new();
            mm.expect_execute_mm().times(1).returning_st(move |lent| {
                let lens = places.each_ref().map(|place| {
                    let header = place.channel().read_header().unwrap();
                    assert_eq!(header.recipient(), UNKNOWN);
                    header.message_len()
                });
                assert_eq!(lens, [1, 2]);
                let mailbox = lent.channel().mailbox().unwrap();
                assert!(mailbox.is_pending());
                if let Some(size) = size {
                    mailbox.write(&MailboxImage::answered(EfiStatus::NOT_FOUND, size));
                }
                result
            });
            assert_eq!(probe(&mm, &old, &new), found, "{result:?} {size:?}");
            assert!(!old.channel().mailbox().unwrap().is_pending());
            for place in [old, new] {
                let mut bytes = [0xee; 26];
                assert!(place.channel().region().read(0, &mut bytes));
                assert_eq!(bytes, [0; 26]);
            }
        }
    }

    #[test]
    fn probe_needs_room_for_a_message_in_both_places() {
        let memory = Box::leak(Box::new([0; 25]));
        let short = CommunicateBuffer::new(Pin::new(memory), 0);
        let mut mm = MockMmExecutor::new();
        mm.expect_execute_mm().never();
        assert_eq!(probe(&mm, &CommunicateBuffer::of_a_page(0), &short), None);
    }
}
