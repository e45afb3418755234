//! The communicate header at the start of a comm buffer.
//!
//! Two formats exist. An MM core tells them apart by the first GUID alone: [`V3_MARKER`] means v3,
//! anything else is the message's own GUID in a v1 header.
//!
//! | format | fields (offset) | size |
//! |---|---|---|
//! | v1, `EFI_MM_COMMUNICATE_HEADER` | HeaderGuid @0, MessageLength u64 @16 | 24 |
//! | v3, `EFI_MM_COMMUNICATE_HEADER_V3` | marker GUID @0, BufferSize u64 @16, Reserved u64 @24, MessageGuid @32, MessageSize u64 @48 | 56 |
//!
//! `MessageLength` and `MessageSize` count the message alone, `BufferSize` the whole transaction
//! with its header. The v1 length is a `UINTN`; only its 64-bit form is supported, which is also
//! what the Mu MM supervisor reads on IA32.

use core::fmt;
use core::mem::offset_of;
use thiserror::Error;
use uguid::{Guid, guid};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first GUID of every v3 header, `gEfiMmCommunicateHeaderV3Guid` (PI 1.9, volume 4, 5.7.5).
pub const V3_MARKER: Guid = guid!("68e8c853-2ba9-4dd7-9ac0-91e16155c935");

/// The size of the longest header, in bytes.
pub const MAX_HEADER_LEN: usize = size_of::<RawV3>();

/// 64-bit words of a v3 header.
pub const V3_WORDS: usize = size_of::<RawV3>() / size_of::<u64>();

/// Offset of the field that counts the message in a v1 header (MessageLength), and header and
/// message in a v3 header (BufferSize).
pub const LENGTH_OFFSET: usize = offset_of!(RawV1, message_length);

/// Offset of MessageSize in a v3 header.
pub const MESSAGE_SIZE_OFFSET: usize = offset_of!(RawV3, message_size);

const _: () = assert!(
    LENGTH_OFFSET == offset_of!(RawV3, buffer_size),
    "the fields have different offsets"
);

/// `EFI_MM_COMMUNICATE_HEADER` on a 64-bit machine.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawV1 {
    header_guid: [u8; 16],
    message_length: U64,
}

/// `EFI_MM_COMMUNICATE_HEADER_V3`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawV3 {
    marker: [u8; 16],
    buffer_size: U64,
    reserved: U64,
    message_guid: [u8; 16],
    message_size: U64,
}

/// Which of the two header layouts a message uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeaderFormat {
    /// The 24-byte header of PI 1.0 to 1.8, still the common one.
    #[default]
    V1,
    /// The 56-byte header that PI 1.9 added.
    V3,
}

impl HeaderFormat {
    /// The size of this header in bytes, which is also where the message starts.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::V1 => size_of::<RawV1>(),
            Self::V3 => size_of::<RawV3>(),
        }
    }
}

/// A communicate header whose fields have been read.
///
/// `total_len` is a *claim* by the writer of the header: compare it with the memory at hand before
/// it is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    format: HeaderFormat,
    /// The recipient as it is in memory: two words are compared and copied faster than a GUID's
    /// fields.
    recipient: [u64; 2],
    message_len: u64,
    message_size: u64,
}

/// [`V3_MARKER`] in memory.
const MARKER: [u64; 2] = words(V3_MARKER.to_bytes());

/// A GUID as the words that it has in memory.
const fn words(guid: [u8; 16]) -> [u64; 2] {
    zerocopy::transmute!(guid)
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("format", &self.format)
            .field("recipient", &self.recipient())
            .field("message_len", &self.message_len)
            .field("message_size", &self.message_size)
            .finish()
    }
}

