//! The MM side against a hostile client: every field of a request, buffers in the wrong place, and
//! memory that another thread changes while MM reads it. An unsafe island (`docs/unsafe.md`): it
//! maps memory, and reaches it by address.
//!
//! MM's bus does not check anything: it makes every access that MM asks for. Around the comm
//! buffer, the mailbox and MM's copy of the message are pages without access, and MMRAM is nothing
//! else, so an access outside ends the process. Inside, each access is compared with the bytes of
//! the message, and the memory with a copy of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "this is a test: what is not there fails it"
)]

use mm_comm::SharedRegion;
use mm_core::handlers::Echo;
use mm_core::setup::Purpose;
use mm_core::{CommBuffer, MmCore, Mmi, Outcome, SetupError, SystemMemory};
use mm_wire::{AddressRange, EfiStatus, Guid, PAGE_LEN, guid};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MARKER: [u8; 16] = guid!("68e8c853-2ba9-4dd7-9ac0-91e16155c935").to_bytes();
const UNKNOWN: Guid = guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");
const REGION_LEN: usize = PAGE_LEN;

/// Pages that are never unmapped, with a page without access on each side.
fn guarded(pages: usize) -> (*mut u8, usize) {
    let len = pages * PAGE_LEN;
    let flags = MapFlags::PRIVATE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let all = unsafe { mmap_anonymous(ptr::null_mut(), len + 2 * PAGE_LEN, ProtFlags::empty(), flags) };
    let inside = all.unwrap().wrapping_byte_add(PAGE_LEN);
    // SAFETY: inside the mapping, to which nothing refers.
    unsafe { mprotect(inside, len, MprotectFlags::READ | MprotectFlags::WRITE) }.unwrap();
    inside.expose_provenance();
    (inside.cast(), len)
}

fn region((base, len): (*mut u8, usize)) -> SharedRegion {
    // SAFETY: never unmapped, and only accessed as volatile.
    unsafe { SharedRegion::new(base, len) }.unwrap()
}

fn range((base, len): (*mut u8, usize)) -> AddressRange {
    AddressRange::new(base.addr() as u64, len as u64).unwrap()
}

fn bytes(region: &SharedRegion) -> Vec<u8> {
    let mut copy = vec![0; region.len()];
    assert!(region.read(0, &mut copy));
    copy
}

/// MM's bus. It accesses any address, and notes which.
#[derive(Default)]
struct Bus {
    reads: RefCell<Vec<Range<u64>>>,
    writes: Vec<Range<u64>>,
}

impl Bus {
    fn at(address: u64, len: usize) -> SharedRegion {
        let base = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
        // SAFETY: not checked on purpose: memory that MM must not reach is mapped without access,
        // and ends the process.
        unsafe { SharedRegion::new(base, len) }.unwrap()
    }
}

impl SystemMemory for Bus {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        self.reads.borrow_mut().push(address..address + out.len() as u64);
        Self::at(address, out.len()).read(0, out)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        self.writes.push(address..address + bytes.len() as u64);
        Self::at(address, bytes.len()).write(0, bytes)
    }
}

/// The machine: a comm buffer of one page, its mailbox at the end of a page, MM's own copy at the
/// end of others, and MMRAM.
struct World {
    buffer: CommBuffer,
    region: SharedRegion,
    mailbox: Option<SharedRegion>,
    mmram: AddressRange,
    scratch: (*mut u8, usize),
}

impl World {
    fn new(with_mailbox: bool) -> Self {
        let memory = guarded(1);
        let (page, _) = guarded(1);
        let mailbox = page.wrapping_add(PAGE_LEN - 24);
        let scratch_len = REGION_LEN - 24;
        let (scratch, _) = guarded(1);
        let (mmram, mmram_len) = guarded(2);
        // SAFETY: the mapping made just now, to which nothing refers.
        unsafe { mprotect(mmram.cast(), mmram_len, MprotectFlags::empty()) }.unwrap();
        Self {
            buffer: CommBuffer {
                region: range(memory),
                mailbox: with_mailbox.then(|| mailbox.expose_provenance() as u64),
            },
            region: region(memory),
            mailbox: with_mailbox.then(|| region((mailbox, 24))),
            mmram: range((mmram, mmram_len)),
            scratch: (scratch.wrapping_add(PAGE_LEN - scratch_len), scratch_len),
        }
    }

