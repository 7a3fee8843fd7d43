//! From an address to a greeted connection: TCP, TLS or plaintext, hello and welcome.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::hello::{Hello, Role, VERSION, Welcome};
use isthmus_proto::record::{
    self, ClientHandshake, Established, Opened, PLAINTEXT_MAX, RECORD_HEADER, RECORD_MAX, Session, Step,
    client_config_with_identity,
};
use isthmus_proto::wire::{ControlBuf, Frame, HEADER_LEN, read_header};
use isthmus_proto::{Code, MediatorId};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::{Zeroize, Zeroizing};

use crate::{Config, Error, Trust};

/// The name in the certificates that a relay's own CA signs, whatever address the relay has.
const RELAY_NAME: &str = "isthmus-relay";

/// A greeted connection.
pub(crate) struct Dialled {
    pub(crate) socket: TcpStream,
    pub(crate) session: Session,
    pub(crate) welcome: Welcome,
    pub(crate) udp_secret: Option<[u8; 32]>,
    /// Opened plaintext behind the welcome: frames.
    pub(crate) frames: Vec<u8>,
    /// Received, not yet opened.
    pub(crate) input: Vec<u8>,
}

/// Dials the relay and greets it.
pub(crate) async fn dial(config: &Config, mediator: Option<MediatorId>) -> Result<Dialled, Error> {
    let late = |_| Error::Goodbye {
        code: Code::HandshakeTimeout,
        text: format!("{} did not answer within {:?}", config.relay, config.handshake_timeout),
        retry_after: Duration::ZERO,
    };
    tokio::time::timeout(config.handshake_timeout, dial_untimed(config, mediator)).await.map_err(late)?
}

async fn dial_untimed(config: &Config, mediator: Option<MediatorId>) -> Result<Dialled, Error> {
    let mut socket = connect(&config.relay).await?;
    let mut input = Vec::new();
    let (mut session, mut udp_secret) = match &config.trust {
        Trust::Plaintext => (Session::plaintext(), None),
        Trust::Pin(pin) => handshake(&mut socket, record::Trust::Pin(*pin), config, &mut input).await?,
        Trust::Ca(ca) => handshake(&mut socket, record::Trust::Ca(ca.clone()), config, &mut input).await?,
    };
    let mut hello = Hello {
        token: config.token.to_string(),
        role: Role::Terminal { mediator },
        udp_channels: config.udp_channels,
        instance: 0,
    };
    let sent = send_hello(&mut socket, &mut session, &hello).await;
    hello.token.zeroize();
    sent?;
    let mut greeting = Greeting { socket: &mut socket, session: &mut session, input: &mut input };
    let (welcome, frames) = greeting.welcome().await?;
    if session.is_plaintext() {
        udp_secret = welcome.udp_secret.as_deref().and_then(parse_secret);
    }
    Ok(Dialled { socket, session, welcome, udp_secret, frames, input })
}

async fn connect(relay: &str) -> Result<TcpStream, Error> {
    let io =
        |source| Error::io(format!("cannot connect to the relay {relay}; check --relay and its service port"), source);
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(relay)
        .await
        .map_err(|source| Error::io(format!("cannot resolve the relay's address {relay}; it is HOST:PORT"), source))?
        .collect();
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true).map_err(io)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(io(last))
}

async fn handshake(
    socket: &mut TcpStream,
    trust: record::Trust,
    settings: &Config,
    input: &mut Vec<u8>,
) -> Result<(Session, Option<[u8; 32]>), Error> {
    let identity = settings
        .identity
        .as_ref()
        .map(|identity| record::Identity { chain: identity.chain.clone(), key: identity.key.clone_key() });
    let config = client_config_with_identity(trust, identity)
        .map_err(|error| Error::Config(format!("the CA file, or certificate and key, cannot be used: {error}")))?;
    let name = ServerName::try_from(RELAY_NAME).map_err(|error| Error::Config(error.to_string()))?;
    let mut client = ClientHandshake::new(config, name)?;
    let mut output = Vec::new();
    loop {
        let step = client.feed(input, &mut output);
        if !output.is_empty() {
            // What went wrong here counts more than whether the other end could be told.
            let sent = socket.write_all(&output).await;
            output.clear();
            if step.is_ok() {
                sent.map_err(broken)?;
            }
        }
        match step? {
            Step::Done => break,
            Step::NeedMore => fill(socket, input).await?,
        }
    }
    let Established { session, udp_secret, .. } = client.into_session()?;
    Ok((session, Some(udp_secret)))
}

