//! Datagrams out, in batches of one size where the system takes them at once.

use std::net::{IpAddr, SocketAddr};

use isthmus_proto::Code;
use isthmus_ring::{DatagramBatch, Piece, Ring};

use super::UdpRole;
use crate::Engine;
use crate::event::Control;
use crate::flow::{Among, Ends};
use crate::key::Key;

/// An open batch to one destination: equal sizes, but for a shorter last one (UDP_SEGMENT's rule).
#[derive(Default)]
pub(crate) struct OutBatch {
    batch: Option<DatagramBatch>,
    segment: usize,
    bytes: usize,
    closed: bool,
}

/// UDP_SEGMENT takes at most 64 segments (128 on newer kernels) and 64 KiB.
const SEGMENTS_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 65_000;

/// Longer datagrams are left to the system to fragment, one by one: what a path of 1,500 bytes takes over IPv6.
const SEGMENT_MAX: usize = 1452;

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const EMSGSIZE: i32 = 90;

impl OutBatch {
    /// Whether `len` more bytes may join.
    fn takes(&self, len: usize, gso: bool) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            gso && !self.closed
                && self.segment <= SEGMENT_MAX
                && len > 0
                && len <= self.segment
                && batch.len() < SEGMENTS_MAX
                && self.bytes + len <= BATCH_BYTES_MAX
        })
    }

    fn push(&mut self, ring: &mut Ring, payload: Piece) {
        let len = payload.len();
        if self.batch.is_none() {
            self.segment = len;
            self.bytes = 0;
            self.closed = len == 0;
        }
        self.closed |= len < self.segment;
        self.bytes += len;
        self.batch.get_or_insert_with(|| ring.datagram_batch()).push(payload);
    }

    fn take(&mut self) -> Option<DatagramBatch> {
        let mut batch = self.batch.take()?;
        batch.set_segment((batch.len() > 1).then_some(self.segment as u16));
        Some(batch)
    }
}

impl Engine {
    /// A datagram for a mediator's port, out to a host.
    pub(crate) fn write_port(&mut self, key: Key, remote: Option<SocketAddr>, payload: Piece) {
        let Some(udp) = self.sockets.get_mut(key) else { return };
        let UdpRole::Port { link, slot, peer, .. } = udp.role else {
            if let Some((to, payload)) = self.address_to_client(key, remote, payload) {
                self.batch_udp(key, Some(to), payload);
            }
            return;
        };
        let to = match (peer, remote) {
            (Some(_), _) => None,
            (None, Some(remote)) => Some(remote),
            (None, None) => {
                self.counts.datagrams_unknown_port += 1;
                return;
            }
        };
        if let Some(remote) = to
            && udp.allowed != Some(remote)
        {
            if !self.destination_filter.as_ref().is_none_or(|allows| allows(remote)) {
                if let Some(link) = self.link(link) {
                    link.udp_error(slot, Code::Denied, remote);
                }
                return self.touch(link);
            }
            udp.allowed = Some(remote);
        }
        self.batch_udp(key, to, payload);
    }

    /// Puts a datagram into its socket's open batch.
    fn batch_udp(&mut self, key: Key, to: Option<SocketAddr>, payload: Piece) {
        let Some(udp) = self.sockets.get_mut(key) else { return };
        if udp.out_to != to || !udp.out.takes(payload.len(), udp.gso) {
            if udp.out.batch.is_some() {
                self.flush_udp(key);
            } else {
                self.dirty.sockets.push(key);
            }
        }
        let Some(udp) = self.sockets.get_mut(key) else { return };
        udp.out_to = to;
        udp.out.push(&mut self.ring, payload);
    }

    fn flush_udp(&mut self, key: Key) {
        let Some(udp) = self.sockets.get_mut(key) else { return };
        if let Some(mut batch) = udp.out.take() {
            batch.set_to(udp.out_to.map(|to| for_family(to, udp.ipv6)));
            self.counts.datagrams_out += batch.len() as u64;
            self.ring.send_datagrams_quietly(&udp.socket, batch, key.to_bits());
        }
    }

    /// A datagram out to a flow's party at the socket.
    pub(crate) fn write_flow(&mut self, key: Key, payload: Piece) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.last_used = now;
        flow.carried.add_out(payload.len());
        let gso = self.sockets.get(flow.ends.socket).is_some_and(|udp| udp.gso);
        if !flow.out.takes(payload.len(), gso) {
            if flow.out.batch.is_some() {
                self.flush_flow(key);
            } else {
                self.dirty.flows.push(key);
            }
        }
        if let Some(flow) = self.flows.get_mut(key) {
            flow.out.push(&mut self.ring, payload);
        }
    }

    fn flush_flow(&mut self, key: Key) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let Some(mut batch) = flow.out.take() else { return };
        let Ends { socket, peer, .. } = flow.ends;
        if let Some(udp) = self.sockets.get(socket) {
            batch.set_to(match flow.among {
                Among::Published => Some(for_family(peer, udp.ipv6)),
                Among::Outlet(_) => None,
            });
            self.counts.datagrams_out += batch.len() as u64;
            self.ring.send_datagrams_quietly(&udp.socket, batch, socket.to_bits());
        }
    }

    /// Sends every open batch.
    pub(crate) fn flush_datagrams(&mut self) {
        for key in std::mem::take(&mut self.dirty.sockets) {
            self.flush_udp(key);
        }
        for key in std::mem::take(&mut self.dirty.flows) {
            self.flush_flow(key);
        }
        for index in std::mem::take(&mut self.dirty.channels) {
            self.flush_channel(index);
        }
    }

    pub(crate) fn on_datagrams_sent(
        &mut self,
        control: &mut impl Control,
        key: Key,
        mut batch: DatagramBatch,
        result: std::io::Result<usize>,
    ) {
        let Err(error) = result else { return };
        let Some(udp) = self.sockets.get_mut(key) else { return };
        let segment = batch.segment().map(usize::from);
        if let (Some(segment), Some(EIO | EINVAL | EMSGSIZE)) = (segment, error.raw_os_error()) {
            // The device or the path does not take segments of this size: one by one, from now on.
            udp.gso = false;
            let to = batch.to();
            let pieces: Vec<Piece> = batch.drain().collect();
            for mut piece in pieces {
                while !piece.is_empty() {
                    let mut one = self.ring.datagram_batch();
                    one.set_to(to);
                    one.push(piece.split_to(segment.min(piece.len())));
                    self.ring.send_datagrams_quietly(&udp.socket, one, key.to_bits());
                }
            }
            return;
        }
        self.counts.datagrams_send_failed += batch.len() as u64;
        if error.kind() != std::io::ErrorKind::WouldBlock {
            self.on_udp_error(control, key, &error);
        }
    }

    /// Whether batches of a socket may be segmented by the system.
    pub(crate) fn segments_allowed(&self, socket: Key) -> bool {
        self.sockets.get(socket).is_some_and(|udp| udp.gso)
    }
}

/// An address in the family that the socket speaks.
fn for_family(to: SocketAddr, ipv6: bool) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) if ipv6 => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}
