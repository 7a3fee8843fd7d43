//! The TLS handshake of either end, without I/O.
//!
//! rustls gets one record at a time, and none past the handshake's end: data that came in the same
//! read stays in the caller's buffer for the [`Session`].

use std::sync::Arc;

use rustls::client::{ClientConnectionData, Resumption, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, ExtractedSecrets, HandshakeKind, ServerConfig,
    SupportedCipherSuite,
};

use super::exporter::Capture;
use super::secret::TrafficSecret;
use super::session::Session;
use super::tickets::Tickets;
use super::{RECORD_HEADER, RECORD_MAX, RecordError, content_type};
use crate::time::Instant;

/// Label of the exporter that gives the UDP channels' secret.
const UDP_SECRET_LABEL: &[u8] = b"EXPORTER-isthmus-udp";

/// Most bytes that a peer may send until the handshake's end: a long certificate chain and then some.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// What a handshake needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes of the peer.
    NeedMore,
    /// Nothing: send what is in `output`, then call `into_session`.
    Done,
}

/// What a handshake gives.
#[derive(Debug)]
pub struct Established {
    /// The connection's record layer.
    pub session: Session,
    /// The secret of this connection's UDP channels, equal on both ends: see [`super::ChannelKeys::derive`].
    pub udp_secret: [u8; 32],
    /// The caller's certificate, verified, at a relay that takes them and from a caller that has one.
    pub caller: Option<CertificateDer<'static>>,
    /// Whether the caller showed a ticket of an earlier connection, and the relay took it.
    pub resumed: bool,
}

/// Why a handshake failed; each text tells cause and cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The relay's certificate is not the pinned one.
    #[error(
        "the relay's certificate does not match the pin: compare it with `isthmus-relay fingerprint` on the relay; if the relay did not change, somebody stands in between"
    )]
    WrongPin,
    /// No trusted CA signed the relay's certificate.
    #[error("the relay's certificate was not signed by the given CA: give the relay's own CA certificate, or its pin")]
    UnknownCa,
    /// The relay's certificate is no good for another reason.
    #[error(
        "the relay's certificate is refused: {0}; renew it, call the relay by a name in it, or give its pin instead"
    )]
    BadCertificate(String),
    /// The caller's certificate is no good.
    #[error(
        "the caller's certificate is refused: {0}; give it one that an authority of --client-ca signed, for client \
         authentication, and that has not expired"
    )]
    BadCaller(String),
    /// What came is no TLS.
    #[error(
        "the peer does not speak TLS: check address and port, and that --plaintext is given on both sides or on none"
    )]
    PeerNotTls,
    /// The peer gave up and said why.
    #[error("{}", alert_text(*.0))]
    Alert(AlertDescription),
    /// Something else.
    #[error("the TLS handshake failed: {0}")]
    Other(String),
}

fn alert_text(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied => format!(
            "the peer refused our certificate: its pin or CA does not match this relay, or the certificate has expired ({alert:?}); give it what `isthmus-relay fingerprint` prints"
        ),
        A::InsufficientSecurity => {
            "the peer does not want TLS: it was started with --plaintext; give that on both sides or on none".into()
        }
        A::ProtocolVersion | A::HandshakeFailure => {
            format!("the peer does not speak TLS 1.3 with our suites ({alert:?}); upgrade it")
        }
        A::NoApplicationProtocol => {
            "the peer speaks TLS but not this version of Isthmus: check address and port, and both versions".into()
        }
        A::CloseNotify | A::UserCanceled => "the peer closed the connection during the TLS handshake".into(),
        other => format!("the peer ended the TLS handshake: {other:?}"),
    }
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => Self::WrongPin,
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => Self::UnknownCa,
            // Of the handshake, not of the certificate: there it is an unknown issuer.
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                Self::BadCertificate("the peer does not hold its private key".into())
            }
            Error::InvalidCertificate(other) => Self::BadCertificate(other.to_string()),
            Error::AlertReceived(alert) => Self::Alert(alert),
            // What we tell the peer by alert, and what a peer's alert tells us, is the same text.
            Error::NoApplicationProtocol => Self::Alert(AlertDescription::NoApplicationProtocol),
            other => Self::Other(other.to_string()),
        }
    }
}

/// The relay's end of a handshake.
pub struct ServerHandshake {
    connection: Box<UnbufferedServerConnection>,
    progress: Progress,
    capture: Arc<Capture>,
}

