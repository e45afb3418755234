//! The identifiers of the existing comm buffers, for the log.

use crate::config::CommunicateBuffer;
use core::fmt;

/// Identifiers, collected without an allocation: a line may be logged at ExitBootServices, without
/// an allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids([u64; 4]);

impl Ids {
    /// The identifiers of these buffers.
    pub(super) fn of(buffers: &[CommunicateBuffer]) -> Self {
        Self::of_those(buffers, |_| true)
    }

    /// The identifiers of the buffers for which `wanted` is true.
    #[inline(never)]
    pub(super) fn of_those(buffers: &[CommunicateBuffer], wanted: fn(&CommunicateBuffer) -> bool) -> Self {
        let mut ids = Self::default();
        for buffer in buffers {
            if wanted(buffer) {
                ids.add(buffer.id());
            }
        }
        ids
    }

    pub(super) fn add(&mut self, id: u8) {
        let (word, bit) = position(id);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    pub(super) fn has(self, id: u8) -> bool {
        let (word, bit) = position(id);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(super) fn is_empty(self) -> bool {
        let Self([a, b, c, d]) = self;
        a | b | c | d == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        let all = (0_u16..256).filter_map(|id| u8::try_from(id).ok());
        all.filter(move |id| self.has(*id))
    }
}

/// The word and the bit of an identifier in a bit set of four words.
pub(super) fn position(id: u8) -> (usize, u64) {
    (usize::from(id / 64), 1_u64.wrapping_shl(id.into()))
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for id in self.iter() {
            f.write_str(separator)?;
            fmt::Display::fmt(&id, f)?;
            separator = ", ";
        }
        f.write_str(if self.is_empty() { "none" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn one_identifier_or_two_in_any_words_are_not_none() {
        assert!(Ids::default().is_empty());
        // Each word of 64 identifiers, and two of them in the same bit.
        for first in [0, 64, 128, 192] {
            for second in [0, 64, 128, 192] {
                let mut ids = Ids::default();
                ids.add(first);
                ids.add(second);
                assert!(!ids.is_empty(), "{ids}");
                assert!(ids.has(first) && ids.has(second) && !ids.has(first + 1));
            }
        }
    }

    #[test]
    fn all_identifiers_are_listed_in_order() {
        let ids = |ids: &[u8]| {
            let buffers: Vec<_> = ids.iter().map(|id| CommunicateBuffer::of_a_page(*id)).collect();
            Ids::of(&buffers).to_string()
        };
        assert_eq!(ids(&[]), "none");
        assert_eq!(ids(&[7]), "7");
        assert_eq!(ids(&[255, 128, 127, 0]), "0, 127, 128, 255");
    }
}
