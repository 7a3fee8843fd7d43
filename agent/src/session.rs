//! Dialling the relay, and the greeting of a new session.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use isthmus_engine::{Caller, Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::hello::{self, Hello, Role, Welcome};
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::{LinkConfig, Maintain, Side};
use isthmus_proto::record::{self, ClientHandshake, Tickets};
use isthmus_proto::wire::Frame;
use isthmus_ring::{Family, Socket};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::config::{Config, Trust};
use crate::mediator::Mediator;

/// A time that the relay told; never none.
pub(crate) fn millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms.max(1)))
}

/// What is kept of a relay between two tunnels, as long as it is known by the same pin or authorities.
pub(crate) struct KnownRelay {
    trust: record::Trust,
    tls: Arc<ClientConfig>,
    /// With a ticket the next handshake is shorter.
    tickets: Arc<Tickets>,
}

impl KnownRelay {
    fn new(trust: record::Trust) -> anyhow::Result<Self> {
        let tls = record::client_config(trust.clone()).context("--ca cannot be used")?;
        Ok(Self { trust, tls, tickets: Arc::default() })
    }
}

impl Mediator {
    pub(crate) fn dial(&mut self, engine: &mut Engine, relay: SocketAddr) {
        match self.begin(engine, relay) {
            Ok(link) => self.link = Some(link),
            Err(error) => self.try_later(engine, &format!("{error:#}"), 0),
        }
    }

    fn begin(&mut self, engine: &mut Engine, relay: SocketAddr) -> anyhow::Result<Key> {
        let caller = match &self.config.trust {
            Trust::Plaintext => Caller::Plaintext,
            // Its certificate is to be shown each time, and may have been renewed.
            Trust::Pin(_) | Trust::Ca(_) if self.config.identity.is_some() => {
                let (tls, name) = tls_config(&self.config)?;
                Caller::Tls(Box::new(ClientHandshake::new(tls, name)?))
            }
            Trust::Pin(_) | Trust::Ca(_) => {
                let trust = record_trust(&self.config)?;
                let known = match self.known.take() {
                    Some(known) if known.trust == trust => known,
                    _ => KnownRelay::new(trust)?,
                };
                let handshake =
                    ClientHandshake::resuming(known.tls.clone(), server_name()?, known.tickets.clone(), engine.now());
                self.known = Some(known);
                Caller::Tls(Box::new(handshake))
            }
        };
        let socket = Socket::tcp(Family::from(relay)).context("cannot make a socket")?;
        if let Some(name) = &self.config.congestion {
            socket.set_congestion(name).with_context(|| format!("--congestion: the system does not offer {name}"))?;
        }
        tracing::debug!(%relay, "dialling");
        Ok(engine.dial_link(socket, relay, caller))
    }

    pub(crate) fn say_hello(&mut self, engine: &mut Engine, link: Key) {
        let token = match self.config.token.load() {
            Ok(token) => token,
            Err(error) => return engine.farewell(link, Code::BadToken, 0, &error.to_string()),
        };
        self.audit.set_mediator(token.mediator.as_str());
        self.shown_token.clone_from(&token.text);
        let mut hello = Hello {
            token: token.text,
            role: Role::Mediator { id: token.mediator, report: Box::new(self.report.clone()) },
            udp_channels: self.config.udp_channels,
            instance: self.instance,
        };
        // Plain data: it always serialises.
        let mut json = serde_json::to_vec(&hello).unwrap_or_default();
        // The version stands before it in the frame. A report by itself always fits.
        self.extras_wait = json.len() + size_of::<u16>() > FRAME_PAYLOAD_MAX;
        if self.extras_wait
            && let Role::Mediator { report, .. } = &mut hello.role
        {
            report.offers.clear();
            report.asks.clear();
            json = serde_json::to_vec(&hello).unwrap_or_default();
        }
        engine.greet(link, &Frame::Hello { version: hello::VERSION, json: &json });
    }

    pub(crate) fn on_welcome(&mut self, engine: &mut Engine, link: Key, frame: Frame<'_>) {
        if let Err(error) = self.accept_welcome(engine, link, frame) {
            engine.farewell(link, Code::ProtocolError, 0, &format!("{error:#}"));
        }
    }

    fn accept_welcome(&mut self, engine: &mut Engine, link: Key, frame: Frame<'_>) -> anyhow::Result<()> {
        let Frame::Welcome { version, json } = frame else { bail!("the relay's first frame is no welcome") };
        if version != hello::VERSION {
            bail!("the relay speaks version {version}, this mediator version {}", hello::VERSION);
        }
        let welcome: Welcome = serde_json::from_slice(json).context("the relay's welcome is not valid")?;
        let dead = millis(welcome.dead_ms);
        let maintain = Maintain::Caller { interval: millis(welcome.keepalive_tcp_ms), dead };
        engine.establish(link, LinkConfig { side: Side::Responder, ports_max: welcome.ports_max, maintain });
        self.succeeded();
        if self.extras_wait {
            self.send_report(engine);
        }
        self.expect_outcomes(welcome.asks_max as usize);
        self.watch_token(engine);
        tracing::info!(
            session = welcome.session,
            observed = %welcome.observed,
            channels = welcome.channels.len(),
            channels_after_ms = welcome.udp_after_ms,
            "tunnel up"
        );
        self.take_channels(engine, link, &welcome);
        Ok(())
    }
}

/// The mediator's own certificate, read at each connection, so that it can be renewed in place.
fn identity(cert: &Path, key: &Path) -> anyhow::Result<record::Identity> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert)
        .with_context(|| format!("--cert: cannot read {}", cert.display()))?
        .collect();
    let chain = chain.with_context(|| format!("--cert: {} is no PEM file", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("--key: cannot read a private key (PEM) from {}", key.display()))?;
    Ok(record::Identity { chain, key })
}

/// How the relay proves itself, and this mediator if by a certificate; and the name by which the relay is asked for.
///
/// # Errors
/// Files that cannot be read or used. Without TLS there is no such thing.
pub(crate) fn tls_config(config: &Config) -> anyhow::Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let identity = config.identity.as_ref().map(|(cert, key)| identity(cert, key)).transpose()?;
    let tls = record::client_config_with_identity(record_trust(config)?, identity)
        .context("--ca, or --cert and --key, cannot be used (do the latter fit together?)")?;
    Ok((tls, server_name()?))
}

fn server_name() -> anyhow::Result<ServerName<'static>> {
    ServerName::try_from(hello::SERVER_NAME).context("a relay's name is not valid")
}

/// By what the relay is known, read anew.
fn record_trust(config: &Config) -> anyhow::Result<record::Trust> {
    Ok(match &config.trust {
        Trust::Plaintext => bail!("there is no TLS with --plaintext"),
        Trust::Pin(pin) => record::Trust::Pin(*pin),
        Trust::Ca(path) => {
            let authorities: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                .with_context(|| format!("--ca: cannot read {}", path.display()))?
                .collect();
            record::Trust::Ca(authorities.with_context(|| format!("--ca: {} is no PEM file", path.display()))?)
        }
    })
}
