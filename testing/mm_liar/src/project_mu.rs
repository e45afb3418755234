//! The comm buffers as Project Mu's MM supervisor serves them: a double of `MmSupervisorPkg`
//! (microsoft/mu_feature_mm_supv).
//!
//! | what | source |
//! |---|---|
//! | which request an MMI serves, malformed headers, v3, after `ExitBootServices` | `Core/MmSupervisorCore.c`, `MmEntryPoint` |
//! | a message without bytes finds no handler | `Core/Handler/Mmi.c`, `MmiManage`; `Core/Mem/MemWrapper.c`, `InspectTargetRangeOwnership` |
//! | ready to lock once, then no handler for it | `Core/MmSupervisorCore.c`, `MmReadyToLockHandler` |
//! | requests and the room that they need | `Core/Request/RequestDispatcher.c`, `MmSupvRequestHandler` |
//! | unblocking | `Core/Request/UnblockMemory.c`, `ProcessUnblockPages` |
//! | the policy | `Core/Request/FetchPolicy.c`, `FetchNUpdateSecurityPolicy` |
//! | moves, also half of one | `Core/Request/UpdateCommBuffer.c`, `ProcessUpdateCommBufferRequest` |
//!
//! It is the RELEASE build, which goes on where the DEBUG build halts. What it leaves out: MMRAM,
//! which this MM side does not know here, and the policy's other tables. v3 headers are those of
//! v22.0.0 and later.

use core::cell::Cell;
use mm_core::handlers::Supervisor;
use mm_core::{CommBuffer, Handler, Request, SystemMemory};
use mm_wire::header::V3_MARKER;
use mm_wire::mailbox::{MAILBOX_LEN, TALK_TO_SUPERVISOR_OFFSET};
use mm_wire::message::supervisor::{
    self, CommUpdate, PolicyHeader, RequestHeader, SharedCommUpdate, UnblockMemory, VersionInfo,
};
use mm_wire::{AddressRange, EfiStatus, HeaderFormat, MailboxImage, PAGE_LEN};
use zerocopy::{FromBytes, IntoBytes};

/// Which supervisor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The releases v20.0.0 to v23.0.3: one mailbox, which says by TalkToSupervisor whose request
    /// it announces.
    V20ToV23,
    /// `main` since May 2026 (b074347): a mailbox for each channel, and a channel that closes at
    /// `ExitBootServices`.
    Main,
}

impl Release {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V20ToV23, Self::Main];

    /// The message that makes [`PROJECT_MU`](crate::PROJECT_MU) serve like this one.
    #[must_use]
    pub const fn request(self) -> [u8; 1] {
        match self {
            Self::V20ToV23 => [20],
            Self::Main => [24],
        }
    }

    /// The supervisor that a message names; [`Self::Main`] if it names none.
    pub(crate) fn of_request(message: &[u8]) -> Self {
        let named = |release: &Self| release.request() == message;
        Self::ALL.into_iter().find(named).unwrap_or(Self::Main)
    }
}

/// Index of the supervisor's channel.
const SUPERVISOR: usize = 0;
/// Index of the users' channel.
const USERS: usize = 1;

/// The most memory that can be unblocked.
const MAX_UNBLOCKED: usize = 8;

/// The supervisor's state. Comm buffers and mailboxes are indices of those that the MM side knows;
/// the first two are the supervisor's and the users'.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProjectMu {
    release: Release,
    regions: [usize; 2],
    mailboxes: [usize; 2],
    is_locked: bool,
    is_at_runtime: bool,
    was_moved: bool,
    unblocked: [Option<UnblockMemory>; MAX_UNBLOCKED],
}

/// A request that is being served: where the MM core looks for it, and where it really is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    channel: usize,
    region: AddressRange,
    region_now: u64,
    mailbox: u64,
    mailbox_now: u64,
    clears_talk: bool,
}

impl Serving {
    pub(crate) const fn is_for_supervisor(&self) -> bool {
        self.channel == SUPERVISOR
    }