impl ServerHandshake {
    /// Waits for a caller. `config` as [`super::server_config`] makes it.
    ///
    /// # Errors
    /// [`HandshakeError::Other`] when the configuration is not usable.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let capture = Capture::new(config.key_log.clone());
        let mut config = Arc::unwrap_or_clone(config);
        config.key_log = capture.clone();
        let connection = Box::new(UnbufferedServerConnection::new(Arc::new(config))?);
        Ok(Self { connection, progress: Progress::default(), capture })
    }

    /// Takes whole records from the front of `input` and appends to `output` what is to be sent.
    /// Between calls `input` may be appended to, but what is in it must stay as it is. Once done,
    /// `input` holds what came after the handshake.
    ///
    /// # Errors
    /// Any [`HandshakeError`]; `output` may then hold an alert that should still be sent.
    pub fn feed(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        self.progress.feed(&mut *self.connection, input, output).map_err(|error| match error {
            // The only certificate that this end verifies is the caller's.
            HandshakeError::UnknownCa => HandshakeError::BadCaller("its authority is unknown here".into()),
            HandshakeError::BadCertificate(why) => HandshakeError::BadCaller(why),
            other => other,
        })
    }

    /// The established connection.
    ///
    /// # Errors
    /// [`HandshakeError::Other`] before [`Step::Done`].
    pub fn into_session(self) -> Result<Established, HandshakeError> {
        self.progress.check_done()?;
        let leaf = self.connection.peer_certificates().and_then(<[_]>::first);
        let caller = leaf.map(|certificate| certificate.clone().into_owned());
        let resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let (secrets, kernel) = self.connection.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite();
        let (session, udp_secret) = establish(&secrets, false, suite, &self.capture)?;
        Ok(Established { session, udp_secret, caller, resumed })
    }
}

/// The caller's end of a handshake.
pub struct ClientHandshake {
    state: Calling,
    progress: Progress,
    capture: Arc<Capture>,
    /// Where its relay's next ticket is to be kept, and when the handshake began.
    tickets: Option<(Arc<Tickets>, Instant)>,
}

enum Calling {
    /// It says nothing before it is asked to: a call that finds nobody shall not use a ticket up.
    Silent(Box<(Arc<ClientConfig>, ServerName<'static>)>),
    Begun(Box<UnbufferedClientConnection>),
}

impl ClientHandshake {
    /// Calls the relay named `name`. `config` as [`super::client_config`] makes it.
    ///
    /// # Errors
    /// [`HandshakeError::Other`] when the configuration is not usable.
    pub fn new(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, HandshakeError> {
        let capture = Capture::new(config.key_log.clone());
        let mut config = Arc::unwrap_or_clone(config);
        config.key_log = capture.clone();
        let connection = Box::new(UnbufferedClientConnection::new(Arc::new(config), name)?);
        Ok(Self { state: Calling::Begun(connection), progress: Progress::default(), capture, tickets: None })
    }

    /// [`ClientHandshake::new`], but it shows the ticket that is in `tickets`, if any, and the session puts there the one
    /// that the relay gives. Only calls with one and the same `config` understand each other's tickets. A relay that is known
    /// by tickets alone for seven days has to prove again who it is.
    ///
    /// An unusable configuration is told by the first [`ClientHandshake::feed`].
    pub fn resuming(config: Arc<ClientConfig>, name: ServerName<'static>, tickets: Arc<Tickets>, now: Instant) -> Self {
        tickets.begin(now);
        let capture = Capture::new(config.key_log.clone());
        let mut config = Arc::unwrap_or_clone(config);
        config.key_log = capture.clone();
        config.resumption = Resumption::store(tickets.clone());
        let state = Calling::Silent(Box::new((Arc::new(config), name)));
        Self { state, progress: Progress::default(), capture, tickets: Some((tickets, now)) }
    }

    /// As [`ServerHandshake::feed`]. The first call, with an empty `input`, starts the handshake.
    ///
    /// # Errors
    /// Any [`HandshakeError`]; `output` may then hold an alert that should still be sent.
    pub fn feed(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        if let Calling::Silent(call) = &self.state {
            let (config, name) = (**call).clone();
            self.state = Calling::Begun(Box::new(UnbufferedClientConnection::new(config, name)?));
        }
        match &mut self.state {
            Calling::Begun(connection) => self.progress.feed(&mut **connection, input, output),
            Calling::Silent(_) => Ok(Step::NeedMore),
        }
    }

    /// The established connection.
    ///
    /// # Errors
    /// [`HandshakeError::Other`] before [`Step::Done`].
    pub fn into_session(self) -> Result<Established, HandshakeError> {
        self.progress.check_done()?;
        let Calling::Begun(connection) = self.state else { return Err(not_ended()) };
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite();
        let (mut session, udp_secret) = establish(&secrets, true, suite, &self.capture)?;
        if let Some((tickets, begun)) = self.tickets {
            if !resumed {
                tickets.prove(begun);
            }
            session.await_ticket(kernel);
        }
        Ok(Established { session, udp_secret, caller: None, resumed })
    }
}

/// The record layer, and the secret of the UDP channels.
fn establish(
    secrets: &ExtractedSecrets,
    is_client: bool,
    suite: SupportedCipherSuite,
    capture: &Capture,
) -> Result<(Session, [u8; 32]), HandshakeError> {
    let udp_secret = suite
        .tls13()
        .and_then(|suite| capture.export(suite, UDP_SECRET_LABEL))
        .ok_or_else(|| HandshakeError::Other("it gave no exporter secret".into()))?;
    let (client, server) =
        capture.traffic_secrets().ok_or_else(|| HandshakeError::Other("it gave no traffic secrets".into()))?;
    let other = |error: RecordError| HandshakeError::Other(error.to_string());
    let client = TrafficSecret::new(client.as_ref()).map_err(other)?;
    let server = TrafficSecret::new(server.as_ref()).map_err(other)?;
    let (ours, theirs) = if is_client { (client, server) } else { (server, client) };
    let session = Session::tls(secrets, ours, theirs, is_client).map_err(other)?;
    Ok((session, udp_secret))
}

/// What the two ends' connections have in common; rustls has the call on each, but not in a trait.
trait Machine {
    type Data;
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn has_output(&self) -> bool;
}

impl Machine for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

impl Machine for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

#[derive(Default)]
struct Progress {
    /// Bytes at the front of `input` that rustls has seen but still needs: parts of a message that
    /// goes over several records.
    held: usize,
    /// Bytes of all records given to rustls.
    seen: usize,
    done: bool,
    /// Why it failed; rustls is not called again then.
    failed: Option<HandshakeError>,
}

/// What one call of [`Machine::process`] came to.
enum Turn {
    Again,
    Blocked,
    Done,
}

impl Progress {
    fn feed<M: Machine>(
        &mut self,
        machine: &mut M,
        input: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if input.len() < self.held {
            return Err(HandshakeError::Other("its input was taken away".into()));
        }
        // Bytes to be taken off once at the end, rather than moving the rest for each record.
        let mut taken = 0;
        let result = self.run(machine, input, &mut taken, output);
        input.drain(..taken);
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn run<M: Machine>(
        &mut self,
        machine: &mut M,
        input: &mut [u8],
        taken: &mut usize,
        output: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        while !self.done {
            match self.turn(machine, input, taken, output) {
                Ok(Turn::Again) => {}
                Ok(Turn::Done) if self.held == 0 => self.done = true,
                Ok(Turn::Done) => return Err(HandshakeError::Other("the peer's last message is not its last".into())),
                Ok(Turn::Blocked) => match record_length(&input[*taken + self.held..], self.seen == 0)? {
                    Some(length) => {
                        self.held += length;
                        self.seen += length;
                        if self.seen > HANDSHAKE_BYTES_MAX {
                            return Err(HandshakeError::Other("the peer's messages are too long".into()));
                        }
                    }
                    None => return Ok(Step::NeedMore),
                },
                Err(error) => {
                    // What rustls still wants to tell the peer; past that it must not look at the input again, or it
                    // finds the same fault and asserts that it told it once only.
                    while machine.has_output() && matches!(self.turn(machine, input, taken, output), Ok(Turn::Again)) {}
                    return Err(error);
                }
            }
        }
        Ok(Step::Done)
    }

    /// Lets rustls do one thing with what it holds of `input`, which begins at `taken`, and takes off
    /// what it is done with.
    fn turn<M: Machine>(
        &mut self,
        machine: &mut M,
        input: &mut [u8],
        taken: &mut usize,
        output: &mut Vec<u8>,
    ) -> Result<Turn, HandshakeError> {
        let UnbufferedStatus { discard, state } = machine.process(&mut input[*taken..*taken + self.held]);
        *taken += discard;
        self.held -= discard;
        match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, output).map(|()| Turn::Again),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Turn::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Turn::Blocked),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Done),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                Err(HandshakeError::Alert(AlertDescription::CloseNotify))
            }
            Ok(other) => Err(HandshakeError::Other(format!("unforeseen state {other:?}"))),
            Err(error) => Err(error.into()),
        }
    }

    fn check_done(&self) -> Result<(), HandshakeError> {
        if self.done { Ok(()) } else { Err(not_ended()) }
    }
}