/// Why bytes are not a communicate header.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer bytes than the header has.
    #[error("a {needed}-byte communicate header does not fit into {available} bytes")]
    Truncated {
        /// Bytes that the header takes.
        needed: usize,
        /// Number of bytes available.
        available: usize,
    },
    /// A v3 header whose `BufferSize` is less than the header's own size.
    #[error("BufferSize is {claimed} bytes, less than the {minimum}-byte header that it includes")]
    BufferSizeBelowHeader {
        /// The value of `BufferSize`.
        claimed: u64,
        /// The size of the v3 header.
        minimum: usize,
    },
    /// A length that exceeds 64 bits when the header is added.
    #[error("MessageLength {claimed} does not leave room for the header in 64 bits")]
    LengthOverflows {
        /// The value of the length field.
        claimed: u64,
    },
    /// A response whose `MessageSize` is more than its `BufferSize` has room for.
    #[error("MessageSize is {claimed} bytes, BufferSize has room for {room}")]
    MessageBeyondBufferSize {
        /// The value of `MessageSize`.
        claimed: u64,
        /// What `BufferSize` counts behind the header.
        room: u64,
    },
}

/// What the header that MM left says about the response: see [`Header::response_length`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseLength {
    /// Bytes of the response, without the header. MM claims this number: compare it with the
    /// buffer's size.
    pub len: u64,
    /// The field of the header that MM changed to say so, if it changed one: offset and value.
    pub changed: Option<(usize, u64)>,
}

impl Header {
    /// Whether a header of this format can name this recipient: a v1 header for [`V3_MARKER`] would
    /// read back as v3.
    #[must_use]
    #[inline]
    pub fn can_name(format: HeaderFormat, recipient: Guid) -> bool {
        format != HeaderFormat::V1 || recipient.to_bytes() != V3_MARKER.to_bytes()
    }

    /// Describes a message of `message_len` bytes to `recipient`; `None` if header and message
    /// exceed 64 bits. If a caller chose the recipient, ask [`Self::can_name`] before.
    #[must_use]
    #[inline]
    pub const fn new(format: HeaderFormat, recipient: Guid, message_len: u64) -> Option<Self> {
        Self::for_guid_bytes(format, recipient.to_bytes(), message_len)
    }

    /// Like [`Self::new`], for a recipient as it is in memory.
    #[must_use]
    #[inline]
    pub const fn for_guid_bytes(format: HeaderFormat, recipient: [u8; 16], message_len: u64) -> Option<Self> {
        Self::of_words(format, words(recipient), message_len)
    }

    /// Whether this is a v1 header for [`V3_MARKER`], see [`Self::can_name`].
    #[must_use]
    #[inline]
    pub fn would_read_as_v3(&self) -> bool {
        let ([a, b], [c, d]) = (self.recipient, MARKER);
        matches!(self.format, HeaderFormat::V1) && (a ^ c) | (b ^ d) == 0
    }

    /// Like [`Self::new`], for a recipient as the words that it has in memory.
    #[must_use]
    #[inline]
    pub const fn of_words(format: HeaderFormat, recipient: [u64; 2], message_len: u64) -> Option<Self> {
        match message_len.checked_add(format.header_len() as u64) {
            Some(_) => Some(Self {
                format,
                recipient,
                message_len,
                message_size: message_len,
            }),
            None => None,
        }
    }

    /// Sets `MessageSize` of a v3 header, for a transaction that has more room than its message
    /// takes. A v1 header does not have the field.
    #[must_use]
    #[inline]
    pub const fn with_message_size(self, message_size: u64) -> Self {
        match self.format {
            HeaderFormat::V1 => self,
            HeaderFormat::V3 => Self { message_size, ..self },
        }
    }

