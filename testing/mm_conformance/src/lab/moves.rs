//! Comm buffers that move: announced by the firmware, or requested by the supervisor's client.

use super::bring_up::{install_update, tell_mm};
use super::observed::Observed;
use super::{Client, Move, Piece, SCRATCH_PAGES, SetupFailure, Update, UpdatePlace, project_mu};
use crate::mm::Release;
use alloc::vec::Vec;
use mm_wire::{AddressRange, MailboxImage, PAGE_LEN};
use patina::management_mode::protocol::mm_comm_buffer_update::{MmCommBuffer, PROTOCOL_GUID};
use patina_mm::component::communicator::Status;
use patina_mm::service::{MmSupervisor, SupervisorError, UnblockMemory};

/// The site has no memory left for the buffers of a move.
pub(super) const OUT_OF_MEMORY: Status = Status::OutOfMemory {
    needed: SCRATCH_PAGES * PAGE_LEN,
};

impl Client {
    /// Fresh memory for a comm buffer, with a mailbox.
    pub(super) fn fresh(&self, id: u8, pages: usize) -> Option<Observed> {
        let base = self.0.site.allocate(pages)?;
        let mailbox = self.0.site.allocate(1)?;
        Observed::new(&*self.0.site, id, base, pages * PAGE_LEN, Some(mailbox)).ok()
    }

    /// Makes the supervisor move the comm buffers 0, its own, and 1.
    pub(super) fn move_both(
        &self,
        supervisor: &dyn MmSupervisor,
        to: Move,
    ) -> Result<Vec<u8>, SupervisorError> {
        let impossible = |_failure| OUT_OF_MEMORY;
        let new = [self.fresh(0, to.supervisor), self.fresh(1, to.users)];
        let [Some(mut own), Some(users)] = new else {
            return Err(OUT_OF_MEMORY.into());
        };
        if self.0.serves_like == Some(Release::V20ToV23) {
            own = project_mu::share_mailbox(&*self.0.site, own, &users).map_err(impossible)?;
        }
        if to.is_known_to_mm {
            let arriving: Vec<_> = [&own, &users]
                .into_iter()
                .filter_map(Observed::comm_buffer)
                .collect();
            let buffers = self.0.buffers.borrow();
            tell_mm(&*self.0.site, self.0.serves_like, &buffers, &arriving).map_err(impossible)?;
        }
        if let Some(piece) = to.refused {
            let memory = match piece {
                Piece::Supervisor => Some(own.place().0),
                Piece::Users => Some(users.place().0),
                Piece::UsersMailbox => users.mailbox_in_mm,
            };
            let address = memory.map_or(0, |memory| memory.expose_provenance() as u64);
            let memory = UnblockMemory::runtime_data(address, 1, PROTOCOL_GUID);
            supervisor.unblock_memory(&memory)?;
        }
        if to.are_mailboxes_stale {
            let mailboxes = [&own, &users].into_iter().filter_map(|new| new.mailbox.as_ref());
            mailboxes.for_each(|mailbox| mailbox.write(&MailboxImage::armed()));
        }
        let moved = supervisor.move_comm_buffers(own.handle.clone(), users.handle.clone());
        let mut buffers = self.0.buffers.borrow_mut();
        // A move in part: the memory moved, and the mailboxes stay.
        let (own_moved, users_moved) = match moved {
            Ok(()) => (true, true),
            Err(SupervisorError::MovedInPart { users_moved, .. }) => (true, users_moved),
            Err(_) => (false, false),
        };
        for (mut new, has_moved) in [(own, own_moved), (users, users_moved)] {
            if let Some(old) = buffers.iter_mut().find(|old| old.id == new.id && has_moved) {
                if moved.is_err() {
                    core::mem::swap(&mut old.mailbox, &mut new.mailbox);
                    core::mem::swap(&mut old.mailbox_in_mm, &mut new.mailbox_in_mm);
                }
                *old = new;
            }
        }
        moved.map(|()| Vec::new())
    }

    pub(super) fn move_buffer(&self, update: Update) -> Result<(), SetupFailure> {
        let no_memory = || SetupFailure::Impossible("no memory left");
        let id = self
            .0
            .updatable
            .ok_or(SetupFailure::Impossible("no buffer may move"))?;
        let taken = match update.place {
            UpdatePlace::Fresh => None,
            UpdatePlace::Over(id) => self.with_buffer(id, Observed::place),
            UpdatePlace::Former(id) => {
                let mut places = self.0.first_places.iter();
                places.find(|(first, _)| *first == id).map(|(_, place)| *place)
            }
        };
        let (base, mailbox) = match taken {
            Some((base, Some(mailbox))) => (base, mailbox),
            Some((base, None)) => (base, self.0.site.allocate(1).ok_or_else(no_memory)?),
            None => (
                self.0.site.allocate(SCRATCH_PAGES).ok_or_else(no_memory)?,
                self.0.site.allocate(1).ok_or_else(no_memory)?,
            ),
        };

        let usable = usize::try_from(update.pages)
            .ok()
            .filter(|pages| (1..=SCRATCH_PAGES).contains(pages));
        let is_correct = update.version == 1 && update.mailbox.is_none() && taken.is_none();
        if let Some(pages) = usable.filter(|_| is_correct) {
            let former: Vec<_> = self
                .0
                .buffers
                .borrow()
                .iter()
                .filter_map(Observed::comm_buffer)
                .collect();
            let moved = Observed::new(&*self.0.site, id, base, pages * PAGE_LEN, Some(mailbox))?;
            moved.make_stale(&*self.0.site);
            self.0.buffers.borrow_mut().retain(|buffer| buffer.id != id);
            let kept: Vec<AddressRange> = self
                .0
                .buffers
                .borrow()
                .iter()
                .filter_map(|buffer| buffer.comm_buffer().map(|buffer| buffer.region))
                .collect();
            self.0.buffers.borrow_mut().push(moved);
            // MM keeps serving the old place, too: a call may be in progress there.
            let old: Vec<_> = former
                .into_iter()
                .filter(|old| !kept.contains(&old.region))
                .collect();
            tell_mm(&*self.0.site, self.0.serves_like, &self.0.buffers.borrow(), &old)?;
        }
        let place = MmCommBuffer {
            physical_start: base.expose_provenance() as u64,
            number_of_pages: update.pages,
            status: update.mailbox.unwrap_or(mailbox.expose_provenance() as u64),
        };
        install_update(&*self.0.site, update.version, place)
    }
}
