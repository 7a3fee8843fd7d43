//! A guest's way to the mediator that it is for, which may live on another shard: then the connection, with what was
//! read of it and what is to become of it, moves there once, by a message. From then on nothing of it is here.
//!
//! Any door that reads a connection's first bytes before it knows the mediator goes this way: it makes a [`Visit`]
//! within the handling of the guest's bytes and calls [`Shard::lead`]. Where several mediators share the visitors, one
//! that is away hands the visit on to the next.

use std::net::SocketAddr;

use isthmus_engine::{Engine, Key};
use isthmus_proto::door::name::{HostName, Refusal, Speaks, refusal};
use isthmus_proto::door::proxy_protocol::{self, Ends, Transport, Version};
use isthmus_proto::link::UNSPECIFIED;
use isthmus_proto::{MediatorId, ShardId};

use super::Shard;
use super::handover::Message;
use super::record::Began;
use super::visitor::{connect_visitor, visitor_flags};
use crate::admin::Counter;
use crate::names::Pattern;

/// What a guest wants.
#[derive(Debug)]
pub(super) struct Visit {
    /// Mediators still to be tried, the next one last.
    pub(super) left: Vec<MediatorId>,
    /// The host there; `None` for the one that the mediator offers under `name`.
    pub(super) target: Option<SocketAddr>,
    /// The name that was asked for, if that is how it came here.
    pub(super) name: Option<HostName>,
    /// The route that the name took, as the operator wrote its names: the mediator's audit shows this, since a visitor
    /// would choose the other.
    pub(super) route: Option<Pattern>,
    /// How to turn it away in its own words; `None` for a reset.
    pub(super) speaks: Option<Speaks>,
    /// Who comes, for the log.
    pub(super) visitor: SocketAddr,
    /// What the host gets before the guest's own bytes.
    pub(super) ahead: Vec<u8>,
    /// How many of the guest's first bytes were not for the host.
    pub(super) consumed: usize,
    /// Why the mediators tried so far did not take it.
    pub(super) why_not: WhyNot,
}

/// Why a guest is turned away; a later one counts more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WhyNot {
    /// No mediator of its is connected.
    #[default]
    Away,
    /// One is, and offers nothing of that name.
    NotOffered,
    /// One is, at a limit.
    Limit,
}

/// The header by which a host is told whom a guest is from, or nothing. `told` is what a load balancer said.
pub(super) fn header_for(
    engine: &Engine,
    guest: Key,
    version: Option<Version>,
    peer: SocketAddr,
    told: Option<Ends>,
) -> Vec<u8> {
    let Some(version) = version else { return Vec::new() };
    // Without an address of its own the connection is gone already.
    let ends = told.or_else(|| Some(Ends { source: peer, target: engine.guest_local_addr(guest)? }));
    ends.map_or_else(Vec::new, |ends| proxy_protocol::encode(version, Transport::Stream, ends))
}

impl Shard {
    /// Leads a guest to the first of its mediators that takes it. The guest must be at rest: see
    /// [`Engine::take_guest`].
    pub(super) fn lead(&mut self, engine: &mut Engine, guest: Key, tag: u32, mut visit: Visit) {
        while let Some(id) = visit.left.last() {
            let owner = id.shard(self.peers.len());
            if owner != self.seat.id {
                return self.lead_on(engine, guest, tag, owner, visit);
            }
            match self.join(engine, guest, tag, id, &visit) {
                Ok(()) => return,
                Err(why) => visit.why_not = visit.why_not.max(why),
            }
            visit.left.pop();
        }
        self.turn_away(engine, guest, &visit);
    }

    fn lead_on(&mut self, engine: &mut Engine, guest: Key, tag: u32, owner: ShardId, visit: Visit) {
        let Some(taken) = engine.take_guest(guest) else {
            let visit = Visit { why_not: WhyNot::Limit, ..visit };
            return self.turn_away(engine, guest, &visit);
        };
        if let Some(published) = self.published.get_mut(tag) {
            published.visitors_total += 1;
        }
        if self.send(owner, Message::Visit { taken, visit: Box::new(visit) }).is_err() {
            // The message was dropped, and the connection with it.
            self.counters.add(Counter::VisitorsRefusedLimit, 1);
        }
    }

