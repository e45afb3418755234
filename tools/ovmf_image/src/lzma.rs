//! The LZMA section that holds OVMF's volumes.

use crate::error::ImageError;
use core::ops::RangeInclusive;
use lzma_rust2::{LzmaOptions, LzmaWriter, Write};
use patina_ffs::section::{Section, SectionExtractor};
use patina_ffs_extractors::LzmaSectionExtractor;

/// Bytes of the header of an `.lzma` stream: properties (1), dictionary size (4), length of the
/// content (8).
const HEADER_LEN: usize = 13;

/// Dictionaries that are accepted, in bytes. From the format's smallest to four times edk2's: the
/// encoder takes eight times the dictionary's size in memory.
const DICTIONARY: RangeInclusive<u32> = 1 << 12..=1 << 26;

/// The longest content accepted, in bytes: five times that of Debian's images of 2022, 13,500,560
/// bytes.
const MAX_CONTENT_LEN: u64 = 64 << 20;

/// The encoding in a stream's header. A decoder was built for these values, so a new stream keeps
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    literal_context_bits: u32,
    literal_position_bits: u32,
    position_bits: u32,
    dictionary_len: u32,
}

/// Decodes the content of an LZMA section.
pub(crate) fn decompress(section: &Section) -> Result<(Vec<u8>, Encoding), ImageError> {
    let failed = |len| move |cause| ImageError::Decompress { len, cause };
    let stream = section.try_content_as_slice().map_err(failed(0))?;
    let (encoding, claimed) = parse_header(stream)?;
    // Before anything is decoded: a few KiB of stream can be a GiB of zeros.
    if claimed > MAX_CONTENT_LEN {
        return Err(ImageError::PayloadTooLarge {
            len: stream.len(),
            claimed,
            limit: MAX_CONTENT_LEN,
        });
    }
    let content = LzmaSectionExtractor::new()
        .extract(section)
        .map_err(failed(stream.len()))?;
    if u64::try_from(content.len()).ok() != Some(claimed) {
        return Err(ImageError::Length {
            what: "the LZMA section",
            claimed,
            available: content.len(),
        });
    }
    Ok((content, encoding))
}

/// Encodes `content` as a stream with its length in the header.
pub(crate) fn compress(content: &[u8], encoding: Encoding) -> Result<Vec<u8>, ImageError> {
    let failed = |cause| ImageError::Compress {
        len: content.len(),
        cause,
    };
    let options = LzmaOptions {
        lc: encoding.literal_context_bits,
        lp: encoding.literal_position_bits,
        pb: encoding.position_bits,
        dict_size: encoding.dictionary_len,
        ..LzmaOptions::with_preset(6)
    };
    let len = u64::try_from(content.len()).ok();
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, len).map_err(failed)?;
    writer.write_all(content).map_err(failed)?;
    writer.finish().map_err(failed)
}

fn parse_header(stream: &[u8]) -> Result<(Encoding, u64), ImageError> {
    let invalid = |properties, dictionary_len| ImageError::LzmaHeader {
        len: stream.len(),
        properties,
        dictionary_len,
    };
    let Some(&[properties, d0, d1, d2, d3, ref len @ ..]) = stream.first_chunk::<HEADER_LEN>() else {
        return Err(invalid(0xff, 0));
    };
    let dictionary_len = u32::from_le_bytes([d0, d1, d2, d3]);
    // properties = (position bits * 5 + literal position bits) * 9 + literal context bits
    let (rest, literal_context_bits) = (u32::from(properties) / 9, u32::from(properties) % 9);
    let (position_bits, literal_position_bits) = (rest / 5, rest % 5);
    if position_bits > 4 || !DICTIONARY.contains(&dictionary_len) {
        return Err(invalid(properties, dictionary_len));
    }
    let encoding = Encoding {
        literal_context_bits,
        literal_position_bits,
        position_bits,
        dictionary_len,
    };
    Ok((encoding, u64::from_le_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// edk2's encoder writes 0x5d and 16 MiB.
    const OVMF: Encoding = Encoding {
        literal_context_bits: 3,
        literal_position_bits: 0,
        position_bits: 2,
        dictionary_len: 1 << 24,
    };

    #[test]
    fn the_header_keeps_the_encoding_and_the_length() {
        let stream = compress(&[7; 1000], OVMF).unwrap();
        assert_eq!(
            stream[..HEADER_LEN],
            [0x5d, 0, 0, 0, 1, 0xe8, 3, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(parse_header(&stream).unwrap(), (OVMF, 1000));
    }

    #[test]
    fn a_header_that_is_short_or_impossible_is_refused() {
        assert!(matches!(
            parse_header(&[0x5d; 12]),
            Err(ImageError::LzmaHeader {
                len: 12,
                properties: 0xff,
                dictionary_len: 0
            })
        ));
        let impossible = [9 * 5 * 5; HEADER_LEN];
        assert!(matches!(
            parse_header(&impossible),
            Err(ImageError::LzmaHeader {
                len: 13,
                properties: 225,
                ..
            })
        ));
    }

    #[test]
    fn a_dictionary_that_no_encoder_takes_or_no_host_has_memory_for_is_refused() {
        let stream = |dictionary_len: u32| {
            let mut stream = [0x5d; HEADER_LEN];
            stream[1..5].copy_from_slice(&dictionary_len.to_le_bytes());
            stream
        };
        for accepted in [1 << 12, 0x1234_5678 >> 4, 1 << 26] {
            let (encoding, _) = parse_header(&stream(accepted)).unwrap();
            assert_eq!(encoding.dictionary_len, accepted);
        }
        for refused in [
            0,
            (1 << 12) - 1,
            (1 << 26) + 1,
            0x4000_0000,
            0x7fff_ffff,
            u32::MAX,
        ] {
            assert!(matches!(
                parse_header(&stream(refused)),
                Err(ImageError::LzmaHeader { len: 13, properties: 0x5d, dictionary_len }) if dictionary_len == refused
            ));
        }
    }
}
