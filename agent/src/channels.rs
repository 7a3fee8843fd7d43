//! The UDP channels of a session: opened at its start, or, where the relay asks for that, a little later, unless something
//! needs them before.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_engine::{Ask, Engine, Key};
use isthmus_proto::hello::Welcome;
use isthmus_proto::link::{ChannelClock, Lifetime};
use isthmus_proto::record::UdpSecret;
use isthmus_proto::time::Instant;
use isthmus_proto::wire::OpenFlags;
use isthmus_proto::{ChannelId, ShardId};
use isthmus_ring::{Socket, UdpOptions};

use crate::mediator::Mediator;
use crate::ports::{Asked, Request};
use crate::session::millis;

/// The service port's UDP sockets of one session are the relay's single number from several local ones.
const CHANNEL_BUFFER: usize = 2 << 20;

/// Longest time for which a relay may have them left unopened.
const LATER_MAX: Duration = Duration::from_secs(60);

/// How long a request waits for the first channel to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Requests that wait for it; one more is answered as if none did.
const WAITING_MAX: usize = 256;

/// What is left to do for UDP channels.
#[derive(Default)]
pub(crate) struct Channels {
    /// Not opened yet.
    granted: Option<Granted>,
    /// Requests that need a channel that works, since they allow no other way.
    waiting: Vec<Request>,
    /// Until when they do so.
    answer_by: Instant,
    /// What the log was told last: those that work, and all.
    told: (usize, usize),
}

/// What the relay granted.
struct Granted {
    link: Key,
    shard: ShardId,
    channels: Vec<ChannelId>,
    secret: UdpSecret,
    /// Between maintain packets at first, and at most.
    period: (Duration, Duration),
    dead: Duration,
}

impl Channels {
    /// The tunnel has ended.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Mediator {
    /// The welcome's channels, now or in a while.
    pub(crate) fn take_channels(&mut self, engine: &mut Engine, link: Key, welcome: &Welcome) {
        self.channels.clear();
        match granted(engine, link, welcome) {
            Ok(granted) => self.channels.granted = granted,
            Err(error) => tracing::warn!("without UDP channels: {error:#}"),
        }
        match welcome.udp_after_ms {
            0 => self.open_channels(engine),
            ms => engine.set_timer(self.timers.channels, engine.now() + millis(ms).min(LATER_MAX)),
        }
    }

    /// Opens those that are not open yet.
    fn open_channels(&mut self, engine: &mut Engine) {
        let Some(granted) = self.channels.granted.take() else { return };
        match granted.open(engine) {
            Ok(()) => granted.learn_lifetime(engine),
            Err(error) => tracing::warn!("without UDP channels: {error:#}"),
        }
        self.channels.answer_by = engine.now() + ANSWER;
        engine.set_timer(self.timers.channels, self.channels.answer_by);
    }

    /// The time has come: to open them, or to tell those that wait for them that they do not work.
    pub(crate) fn on_channels_due(&mut self, engine: &mut Engine) {
        match self.channels.granted {
            Some(_) => self.open_channels(engine),
            None => {
                if let Some((all @ 1.., 0)) = self.link.map(|link| engine.channels_of(link)) {
                    tracing::warn!(
                        all,
                        "no UDP channel answers: datagrams go over the TCP channel, as far as that is allowed; let UDP to the \
                         relay's port through"
                    );
                }
                self.serve_waiting(engine, |_| true);
            }
        }
    }

    pub(crate) fn on_channels_changed(&mut self, engine: &mut Engine, link: Key) {
        let (all, live) = engine.channels_of(link);
        // Several change together.
        if std::mem::replace(&mut self.channels.told, (live, all)) != (live, all) {
            tracing::info!(live, all, "UDP channels");
        }
        if live > 0 {
            self.serve_waiting(engine, |_| true);
        }
    }

