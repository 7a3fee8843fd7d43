//! The UDP channels of simulated mediators: at once, or later where the relay asks for that, as real ones do.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_engine::{Engine, Key};
use isthmus_proto::hello::Welcome;
use isthmus_proto::link::ChannelClock;
use isthmus_proto::record::UdpSecret;
use isthmus_proto::time::Instant;
use isthmus_proto::{ChannelId, ShardId};
use isthmus_ring::{Socket, UdpOptions};

use super::Simulator;

/// What a welcome granted.
pub(super) struct Granted {
    shard: ShardId,
    channels: Vec<ChannelId>,
    secret: UdpSecret,
    clock: ChannelClock,
}

/// Channels that are not opened yet.
#[derive(Default)]
pub(super) struct Unopened {
    by_time: BTreeMap<(Instant, u64), Key>,
    by_link: HashMap<Key, (Instant, Granted)>,
}

impl Unopened {
    pub(super) fn is_empty(&self) -> bool {
        self.by_link.is_empty()
    }

    /// When the last ones are opened.
    pub(super) fn last(&self) -> Option<Instant> {
        self.by_time.last_key_value().map(|(&(at, _), _)| at)
    }

    fn first(&self) -> Option<(Instant, Key)> {
        self.by_time.first_key_value().map(|(&(at, _), &link)| (at, link))
    }

    fn add(&mut self, at: Instant, link: Key, granted: Granted) {
        self.by_time.insert((at, link.to_bits()), link);
        self.by_link.insert(link, (at, granted));
    }

    fn take(&mut self, link: Key) -> Option<Granted> {
        let (at, granted) = self.by_link.remove(&link)?;
        self.by_time.remove(&(at, link.to_bits()));
        Some(granted)
    }

    /// The link has ended.
    pub(super) fn forget(&mut self, link: Key) {
        self.take(link);
    }
}

impl Simulator {
    /// Plaintext mode's channels have their secret in the welcome; nothing here needs them, and none are opened.
    pub(super) fn take_channels(&mut self, engine: &mut Engine, link: Key, welcome: &Welcome, clock: ChannelClock) {
        let Some(secret) = engine.udp_secret(link).filter(|_| !welcome.channels.is_empty()) else { return };
        let granted = Granted { shard: welcome.shard, channels: welcome.channels.clone(), secret, clock };
        if welcome.udp_after_ms == 0 {
            return self.open_granted(engine, link, &granted);
        }
        self.figures.channels_later += 1;
        let at = engine.now() + Duration::from_millis(welcome.udp_after_ms.into());
        if self.unopened.first().is_none_or(|(first, _)| at < first) {
            engine.set_timer(self.timers.channels, at);
        }
        self.unopened.add(at, link, granted);
    }

    /// Something needs them now.
    pub(super) fn open_channels(&mut self, engine: &mut Engine, link: Key) {
        if let Some(granted) = self.unopened.take(link) {
            self.open_granted(engine, link, &granted);
        }
    }

    pub(super) fn open_later_channels(&mut self, engine: &mut Engine) {
        let mut opened = 0;
        while let Some((at, link)) = self.unopened.first() {
            if at > engine.now() || opened == self.settings.at_once {
                return engine.set_timer(self.timers.channels, at);
            }
            self.open_channels(engine, link);
            opened += 1;
        }
    }

    fn open_granted(&mut self, engine: &mut Engine, link: Key, granted: &Granted) {
        if let Err(error) = self.try_open(engine, link, granted) {
            tracing::warn!("without UDP channels: {error:#}");
            *self.figures.ended.entry("no-channels").or_default() += 1;
        }
    }

    fn try_open(&self, engine: &mut Engine, link: Key, granted: &Granted) -> anyhow::Result<()> {
        let relay = self.settings.relay;
        let any: SocketAddr = if relay.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let any = self.links.get(&link).and_then(|tunnel| self.source(tunnel.index)).unwrap_or(any);
        for &id in &granted.channels {
            let options = UdpOptions { gro: true, ..UdpOptions::default() };
            let socket = Socket::udp(any, options).context("cannot make a UDP socket")?;
            socket.connect_udp(relay).with_context(|| format!("no route for UDP to {relay}"))?;
            engine.add_caller_channel(link, socket, granted.shard, id, &granted.secret, granted.clock)?;
        }
        Ok(())
    }
}
