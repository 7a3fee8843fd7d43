//! Published ports: visitors need no software, and the relay asks the mediator on their behalf.

use std::net::SocketAddr;

use isthmus_engine::{Engine, FlowSpec, Key, TakenGuest};
use isthmus_proto::Code;
use isthmus_proto::door::proxy_protocol::{Ends, Transport, encode};
use isthmus_proto::link::{Link, Payload, Slot, UNSPECIFIED};
use isthmus_proto::wire::{OpenFlags, RequestKind};
use isthmus_ring::Socket;

use super::Shard;
use super::lead::{Visit, WhyNot, header_for, in_turn};
use super::record::Began;
use crate::admin::Counter;

/// How a visitor's port is opened: quietly, unless the answer tells how long the connect took.
pub(super) fn visitor_flags(timed: bool) -> OpenFlags {
    OpenFlags(if timed { 0 } else { OpenFlags::QUIET })
}

/// Asks for its connection, in the same way.
pub(super) fn connect_visitor<P: Payload>(machine: &mut Link<P>, slot: Slot, target: SocketAddr, timed: bool) {
    if timed {
        machine.connect(slot, 0, target, 0);
    } else {
        machine.connect_unanswered(slot, target);
    }
}

impl Shard {
    /// A TCP visitor: open, connect and its first bytes travel together, without waiting.
    pub(super) fn on_visitor(&mut self, engine: &mut Engine, tag: u32, socket: Socket, peer: SocketAddr) {
        let Some(published) = self.published.get(tag).filter(|published| !published.leaving) else {
            // Accepted in the moment in which it was unpublished.
            let _ = socket.set_reset_on_close();
            return;
        };
        if self.is_balancer(peer.ip()) {
            return self.add_newcomer(engine, tag, socket, peer);
        }
        if !published.publish.is_plain() {
            let guest = engine.place_guest(TakenGuest::new(socket), tag);
            return self.lead_published(engine, tag, guest, peer, None, 0);
        }
        let (id, target) = (published.publish.mediator.clone(), published.publish.target());
        let front_door = published.front_door();
        let Some(&link) = self.mediators.get(&id) else {
            self.counters.add(Counter::VisitorsRefusedAway, 1);
            tracing::debug!(mediator = %id, %peer, "visitor refused: the mediator is away");
            let _ = socket.set_reset_on_close();
            return;
        };
        let asker = self.asker(engine, link, &front_door);
        let timed = self.connects.is_timed();
        let now = engine.now();
        let overcommitted = engine.is_overcommitted();
        let Some(machine) = engine.link(link) else { return };
        let opened = if overcommitted {
            Err(Code::NoResources)
        } else {
            machine.open_as(asker, 0, 0, visitor_flags(timed), UNSPECIFIED, None, now)
        };
        let slot = match opened {
            Ok(slot) => slot,
            Err(code) => {
                self.counters.add(Counter::VisitorsRefusedLimit, 1);
                tracing::debug!(mediator = %id, %peer, reason = code.word(), "visitor refused");
                let _ = socket.set_reset_on_close();
                return;
            }
        };
        connect_visitor(machine, slot, target, timed);
        let stream = engine.add_stream(socket, link, slot, tag);
        if timed {
            self.connects.begin(stream, now);
        }
        self.recording.begin(stream, || Began::new(&front_door, &id, peer, target, now));
        engine.touch(link);
        self.counters.add(Counter::VisitorsTotal, 1);
        self.counters.add(Counter::VisitorsLive, 1);
        if let Some(published) = self.published.get_mut(tag) {
            published.visitors_total += 1;
            published.visitors_live += 1;
        }
    }

    /// A visitor who is led with more than the quick way can do: to one of several mediators, or with a header of whom
    /// it is from.
    pub(super) fn lead_published(
        &mut self,
        engine: &mut Engine,
        tag: u32,
        guest: Key,
        peer: SocketAddr,
        told: Option<Ends>,
        consumed: usize,
    ) {
        let Some(published) = self.published.get_mut(tag).filter(|published| !published.leaving) else {
            return engine.dismiss(guest, &[], true);
        };
        let left = in_turn(&published.publish.mediators(), published.turn);
        published.turn = published.turn.wrapping_add(1);
        let (target, proxy) = (published.publish.target(), published.publish.options.proxy);
        let visit = Visit {
            left,
            target: Some(target),
            name: None,
            route: None,
            speaks: None,
            visitor: told.map_or(peer, |ends| ends.source),
            ahead: header_for(engine, guest, proxy, peer, told),
            consumed,
            why_not: WhyNot::default(),
        };
        self.lead(engine, guest, tag, visit);
    }