    /// Copies the header to where the buffer has moved; the response's message is there.
    pub(crate) fn copy_header(&self, memory: &mut dyn SystemMemory) {
        let mut header = [0; HeaderFormat::V1.header_len()];
        if self.region_now != self.region.start() && memory.read(self.region.start(), &mut header) {
            memory.write(self.region_now, &header);
        }
    }

    /// Reads the mailbox that an MM core takes for the request's.
    pub(crate) fn read_mailbox(&self, mailbox: u64, memory: &dyn SystemMemory, out: &mut [u8]) -> bool {
        if mailbox == self.mailbox {
            return memory.read(self.mailbox_now, out);
        }
        out.fill(0);
        true
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8], memory: &mut dyn SystemMemory) -> bool {
        let offset = |start: u64, len: u64| address.checked_sub(start).filter(|offset| *offset < len);
        if let Some(offset) = offset(self.mailbox, MAILBOX_LEN as u64) {
            if self.clears_talk && offset == 0 {
                memory.write(self.mailbox_now + TALK_TO_SUPERVISOR_OFFSET as u64, &[0]);
            }
            return memory.write(self.mailbox_now + offset, bytes);
        }
        match offset(self.region.start(), self.region.len()) {
            Some(offset) => memory.write(self.region_now + offset, bytes),
            None => memory.write(address, bytes),
        }
    }
}

impl ProjectMu {
    pub(crate) const fn new(release: Release) -> Self {
        let supervisors_mailbox = match release {
            Release::V20ToV23 => USERS,
            Release::Main => SUPERVISOR,
        };
        Self {
            release,
            regions: [SUPERVISOR, USERS],
            mailboxes: [supervisors_mailbox, USERS],
            is_locked: false,
            is_at_runtime: false,
            was_moved: false,
            unblocked: [None; MAX_UNBLOCKED],
        }
    }

    fn mailbox(&self, channel: usize, buffers: &[CommBuffer]) -> Option<u64> {
        buffers.get(*self.mailboxes.get(channel)?)?.mailbox
    }

    /// Chooses the request that this MMI serves. Malformed ones get their response here.
    pub(crate) fn choose(&self, buffers: &[CommBuffer], memory: &mut dyn SystemMemory) -> Option<Serving> {
        let image = |channel, memory: &dyn SystemMemory| {
            let mut image = MailboxImage::default();
            let is_read = memory.read(self.mailbox(channel, buffers)?, image.as_mut_bytes());
            Some(image).filter(|image| is_read && image.is_pending())
        };
        let channel = match (self.release, image(USERS, memory)) {
            (Release::V20ToV23, Some(image)) if image.is_for_supervisor() => SUPERVISOR,
            (_, Some(_)) => USERS,
            (Release::V20ToV23, None) => return None,
            (Release::Main, None) => {
                image(SUPERVISOR, memory)?;
                if self.is_at_runtime {
                    // It refuses, and writes back the users' mailbox instead of this one: the
                    // request stays announced.
                    return None;
                }
                SUPERVISOR
            }
        };
        let buffer = *buffers.get(*self.regions.get(channel)?)?;
        let mailbox_now = self.mailbox(channel, buffers)?;
        if let Some(answer) = self.malformed(channel, buffer.region, memory) {
            memory.write(mailbox_now, answer.as_bytes());
            return None;
        }
        Some(Serving {
            channel,
            region: buffer.region,
            region_now: buffer.region.start(),
            mailbox: buffer.mailbox?,
            mailbox_now,
            clears_talk: self.release == Release::V20ToV23 && channel == SUPERVISOR,
        })
    }

