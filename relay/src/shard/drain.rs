//! Draining while the relay runs, before work on its machine: tunnels are told to go bit by bit, and mediators that come are
//! sent away, until an operator ends it. Those that dial a name of several relays go to another one.

use std::time::Duration;

use isthmus_engine::{Engine, Key, TimerId};
use isthmus_proto::Code;
use isthmus_proto::time::Instant;

use super::Shard;
use crate::admin::Counter;

/// The number of the timer of the next ones to go.
pub(super) const TIMER_DRAIN: u32 = 0x6472_6169;

/// Between two of its steps.
const STEP: Duration = Duration::from_millis(250);

/// A mediator that is sent away comes back between half of this and this later: nobody knows when the draining ends.
const BACK_MS: u64 = 30_000;

pub(super) struct Drain {
    timer: TimerId,
    /// While it goes on: when the last tunnel should have gone.
    end: Option<Instant>,
}

impl Drain {
    pub(super) fn new(engine: &mut Engine) -> Self {
        Self { timer: engine.add_timer(TIMER_DRAIN), end: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.end.is_some()
    }
}

impl Shard {
    /// Begins, or goes on at another pace; tells how many tunnels there are to go.
    pub(super) fn drain(&mut self, engine: &mut Engine, over: Duration) -> usize {
        self.drain.end = Some(engine.now() + over);
        self.counters.set(Counter::Draining, 1);
        engine.set_timer(self.drain.timer, engine.now());
        self.mediators.len()
    }

    /// Ends it; tells whether there was one.
    pub(super) fn undrain(&mut self) -> bool {
        self.counters.set(Counter::Draining, 0);
        self.drain.end.take().is_some()
    }

    /// Some go, so that the last ones go at the end.
    pub(super) fn on_drain_timer(&mut self, engine: &mut Engine) {
        let Some(end) = self.drain.end else { return };
        let left = self.mediators.len();
        let steps = end.since(engine.now()).as_millis() / STEP.as_millis() + 1;
        let count = left.div_ceil(usize::try_from(steps).unwrap_or(usize::MAX));
        let links: Vec<Key> = self.mediators.values().copied().take(count).collect();
        for link in links {
            // At once: there may be another relay, and this one says how long to wait if there is none.
            engine.farewell(link, Code::Draining, 0, "the relay is drained by its operator");
            engine.end_link_after_farewell(self, link, Code::Draining);
        }
        if left > count {
            engine.set_timer(self.drain.timer, engine.now() + STEP);
        }
    }

    /// How long a mediator that comes meanwhile is to wait; `instance` is its own, so that they spread.
    pub(super) fn drained_wait(instance: u64) -> Duration {
        let spread = instance.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Duration::from_millis(BACK_MS / 2 + spread % (BACK_MS / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_sent_away_come_back_spread_and_within_their_time() {
        let waits: Vec<u64> = (1..1000).map(|instance| Shard::drained_wait(instance).as_millis() as u64).collect();
        assert!(waits.iter().all(|wait| (BACK_MS / 2..BACK_MS).contains(wait)));
        let early = waits.iter().filter(|&&wait| wait < BACK_MS * 3 / 4).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
