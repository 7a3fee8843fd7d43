//! Dialling, the greeting, and the UDP channels of a new tunnel.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use isthmus_engine::{Caller, Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::hello::{self, Hello, Report, Role, Welcome};
use isthmus_proto::link::{ChannelClock, LinkConfig, Maintain, Side};
use isthmus_proto::record::ClientHandshake;
use isthmus_proto::wire::Frame;
use isthmus_ring::{BindOptions, Family, Socket};
use rustls::pki_types::ServerName;

use super::{Simulator, Tunnel};

/// Life of a token: longer than any measurement. Who stays for longer gets a new one.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A report of the usual size.
pub(super) fn report() -> anyhow::Result<Report> {
    let json = serde_json::json!({
        "interfaces": [{ "name": "eth0", "mtu": 1500, "addresses": ["10.0.0.2/24", "fd00::2/64"] }],
        "gateways": ["10.0.0.1"],
        "os": "Linux 6.12.0",
        "version": env!("CARGO_PKG_VERSION"),
        "policy": ["10.0.0.0/24", "fd00::/64"],
        "service": "load",
    });
    serde_json::from_value(json).context("the report is not valid")
}

impl Simulator {
    pub(super) fn dial(&self, engine: &mut Engine, index: usize) -> anyhow::Result<Key> {
        let caller = match &self.settings.tls {
            None => Caller::Plaintext,
            Some(config) => {
                let name = ServerName::try_from(hello::SERVER_NAME).context("a relay's name is not valid")?;
                let handshake = match self.tickets.get(index) {
                    Some(tickets) => ClientHandshake::resuming(config.clone(), name, tickets.clone(), engine.now()),
                    None => ClientHandshake::new(config.clone(), name)?,
                };
                Caller::Tls(Box::new(handshake))
            }
        };
        let socket = Socket::tcp(Family::from(self.settings.relay)).context("cannot make a socket")?;
        if let Some(source) = self.source(index) {
            let options = BindOptions { no_port: true, ..BindOptions::default() };
            socket.bind(source, options).with_context(|| format!("--source: cannot use {source}"))?;
        }
        Ok(engine.dial_link(socket, self.settings.relay, caller))
    }

    /// A mediator's own address, with any port number.
    pub(super) fn source(&self, index: usize) -> Option<SocketAddr> {
        let net = self.settings.sources?;
        // The network's own address and the broadcast address at its end are nobody's.
        let hosts = u32::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0).saturating_sub(1).max(1);
        let host = u32::from(net.network()) + 1 + ((self.first + index) % hosts as usize) as u32;
        Some(SocketAddr::new(Ipv4Addr::from(host).into(), 0))
    }

    pub(super) fn say_hello(&mut self, engine: &mut Engine, link: Key) {
        let Some(&Tunnel { index, .. }) = self.links.get(&link) else { return };
        let id = self.settings.names[index].clone();
        let token = match self.token(index) {
            Ok(token) => token.into(),
            Err(error) => return engine.farewell(link, Code::BadToken, 0, &format!("{error:#}")),
        };
        let report = Report { hostname: id.to_string(), ..self.report.clone() };
        let role = Role::Mediator { id, report: Box::new(report) };
        let hello = Hello { token, role, udp_channels: self.settings.udp_channels, instance: 0 };
        // Plain data: it always serialises.
        let json = serde_json::to_vec(&hello).unwrap_or_default();
        engine.greet(link, &Frame::Hello { version: hello::VERSION, json: &json });
    }

    fn token(&mut self, index: usize) -> anyhow::Result<&str> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if now.saturating_sub(self.signed_since_s) >= TOKEN_TTL.as_secs() / 2 {
            self.tokens.fill(None);
            self.signed_since_s = now;
        }
        Ok(match &mut self.tokens[index] {
            Some(token) => token,
            none => {
                none.insert(self.settings.tokens.issue_mediator(&self.settings.names[index], TOKEN_TTL, now)?.into())
            }
        })
    }

    pub(super) fn on_welcome(&mut self, engine: &mut Engine, link: Key, frame: Frame<'_>) {
        if let Err(error) = self.accept_welcome(engine, link, frame) {
            engine.farewell(link, Code::ProtocolError, 0, &format!("{error:#}"));
        }
    }

    fn accept_welcome(&mut self, engine: &mut Engine, link: Key, frame: Frame<'_>) -> anyhow::Result<()> {
        let Frame::Welcome { json, .. } = frame else { bail!("the relay's first frame is no welcome") };
        let welcome: Welcome = serde_json::from_slice(json).context("the relay's welcome is not valid")?;
        let millis = |ms: u32| Duration::from_millis(u64::from(ms.max(1)));
        let dead = millis(welcome.dead_ms);
        let maintain = Maintain::Caller { interval: millis(welcome.keepalive_tcp_ms), dead };
        engine.establish(link, LinkConfig { side: Side::Responder, ports_max: welcome.ports_max, maintain });
        let mut clock = ChannelClock::new(millis(welcome.keepalive_udp_ms), dead);
        if self.settings.learned {
            // What a mediator learns behind a gateway that keeps bindings for longer than the relay lets it ask.
            clock.set_period(millis(welcome.keepalive_udp_max_ms) * 4 / 5);
        }
        self.take_channels(engine, link, &welcome, clock);
        if let Some(tunnel) = self.links.get_mut(&link) {
            tunnel.up = true;
            self.dialling -= 1;
            self.figures.up += 1;
            self.figures.came_up += 1;
            self.figures.handshakes.add(engine.now().since(self.dialled[tunnel.index]));
        }
        self.dial_more(engine);
        Ok(())
    }
}
