//! The header of a request and of its response in shared memory: which changes of it a channel notices, in aligned
//! memory, which it accesses by words, and in other memory, which it accesses by bytes.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may panic")]

use mm_comm::error::{BeginError, ResponseError};
use mm_comm::{Channel, SharedRegion};
use mm_wire::{Guid, Header, HeaderFormat};

const RECIPIENT: [u8; 16] = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\xf0\xe1\xd2\xc3\xb4\xa5\x96\x87";
const FORMATS: [HeaderFormat; 2] = [HeaderFormat::V1, HeaderFormat::V3];
const LEN: usize = 256;

/// A region of `len` bytes that starts `shift` bytes behind a multiple of 8.
fn region(len: usize, shift: usize) -> SharedRegion {
    let words: &'static mut [u64] = Box::leak(vec![0; (len + shift).div_ceil(8)].into_boxed_slice());
    let bytes = zerocopy::IntoBytes::as_mut_bytes(words);
    SharedRegion::over_static(bytes.get_mut(shift..shift + len).unwrap())
}

fn channel(shift: usize) -> Channel {
    Channel::over(region(LEN, shift))
}

fn header(format: HeaderFormat, len: u64) -> Header {
    Header::new(format, Guid::from_bytes(RECIPIENT), len).unwrap()
}

/// Where a header has its recipient.
fn recipient_offset(format: HeaderFormat) -> usize {
    match format {
        HeaderFormat::V1 => 0,
        HeaderFormat::V3 => 32,
    }
}

/// Other recipients: only one half differs, by one bit or in all bits, or both in the same bits.
fn other_recipients() -> Vec<[u8; 16]> {
    let changed = |by: u8, bytes: &[usize]| {
        let mut other = RECIPIENT;
        bytes.iter().for_each(|byte| other[*byte] ^= by);
        other
    };
    let (first, second): (Vec<_>, Vec<_>) = ((0..8).collect(), (8..16).collect());
    let all: Vec<_> = (0..16).collect();
    vec![
        changed(0x40, &[3]),
        changed(0x40, &[11]),
        changed(0x40, &[3, 11]),
        changed(0xff, &first),
        changed(0xff, &second),
        changed(0xff, &all),
    ]
}

#[test]
fn another_recipient_is_noticed_in_every_bit() {
    for format in FORMATS {
        for shift in [0, 1] {
            let channel = channel(shift);
            assert!(channel.write(header(format, 5), Some(b"12345")));
            assert!(channel.holds_tracked_kind());
            let is_usual = format == HeaderFormat::V1 && shift == 0;
            assert_eq!(channel.holds_tracked(), is_usual);
            let at = recipient_offset(format);
            for other in other_recipients() {
                assert!(channel.region().write(at, &other));
                assert!(!channel.holds_tracked(), "{format:?} {shift} {other:02x?}");
                assert!(!channel.holds_tracked_kind(), "{format:?} {shift} {other:02x?}");
            }
            assert!(channel.region().write(at, &RECIPIENT));
            assert!(channel.holds_tracked_kind());
            assert_eq!(channel.holds_tracked(), is_usual);
        }
    }
}

#[test]
fn header_of_the_other_format_is_of_another_kind() {
    for shift in [0, 1] {
        let channel = channel(shift);
        assert!(channel.write(header(HeaderFormat::V1, 5), Some(b"12345")));
        let v3 = header(HeaderFormat::V3, 5).encode();
        assert!(channel.region().write(0, v3.as_ref()));
        assert!(!channel.holds_tracked() && !channel.holds_tracked_kind());
        assert!(channel.write(header(HeaderFormat::V3, 5), Some(b"12345")));
        let v1 = header(HeaderFormat::V1, 5).encode();
        assert!(channel.region().write(0, v1.as_ref()));
        assert!(!channel.holds_tracked() && !channel.holds_tracked_kind());
    }
    let channel = channel(0);
    assert!(!channel.holds_tracked() && !channel.holds_tracked_kind());
}

#[test]
fn another_length_is_noticed_and_is_of_the_same_kind() {
    let channel = channel(0);
    let sent = header(HeaderFormat::V1, 5);
    assert!(channel.write(sent, Some(b"12345")));
    for length in [4_u64, 6, 5 ^ 1 << 40, !5] {
        assert!(channel.region().write(16, &length.to_le_bytes()));
        assert!(!channel.holds_tracked(), "{length:#x}");
    }
    assert!(channel.region().write(16, &6_u64.to_le_bytes()));
    assert!(channel.holds_tracked_kind());
    // The same bits differ in recipient and length.
    let mut other = RECIPIENT;
    for byte in [0, 8] {
        other[byte] ^= 3;
        assert!(channel.region().write(0, &other));
        assert!(!channel.holds_tracked());
        other[byte] ^= 3;
    }
}

