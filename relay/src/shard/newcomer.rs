//! Newcomers: visitors of whom something has to be read before they are led anywhere. A load balancer in front tells
//! by a PROXY header whom a connection is from; a visitor of a name listener names the host in its first message.
//!
//! Only the listed addresses (`--proxy-from`) are believed, and they have to send the header: were it optional, whoever
//! a load balancer lets through unchanged could write one. From everybody else such bytes are the visitor's own.

use std::net::{IpAddr, SocketAddr};

use isthmus_engine::{Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::door::name::{self, Asked, BadStart, Refusal, Speaks, refusal};
use isthmus_proto::door::proxy_protocol::{self, Ends};
use isthmus_ring::Socket;

use super::Shard;
use super::lead::{Visit, WhyNot, header_for, in_turn};
use super::tag::Door;
use crate::admin::Counter;
use crate::names::Toward;

/// What is known of a newcomer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    peer: SocketAddr,
    /// Its PROXY header is still to come.
    awaited: bool,
    /// What that told.
    told: Option<Ends>,
}

impl Shard {
    /// Whether connections from here begin with a PROXY header.
    pub(super) fn is_balancer(&self, address: IpAddr) -> bool {
        self.shared.config.proxy_from.iter().any(|net| net.contains(&address))
    }

    /// Takes a connection of which something has to be read.
    pub(super) fn add_newcomer(&mut self, engine: &mut Engine, tag: u32, socket: Socket, peer: SocketAddr) {
        let config = &self.shared.config;
        let limit = (config.half_open_max as usize).div_ceil(self.peers.len().max(1));
        if self.stopping || self.newcomers.len() >= limit {
            self.counters.add(Counter::VisitorsRefusedLimit, 1);
            let _ = socket.set_reset_on_close();
            return;
        }
        let guest = engine.add_guest(socket, tag, config.handshake_timeout);
        let awaited = self.is_balancer(peer.ip());
        self.newcomers.insert(guest, Newcomer { peer, awaited, told: None });
    }

    pub(super) fn on_newcomer_bytes(&mut self, engine: &mut Engine, guest: Key, tag: u32, ended: bool) {
        let Some(&(mut newcomer)) = self.newcomers.get(&guest) else { return };
        let mut header = 0;
        if newcomer.awaited {
            match proxy_protocol::decode(engine.guest_bytes(guest)) {
                Ok(Some(read)) => {
                    header = read.length;
                    newcomer = Newcomer { awaited: false, told: read.ends, ..newcomer };
                }
                Ok(None) if !ended => return,
                Ok(None) | Err(_) => return self.refuse_newcomer(engine, guest, Counter::ProxyHeadersBad, None),
            }
        }
        if Door::of(tag) == Some(Door::Published) {
            self.newcomers.remove(&guest);
            return self.lead_published(engine, tag, guest, newcomer.peer, newcomer.told, header);
        }
        let bytes = engine.guest_bytes(guest).get(header..).unwrap_or_default();
        match name::read(bytes) {
            Ok(Some(asked)) => {
                self.newcomers.remove(&guest);
                self.lead_named(engine, tag, guest, newcomer, asked, header);
            }
            Ok(None) if ended => self.refuse_newcomer(engine, guest, Counter::NamesBad, None),
            Ok(None) => {
                if header > 0 {
                    engine.consume_guest(guest, header);
                    self.newcomers.insert(guest, newcomer);
                }
            }
            Err(bad) => {
                let last = match bad {
                    BadStart::Unknown => None,
                    BadStart::Tls => Some(refusal(Speaks::Tls, Refusal::Bad)),
                    BadStart::Http => Some(refusal(Speaks::Http, Refusal::Bad)),
                    BadStart::HttpTooLong => Some(refusal(Speaks::Http, Refusal::TooLong)),
                };
                self.refuse_newcomer(engine, guest, Counter::NamesBad, last);
            }
        }
    }

    /// A newcomer is gone before it said enough.
    pub(super) fn on_newcomer_ended(&mut self, guest: Key, code: Code) {
        if self.newcomers.remove(&guest).is_some() && code == Code::TimedOut {
            self.counters.add(Counter::NewcomersSlow, 1);
        }
    }

    fn refuse_newcomer(&mut self, engine: &mut Engine, guest: Key, counter: Counter, last: Option<&[u8]>) {
        self.counters.add(counter, 1);
        let peer = self.newcomers.remove(&guest).map(|newcomer| newcomer.peer);
        tracing::debug!(peer = peer.map(tracing::field::display), reason = counter.word(), "visitor refused");
        engine.dismiss(guest, last.unwrap_or_default(), last.is_none());
    }

    /// A visitor of a name listener has named whom it wants.
    fn lead_named(
        &mut self,
        engine: &mut Engine,
        tag: u32,
        guest: Key,
        newcomer: Newcomer,
        asked: Asked,
        header: usize,
    ) {
        let Asked { speaks, name } = asked;
        let names = self.names.clone();
        let found = name.as_ref().and_then(|name| Some((name, names.find(name)?)));
        let left = found.and_then(|(name, (number, route))| match &route.toward {
            // A label that cannot be a mediator's name leads to nobody.
            Toward::Label => name.split_label().0.parse().ok().map(|id| vec![id]),
            Toward::Mediators(ids) => Some(in_turn(ids, self.next_turn(number))),
        });
        let (Some((_, (_, route))), Some(left)) = (found, left) else {
            self.counters.add(Counter::NamesUnknown, 1);
            tracing::debug!(
                peer = %newcomer.peer, name = name.as_ref().map(tracing::field::display), "visitor refused: unknown name"
            );
            return engine.dismiss(guest, refusal(speaks, Refusal::UnknownName), false);
        };
        let visit = Visit {
            left,
            target: route.target,
            speaks: Some(speaks),
            visitor: newcomer.told.map_or(newcomer.peer, |ends| ends.source),
            ahead: header_for(engine, guest, route.options.proxy, newcomer.peer, newcomer.told),
            consumed: header,
            why_not: WhyNot::default(),
            route: Some(route.pattern.clone()),
            name,
        };
        self.lead(engine, guest, tag, visit);
    }

    /// How often this shard has used a route before.
    fn next_turn(&mut self, route: usize) -> u32 {
        if self.name_turns.len() <= route {
            self.name_turns.resize(route + 1, 0);
        }
        let turn = self.name_turns[route];
        self.name_turns[route] = turn.wrapping_add(1);
        turn
    }
}
