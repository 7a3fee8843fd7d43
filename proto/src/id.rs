//! Names of the things on the wire. A role is a type, never a bare integer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A mediator's name: 1 to 64 of `a-z A-Z 0-9 . _ -`, the first one alphanumeric.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediatorId(Arc<str>);

impl MediatorId {
    /// Longest name in bytes.
    pub const LEN_MAX: usize = 64;

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard, of `shards`, that owns this mediator: FNV-1a over the name, then a final mix, since
    /// FNV alone leaves the upper bits of similar names alike. Every process of one version agrees on it.
    pub fn shard(&self, shards: usize) -> ShardId {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in self.0.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        ShardId(((hash ^ hash >> 33) % shards.max(1) as u64) as u8)
    }
}

/// The text is not a mediator's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mediator's name is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit")]
pub struct BadMediatorId;

impl FromStr for MediatorId {
    type Err = BadMediatorId;
    fn from_str(text: &str) -> Result<Self, BadMediatorId> {
        let good = text.len() <= Self::LEN_MAX
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if good { Ok(Self(text.into())) } else { Err(BadMediatorId) }
    }
}

impl TryFrom<String> for MediatorId {
    type Error = BadMediatorId;
    fn try_from(text: String) -> Result<Self, BadMediatorId> {
        text.parse()
    }
}

impl From<MediatorId> for String {
    fn from(id: MediatorId) -> Self {
        id.0.to_string()
    }
}

impl fmt::Display for MediatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MediatorId({})", self.0)
    }
}

/// A port of a link, chosen by the end that made it.
///
/// Bit 0 tells who made it: 0 the requester (the end nearer the terminal), 1 the mediator's end (an
/// accepted connection). Bits 1 to 19 are the maker's table index, bits 20 to 31 count its reuse, so
/// that a late frame for a port that is gone cannot reach its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

impl PortId {
    const INDEX_BITS: u32 = 19;

    /// Makes an identifier of its three parts; surplus bits of `index` and `generation` are cut.
    pub fn new(by_mediator: bool, index: u32, generation: u32) -> Self {
        let index = index & ((1 << Self::INDEX_BITS) - 1);
        Self(u32::from(by_mediator) | index << 1 | (generation & 0xfff) << 20)
    }

    /// Whether the mediator's end made it.
    pub fn by_mediator(self) -> bool {
        self.0 & 1 == 1
    }

    /// The place in its maker's table.
    pub fn index(self) -> usize {
        ((self.0 >> 1) & ((1 << Self::INDEX_BITS) - 1)) as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A UDP channel, named by the relay: table index (low 24 bits) and reuse count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId(pub u32);

impl ChannelId {
    /// Makes an identifier of its two parts; surplus bits are cut.
    pub fn new(index: u32, generation: u8) -> Self {
        Self((index & 0x00ff_ffff) | u32::from(generation) << 24)
    }

    /// The place in the relay's table.
    pub fn index(self) -> usize {
        (self.0 & 0x00ff_ffff) as usize
    }
}

/// One pinned thread of the relay: its number, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_on_both_sides_of_each_edge() {
        for good in ["a", "cpe-1", "A.b_c-9", &"x".repeat(64)] {
            assert!(good.parse::<MediatorId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert_eq!(bad.parse::<MediatorId>(), Err(BadMediatorId), "{bad}");
        }
    }

    #[test]
    fn port_identifier_keeps_its_parts_and_tells_generations_apart() {
        let id = PortId::new(true, 70_000, 5);
        assert!(id.by_mediator());
        assert_eq!(id.index(), 70_000);
        assert_ne!(id, PortId::new(true, 70_000, 6));
        assert_ne!(id, PortId::new(false, 70_000, 5));
    }

    #[test]
    fn shards_share_mediators_evenly() {
        let mut counts = [0u32; 8];
        for n in 0..8000 {
            let id: MediatorId = format!("cpe-{n}").parse().unwrap();
            counts[usize::from(id.shard(8).0)] += 1;
        }
        assert!(counts.iter().all(|&n| (800..1200).contains(&n)), "{counts:?}");
    }
}