    fn scratch(&self) -> &'static mut [u8] {
        // SAFETY: mapped for this, never unmapped, and the last slice of it is not used any more
        // when this is called.
        unsafe { std::slice::from_raw_parts_mut(self.scratch.0, self.scratch.1) }
    }

    /// Lets MM run once.
    fn enter(&self, bus: &mut Bus) -> Outcome {
        let buffers = [self.buffer];
        let mut mm = MmCore::new(&[self.mmram], &buffers, self.scratch()).unwrap();
        let mut echo = Echo;
        let visit = mm.enter(bus, Mmi::default(), &mut [(Echo::GUID, &mut echo)], &mut []);
        visit.outcomes()[0]
    }
}

/// A request whose fields are all the client's.
#[derive(Clone, Copy, Debug)]
struct Fields {
    v3: bool,
    recipient: [u8; 16],
    /// MessageLength, or BufferSize.
    length: u64,
    /// MessageSize of a v3 header.
    message_size: u64,
    valid: u8,
}

impl Fields {
    /// What MM must take for the message: its place in the region. By PI 1.9, volume 4, 5.7.
    fn message(self, has_mailbox: bool) -> Option<Range<usize>> {
        if has_mailbox && self.valid == 0 {
            return None;
        }
        // A v1 header whose GUID is the marker reads as v3, and a v3 header starts with the marker.
        let is_v3 = self.v3 || self.recipient == MARKER;
        let (header_len, total) = match is_v3 {
            true => (56, self.length),
            false => (24, self.length.checked_add(24)?),
        };
        let len = total.checked_sub(header_len)?;
        let recipient = self.seen_recipient();
        if total > REGION_LEN as u64 || (!has_mailbox && (len == 0 || recipient == [0; 16])) {
            return None;
        }
        Some(usize::try_from(header_len).unwrap()..usize::try_from(total).unwrap())
    }

    /// The recipient that MM reads.
    fn seen_recipient(self) -> [u8; 16] {
        match (self.v3, self.recipient == MARKER) {
            // The v3 header's own field is behind the marker: filler.
            (false, true) => [0x5a; 16],
            _ => self.recipient,
        }
    }
}

