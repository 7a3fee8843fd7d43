//! On whose behalf the mediator is asked: each name is told it once per tunnel, and then meant by a number.

use std::collections::HashMap;

use isthmus_engine::{Engine, Key};
use isthmus_proto::wire::Frame;

use super::{Party, Shard};

/// Names that a mediator keeps of one tunnel. The next one takes the place of the oldest.
pub(super) const ASKERS_MAX: u16 = 1024;

/// Longest name in bytes.
const NAME_LEN_MAX: usize = 128;

/// The names that a mediator was told, with their numbers from 1 on.
#[derive(Debug, Default)]
pub(super) struct Askers {
    numbers: HashMap<Box<str>, u16>,
    /// By number less one.
    names: Vec<Box<str>>,
    next: u16,
}

impl Askers {
    /// The number of a name, and whether the mediator must be told it first.
    fn number(&mut self, name: &str) -> (u16, bool) {
        if let Some(&number) = self.numbers.get(name) {
            return (number, false);
        }
        let place = usize::from(self.next);
        self.next = (self.next + 1) % ASKERS_MAX;
        let number = place as u16 + 1;
        match self.names.get_mut(place) {
            Some(before) => {
                self.numbers.remove(before);
                *before = name.into();
            }
            None => self.names.push(name.into()),
        }
        self.numbers.insert(name.into(), number);
        (number, true)
    }
}

impl Shard {
    /// The number that stands for `name` in an open on this tunnel; the mediator's audit shows the name.
    pub(super) fn asker(&mut self, engine: &mut Engine, tunnel: Key, name: &str) -> u16 {
        let mut end = name.len().min(NAME_LEN_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let name = &name[..end];
        let Some(Party::Tunnel(entry)) = self.links.get_mut(&tunnel) else { return 0 };
        let (number, new) = entry.askers.get_or_insert_default().number(name);
        if new && let Some(machine) = engine.link(tunnel) {
            machine.control().push(&Frame::Asker { asker: number, name });
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_once_and_the_oldest_makes_room() {
        let mut askers = Askers::default();
        assert_eq!(askers.number("a"), (1, true));
        assert_eq!(askers.number("b"), (2, true));
        assert_eq!(askers.number("a"), (1, false));
        for n in 2..ASKERS_MAX {
            assert_eq!(askers.number(&n.to_string()), (n + 1, true));
        }
        assert_eq!(askers.number("over"), (1, true));
        assert_eq!(askers.number("b"), (2, false));
        assert_eq!(askers.number("a"), (2, true));
        assert_eq!(askers.numbers.len(), usize::from(ASKERS_MAX));
    }
}
