//! UDP channels: sealing into open batches, opening, maintain packets, and adopting a changed address.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::link::{ChannelAction, ChannelClock, Slot};
use isthmus_proto::rare::{Empty, Rare};
use isthmus_proto::record::{ChannelKeys, DATAGRAM_OVERHEAD, DatagramError, DatagramHeader, End, UdpSecret};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{InnerDatagrams, MaintainBody, channel_kind as kind};
use isthmus_proto::{ChannelId, ShardId};
use isthmus_ring::{Datagrams, Piece, Socket};

use crate::Engine;
use crate::chunks::Chunks;
use crate::event::{Control, Event};
use crate::key::{Key, What};
use crate::link::CONTEXT_KEPT;
use crate::samples::Sample;
use crate::timers::TimerId;
use crate::udp::{UdpRole, canonical};

#[derive(Default)]
pub(crate) struct Channels {
    table: Chunks<Channel>,
    generation: u8,
    doubts: Doubts,
}

/// What datagrams cost that nobody has proved to have sent yet. Anybody can send them, under any channel's name.
#[derive(Default)]
struct Doubts {
    /// When the second began of which `made` were made.
    since: Instant,
    made: u32,
    /// Resting channels whose key contexts were built for a forged datagram, the oldest first.
    built: VecDeque<u32>,
}

/// Keys of next epochs that a thread makes in a second where only a datagram's word tells that one has begun. Two
/// derivations each: all of them take a few milliseconds. Whoever really turns goes on sending, and gets in between.
const DOUBTFUL_EPOCHS_MAX: u32 = 256;

/// Resting channels that may keep what was built for a forged datagram, 1.5 KiB each, until their next maintain packet.
const DOUBTFUL_CONTEXTS_MAX: usize = 256;

impl Doubts {
    /// Whether one more epoch's keys may be made.
    fn may_make(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.made) = (now, 0);
        }
        self.made += 1;
        self.made <= DOUBTFUL_EPOCHS_MAX
    }

    /// A resting channel built for nothing; gives the one that must give that back now.
    fn built(&mut self, index: u32) -> Option<u32> {
        self.built.push_back(index);
        if self.built.len() > DOUBTFUL_CONTEXTS_MAX { self.built.pop_front() } else { None }
    }
}

struct Channel {
    id: ChannelId,
    shard: ShardId,
    link: Key,
    keys: ChannelKeys,
    socket: Key,
    /// Where the other end is; a caller's socket is connected and needs none.
    peer: Option<SocketAddr>,
    /// The maintaining (calling) end's.
    clock: Option<Box<(ChannelClock, TimerId)>>,
    /// Whether it worked when that was last told.
    told_live: bool,
    /// Zero: never.
    last_heard: Instant,
    /// The relay's end: dead when nothing was heard for so many milliseconds.
    silence_ms: u32,
    batch: Rare<Batch>,
}

/// What goes out next, and what else a channel has that does not rest.
#[derive(Default)]
struct Batch {
    /// Sealed datagrams of one size that go out together.
    out: Option<Piece>,
    segment: u16,
    count: u16,
    closed: bool,
    /// When a datagram of a port travelled last.
    last_payload: Instant,
    probe: Option<Key>,
}

/// What a packet is that is no channel's own business.
enum Other {
    /// Opened: a question or an answer of a spare port.
    Probe { index: u32, kind: u8, body: Piece },
    /// Not a channel's at all.
    Stray(Piece),
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

impl Channels {
    /// Frees a place; the link's own list names it.
    fn remove(&mut self, index: u32) -> Option<Channel> {
        self.table.remove(index)
    }

    /// The probe under a channel's keys.
    pub(crate) fn probe(&self, index: u32) -> Option<Key> {
        self.table.get(index)?.batch.probe
    }

    /// Whether there is such a channel, which now knows its probe.
    pub(crate) fn set_probe(&mut self, index: u32, probe: Key) -> bool {
        let channel = self.table.get_mut(index);
        channel.map(|channel| channel.batch.probe = Some(probe)).is_some()
    }

    /// The probe is over.
    pub(crate) fn clear_probe(&mut self, index: u32, id: ChannelId) {
        if let Some(channel) = self.table.get_mut(index).filter(|channel| channel.id == id) {
            channel.batch.probe = None;
        }
    }
}

impl Channel {
    /// Whether it has carried nothing but maintain packets lately.
    fn rests(&self, now: Instant) -> bool {
        self.batch.last_payload == Instant::ZERO || now.since(self.batch.last_payload) > CONTEXT_KEPT
    }

    /// Gives memory back, if it rests.
    fn rest(&mut self, now: Instant) {
        if self.batch.out.is_none() && self.batch.probe.is_none() && self.rests(now) {
            self.batch.clear();
        }
    }

