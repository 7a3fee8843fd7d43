//! UDP flows: one party at a socket of this machine, the other at a UDP port of a mediator.
//!
//! A visitor's flow on a published port has a UDP port of the mediator for itself, so that the target sees each visitor
//! from a port number of its own and answers find their way. A host's is the other way round: see `outlet`.

use std::net::SocketAddr;

use isthmus_proto::limits::DATAGRAM_MAX;
use isthmus_proto::link::Slot;
use isthmus_proto::time::Instant;

use crate::Engine;
use crate::carried::Carried;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::timers::TimerId;
use crate::udp::{OutBatch, UdpRole};

/// What a new flow needs to know.
#[derive(Clone, Debug)]
pub struct FlowSpec {
    /// The published socket.
    pub socket: Key,
    /// Who sends there.
    pub visitor: SocketAddr,
    /// The tunnel.
    pub link: Key,
    /// The port asked for on it.
    pub slot: Slot,
    /// Where the port sends to.
    pub target: SocketAddr,
    /// Put before the first datagram's own bytes.
    pub ahead: Box<[u8]>,
}

/// Between whom a flow is.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) socket: Key,
    /// Who is at the socket: a visitor, or a public address.
    pub(crate) peer: SocketAddr,
    pub(crate) link: Key,
    pub(crate) slot: Slot,
    /// Who is at the mediator's port: a published port's target, or a host.
    pub(crate) remote: SocketAddr,
}

/// Whose flows it is one of.
#[derive(Clone, Copy)]
pub(crate) enum Among {
    /// Its socket's, which has those of other visitors, too.
    Published,
    /// An outlet's, by its number; the socket is the flow's own.
    Outlet(u32),
}

pub(crate) struct Flow {
    pub(crate) ends: Ends,
    pub(crate) among: Among,
    /// The mediator has answered that its port is open.
    pub(crate) opened: bool,
    /// Datagrams that came before that.
    pub(crate) unanswered: u64,
    /// That its datagrams do not arrive was told.
    pub(crate) failed: bool,
    /// To go before the first datagram's own bytes.
    pub(crate) ahead: Box<[u8]>,
    pub(crate) last_used: Instant,
    pub(crate) out: OutBatch,
    pub(crate) carried: Carried,
    timer: TimerId,
}

/// A flow as it is now.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    /// The number of the published port or outlet that it belongs to.
    pub tag: u32,
    /// The tunnel.
    pub link: Key,
    /// Who is at the relay's socket: a visitor, or a public address.
    pub peer: SocketAddr,
    /// Who is at the mediator's port: a published port's target, or a host.
    pub remote: SocketAddr,
    /// Since the last datagram.
    pub idle: std::time::Duration,
    /// What it has carried.
    pub carried: Carried,
}

impl Engine {
    /// Some of the flows, and where to go on if there may be more: `places` of the table are looked at from `from` on.
    pub fn flows_from(&self, from: u32, places: u32) -> (Vec<FlowView>, Option<u32>) {
        let (flows, next) = self.flows.some(from, places);
        let view = |flow: &Flow| {
            let tag = match (flow.among, self.sockets.get(flow.ends.socket).map(|udp| udp.role)) {
                (Among::Outlet(tag), _) | (Among::Published, Some(UdpRole::Published(tag))) => tag,
                (Among::Published, _) => return None,
            };
            let Ends { peer, link, remote, .. } = flow.ends;
            Some(FlowView { tag, link, peer, remote, idle: self.now.since(flow.last_used), carried: flow.carried })
        };
        (flows.filter_map(view).collect(), next)
    }

    /// Bytes that wait in links and streams together.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Adds a flow; it ends by itself when idle.
    pub fn add_flow(&mut self, spec: FlowSpec) -> Key {
        let FlowSpec { socket, visitor, link, slot, target, ahead } = spec;
        let ends = Ends { socket, peer: visitor, link, slot, remote: target };
        let key = self.insert_flow(ends, Among::Published, ahead);
        if let Some(udp) = self.sockets.get_mut(socket) {
            udp.flows.insert(visitor, key);
        }
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
        key
    }

    pub(crate) fn insert_flow(&mut self, ends: Ends, among: Among, ahead: Box<[u8]>) -> Key {
        let timer = self.timers.add(Key::control(0));
        let key = self.flows.insert(Flow {
            ends,
            among,
            opened: false,
            unanswered: 0,
            failed: false,
            ahead,
            last_used: self.now,
            out: OutBatch::default(),
            carried: Carried::default(),
            timer,
        });
        self.timers.give(timer, key);
        self.timers.set(timer, self.now + self.config.flow_idle);
        key
    }

    /// The mediator has opened the flow's port: from now on it uses UDP channels.
    pub fn flow_opened(&mut self, key: Key) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.opened = true;
        }
    }

    /// Live flows of a published socket.
    pub fn flows_of(&self, socket: Key) -> usize {
        self.sockets.get(socket).map_or(0, |udp| udp.flows.len())
    }

    /// The live flows of a published socket.
    pub fn flow_keys(&self, socket: Key) -> Vec<Key> {
        self.sockets.get(socket).map(|udp| udp.flows.values().copied().collect()).unwrap_or_default()
    }

    pub(crate) fn on_flow_timer(&mut self, control: &mut impl Control, key: Key) {
        let Some(flow) = self.flows.get(key) else { return };
        let deadline = flow.last_used + self.config.flow_idle;
        if self.now < deadline {
            self.timers.set(flow.timer, deadline);
        } else {
            self.end_flow(control, key, true);
        }
    }

    /// Ends a flow; the mediator is asked to close its port if it has to be (`close`), and if it is the flow's own.
    pub fn end_flow(&mut self, control: &mut impl Control, key: Key, close: bool) {
        let Some(flow) = self.flows.remove(key) else { return };
        self.timers.remove(flow.timer);
        let Ends { socket, peer, link, slot, remote } = flow.ends;
        let tag = match flow.among {
            Among::Published => {
                let Some(udp) = self.sockets.get_mut(socket) else { return };
                udp.flows.remove(&peer);
                let UdpRole::Published(tag) = udp.role else { return };
                if close && let Some(machine) = self.link(link) {
                    machine.set_owner(slot, Key::control(0).to_bits());
                    machine.close(slot, 0);
                    self.touch(link);
                }
                tag
            }
            Among::Outlet(tag) => {
                self.remove_udp(socket);
                if let Some(outlet) = self.outlets.get_mut(&tag) {
                    outlet.flows.remove(&remote);
                }
                tag
            }
        };
        control.on_event(self, Event::FlowEnded { tag, flow: key, carried: flow.carried });
    }
}

/// A flow's first datagram with what goes ahead of it, if both are no longer than a datagram can be.
pub(crate) fn joined(ahead: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
    (ahead.len() + payload.len() <= DATAGRAM_MAX).then(|| [ahead, payload].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_ahead_fits_a_datagram_to_the_last_byte() {
        let longest = vec![1; DATAGRAM_MAX - 28];
        assert_eq!(joined(&[0; 28], &longest).map(|both| both.len()), Some(DATAGRAM_MAX));
        assert_eq!(joined(&[0; 29], &longest), None);
        assert_eq!(joined(b"ahead", b"").as_deref(), Some(&b"ahead"[..]));
    }
}
