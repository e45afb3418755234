//! The identifiers of the existing comm buffers, for the log.

use crate::config::CommunicateBuffer;
use core::fmt;

/// Identifiers, collected without an allocation: a line may be logged at ExitBootServices, without
/// an allocator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids([u128; 2]);

impl Ids {
    /// The identifiers of these buffers.
    pub(super) fn of(buffers: &[CommunicateBuffer]) -> Self {
        buffers.iter().fold(Self([0; 2]), |Self([low, high]), buffer| {
            let bit = 1_u128.wrapping_shl(buffer.id().into());
            match buffer.id() {
                ..128 => Self([low | bit, high]),
                _ => Self([low, high | bit]),
            }
        })
    }

    pub(super) fn has(self, id: u8) -> bool {
        let Self([low, high]) = self;
        let half = if id < 128 { low } else { high };
        half.wrapping_shr(id.into()) & 1 == 1
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [0; 2] {
            return f.write_str("there is none");
        }
        f.write_str("there are: ")?;
        let mut separator = "";
        for id in (0..=u8::MAX).filter(|id| self.has(*id)) {
            write!(f, "{separator}{id}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn all_identifiers_are_listed_in_order() {
        let ids = |ids: &[u8]| {
            let buffers: Vec<_> = ids.iter().map(|id| CommunicateBuffer::of_a_page(*id)).collect();
            Ids::of(&buffers).to_string()
        };
        assert_eq!(ids(&[]), "there is none");
        assert_eq!(ids(&[7]), "there are: 7");
        assert_eq!(ids(&[255, 128, 127, 0]), "there are: 0, 127, 128, 255");
    }
}
