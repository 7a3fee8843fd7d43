//! `check tunnels`: an operation through each tunnel. A port is opened on each mediator and, once it has answered,
//! closed again; a mediator needs to do nothing for it but to be there and to hold the right keys.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_engine::{Engine, Key, TimerId};
use isthmus_proto::Code;
use isthmus_proto::link::{Slot, UNSPECIFIED};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{OpenFlags, RequestKind};

use super::Shard;
use crate::admin::Counter;

/// The ports' owner: of all ports of the relay, these alone belong to the shard itself.
const OWNER: Key = Key::control(1);

/// The number of the timer of what has not been answered.
pub(super) const TIMER_CHECKS: u32 = 0x6368_6563;

/// Checks that wait for their answers at a time: few enough that traffic goes on beside them.
const WAITING_MAX: usize = 512;

/// Longest round: a million tunnels of which none answers are not waited for.
const ROUND_MAX: Duration = Duration::from_secs(120);

/// A shard's round.
pub(super) struct Checks {
    /// Links still to be asked.
    left: Vec<Key>,
    /// Those that have not answered, in the order of asking: each has a port, and a time by which to answer.
    waiting: VecDeque<(Instant, Key, Slot)>,
    /// How long each may take to answer.
    within: Duration,
    /// When the round ends at the latest.
    end: Instant,
    timer: TimerId,
    /// What was counted is not shown yet.
    news: bool,
}

impl Checks {
    pub(super) fn new(engine: &mut Engine) -> Self {
        let timer = engine.add_timer(TIMER_CHECKS);
        Self {
            left: Vec::new(),
            waiting: VecDeque::new(),
            within: Duration::ZERO,
            end: Instant::ZERO,
            timer,
            news: false,
        }
    }

    /// Whether the next turn has to come at once.
    pub(super) fn has_work(&self) -> bool {
        self.may_ask() || self.news
    }

    fn may_ask(&self) -> bool {
        !self.left.is_empty() && self.waiting.len() < WAITING_MAX
    }
}

impl Shard {
    /// Begins a round, unless one goes on; gives the number of tunnels that it is about.
    pub(super) fn begin_checks(&mut self, engine: &mut Engine, within: Duration) -> Option<usize> {
        if !self.checks.left.is_empty() || !self.checks.waiting.is_empty() {
            return None;
        }
        self.checks.left = self.mediators.values().copied().collect();
        self.checks.within = within;
        self.checks.end = engine.now() + ROUND_MAX;
        Some(self.checks.left.len())
    }

    /// Asks as many as may wait.
    pub(super) fn go_on_checking(&mut self, engine: &mut Engine) {
        self.checks.news = false;
        let now = engine.now();
        let deadline = now + self.checks.within;
        let idle = self.checks.waiting.is_empty();
        while self.checks.may_ask() {
            let Some(link) = self.checks.left.pop() else { break };
            self.counters.add(Counter::ChecksAsked, 1);
            // It is gone, or has all the ports that it may have.
            let opened = engine
                .link(link)
                .and_then(|machine| machine.open(OWNER.to_bits(), 0, OpenFlags(0), UNSPECIFIED, None, now).ok());
            match opened {
                Some(slot) => {
                    self.checks.waiting.push_back((deadline, link, slot));
                    engine.touch(link);
                }
                None => self.counters.add(Counter::ChecksFailed, 1),
            }
        }
        if idle {
            self.arm_checks(engine);
        }
    }

    /// Waits for the oldest answer's time.
    fn arm_checks(&mut self, engine: &mut Engine) {
        if let Some(&(deadline, ..)) = self.checks.waiting.front() {
            engine.set_timer(self.checks.timer, deadline);
        }
    }

    /// Gives up those whose time is over, and at the round's end those that were not asked.
    pub(super) fn on_checks_timer(&mut self, engine: &mut Engine) {
        let now = engine.now();
        while let Some(&(deadline, link, slot)) = self.checks.waiting.front()
            && deadline <= now
        {
            self.checks.waiting.pop_front();
            self.counters.add(Counter::ChecksUnanswered, 1);
            close(engine, link, slot);
        }
        if self.checks.end <= now {
            self.counters.add(Counter::ChecksSkipped, std::mem::take(&mut self.checks.left).len() as u64);
        }
        self.checks.news = true;
        self.arm_checks(engine);
    }

    /// A mediator's answer about a port of a check.
    pub(super) fn on_check_answer(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        owner: Key,
        to: RequestKind,
        code: Code,
    ) {
        if owner != OWNER || to != RequestKind::Open {
            return;
        }
        self.end_check(link, code.is_ok());
        if code.is_ok() {
            close(engine, link, slot);
        }
    }

    /// A port of the shard's own ended with its tunnel.
    pub(super) fn on_check_ended(&mut self, link: Key, owner: Key) {
        if owner == OWNER {
            self.end_check(link, false);
        }
    }

    fn end_check(&mut self, link: Key, answered: bool) {
        // Each link has one, and the oldest answer first.
        if let Some(place) = self.checks.waiting.iter().position(|&(_, waiting, _)| waiting == link) {
            self.checks.waiting.remove(place);
            self.counters.add(if answered { Counter::ChecksAnswered } else { Counter::ChecksFailed }, 1);
        }
    }
}

fn close(engine: &mut Engine, link: Key, slot: Slot) {
    if let Some(machine) = engine.link(link) {
        // From now on its end is no news.
        machine.set_owner(slot, Key::control(0).to_bits());
        machine.close(slot, 0);
        engine.touch(link);
    }
}
