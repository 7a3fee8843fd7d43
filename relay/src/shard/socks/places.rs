//! Places of clients that stay: associations and servers hold a connection, and a socket or a port, for as long as they
//! like. They are counted apart from clients that greet, so that those who stay shut nobody else out, and by the name of
//! whoever they belong to, so that one token cannot take them all.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Those of a shard.
const PLACES_MAX: usize = 4096;

/// Those of one terminal's name on a shard; all clients of an open port are one name.
const PLACES_EACH_MAX: usize = 1024;

/// The places taken on a shard.
#[derive(Default)]
pub(super) struct Places(Rc<RefCell<Taken>>);

#[derive(Default)]
struct Taken {
    all: usize,
    of: HashMap<Rc<str>, usize>,
}

/// A place, free again when this is dropped.
pub(super) struct Place {
    taken: Rc<RefCell<Taken>>,
    holder: Rc<str>,
}

impl Places {
    /// A place for one more client of `holder`, unless the shard or the holder has too many.
    pub(super) fn take(&self, holder: &str) -> Option<Place> {
        let mut taken = self.0.borrow_mut();
        if taken.all >= PLACES_MAX || taken.of.get(holder).is_some_and(|&count| count >= PLACES_EACH_MAX) {
            return None;
        }
        let holder = taken.of.get_key_value(holder).map_or_else(|| Rc::from(holder), |(known, _)| known.clone());
        *taken.of.entry(holder.clone()).or_default() += 1;
        taken.all += 1;
        Some(Place { taken: self.0.clone(), holder })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.borrow_mut();
        taken.all -= 1;
        if let Some(count) = taken.of.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.of.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_leaves_places_to_others_and_all_are_bounded() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..PLACES_EACH_MAX).map_while(|_| places.take("a")).collect();
        assert_eq!(held.len(), PLACES_EACH_MAX);
        assert!(places.take("a").is_none());
        for n in 0..PLACES_MAX - PLACES_EACH_MAX {
            held.push(places.take(&(n % 7).to_string()).unwrap());
        }
        assert!(places.take("b").is_none());
        held.remove(0);
        assert!(places.take("b").is_some());
        assert!(places.take("a").is_some());
        held.clear();
        assert_eq!((places.0.borrow().all, places.0.borrow().of.len()), (0, 0));
    }
}
