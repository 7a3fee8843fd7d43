//! Timers of links, flows, channels and the control, on one wheel.

use isthmus_proto::time::Instant;
use isthmus_proto::timer::TimerWheel;
use slab::Slab;

use crate::Engine;
use crate::key::Key;

/// A timer that its owner sets again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(u32);

#[derive(Default)]
pub(crate) struct Timers {
    wheel: TimerWheel,
    owners: Slab<Key>,
    due: Vec<u32>,
}

impl Timers {
    pub(crate) fn add(&mut self, owner: Key) -> TimerId {
        TimerId(self.owners.insert(owner) as u32)
    }

    /// Names the owner afterwards, where the timer had to be there first.
    pub(crate) fn give(&mut self, id: TimerId, owner: Key) {
        if let Some(place) = self.owners.get_mut(id.0 as usize) {
            *place = owner;
        }
    }

    pub(crate) fn set(&mut self, id: TimerId, deadline: Instant) {
        self.wheel.set(id.0, deadline);
    }

    pub(crate) fn owner(&self, id: TimerId) -> Option<Key> {
        self.owners.get(id.0 as usize).copied()
    }

    pub(crate) fn remove(&mut self, id: TimerId) {
        self.wheel.cancel(id.0);
        self.owners.try_remove(id.0 as usize);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next_deadline()
    }

    /// Collects the owners whose time has come.
    pub(crate) fn expire(&mut self, now: Instant, owners: &mut Vec<(TimerId, Key)>) {
        self.due.clear();
        self.wheel.expire(now, &mut self.due);
        owners.extend(self.due.iter().filter_map(|&id| Some((TimerId(id), *self.owners.get(id as usize)?))));
    }
}

impl Engine {
    /// A timer of the control's own; it comes back as [`crate::Event::Timer`] with `number`.
    pub fn add_timer(&mut self, number: u32) -> TimerId {
        self.timers.add(Key::control(number))
    }

    /// Sets a timer, instead of what it was set to.
    pub fn set_timer(&mut self, id: TimerId, deadline: Instant) {
        self.timers.set(id, deadline);
    }

    /// Ends a timer.
    pub fn remove_timer(&mut self, id: TimerId) {
        self.timers.remove(id);
    }
}
