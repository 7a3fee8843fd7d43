//! From a TCP connection to a greeted link: TLS or, where both sides ask for it, plaintext; and the
//! hand-over of a greeted link to the thread that owns its mediator.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_proto::Code;
use isthmus_proto::record::{
    self, ClientHandshake, Established, FirstByte, HandshakeError, ServerHandshake, Session, Step, UdpSecret,
};
use isthmus_ring::{Connection, Piece, Socket};

use crate::Engine;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::link::{LinkIo, LinkRole, Phase};
use crate::pace::Pace;
use isthmus_proto::rare::Rare;

/// How a caller begins.
pub enum Caller {
    /// With TLS.
    Tls(Box<ClientHandshake>),
    /// Without, asked for by its owner.
    Plaintext,
}

/// Bytes received before the handshake is done.
pub(crate) struct Tls {
    input: Vec<u8>,
    side: Side,
}

enum Side {
    Client(Box<ClientHandshake>),
    Server(Box<ServerHandshake>),
    /// The relay has seen no byte yet: TLS or plaintext?
    Undecided(Option<Arc<rustls::ServerConfig>>),
}

/// Most bytes that may come before a handshake is done; certificates of ours are far smaller.
const HANDSHAKE_INPUT_MAX: usize = 64 * 1024;

/// A greeted link on its way to another thread.
pub struct Detached {
    socket: Socket,
    session: Option<Box<Session>>,
    udp_secret: Option<UdpSecret>,
    peer: SocketAddr,
    /// The handshake's last message, not yet sent.
    raw: Vec<u8>,
    /// Received, not yet opened.
    partial: Vec<u8>,
}