    /// The status for a header that does not reach a handler.
    fn malformed(
        &self,
        channel: usize,
        region: AddressRange,
        memory: &dyn SystemMemory,
    ) -> Option<MailboxImage> {
        let (mut guid, mut length) = ([0; 16], [0; 8]);
        if !memory.read(region.start(), &mut guid) || !memory.read(region.start() + 16, &mut length) {
            return None;
        }
        let (is_v3, length) = (guid == V3_MARKER.to_bytes(), u64::from_le_bytes(length));
        if is_v3 && channel == SUPERVISOR {
            return Some(MailboxImage::answered(EfiStatus::UNSUPPORTED, 0));
        }
        let format = if is_v3 { HeaderFormat::V3 } else { HeaderFormat::V1 };
        let header_len = format.header_len() as u64;
        let total = if is_v3 {
            length
        } else {
            length.wrapping_add(header_len)
        };
        // Releases do not notice a sum that wraps, nor a v3 header that counts less than itself
        // (before #666).
        let is_noticed = self.release == Release::Main && total < header_len;
        if total > region.len() || is_noticed {
            return Some(MailboxImage::answered(EfiStatus::BAD_BUFFER_SIZE, 0));
        }
        (total <= header_len).then(|| MailboxImage::answered(EfiStatus::NOT_FOUND, total))
    }

    fn unblock(&mut self, memory: &UnblockMemory, buffers: &[CommBuffer]) -> EfiStatus {
        if self.is_locked {
            return EfiStatus::ACCESS_DENIED;
        }
        if memory.identifier == [0; 16] {
            return EfiStatus::INVALID_PARAMETER;
        }
        let Some(new) = range_of(memory) else {
            return EfiStatus::INVALID_PARAMETER;
        };
        for former in self.unblocked.iter().flatten() {
            let Some(range) = range_of(former) else { continue };
            if range == new {
                return match descriptor(former) == descriptor(memory) {
                    true => EfiStatus::SUCCESS,
                    false => EfiStatus::SECURITY_VIOLATION,
                };
            }
            if let Some(refusal) = clash(new, range) {
                return refusal;
            }
        }
        for channel in [SUPERVISOR, USERS] {
            let region = self.regions.get(channel).and_then(|index| buffers.get(*index));
            let mailbox = self.mailbox(channel, buffers);
            let mailbox = mailbox.and_then(|address| AddressRange::new(address, PAGE_LEN as u64));
            for range in [region.map(|buffer| buffer.region), mailbox]
                .into_iter()
                .flatten()
            {
                if let Some(refusal) = clash(new, range) {
                    return refusal;
                }
            }
        }
        let Some(free) = self.unblocked.iter_mut().find(|entry| entry.is_none()) else {
            return EfiStatus::OUT_OF_RESOURCES;
        };
        // Memory off a page is taken, too, and nothing is mapped for it.
        *free = Some(*memory);
        EfiStatus::SUCCESS
    }

    /// Unblocks memory instead of other memory of as many pages; `VerifyandMoveUnblockedPages`.
    fn replace(&mut self, new: &UnblockMemory, pages: u64, buffers: &[CommBuffer]) -> Result<u64, EfiStatus> {
        if new.pages.get() != pages
            || new.attributes.get() != supervisor::COMM_BUFFER_ATTRIBUTES
            || new.memory_type.get() != 6
        {
            return Err(EfiStatus::SECURITY_VIOLATION);
        }
        let before = self.unblocked;
        let result = self.unblock(new, buffers);
        self.unblocked = before;
        match result {
            EfiStatus::SUCCESS => Ok(new.physical_start.get()),
            refusal => Err(refusal),
        }
    }

    /// Moves the buffers and then the mailboxes, as far as nothing is wrong.
    fn move_to(
        &mut self,
        mailboxes: &[UnblockMemory],
        new: &[UnblockMemory; 2],
        buffers: &[CommBuffer],
    ) -> Result<(), EfiStatus> {
        if self.is_locked || self.was_moved {
            return Err(EfiStatus::ACCESS_DENIED);
        }
        // This MM side serves only the comm buffers that it knows.
        let untold = EfiStatus::SECURITY_VIOLATION;
        for (channel, new) in new.iter().enumerate() {
            let old = self
                .regions
                .get(channel)
                .and_then(|index| buffers.get(*index))
                .ok_or(untold)?;
            let start = self.replace(new, old.region.len() / PAGE_LEN as u64, buffers)?;
            let index = buffers
                .iter()
                .position(|buffer| buffer.region.start() == start)
                .ok_or(untold)?;
            if let Some(region) = self.regions.get_mut(channel) {
                *region = index;
            }
        }
        let mut moved = [SUPERVISOR, USERS];
        // The users' buffer moves first.
        for (channel, new) in mailboxes.iter().enumerate().rev() {
            let start = self.replace(new, 1, buffers)?;
            let index = buffers
                .iter()
                .position(|buffer| buffer.mailbox == Some(start))
                .ok_or(untold)?;
            match (moved.get_mut(channel), mailboxes.len()) {
                (_, 1) => moved = [index; 2],
                (Some(moved), _) => *moved = index,
                (None, _) => {}
            }
        }
        self.mailboxes = moved;
        self.was_moved = true;
        Ok(())
    }

