//! Random bytes from a seed, for runs that must be the same each time.

/// A xorshift64* generator: small, and good enough to choose cases.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence. Different seeds give different ones.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Spreads the bits, because seeds are small numbers; never zero, which would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[must_use]
    pub const fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, 0 if that is 0.
    #[must_use]
    pub const fn below(&mut self, limit: usize) -> usize {
        match limit {
            0 => 0,
            limit => (self.number() >> 32) as usize % limit,
        }
    }

    /// Returns this many bytes; some have values that lengths and flags often have.
    #[must_use]
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            match self.below(4) {
                0 => bytes.extend(self.number().to_le_bytes()),
                1 => bytes.push(self.below(4) as u8),
                2 => bytes.push(0xff),
                _ => bytes.push(self.number() as u8),
            }
        }
        bytes.truncate(len);
        bytes
    }
}