fn not_ended() -> HandshakeError {
    HandshakeError::Other("it has not ended yet".into())
}

/// Appends one record to `output`.
fn encode<Data>(mut data: EncodeTlsData<'_, Data>, output: &mut Vec<u8>) -> Result<(), HandshakeError> {
    let start = output.len();
    // The length is told only by a buffer that is too short.
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        output.resize(start + size.required_size, 0);
        let written = data.encode(&mut output[start..]).map_err(|error| HandshakeError::Other(error.to_string()))?;
        output.truncate(start + written);
    }
    Ok(())
}

/// The whole length of the handshake record that `bytes` begins with; `None` while it is not all there.
/// What begins otherwise is refused at its first byte, so that a wrong peer is named at once.
fn record_length(bytes: &[u8], first: bool) -> Result<Option<usize>, HandshakeError> {
    let refuse = || match first {
        true => HandshakeError::PeerNotTls,
        false => HandshakeError::Other("the peer sent what is no TLS record".into()),
    };
    let types = content_type::CHANGE_CIPHER_SPEC..=content_type::APPLICATION_DATA;
    if bytes.first().is_some_and(|kind| !types.contains(kind)) || bytes.get(1).is_some_and(|&major| major != 3) {
        return Err(refuse());
    }
    let Some(&[_, _, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let length = RECORD_HEADER + usize::from(u16::from_be_bytes([high, low]));
    if length > RECORD_MAX {
        return Err(refuse());
    }
    Ok((bytes.len() >= length).then_some(length))
}
