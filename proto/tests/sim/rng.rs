//! The one source of chance: a seed gives the same run on every machine.

/// splitmix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// `len` bytes of an endless stream from `offset` on, another one for each `name`.
pub(crate) fn pattern(name: u64, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8;
    let last = (offset + len as u64).div_ceil(8);
    let mut words = Vec::with_capacity((last - first) as usize * 8);
    for word in first..last {
        words.extend_from_slice(&mix(name << 40 ^ word).to_le_bytes());
    }
    let skip = (offset % 8) as usize;
    words.drain(..skip);
    words.truncate(len);
    words
}