fn hostile_requests() -> Vec<Fields> {
    let len = REGION_LEN as u64;
    let lengths = [
        0,
        1,
        8,
        23,
        24,
        25,
        55,
        56,
        57,
        100,
        len - 57,
        len - 56,
        len - 55,
        len - 25,
        len - 24,
        len - 23,
        len - 1,
        len,
        len + 1,
        len + 24,
        1 << 31,
        1 << 32,
        (1 << 32) + 100,
        1 << 63,
        u64::MAX - 56,
        u64::MAX - 24,
        u64::MAX - 23,
        u64::MAX,
    ];
    let recipients = [
        Echo::GUID.to_bytes(),
        UNKNOWN.to_bytes(),
        MARKER,
        [0; 16],
        [0xff; 16],
    ];
    let mut all = Vec::new();
    for v3 in [false, true] {
        for recipient in recipients {
            for length in lengths {
                for message_size in [0, 1, 44, 100, len, u64::MAX] {
                    for valid in [0, 1, 2, 0x80, 0xff] {
                        all.push(Fields {
                            v3,
                            recipient,
                            length,
                            message_size,
                            valid,
                        });
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_field_of_a_request_is_hostile_and_nothing_outside_the_message_is_accessed() {
    let requests = hostile_requests();
    let (mut served, mut refused) = (0_u32, 0_u32);
    for with_mailbox in [true, false] {
        let world = World::new(with_mailbox);
        let start = world.buffer.region.start();
        for fields in &requests {
            assert!(world.region.write(0, &[0x5a; REGION_LEN]));
            let header: Vec<u8> = match fields.v3 {
                true => [
                    MARKER.as_slice(),
                    &fields.length.to_le_bytes(),
                    &[0xff; 8],
                    &fields.recipient,
                    &fields.message_size.to_le_bytes(),
                ]
                .concat(),
                false => [fields.recipient.as_slice(), &fields.length.to_le_bytes()].concat(),
            };
            assert!(world.region.write(0, &header));
            if let Some(mailbox) = &world.mailbox {
                assert!(mailbox.write(0, &[0xcc; 24]) && mailbox.write(0, &[fields.valid]));
            }
            let before = bytes(&world.region);
            let mailbox_before = world.mailbox.as_ref().map(bytes);

            let mut bus = Bus::default();
            let outcome = world.enter(&mut bus);

            let after = bytes(&world.region);
            let message = fields.message(with_mailbox);
            let is_served = match (&outcome, &message) {
                (Outcome::NoRequest | Outcome::Refused(_), _) => false,
                (_, Some(_)) => true,
                (outcome, None) => panic!("{fields:?} was served: {outcome}"),
            };
            // A MessageSize beyond the message makes a v3 header contradict itself, which MM may
            // refuse.
            let may_refuse = (fields.v3 || fields.recipient == MARKER)
                && message.as_ref().is_some_and(|message| {
                    let size = match fields.v3 {
                        true => fields.message_size,
                        false => u64::from_le_bytes([0x5a; 8]),
                    };
                    size > message.len() as u64
                });
            assert!(
                is_served || message.is_none() || may_refuse,
                "{fields:?}: {outcome}"
            );
            match is_served {
                true => served += 1,
                false => refused += 1,
            }

            // What may be read: the mailbox's first byte, where a header may be, and the message,
            // each once.
            let message = message.unwrap_or_default();
            let place = start + message.start as u64..start + message.end as u64;
            let mut headers = 0;
            let mut messages = 0;
            for read in bus.reads.borrow().iter() {
                if Some(read.start) == world.buffer.mailbox {
                    assert_eq!(read.end - read.start, 1, "{fields:?}: {read:?} of the mailbox");
                } else if *read == (start..start + 56) {
                    headers += 1;
                } else {
                    assert!(is_served && *read == place, "{fields:?}: {read:?} is read");
                    messages += 1;
                }
            }
            assert!(headers <= 1 && messages <= 1, "{fields:?}: a second fetch");
            // What may be written: the message, the header's length without a mailbox, else the
            // mailbox's result.
            let lengths = [start + 16..start + 24, start + 48..start + 56];
            for write in &bus.writes {
                let in_message = place.start <= write.start && write.end <= place.end;
                let in_lengths = !with_mailbox && lengths.contains(write);
                let in_mailbox = world
                    .buffer
                    .mailbox
                    .is_some_and(|mailbox| [mailbox..mailbox + 1, mailbox + 8..mailbox + 24].contains(write));
                assert!(
                    is_served && (in_message || in_lengths || in_mailbox),
                    "{fields:?}: {write:?} is written"
                );
            }
            // The shadow: an echo changes only the length fields.
            for at in (0..REGION_LEN).filter(|at| !message.contains(at)) {
                let is_length = is_served && !with_mailbox && matches!(at, 16..24 | 48..56);
                assert!(
                    is_length || before[at] == after[at],
                    "{fields:?}: byte {at} changed"
                );
            }
            assert_eq!(after[message.clone()], before[message], "{fields:?}: the echo");
            if let (Some(mailbox), Some(before)) = (&world.mailbox, mailbox_before) {
                let after = bytes(mailbox);
                if is_served {
                    assert_eq!(after[0], 0, "{fields:?}");
                    let status = match fields.seen_recipient() == Echo::GUID.to_bytes() {
                        true => EfiStatus::SUCCESS,
                        false => EfiStatus::NOT_FOUND,
                    };
                    assert_eq!(after[8..16], status.0.to_le_bytes(), "{fields:?}");
                } else {
                    assert_eq!(
                        after, before,
                        "{fields:?}: the mailbox of a refused request changed"
                    );
                }
            }
        }
    }
    println!("hostile requests: {served} served, {refused} refused or not a request");
    assert!(served > 1000 && refused > 1000);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A second processor flips the length while MM reads.
#[test]
fn racing_writer_gets_no_access_outside_the_message() {
    const ROUNDS: u32 = 30_000;
    // A busy host may not run the other thread meanwhile.
    const AT_MOST: Duration = Duration::from_secs(60);
    let lengths: [u64; 4] = [
        100,
        (REGION_LEN - 24) as u64,
        u64::MAX,
        (REGION_LEN + 4096) as u64,
    ];
    let is_raced = |seen: [bool; 3]| seen[2] && (seen[0] || seen[1]);
    for with_mailbox in [true, false] {
        let world = World::new(with_mailbox);
        let address = world.buffer.region.start();
        let stop = AtomicBool::new(false);
        let mut seen = [false; 3];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let memory = Bus::at(address, REGION_LEN);
                while !stop.load(Ordering::Relaxed) {
                    for length in lengths {
                        assert!(memory.write(16, &length.to_le_bytes()));
                        assert!(memory.write(0, &Echo::GUID.to_bytes()));
                        assert!(memory.write(0, &MARKER));
                    }
                }
            });
            let start = Instant::now();
            // Also if an assertion fails: the scope waits for the other thread.
            let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
            let mut round = 0;
            while round < ROUNDS || !is_raced(seen) && start.elapsed() < AT_MOST {
                round += 1;
                if round % 1000 == 0 {
                    std::thread::yield_now();
                }
                if let Some(mailbox) = &world.mailbox {
                    assert!(mailbox.write(0, &[1]));
                }
                let mut bus = Bus::default();
                let outcome = world.enter(&mut bus);
                let end = address + REGION_LEN as u64;
                let inside = |access: &Range<u64>| {
                    let in_region = address <= access.start && access.end <= end;
                    let in_mailbox = world
                        .buffer
                        .mailbox
                        .is_some_and(|mailbox| mailbox <= access.start && access.end <= mailbox + 24);
                    in_region || in_mailbox
                };
                assert!(
                    bus.reads.borrow().iter().chain(&bus.writes).all(inside),
                    "{outcome}"
                );
                match outcome {
                    Outcome::Dispatched {
                        request_len,
                        response_len,
                        ..
                    } => {
                        // One fetch: the value that was checked is the value that was used.
                        assert_eq!(request_len, response_len);
                        assert!(request_len <= REGION_LEN - 24);
                        seen[usize::from(request_len > 100)] = true;
                    }
                    Outcome::Refused(_) | Outcome::NoRequest => seen[2] = true,
                    _ => {}
                }
            }
        });
        println!("racing writer: short, long, refused seen: {seen:?}");
        assert!(is_raced(seen), "the race was never seen: {seen:?}");
    }
}

#[test]
fn buffers_in_the_wrong_place_are_refused() {
    let world = World::new(true);
    let (memory, mailbox) = (world.buffer.region, world.buffer.mailbox);
    let (mmram, page) = (world.mmram, PAGE_LEN as u64);
    let make = |buffers: &[CommBuffer]| MmCore::new(&[mmram], buffers, world.scratch()).map(drop).err();
    let buffer = |start: u64, len: u64, mailbox| CommBuffer {
        region: AddressRange::new(start, len).unwrap(),
        mailbox,
    };
    let overlap = |found: Option<SetupError>, purpose: Purpose, other: Purpose| match found {
        Some(SetupError::Overlap {
            purpose: one,
            other_purpose,
            ..
        }) => assert_eq!((one, other_purpose), (purpose, other)),
        other => panic!("{other:?}"),
    };
    assert_eq!(make(&[world.buffer]), None);
    // Over MMRAM: inside it, around its start and its end, and one byte of it.
    for start in [
        mmram.start(),
        mmram.start() + page,
        mmram.start() - page + 1,
        mmram.start() + 2 * page - 1,
    ] {
        overlap(
            make(&[buffer(start, page, mailbox)]),
            Purpose::CommBuffer,
            Purpose::Mmram,
        );
    }
    for at in [mmram.start(), mmram.start() - 16, mmram.start() + 2 * page - 8] {
        let found = make(&[buffer(memory.start(), page, Some(at))]);
        overlap(found, Purpose::Mailbox, Purpose::Mmram);
    }
    // Over its own mailbox, another's, and another buffer.
    for at in [
        memory.start(),
        memory.start() + page - 24,
        memory.start() + page - 8,
    ] {
        let found = make(&[buffer(memory.start(), page, Some(at))]);
        overlap(found, Purpose::CommBuffer, Purpose::Mailbox);
    }
    let second = buffer(memory.start() + page - 1, page, None);
    overlap(
        make(&[world.buffer, second]),
        Purpose::CommBuffer,
        Purpose::CommBuffer,
    );
    // Wrapping: there is no such range, and a mailbox at the end wraps.
    assert_eq!(AddressRange::new(u64::MAX - 100, 200), None);
    for at in [u64::MAX - 7, u64::MAX - 15] {
        let found = make(&[buffer(memory.start(), page, Some(at))]);
        assert!(
            matches!(found, Some(SetupError::MailboxWraps { .. })),
            "{found:?}"
        );
    }
    // Longer than MM's copy.
    let found = make(&[buffer(memory.start(), 2 * page, None)]);
    assert!(
        matches!(found, Some(SetupError::ScratchTooSmall { .. })),
        "{found:?}"
    );
}

/// After a move MM does not look at the old place: it is memory without access.
#[test]
fn old_place_of_a_moved_buffer_is_not_accessed() {
    let mut world = World::new(true);
    let old = (world.region.as_ptr(), REGION_LEN);
    let new = guarded(1);
    world.buffer.region = range(new);
    world.region = region(new);
    // SAFETY: this test's mapping; the region over it was replaced above.
    unsafe { mprotect(old.0.cast(), old.1, MprotectFlags::empty()) }.unwrap();
    let header = [Echo::GUID.to_bytes().as_slice(), &4_u64.to_le_bytes(), b"move"].concat();
    assert!(world.region.write(0, &header));
    assert!(world.mailbox.as_ref().unwrap().write(0, &[1]));
    let outcome = world.enter(&mut Bus::default());
    assert_eq!(outcome.response(), Some(EfiStatus::SUCCESS), "{outcome}");
}

/// Tells a child process of this test to read outside.
const OUTSIDE: &str = "MM_HOSTILE_CLIENT_TEST_OUTSIDE";

/// Shows that the tests above would not survive an access outside.
#[test]
fn access_outside_ends_the_process() {
    if let Some(which) = std::env::var_os(OUTSIDE) {
        let world = World::new(true);
        let (region, mailbox) = (world.buffer.region.start(), world.buffer.mailbox.unwrap());
        let at = match which.to_str().unwrap() {
            "before" => region - 1,
            "behind" => region + PAGE_LEN as u64,
            "mailbox" => mailbox + 24,
            _ => world.mmram.start(),
        };
        Bus::default().read(at, &mut [0]);
        return;
    }
    for which in ["before", "behind", "mailbox", "mmram"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child
            .args(["--exact", "access_outside_ends_the_process"])
            .env(OUTSIDE, which);
        let status = child.output().unwrap().status;
        // SIGSEGV.
        assert_eq!(status.signal(), Some(11), "{which}");
    }
}