    fn is_live(&self, now: Instant) -> bool {
        match self.clock.as_deref() {
            Some((clock, _)) => clock.is_live(now),
            None => {
                let silence = Duration::from_millis(u64::from(self.silence_ms));
                self.peer.is_some() && self.last_heard != Instant::ZERO && now.since(self.last_heard) < silence
            }
        }
    }
}

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
    /// The relay's end of a new channel of `link`, on the shard's service socket. Its name goes into
    /// the welcome; the keys come from the link's secret.
    pub fn add_relay_channel(
        &mut self,
        link: Key,
        service: Key,
        shard: ShardId,
        secret: &UdpSecret,
        silence: Duration,
    ) -> Result<ChannelId, DatagramError> {
        self.channels.generation = self.channels.generation.wrapping_add(1);
        let id = ChannelId::new(self.channels.table.vacant(), self.channels.generation);
        let keys = ChannelKeys::derive_shared(secret, id, 0, End::Relay)?;
        self.insert_channel(link, service, shard, id, keys, silence);
        Ok(id)
    }

    /// A caller's end of a channel that the welcome named, on a socket of its own, connected to the relay.
    pub fn add_caller_channel(
        &mut self,
        link: Key,
        socket: Socket,
        shard: ShardId,
        id: ChannelId,
        secret: &UdpSecret,
        clock: ChannelClock,
    ) -> Result<(), DatagramError> {
        let keys = ChannelKeys::derive_shared(secret, id, 0, End::Caller)?;
        let index = self.channels.table.vacant();
        let socket = self.add_udp(socket, UdpRole::Channel(index));
        self.insert_channel(link, socket, shard, id, keys, Duration::ZERO);
        let timer = self.timers.add(socket);
        self.timers.set(timer, self.now);
        if let Some(channel) = self.channels.table.get_mut(index) {
            channel.clock = Some(Box::new((clock, timer)));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn insert_channel(
        &mut self,
        link: Key,
        socket: Key,
        shard: ShardId,
        id: ChannelId,
        keys: ChannelKeys,
        silence: Duration,
    ) {
        let index = self.channels.table.insert(Channel {
            id,
            shard,
            link,
            keys,
            socket,
            peer: None,
            clock: None,
            told_live: false,
            last_heard: Instant::ZERO,
            silence_ms: u32::try_from(silence.as_millis()).unwrap_or(u32::MAX),
            batch: Rare::default(),
        });
        if let Some(io) = self.links.get_mut(link) {
            // One allocation of its own size; a link has few.
            io.channels = io.channels.iter().copied().chain([index]).collect();
        }
    }

    /// UDP channels of all links.
    pub fn channel_count(&self) -> usize {
        self.channels.table.len()
    }

    /// How many UDP channels of a link there are, and how many work.
    pub fn channels_of(&self, link: Key) -> (usize, usize) {
        let Some(io) = self.links.get(link) else { return (0, 0) };
        let live = |index: &&u32| self.channels.table.get(**index).is_some_and(|c| c.is_live(self.now));
        (io.channels.len(), io.channels.iter().filter(live).count())
    }

    /// Ends a link's channels; a caller's sockets with them.
    pub(crate) fn end_channels(&mut self, indexes: &[u32]) {
        for &index in indexes {
            let Some(channel) = self.channels.remove(index) else { continue };
            if let Some(probe) = channel.batch.probe {
                self.end_probe(probe);
            }
            if let Some(clock) = channel.clock {
                self.timers.remove(clock.1);
                self.remove_udp(channel.socket);
            }
        }
    }

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

    fn seal_on(&mut self, index: u32, kind: u8, payload: &[u8], trailer: &[u8]) -> bool {
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

    /// Datagrams from a channel's other end. `own`: they came on a caller's socket of that channel.
    /// `probe`: on the spare port.
    pub(crate) fn on_channel_datagrams(
        &mut self,
        control: &mut impl Control,
        socket: Key,
        own: Option<u32>,
        probe: Option<Key>,
        datagrams: Datagrams,
    ) {
        let from = datagrams.peer;
        let size = if datagrams.segment == 0 { datagrams.payload.len() } else { usize::from(datagrams.segment) };
        let mut rest = datagrams.payload;
        while !rest.is_empty() {
            let packet = rest.split_to(size.clamp(1, rest.len()));
            match self.on_channel_packet(control, own, from, packet) {
                None => {}
                Some(Other::Stray(datagram)) => {
                    control.on_event(self, Event::Stray { socket, from, datagram: &datagram });
                }
                Some(Other::Probe { index, kind, body }) => {
                    match (kind, probe, own) {
                        (kind::PROBE, None, None) => {
                            if let Some(channel) = self.channels.table.get(index) {
                                self.on_probe(index, channel.id, from, &body);
                            }
                        }
                        (kind::PROBED, Some(probe), Some(_)) => self.on_probed(control, probe, &body),
                        _ => {}
                    }
                    self.rest_channel(index);
                }
            }
        }
    }

    /// Takes a channel's packet; what is none comes back, and what is a probe's.
    fn on_channel_packet(
        &mut self,
        control: &mut impl Control,
        own: Option<u32>,
        from: SocketAddr,
        mut packet: Piece,
    ) -> Option<Other> {
        let now = self.now;
        let header = match DatagramHeader::parse(&packet) {
            Ok(header) => header,
            Err(_) if own.is_none() => return Some(Other::Stray(packet)),
            Err(_) => {
                self.counts.datagrams_unknown_channel += 1;
                return None;
            }
        };
        let index = own.unwrap_or(header.channel.index() as u32);
        let Some(channel) = self.channels.table.get_mut(index).filter(|c| c.id == header.channel) else {
            self.counts.datagrams_unknown_channel += 1;
            return None;
        };
        let doubtful = channel.keys.is_doubtful(&header);
        if doubtful && !self.channels.doubts.may_make(now) {
            self.counts.datagrams_epoch_limited += 1;
            return None;
        }
        let warm = channel.keys.is_warm();
        let plain = match channel.keys.open(&mut packet) {
            Ok(range) => range,
            Err(DatagramError::Replayed | DatagramError::TooOld) => {
                self.counts.datagrams_replayed += 1;
                return None;
            }
            Err(_) => {
                self.counts.datagrams_forged += 1;
                if (doubtful || !warm && channel.keys.is_warm())
                    && channel.rests(now)
                    && let Some(oldest) = self.channels.doubts.built(index)
                {
                    self.rest_channel(oldest);
                }
                return None;
            }
        };
        self.counts.channel_datagrams_in += 1;
        // A spare port is no place to send a channel's datagrams to, nor a sign that they arrive.
        if matches!(header.kind, kind::PROBE | kind::PROBED) {
            packet.truncate(plain.end);
            packet.advance(plain.start);
            return Some(Other::Probe { index, kind: header.kind, body: packet });
        }
        channel.last_heard = now;
        // An older packet that took a longer way must not take the address back.
        if own.is_none()
            && channel.keys.newest()
            && channel.peer != Some(from)
            && let Some(old) = channel.peer.replace(from)
        {
            self.counts.channels_roamed += 1;
            let (old, new) = (canonical(old), canonical(from));
            tracing::info!(channel = channel.id.0, %old, %new, "UDP channel moved to another address");
        }
        if let Some((clock, timer)) = channel.clock.as_deref_mut() {
            clock.heard(now);
            // A channel that works now is told by its timer, which is therefore due at once.
            let deadline = if channel.told_live { clock.deadline() } else { now };
            self.timers.set(*timer, deadline);
        }
        let link = channel.link;
        packet.truncate(plain.end);
        packet.advance(plain.start);
        match header.kind {
            kind::DATA => {
                channel.batch.last_payload = now;
                self.channel_used(index);
                self.on_inner(control, link, packet);
            }
            // The echo is as long as the question: nothing is amplified.
            kind::PING => {
                if let Some(body) = MaintainBody::parse(&packet).filter(|_| own.is_none()) {
                    let most = u32::try_from(self.config.silence_max.as_millis()).unwrap_or(u32::MAX);
                    let silence_ms = body.time_ms.min(most);
                    if std::mem::replace(&mut channel.silence_ms, silence_ms) != silence_ms {
                        let silence = Duration::from_millis(u64::from(silence_ms));
                        self.samples.push(Sample::ChannelSilence(silence));
                    }
                }
                self.seal_on(index, kind::PONG, &packet, &[]);
                self.rest_channel(index);
            }
            _ => self.rest_channel(index),
        }
        None
    }

    /// A channel that carries maintain packets only gives its key contexts' memory back after each.
    fn rest_channel(&mut self, index: u32) {
        if let Some(channel) = self.channels.table.get_mut(index)
            && channel.rests(self.now)
        {
            channel.keys.release_context();
            channel.rest(self.now);
        }
    }

    /// The inner datagrams of an opened packet to their ports.
    fn on_inner(&mut self, control: &mut impl Control, link: Key, mut packet: Piece) {
        let mut inner = InnerDatagrams::new(&packet);
        let Some(mut one) = inner.next() else { return };
        // The usual packet carries one: the last one read is the first in the packet.
        let mut all = Vec::new();
        for next in inner {
            all.push(std::mem::replace(&mut one, next));
        }
        all.push(one);
        let (mut taken, now) = (0, self.now);
        for inner in all.into_iter().rev() {
            let mut payload = packet.split_to(inner.payload.end - taken);
            payload.advance(inner.payload.start - taken);
            taken = inner.payload.end;
            let Some(io) = self.links.get_mut(link) else { return };
            let Some(live) = io.live() else { return };
            let Some((_, owner)) = live.datagram_received(inner.port, payload.len(), now) else {
                self.counts.datagrams_unknown_port += 1;
                continue;
            };
            let owner = Key::from_bits(owner);
            if matches!(owner.what(), What::BridgeA | What::BridgeB) {
                self.bridge_datagram(link, owner, inner.remote, payload);
            } else {
                self.deliver_datagram(control, link, owner, inner.remote, payload);
            }
        }
    }

    /// From one link's channel to the other's.
    fn bridge_datagram(&mut self, link: Key, owner: Key, remote: Option<SocketAddr>, payload: Piece) {
        let Some(other) = self.bridge_other(owner) else { return };
        let Some(remote) = remote else { return };
        if !self.link_permits(link, remote) {
            return;
        }
        self.bridge_carries(owner, payload.len(), Some(true));
        let way = crate::datagram::Way::Channel { fallback: self.bridge_fallback(owner) };
        self.send_datagram(other.link, other.slot, way, remote, &payload);
    }

    /// A caller's channel carries payload: its maintain packets come as often as at the start.
    fn channel_used(&mut self, index: u32) {
        let now = self.now;
        if let Some(channel) = self.channels.table.get_mut(index)
            && let Some((clock, timer)) = channel.clock.as_deref_mut()
            && clock.used(now)
        {
            self.timers.set(*timer, clock.deadline());
        }
    }

    /// Sets how far apart the maintain packets of a caller's resting channels are.
    pub fn set_channels_period(&mut self, link: Key, period: Duration) {
        let Some(io) = self.links.get(link) else { return };
        for &index in &io.channels {
            if let Some(channel) = self.channels.table.get_mut(index)
                && let Some((clock, timer)) = channel.clock.as_deref_mut()
            {
                clock.set_period(period);
                self.timers.set(*timer, clock.deadline());
            }
        }
    }

    /// The relay's end: the longest silence that the link's callers leave between maintain packets, dead time included.
    pub fn channel_silence(&self, link: Key) -> Option<Duration> {
        let channels = self.links.get(link)?.channels.iter().filter_map(|&index| self.channels.table.get(index));
        channels.map(|channel| Duration::from_millis(u64::from(channel.silence_ms))).max()
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

    /// A caller's channel's clock.
    pub(crate) fn on_channel_timer(&mut self, control: &mut impl Control, timer: TimerId, socket: Key) {
        let now = self.now;
        let Some(UdpRole::Channel(index)) = self.udp_role(socket) else { return };
        let Some(channel) = self.channels.table.get_mut(index) else { return };
        let Some((clock, _)) = channel.clock.as_deref_mut() else { return };
        let action = clock.on_deadline(now);
        let (deadline, silence) = (clock.deadline(), clock.silence());
        self.timers.set(timer, deadline);
        let (link, live) = (channel.link, channel.is_live(now));
        let changed = std::mem::replace(&mut channel.told_live, live) != live;
        if action == ChannelAction::Ping {
            let time_ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
            self.seal_on(index, kind::PING, &MaintainBody { opaque: now.0, time_ms }.encode(), &[]);
        }
        if changed && !live {
            self.forget_lifetime(control, link);
        }
        if changed {
            control.on_event(self, Event::ChannelsChanged { link });
        }
    }
}

/// There are two and more of them for each of very many tunnels.
const _: () = assert!(size_of::<Channel>() <= 256);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(1 + ms * 1_000_000)
    }

    #[test]
    fn doubtful_epochs_are_made_up_to_the_limit_in_each_second() {
        let mut doubts = Doubts::default();
        for start in [1000, 2000, 9000] {
            let made = (0..3 * DOUBTFUL_EPOCHS_MAX).filter(|n| doubts.may_make(at(start + u64::from(n % 999)))).count();
            assert_eq!(made, DOUBTFUL_EPOCHS_MAX as usize);
        }
    }

    #[test]
    fn contexts_built_for_nothing_are_kept_up_to_the_limit_and_the_oldest_goes_first() {
        let mut doubts = Doubts::default();
        let limit = DOUBTFUL_CONTEXTS_MAX as u32;
        assert!((0..limit).all(|index| doubts.built(index).is_none()));
        assert_eq!([doubts.built(limit), doubts.built(limit + 1)], [Some(0), Some(1)]);
    }
}
