//! A table that grows by pieces: what is in it never moves, so that growth neither copies what very many tunnels need
//! nor leaves the memory of the smaller table behind.

/// Entries of one piece.
const CHUNK: usize = 128;

/// No place.
const NONE: u32 = u32::MAX;

/// Values by their place, the place that was freed last being used first.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: Vec<Box<[Entry<T>]>>,
    free: u32,
    /// Places from here on were never used.
    end: u32,
    len: usize,
}

#[derive(Debug)]
enum Entry<T> {
    /// The next free place.
    Vacant(u32),
    Taken(T),
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: NONE, end: 0, len: 0 }
    }
}

impl<T> Chunks<T> {
    /// Values in the table.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the next value will be.
    pub(crate) fn vacant(&self) -> u32 {
        if self.free == NONE { self.end } else { self.free }
    }

    /// Adds a value, and gives its place.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let index = self.vacant();
        if index == self.end {
            if index as usize == self.chunks.len() * CHUNK {
                self.chunks.push((0..CHUNK).map(|_| Entry::Vacant(NONE)).collect());
            }
            self.end += 1;
        }
        if let Some(entry) = self.entry(index) {
            if let Entry::Vacant(next) = std::mem::replace(entry, Entry::Taken(value)) {
                self.free = next;
            }
            self.len += 1;
        }
        index
    }

    /// The value at a place.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        match self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)? {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    /// The value at a place.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self.entry(index)? {
            Entry::Taken(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let free = self.free;
        let entry = self.entry(index).filter(|entry| matches!(entry, Entry::Taken(_)))?;
        let Entry::Taken(value) = std::mem::replace(entry, Entry::Vacant(free)) else { return None };
        self.free = index;
        self.len -= 1;
        Some(value)
    }

    /// One more than the last place that was ever used.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// All values with their places, in the order of these.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks.iter().flatten().enumerate().filter_map(|(index, entry)| match entry {
            Entry::Taken(value) => Some((index as u32, value)),
            Entry::Vacant(_) => None,
        })
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_freed_and_used_again_over_several_pieces() {
        let mut table = Chunks::default();
        let count = 3 * CHUNK as u32 + 1;
        for n in 0..count {
            assert_eq!(table.vacant(), n);
            assert_eq!(table.insert(n * 10), n);
        }
        assert_eq!((table.len(), table.chunks.len()), (count as usize, 4));
        assert_eq!(
            (table.get(CHUNK as u32), table.get(count), table.get(NONE)),
            (Some(&(CHUNK as u32 * 10)), None, None)
        );
        assert_eq!((table.remove(5), table.remove(200), table.remove(5)), (Some(50), Some(2000), None));
        assert_eq!((table.get(5), table.len()), (None, count as usize - 2));
        assert_eq!((table.insert(1), table.insert(2), table.vacant()), (200, 5, count));
        *table.get_mut(5).unwrap() += 1;
        let all: Vec<_> = table.iter().filter(|&(index, &value)| value != index * 10).collect();
        assert_eq!(all, [(5, &3), (200, &1)]);
    }
}
