//! UDP channels: sealed datagrams to and from the relay, and their maintain packets.
//!
//! Senders seal in their own task and send at once, with no detour by the driver; one small task per
//! channel receives and pings.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_proto::hello::Welcome;
use isthmus_proto::limits::CHANNEL_PLAINTEXT_MAX;
use isthmus_proto::link::{ChannelAction, ChannelClock};
use isthmus_proto::record::{ChannelKeys, DATAGRAM_OVERHEAD, DatagramHeader, End};
use isthmus_proto::wire::{TRAILER_ADDR_LEN, channel_kind as kind, write_trailer};
use isthmus_proto::{ChannelId, Instant, PortId, ShardId};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::Error;
use crate::shared::Shared;

/// Longest datagram on a channel.
const PACKET_MAX: usize = CHANNEL_PLAINTEXT_MAX + DATAGRAM_OVERHEAD;

/// Receive buffer: whatever UDP can bring, since the other end may know a larger MTU.
const RECEIVE_MAX: usize = 65_536;

/// Datagrams that are taken from a socket before others get their turn.
const TURN_MAX: usize = 64;

/// The channels of one connection.
#[derive(Default)]
pub(crate) struct Channels {
    all: Vec<Channel>,
    /// Told when a channel begins to answer or the connection ends.
    pub(crate) changed: Notify,
}

struct Channel {
    id: ChannelId,
    shard: ShardId,
    socket: UdpSocket,
    outgoing: Mutex<Outgoing>,
}

struct Outgoing {
    /// Used for sealing only; the receiving task has a copy of its own for opening, so that neither waits.
    keys: ChannelKeys,
    clock: ChannelClock,
}

/// The receiving part of a channel; see [`Channels::run`].
pub(crate) struct Incoming {
    index: usize,
    keys: ChannelKeys,
}

impl Channels {
    /// Sockets and keys for the channels that the welcome names.
    ///
    /// # Errors
    /// [`Error::Io`] when no socket can be had.
    pub(crate) async fn open(
        welcome: &Welcome,
        secret: &[u8; 32],
        relay: SocketAddr,
    ) -> Result<(Self, Vec<Incoming>), Error> {
        let failed = |source| Error::io("cannot make a UDP socket for a channel to the relay", source);
        let (interval, dead) = (millis(welcome.keepalive_udp_ms), millis(welcome.dead_ms));
        let any: SocketAddr = if relay.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let (mut all, mut incoming) = (Vec::new(), Vec::new());
        for &id in &welcome.channels {
            let socket = UdpSocket::bind(any).await.map_err(failed)?;
            socket.connect(relay).await.map_err(failed)?;
            let derive = || ChannelKeys::derive(secret, id, 0, End::Caller).map_err(Error::protocol);
            let outgoing = Mutex::new(Outgoing { keys: derive()?, clock: ChannelClock::new(interval, dead) });
            incoming.push(Incoming { index: all.len(), keys: derive()? });
            all.push(Channel { id, shard: welcome.shard, socket, outgoing });
        }
        Ok((Self { all, changed: Notify::new() }, incoming))
    }

    /// How many channels there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many answer.
    pub(crate) fn live(&self, now: Instant) -> usize {
        self.all.iter().filter(|channel| channel.lock().clock.is_live(now)).count()
    }

    /// Whether a payload with its trailer fits a channel's datagram.
    pub(crate) fn fits(payload_len: usize) -> bool {
        payload_len + TRAILER_ADDR_LEN <= CHANNEL_PLAINTEXT_MAX
    }