#[test]
fn lengths_are_written_alone_wherever_the_region_starts() {
    for format in FORMATS {
        for shift in [0, 1] {
            let channel = channel(shift);
            assert!(channel.write(header(format, 5), Some(b"12345")));
            let longer = header(format, 40);
            assert!(channel.write_lengths(longer), "{format:?} {shift}");
            assert_eq!(channel.tracked(), Some(longer));
            assert_eq!(channel.read_header(), Ok(longer));
            let mut message = [0; 5];
            assert!(channel.region().read(format.header_len(), &mut message));
            assert_eq!(&message, b"12345");
        }
    }
    for (len, fits) in [(23, false), (24, true)] {
        let channel = Channel::over(region(len, 0));
        assert_eq!(channel.write_lengths(header(HeaderFormat::V1, 0)), fits);
    }
}

#[test]
fn header_is_read_from_a_region_that_ends_with_it() {
    for format in FORMATS {
        for shift in [0, 1] {
            let len = format.header_len();
            let channel = Channel::over(region(len, shift));
            let sent = header(format, 0);
            assert!(channel.write(sent, None));
            assert_eq!(channel.read_header(), Ok(sent), "{format:?} {shift}");
        }
    }
}

#[test]
fn message_may_fill_the_region() {
    for format in FORMATS {
        let header_len = format.header_len();
        for len in [0, 8] {
            let channel = Channel::over(region(header_len + len, 0));
            let message = vec![7; len];
            let begin = |message: &[u8]| channel.begin_to(format, RECIPIENT, message, None).map(drop);
            assert_eq!(begin(&message), Ok(()));
            let refused = BeginError::MessageTooLarge {
                len: len + 1,
                capacity: len,
            };
            assert_eq!(begin(&vec![7; len + 1]), Err(refused));
        }
    }
}

#[test]
fn response_to_another_recipient_is_refused() {
    for format in FORMATS {
        for shift in [0, 1] {
            for other in other_recipients() {
                let channel = channel(shift);
                let staged = channel.begin_to(format, RECIPIENT, b"12345", None).unwrap();
                assert!(channel.region().write(recipient_offset(format), &other));
                let sent = Guid::from_bytes(RECIPIENT);
                assert_eq!(
                    staged.finish().unwrap_err(),
                    ResponseError::RecipientChanged { sent },
                    "{format:?} {shift} {other:02x?}"
                );
            }
        }
    }
}

#[test]
fn response_says_what_its_header_told() {
    for shift in [0, 1] {
        let channel = channel(shift);
        for (told, len) in [(None, 5), (Some(2_u64), 2), (Some(0), 0), (Some(232), 232)] {
            let staged = channel
                .begin_to(HeaderFormat::V1, RECIPIENT, b"12345", None)
                .unwrap();
            assert!(told.is_none_or(|told| channel.region().write(16, &told.to_le_bytes())));
            let response = staged.finish().unwrap();
            assert_eq!((response.len(), response.is_empty()), (len, len == 0));
            let in_header = response.in_header().unwrap();
            assert_eq!(in_header.len, len as u64);
            assert_eq!(in_header.changed, told.map(|told| (16, told)));
        }
        let staged = channel
            .begin_to(HeaderFormat::V1, RECIPIENT, b"12345", None)
            .unwrap();
        assert!(channel.write(header(HeaderFormat::V1, 3), Some(b"by hand")));
        let response = staged.finish_by_hand();
        assert_eq!((response.len(), response.in_header()), (3, None));
    }
}

#[test]
fn late_bytes_in_what_the_request_took_are_wiped_after_a_clear() {
    let channel = channel(0);
    let staged = channel
        .begin_to(HeaderFormat::V1, RECIPIENT, &[1; 40], None)
        .unwrap();
    channel.clear();
    assert!(channel.write(header(HeaderFormat::V1, 4), Some(b"four")));
    assert!(channel.region().write(56, &[9; 8]));
    drop(staged.finish().unwrap());
    let mut all = [0; LEN];
    assert!(channel.region().read(0, &mut all));
    assert_eq!(all, [0; LEN]);
}

#[test]
fn each_transaction_has_the_next_number() {
    let channel = channel(0);
    let first = channel.transaction();
    for number in 1..=3 {
        let staged = channel
            .begin_to(HeaderFormat::V1, RECIPIENT, b"12345", None)
            .unwrap();
        assert_eq!(staged.number(), first + number);
        drop(staged);
        assert_eq!(channel.transaction(), first + number);
    }
}
