//! Compares what `mm_wire` reads with readers that share no code with it.

use crate::header::{Fields, MARKER, number};
use arbitrary::{Arbitrary, Unstructured};
use mm_wire::hob::{CommBufferPlace, CommRegion, Owner, ffa_rx_buffer};
use mm_wire::message::{supervisor, variable};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes that begin like a header, or any.
#[derive(Arbitrary, Debug)]
struct Case<'a> {
    sent: Sent,
    /// Whether the bytes start with the GUID of v3 headers.
    marked: bool,
    /// The fields of a place.
    place: [Number; 4],
    bytes: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Sent {
    v3: bool,
    guid: [u8; 16],
    len: u64,
    message_size: u64,
}

/// A number as HOBs have it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Pages(u16),
    PagesFromEnd(u8),
    Aligned(u16),
    Any(u64),
}

impl Number {
    const fn value(self) -> u64 {
        match self {
            Self::Small(value) => value as u64,
            Self::Pages(pages) => (pages as u64) << 12,
            Self::PagesFromEnd(pages) => u64::MAX - 0xfff - ((pages as u64) << 12),
            Self::Aligned(words) => (words as u64) << 3,
            Self::Any(value) => value,
        }
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut bytes = case.bytes.to_vec();
    if case.marked && bytes.len() >= 16 {
        bytes[..16].copy_from_slice(&MARKER);
    }
    headers(case.sent, &bytes);
    mailbox(&bytes);
    payloads(&bytes);
    let fields = case.place.map(Number::value);
    places(&fields.map(u64::to_le_bytes).concat());
    places(&bytes);
}

fn headers(sent: Sent, bytes: &[u8]) {
    let expected = Fields::read(bytes);
    let found = Header::parse(bytes);
    match (expected, found) {
        (None, Err(_)) => {}
        (Some(fields), Ok(header)) => {
            assert_eq!(header.format(), fields.format());
            assert_eq!(header.recipient().to_bytes(), fields.guid);
            assert_eq!(header.message_len(), fields.counted);
            assert_eq!(header.message_size(), fields.message_size);
            assert_eq!(u128::from(header.total_len()), fields.total());
            assert_eq!(header.encode().as_ref(), fields.write());
            // A v3 header has a reserved field, which is written as zero.
            assert_eq!(Header::parse(header.encode().as_ref()), Ok(header));
        }
        (expected, found) => panic!("{found:?}, expected {expected:?}"),
    }
    if let Some(words) = bytes.first_chunk::<24>() {
        let words = zerocopy::transmute!(*words);
        let as_words = Header::parse_v1_words(words);
        assert_eq!(as_words.is_none(), bytes.starts_with(&MARKER));
        if let Some(read) = as_words {
            assert_eq!(read, Header::parse(&bytes[..24]));
            if let Ok(header) = read {
                assert_eq!(header.v1_words(), Some(words));
            }
        }
    }

    let format = if sent.v3 {
        HeaderFormat::V3
    } else {
        HeaderFormat::V1
    };
    let guid = Guid::from_bytes(sent.guid);
    let request = Header::new(format, guid, sent.len);
    let fits = u128::from(sent.len) + format.header_len() as u128 <= u128::from(u64::MAX);
    assert_eq!(request.is_some(), fits);
    let Some(request) = request.map(|header| header.with_message_size(sent.message_size)) else {
        return;
    };
    let read_back = Header::parse(request.encode().as_ref());
    assert_eq!(read_back == Ok(request), Header::can_name(format, guid));
    // The response to it: MM may have left any header of the same format.
    let Ok(left) = found else { return };
    if left.format() != format {
        return;
    }
    let told = request.response_length(&left);
    let (counted, size) = (left.message_len(), left.message_size());
    let expected = if !sent.v3 || counted != sent.len {
        Some(counted)
    } else {
        (size <= counted).then_some(size)
    };
    assert_eq!(told.ok().map(|told| told.len), expected);
    if let Some((offset, value)) = told.ok().and_then(|told| told.changed) {
        // The field that is reported as changed has the reported value, which is not the one that
        // was sent.
        assert_eq!(number(left.encode().as_ref(), offset), value);
        assert_ne!(number(request.encode().as_ref(), offset), value);
    }
}

fn mailbox(bytes: &[u8]) {
    let Ok((image, _)) = MailboxImage::read_from_prefix(bytes) else {
        assert!(bytes.len() < 24);
        return;
    };
    assert_eq!(image.as_bytes(), &bytes[..24]);
    assert_eq!(image.is_pending(), bytes[0] != 0);
    let status = image.return_status();
    assert_eq!(status.0, number(bytes, 8));
    assert_eq!(image.return_buffer_size(), number(bytes, 16));
    // Only zero is success, and every error has the error bit.
    match status.as_error() {
        None => assert_eq!(status.0, 0),
        Some(error) => assert!(status.0 != 0 && error.0 >> 63 == 1, "{status:?} is {error:?}"),
    }
    if status.0 >> 63 == 1 {
        assert_eq!(status.as_error(), Some(status));
    }
    assert!(!status.to_string().is_empty());
    let answered = MailboxImage::answered(EfiStatus(number(bytes, 8)), number(bytes, 16));
    assert_eq!(answered.as_bytes()[8..], bytes[8..24]);
    assert_eq!(answered.as_bytes()[..8], [0; 8]);
}

fn payloads(bytes: &[u8]) {
    fn round_trip<T: FromBytes + IntoBytes + zerocopy::Immutable>(bytes: &[u8]) {
        match T::read_from_prefix(bytes) {
            Ok((value, _)) => assert_eq!(value.as_bytes(), &bytes[..size_of::<T>()]),
            Err(_) => assert!(bytes.len() < size_of::<T>()),
        }
    }
    round_trip::<variable::FunctionHeader>(bytes);
    round_trip::<variable::AccessVariable>(bytes);
    round_trip::<variable::NextName>(bytes);
    round_trip::<variable::QueryInfo>(bytes);
    round_trip::<variable::PayloadSize>(bytes);
    round_trip::<supervisor::RequestHeader>(bytes);
    round_trip::<supervisor::VersionInfo>(bytes);
    round_trip::<supervisor::UnblockMemory>(bytes);
    round_trip::<supervisor::CommUpdate>(bytes);
    round_trip::<supervisor::SharedCommUpdate>(bytes);
    round_trip::<supervisor::PolicyHeader>(bytes);
}

/// Whether a HOB or an update may name this memory: whole pages that do not wrap, and a mailbox
/// outside them.
pub(crate) fn is_place(address: u64, pages: u64, mailbox: Option<u64>) -> bool {
    let (start, end) = (
        u128::from(address),
        u128::from(address) + u128::from(pages) * 4096,
    );
    let region = address != 0 && address.is_multiple_of(4096) && pages != 0 && end <= u128::from(u64::MAX);
    region
        && mailbox.is_none_or(|mailbox| {
            let (first, behind) = (u128::from(mailbox), u128::from(mailbox) + 24);
            let apart = behind <= start || end <= first;
            mailbox != 0 && mailbox.is_multiple_of(8) && behind <= u128::from(u64::MAX) && apart
        })
}

fn places(data: &[u8]) {
    let field = |index: usize| number(data, index * 8);
    let check = |found: Option<CommBufferPlace>, expected: bool, first: usize, mailbox: Option<u64>| {
        assert_eq!(found.is_some(), expected, "{data:02x?}");
        if let Some(place) = found {
            assert_eq!(place.region().start(), field(first));
            assert_eq!(place.region().len(), field(first + 1) * 4096);
            assert_eq!(place.mailbox(), mailbox);
        }
    };
    let hob = CommBufferPlace::of_buffer_hob(data).ok();
    let update = CommBufferPlace::of_update(data).ok();
    let region = CommRegion::of_hob(data).ok();
    match data.len() {
        24 => {
            check(
                hob,
                is_place(field(0), field(1), Some(field(2))),
                0,
                Some(field(2)),
            );
            let expected = field(0) < 2 && is_place(field(1), field(2), None);
            check(region.map(|region| region.place), expected, 1, None);
        }
        32 => {
            let place = is_place(field(1), field(2), Some(field(3)));
            check(update, field(0) == 1 && place, 1, Some(field(3)));
            check(
                region.map(|region| region.place),
                field(0) < 2 && place,
                1,
                Some(field(3)),
            );
        }
        _ => assert!(hob.is_none() && update.is_none() && region.is_none()),
    }
    if let Some(region) = region {
        let owner = if field(0) == 0 {
            Owner::Supervisor
        } else {
            Owner::User
        };
        assert_eq!(region.owner, owner);
        let guid = supervisor::GUID;
        let move_to_it = supervisor::CommUpdate::to(region.place, region.place, guid);
        let on_page = region
            .place
            .mailbox()
            .is_some_and(|mailbox| mailbox.is_multiple_of(4096));
        assert_eq!(move_to_it.is_some(), on_page);
        if let Some(update) = move_to_it {
            assert_eq!(
                update.buffers[0].physical_start.get(),
                region.place.region().start()
            );
            assert_eq!(update.buffers[0].pages.get() * 4096, region.place.region().len());
        }
    }

    let found = ffa_rx_buffer(data);
    let expected = data.len() > 32 && data[32] == 0 && {
        let (address, len) = (field(2), field(3));
        let end = u128::from(address) + u128::from(len);
        address != 0 && address.is_multiple_of(4096) && len >= 4096 && end <= u128::from(u64::MAX)
    };
    assert_eq!(found.is_some(), expected, "{data:02x?}");
    if let Some(buffer) = found {
        assert_eq!((buffer.start(), buffer.len()), (field(2), field(3)));
    }
}