    /// The mediator's answer to a visitor's connect.
    pub(super) fn on_visitor_answer(
        &mut self,
        engine: &mut Engine,
        stream: Key,
        to: RequestKind,
        code: Code,
        over: bool,
    ) {
        if to == RequestKind::Connect
            && let Some(begun) = self.connects.end(stream).filter(|_| code.is_ok())
        {
            self.observe_connect(engine, begun);
        }
        if over {
            self.counters.add(Counter::ConnectFailed, 1);
            tracing::debug!(reason = code.word(), "visitor's connection failed");
            engine.drop_stream(self, stream, code);
        }
    }

    pub(super) fn on_visitor_ended(&mut self, engine: &mut Engine, tag: u32, _code: Code) {
        self.counters.sub(Counter::VisitorsLive, 1);
        if let Some(published) = self.published.get_mut(tag) {
            published.visitors_live -= 1;
            self.forget_if_over(engine, tag);
        }
    }

    /// The first datagram of a UDP visitor: a port of its own on the mediator.
    pub(super) fn on_new_flow(&mut self, engine: &mut Engine, socket: Key, tag: u32, visitor: SocketAddr) {
        let limit = self.shared.config.udp_flows_max as usize;
        if engine.flows_of(socket) >= limit || engine.is_overcommitted() {
            return;
        }
        let Some(published) = self.published.get_mut(tag).filter(|published| !published.leaving) else { return };
        let (id, target) = (published.publish.mediator.clone(), published.publish.target());
        let front_door = published.front_door();
        let (listen, proxy) = (published.publish.listen, published.publish.options.proxy);
        let Some(&link) = self.mediators.get(&id) else {
            self.counters.add(Counter::VisitorsRefusedAway, 1);
            return;
        };
        let asker = self.asker(engine, link, &front_door);
        let now = engine.now();
        let Some(machine) = engine.link(link) else { return };
        let flags = OpenFlags(OpenFlags::UDP | OpenFlags::REDIRECT | OpenFlags::FALLBACK);
        match machine.open_as(asker, 0, 0, flags, UNSPECIFIED, Some(target), now) {
            Ok(slot) => {
                let ends = Ends { source: visitor, target: listen };
                let ahead = proxy.map_or_else(Vec::new, |version| encode(version, Transport::Datagram, ends)).into();
                let flow = engine.add_flow(FlowSpec { socket, visitor, link, slot, target, ahead });
                self.recording.begin(flow, || Began::new(&front_door, &id, visitor, target, now));
                engine.touch(link);
                self.counters.add(Counter::FlowsTotal, 1);
                self.counters.add(Counter::FlowsLive, 1);
                if let Some(published) = self.published.get_mut(tag) {
                    published.flows_total += 1;
                    published.flows_live += 1;
                }
            }
            Err(code) => {
                self.counters.add(Counter::VisitorsRefusedLimit, 1);
                tracing::debug!(mediator = %id, %visitor, reason = code.word(), "UDP visitor refused");
            }
        }
    }

    pub(super) fn on_flow_answer(&mut self, engine: &mut Engine, flow: Key, code: Code, over: bool) {
        if over {
            self.counters.add(Counter::ConnectFailed, 1);
            tracing::debug!(reason = code.word(), "UDP visitor's port failed");
            engine.end_flow(self, flow, false);
        } else {
            engine.flow_opened(flow);
        }
    }

    pub(super) fn on_flow_ended(&mut self, engine: &mut Engine, tag: u32) {
        self.counters.sub(Counter::FlowsLive, 1);
        if let Some(published) = self.published.get_mut(tag) {
            published.flows_live -= 1;
            self.forget_if_over(engine, tag);
        }
    }
}
