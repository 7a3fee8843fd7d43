//! The numbers that the engine gives back with what came in by a door: which door, and which of its kind.
//!
//! ```text
//!  31      28 27       20 19                   0
//! +----------+-----------+----------------------+
//! |   door   |generation |        index         |
//! +----------+-----------+----------------------+
//! ```

use slab::Slab;

const INDEX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 8;

/// Most values of one table.
pub(super) const TABLE_MAX: usize = 1 << INDEX_BITS;

/// The service listener's number.
pub(super) const SERVICE: u32 = 0;

/// Name listeners' number, and that of visitors who were led here from another shard.
pub(super) const LED: u32 = (Door::Led as u32) << (INDEX_BITS + GENERATION_BITS);

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Door {
    /// Mediators and terminals.
    Service = 0,
    /// A published port.
    Published = 1,
    /// A name listener, or a visitor who was led here from another shard: nothing is kept of it.
    Led = 2,
    /// A proxy's port: SOCKS5 and HTTP CONNECT.
    Proxy = 3,
    /// Not a way in: the server port of an exposed service, and what it leads to.
    Exposed = 4,
}

impl Door {
    /// The door of a number.
    pub(super) fn of(tag: u32) -> Option<Self> {
        match tag >> (INDEX_BITS + GENERATION_BITS) {
            0 => Some(Self::Service),
            1 => Some(Self::Published),
            2 => Some(Self::Led),
            3 => Some(Self::Proxy),
            4 => Some(Self::Exposed),
            _ => None,
        }
    }
}

/// What is behind the doors of one kind. A number of what is gone misses what took its place.
#[derive(Debug)]
pub(super) struct TagTable<T> {
    door: Door,
    values: Slab<(u32, T)>,
    generation: u32,
}

impl<T> TagTable<T> {
    pub(super) fn new(door: Door) -> Self {
        Self { door, values: Slab::new(), generation: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Adds the value that `make` makes of its number. The caller keeps to [`TABLE_MAX`].
    pub(super) fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> u32 {
        self.generation = (self.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let entry = self.values.vacant_entry();
        let tag = (self.door as u32) << (INDEX_BITS + GENERATION_BITS)
            | self.generation << INDEX_BITS
            | (entry.key() as u32 & (TABLE_MAX as u32 - 1));
        entry.insert((tag, make(tag)));
        tag
    }

    pub(super) fn get(&self, tag: u32) -> Option<&T> {
        let (found, value) = self.values.get(index(tag))?;
        (*found == tag).then_some(value)
    }

    pub(super) fn get_mut(&mut self, tag: u32) -> Option<&mut T> {
        let (found, value) = self.values.get_mut(index(tag))?;
        (*found == tag).then_some(value)
    }

    pub(super) fn remove(&mut self, tag: u32) -> Option<T> {
        self.get(tag)?;
        Some(self.values.remove(index(tag)).1)
    }

    /// All, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.values.iter().map(|(_, (tag, value))| (*tag, value))
    }
}

fn index(tag: u32) -> usize {
    tag as usize & (TABLE_MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_what_is_gone_misses_what_took_its_place() {
        let mut table = TagTable::new(Door::Published);
        let first = table.insert_with(|_| 'a');
        let second = table.insert_with(|_| 'b');
        assert_eq!((table.get(first), table.get(second)), (Some(&'a'), Some(&'b')));
        assert_eq!(table.remove(first), Some('a'));
        let third = table.insert_with(|_| 'c');
        assert_eq!(index(first), index(third));
        assert_eq!((table.get(first), table.get(third)), (None, Some(&'c')));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn number_tells_its_door() {
        let mut table = TagTable::new(Door::Published);
        let tag = table.insert_with(|_| ());
        assert_eq!(Door::of(tag), Some(Door::Published));
        assert_eq!(Door::of(SERVICE), Some(Door::Service));
        assert_eq!(Door::of(LED), Some(Door::Led));
        assert_eq!(Door::of(u32::MAX), None);
    }
}