async fn send_hello(socket: &mut TcpStream, session: &mut Session, hello: &Hello) -> Result<(), Error> {
    let json = serde_json::to_vec(hello).map_err(|error| Error::Config(error.to_string()))?;
    let json = Zeroizing::new(json);
    let mut frames = ControlBuf::default();
    frames.push(&Frame::Hello { version: VERSION, json: &json });
    let frames = frames.take(PLAINTEXT_MAX);
    let mut record = [&[0; RECORD_HEADER], frames].concat();
    record.resize(record.len() + session.tail(), 0);
    session.seal(&mut record).map_err(Error::protocol)?;
    socket.write_all(&record).await.map_err(broken)
}

struct Greeting<'a> {
    socket: &'a mut TcpStream,
    session: &'a mut Session,
    input: &'a mut Vec<u8>,
}

impl Greeting<'_> {
    /// The relay's welcome, and the frames that came in the same record behind it.
    async fn welcome(&mut self) -> Result<(Welcome, Vec<u8>), Error> {
        loop {
            let plaintext = self.record().await?;
            let header = read_header(&plaintext).map_err(Error::protocol)?;
            let Some((frame, rest)) = plaintext.split_at_checked(HEADER_LEN + usize::from(header.len)) else {
                return Err(Error::protocol("the relay's greeting is cut off"));
            };
            match Frame::decode(header, frame.get(HEADER_LEN..).unwrap_or_default()).map_err(Error::protocol)? {
                Frame::Welcome { version: VERSION, json } => {
                    let welcome = serde_json::from_slice(json).map_err(|error| {
                        Error::protocol(format_args!("the relay's welcome cannot be read: {error}"))
                    })?;
                    return Ok((welcome, rest.to_vec()));
                }
                Frame::Welcome { version, .. } => {
                    let text = format!("the relay speaks version {version}, we speak {VERSION}");
                    return Err(Error::Goodbye { code: Code::BadVersion, text, retry_after: Duration::ZERO });
                }
                Frame::Goodbye { code, retry_after_ms, text } => {
                    let retry_after = Duration::from_millis(retry_after_ms.into());
                    return Err(Error::Goodbye {
                        code: code.unwrap_or(Code::Failed),
                        text: text.to_owned(),
                        retry_after,
                    });
                }
                Frame::Unknown => {}
                _ => return Err(Error::protocol("the relay's first frame is no welcome")),
            }
        }
    }

    /// One record's plaintext.
    async fn record(&mut self) -> Result<Vec<u8>, Error> {
        loop {
            if self.session.is_plaintext() && self.input.first().is_some_and(|&byte| byte == TLS_ALERT) {
                let text = "the relay speaks TLS only".to_owned();
                return Err(Error::Goodbye { code: Code::PlaintextRefused, text, retry_after: Duration::ZERO });
            }
            let len = match record::parse_header(self.input).map_err(Error::protocol)? {
                Some(len) if len <= self.input.len() => len,
                _ => {
                    fill(self.socket, self.input).await?;
                    continue;
                }
            };
            let mut record: Vec<u8> = self.input.drain(..len).collect();
            match self.session.open(&mut record).map_err(Error::protocol)? {
                Opened::Data(range) => return Ok(record.get(range).unwrap_or_default().to_vec()),
                Opened::KeyUpdate { .. } | Opened::Ignored => {}
                Opened::CloseNotify => return Err(lost("the relay closed the connection instead of greeting")),
                Opened::Alert(alert) => return Err(lost(&format!("the relay sent TLS alert {alert}"))),
            }
        }
    }
}

/// First byte of a TLS alert record (RFC 8446 5.1).
const TLS_ALERT: u8 = 21;

async fn fill(socket: &mut TcpStream, input: &mut Vec<u8>) -> Result<(), Error> {
    if input.len() > 4 * RECORD_MAX {
        return Err(Error::protocol("too many bytes before the greeting"));
    }
    match socket.read_buf(input).await {
        Ok(0) => Err(lost("the relay closed the connection; its log says why")),
        Ok(_) => Ok(()),
        Err(error) => Err(broken(error)),
    }
}

fn broken(error: std::io::Error) -> Error {
    lost(&error.to_string())
}

fn lost(text: &str) -> Error {
    Error::Lost { code: Code::ConnectionLost, text: text.to_owned() }
}

/// 64 hex digits.
fn parse_secret(text: &str) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in secret.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_64_hex_digits_and_nothing_else() {
        assert_eq!(parse_secret(&"0a".repeat(32)), Some([10; 32]));
        for bad in ["0a".repeat(31), "0a".repeat(33), "zz".repeat(32), "é".repeat(32)] {
            assert_eq!(parse_secret(&bad), None, "{bad}");
        }
    }
}
