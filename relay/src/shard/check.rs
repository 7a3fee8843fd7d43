//! `check tunnels`: an operation through each tunnel. A port is opened on each mediator and, once it has answered,
//! closed again; a mediator needs to do nothing for it but to be there and to hold the right keys.

use isthmus_engine::{Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::link::{Slot, UNSPECIFIED};
use isthmus_proto::wire::{OpenFlags, RequestKind};

use super::Shard;
use crate::admin::Counter;

/// The ports' owner: of all ports of the relay, these alone belong to the shard itself.
const OWNER: Key = Key::control(1);

/// Checks that wait for their answers at a time: few enough that traffic goes on beside them.
const WAITING_MAX: usize = 512;

/// A shard's round.
#[derive(Default)]
pub(super) struct Checks {
    /// Links still to be asked.
    left: Vec<Key>,
    waiting: usize,
}

impl Checks {
    /// Whether the next turn has to come at once.
    pub(super) fn has_work(&self) -> bool {
        !self.left.is_empty() && self.waiting < WAITING_MAX
    }
}

impl Shard {
    /// Begins a round, unless one goes on; gives the number of tunnels that it is about.
    pub(super) fn begin_checks(&mut self) -> Option<usize> {
        if !self.checks.left.is_empty() || self.checks.waiting > 0 {
            return None;
        }
        self.checks.left = self.mediators.values().copied().collect();
        Some(self.checks.left.len())
    }

    /// Asks as many as may wait.
    pub(super) fn go_on_checking(&mut self, engine: &mut Engine) {
        let now = engine.now();
        while self.checks.has_work() {
            let Some(link) = self.checks.left.pop() else { break };
            self.counters.add(Counter::ChecksAsked, 1);
            // It is gone, or has all the ports that it may have.
            let opened = engine
                .link(link)
                .and_then(|machine| machine.open(OWNER.to_bits(), 0, OpenFlags(0), UNSPECIFIED, None, now).ok());
            match opened {
                Some(_) => {
                    self.checks.waiting += 1;
                    engine.touch(link);
                }
                None => self.counters.add(Counter::ChecksFailed, 1),
            }
        }
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
        self.end_check(code.is_ok());
        if code.is_ok()
            && let Some(machine) = engine.link(link)
        {
            // From now on its end is no news.
            machine.set_owner(slot, Key::control(0).to_bits());
            machine.close(slot, 0);
            engine.touch(link);
        }
    }

    /// A port of the shard's own ended with its tunnel.
    pub(super) fn on_check_ended(&mut self, owner: Key) {
        if owner == OWNER {
            self.end_check(false);
        }
    }

    fn end_check(&mut self, answered: bool) {
        self.checks.waiting = self.checks.waiting.saturating_sub(1);
        self.counters.add(if answered { Counter::ChecksAnswered } else { Counter::ChecksFailed }, 1);
    }
}
