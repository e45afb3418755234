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
    wrong: Option<Wrong>,
}

/// Memory that is wrong by its numbers. The platform must avoid other wrong memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Wrong {
    Null,
    Misaligned(u8),
    NoPages,
    Wraps,
    MailboxNull,
    MailboxMisaligned,
    MailboxWraps,
}

impl Memory {
    /// Whether all is right but the mailbox, which a HOB of revision 3 does not have.
    fn is_region(self) -> bool {
        !matches!(
            self.wrong,
            Some(Wrong::Null | Wrong::Misaligned(_) | Wrong::NoPages | Wrong::Wraps)
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
            None => {}
            Some(Wrong::Null) => fields[0] = 0,
            Some(Wrong::Misaligned(more)) => fields[0] += u64::from(more % 255) + 1,
            Some(Wrong::NoPages) => fields[1] = 0,
            Some(Wrong::Wraps) => fields[1] = u64::MAX / 4096,
            Some(Wrong::MailboxNull) => fields[2] = 0,
            Some(Wrong::MailboxMisaligned) => fields[2] += 4,
            Some(Wrong::MailboxWraps) => fields[2] = u64::MAX - 15,
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
    let is_untouched = after.iter().all(|byte| *byte == FILL);
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
    for (at, byte) in after.iter().enumerate() {
        let address = base + at as u64;
        if found.iter().any(|buffer| buffer.region.contains(&address)) {
            assert_eq!(*byte, 0, "at {at:#x}: {found:?}");
        } else if !mailboxes.iter().any(|mailbox| mailbox.contains(&address)) {
            assert_eq!(*byte, FILL, "at {at:#x}: {found:?}");
        }
    }
}

/// Whether the HOBs must give a configuration: one HOB whose numbers are all right is enough.
fn must_work(hobs: &[Hob], base: u64) -> bool {
    let [hob] = hobs else { return false };
    let inside = |memory: &Memory| {
        let [address, pages, mailbox] = memory.fields(base);
        let region = address..address + pages * PAGE as u64;
        region.contains(&mailbox) || region.contains(&(mailbox + 23))
    };
    match hob {
        Hob::Buffer(memory) => memory.wrong.is_none() && !inside(memory),
        Hob::Region3(owner, memory) => owner % 3 < 2 && memory.is_region(),
        Hob::Region4(owner, memory) => owner % 3 < 2 && memory.wrong.is_none() && !inside(memory),
        Hob::Short { .. } => false,
    }
}

/// Whether the HOBs may give a configuration: one HOB whose numbers are wrong forbids it.
fn may_work(hobs: &[Hob]) -> bool {
    hobs.iter().all(|hob| match hob {
        Hob::Buffer(memory) => memory.wrong.is_none(),
        Hob::Region3(owner, memory) => owner % 3 < 2 && memory.is_region(),
        Hob::Region4(owner, memory) => owner % 3 < 2 && memory.wrong.is_none(),
        Hob::Short { .. } => false,
    })
}