    /// Writes the policy behind the request's header: [`POLICY`], and 24 bytes for all memory that
    /// users had unblocked.
    fn tell_policy(&mut self, request: &mut Request<'_>) -> Result<EfiStatus, EfiStatus> {
        self.is_locked = true;
        let header_len = size_of::<RequestHeader>();
        let room = request.message().len().saturating_sub(header_len);
        if room < header_len + POLICY.len() {
            return Ok(EfiStatus::BUFFER_TOO_SMALL);
        }
        let unblocked = self.unblocked;
        let regions = || unblocked.iter().flatten().filter_map(range_of);
        let len = POLICY.len() + regions().count() * 24;
        if len > room {
            return Ok(EfiStatus::OUT_OF_RESOURCES);
        }
        request
            .set_len(header_len + len)
            .map_err(|_no_room| EfiStatus::INVALID_PARAMETER)?;
        let policy = request.message_mut().get_mut(header_len..).unwrap_or_default();
        let (start, entries) = policy.split_at_mut_checked(POLICY.len()).unwrap_or_default();
        start.iter_mut().zip(POLICY).for_each(|(to, from)| *to = from);
        for (entry, range) in entries.chunks_exact_mut(24).zip(regions()) {
            // Attributes are left out.
            let fields = [range.start().to_le_bytes(), range.len().to_le_bytes()];
            let fields = fields.as_flattened();
            entry.iter_mut().zip(fields).for_each(|(to, from)| *to = *from);
        }
        if let Ok((header, _)) = PolicyHeader::mut_from_prefix(policy) {
            header.size = u32::try_from(len).unwrap_or(u32::MAX).into();
        }
        Ok(EfiStatus::SUCCESS)
    }
}

/// The policy that the supervisor returns while nothing is unblocked: version 1.0, 16 bytes.
pub const POLICY: [u8; 16] = [
    0, 0, 1, 0, 16, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
];

/// `None` for no pages, and for more than the supervisor can describe.
fn range_of(memory: &UnblockMemory) -> Option<AddressRange> {
    let len = memory.pages.get().checked_mul(PAGE_LEN as u64)?;
    AddressRange::new(memory.physical_start.get(), len).filter(|range| range.len() > 0)
}

/// The `EFI_MEMORY_DESCRIPTOR`, without the identifier.
fn descriptor(memory: &UnblockMemory) -> &[u8] {
    memory.as_bytes().get(..40).unwrap_or_default()
}

/// Why memory cannot be unblocked beside other memory: it starts or ends there, or it is around it,
/// so that not all of it is mapped alike.
fn clash(new: AddressRange, other: AddressRange) -> Option<EfiStatus> {
    let is_inside = |at: u64| at >= other.start() && at < other.end();
    new.overlaps(other)
        .then(|| match is_inside(new.start()) || is_inside(new.end() - 1) {
            true => EfiStatus::SECURITY_VIOLATION,
            false => EfiStatus::NO_MAPPING,
        })
}

/// The state that the handlers of the supervisor's channel share.
#[derive(Clone, Copy)]
pub(crate) struct Channel<'m> {
    pub(crate) mu: &'m Cell<ProjectMu>,
    pub(crate) serving: &'m Cell<Option<Serving>>,
    pub(crate) buffers: &'m [CommBuffer],
}

