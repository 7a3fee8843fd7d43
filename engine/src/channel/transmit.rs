//! What UDP channels send: datagrams sealed into open batches, and probes by themselves.

use std::net::SocketAddr;

use isthmus_proto::link::Slot;
use isthmus_proto::rare::Empty;
use isthmus_proto::record::{DATAGRAM_OVERHEAD, DatagramHeader};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{MaintainBody, channel_kind as kind};
use isthmus_ring::Piece;

use crate::Engine;
use crate::key::Key;

/// What goes out next, and what else a channel has that does not rest.
#[derive(Default)]
pub(super) struct Batch {
    /// Sealed datagrams of one size that go out together.
    pub(super) out: Option<Piece>,
    segment: u16,
    count: u16,
    closed: bool,
    /// When a datagram of a port travelled last.
    pub(super) last_payload: Instant,
    pub(super) probe: Option<Key>,
}

impl Empty for Batch {
    const EMPTY: &'static Self =
        &Self { out: None, segment: 0, count: 0, closed: false, last_payload: Instant::ZERO, probe: None };
}

/// At most this many datagrams and bytes in one send: UDP_SEGMENT's limits.
const SEGMENTS_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 65_000;

/// Memory of a batch that is not known to become larger. Most have one datagram, and of the pool's blocks, 66 KiB each, there
/// are too few for all channels of a turn.
const BATCH_FEW: usize = 2048;

impl Batch {
    fn takes(&self, size: usize) -> bool {
        self.out.as_ref().is_some_and(|out| {
            !self.closed
                && size <= usize::from(self.segment)
                && usize::from(self.count) < SEGMENTS_MAX
                && out.len() + size <= BATCH_BYTES_MAX
        })
    }

    /// Whether the batch before, whose figures these still are, was a large one.
    fn was_large(&self) -> bool {
        usize::from(self.segment) * usize::from(self.count) > BATCH_FEW
    }
}

impl Engine {
    /// Seals a datagram into the open batch of one of the link's working channels: always the same one
    /// for a port while it works, so that its datagrams keep their order. `false` when none works.
    pub(crate) fn seal_datagram(&mut self, link: Key, slot: Slot, payload: &[u8], trailer: &[u8]) -> bool {
        let now = self.now;
        let Some(io) = self.links.get(link) else { return false };
        let count = io.channels.len();
        let first = slot.id().index();
        let mut indexes = (0..count).map(|n| io.channels[(first + n) % count]);
        let live = |index: &u32| self.channels.table.get(*index).is_some_and(|c| c.is_live(now));
        let Some(index) = indexes.find(live) else { return false };
        self.seal_on(index, kind::DATA, payload, trailer)
    }

    pub(super) fn seal_on(&mut self, index: u32, kind: u8, payload: &[u8], trailer: &[u8]) -> bool {
        let size = DATAGRAM_OVERHEAD + payload.len() + trailer.len();
        let Some(channel) = self.channels.table.get(index) else { return false };
        let gso = self.segments_allowed(channel.socket);
        if channel.batch.out.is_some() && !(gso && channel.batch.takes(size) && self.make_room(index, size)) {
            self.flush_channel(index);
        }
        let Some(channel) = self.channels.table.get_mut(index) else { return false };
        let batch = &mut *channel.batch;
        if batch.out.is_none() {
            let block = if batch.was_large() { self.ring.alloc_datagram() } else { None };
            batch.out = Some(block.unwrap_or_else(|| Piece::with_capacity(0, size.max(BATCH_FEW))));
            // A datagram's size, which is below 64 KiB.
            batch.segment = size as u16;
            batch.count = 0;
            batch.closed = false;
            self.dirty.channels.push(index);
        }
        let Some(out) = &mut batch.out else { return false };
        let header = DatagramHeader { shard: channel.shard, kind, epoch: 0, channel: channel.id, packet: 0 };
        let before = out.len();
        match channel.keys.seal_into(header, payload, trailer, out.append(size)) {
            Ok(_) => {
                batch.count += 1;
                batch.closed = size < usize::from(batch.segment);
                self.counts.channel_datagrams_out += 1;
                if kind == kind::DATA {
                    batch.last_payload = self.now;
                    self.channel_used(index);
                }
                true
            }
            // Packet numbers are used up: after 2^48 packets the tunnel must be made anew.
            Err(_) => {
                out.truncate(before);
                false
            }
        }
    }

    /// Room for so many bytes more in an open batch, for which it may have to move; `false` where there is none.
    fn make_room(&mut self, index: u32, size: usize) -> bool {
        let out = self.channels.table.get_mut(index).and_then(|channel| channel.batch.out.as_mut());
        let Some(out) = out else { return false };
        if out.tailroom() >= size {
            return true;
        }
        let Some(mut block) = self.ring.alloc_datagram() else { return false };
        block.append(out.len()).copy_from_slice(out);
        *out = block;
        out.tailroom() >= size
    }

    pub(crate) fn flush_channel(&mut self, index: u32) {
        let Some(channel) = self.channels.table.get_mut(index) else { return };
        let segment = (channel.batch.count > 1).then_some(channel.batch.segment);
        let Some(out) = channel.batch.out.take() else { return };
        channel.rest(self.now);
        if out.is_empty() {
            return;
        }
        if let Some(udp) = self.sockets.get(channel.socket) {
            let mut batch = self.ring.datagram_batch();
            batch.set_to(channel.peer);
            batch.set_segment(segment);
            batch.push(out);
            self.ring.send_datagrams_quietly(&udp.socket, batch, channel.socket.to_bits());
        }
    }

    /// Sends a probe, or the answer to one, sealed with a channel's keys, by itself.
    pub(crate) fn send_probe(
        &mut self,
        index: u32,
        socket: Option<Key>,
        to: Option<SocketAddr>,
        kind: u8,
        body: MaintainBody,
    ) {
        let Some(channel) = self.channels.table.get_mut(index) else { return };
        let socket = socket.unwrap_or(channel.socket);
        let Some(udp) = self.sockets.get(socket) else { return };
        let header = DatagramHeader { shard: channel.shard, kind, epoch: 0, channel: channel.id, packet: 0 };
        let body = body.encode();
        let size = DATAGRAM_OVERHEAD + body.len();
        let mut out = Piece::with_capacity(0, size);
        // It fails only where the cipher itself does: the probe is then one that was lost.
        if channel.keys.seal_into(header, &body, &[], out.append(size)).is_ok() {
            let mut batch = self.ring.datagram_batch();
            batch.set_to(to);
            batch.push(out);
            self.ring.send_datagrams(&udp.socket, batch, socket.to_bits());
            self.counts.channel_datagrams_out += 1;
        }
        self.rest_channel(index);
    }
}
