//! UDP sockets: the service port's, a caller's channels', published ones, and a mediator's ports.

mod outgoing;
mod spent;

use std::collections::HashMap;
use std::net::SocketAddr;

use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use isthmus_ring::{Datagrams, OpId, Piece, Socket};

use crate::Engine;
use crate::datagram::Way;
use crate::event::{Control, Event};
use crate::flow::{Ends, joined};
use crate::key::Key;
use crate::link_receive::ENOBUFS;

pub(crate) use outgoing::OutBatch;
pub(crate) use spent::Spent;

/// How a mediator's UDP port reaches the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRoute {
    /// Over UDP channels.
    pub redirect: bool,
    /// Over TCP while none works.
    pub fallback: bool,
}

/// What a UDP socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpRole {
    /// The relay's service port: datagrams name their channel.
    Service,
    /// One channel of a caller, by its place in the table.
    Channel(u32),
    /// A caller's spare port, for probes under one of its channels' keys.
    Probe {
        /// The channel's place in the table.
        channel: u32,
        /// Who probes.
        probe: Key,
    },
    /// Datagrams without any session: [`crate::Event::Stray`].
    Stray,
    /// Visitors; the control's number.
    Published(u32),
    /// One client's of SOCKS5.
    Association,
    /// One host's at an outlet, connected to the public address.
    Outlet {
        /// The host's flow.
        flow: Key,
    },
    /// A mediator's port.
    Port {
        /// The tunnel.
        link: Key,
        /// The port.
        slot: Slot,
        /// How it reaches the relay.
        route: PortRoute,
        /// Its only party (the socket is connected to it).
        peer: Option<SocketAddr>,
    },
}

pub(crate) struct UdpSocket {
    pub(crate) socket: Socket,
    /// Speaks IPv6 (and IPv4 by mapped addresses).
    ipv6: bool,
    /// The system takes several datagrams of one size at once.
    gso: bool,
    pub(crate) role: UdpRole,
    op: Option<OpId>,
    pub(crate) out: OutBatch,
    out_to: Option<SocketAddr>,
    /// The destination that was allowed last.
    allowed: Option<SocketAddr>,
    /// Visitors' flows of a published socket.
    pub(crate) flows: HashMap<SocketAddr, Key>,
}

impl Engine {
    /// Adds a socket and begins to receive.
    pub fn add_udp(&mut self, socket: Socket, role: UdpRole) -> Key {
        let ipv6 = socket.local_addr().is_ok_and(|addr| addr.is_ipv6());
        let key = self.sockets.insert(UdpSocket {
            socket,
            ipv6,
            gso: true,
            role,
            op: None,
            out: OutBatch::default(),
            out_to: None,
            allowed: None,
            flows: HashMap::new(),
        });
        if let UdpRole::Port { link, slot, .. } = role
            && let Some(link) = self.link(link)
        {
            link.set_owner(slot, key.to_bits());
        }
        self.receive_udp(key);
        key
    }

    /// Switches a mediator's port between open and redirect, while it carries traffic.
    pub fn set_route(&mut self, key: Key, to: PortRoute) {
        if let Some(UdpSocket { role: UdpRole::Port { route, .. }, .. }) = self.sockets.get_mut(key) {
            *route = to;
        }
    }

    /// A socket's role.
    pub fn udp_role(&self, key: Key) -> Option<UdpRole> {
        self.sockets.get(key).map(|udp| udp.role)
    }

    /// Every UDP socket with its role.
    pub fn udp_roles(&self) -> Vec<(Key, UdpRole)> {
        self.sockets.keys().filter_map(|key| Some((key, self.udp_role(key)?))).collect()
    }

    /// A socket's local address.
    pub fn udp_addr(&self, key: Key) -> Option<SocketAddr> {
        self.sockets.get(key)?.socket.local_addr().ok()
    }

    /// Closes a UDP socket.
    pub fn remove_udp(&mut self, key: Key) {
        if let Some(udp) = self.sockets.remove(key) {
            if udp.role == UdpRole::Association
                && let Some(association) = self.associations.remove(&key)
            {
                self.timers.remove(association.timer);
            }
            self.close_udp(udp);
        }
    }

