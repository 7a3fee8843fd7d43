//! Outlets: UDP ports of mediators that lead private hosts to a public address. Each host is a flow with a socket of its
//! own towards that address, so that the public end sees each from a port number of its own and answers find their way.

use std::collections::HashMap;
use std::net::SocketAddr;

use isthmus_proto::link::Slot;
use isthmus_ring::{Datagrams, Piece, Socket};

use crate::Engine;
use crate::datagram::Way;
use crate::event::{Control, Event};
use crate::flow::{Among, Ends, joined};
use crate::key::Key;
use crate::udp::{UdpRole, segments};

/// What a host's flow needs to know.
pub struct HostSpec {
    /// The outlet's number.
    pub tag: u32,
    /// Who sends there.
    pub host: SocketAddr,
    /// Connected to the public address.
    pub socket: Socket,
    /// The public address.
    pub target: SocketAddr,
    /// Put before the first datagram's own bytes.
    pub ahead: Box<[u8]>,
}

pub(crate) struct Outlet {
    link: Key,
    slot: Slot,
    pub(crate) flows: HashMap<SocketAddr, Key>,
}

impl Engine {
    /// Makes a UDP port of a mediator's an outlet, whose owner is the control's number `tag` from now on. An outlet that
    /// had the number ends, with its flows.
    pub fn add_outlet(&mut self, control: &mut impl Control, tag: u32, link: Key, slot: Slot) {
        self.remove_outlet(control, tag);
        self.outlets.insert(tag, Outlet { link, slot, flows: HashMap::new() });
        if let Some(link) = self.link(link) {
            link.set_owner(slot, Key::control(tag).to_bits());
        }
    }

    /// Ends an outlet's flows, and the outlet; its port is left to the control.
    pub fn remove_outlet(&mut self, control: &mut impl Control, tag: u32) {
        let Some(outlet) = self.outlets.remove(&tag) else { return };
        for flow in outlet.flows.into_values() {
            self.end_flow(control, flow, false);
        }
    }

    /// Live flows of an outlet.
    pub fn hosts_of(&self, tag: u32) -> usize {
        self.outlets.get(&tag).map_or(0, |outlet| outlet.flows.len())
    }

    /// Adds a host's flow; it ends by itself when idle, and with its outlet. Where there is no such outlet, `None`.
    pub fn add_host(&mut self, spec: HostSpec) -> Option<Key> {
        let HostSpec { tag, host, socket, target, ahead } = spec;
        let &Outlet { link, slot, .. } = self.outlets.get(&tag)?;
        let socket = self.add_udp(socket, UdpRole::Outlet { flow: Key::control(0) });
        let ends = Ends { socket, peer: target, link, slot, remote: host };
        let flow = self.insert_flow(ends, Among::Outlet(tag), ahead);
        if let Some(udp) = self.sockets.get_mut(socket) {
            udp.role = UdpRole::Outlet { flow };
        }
        self.outlets.get_mut(&tag)?.flows.insert(host, flow);
        Some(flow)
    }

    /// A host's datagram at an outlet, out to the public address.
    pub(crate) fn on_host_datagram(
        &mut self,
        control: &mut impl Control,
        link: Key,
        tag: u32,
        remote: Option<SocketAddr>,
        mut payload: Piece,
    ) {
        let outlet = self.outlets.get(&tag).filter(|outlet| outlet.link == link);
        let Some((outlet, host)) = outlet.zip(remote) else {
            self.counts.datagrams_unknown_port += 1;
            return;
        };
        let mut flow = outlet.flows.get(&host).copied();
        if flow.is_none() {
            control.on_event(self, Event::Host { tag, host });
            flow = self.outlets.get(&tag).and_then(|outlet| outlet.flows.get(&host).copied());
        }
        let Some((key, flow)) = flow.and_then(|key| Some((key, self.flows.get_mut(key)?))) else {
            self.counts.datagrams_refused_flows += 1;
            return;
        };
        if !flow.ahead.is_empty() {
            let Some(both) = joined(&flow.ahead, &payload) else {
                self.counts.datagrams_dropped_full += 1;
                return;
            };
            flow.ahead = Box::default();
            payload = Piece::copy_from(&both, 0, 0);
        }
        self.write_flow(key, payload);
    }

    /// The public address's answers, to the host whose flow's socket they came to.
    pub(crate) fn on_public_datagrams(&mut self, flow: Key, datagrams: &Datagrams) {
        let Some(flow) = self.flows.get_mut(flow) else { return };
        flow.last_used = self.now;
        segments(datagrams).for_each(|payload| flow.carried.add_in(payload.len()));
        let Ends { link, slot, remote, .. } = flow.ends;
        for payload in segments(datagrams) {
            self.counts.datagrams_in += 1;
            self.send_datagram(link, slot, Way::Channel { fallback: true }, remote, payload);
        }
    }

    /// ICMP, or the system, told that a flow's datagram did not arrive. UDP promises no more, so the flow goes on.
    pub(crate) fn on_public_error(&mut self, control: &mut impl Control, flow: Key) {
        let Some(flow) = self.flows.get_mut(flow) else { return };
        if let (Among::Outlet(tag), false) = (flow.among, std::mem::replace(&mut flow.failed, true)) {
            control.on_event(self, Event::FlowFailed { tag });
        }
    }
}
