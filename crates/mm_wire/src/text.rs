//! GUIDs and bytes as text, without what the libraries link for it.

use crate::Guid;
use core::fmt::{self, Write as _};

/// A GUID for a line of text, `8c633b23-1260-4ea6-830f-7ddc97382111`.
///
/// [`Guid`] writes the same, and links 1.6 KiB for it.
#[derive(Clone, Copy)]
pub struct Shown(pub Guid);

/// Which byte of a GUID is written next; its first three fields are little-endian.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_bytes();
        for index in ORDER {
            if matches!(index, 5 | 7 | 8 | 10) {
                f.write_char('-')?;
            }
            write_hex(f, bytes.get(index).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Writes a byte as two hexadecimal digits.
fn write_hex(f: &mut fmt::Formatter<'_>, byte: u8) -> fmt::Result {
    for nibble in [byte >> 4, byte & 0xf] {
        f.write_char(char::from_digit(nibble.into(), 16).unwrap_or('?'))?;
    }
    Ok(())
}

/// Bytes for a line of text, `[01, fe]`.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "[";
        for byte in self.0 {
            f.write_str(before)?;
            write_hex(f, *byte)?;
            before = ", ";
        }
        f.write_str(if self.0.is_empty() { "[]" } else { "]" })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Bytes, Shown};
    use crate::{Guid, guid};
    use std::format;
    use std::string::ToString;

    #[test]
    fn text_is_that_of_the_library() {
        let guids = [guid!("8c633b23-1260-4ea6-830f-7ddc97382111"), Guid::ZERO];
        for guid in guids {
            assert_eq!(Shown(guid).to_string(), guid.to_string());
        }
        for bytes in [&[][..], &[1], &[0, 0x7f, 0xfe]] {
            assert_eq!(Bytes(bytes).to_string(), format!("{bytes:02x?}"));
        }
    }
}