    /// The length of the response if no mailbox tells it: `self` was sent, and `left` is the header
    /// that MM left instead.
    ///
    /// | header | length of the response |
    /// |---|---|
    /// | v1 | MessageLength |
    /// | v3 whose BufferSize has changed | what BufferSize counts behind the header |
    /// | v3 whose BufferSize is as it was sent | MessageSize, at most what BufferSize counts behind the header |
    ///
    /// BufferSize is the room that the caller gives, which MM may not change (PI 1.9, volume 4,
    /// 5.7.5). edk2's Standalone MM on Arm leaves it alone, passes its handlers the address of
    /// MessageSize as that of their buffer's size, and copies no more than BufferSize back
    /// (`PiMmCpuTpFwRootMmiHandler` and `PiMmStandaloneMmCpuDriverEntry` in EventHandle.c).
    /// `MmCommunicationMmCommunicate3` in PiSmmIpl.c writes the response's size to BufferSize if it
    /// needs no SMI.
    ///
    /// # Errors
    ///
    /// [`HeaderError::MessageBeyondBufferSize`] if MessageSize is more than BufferSize allows.
    pub const fn response_length(&self, left: &Self) -> Result<ResponseLength, HeaderError> {
        let resized = left.message_len != self.message_len;
        if resized || matches!(self.format, HeaderFormat::V1) {
            let field = match left.format {
                HeaderFormat::V1 => left.message_len,
                HeaderFormat::V3 => left.total_len(),
            };
            return Ok(ResponseLength {
                len: left.message_len,
                changed: if resized {
                    Some((LENGTH_OFFSET, field))
                } else {
                    None
                },
            });
        }
        let len = left.message_size;
        if len > left.message_len {
            return Err(HeaderError::MessageBeyondBufferSize {
                claimed: len,
                room: left.message_len,
            });
        }
        Ok(ResponseLength {
            len,
            changed: if len == self.message_size {
                None
            } else {
                Some((MESSAGE_SIZE_OFFSET, len))
            },
        })
    }

    /// Reads the header at the start of `bytes` and decides its format by the first GUID.
    ///
    /// For v3 the transaction's size is `BufferSize`, as in edk2's MM core; `MessageSize` is not
    /// checked.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Truncated`] if `bytes` ends inside the header,
    /// [`HeaderError::BufferSizeBelowHeader`] and [`HeaderError::LengthOverflows`] if the length
    /// field cannot be true for any buffer.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (v1, _) = RawV1::read_from_prefix(bytes).map_err(|rest| HeaderError::Truncated {
            needed: size_of::<RawV1>(),
            available: rest.into_src().len(),
        })?;
        if v1.header_guid != V3_MARKER.to_bytes() {
            let message_len = v1.message_length.get();
            return Self::new(HeaderFormat::V1, Guid::from_bytes(v1.header_guid), message_len)
                .ok_or(HeaderError::LengthOverflows { claimed: message_len });
        }
        let (v3, _) = RawV3::read_from_prefix(bytes).map_err(|rest| HeaderError::Truncated {
            needed: size_of::<RawV3>(),
            available: rest.into_src().len(),
        })?;
        Self::parse_v3_words(zerocopy::transmute!(v3))
    }

    /// Reads a v3 header from the words that it has in memory, without a look at its marker.
    ///
    /// # Errors
    ///
    /// [`HeaderError::BufferSizeBelowHeader`], like [`Self::parse`].
    pub fn parse_v3_words(words: [u64; V3_WORDS]) -> Result<Self, HeaderError> {
        let [_, _, buffer_size, _, first, second, message_size] = words;
        let claimed = u64::from_le(buffer_size);
        let message_len = claimed.checked_sub(size_of::<RawV3>() as u64);
        Ok(Self {
            format: HeaderFormat::V3,
            recipient: [first, second],
            message_len: message_len.ok_or(HeaderError::BufferSizeBelowHeader {
                claimed,
                minimum: size_of::<RawV3>(),
            })?,
            message_size: u64::from_le(message_size),
        })
    }

    /// A header as a v3 one has its words in memory.
    #[must_use]
    pub const fn v3_words(&self) -> [u64; V3_WORDS] {
        let ([marker, rest], [first, second]) = (MARKER, self.recipient);
        let (total, message_size) = (self.total_len().to_le(), self.message_size.to_le());
        [marker, rest, total, 0, first, second, message_size]
    }

    /// A v1 header as the words that it has in memory: GUID, GUID, length. `None` for another
    /// format.
    #[must_use]
    #[inline]
    pub const fn v1_words(&self) -> Option<[u64; 3]> {
        match (self.format, self.recipient) {
            (HeaderFormat::V1, [first, second]) => Some([first, second, self.message_len.to_le()]),
            (HeaderFormat::V3, _) => None,
        }
    }

    /// Reads a v1 header from the words that it has in memory; `None` if they start a v3 header.
    ///
    /// # Errors
    ///
    /// [`HeaderError::LengthOverflows`], like [`Self::parse`].
    #[must_use]
    #[inline]
    pub fn parse_v1_words([first, second, length]: [u64; 3]) -> Option<Result<Self, HeaderError>> {
        let [marker, rest] = MARKER;
        if (first ^ marker) | (second ^ rest) == 0 {
            return None;
        }
        let claimed = u64::from_le(length);
        let header = Self::of_words(HeaderFormat::V1, [first, second], claimed);
        Some(header.ok_or(HeaderError::LengthOverflows { claimed }))
    }

    /// The header's bytes as they are in memory.
    #[must_use]
    pub fn encode(&self) -> EncodedHeader {
        match self.format {
            HeaderFormat::V1 => EncodedHeader::new(&RawV1 {
                header_guid: zerocopy::transmute!(self.recipient),
                message_length: self.message_len.into(),
            }),
            HeaderFormat::V3 => EncodedHeader::new(&self.v3_words()),
        }
    }

    /// Whether `other` has the same layout and recipient. Lengths may differ.
    #[must_use]
    #[inline]
    pub fn is_of_same_kind(&self, other: &Self) -> bool {
        let ([a, b], [c, d]) = (self.recipient, other.recipient);
        self.format == other.format && (a ^ c) | (b ^ d) == 0
    }

    /// The header's layout.
    #[must_use]
    #[inline]
    pub const fn format(&self) -> HeaderFormat {
        self.format
    }

    /// The GUID of the handler that the message is for.
    #[must_use]
    pub const fn recipient(&self) -> Guid {
        Guid::from_bytes(zerocopy::transmute!(self.recipient))
    }

    /// The same as the words that it has in memory.
    #[must_use]
    #[inline]
    pub const fn recipient_words(&self) -> [u64; 2] {
        self.recipient
    }

    /// The number of message bytes that the header claims, without the header.
    #[must_use]
    #[inline]
    pub const fn message_len(&self) -> u64 {
        self.message_len
    }

    /// `MessageSize` of a v3 header: how much of the transaction its message takes. In a v1 header
    /// it is the message's length.
    #[must_use]
    #[inline]
    pub const fn message_size(&self) -> u64 {
        self.message_size
    }

    /// The number of bytes that the header claims for itself and the message.
    #[must_use]
    #[inline]
    pub const fn total_len(&self) -> u64 {
        // Never saturates: `new` and `parse` proved that the sum is representable.
        self.message_len.saturating_add(self.format.header_len() as u64)
    }
}