impl Channel<'_> {
    /// The handler of ready to lock.
    pub(crate) fn lock(&self) -> Result<(), EfiStatus> {
        let mut mu = self.mu.get();
        if mu.is_locked {
            return Err(EfiStatus::NOT_FOUND);
        }
        mu.is_locked = true;
        self.mu.set(mu);
        Ok(())
    }

    /// The handler of `ExitBootServices`.
    pub(crate) fn close(&self) -> Result<(), EfiStatus> {
        let mut mu = self.mu.get();
        if mu.release != Release::Main {
            return Err(EfiStatus::NOT_FOUND);
        }
        mu.is_at_runtime = true;
        self.mu.set(mu);
        Ok(())
    }

    /// Moves the buffers; later writes go to the new place.
    fn move_to(
        &self,
        mu: &mut ProjectMu,
        mailboxes: &[UnblockMemory],
        new: &[UnblockMemory; 2],
    ) -> EfiStatus {
        let result = mu.move_to(mailboxes, new, self.buffers);
        if let Some(mut serving) = self.serving.get() {
            let region = mu
                .regions
                .get(SUPERVISOR)
                .and_then(|index| self.buffers.get(*index));
            serving.region_now = region.map_or(serving.region_now, |buffer| buffer.region.start());
            serving.mailbox_now = mu
                .mailbox(SUPERVISOR, self.buffers)
                .unwrap_or(serving.mailbox_now);
            self.serving.set(Some(serving));
        }
        result.err().unwrap_or(EfiStatus::SUCCESS)
    }
}

impl Handler for Channel<'_> {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        const TOO_SHORT: EfiStatus = EfiStatus::INVALID_PARAMETER;
        let mut mu = self.mu.get();
        let (header, body) =
            RequestHeader::mut_from_prefix(request.message_mut()).map_err(|_too_short| TOO_SHORT)?;
        let is_known = header.signature == supervisor::SIGNATURE && header.revision == supervisor::REVISION;
        if is_known {
            // The result in a request that is then too short.
            header.result = EfiStatus::ABORTED.0.into();
        }
        let result = match header.request.get() {
            supervisor::REQUEST_UNBLOCK_MEMORY if is_known => {
                let (memory, _) = UnblockMemory::ref_from_prefix(body).map_err(|_too_short| TOO_SHORT)?;
                mu.unblock(memory, self.buffers)
            }
            supervisor::REQUEST_COMM_UPDATE if is_known => match mu.release {
                Release::Main => {
                    let (new, _) = CommUpdate::ref_from_prefix(body).map_err(|_too_short| TOO_SHORT)?;
                    self.move_to(&mut mu, &new.mailboxes, &new.buffers)
                }
                Release::V20ToV23 => {
                    let (new, _) = SharedCommUpdate::ref_from_prefix(body).map_err(|_too_short| TOO_SHORT)?;
                    self.move_to(&mut mu, &[new.mailbox], &new.buffers)
                }
            },
            supervisor::REQUEST_FETCH_POLICY if is_known => mu.tell_policy(request)?,
            _ => return tell_version(request),
        };
        self.mu.set(mu);
        if let Ok((header, _)) = RequestHeader::mut_from_prefix(request.message_mut()) {
            header.result = result.0.into();
        }
        Ok(())
    }
}

