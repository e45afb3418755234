//! The comm buffers that are described to MM, and the checks that refuse some.
//!
//! A description may be wrong: a "buffer" in MMRAM would make MM overwrite itself.

use core::fmt;
use mm_wire::mailbox::{MAILBOX_ALIGN, MAILBOX_LEN};
use mm_wire::{AddressRange, HeaderFormat};
use thiserror::Error;

/// The most comm buffers that one MM core serves.
pub const MAX_BUFFERS: usize = 8;

/// A comm buffer and, if the platform has one, its status mailbox. Physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommBuffer {
    /// The memory of header and message.
    pub region: AddressRange,
    /// Where the 24-byte mailbox starts. Traditional SMM and SPM_MM have none.
    pub mailbox: Option<u64>,
}

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Memory that only MM can access.
    Mmram,
    /// Header and message.
    CommBuffer,
    /// The status mailbox.
    Mailbox,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmram => "MMRAM",
            Self::CommBuffer => "the comm buffer",
            Self::Mailbox => "the status mailbox",
        })
    }
}

/// Why an MM core does not start with these buffers. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupError {
    /// No MMRAM was named, so the buffers cannot be compared with it.
    #[error("platform: no MMRAM range was named")]
    NoMmram,
    /// More buffers than a [`crate::Visit`] has outcomes.
    #[error("platform: {count} comm buffers, at most {maximum} are supported")]
    TooManyBuffers {
        /// How many there are.
        count: usize,
        /// How many there may be.
        maximum: usize,
    },
    /// The region cannot hold a header.
    #[error("platform: the comm buffer {region} is smaller than the {minimum}-byte communicate header")]
    RegionTooSmall {
        /// The region's addresses.
        region: AddressRange,
        /// Bytes of the header.
        minimum: usize,
    },
    /// The mailbox is not aligned for its 64-bit fields.
    #[error("platform: the status mailbox at {address:#x} is not aligned to {align} bytes")]
    MailboxMisaligned {
        /// Where the mailbox starts.
        address: u64,
        /// The alignment it needs.
        align: usize,
    },
    /// The mailbox goes past the end of the address space.
    #[error("platform: the status mailbox at {address:#x} goes past the end of the address space")]
    MailboxWraps {
        /// Where the mailbox starts.
        address: u64,
    },
    /// Two things would share memory.
    #[error("platform: {purpose} {range} overlaps {other_purpose} {other}")]
    Overlap {
        /// What the first range is for: a comm buffer or a mailbox.
        purpose: Purpose,
        /// The first range.
        range: AddressRange,
        /// What the second range is for.
        other_purpose: Purpose,
        /// The second range.
        other: AddressRange,
    },
    /// The largest possible message does not fit into MM's own copy of it.
    #[error("platform: the scratch memory has {len} bytes, the largest message takes {needed}")]
    ScratchTooSmall {
        /// Bytes of scratch memory.
        len: usize,
        /// Bytes of the largest message.
        needed: u64,
    },
}

/// Makes all checks of [`crate::MmCore::new`], for buffers that will be served later. `scratch_len`
/// is the length of its `scratch` in bytes.
///
/// # Errors
///
/// Those of [`crate::MmCore::new`].
pub fn check(mmram: &[AddressRange], buffers: &[CommBuffer], scratch_len: usize) -> Result<(), SetupError> {
    if mmram.is_empty() {
        return Err(SetupError::NoMmram);
    }
    if buffers.len() > MAX_BUFFERS {
        return Err(SetupError::TooManyBuffers {
            count: buffers.len(),
            maximum: MAX_BUFFERS,
        });
    }
    let minimum = HeaderFormat::V1.header_len();
    for CommBuffer { region, mailbox } in buffers.iter().copied() {
        let needed = region
            .len()
            .checked_sub(minimum as u64)
            .ok_or(SetupError::RegionTooSmall { region, minimum })?;
        if usize::try_from(needed).map_or(true, |needed| scratch_len < needed) {
            return Err(SetupError::ScratchTooSmall {
                len: scratch_len,
                needed,
            });
        }
        let Some(address) = mailbox else { continue };
        if !address.is_multiple_of(MAILBOX_ALIGN as u64) {
            return Err(SetupError::MailboxMisaligned {
                address,
                align: MAILBOX_ALIGN,
            });
        }
        mailbox_range(address).ok_or(SetupError::MailboxWraps { address })?;
    }

    let mmram = mmram.iter().map(|range| (Purpose::Mmram, *range));
    for (index, (purpose, range)) in shared(buffers).enumerate() {
        let others = shared(buffers).skip(index.saturating_add(1)).chain(mmram.clone());
        for (other_purpose, other) in others {
            if range.overlaps(other) {
                return Err(SetupError::Overlap {
                    purpose,
                    range,
                    other_purpose,
                    other,
                });
            }
        }
    }
    Ok(())
}

