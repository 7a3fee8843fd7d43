//! Visitors' flows on published UDP ports: each is a UDP port of the mediator with one party, so that
//! the target sees each visitor from a port number of its own and answers find their way.

use std::net::SocketAddr;

use isthmus_proto::link::Slot;
use isthmus_proto::time::Instant;

use crate::Engine;
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

pub(crate) struct Flow {
    pub(crate) socket: Key,
    pub(crate) visitor: SocketAddr,
    pub(crate) link: Key,
    pub(crate) slot: Slot,
    pub(crate) target: SocketAddr,
    /// The mediator has answered that its port is open.
    pub(crate) opened: bool,
    /// Datagrams that came before that.
    pub(crate) unanswered: u64,
    /// To go before the first datagram's own bytes.
    pub(crate) ahead: Box<[u8]>,
    pub(crate) last_used: Instant,
    pub(crate) out: OutBatch,
    timer: TimerId,
}

impl Engine {
    /// Adds a flow; it ends by itself when idle.
    pub fn add_flow(&mut self, spec: FlowSpec) -> Key {
        let timer = self.timers.add(Key::control(0));
        let FlowSpec { socket, visitor, link, slot, target, ahead } = spec;
        let key = self.flows.insert(Flow {
            socket,
            visitor,
            link,
            slot,
            target,
            opened: false,
            unanswered: 0,
            ahead,
            last_used: self.now,
            out: OutBatch::default(),
            timer,
        });
        self.timers.give(timer, key);
        self.timers.set(timer, self.now + self.config.flow_idle);
        if let Some(udp) = self.sockets.get_mut(socket) {
            udp.flows.insert(visitor, key);
        }
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
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

    /// Ends a flow; the mediator is asked to close its port if it has to be (`close`).
    pub fn end_flow(&mut self, control: &mut impl Control, key: Key, close: bool) {
        let Some(flow) = self.flows.remove(key) else { return };
        self.timers.remove(flow.timer);
        let Some(udp) = self.sockets.get_mut(flow.socket) else { return };
        udp.flows.remove(&flow.visitor);
        let UdpRole::Published(tag) = udp.role else { return };
        if close && let Some(link) = self.link(flow.link) {
            link.set_owner(flow.slot, Key::control(0).to_bits());
            link.close(flow.slot, 0);
            self.touch(flow.link);
        }
        control.on_event(self, Event::FlowEnded { tag });
    }
}
