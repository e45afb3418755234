//! HOB lists, and the comm buffer that `mm_runtime` finds in them. A reader of its own says what is
//! to be found.

use crate::memory;
use crate::wire::is_place;
use arbitrary::{Arbitrary, Unstructured};
use mm_runtime::hobs::{HobError, Source};
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, Owner};
use mm_wire::{Guid, guid};

/// A platform's own GUID for the data of edk2's HOB.
const OWN: Guid = guid!("3f1b7f05-6c4e-4f0e-a9a4-4f3f2a3a5b10");
/// The types of a HOB with a GUID and of the last one (PI 1.9, volume 3, 5).
const GUID_EXTENSION: u16 = 4;
const END_OF_LIST: u16 = 0xffff;

#[derive(Arbitrary, Debug)]
struct Case {
    source: u8,
    hobs: Vec<Hob>,
    /// Configuration tables before the list.
    others: u8,
    list: List,
}

#[derive(Arbitrary, Debug, PartialEq, Eq)]
enum List {
    There,
    Null,
    Absent,
}

#[derive(Arbitrary, Debug)]
enum Hob {
    Announcement(Announcement),
    /// A HOB that announces what the one before announced.
    Again,
    /// Any HOB: of any type, with any data.
    Any {
        kind: u16,
        data: Vec<u8>,
    },
    /// A HOB whose length does not cover its header, so the next HOB cannot be found.
    Damaged {
        kind: u16,
        len: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Announcement {
    guid: u8,
    owner: Option<u8>,
    page: u16,
    pages: u8,
    mailbox: Option<u16>,
    /// One field has this value instead.
    wild: Option<(u8, u64)>,
    /// The data has so many bytes less.
    cut: u8,
}

impl Announcement {
    fn hob(self) -> Vec<u8> {
        let guids = [COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID, OWN];
        let owner = self.owner.map(|owner| u64::from(owner % 3));
        let place = [u64::from(self.page) * 4096, u64::from(self.pages % 4)];
        let mailbox = self.mailbox.map(|word| u64::from(word) * 8);
        let mut fields: Vec<u64> = owner.into_iter().chain(place).chain(mailbox).collect();
        if let Some((at, value)) = self.wild {
            let at = usize::from(at) % fields.len();
            fields[at] = value;
        }
        let mut data = guids[usize::from(self.guid) % 3].to_bytes().to_vec();
        data.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        // Most have their length.
        let cut = if self.cut < 224 {
            0
        } else {
            usize::from(self.cut) - 223
        };
        data.truncate(data.len().saturating_sub(cut));
        hob(GUID_EXTENSION, 8 + data.len(), &data)
    }
}

fn hob(kind: u16, len: usize, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(len).unwrap();
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), &[0; 4], data].concat()
}

/// Start, length, mailbox.
type Place = (u64, u64, Option<u64>);

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Found(Place),
    NoList,
    NotFound,
    Ambiguous,
    Unusable,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut list = Vec::new();
    let mut last = Vec::new();
    for what in &case.hobs {
        let bytes = match what {
            Hob::Announcement(announcement) => announcement.hob(),
            Hob::Again => last.clone(),
            Hob::Any { kind, data } => hob(*kind, 8 + data.len(), data),
            Hob::Damaged { kind, len } => hob(*kind, usize::from(len % 8), &[]),
        };
        list.extend(&bytes);
        last = bytes;
    }
    list.extend(hob(END_OF_LIST, 8, &[]));
    let source = match case.source % 4 {
        0 => Source::EDK2,
        1 => Source::Buffer(OWN),
        2 => Source::Region(Owner::Supervisor),
        _ => Source::Region(Owner::User),
    };
    let given = match case.list {
        List::There => Some(Some(list.as_slice())),
        List::Null => Some(None),
        List::Absent => None,
    };
    let found = match memory::find_in_hobs(given, usize::from(case.others % 4), source) {
        Ok(place) => Expected::Found((place.region().start(), place.region().len(), place.mailbox())),
        Err(HobError::NoList) => Expected::NoList,
        Err(HobError::NotFound) => Expected::NotFound,
        Err(HobError::Ambiguous) => Expected::Ambiguous,
        Err(HobError::Place(_)) => Expected::Unusable,
        Err(other) => panic!("{other}"),
    };
    let expected = match case.list {
        List::There => expect(&list, source),
        _ => Expected::NoList,
    };
    assert_eq!(found, expected, "{source:?} in {list:02x?}");
}

/// Walks the list, and reads each number where the specification has it.
fn expect(list: &[u8], source: Source) -> Expected {
    let mut found: Option<Place> = None;
    let mut rest = list;
    loop {
        let kind = u16::from_le_bytes([rest[0], rest[1]]);
        let len = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
        if kind == END_OF_LIST || len < 8 {
            return found.map_or(Expected::NotFound, Expected::Found);
        }
        let (hob, behind) = rest.split_at(len);
        rest = behind;
        if kind != GUID_EXTENSION || len < 24 {
            continue;
        }
        let (guid, data) = (&hob[8..24], &hob[24..]);
        let (wanted, owner) = match source {
            Source::Buffer(wanted) => (wanted, None),
            Source::Region(owner) => (COMM_REGION_HOB_GUID, Some(owner)),
        };
        if guid != wanted.to_bytes() {
            continue;
        }
        let fields: Vec<u64> = data
            .chunks_exact(8)
            .map(|field| u64::from_le_bytes(field.try_into().unwrap()))
            .collect();
        let whole = data.len().is_multiple_of(8);
        let (start, pages, mailbox) = match (owner, &fields[..]) {
            (None, [start, pages, mailbox]) if whole => (*start, *pages, Some(*mailbox)),
            (Some(_), [0 | 1, start, pages, mailbox @ ..]) if whole && mailbox.len() < 2 => {
                (*start, *pages, mailbox.first().copied())
            }
            _ => return Expected::Unusable,
        };
        if !is_place(start, pages, mailbox) {
            return Expected::Unusable;
        }
        let is_ours = owner.is_none_or(|owner| (owner == Owner::User) == (fields[0] == 1));
        let place = (start, pages * 4096, mailbox);
        match found {
            _ if !is_ours => {}
            Some(other) if other != place => return Expected::Ambiguous,
            _ => found = Some(place),
        }
    }
}
