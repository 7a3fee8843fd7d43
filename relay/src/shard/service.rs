//! The service port: connections, handshakes, and who may come in.

use std::net::SocketAddr;

use std::time::Duration;

use isthmus_engine::{Engine, Key};
use isthmus_proto::hello::{self, Hello, Role, Welcome};
use isthmus_proto::limits::{self, CHANNELS_MAX};
use isthmus_proto::link::{LinkConfig, Maintain, Side};
use isthmus_proto::record::UdpSecret;
use isthmus_proto::wire::Frame;
use isthmus_proto::{Code, ShardId};
use isthmus_ring::Socket;

use super::handover::Message;
use super::tunnel::Caller;
use super::{Party, Shard};
use crate::admin::Counter;
use crate::trust::{Grant, Shown, unix_now};

/// Handshakes that a shard has begun and not ended, from which on it takes them for a storm: all mediators that come back after
/// the relay or their way to it was away. Of handshakes that take a tenth of a second, 160 begin in each.
const CROWD: u32 = 16;

/// How long mediators of a storm leave their UDP channels unopened: from this to twice this, in milliseconds.
const UDP_AFTER_MS: u64 = 5000;

/// From one session to the next, in milliseconds.
const UDP_AFTER_STEP_MS: u64 = 7;

impl Shard {
    /// A connection to the service port.
    pub(super) fn on_caller(&mut self, engine: &mut Engine, socket: Socket, peer: SocketAddr) {
        self.counters.add(Counter::HandshakesTotal, 1);
        if self.stopping || self.half_open >= self.half_open_max() {
            self.counters.add(Counter::HandshakesFailedOverload, 1);
            let _ = socket.set_reset_on_close();
            return;
        }
        let link = engine.accept_link(socket, peer, self.trust.tls.clone());
        self.half_open += 1;
        self.links.insert(link, Party::HalfOpen(self.trust.judges()));
    }

    /// A handshake that came to nothing.
    pub(super) fn on_half_open_ended(&mut self, code: Code, text: &str) {
        self.half_open = self.half_open.saturating_sub(1);
        self.count_refusal(code);
        tracing::debug!(reason = code.word(), text, "handshake failed");
    }

    fn count_refusal(&mut self, code: Code) {
        let counter = match code {
            Code::TlsFailed => Counter::HandshakesFailedTls,
            Code::HandshakeTimeout => Counter::HandshakesFailedTimeout,
            Code::BadToken | Code::TokenExpired | Code::TokenMismatch | Code::Revoked => Counter::HandshakesFailedToken,
            Code::BadVersion => Counter::HandshakesFailedVersion,
            Code::PlaintextRefused => Counter::HandshakesFailedPlaintext,
            Code::BadHello | Code::ProtocolError => Counter::HandshakesFailedHello,
            Code::Overloaded => Counter::HandshakesFailedOverload,
            Code::Draining => Counter::SentAway,
            _ => Counter::HandshakesFailedLost,
        };
        self.counters.add(counter, 1);
    }

    /// A caller's first frame: who is it, may it come in, and to which shard does it belong?
    pub(super) fn on_greeting(&mut self, engine: &mut Engine, link: Key, frame: Frame<'_>) {
        let Some(&Party::HalfOpen(judges)) = self.links.get(&link) else { return };
        let certificate = engine.take_caller_certificate(link);
        let shown = certificate.as_deref().map(|der| Shown { der, judges });
        let (hello, grant) = match self.check_hello(frame, shown) {
            Ok(pair) => pair,
            Err((code, text)) => return self.refuse(engine, link, code, &text),
        };
        let owner = match mediator_of(&hello) {
            Some(id) => id.shard(self.peers.len()),
            None => self.seat.id,
        };
        if owner == self.seat.id {
            return self.admit(engine, link, hello, grant);
        }
        // Our last handshake message is still in the kernel's hands only if the caller has not read it,
        // and then it could not have greeted.
        let Some(detached) = engine.detach(link) else {
            return self.refuse(engine, link, Code::Overloaded, "the handshake is not settled; try again");
        };
        self.links.remove(&link);
        self.half_open = self.half_open.saturating_sub(1);
        let message = Message::Link { detached: Box::new(detached), hello: Box::new(hello), grant: Box::new(grant) };
        if self.send(owner, message).is_err() {
            // Dropping it closes the connection; the caller comes back.
            self.count_refusal(Code::Overloaded);
        }
    }

    fn check_hello(&self, frame: Frame<'_>, certificate: Option<Shown<'_>>) -> Result<(Hello, Grant), (Code, String)> {
        let Frame::Hello { version, json } = frame else {
            return Err((Code::BadHello, "the first frame must be a hello".into()));
        };
        if version != hello::VERSION {
            let text = format!("the caller speaks version {version}, this relay version {}", hello::VERSION);
            return Err((Code::BadVersion, text));
        }
        let hello: Hello = serde_json::from_slice(json)
            .map_err(|error| (Code::BadHello, format!("the hello is not valid: {error}")))?;
        let grant = self.trust.admit(&hello, certificate, unix_now())?;
        Ok((hello, grant))
    }

