//! The communicate header as the specification has it (PI 1.9, volume 4, 5.7), read and written
//! byte by byte: the models' own reader, which shares no code with `mm_wire`.

use arbitrary::Arbitrary;
use mm_wire::{Guid, HeaderFormat};

/// The GUID that starts a v3 header, in memory order.
pub const MARKER: [u8; 16] = [
    0x53, 0xc8, 0xe8, 0x68, 0xa9, 0x2b, 0xd7, 0x4d, 0x9a, 0xc0, 0x91, 0xe1, 0x61, 0x55, 0xc9, 0x35,
];

/// A header's fields. For v1 both sizes are MessageLength.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Whether it is a v3 header.
    pub v3: bool,
    /// HeaderGuid or MessageGuid.
    pub guid: [u8; 16],
    /// Bytes that the header counts behind itself.
    pub counted: u64,
    /// MessageSize.
    pub message_size: u64,
}

/// The 64-bit number at `offset`.
#[must_use]
pub fn number(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

impl Fields {
    /// Bytes of the header.
    #[must_use]
    pub const fn len(&self) -> usize {
        if self.v3 { 56 } else { 24 }
    }

    /// Never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of header and message.
    #[must_use]
    pub fn total(&self) -> u128 {
        u128::from(self.counted) + self.len() as u128
    }

    /// Reads a header; `None` if the bytes are not one.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 24 {
            return None;
        }
        let guid: [u8; 16] = bytes[..16].try_into().unwrap();
        if guid != MARKER {
            let fields = Self {
                v3: false,
                guid,
                counted: number(bytes, 16),
                message_size: number(bytes, 16),
            };
            return (fields.total() <= u128::from(u64::MAX)).then_some(fields);
        }
        if bytes.len() < 56 || number(bytes, 16) < 56 {
            return None;
        }
        Some(Self {
            v3: true,
            guid: bytes[32..48].try_into().unwrap(),
            counted: number(bytes, 16) - 56,
            message_size: number(bytes, 48),
        })
    }

    /// The bytes that it has in memory.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        if !self.v3 {
            return [self.guid.as_slice(), &self.counted.to_le_bytes()].concat();
        }
        let buffer_size = self.counted + 56;
        [
            MARKER.as_slice(),
            &buffer_size.to_le_bytes(),
            &[0; 8],
            &self.guid,
            &self.message_size.to_le_bytes(),
        ]
        .concat()
    }

    /// The format in the code's words.
    #[must_use]
    pub const fn format(&self) -> HeaderFormat {
        if self.v3 {
            HeaderFormat::V3
        } else {
            HeaderFormat::V1
        }
    }
}

/// A GUID that a case chooses.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Name {
    /// One of a few.
    Known(u8),
    /// The one that starts v3 headers.
    Marker,
    /// Zero.
    Zero,
    /// Any.
    Any([u8; 16]),
}

impl Name {
    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        match self {
            Self::Known(number) => [0x10 | number & 3; 16],
            Self::Marker => MARKER,
            Self::Zero => [0; 16],
            Self::Any(bytes) => bytes,
        }
    }

    /// The same as a [`Guid`].
    #[must_use]
    pub fn guid(self) -> Guid {
        Guid::from_bytes(self.bytes())
    }
}

/// A length that a case chooses: near a limit, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Size {
    /// Small.
    Small(u8),
    /// This many bytes more or fewer than the buffer has.
    NearEnd(i8),
    /// This many more or fewer than fit behind a v1 header.
    NearCapacity(i8),
    /// This many more or fewer than fit behind a v3 header.
    NearCapacity3(i8),
    /// This many fewer than the largest number.
    Huge(u8),
    /// Any.
    Any(u64),
}

impl Size {
    /// The number, for a buffer of `len` bytes.
    #[must_use]
    pub const fn of(self, len: usize) -> u64 {
        let len = len as u64;
        match self {
            Self::Small(small) => small as u64,
            Self::NearEnd(more) => len.wrapping_add_signed(more as i64),
            Self::NearCapacity(more) => len.wrapping_sub(24).wrapping_add_signed(more as i64),
            Self::NearCapacity3(more) => len.wrapping_sub(56).wrapping_add_signed(more as i64),
            Self::Huge(fewer) => u64::MAX - fewer as u64,
            Self::Any(any) => any,
        }
    }
}