    fn close_udp(&mut self, udp: UdpSocket) {
        if let Some(op) = udp.op {
            self.ring.cancel(op);
        }
        self.ring.close(udp.socket);
    }

    /// Takes a socket away without closing it; its flows should have ended.
    pub fn take_udp(&mut self, key: Key) -> Option<Socket> {
        let udp = self.sockets.remove(key)?;
        if let Some(op) = udp.op {
            self.ring.cancel(op);
        }
        Some(udp.socket)
    }

    /// Answers an [`Event::Stray`]; one that cannot be sent is lost.
    pub fn send_stray(&mut self, socket: Key, to: SocketAddr, datagram: &[u8]) {
        let Some(udp) = self.sockets.get(socket) else { return };
        let mut batch = self.ring.datagram_batch();
        batch.set_to(Some(to));
        batch.push(Piece::copy_from(datagram, 0, 0));
        self.ring.send_datagrams(&udp.socket, batch, socket.to_bits());
    }

    /// Receives on a socket, unless it does already or is gone; whether that was begun.
    pub(crate) fn receive_udp(&mut self, key: Key) -> bool {
        let Some(udp) = self.sockets.get_mut(key).filter(|udp| udp.op.is_none()) else { return false };
        udp.op = Some(self.ring.recv_datagrams(&udp.socket, key.to_bits()));
        true
    }

    pub(crate) fn on_datagrams(
        &mut self,
        control: &mut impl Control,
        key: Key,
        result: std::io::Result<Datagrams>,
        more: bool,
    ) {
        let Some(udp) = self.sockets.get_mut(key) else { return };
        if !more {
            udp.op = None;
        }
        match result {
            Ok(datagrams) if datagrams.truncated => self.counts.datagrams_truncated += 1,
            Ok(datagrams) => match udp.role {
                UdpRole::Service => self.on_channel_datagrams(control, key, None, None, datagrams),
                UdpRole::Channel(index) => self.on_channel_datagrams(control, key, Some(index), None, datagrams),
                UdpRole::Probe { channel, probe } => {
                    self.on_channel_datagrams(control, key, Some(channel), Some(probe), datagrams);
                }
                UdpRole::Stray => {
                    for datagram in segments(&datagrams) {
                        control.on_event(self, Event::Stray { socket: key, from: datagrams.peer, datagram });
                    }
                }
                UdpRole::Association => self.on_client_datagrams(key, &datagrams),
                UdpRole::Outlet { flow } => self.on_public_datagrams(flow, &datagrams),
                UdpRole::Published(tag) => self.on_visitor_datagrams(control, key, tag, datagrams),
                UdpRole::Port { link, slot, route, .. } => self.on_port_datagrams(link, slot, route, datagrams),
            },
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.counts.buffers_exhausted += 1;
                self.dirty.starved_sockets.push_back(key);
                return;
            }
            // What ICMP told of an earlier datagram: the socket goes on.
            Err(error) => self.on_udp_error(control, key, &error),
        }
        if !more {
            self.receive_udp(key);
        }
    }

    /// Every datagram of a batch, and who sent it, from a mediator's port to the relay.
    fn on_port_datagrams(&mut self, link: Key, slot: Slot, route: PortRoute, datagrams: Datagrams) {
        let way = if route.redirect { Way::Channel { fallback: route.fallback } } else { Way::Tcp };
        let source = canonical(datagrams.peer);
        for payload in segments(&datagrams) {
            self.counts.datagrams_in += 1;
            self.send_datagram(link, slot, way, source, payload);
        }
    }

    fn on_udp_error(&mut self, control: &mut impl Control, key: Key, error: &std::io::Error) {
        let Some(udp) = self.sockets.get(key) else { return };
        if let UdpRole::Outlet { flow } = udp.role {
            return self.on_public_error(control, flow);
        }
        let UdpRole::Port { link, slot, peer, .. } = udp.role else { return };
        let mut told = false;
        let mut errors = Vec::new();
        while let Some(error) = udp.socket.take_udp_error() {
            errors.push((errno_code(error.code), canonical(error.destination)));
        }
        if let Some(link) = self.link(link) {
            for (code, remote) in errors {
                told = true;
                link.udp_error(slot, code, remote);
            }
            if let (false, Some(peer), Some(errno)) = (told, peer, error.raw_os_error()) {
                link.udp_error(slot, errno_code(errno), peer);
            }
        }
        self.touch(link);
    }

    /// Tells which destinations a mediator's ports may send to; without one, all.
    pub fn set_destination_filter(&mut self, allows: Box<dyn Fn(SocketAddr) -> bool>) {
        self.destination_filter = Some(allows);
        self.forget_allowed();
    }

    /// What the filter says may have changed.
    pub fn forget_allowed(&mut self) {
        for key in self.sockets.keys().collect::<Vec<_>>() {
            if let Some(udp) = self.sockets.get_mut(key) {
                udp.allowed = None;
            }
        }
    }
}

