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
    /// A probe of the gateway's bindings, or the answer that is owed to one.
    Probe = 10,
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
            10 => What::Probe,
            _ => What::Control,
        };
        Self { what, generation: (bits >> 32) as u32 & ((1 << GENERATION_BITS) - 1), index: bits as u32 }
    }

    /// A bridge's end A, of either of its ends.
    pub fn as_bridge(self) -> Self {
        self.renamed(What::BridgeA)
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

    /// What is at some of the places, and the place to go on at if there are more.
    pub(crate) fn some(&self, from: u32, places: u32) -> (impl Iterator<Item = &T>, Option<u32>) {
        let end = self.values.end();
        let to = from.saturating_add(places).min(end);
        let values = (from..to).filter_map(|index| self.values.get(index).map(|(_, value)| value));
        (values, (to < end).then_some(to))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.values.iter().map(|(index, (generation, _))| Key { what: self.what, generation: *generation, index })
    }
}

/// What a control knows of the things that keys of one kind lead to, by their places: a third of what a hash map takes.
#[derive(Debug)]
pub struct KeyMap<T> {
    chunks: Vec<Box<[Place<T>]>>,
    what: What,
    len: usize,
}

/// A key's generation and value.
type Place<T> = Option<(u32, T)>;

/// Entries of one piece of a [`KeyMap`].
const MAP_CHUNK: usize = 128;

impl<T> KeyMap<T> {
    /// Without any value, for keys of one kind.
    pub fn new(what: What) -> Self {
        Self { chunks: Vec::new(), what, len: 0 }
    }

    /// Values in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A key's value.
    pub fn get(&self, key: &Key) -> Option<&T> {
        let place = self.chunks.get(key.index as usize / MAP_CHUNK)?.get(key.index as usize % MAP_CHUNK)?;
        place.as_ref().filter(|(generation, _)| *generation == key.generation).map(|(_, value)| value)
    }

    /// A key's value.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut T> {
        let place = self.chunks.get_mut(key.index as usize / MAP_CHUNK)?.get_mut(key.index as usize % MAP_CHUNK)?;
        place.as_mut().filter(|(generation, _)| *generation == key.generation).map(|(_, value)| value)
    }

    /// Gives a key a value; the one that it had before comes back. The value of an older key of the same place goes.
    pub fn insert(&mut self, key: Key, value: T) -> Option<T> {
        debug_assert!(key.what == self.what, "a key of another kind");
        let (chunk, place) = (key.index as usize / MAP_CHUNK, key.index as usize % MAP_CHUNK);
        while self.chunks.len() <= chunk {
            self.chunks.push((0..MAP_CHUNK).map(|_| None).collect());
        }
        match self.chunks[chunk][place].replace((key.generation, value)) {
            None => {
                self.len += 1;
                None
            }
            Some((generation, old)) => (generation == key.generation).then_some(old),
        }
    }

    /// Takes a key's value out.
    pub fn remove(&mut self, key: &Key) -> Option<T> {
        self.get(key)?;
        self.len -= 1;
        self.chunks[key.index as usize / MAP_CHUNK][key.index as usize % MAP_CHUNK].take().map(|(_, value)| value)
    }

    /// All values with their keys, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> + '_ {
        self.chunks.iter().flatten().enumerate().filter_map(|(index, place)| {
            let (generation, value) = place.as_ref()?;
            Some((Key { what: self.what, generation: *generation, index: index as u32 }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_keys_misses_what_is_gone() {
        let mut table = Table::new(What::Link);
        let mut map = KeyMap::new(What::Link);
        let keys: Vec<Key> = (0..2 * MAP_CHUNK + 1).map(|n| table.insert(n)).collect();
        for (n, &key) in keys.iter().enumerate() {
            assert_eq!(map.get(&key), None);
            assert_eq!(map.insert(key, n), None);
        }
        let last = keys[2 * MAP_CHUNK];
        table.remove(last);
        let reused = table.insert(7);
        assert_eq!((reused.index(), map.get(&reused)), (last.index(), None));
        assert_eq!(map.remove(&reused), None);
        assert_eq!(map.insert(last, 1), Some(2 * MAP_CHUNK));
        assert_eq!((map.get(&last), map.len()), (Some(&1), keys.len()));
        assert_eq!(map.insert(reused, 5), None);
        assert_eq!((map.get(&last), map.len()), (None, keys.len()));
        *map.get_mut(&reused).unwrap() += 1;
        assert_eq!(map.remove(&reused), Some(6));
        assert_eq!(map.remove(&reused), None);
        assert_eq!(map.len(), keys.len() - 1);
        let all: Vec<_> = map.iter().map(|(key, &value)| (key, value)).collect();
        assert_eq!(all[MAP_CHUNK], (keys[MAP_CHUNK], MAP_CHUNK));
        assert_eq!(all.len(), 2 * MAP_CHUNK);
    }
}
