//! Keys of the things that a shard holds, and the tables that they lead to.

use crate::chunks::Chunks;

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum What {
    /// Nothing of the engine's: a number of the control's own.
    Control = 0,
    /// A tunnel or terminal connection.
    Link = 1,
    /// A plain TCP connection.
    Stream = 2,
    /// A TCP listener.
    Listener = 3,
    /// A UDP socket.
    Udp = 4,
    /// A visitor's flow on a published UDP port.
    Flow = 5,
    /// One end of a pair of ports on two links.
    BridgeA = 6,
    /// The other end of it.
    BridgeB = 7,
    /// A descriptor that is only watched.
    Watch = 8,
    /// A plain TCP connection that belongs to no port yet.
    Guest = 9,
}

/// A thing's place and which use of the place it is: completions and frames for what is gone miss it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    what: What,
    generation: u32,
    index: u32,
}

const GENERATION_BITS: u32 = 28;

impl Key {
    /// The control's own number.
    pub const fn control(number: u32) -> Self {
        Self { what: What::Control, generation: 0, index: number }
    }

    /// What it leads to.
    pub fn what(self) -> What {
        self.what
    }

    /// The place in its table (or the control's number).
    pub fn index(self) -> u32 {
        self.index
    }

    /// As one number, for a completion's or a port's owner.
    pub fn to_bits(self) -> u64 {
        (self.what as u64) << 60 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The reverse of [`Key::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        let what = match bits >> 60 {
            1 => What::Link,
            2 => What::Stream,
            3 => What::Listener,
            4 => What::Udp,
            5 => What::Flow,
            6 => What::BridgeA,
            7 => What::BridgeB,
            8 => What::Watch,
            9 => What::Guest,
            _ => What::Control,
        };
        Self { what, generation: (bits >> 32) as u32 & ((1 << GENERATION_BITS) - 1), index: bits as u32 }
    }

    /// The same place under another name: the two ends of a bridge.
    pub(crate) fn renamed(self, what: What) -> Self {
        Self { what, ..self }
    }
}

/// A table with generational keys.
#[derive(Debug)]
pub(crate) struct Table<T> {
    what: What,
    values: Chunks<(u32, T)>,
    generation: u32,
}

impl<T> Table<T> {
    pub(crate) fn new(what: What) -> Self {
        Self { what, values: Chunks::default(), generation: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.generation = (self.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let index = self.values.insert((self.generation, value));
        Key { what: self.what, generation: self.generation, index }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.values.get(key.index) {
            Some((generation, value)) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.values.get_mut(key.index) {
            Some((generation, value)) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.values.remove(key.index).map(|(_, value)| value)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.values.iter().map(|(index, (generation, _))| Key { what: self.what, generation: *generation, index })
    }
}
