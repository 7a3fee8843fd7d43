//! UDP channels: their life, opening of what they receive, maintain packets, and adopting a changed address.

mod doubts;
mod transmit;

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::link::{ChannelAction, ChannelClock};
use isthmus_proto::rare::Rare;
use isthmus_proto::record::{ChannelKeys, DatagramError, DatagramHeader, End, UdpSecret};
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
use doubts::Doubts;
use transmit::Batch;

#[derive(Default)]
pub(crate) struct Channels {
    table: Chunks<Channel>,
    generation: u8,
    doubts: Doubts,
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

/// What a packet is that is no channel's own business.
enum Other {
    /// Opened: a question or an answer of a spare port.
    Probe { index: u32, kind: u8, body: Piece },
    /// Not a channel's at all.
    Stray(Piece),
}

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
        self.replace_spent();
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
                self.spend_udp(channel.socket);
            }
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
