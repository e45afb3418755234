//! HOBs that announce comm buffers, and what `MmHobConfiguration` makes of them: whatever they say,
//! the configuration has only memory that a HOB named, each byte once, and memory that is not taken
//! over stays as it was.

use crate::memory::{Block, Purpose};
use arbitrary::{Arbitrary, Unstructured};
use mm_wire::hob::{COMM_BUFFER_HOB_GUID, COMM_REGION_HOB_GUID};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::Config;
use patina_mm::component::hob_configuration::MmHobConfiguration;
use patina_mm::config::MmCommunicationConfiguration;
use patina_mm_test::Dispatcher;
use std::cell::RefCell;
use std::ops::Range;

pub(crate) const PAGE: usize = 4096;
pub(crate) const PAGES: usize = 12;
pub(crate) const FILL: u8 = 0xb7;

#[derive(Arbitrary, Debug)]
struct Case {
    hobs: Vec<Hob>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Hob {
    Buffer(Memory),
    Region3(u8, Memory),
    Region4(u8, Memory),
    /// Data of any length. It does not describe memory: its fields are not those of a place.
    Short {
        region: bool,
        len: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Memory {
    page: u8,
    pages: u8,
    mailbox_page: u8,
    mailbox_word: u16,
    wrong: Wrong,
}

/// Memory that is wrong by its numbers. The platform must avoid other wrong memory. Most memory is
/// right: one wrong place is enough for all to be refused.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    No,
    AlsoNo,
    StillNo,
    NoAsWell,
    NotAtAll,
    Null,
    Misaligned(u8),
    NoPages,
    Wraps,
    MailboxNull,
    MailboxMisaligned,
    MailboxWraps,
}

impl Memory {
    /// Whether all numbers are right.
    const fn is_right(self) -> bool {
        matches!(
            self.wrong,
            Wrong::No | Wrong::AlsoNo | Wrong::StillNo | Wrong::NoAsWell | Wrong::NotAtAll
        )
    }

    /// Whether all is right but the mailbox, which a HOB of revision 3 does not have.
    fn is_region(self) -> bool {
        !matches!(
            self.wrong,
            Wrong::Null | Wrong::Misaligned(_) | Wrong::NoPages | Wrong::Wraps
        )
    }

    /// Address, pages, mailbox.
    pub(crate) fn fields(self, base: u64) -> [u64; 3] {
        let first = usize::from(self.page) % PAGES;
        let pages = usize::from(self.pages) % 3 + 1;
        let pages = pages.min(PAGES - first);
        let mailbox_page = usize::from(self.mailbox_page) % PAGES;
        let mailbox = mailbox_page * PAGE + usize::from(self.mailbox_word) * 8 % (PAGE - 24);
        let mut fields = [base + (first * PAGE) as u64, pages as u64, base + mailbox as u64];
        match self.wrong {
            Wrong::No | Wrong::AlsoNo | Wrong::StillNo | Wrong::NoAsWell | Wrong::NotAtAll => {}
            Wrong::Null => fields[0] = 0,
            Wrong::Misaligned(more) => fields[0] += u64::from(more % 255) + 1,
            Wrong::NoPages => fields[1] = 0,
            Wrong::Wraps => fields[1] = u64::MAX / 4096,
            Wrong::MailboxNull => fields[2] = 0,
            Wrong::MailboxMisaligned => fields[2] += 4,
            Wrong::MailboxWraps => fields[2] = u64::MAX - 15,
        }
        fields
    }
}

thread_local! {
    static FOUND: RefCell<Option<Vec<Found>>> = const { RefCell::new(None) };
}

/// A comm buffer of the configuration.
#[derive(Debug)]
struct Found {
    id: u8,
    region: Range<u64>,
    has_mailbox: bool,
}

struct Keep;

#[component]
impl Keep {
    #[expect(clippy::unnecessary_wraps, reason = "what a component's entry point returns")]
    fn entry_point(self, config: Config<MmCommunicationConfiguration>) -> patina::error::Result<()> {
        let found = config.comm_buffers.iter().map(|buffer| {
            let start = buffer.as_ptr().addr() as u64;
            Found {
                id: buffer.id(),
                region: start..start + buffer.len() as u64,
                has_mailbox: buffer.has_status_mailbox(),
            }
        });
        FOUND.set(Some(found.collect()));
        Ok(())
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let hobs = &case.hobs[..case.hobs.len().min(5)];
    let ram = Block::of(Purpose::Other, PAGES * PAGE, FILL);
    let base = ram.address();
    let mut dispatcher = Dispatcher::new();
    dispatcher.add(MmHobConfiguration::new());
    dispatcher.add(Keep);
    let words = |fields: &[u64]| {
        fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    for hob in hobs {
        let (guid, data) = match hob {
            Hob::Buffer(memory) => (COMM_BUFFER_HOB_GUID, words(&memory.fields(base))),
            Hob::Region3(owner, memory) => {
                let [address, pages, _] = memory.fields(base);
                (
                    COMM_REGION_HOB_GUID,
                    words(&[u64::from(owner % 3), address, pages]),
                )
            }
            Hob::Region4(owner, memory) => {
                let [address, pages, mailbox] = memory.fields(base);
                (
                    COMM_REGION_HOB_GUID,
                    words(&[u64::from(owner % 3), address, pages, mailbox]),
                )
            }
            Hob::Short { region, len } => {
                let guid = if *region {
                    COMM_REGION_HOB_GUID
                } else {
                    COMM_BUFFER_HOB_GUID
                };
                (guid, vec![0; usize::from(*len) % 48])
            }
        };
        let guid = BinaryGuid::from_bytes(&guid.to_bytes());
        for parse in dispatcher.storage().get_hob_parsers(&guid) {
            parse(&data, dispatcher.storage());
        }
    }
    FOUND.set(None);
    let _outcome = dispatcher.run();
    let found = FOUND.take();
    let after = ram.bytes();
    ram.check_guards();
    let is_untouched = after == [FILL; PAGES * PAGE];
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        assert!(is_untouched, "memory was touched without a configuration");
        return assert!(!must_work(hobs, base), "{hobs:?} were refused");
    };
    assert!(may_work(hobs), "{hobs:?} made {found:?}");
    let announced: Vec<[u64; 3]> = hobs
        .iter()
        .filter_map(|hob| match hob {
            Hob::Buffer(memory) | Hob::Region3(_, memory) | Hob::Region4(_, memory) => {
                Some(memory.fields(base))
            }
            Hob::Short { .. } => None,
        })
        .collect();
    let overlap = |one: &Range<u64>, other: &Range<u64>| one.start < other.end && other.start < one.end;
    for (index, buffer) in found.iter().enumerate() {
        let start = buffer.region.start;
        let pages = (buffer.region.end - start) / PAGE as u64;
        assert!(
            announced
                .iter()
                .any(|[address, count, _]| (*address, *count) == (start, pages)),
            "{buffer:?}"
        );
        for other in &found[..index] {
            assert_ne!(other.id, buffer.id);
            assert!(!overlap(&other.region, &buffer.region), "{found:?}");
        }
    }
    let mailboxes: Vec<Range<u64>> = match found.iter().any(|buffer| buffer.has_mailbox) {
        true => announced
            .iter()
            .map(|[.., mailbox]| *mailbox..mailbox.saturating_add(24))
            .collect(),
        false => Vec::new(),
    };
    // Each comm buffer is wiped, a mailbox may be, and all other memory is as it was.
    let mut expected = vec![FILL; PAGES * PAGE];
    let inside = |range: &Range<u64>| {
        let offset = |address: u64| (address.saturating_sub(base) as usize).min(PAGES * PAGE);
        offset(range.start)..offset(range.end)
    };
    for mailbox in mailboxes.iter().map(inside) {
        expected[mailbox.clone()].copy_from_slice(&after[mailbox]);
    }
    for buffer in &found {
        expected[inside(&buffer.region)].fill(0);
    }
    let differs = after
        .chunks(PAGE)
        .zip(expected.chunks(PAGE))
        .position(|(now, expected)| now != expected);
    assert_eq!(differs, None, "page with a wrong byte: {found:?}");
}

/// Whether the HOBs must give a configuration: all numbers are right, nothing shares memory, and
/// one HOB at most is for the supervisor and one for its users, whose buffer is also edk2's.
fn must_work(hobs: &[Hob], base: u64) -> bool {
    const PAGE_BYTES: u64 = PAGE as u64;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut owners = Vec::new();
    for hob in hobs {
        let (owner, memory, has_mailbox) = match hob {
            Hob::Buffer(memory) => (1, memory, true),
            Hob::Region3(owner, memory) => (owner % 3, memory, false),
            Hob::Region4(owner, memory) => (owner % 3, memory, true),
            Hob::Short { .. } => return false,
        };
        let is_right = if has_mailbox {
            memory.is_right()
        } else {
            memory.is_region()
        };
        if !is_right || owner == 2 || owners.contains(&owner) {
            return false;
        }
        owners.push(owner);
        let [address, pages, mailbox] = memory.fields(base);
        ranges.push(address..address + pages * PAGE_BYTES);
        if has_mailbox {
            ranges.push(mailbox..mailbox + 24);
        }
    }
    let is_apart = |(index, one): (usize, &Range<u64>)| {
        let mut others = ranges[..index].iter();
        others.all(|other| one.end <= other.start || other.end <= one.start)
    };
    !hobs.is_empty() && ranges.iter().enumerate().all(is_apart)
}

/// Whether the HOBs may give a configuration: one HOB whose numbers are wrong forbids it.
fn may_work(hobs: &[Hob]) -> bool {
    hobs.iter().all(|hob| match hob {
        Hob::Buffer(memory) => memory.is_right(),
        Hob::Region3(owner, memory) => owner % 3 < 2 && memory.is_region(),
        Hob::Region4(owner, memory) => owner % 3 < 2 && memory.is_right(),
        Hob::Short { .. } => false,
    })
}
