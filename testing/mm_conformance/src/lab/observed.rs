//! The memory of comm buffers, as an observer sees it.

use super::{SetupFailure, Site};
use mm_comm::SharedRegion;
use mm_comm::mailbox::Mailbox;
use mm_core::CommBuffer;
use mm_wire::AddressRange;
use patina_mm::config::CommunicateBuffer;

/// The memory of one comm buffer.
pub(super) struct Observed {
    pub(super) id: u8,
    /// Its address for the client.
    pub(super) place: Place,
    pub(super) region: SharedRegion,
    pub(super) mailbox: Option<Mailbox>,
    /// The mailbox that the MM side knows: a spare one if the client's is shared with another
    /// buffer.
    pub(super) mailbox_in_mm: Option<*mut u8>,
    pub(super) handle: CommunicateBuffer,
}

/// A comm buffer's memory, and its mailbox.
pub(super) type Place = (*mut u8, Option<*mut u8>);

impl Observed {
    /// Makes a comm buffer of memory from the site.
    pub(super) fn new(
        site: &dyn Site,
        id: u8,
        base: *mut u8,
        len: usize,
        mailbox: Option<*mut u8>,
    ) -> Result<Self, SetupFailure> {
        let impossible = SetupFailure::Impossible("the memory of a comm buffer");
        let address = |pointer: *mut u8| pointer.expose_provenance() as u64;
        // SAFETY: the memory is from `Site::allocate`: mapped one to one, never freed, and for this
        // comm buffer alone. The client has it through the handle, the observer through the region;
        // both use volatile accesses only.
        let handle =
            unsafe { CommunicateBuffer::from_firmware_region(address(base), len, id, mailbox.map(address)) };
        // SAFETY: the same memory, where the observer reaches it.
        let region = unsafe { SharedRegion::new(site.outside(base), len) };
        let seen = mailbox
            // SAFETY: the mailbox is in memory of the same kind.
            .map(|mailbox| unsafe { Mailbox::new(site.outside(mailbox)) })
            .transpose();
        match (handle, region, seen) {
            (Ok(handle), Ok(region), Ok(seen)) => Ok(Self {
                id,
                place: (base, mailbox),
                region,
                mailbox: seen,
                mailbox_in_mm: mailbox,
                handle,
            }),
            _ => Err(impossible),
        }
    }

    /// Fills the memory with what other code may have left there.
    pub(super) fn make_stale(&self, site: &dyn Site) {
        site.make_stale(&self.region);
        if let Some(mailbox) = &self.mailbox {
            site.make_stale(&mailbox.region());
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// What MM has to know about it.
    pub(super) fn comm_buffer(&self) -> Option<CommBuffer> {
        let (base, _) = self.place;
        Some(CommBuffer {
            region: AddressRange::new(base.expose_provenance() as u64, self.region.len() as u64)?,
            mailbox: self
                .mailbox_in_mm
                .map(|mailbox| mailbox.expose_provenance() as u64),
        })
    }
}