    /// A request may need channels that are not open yet: they are opened. Whether it has to wait until one works.
    pub(crate) fn waits_for_channel(&mut self, engine: &mut Engine, request: Request) -> bool {
        let Request { asked: Asked { link, slot, .. }, ask } = request;
        // What is asked of one port is done in its order.
        if self.channels.waiting.iter().any(|waiting| waiting.asked.slot == slot) {
            if ask != Ask::Close && self.channels.waiting.len() < WAITING_MAX {
                self.channels.waiting.push(request);
                return true;
            }
            self.serve_waiting(engine, |waiting| waiting.asked.slot == slot);
            return false;
        }
        let flags = match ask {
            Ask::Open { flags, .. } if flags.has(OpenFlags::UDP) => flags,
            Ask::Switch { flags } => flags,
            _ => return false,
        };
        if !flags.has(OpenFlags::REDIRECT) {
            return false;
        }
        self.open_channels(engine);
        let (all, live) = engine.channels_of(link);
        let may_come = all > 0 && live == 0 && engine.now() < self.channels.answer_by;
        if flags.has(OpenFlags::FALLBACK) || !may_come || self.channels.waiting.len() >= WAITING_MAX {
            return false;
        }
        self.channels.waiting.push(request);
        true
    }

    /// Those that waited are done now.
    fn serve_waiting(&mut self, engine: &mut Engine, which: impl Fn(&Request) -> bool) {
        let (now, later) = std::mem::take(&mut self.channels.waiting).into_iter().partition(which);
        self.channels.waiting = later;
        for request in now {
            // Its port may have ended meanwhile.
            if engine.link(request.asked.link).is_some_and(|machine| machine.kind(request.asked.slot).is_some()) {
                self.do_request(engine, request);
            }
        }
    }
}

/// The welcome's channels; none where they cannot be had.
fn granted(engine: &Engine, link: Key, welcome: &Welcome) -> anyhow::Result<Option<Granted>> {
    let secret = match (engine.udp_secret(link), &welcome.udp_secret) {
        (Some(secret), _) => secret,
        (None, Some(hex)) => UdpSecret::new(from_hex(hex).context("the welcome's UDP secret is not valid")?.into()),
        (None, None) => return Ok(None),
    };
    Ok(Some(Granted {
        link,
        shard: welcome.shard,
        channels: welcome.channels.clone(),
        secret,
        period: (millis(welcome.keepalive_udp_ms), millis(welcome.keepalive_udp_max_ms)),
        dead: millis(welcome.dead_ms),
    }))
}

impl Granted {
    fn open(&self, engine: &mut Engine) -> anyhow::Result<()> {
        let relay = engine.link_peer(self.link).context("the tunnel is gone")?;
        let clock = ChannelClock::new(self.period.0, self.dead);
        for &id in &self.channels {
            engine.add_caller_channel(self.link, channel_socket(relay)?, self.shard, id, &self.secret, clock)?;
        }
        Ok(())
    }

    /// Begins to ask how long the gateway keeps bindings.
    fn learn_lifetime(&self, engine: &mut Engine) {
        let Some(relay) = engine.link_peer(self.link) else { return };
        let mut random = [0; 8];
        // Without random bytes, the moment spreads as well.
        let _ = getrandom::fill(&mut random);
        let seed = u64::from_ne_bytes(random) ^ engine.now().0;
        let lifetime = Lifetime::new(self.period.0, self.period.1, seed, engine.now());
        engine.learn_lifetime(self.link, lifetime, Box::new(move || channel_socket(relay).ok()));
    }
}

/// A socket on a local port of its own, connected to the relay's service port.
fn channel_socket(relay: SocketAddr) -> anyhow::Result<Socket> {
    let any: SocketAddr = if relay.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket =
        Socket::udp(any, UdpOptions { gro: true, ..UdpOptions::default() }).context("cannot make a UDP socket")?;
    let _ = socket.set_buffers(Some(CHANNEL_BUFFER), Some(CHANNEL_BUFFER));
    socket.connect_udp(relay).with_context(|| format!("no route for UDP to {relay}"))?;
    Ok(socket)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    for (byte, pair) in secret.iter_mut().zip(bytes.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(secret)
}
