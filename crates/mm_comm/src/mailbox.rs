//! The status mailbox in shared memory.

use crate::region::{SharedRegion, WORD};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use mm_wire::address::{AddressError, check_mailbox};
use mm_wire::mailbox::{MAILBOX_ALIGN, MAILBOX_LEN, MailboxImage, TALK_TO_SUPERVISOR_OFFSET, VALID_OFFSET};

const MAILBOX_WORDS: usize = MAILBOX_LEN / WORD;

/// The mailbox of one comm buffer.
#[derive(Debug)]
pub struct Mailbox {
    /// Invariant: that of [`SharedRegion`] for `MAILBOX_LEN` bytes, aligned to `MAILBOX_ALIGN`. So
    /// none of the accesses below fails. The length is constant and not stored.
    base: NonNull<u8>,
}

/// The memory of a [`Mailbox`].
#[derive(Debug)]
pub struct MailboxRegion<'m> {
    region: SharedRegion,
    mailbox: PhantomData<&'m Mailbox>,
}

impl Deref for MailboxRegion<'_> {
    type Target = SharedRegion;

    #[inline]
    fn deref(&self) -> &SharedRegion {
        &self.region
    }
}

impl Mailbox {
    /// Takes over the mailbox at `address`.
    ///
    /// # Errors
    ///
    /// Those of [`check_mailbox`].
    ///
    /// # Safety
    ///
    /// The contract of [`SharedRegion::new`] for the 24 bytes at `address`.
    pub unsafe fn new(address: *mut u8) -> Result<Self, AddressError> {
        check_mailbox(address.addr() as u64)?;
        // SAFETY: this function's contract is that of `new`, for these bytes.
        let region = unsafe { SharedRegion::new(address, MAILBOX_LEN) }?;
        Ok(Self { base: region.base() })
    }

    /// The mailbox's memory. It cannot outlive the mailbox, whose memory may be gone then:
    ///
    /// ```compile_fail,E0505
    /// # use mm_comm::mailbox::Mailbox;
    /// fn keep(mailbox: Mailbox) -> Option<u8> {
    ///     let region = mailbox.region();
    ///     drop(mailbox);
    ///     region.read_byte(0)
    /// }
    /// ```
    #[must_use]
    #[inline]
    pub fn region(&self) -> MailboxRegion<'_> {
        // SAFETY: this type's invariant. The checks of alignment in the accesses then cost nothing.
        unsafe { core::hint::assert_unchecked(self.base.addr().get().is_multiple_of(MAILBOX_ALIGN)) };
        MailboxRegion {
            // SAFETY: this type's invariant is what the region requires for these bytes, for as
            // long as it is borrowed.
            region: unsafe { SharedRegion::at(self.base, MAILBOX_LEN) },
            mailbox: PhantomData,
        }
    }

    /// Copies the whole mailbox out, once, word by word.
    #[must_use]
    #[inline]
    pub fn read(&self) -> MailboxImage {
        let words = self.region().read_words::<MAILBOX_WORDS>(0);
        debug_assert!(words.is_some(), "a mailbox has MAILBOX_LEN aligned bytes");
        zerocopy::transmute!(words.unwrap_or_default())
    }

    /// Whether the mailbox announces a request that MM has not processed. One volatile load.
    #[must_use]
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.region()
            .read_byte(VALID_OFFSET)
            .is_some_and(|valid| valid != 0)
    }

    /// Writes the whole mailbox: the result fields first, so that they are right when `IsCommBufferValid` changes.
    #[inline]
    pub fn write(&self, image: &MailboxImage) {
        let [first, status, size]: [u64; MAILBOX_WORDS] = zerocopy::transmute!(*image);
        let written =
            self.region().write_words(WORD, &[status, size]) && self.region().write_words(0, &[first]);
        debug_assert!(written, "a mailbox has MAILBOX_LEN aligned bytes");
    }

    /// Empties a mailbox that other code used before: `IsCommBufferValid` first, then the rest.
    /// Returns what was in it; `None` if it was empty.
    #[must_use = "what was in it is for the log"]
    pub fn take_over(&self) -> Option<MailboxImage> {
        let found = self.read();
        self.withdraw();
        self.write(&MailboxImage::default());
        (found != MailboxImage::default()).then_some(found)
    }

    /// Withdraws a request that MM has not taken. The result fields stay as they are.
    pub fn withdraw(&self) {
        let written = self.region().write(VALID_OFFSET, &[0]);
        debug_assert!(written, "a mailbox has MAILBOX_LEN bytes");
    }

    /// Clears TalkToSupervisor, so that the next request in a mailbox that the MM supervisor shares
    /// with its users is for the users.
    pub fn clear_talk_to_supervisor(&self) {
        let written = self.region().write(TALK_TO_SUPERVISOR_OFFSET, &[0]);
        debug_assert!(written, "a mailbox has MAILBOX_LEN bytes");
    }
}