    /// Tells a caller why not.
    pub(super) fn refuse(&mut self, engine: &mut Engine, link: Key, code: Code, text: &str) {
        self.refuse_for(engine, link, code, Duration::ZERO, text);
    }

    /// The same to one that is to wait before it comes again.
    fn refuse_for(&mut self, engine: &mut Engine, link: Key, code: Code, wait: Duration, text: &str) {
        let peer = engine.link_peer(link);
        tracing::info!(peer = peer.map(tracing::field::display), reason = code.word(), text, "caller refused");
        self.count_refusal(code);
        if let Some(Party::HalfOpen(_)) = self.links.insert(link, Party::Leaving) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        engine.farewell(link, code, wait.as_millis() as u32, text);
    }

    /// Lets a caller in, on its owner's shard.
    pub(super) fn admit(&mut self, engine: &mut Engine, link: Key, hello: Hello, grant: Grant) {
        if let Some(Party::HalfOpen(_)) = self.links.insert(link, Party::Leaving) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        if self.stopping {
            return self.refuse(engine, link, Code::Draining, "the relay is shutting down");
        }
        // It may have been handed over while what is trusted changed.
        if let Err(code) = self.trust.still(grant.holder, &grant.name, &grant.credential, unix_now()) {
            return self.refuse(engine, link, code, code.text());
        }
        match hello.role {
            Role::Mediator { .. } if self.drain.is_on() => {
                let wait = Self::drained_wait(hello.instance);
                self.refuse_for(engine, link, Code::Draining, wait, "the relay is drained by its operator");
            }
            Role::Mediator { id, report } => {
                let caller = Caller { proof: grant.credential, instance: hello.instance };
                self.attach_mediator(engine, link, id, *report, hello.udp_channels, caller);
            }
            Role::Terminal { mediator } => self.attach_terminal(engine, link, mediator, grant, hello.udp_channels),
        }
    }

    /// This shard's part of the most handshakes at once.
    fn half_open_max(&self) -> u32 {
        self.shared.config.half_open_max.div_ceil(self.peers.len().max(1) as u32)
    }

    /// Whether so many are coming at once that what can wait should.
    pub(super) fn is_crowded(&self) -> bool {
        self.half_open >= CROWD.min(self.half_open_max())
    }

    /// How long a mediator leaves its UDP channels unopened: they cost about a third of its return.
    fn udp_after(&self, session: u64) -> Duration {
        if !self.is_crowded() {
            return Duration::ZERO;
        }
        // Sessions are counted, so that this spreads them evenly.
        let part = session.wrapping_mul(UDP_AFTER_STEP_MS) % UDP_AFTER_MS;
        Duration::from_millis(UDP_AFTER_MS + part)
    }

    /// Sends the welcome and establishes the link.
    pub(super) fn welcome(
        &mut self,
        engine: &mut Engine,
        link: Key,
        side: Side,
        udp_channels: u8,
        report: Option<Box<hello::Report>>,
    ) -> u64 {
        let config = &self.shared.config;
        self.sessions += 1;
        let session = self.sessions * self.peers.len() as u64 + u64::from(self.seat.id.0);
        let (secret, udp_secret) = match engine.udp_secret(link) {
            Some(secret) => (Some(secret), None),
            None => match random_secret() {
                Some(secret) => (Some(UdpSecret::new(secret.into())), Some(hex(&secret))),
                None => (None, None),
            },
        };
        let udp_after = match side {
            Side::Requester if udp_channels > 0 => self.udp_after(session),
            Side::Requester | Side::Responder => Duration::ZERO,
        };
        let silence = config.keepalive_udp + config.dead_after;
        let channels = (0..udp_channels.min(CHANNELS_MAX))
            .map_while(|_| {
                // It fails only where the cipher itself does: the link then has fewer channels.
                let secret = secret.as_ref()?;
                engine.add_relay_channel(link, self.service_udp, self.seat.id, secret, silence).ok()
            })
            .collect();
        let welcome = Welcome {
            session,
            observed: engine.link_peer(link).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shard: ShardId(self.seat.id.0),
            channels,
            udp_after_ms: udp_after.as_millis() as u32,
            udp_secret,
            keepalive_tcp_ms: config.keepalive_tcp.as_millis() as u32,
            keepalive_udp_ms: config.keepalive_udp.as_millis() as u32,
            keepalive_udp_max_ms: config.keepalive_udp_max.as_millis() as u32,
            dead_ms: config.dead_after.as_millis() as u32,
            ports_max: config.ports_max,
            asks_max: limits::ASKS_MAX as u32,
            report,
        };
        // Plain data: it always serialises.
        let json = serde_json::to_vec(&welcome).unwrap_or_default();
        engine.greet(link, &Frame::Welcome { version: hello::VERSION, json: &json });
        let maintain = Maintain::Relay { silence: config.keepalive_tcp + config.dead_after };
        engine.establish(link, LinkConfig { side, ports_max: config.ports_max, maintain });
        session
    }
}

fn mediator_of(hello: &Hello) -> Option<&isthmus_proto::MediatorId> {
    match &hello.role {
        Role::Mediator { id, .. } => Some(id),
        Role::Terminal { mediator } => mediator.as_ref(),
    }
}

fn random_secret() -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).ok()?;
    Some(secret)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
