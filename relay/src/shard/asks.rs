//! Mediators that ask for ports and names of the relay: whose asks have changed, and for how long one that is away keeps
//! what it has.
//!
//! The shard decides nothing and binds nothing. It keeps the names of those whose asks the management plane has to look
//! at, and wakes it; what they ask for stands in their reports.

use std::collections::{BTreeSet, HashMap};

use isthmus_engine::{Engine, TimerId};
use isthmus_proto::MediatorId;
use isthmus_proto::time::Instant;
use isthmus_proto::wire::Frame;

use super::Shard;
use crate::admin::{Asking, Counter, Told};
use crate::trust::{Credential, Holder, Trust, unix_now};

/// The number of the timer of the next one that was away too long.
pub(super) const TIMER_AWAY: u32 = 0x6173_6b73;

/// Most mediators that the management plane takes at a time: their reports are read within a turn.
const TAKEN_MAX: usize = 64;

pub(super) struct Asks {
    /// Those who ask for something, or did when the management plane looked last.
    known: HashMap<MediatorId, Option<Away>>,
    /// Those that it has to look at.
    changed: BTreeSet<MediatorId>,
    /// Those that are away, by when they lose what they have.
    ends: BTreeSet<(Instant, MediatorId)>,
    timer: TimerId,
}

/// A mediator that is not connected, but keeps what it has.
#[derive(Clone, Copy)]
struct Away {
    until: Instant,
    /// By what right it was here last.
    proof: Credential,
}

impl Away {
    fn is_good(&self, id: &MediatorId, trust: &Trust) -> bool {
        trust.still(Holder::Mediator, id.as_str(), &self.proof, unix_now()).is_ok()
    }
}

impl Asks {
    pub(super) fn new(engine: &mut Engine) -> Self {
        let (known, changed, ends) = Default::default();
        Self { known, changed, ends, timer: engine.add_timer(TIMER_AWAY) }
    }

    /// It is away no more, or has nothing more to lose.
    fn forget_away(&mut self, id: &MediatorId) {
        if let Some(Some(away)) = self.known.get(id) {
            self.ends.remove(&(away.until, id.clone()));
        }
    }

    fn arm(&self, engine: &mut Engine) {
        if let Some(&(first, _)) = self.ends.first() {
            engine.set_timer(self.timer, first);
        }
    }
}

impl Shard {
    fn look_at_asks(&mut self, id: MediatorId) {
        self.asks.changed.insert(id);
        self.seat.asking.notify_one();
    }

    /// A mediator has come, or told anew, with asks or without.
    pub(super) fn note_asks(&mut self, id: &MediatorId, any: bool) {
        if !any && !self.asks.known.contains_key(id) {
            return;
        }
        self.asks.forget_away(id);
        self.asks.known.insert(id.clone(), None);
        self.look_at_asks(id.clone());
    }

    /// A mediator has gone: it keeps what it has for a while, if only its right has not ended.
    pub(super) fn hold_asked(&mut self, engine: &mut Engine, id: &MediatorId, proof: Credential) {
        if !self.asks.known.contains_key(id) {
            return;
        }
        let away = Away { until: engine.now() + self.shared.config.ask_hold, proof };
        if self.stopping || !away.is_good(id, &self.trust) {
            return self.drop_asked(id);
        }
        self.asks.known.insert(id.clone(), Some(away));
        self.asks.ends.insert((away.until, id.clone()));
        self.asks.arm(engine);
    }

    fn drop_asked(&mut self, id: &MediatorId) {
        self.asks.forget_away(id);
        self.asks.known.remove(id);
        self.look_at_asks(id.clone());
    }

    pub(super) fn on_away_timer(&mut self, engine: &mut Engine) {
        let now = engine.now();
        while let Some((until, id)) = self.asks.ends.first().cloned()
            && until <= now
        {
            self.asks.ends.pop_first();
            self.drop_asked(&id);
        }
        self.asks.arm(engine);
    }

    /// What is trusted has changed: those who are away, too, lose what they have with their right.
    pub(super) fn drop_untrusted_asked(&mut self) {
        let bad = |(id, away): (&MediatorId, &Option<Away>)| {
            away.is_some_and(|away| !away.is_good(id, &self.trust)).then(|| id.clone())
        };
        let bad: Vec<MediatorId> = self.asks.known.iter().filter_map(bad).collect();
        for id in bad {
            self.drop_asked(&id);
        }
    }

    /// Those whose asks have changed, and whether there are more.
    pub(super) fn take_asks(&mut self) -> (Vec<Asking>, bool) {
        let mut taken = Vec::new();
        while taken.len() < TAKEN_MAX
            && let Some(mediator) = self.asks.changed.pop_first()
        {
            let here = self.tunnel_of(&mediator).map(|(_, tunnel)| (tunnel.session, tunnel.report.unpack().asks));
            let (session, asks) = match here {
                Some((session, asks)) => (Some(session), asks),
                // It has gone in the meantime, and keeps what it has.
                None if self.asks.known.contains_key(&mediator) => continue,
                None => (None, Vec::new()),
            };
            if session.is_some() && asks.is_empty() {
                self.asks.known.remove(&mediator);
            }
            taken.push(Asking { mediator, session, asks });
        }
        (taken, !self.asks.changed.is_empty())
    }

    /// Nobody took them.
    pub(super) fn put_asks_back(&mut self, taken: Vec<Asking>) {
        self.asks.changed.extend(taken.into_iter().map(|asking| asking.mediator));
    }

    /// Tells a mediator what became of what it asks for, unless it has gone or come anew.
    pub(super) fn tell_outcomes(&mut self, engine: &mut Engine, told: &Told) {
        self.counters.add(Counter::AsksGranted, told.granted);
        self.counters.add(Counter::AsksRefused, told.refused);
        let Some((link, tunnel)) = self.tunnel_of(&told.mediator) else { return };
        if tunnel.session == told.session
            && let Some(machine) = engine.link(link)
        {
            machine.control().push(&Frame::Outcomes { json: &told.json });
            engine.touch(link);
        }
    }
}