    /// A port of the mediator's for the guest: open, connect and the first bytes travel together.
    fn join(
        &mut self,
        engine: &mut Engine,
        guest: Key,
        tag: u32,
        id: &MediatorId,
        visit: &Visit,
    ) -> Result<(), WhyNot> {
        let (link, tunnel) = self.tunnel_of(id).ok_or(WhyNot::Away)?;
        let offered = || visit.name.as_ref().and_then(|name| tunnel.offered(name));
        let target = visit.target.or_else(offered).ok_or(WhyNot::NotOffered)?;
        if engine.is_overcommitted() {
            return Err(WhyNot::Limit);
        }
        let front_door = match (&visit.route, self.published.get(tag)) {
            (Some(route), _) => format!("name {route}"),
            (None, Some(published)) => published.front_door(),
            // It came in by another shard.
            (None, None) => "published".to_owned(),
        };
        let asker = self.asker(engine, link, &front_door);
        let timed = self.connects.is_timed();
        let now = engine.now();
        let machine = engine.link(link).ok_or(WhyNot::Away)?;
        let opened = machine.open_as(asker, 0, 0, visitor_flags(timed), UNSPECIFIED, None, now);
        let slot = opened.map_err(|_| WhyNot::Limit)?;
        connect_visitor(machine, slot, target, timed);
        let stream = engine.admit(guest, link, slot, tag, visit.consumed, &visit.ahead);
        if let Some(stream) = stream {
            self.recording.begin(stream, || Began::new(&front_door, id, visit.visitor, target, now));
            if timed {
                self.connects.begin(stream, now);
            }
        }
        engine.touch(link);
        tracing::debug!(
            mediator = %id, visitor = %visit.visitor, name = visit.name.as_ref().map(tracing::field::display), %target,
            "visitor led"
        );
        self.counters.add(Counter::VisitorsTotal, 1);
        self.counters.add(Counter::VisitorsLive, 1);
        self.counters.add(Counter::NamesLed, u64::from(visit.name.is_some()));
        if let Some(published) = self.published.get_mut(tag) {
            published.visitors_total += 1;
            published.visitors_live += 1;
        }
        Ok(())
    }

    fn turn_away(&mut self, engine: &mut Engine, guest: Key, visit: &Visit) {
        let (counter, why) = match visit.why_not {
            WhyNot::Away => (Counter::VisitorsRefusedAway, Refusal::Away),
            WhyNot::NotOffered => (Counter::NamesUnknown, Refusal::UnknownName),
            WhyNot::Limit => (Counter::VisitorsRefusedLimit, Refusal::Away),
        };
        self.counters.add(counter, 1);
        tracing::debug!(
            visitor = %visit.visitor, name = visit.name.as_ref().map(tracing::field::display), reason = ?visit.why_not,
            "visitor turned away"
        );
        match visit.speaks {
            Some(speaks) => engine.dismiss(guest, refusal(speaks, why), false),
            None => engine.dismiss(guest, &[], true),
        }
    }
}

/// Several mediators in the order in which this visitor tries them, the first one last.
pub(super) fn in_turn(ids: &[MediatorId], turn: u32) -> Vec<MediatorId> {
    let start = turn as usize % ids.len().max(1);
    let (before, from) = ids.split_at(start);
    from.iter().chain(before).rev().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_turn_begins_with_the_next_mediator_and_tries_all() {
        let ids: Vec<MediatorId> = ["a", "b", "c"].map(|id| id.parse().unwrap()).into();
        let order = |turn| in_turn(&ids, turn).iter().rev().map(|id| id.as_str().to_owned()).collect::<String>();
        assert_eq!([0, 1, 2, 3].map(order), ["abc", "bca", "cab", "abc"]);
        assert!(in_turn(&[], 7).is_empty());
    }
}