/// Datagrams that a visitor may send before its port is open.
const UNANSWERED_MAX: u64 = 32;

impl Engine {
    fn on_visitor_datagrams(&mut self, control: &mut impl Control, key: Key, tag: u32, datagrams: Datagrams) {
        let visitor = canonical(datagrams.peer);
        let mut flow = self.sockets.get(key).and_then(|udp| udp.flows.get(&visitor).copied());
        if flow.is_none() {
            control.on_event(self, Event::Visitor { socket: key, tag, visitor });
            flow = self.sockets.get(key).and_then(|udp| udp.flows.get(&visitor).copied());
        }
        let count = segments(&datagrams).count() as u64;
        let Some((key, flow)) = flow.and_then(|key| Some((key, self.flows.get_mut(key)?))) else {
            self.counts.datagrams_refused_flows += count;
            return;
        };
        flow.last_used = self.now;
        if !flow.opened {
            // Few may wait for a mediator's answer: more could only be a flood.
            flow.unanswered += count;
            if flow.unanswered > UNANSWERED_MAX {
                self.counts.datagrams_dropped_full += count;
                return;
            }
        }
        self.counts.datagrams_in += count;
        segments(&datagrams).for_each(|payload| flow.carried.add_in(payload.len()));
        // Before the mediator has answered, a datagram over UDP could overtake the request for its port.
        let way = if flow.opened { Way::Channel { fallback: true } } else { Way::Tcp };
        let Ends { link, slot, remote: target, .. } = flow.ends;
        let mut ahead = std::mem::take(&mut flow.ahead);
        for payload in segments(&datagrams) {
            if ahead.is_empty() {
                self.send_datagram(link, slot, way, target, payload);
                continue;
            }
            match joined(&ahead, payload) {
                Some(both) => {
                    ahead = Box::default();
                    self.send_datagram(link, slot, way, target, &both);
                }
                // Then it begins the next one.
                None => self.counts.datagrams_dropped_full += 1,
            }
        }
        if let (false, Some(flow)) = (ahead.is_empty(), self.flows.get_mut(key)) {
            flow.ahead = ahead;
        }
    }
}

/// The datagrams of a received batch. An empty datagram is one.
pub(crate) fn segments(datagrams: &Datagrams) -> impl Iterator<Item = &[u8]> {
    let whole: &[u8] = &datagrams.payload;
    let size = if datagrams.segment == 0 { whole.len().max(1) } else { usize::from(datagrams.segment) };
    let empty = whole.is_empty().then_some(whole);
    whole.chunks(size).chain(empty)
}

/// IPv4-mapped addresses of dual-stack sockets as IPv4 ones.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn errno_code(errno: i32) -> Code {
    // Linux's numbers; the ring's completions carry no others.
    match errno {
        111 => Code::Refused,
        113 => Code::HostUnreachable,
        101 => Code::NetworkUnreachable,
        1 | 13 => Code::Denied,
        _ => Code::Failed,
    }
}
