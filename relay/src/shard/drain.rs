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

/// Most that go in one turn of the loop, and the least time to the next ones: everybody else goes on being served.
const STEP_MAX: usize = 64;
const BETWEEN: Duration = Duration::from_millis(5);

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

/// How many go now of those that are left, and when the next ones, so that the last ones go at the end of `time`.
fn pace(left: usize, time: Duration) -> (usize, Duration) {
    let steps = usize::try_from(time.as_millis() / STEP.as_millis() + 1).unwrap_or(usize::MAX);
    if left < steps {
        return (left.min(1), time / u32::try_from(left.max(1)).unwrap_or(u32::MAX));
    }
    match left.div_ceil(steps) {
        count if count > STEP_MAX => (STEP_MAX, BETWEEN),
        count => (count, STEP),
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
        let (count, wait) = pace(left, end.since(engine.now()));
        let links: Vec<Key> = self.mediators.values().copied().take(count).collect();
        for link in links {
            // At once: there may be another relay, and this one says how long to wait if there is none.
            engine.farewell(link, Code::Draining, 0, "the relay is drained by its operator");
            engine.end_link_after_farewell(self, link, Code::Draining);
        }
        if left > count {
            engine.set_timer(self.drain.timer, engine.now() + wait);
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
    fn they_go_evenly_within_the_time_and_never_too_many_at_once() {
        for (tunnels, seconds) in [(1usize, 60), (10, 300), (300, 300), (5000, 60), (15_000, 1), (1000, 0)] {
            let over = Duration::from_secs(seconds);
            let (mut left, mut at, mut half_way) = (tunnels, Duration::ZERO, None);
            while left > 0 {
                let (count, wait) = pace(left, over.saturating_sub(at));
                assert!((1..=STEP_MAX).contains(&count), "{tunnels} in {over:?}");
                left -= count;
                if left * 2 <= tunnels {
                    half_way.get_or_insert(at);
                }
                at += wait;
            }
            let least = Duration::from_millis(5) * (tunnels / STEP_MAX) as u32;
            assert!(at <= over.max(least) + 2 * STEP, "{tunnels} in {over:?}: {at:?}");
            if tunnels > 1 && over > least {
                let half = half_way.unwrap_or_default().as_secs_f64() / over.as_secs_f64();
                assert!((0.35..0.65).contains(&half), "{tunnels} in {over:?}: half of them after {half}");
            }
        }
    }

    #[test]
    fn those_sent_away_come_back_spread_and_within_their_time() {
        let waits: Vec<u64> = (1..1000).map(|instance| Shard::drained_wait(instance).as_millis() as u64).collect();
        assert!(waits.iter().all(|wait| (BACK_MS / 2..BACK_MS).contains(wait)));
        let early = waits.iter().filter(|&&wait| wait < BACK_MS * 3 / 4).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