    /// Sends a port's datagram over a channel that works: always the same one for a port while it works,
    /// so that its datagrams keep their order. `false` when none works.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) async fn send(
        &self,
        port: PortId,
        remote: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> io::Result<bool> {
        let mut trailer = [0; TRAILER_ADDR_LEN];
        let len = write_trailer(&mut trailer, port, Some(remote), payload.len() as u16);
        let mut packet = [0; PACKET_MAX];
        let count = self.all.len();
        // From the port's own on, all of them.
        for channel in self.all.iter().cycle().skip(port.index() % count.max(1)).take(count) {
            let sealed = {
                let mut outgoing = channel.lock();
                if !outgoing.clock.is_live(now) {
                    continue;
                }
                outgoing.keys.seal_into(
                    channel.header(kind::DATA),
                    payload,
                    trailer.get(..len).unwrap_or_default(),
                    &mut packet,
                )
            };
            // A used-up key is a channel that no longer works.
            let Ok(size) = sealed else { continue };
            return channel.send(packet.get(..size).unwrap_or_default()).await.map(|()| true);
        }
        Ok(false)
    }

    /// Receives on one channel and maintains it, until the connection ends.
    pub(crate) async fn run(shared: Arc<Shared>, mut incoming: Incoming) {
        let Some(channel) = shared.channels.all.get(incoming.index) else { return };
        let mut buffer = vec![0; RECEIVE_MAX];
        loop {
            let deadline = channel.maintain(shared.now()).await;
            tokio::select! {
                ready = channel.socket.readable() => {
                    if ready.is_err() {
                        return;
                    }
                    for _ in 0..TURN_MAX {
                        match channel.socket.try_recv(&mut buffer) {
                            Ok(len) => {
                                let packet = buffer.get_mut(..len).unwrap_or_default();
                                channel.on_packet(&shared, &mut incoming.keys, packet).await;
                            }
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            // An ICMP error: the clock finds out what it means.
                            Err(_) => break,
                        }
                    }
                    tokio::task::yield_now().await;
                }
                () = tokio::time::sleep_until(shared.time_of(deadline)) => {}
            }
        }
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, kind: u8) -> DatagramHeader {
        DatagramHeader { shard: self.shard, kind, epoch: 0, channel: self.id, packet: 0 }
    }

    /// Waits for room in the socket's buffer rather than drop: a sender that is faster than its own
    /// network interface learns it as with any UDP socket.
    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        match self.socket.send(packet).await {
            // An ICMP error that an earlier packet met.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Pings when it is time; gives the time of the next look.
    async fn maintain(&self, now: Instant) -> Instant {
        let mut packet = [0; DATAGRAM_OVERHEAD + 8];
        let (size, deadline) = {
            let mut outgoing = self.lock();
            let size = match outgoing.clock.on_deadline(now) {
                ChannelAction::Wait => None,
                ChannelAction::Ping => {
                    outgoing.keys.seal_into(self.header(kind::PING), &now.0.to_be_bytes(), &[], &mut packet).ok()
                }
            };
            (size, outgoing.clock.deadline())
        };
        if let Some(size) = size
            && let Err(error) = self.send(packet.get(..size).unwrap_or_default()).await
        {
            tracing::debug!(channel = self.id.0, %error, "cannot send a maintain packet");
        }
        deadline
    }

    async fn on_packet(&self, shared: &Shared, keys: &mut ChannelKeys, packet: &mut [u8]) {
        // Whoever forges or replays is not answered.
        let Ok(header) = DatagramHeader::parse(packet) else { return };
        if header.channel != self.id {
            return;
        }
        let Ok(range) = keys.open(packet) else { return };
        let now = shared.now();
        let was_live = {
            let mut outgoing = self.lock();
            let was_live = outgoing.clock.is_live(now);
            outgoing.clock.heard(now);
            was_live
        };
        if !was_live {
            shared.channels.changed.notify_waiters();
        }
        let plaintext = packet.get(range).unwrap_or_default();
        match header.kind {
            kind::DATA => shared.with(|state| state.on_channel_plaintext(plaintext, now)),
            kind::PING if plaintext.len() <= CHANNEL_PLAINTEXT_MAX => {
                let mut answer = [0; PACKET_MAX];
                let sealed = self.lock().keys.seal_into(self.header(kind::PONG), plaintext, &[], &mut answer);
                if let Ok(size) = sealed {
                    // A lost echo is asked for again.
                    let _ = self.send(answer.get(..size).unwrap_or_default()).await;
                }
            }
            _ => {}
        }
    }
}

fn millis(n: u32) -> Duration {
    Duration::from_millis(n.into())
}
