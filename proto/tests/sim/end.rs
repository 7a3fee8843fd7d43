//! One end: a link behind its record layer, and the keys of one UDP channel.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isthmus_proto::link::{Link, LinkConfig, Maintain, Side, Transmit};
use isthmus_proto::record::{
    self, ChannelKeys, ClientHandshake, End as KeyEnd, Established, Opened, PLAINTEXT_MAX, RECORD_HEADER,
    ServerHandshake, Session, Step, Trust,
};
use isthmus_proto::{ChannelId, Instant};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

use crate::rng::Rng;

pub(crate) const INTERVAL: Duration = Duration::from_millis(2000);
pub(crate) const DEAD: Duration = Duration::from_millis(3000);
pub(crate) const SILENCE: Duration = Duration::from_millis(7000);

pub(crate) struct End {
    pub(crate) link: Link<Vec<u8>>,
    pub(crate) keys: ChannelKeys,
    session: Session,
    /// A frame that did not fit the record before.
    held: Option<Vec<u8>>,
    inbox: Vec<u8>,
}

/// A record to send.
pub(crate) struct Filled {
    /// Sealed, key updates before it included.
    pub(crate) wire: Vec<u8>,
    pub(crate) plaintext: Vec<u8>,
    /// Frames that were taken from the link, with their owners.
    pub(crate) taken: Vec<(u64, usize)>,
}

/// The requester and the responder; the latter is the caller.
pub(crate) fn pair(tls: bool) -> [End; 2] {
    let [requester, responder] = match tls {
        true => shake_hands(),
        false => [(); 2].map(|()| Established {
            session: Session::plaintext(),
            udp_secret: [7; 32],
            caller: None,
            resumed: false,
        }),
    };
    let relay = Maintain::Relay { silence: SILENCE };
    let caller = Maintain::Caller { interval: INTERVAL, dead: DEAD };
    [end(Side::Requester, relay, KeyEnd::Relay, requester), end(Side::Responder, caller, KeyEnd::Caller, responder)]
}

fn end(side: Side, maintain: Maintain, key_end: KeyEnd, established: Established) -> End {
    End {
        link: Link::new(LinkConfig { side, ports_max: 100, maintain }, Instant::ZERO),
        keys: ChannelKeys::derive(&established.udp_secret, ChannelId(5), 0, key_end).unwrap(),
        session: established.session,
        held: None,
        inbox: Vec::new(),
    }
}

/// A real handshake: the server's side first.
fn shake_hands() -> [Established; 2] {
    static CONFIGS: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    let (server, client) = CONFIGS.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
        let cert = made.cert.der().clone();
        let pin = record::fingerprint(&cert);
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        (record::server_config(vec![cert], key).unwrap(), record::client_config(Trust::Pin(pin)).unwrap())
    });
    let mut server = ServerHandshake::new(server.clone()).unwrap();
    let mut client = ClientHandshake::new(client.clone(), ServerName::try_from("relay.test").unwrap()).unwrap();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    loop {
        let client_step = client.feed(&mut to_client, &mut to_server).unwrap();
        let server_step = server.feed(&mut to_server, &mut to_client).unwrap();
        if client_step == Step::Done && server_step == Step::Done {
            return [server.into_session().unwrap(), client.into_session().unwrap()];
        }
    }
}

impl End {
    /// The next record of what the link wants to send. Sometimes a short one, and sometimes behind a key update.
    pub(crate) fn fill(&mut self, rng: &mut Rng) -> Option<Filled> {
        let limit = rng.pick(&[PLAINTEXT_MAX, PLAINTEXT_MAX, 2000]);
        let mut plaintext = self.held.take().unwrap_or_default();
        let mut taken = Vec::new();
        while plaintext.len() < limit
            && let Some(transmit) = self.link.transmit()
        {
            let room = PLAINTEXT_MAX - plaintext.len();
            match transmit {
                Transmit::Control => {
                    let control = self.link.control();
                    let bytes = control.take(room);
                    if bytes.is_empty() {
                        break;
                    }
                    plaintext.extend_from_slice(bytes);
                    control.reclaim();
                }
                Transmit::Frame { owner, frame, .. } => {
                    taken.push((owner, frame.len()));
                    if frame.len() > room {
                        self.held = Some(frame);
                        break;
                    }
                    plaintext.extend_from_slice(&frame);
                }
            }
        }
        if plaintext.is_empty() {
            return None;
        }
        let mut wire = Vec::new();
        if self.session.key_update_due() {
            self.session.write_key_update(false, &mut wire).unwrap();
        } else if rng.percent(3) {
            self.session.write_key_update(rng.percent(50), &mut wire).unwrap();
        }
        let start = wire.len();
        wire.resize(start + RECORD_HEADER, 0);
        wire.extend_from_slice(&plaintext);
        wire.resize(wire.len() + self.session.tail(), 0);
        self.session.seal(&mut wire[start..]).unwrap();
        Some(Filled { wire, plaintext, taken })
    }

    /// Whether nothing waits that credit lets go.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_none() && !self.link.wants_to_send()
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
    }

    /// The plaintext of the next whole record that has come.
    pub(crate) fn next_record(&mut self) -> Option<Vec<u8>> {
        loop {
            let len = record::parse_header(&self.inbox).unwrap().filter(|&len| len <= self.inbox.len())?;
            let mut sealed: Vec<u8> = self.inbox.drain(..len).collect();
            match self.session.open(&mut sealed).unwrap() {
                Opened::Data(range) => return Some(sealed[range].to_vec()),
                Opened::KeyUpdate { .. } => {}
                other => panic!("a record that nobody sent: {other:?}"),
            }
        }
    }
}