impl Engine {
    /// Takes a connection to the service port. With a configuration it must speak TLS, without one plaintext;
    /// its first byte tells which it does.
    pub fn accept_link(&mut self, socket: Socket, peer: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Key {
        let tls = Tls { input: Vec::new(), side: Side::Undecided(tls) };
        let key = self.add_link(socket.into(), LinkRole::Relay, peer, Phase::Tls(Box::new(tls)));
        self.receive_link(key, false);
        key
    }

    /// Dials a relay.
    pub fn dial_link(&mut self, socket: Socket, to: SocketAddr, caller: Caller) -> Key {
        let mut socket = Connection::from(socket);
        self.ring.make_direct(&mut socket);
        let key = self.add_link(socket, LinkRole::Caller, to, Phase::Connecting);
        if let Some(io) = self.links.get_mut(key) {
            match caller {
                Caller::Tls(client) => {
                    io.phase = Phase::Tls(Box::new(Tls { input: Vec::new(), side: Side::Client(client) }));
                }
                Caller::Plaintext => io.session = Some(Box::new(Session::plaintext())),
            }
            io.send_op = Some(self.ring.connect(&io.socket, to, key.to_bits()));
        }
        key
    }

    fn add_link(&mut self, socket: Connection, role: LinkRole, peer: SocketAddr, phase: Phase) -> Key {
        let timer = self.timers.add(Key::control(0));
        let key = self.links.insert(LinkIo {
            socket,
            role,
            peer,
            phase,
            session: None,
            udp_secret: None,
            certificate: Rare::default(),
            timer,
            receive_op: None,
            partial: None,
            send_op: None,
            sent_at: self.now,
            compacting: false,
            quiet: false,
            pace: Pace::default(),
            full: false,
            waited: false,
            roomy: false,
            counted: 0,
            raw: Rare::default(),
            greeting: Rare::default(),
            paused: Rare::default(),
            dirty: false,
            closing: None,
            assembling: Rare::default(),
            channels: Box::default(),
            permits: None,
        });
        self.timers.give(timer, key);
        self.timers.set(timer, self.now + self.config.handshake_timeout);
        key
    }

    /// The connection of a caller's link stands, or not.
    pub(crate) fn on_link_connected(&mut self, control: &mut impl Control, key: Key, result: std::io::Result<()>) {
        let Some(io) = self.links.get_mut(key) else { return };
        io.send_op = None;
        if let Err(error) = result {
            let text = format!("cannot connect to {}: {error}", io.peer);
            return self.end_link(control, key, Code::ConnectionLost, &text, 0);
        }
        if matches!(io.phase, Phase::Connecting) {
            io.phase = Phase::Greeting;
            control.on_event(self, Event::LinkReady { link: key });
        } else {
            self.step_handshake(control, key);
        }
        self.receive_link(key, true);
    }

    /// Bytes came before the handshake was done.
    pub(crate) fn on_handshake_bytes(&mut self, control: &mut impl Control, key: Key, bytes: &[u8]) {
        let Some(LinkIo { phase: Phase::Tls(tls), .. }) = self.links.get_mut(key) else { return };
        tls.input.extend_from_slice(bytes);
        if tls.input.len() > HANDSHAKE_INPUT_MAX {
            return self.end_link(control, key, Code::TlsFailed, "too many bytes before the handshake was done", 0);
        }
        if let Side::Undecided(config) = &tls.side {
            let first = tls.input.first().map(|&byte| record::first_byte(byte));
            match (first, config) {
                (Some(FirstByte::Tls), Some(config)) => match ServerHandshake::new(config.clone()) {
                    Ok(server) => tls.side = Side::Server(Box::new(server)),
                    Err(error) => return self.end_link(control, key, Code::TlsFailed, &error.to_string(), 0),
                },
                (Some(FirstByte::Plaintext), None) => return self.begin_plaintext(control, key),
                (Some(FirstByte::Plaintext), Some(_)) => return self.refuse_plaintext(key),
                (Some(FirstByte::Tls), None) => {
                    let text = "the caller speaks TLS, this relay was started with --plaintext";
                    return self.refuse_tls(control, key, text);
                }
                (Some(FirstByte::Garbage), _) => {
                    return self.end_link(
                        control,
                        key,
                        Code::TlsFailed,
                        "the caller speaks neither TLS nor Isthmus",
                        0,
                    );
                }
                (None, _) => return,
            }
        }
        self.step_handshake(control, key);
    }

    fn step_handshake(&mut self, control: &mut impl Control, key: Key) {
        let Some(io) = self.links.get_mut(key) else { return };
        let Phase::Tls(tls) = &mut io.phase else { return };
        let nothing_waits = io.raw.is_empty();
        let (step, is_server) = match &mut tls.side {
            Side::Client(client) => (client.feed(&mut tls.input, &mut io.raw), false),
            Side::Server(server) => (server.feed(&mut tls.input, &mut io.raw), true),
            Side::Undecided(_) => return,
        };
        // What a relay says after the handshake's end is a ticket: it goes with the answer to the greeting, so that the link can
        // be given to another thread before.
        if !(is_server && nothing_waits && step == Ok(Step::Done)) {
            self.touch(key);
        }
        match step {
            Ok(Step::NeedMore) => {}
            Ok(Step::Done) => self.finish_handshake(control, key),
            Err(error) => self.fail_handshake(control, key, &error),
        }
    }

    fn finish_handshake(&mut self, control: &mut impl Control, key: Key) {
        let Some(io) = self.links.get_mut(key) else { return };
        let Phase::Tls(tls) = std::mem::replace(&mut io.phase, Phase::Greeting) else { return };
        let established = match tls.side {
            Side::Client(client) => client.into_session(),
            Side::Server(server) => server.into_session(),
            Side::Undecided(_) => return,
        };
        match established {
            Ok(Established { session, udp_secret, caller, resumed }) => {
                if let Some(certificate) = caller {
                    *io.certificate = certificate.to_vec();
                }
                io.session = Some(Box::new(session));
                io.udp_secret = Some(UdpSecret::new(udp_secret.into()));
                self.counts.handshakes_resumed += u64::from(resumed && io.role == LinkRole::Relay);
            }
            Err(error) => return self.fail_handshake(control, key, &error),
        }
        let role = io.role;
        let rest = tls.input;
        if role == LinkRole::Caller {
            control.on_event(self, Event::LinkReady { link: key });
        }
        if !rest.is_empty() {
            self.on_link_bytes(control, key, Piece::copy_from(&rest, 0, 0));
        }
    }

    fn fail_handshake(&mut self, control: &mut impl Control, key: Key, error: &HandshakeError) {
        // An alert may be queued: it goes out before the end.
        self.flush_link(control, key);
        let code = match error {
            HandshakeError::Alert(rustls::AlertDescription::InsufficientSecurity) => Code::PlaintextRefused,
            _ => Code::TlsFailed,
        };
        self.end_link(control, key, code, &error.to_string(), 0);
    }

    fn begin_plaintext(&mut self, control: &mut impl Control, key: Key) {
        let Some(io) = self.links.get_mut(key) else { return };
        let Phase::Tls(tls) = std::mem::replace(&mut io.phase, Phase::Greeting) else { return };
        io.session = Some(Box::new(Session::plaintext()));
        self.on_link_bytes(control, key, Piece::copy_from(&tls.input, 0, 0));
    }

    /// A plaintext caller where plaintext is not asked for: it is told so in its own language.
    fn refuse_plaintext(&mut self, key: Key) {
        let Some(io) = self.links.get_mut(key) else { return };
        io.phase = Phase::Greeting;
        io.session = Some(Box::new(Session::plaintext()));
        self.farewell(key, Code::PlaintextRefused, 0, "this relay accepts TLS only");
    }

    fn refuse_tls(&mut self, control: &mut impl Control, key: Key, text: &str) {
        if let Some(io) = self.links.get_mut(key) {
            // Alert, TLS 1.2 record version, fatal, insufficient_security (71): a TLS peer understands it.
            io.raw.extend_from_slice(&[0x15, 3, 3, 0, 2, 2, 71]);
        }
        self.flush_link(control, key);
        self.end_link(control, key, Code::PlaintextRefused, text, 0);
    }

    /// The secret of a link's UDP channels: the TLS exporter's, if it has TLS.
    pub fn udp_secret(&self, key: Key) -> Option<UdpSecret> {
        self.links.get(key)?.udp_secret.clone()
    }

    /// The verified certificate (DER) that a caller showed, once: an established link does not keep it. Ask before the
    /// link is given to another thread.
    pub fn take_caller_certificate(&mut self, key: Key) -> Option<Vec<u8>> {
        self.links.get_mut(key).map(|io| io.certificate.take()).filter(|der| !der.is_empty())
    }

    /// Whether a link is in plaintext.
    pub fn is_plaintext(&self, key: Key) -> bool {
        self.links.get(key).is_some_and(|io| io.session.as_ref().is_some_and(|session| session.is_plaintext()))
    }

    /// Takes a greeted link out, to give it to another thread. From within its [`Event::Greeting`] only,
    /// so that nothing is being received. `None` while something of the handshake is being sent.
    pub fn detach(&mut self, key: Key) -> Option<Detached> {
        let io = self.links.get(key)?;
        let settled = io.send_op.is_none() && io.receive_op.is_none();
        if !settled || io.socket.is_direct() || !matches!(io.phase, Phase::Greeting) {
            return None;
        }
        let mut io = self.links.remove(key)?;
        self.timers.remove(io.timer);
        Some(Detached {
            socket: io.socket.into_socket().ok()?,
            session: io.session,
            udp_secret: io.udp_secret,
            peer: io.peer,
            raw: io.raw.take(),
            partial: io.partial.map(|piece| piece.to_vec()).unwrap_or_default(),
        })
    }

    /// Takes a link from another thread. Then establish it, and [`Engine::resume`].
    pub fn attach(&mut self, detached: Detached) -> Key {
        let key = self.add_link(detached.socket.into(), LinkRole::Relay, detached.peer, Phase::Greeting);
        if let Some(io) = self.links.get_mut(key) {
            io.session = detached.session;
            io.udp_secret = detached.udp_secret;
            if !detached.raw.is_empty() {
                *io.raw = detached.raw;
            }
            io.partial = (!detached.partial.is_empty()).then(|| Piece::copy_from(&detached.partial, 0, 0));
        }
        key
    }

    /// Goes on receiving on an attached link, beginning with what had come already.
    pub fn resume(&mut self, control: &mut impl Control, key: Key) {
        let partial = self.links.get_mut(key).and_then(|io| io.partial.take());
        if let Some(partial) = partial {
            self.on_link_bytes(control, key, partial);
        }
        self.receive_link(key, false);
    }
}