/// Responds like `mm_core`'s supervisor, which knows only the version request, but claims to know
/// all requests.
fn tell_version(request: &mut Request<'_>) -> Result<(), EfiStatus> {
    Supervisor {
        version: 1,
        patch_level: 0,
    }
    .handle(request)?;
    if let Ok((header, body)) = RequestHeader::mut_from_prefix(request.message_mut())
        && (header.request.get(), header.result.get()) == (supervisor::REQUEST_VERSION, EfiStatus::SUCCESS.0)
        && let Ok((info, _)) = VersionInfo::mut_from_prefix(body)
    {
        info.max_request_level = u64::from(supervisor::REQUEST_COMM_UPDATE).into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use mm_wire::Header;
    use mm_wire::guid;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const REGION: u64 = 0x10_0000;
    const LEN: usize = 0x1000;
    const MAILBOXES: u64 = REGION + 2 * LEN as u64;
    const WHO: mm_wire::Guid = guid!("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");

    /// The supervisor's comm buffer, the users', and a page with the mailbox of each.
    struct Memory(Vec<u8>);

    impl SystemMemory for Memory {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let at = usize::try_from(address - REGION).unwrap();
            out.copy_from_slice(&self.0[at..at + out.len()]);
            true
        }

        fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
            let at = usize::try_from(address - REGION).unwrap();
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            true
        }
    }

    fn buffers() -> [CommBuffer; 2] {
        [0, 1].map(|index| CommBuffer {
            region: AddressRange::new(REGION + index * LEN as u64, LEN as u64).unwrap(),
            mailbox: Some(MAILBOXES + index * LEN as u64),
        })
    }

    /// Announces a request with this header in a channel. Returns whether it is served, and the
    /// mailbox then.
    fn announce(mu: &ProjectMu, channel: usize, header: &[u8]) -> (bool, MailboxImage) {
        let mut memory = Memory(vec![0; 4 * LEN]);
        let buffers = buffers();
        let mailbox = mu.mailbox(channel, &buffers).unwrap();
        let image = match (mu.release, channel) {
            (Release::V20ToV23, SUPERVISOR) => MailboxImage::armed_for_supervisor(),
            _ => MailboxImage::armed(),
        };
        memory.write(buffers[channel].region.start(), header);
        memory.write(mailbox, image.as_bytes());
        let serving = mu.choose(&buffers, &mut memory);
        let mut image = MailboxImage::default();
        memory.read(mailbox, image.as_mut_bytes());
        assert!(serving.is_none_or(|serving| serving.channel == channel));
        (serving.is_some(), image)
    }

    fn header(format: HeaderFormat, length: u64) -> Vec<u8> {
        let mut bytes = Header::new(format, WHO, 1).unwrap().encode().as_ref().to_vec();
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    #[test]
    fn malformed_headers_are_answered_like_by_each_release() {
        const V1: HeaderFormat = HeaderFormat::V1;
        const V3: HeaderFormat = HeaderFormat::V3;
        let bad_size = MailboxImage::answered(EfiStatus::BAD_BUFFER_SIZE, 0);
        let not_found = |size| MailboxImage::answered(EfiStatus::NOT_FOUND, size);
        let unsupported = MailboxImage::answered(EfiStatus::UNSUPPORTED, 0);
        let longest = LEN as u64 - 24;
        for (channel, format, length, [released, main]) in [
            (USERS, V1, longest + 1, [bad_size; 2]),
            (USERS, V1, u64::MAX, [not_found(23), bad_size]),
            (USERS, V1, 0, [not_found(24); 2]),
            (USERS, V3, LEN as u64 + 1, [bad_size; 2]),
            (USERS, V3, 55, [not_found(55), bad_size]),
            (USERS, V3, 56, [not_found(56); 2]),
            (SUPERVISOR, V1, longest + 1, [bad_size; 2]),
            (SUPERVISOR, V1, u64::MAX - 22, [not_found(1), bad_size]),
            (SUPERVISOR, V1, 0, [not_found(24); 2]),
            (SUPERVISOR, V3, 57, [unsupported; 2]),
        ] {
            for (release, expected) in [(Release::V20ToV23, released), (Release::Main, main)] {
                let mu = ProjectMu::new(release);
                let seen = announce(&mu, channel, &header(format, length));
                assert_eq!(
                    seen,
                    (false, expected),
                    "{release:?}, {channel}, {format:?}, {length:#x}"
                );
            }
        }
        for release in Release::ALL {
            let mu = ProjectMu::new(release);
            for (channel, format, length) in [
                (USERS, V1, longest),
                (USERS, V3, 57),
                (USERS, V3, LEN as u64),
                (SUPERVISOR, V1, 1),
                (SUPERVISOR, V1, longest),
            ] {
                let (is_served, image) = announce(&mu, channel, &header(format, length));
                assert!(
                    is_served && image.is_pending(),
                    "{release:?}, {channel}, {length:#x}"
                );
            }
        }
    }

    #[test]
    fn after_exit_boot_services_main_leaves_a_request_announced() {
        for release in Release::ALL {
            let mu = Cell::new(ProjectMu::new(release));
            let buffers = buffers();
            let channel = Channel {
                mu: &mu,
                serving: &Cell::new(None),
                buffers: &buffers,
            };
            let closed = channel.close();
            let (is_served, image) = announce(&mu.get(), SUPERVISOR, &header(HeaderFormat::V1, 40));
            assert!(image.is_pending());
            match release {
                Release::V20ToV23 => assert_eq!((closed, is_served), (Err(EfiStatus::NOT_FOUND), true)),
                Release::Main => assert_eq!((closed, is_served), (Ok(()), false)),
            }
            assert_eq!(channel.lock(), Ok(()));
            assert_eq!(channel.lock(), Err(EfiStatus::NOT_FOUND));
        }
    }

    /// A request with a header that makes sense, and fields behind it that often do.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let field = prop_oneof![
            0..10u64,
            Just(REGION),
            Just(REGION + LEN as u64),
            Just(MAILBOXES),
            Just(supervisor::COMM_BUFFER_ATTRIBUTES),
            Just(u64::MAX),
            any::<u64>().prop_map(|address| address & !0xfff),
        ];
        let fields = prop::collection::vec(field, 0..40);
        (0..6u32, fields, 0..8usize).prop_map(|(number, fields, cut)| {
            let mut message = RequestHeader::new(number).as_bytes().to_vec();
            message.extend(fields.into_iter().flat_map(u64::to_le_bytes));
            message.truncate(message.len() - cut);
            message
        })
    }

    proptest! {
        #[test]
        fn no_request_makes_the_supervisor_panic_or_take_back_a_lock(
            requests in prop::collection::vec(request(), 1..40),
            is_main in any::<bool>(),
        ) {
            let release = if is_main { Release::Main } else { Release::V20ToV23 };
            let mu = Cell::new(ProjectMu::new(release));
            let buffers = buffers();
            let mut channel = Channel {
                mu: &mu,
                serving: &Cell::new(None),
                buffers: &buffers,
            };
            for message in requests {
                let before = mu.get();
                let mut memory = vec![0; LEN];
                memory[..message.len()].copy_from_slice(&message);
                let mut request =
                    Request::new(mm_wire::Guid::ZERO, Default::default(), &mut memory, message.len()).unwrap();
                let result = channel.handle(&mut request);
                prop_assert!(request.message().len() <= message.len());
                prop_assert!(matches!(result, Ok(()) | Err(EfiStatus::INVALID_PARAMETER)));
                let after = mu.get();
                prop_assert!(after.is_locked >= before.is_locked && after.was_moved >= before.was_moved);
                if before.is_locked {
                    let unblocked = |mu: ProjectMu| mu.unblocked.iter().flatten().count();
                    prop_assert_eq!(unblocked(before), unblocked(after));
                    prop_assert_eq!((before.regions, before.mailboxes), (after.regions, after.mailboxes));
                }
            }
        }
    }

    #[test]
    fn memory_is_unblocked_until_the_lock() {
        let buffers = buffers();
        let mut mu = ProjectMu::new(Release::Main);
        let memory = |address, pages| UnblockMemory::runtime_data(address, pages, WHO);
        // The RELEASE build takes memory off a page, and maps nothing.
        assert_eq!(mu.unblock(&memory(0x4000_0800, 1), &buffers), EfiStatus::SUCCESS);
        for (address, pages, result) in [
            (0x5000_0000, 0, EfiStatus::INVALID_PARAMETER),
            (0x5000_0000, 1 << 52, EfiStatus::INVALID_PARAMETER),
            (REGION, 1, EfiStatus::SECURITY_VIOLATION),
            (MAILBOXES, 1, EfiStatus::SECURITY_VIOLATION),
            (REGION - 0x1000, 6, EfiStatus::NO_MAPPING),
        ] {
            assert_eq!(
                mu.unblock(&memory(address, pages), &buffers),
                result,
                "{address:#x}"
            );
        }
        mu.is_locked = true;
        assert_eq!(
            mu.unblock(&memory(0x6000_0000, 1), &buffers),
            EfiStatus::ACCESS_DENIED
        );
    }
}