/// All memory that is shared with the other side.
fn shared(buffers: &[CommBuffer]) -> impl Iterator<Item = (Purpose, AddressRange)> {
    buffers.iter().flat_map(|buffer| {
        let mailbox = buffer.mailbox.and_then(mailbox_range);
        core::iter::once((Purpose::CommBuffer, buffer.region))
            .chain(mailbox.map(|range| (Purpose::Mailbox, range)))
    })
}

const fn mailbox_range(address: u64) -> Option<AddressRange> {
    AddressRange::new(address, MAILBOX_LEN as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MmCore;
    use std::string::ToString;
    use std::vec;

    fn range(start: u64, len: u64) -> AddressRange {
        AddressRange::new(start, len).unwrap()
    }

    fn buffer(start: u64, len: u64, mailbox: Option<u64>) -> CommBuffer {
        CommBuffer {
            region: range(start, len),
            mailbox,
        }
    }

    fn refusal(buffers: &[CommBuffer], scratch_len: usize) -> Option<SetupError> {
        let mmram = [range(0xa_0000, 0x2_0000), range(0x7f00_0000, 0x10_0000)];
        MmCore::new(&mmram, buffers, &mut vec![0; scratch_len]).err()
    }

    #[test]
    fn separate_buffers_with_just_enough_scratch_are_accepted() {
        let buffers = [
            buffer(0x1000, 0x1000, Some(0x2000)),
            buffer(0x2018, 0x800, Some(0x2818)),
            buffer(0x9_f000, 0x1000, None),
        ];
        assert_eq!(refusal(&buffers, 0x1000 - 24), None);
        assert_eq!(refusal(&[], 0), None);
        let most: [_; MAX_BUFFERS] =
            core::array::from_fn(|index| buffer(0x1000 * (index as u64 + 1), 24, None));
        assert_eq!(refusal(&most, 0), None);
    }

    #[test]
    fn every_overlap_is_refused_with_both_ranges() {
        let low = buffer(0x1000, 0x100, None);
        let cases = [
            (
                vec![buffer(0xb_ff00, 0x200, None)],
                "the comm buffer 0xbff00..0xc0100 overlaps MMRAM 0xa0000..0xc0000",
            ),
            (
                vec![buffer(0x7eff_f000, 0x1001, None)],
                "the comm buffer 0x7efff000..0x7f000001 overlaps MMRAM 0x7f000000..0x7f100000",
            ),
            (
                vec![buffer(0x9_f000, 0x2_2000, None)],
                "the comm buffer 0x9f000..0xc1000 overlaps MMRAM 0xa0000..0xc0000",
            ),
            (
                vec![buffer(0x1000, 0x100, Some(0xa_0000))],
                "the status mailbox 0xa0000..0xa0018 overlaps MMRAM 0xa0000..0xc0000",
            ),
            (
                vec![buffer(0x1000, 0x100, Some(0x10f8))],
                "the comm buffer 0x1000..0x1100 overlaps the status mailbox 0x10f8..0x1110",
            ),
            (
                vec![low, buffer(0x10ff, 0x100, None)],
                "the comm buffer 0x1000..0x1100 overlaps the comm buffer 0x10ff..0x11ff",
            ),
            (
                vec![low, buffer(0x2000, 0x100, Some(0x1000))],
                "the comm buffer 0x1000..0x1100 overlaps the status mailbox 0x1000..0x1018",
            ),
            (
                vec![
                    buffer(0x1000, 0x100, Some(0x3000)),
                    buffer(0x2000, 0x100, Some(0x3010)),
                ],
                "the status mailbox 0x3000..0x3018 overlaps the status mailbox 0x3010..0x3028",
            ),
        ];
        for (buffers, expected) in cases {
            let told = refusal(&buffers, 0x2_2000).unwrap().to_string();
            assert_eq!(told, std::format!("platform: {expected}"));
        }
    }

    #[test]
    fn unfit_sizes_and_addresses_are_refused_with_their_numbers() {
        assert_eq!(
            refusal(&[buffer(0x1000, 23, None)], 64),
            Some(SetupError::RegionTooSmall {
                region: range(0x1000, 23),
                minimum: 24
            })
        );
        assert_eq!(
            refusal(&[buffer(0x1000, 0x1000, None)], 0xfe7),
            Some(SetupError::ScratchTooSmall {
                len: 0xfe7,
                needed: 0xfe8
            })
        );
        assert_eq!(
            refusal(&[buffer(0x1000, 64, Some(0x2004))], 64),
            Some(SetupError::MailboxMisaligned {
                address: 0x2004,
                align: 8
            })
        );
        assert_eq!(
            refusal(&[buffer(0x1000, 64, Some(u64::MAX - 7))], 64),
            Some(SetupError::MailboxWraps {
                address: u64::MAX - 7
            })
        );
        assert_eq!(
            refusal(&[buffer(0x1000, 24, None); MAX_BUFFERS + 1], 64),
            Some(SetupError::TooManyBuffers { count: 9, maximum: 8 })
        );
        assert_eq!(MmCore::new(&[], &[], &mut []).err(), Some(SetupError::NoMmram));
    }
}