/// A header in its memory layout.
#[derive(Clone, Copy, Debug)]
pub struct EncodedHeader {
    bytes: [u8; MAX_HEADER_LEN],
    len: usize,
}

impl EncodedHeader {
    fn new<T: IntoBytes + Immutable>(raw: &T) -> Self {
        let mut bytes = [0; MAX_HEADER_LEN];
        if let Some(start) = bytes.get_mut(..size_of::<T>()) {
            start.copy_from_slice(raw.as_bytes());
        }
        Self {
            bytes,
            len: size_of::<T>(),
        }
    }
}

impl AsRef<[u8]> for EncodedHeader {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECIPIENT: Guid = guid!("ed32d533-99e6-4209-9cc0-2d72cdd998a7");

    /// As Debian's OVMF received it in the variable service's buffer; the message is 24 bytes.
    const V1_ON_THE_WIRE: [u8; 24] = [
        0x33, 0xd5, 0x32, 0xed, 0xe6, 0x99, 0x09, 0x42, 0x9c, 0xc0, 0x2d, 0x72, 0xcd, 0xd9, 0x98,
        0xa7, //
        24, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn v1_has_the_layout_that_firmware_reads() {
        let header = Header::new(HeaderFormat::V1, RECIPIENT, 24).unwrap();
        assert_eq!(header.encode().as_ref(), V1_ON_THE_WIRE);
        assert_eq!(Header::parse(&V1_ON_THE_WIRE), Ok(header));
        assert_eq!(header.total_len(), 48);
        let words = header.v1_words().unwrap();
        assert_eq!(words.map(u64::to_ne_bytes).as_flattened(), V1_ON_THE_WIRE);
    }

    #[test]
    fn v3_has_the_layout_of_the_specification() {
        let header = Header::new(HeaderFormat::V3, RECIPIENT, 24).unwrap();
        let encoded = header.encode();
        let bytes = encoded.as_ref();
        assert_eq!(bytes.len(), 56);
        assert_eq!(bytes[..16], V3_MARKER.to_bytes());
        assert_eq!(bytes[16..24], 80u64.to_le_bytes());
        assert_eq!(bytes[24..32], [0; 8]);
        assert_eq!(bytes[32..48], RECIPIENT.to_bytes());
        assert_eq!(bytes[48..56], 24u64.to_le_bytes());
        assert_eq!(Header::parse(bytes), Ok(header));
        assert_eq!(header.v1_words(), None);
    }

    #[test]
    fn recipient_has_the_same_bytes_as_guid_and_as_words() {
        for format in [HeaderFormat::V1, HeaderFormat::V3] {
            let header = Header::new(format, RECIPIENT, 24).unwrap();
            assert_eq!(header.recipient(), RECIPIENT);
            let bytes = header.recipient_words().map(u64::to_ne_bytes);
            assert_eq!(bytes.as_flattened(), RECIPIENT.to_bytes());
            let again = Header::of_words(format, header.recipient_words(), 24);
            assert_eq!(again, Some(header));
        }
    }

    #[test]
    fn v3_message_may_be_smaller_than_its_transaction() {
        let header = Header::new(HeaderFormat::V3, RECIPIENT, 24).unwrap();
        assert_eq!(header.message_size(), 24);
        let header = header.with_message_size(4);
        assert_eq!((header.message_len(), header.message_size()), (24, 4));
        let encoded = header.encode();
        assert_eq!(encoded.as_ref()[16..24], 80u64.to_le_bytes());
        assert_eq!(encoded.as_ref()[48..], 4u64.to_le_bytes());
        assert_eq!(Header::parse(encoded.as_ref()), Ok(header));

        let v1 = Header::new(HeaderFormat::V1, RECIPIENT, 24).unwrap();
        assert_eq!(v1.with_message_size(4), v1);
    }

    /// GUIDs that differ from this one in one byte, and in the same way in both halves.
    fn near(guid: [u8; 16]) -> impl Iterator<Item = [u8; 16]> {
        (0..16).flat_map(move |byte| {
            let mut one = guid;
            one[byte] ^= 0x10;
            let mut both = one;
            both[(byte + 8) % 16] ^= 0x10;
            [one, both]
        })
    }

    #[test]
    fn only_a_v1_header_for_the_marker_itself_reads_as_v3() {
        let reads_as_v3 = |format, bytes| {
            let header = Header::for_guid_bytes(format, bytes, 24).unwrap();
            header.would_read_as_v3()
        };
        let marker = V3_MARKER.to_bytes();
        assert!(reads_as_v3(HeaderFormat::V1, marker));
        assert!(!reads_as_v3(HeaderFormat::V3, marker));
        assert!(!reads_as_v3(HeaderFormat::V1, RECIPIENT.to_bytes()));
        for guid in near(marker) {
            assert!(!reads_as_v3(HeaderFormat::V1, guid), "{guid:02x?}");
        }
    }

    #[test]
    fn v1_words_are_parsed_like_their_bytes() {
        let marker = V3_MARKER.to_bytes();
        let claims = [0, 1, 24, u64::MAX - 24, u64::MAX - 23, u64::MAX];
        for guid in near(marker).chain([RECIPIENT.to_bytes(), [0; 16]]) {
            for claimed in claims {
                let bytes = [guid.as_slice(), &claimed.to_le_bytes()].concat();
                let [first, second] = words(guid);
                let parsed = Header::parse_v1_words([first, second, claimed.to_le()]);
                assert_eq!(parsed, Some(Header::parse(&bytes)), "{bytes:02x?}");
            }
        }
        let [first, second] = words(marker);
        assert_eq!(Header::parse_v1_words([first, second, 24]), None);
    }

    #[test]
    fn headers_of_one_kind_have_the_same_layout_and_recipient() {
        let header = |format, guid, len| Header::for_guid_bytes(format, guid, len).unwrap();
        let guid = RECIPIENT.to_bytes();
        let sent = header(HeaderFormat::V1, guid, 24);
        assert!(sent.is_of_same_kind(&header(HeaderFormat::V1, guid, 4000)));
        assert!(!sent.is_of_same_kind(&header(HeaderFormat::V3, guid, 24)));
        for other in near(guid) {
            assert!(
                !sent.is_of_same_kind(&header(HeaderFormat::V1, other, 24)),
                "{other:02x?}"
            );
        }
    }

    #[test]
    fn response_length_is_in_the_field_that_mm_changed() {
        let v1 = |len| Header::new(HeaderFormat::V1, RECIPIENT, len).unwrap();
        let told = |sent: Header, left: Header| {
            let length = sent.response_length(&left).unwrap();
            (length.len, length.changed)
        };
        assert_eq!(told(v1(24), v1(24)), (24, None));
        assert_eq!(told(v1(24), v1(0)), (0, Some((16, 0))));
        assert_eq!(told(v1(24), v1(4000)), (4000, Some((16, 4000))));

        let v3 = |len, size| {
            Header::new(HeaderFormat::V3, RECIPIENT, len)
                .unwrap()
                .with_message_size(size)
        };
        // 100 bytes are sent, all of them or the first 20 as the message.
        for sent in [v3(100, 100), v3(100, 20)] {
            assert_eq!(told(sent, sent), (sent.message_size(), None));
            assert_eq!(told(sent, v3(100, 0)), (0, Some((48, 0))));
            assert_eq!(told(sent, v3(100, 4)), (4, Some((48, 4))));
            let whole = (sent.message_size() != 100).then_some((48, 100));
            assert_eq!(told(sent, v3(100, 100)), (100, whole));
            for claimed in [101, u64::MAX] {
                assert_eq!(
                    sent.response_length(&v3(100, claimed)),
                    Err(HeaderError::MessageBeyondBufferSize { claimed, room: 100 })
                );
            }
            // If MM changed BufferSize, MessageSize does not count.
            assert_eq!(told(sent, v3(40, 20)), (40, Some((16, 96))));
            assert_eq!(told(sent, v3(0, 4)), (0, Some((16, 56))));
            assert_eq!(told(sent, v3(300, u64::MAX)), (300, Some((16, 356))));
        }
    }

    #[test]
    fn truncated_header_is_refused_with_its_numbers() {
        assert_eq!(
            Header::parse(&V1_ON_THE_WIRE[..23]),
            Err(HeaderError::Truncated {
                needed: 24,
                available: 23
            })
        );
        let v3 = Header::new(HeaderFormat::V3, RECIPIENT, 0).unwrap().encode();
        assert_eq!(
            Header::parse(&v3.as_ref()[..55]),
            Err(HeaderError::Truncated {
                needed: 56,
                available: 55
            })
        );
    }

    #[test]
    fn lengths_that_cannot_be_true_are_refused() {
        let mut v1 = V1_ON_THE_WIRE;
        v1[16..].copy_from_slice(&(u64::MAX - 23).to_le_bytes());
        assert_eq!(
            Header::parse(&v1),
            Err(HeaderError::LengthOverflows {
                claimed: u64::MAX - 23
            })
        );

        let mut v3 = [0; 56];
        v3[..16].copy_from_slice(&V3_MARKER.to_bytes());
        v3[16..24].copy_from_slice(&55u64.to_le_bytes());
        assert_eq!(
            Header::parse(&v3),
            Err(HeaderError::BufferSizeBelowHeader {
                claimed: 55,
                minimum: 56
            })
        );
    }

    #[test]
    fn only_a_v1_header_cannot_name_the_marker() {
        assert!(!Header::can_name(HeaderFormat::V1, V3_MARKER));
        assert!(Header::can_name(HeaderFormat::V1, RECIPIENT));
        let header = Header::new(HeaderFormat::V3, V3_MARKER, 5).unwrap();
        assert!(Header::can_name(HeaderFormat::V3, V3_MARKER));
        assert_eq!(Header::parse(header.encode().as_ref()), Ok(header));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_what_it_accepts_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(Header::parse(header.encode().as_ref()), Ok(header));
            }
        }

        #[test]
        fn marker_followed_by_anything_is_v3_or_refused(tail in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = V3_MARKER.to_bytes().to_vec();
            bytes.extend(tail);
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(header.format(), HeaderFormat::V3);
            }
        }
    }
}
