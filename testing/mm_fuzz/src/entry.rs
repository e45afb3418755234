//! `mm_core` against a caller that does anything: it sends any buffers, headers, mailboxes and
//! messages, and changes memory while MM reads.

use crate::header::{Fields, Name, Size};
use arbitrary::{Arbitrary, Unstructured};
use mm_core::{
    AddressRange, CommBuffer, Handler, MmCore, Mmi, Outcome, Refusal, Request, SetupError, SystemMemory,
};
use mm_wire::EfiStatus;
use std::cell::{Cell, RefCell};

const BASE: u64 = 0x10_0000;
const RAM_LEN: usize = 0x800;
const MMRAM: (u64, u64) = (BASE + 0x1000, 0x1000);
const SCRATCH_LEN: usize = 0x200;

#[derive(Arbitrary, Debug)]
struct Case {
    buffers: Vec<Place>,
    handlers: Vec<Script>,
    writes: Vec<Write>,
    /// Changes of memory while MM works, each after a number of accesses.
    races: Vec<(u8, u16, u8)>,
    mmram: bool,
    entries: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place {
    start: Address,
    len: u16,
    mailbox: Option<Address>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    InRam(u16),
    Word(u8),
    NearMmram(i8),
    NearEnd(u8),
    Any(u64),
}

impl Address {
    const fn value(self) -> u64 {
        match self {
            Self::InRam(offset) => BASE + offset as u64 % RAM_LEN as u64,
            Self::Word(word) => BASE + word as u64 * 8,
            Self::NearMmram(offset) => MMRAM.0.wrapping_add_signed(offset as i64),
            Self::NearEnd(fewer) => u64::MAX - fewer as u64,
            Self::Any(address) => address,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Write {
    Header {
        buffer: u8,
        v3: bool,
        name: Name,
        len: Size,
        message_size: Size,
    },
    Bytes {
        at: u16,
        bytes: [u8; 8],
    },
    Announce {
        buffer: u8,
        value: u8,
    },
}

/// What a handler does.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Script {
    name: Name,
    len: Size,
    fill: u8,
    status: u64,
}

/// RAM, and the accesses to it.
struct Ram {
    bytes: RefCell<Vec<u8>>,
    reads: RefCell<Vec<(u64, usize)>>,
    writes: Vec<(u64, usize)>,
    races: Vec<(u8, u16, u8)>,
    accesses: Cell<usize>,
}

impl Ram {
    fn place(address: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = start.checked_add(len)?;
        (end <= RAM_LEN).then_some(start..end)
    }

    /// The caller's other processor.
    fn race(&self) {
        let number = self.accesses.get();
        self.accesses.set(number + 1);
        for (_, at, value) in self
            .races
            .iter()
            .filter(|(when, ..)| usize::from(*when) == number)
        {
            self.bytes.borrow_mut()[usize::from(*at) % RAM_LEN] = *value;
        }
    }
}

impl SystemMemory for Ram {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        assert!(!out.is_empty(), "a read of nothing");
        let Some(place) = Self::place(address, out.len()) else {
            return false;
        };
        self.reads.borrow_mut().push((address, out.len()));
        out.copy_from_slice(&self.bytes.borrow()[place]);
        self.race();
        true
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        assert!(!bytes.is_empty(), "a write of nothing");
        let Some(place) = Self::place(address, bytes.len()) else {
            return false;
        };
        self.writes.push((address, bytes.len()));
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        self.race();
        true
    }
}

impl Script {
    /// The model of the handler: changes the message, and returns whether the handler succeeds.
    fn apply(&self, message: &mut Vec<u8>, capacity: usize) -> Option<EfiStatus> {
        let len = self.len.of(capacity);
        if len <= capacity as u64 {
            message.resize(len as usize, 0);
            message.iter_mut().for_each(|byte| *byte ^= self.fill);
        }
        (!self.status.is_multiple_of(3)).then_some(EfiStatus(self.status))
    }
}

impl Handler for Script {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        let mut message = request.message().to_vec();
        let failure = self.apply(&mut message, request.capacity());
        request.respond(&message).unwrap();
        let capacity = request.capacity();
        assert!(request.set_len(capacity + 1).is_err());
        failure.map_or(Ok(()), Err)
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let buffers: Vec<CommBuffer> = case
        .buffers
        .iter()
        .take(10)
        .filter_map(|place| {
            Some(CommBuffer {
                region: AddressRange::new(place.start.value(), u64::from(place.len % 0x300))?,
                mailbox: place.mailbox.map(Address::value),
            })
        })
        .collect();
    let mmram = [AddressRange::new(MMRAM.0, MMRAM.1).unwrap()];
    let mmram = if case.mmram { &mmram[..] } else { &[] };
    let mut scratch = vec![0x77; SCRATCH_LEN];
    let core = MmCore::new(mmram, &buffers, &mut scratch);
    let expected = setup(mmram, &buffers);
    let kind = |error: &SetupError| match error {
        SetupError::NoMmram => Setup::NoMmram,
        SetupError::TooManyBuffers { .. } => Setup::TooMany,
        SetupError::RegionTooSmall { .. } => Setup::TooSmall,
        SetupError::ScratchTooSmall { .. } => Setup::Scratch,
        SetupError::MailboxMisaligned { .. } | SetupError::MailboxWraps { .. } => Setup::Mailbox,
        _ => Setup::Overlap,
    };
    assert_eq!(core.as_ref().err().map(kind), expected, "{buffers:x?}");
    let Ok(mut core) = core else { return };

    let mut ram = Ram {
        bytes: RefCell::new((0..RAM_LEN).map(|at| at as u8 | 0x80).collect()),
        reads: RefCell::default(),
        writes: Vec::new(),
        races: case.races.clone(),
        accesses: Cell::new(0),
    };
    // Nothing is announced at first.
    for mailbox in buffers.iter().filter_map(|buffer| buffer.mailbox) {
        ram.write(mailbox, &[0; 24]);
    }
    for write in &case.writes {
        prepare(&mut ram, &buffers, write);
    }
    for entry in 0..case.entries % 3 + 1 {
        ram.accesses.set(0);
        ram.writes.clear();
        ram.reads.take();
        let before = ram.bytes.borrow().clone();
        let mut handlers = case.handlers.clone();
        let mut registered: Vec<(mm_wire::Guid, &mut dyn Handler)> = handlers
            .iter_mut()
            .map(|script| (script.name.guid(), script as &mut dyn Handler))
            .collect();
        let visit = core.enter(&mut ram, Mmi::default(), &mut registered, &mut []);
        check_access(&ram, &buffers);
        if ram.races.is_empty() {
            let (outcomes, after) = model(&before, &buffers, &case.handlers);
            assert_eq!(visit.outcomes(), outcomes, "entry {entry}");
            assert_eq!(*ram.bytes.borrow(), after, "entry {entry}: {buffers:x?}");
        }
    }
    // Nothing of a message stays in MM's own copy; what was never used keeps what was there.
    assert!(
        scratch.iter().all(|byte| matches!(byte, 0 | 0x77)),
        "a message stayed in MM"
    );
}

fn prepare(ram: &mut Ram, buffers: &[CommBuffer], write: &Write) {
    let chosen = |index: u8| buffers.get(usize::from(index) % buffers.len().max(1));
    match write {
        Write::Header {
            buffer,
            v3,
            name,
            len,
            message_size,
        } => {
            let Some(buffer) = chosen(*buffer) else { return };
            let region_len = buffer.region.len() as usize;
            let header = Fields {
                v3: *v3,
                guid: name.bytes(),
                counted: len.of(region_len).min(u64::MAX - 56),
                message_size: message_size.of(region_len),
            };
            let bytes = header.write();
            if bytes.len() <= region_len {
                ram.write(buffer.region.start(), &bytes);
            }
            if let Some(mailbox) = buffer.mailbox {
                ram.write(mailbox, &[1]);
            }
        }
        Write::Bytes { at, bytes } => {
            ram.write(BASE + u64::from(*at) % (RAM_LEN as u64 - 8), bytes);
        }
        Write::Announce { buffer, value } => {
            if let Some(mailbox) = chosen(*buffer).and_then(|buffer| buffer.mailbox) {
                ram.write(mailbox, &[*value]);
            }
        }
    }
}

/// Whatever the caller did: nothing outside regions and mailboxes is read or written, and each byte
/// that a check depends on is read once.
fn check_access(ram: &Ram, buffers: &[CommBuffer]) {
    let inside = |address: u64, len: usize| {
        let access = AddressRange::new(address, len as u64).unwrap();
        buffers.iter().any(|buffer| {
            let mailbox = buffer.mailbox.and_then(|mailbox| AddressRange::new(mailbox, 24));
            buffer.region.contains(access) || mailbox.is_some_and(|mailbox| mailbox.contains(access))
        })
    };
    let reads = ram.reads.borrow();
    for (address, len) in reads.iter().chain(&ram.writes) {
        assert!(
            inside(*address, *len),
            "access outside: {len} bytes at {address:#x}"
        );
    }
    for buffer in buffers {
        let fetches = |address: u64| {
            let holds = |(start, len): &&(u64, usize)| *start <= address && address - *start < *len as u64;
            reads.iter().filter(holds).count()
        };
        // A v1 header; the rest of a v3 header is a v1 message's start, and copied as that again.
        for offset in 0..24 {
            assert!(
                fetches(buffer.region.start() + offset) <= 1,
                "double fetch at +{offset}"
            );
        }
        if let Some(mailbox) = buffer.mailbox {
            assert!(fetches(mailbox) <= 1, "the mailbox was read twice");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Setup {
    NoMmram,
    TooMany,
    TooSmall,
    Scratch,
    Mailbox,
    Overlap,
}

/// Which buffers an MM core must refuse.
fn setup(mmram: &[AddressRange], buffers: &[CommBuffer]) -> Option<Setup> {
    if mmram.is_empty() {
        return Some(Setup::NoMmram);
    }
    if buffers.len() > 8 {
        return Some(Setup::TooMany);
    }
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    for buffer in buffers {
        let (start, len) = (u128::from(buffer.region.start()), u128::from(buffer.region.len()));
        if len < 24 {
            return Some(Setup::TooSmall);
        }
        if len - 24 > SCRATCH_LEN as u128 {
            return Some(Setup::Scratch);
        }
        ranges.push((start, start + len));
        if let Some(mailbox) = buffer.mailbox {
            let end = u128::from(mailbox) + 24;
            if !mailbox.is_multiple_of(8) || end > u128::from(u64::MAX) {
                return Some(Setup::Mailbox);
            }
            ranges.push((u128::from(mailbox), end));
        }
    }
    let own = mmram
        .iter()
        .map(|range| (u128::from(range.start()), u128::from(range.end())));
    let all: Vec<_> = ranges.iter().copied().chain(own).collect();
    let overlaps = (0..ranges.len()).any(|first| {
        all[first + 1..]
            .iter()
            .any(|other| ranges[first].0 < other.1 && other.0 < ranges[first].1)
    });
    overlaps.then_some(Setup::Overlap)
}

/// What an entry does, by the rules of edk2's `MmEntryPoint`, on a copy of memory.
fn model(before: &[u8], buffers: &[CommBuffer], handlers: &[Script]) -> (Vec<Outcome>, Vec<u8>) {
    let mut ram = before.to_vec();
    let outcomes = buffers
        .iter()
        .map(|buffer| {
            serve(&mut ram, *buffer, handlers)
                .unwrap_or_else(|(address, len)| Outcome::Refused(Refusal::Inaccessible { address, len }))
        })
        .collect();
    (outcomes, ram)
}

/// `Err` is an access that failed.
fn serve(ram: &mut [u8], buffer: CommBuffer, handlers: &[Script]) -> Result<Outcome, (u64, usize)> {
    fn at(address: u64, len: usize) -> Result<std::ops::Range<usize>, (u64, usize)> {
        Ram::place(address, len).ok_or((address, len))
    }
    let region = buffer.region;
    if let Some(mailbox) = buffer.mailbox
        && ram[at(mailbox, 1)?] == [0]
    {
        return Ok(Outcome::NoRequest);
    }
    let start = ram[at(region.start(), (region.len() as usize).min(56))?].to_vec();
    let header = Fields::read(&start);
    let header = match (header, buffer.mailbox) {
        (Some(header), Some(_)) => header,
        (None, Some(_)) => {
            let error = mm_wire::Header::parse(&start).unwrap_err();
            return Ok(Outcome::Refused(Refusal::Header(error)));
        }
        (Some(header), None) if header.guid != [0; 16] && header.counted > 0 => header,
        (_, None) => return Ok(Outcome::NoRequest),
    };
    let refusal = Outcome::Refused(Refusal::TooLarge {
        claimed: header.total() as u64,
        region: region.len(),
    });
    if header.total() > u128::from(region.len()) {
        return Ok(refusal);
    }
    let message_at = region.start() + header.len() as u64;
    let capacity = region.len() as usize - header.len();
    let request_len = header.counted as usize;
    let mut message = match request_len {
        0 => Vec::new(),
        len => ram[at(message_at, len)?].to_vec(),
    };
    let recipient = mm_wire::Guid::from_bytes(header.guid);
    let mut status = None;
    for script in handlers
        .iter()
        .filter(|script| script.name.bytes() == header.guid)
    {
        status = match script.apply(&mut message, capacity) {
            None => Some(EfiStatus::SUCCESS),
            Some(EfiStatus::SUCCESS) => Some(EfiStatus::ABORTED),
            failure => failure,
        };
        if status == Some(EfiStatus::SUCCESS) {
            break;
        }
    }
    if status.is_some() && !message.is_empty() {
        let place = at(message_at, message.len())?;
        ram[place].copy_from_slice(&message);
    }
    let response_len = message.len();
    if let Some(mailbox) = buffer.mailbox {
        let told = match status {
            Some(EfiStatus::SUCCESS) => 0,
            _ => EfiStatus::NOT_FOUND.0,
        };
        let result = [told, (header.len() + response_len) as u64].map(u64::to_le_bytes);
        ram[at(mailbox + 8, 16)?].copy_from_slice(result.as_flattened());
        ram[at(mailbox, 1)?].fill(0);
    } else if status.is_some() {
        let mut field = |offset: u64, value: u64| {
            ram[at(region.start() + offset, 8)?].copy_from_slice(&value.to_le_bytes());
            Ok(())
        };
        let len = response_len as u64;
        if !header.v3 {
            field(16, len)?;
        } else {
            if len > header.counted {
                field(16, len + 56)?;
            }
            field(48, len)?;
        }
    }
    Ok(match status {
        None => Outcome::NoHandler {
            recipient,
            request_len,
        },
        Some(status) => Outcome::Dispatched {
            recipient,
            request_len,
            response_len,
            status,
        },
    })
}
