//! Both ends against each other, and each against rustls's own record layer.

mod callers;
mod handshake;
mod interop;
mod session;
mod tickets;

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite};

use super::verify::PinVerifier;
use super::*;

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

fn name() -> ServerName<'static> {
    ServerName::try_from("relay.test").unwrap()
}

fn identity() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    (cert.der().clone(), PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap())
}

/// A server, and the pin that leads to it.
fn server() -> (Arc<ServerConfig>, [u8; 32]) {
    let (cert, key) = identity();
    let pin = fingerprint(&cert);
    (server_config(vec![cert], key).unwrap(), pin)
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (server, pin) = server();
    (client_config(Trust::Pin(pin)).unwrap(), server)
}

/// As [`configs`], the client offering one suite only.
fn configs_with(suite: SupportedCipherSuite) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (server, pin) = server();
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() });
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, provider }))
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(client), server)
}

/// What became of the two ends' handshakes.
struct Outcome {
    client: Result<Established, HandshakeError>,
    server: Result<Established, HandshakeError>,
}

/// Runs both ends until each is done, or failed, or nothing moves; `meddle` sees each flight on its
/// way. Bytes are handed over in pieces of `piece`.
fn shake(
    (client, server): (Arc<ClientConfig>, Arc<ServerConfig>),
    piece: usize,
    mut meddle: impl FnMut(&mut Vec<u8>),
) -> Outcome {
    let mut client = ClientHandshake::new(client, name()).unwrap();
    let mut server = ServerHandshake::new(server).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut input = Vec::new();
    let mut client_step = client.feed(&mut input, &mut to_server);
    let mut server_input = Vec::new();
    let mut server_step = Ok(Step::NeedMore);
    while !to_server.is_empty() || !to_client.is_empty() {
        meddle(&mut to_server);
        for bytes in std::mem::take(&mut to_server).chunks(piece) {
            if server_step == Ok(Step::NeedMore) {
                server_input.extend_from_slice(bytes);
                server_step = server.feed(&mut server_input, &mut to_client);
            }
        }
        meddle(&mut to_client);
        for bytes in std::mem::take(&mut to_client).chunks(piece) {
            if client_step == Ok(Step::NeedMore) {
                input.extend_from_slice(bytes);
                client_step = client.feed(&mut input, &mut to_server);
            }
        }
    }
    Outcome {
        client: client_step.and_then(|_| client.into_session()),
        server: server_step.and_then(|_| server.into_session()),
    }
}

/// Two connected sessions: the client's and the server's.
fn connected(configs: (Arc<ClientConfig>, Arc<ServerConfig>)) -> (Session, Session) {
    let outcome = shake(configs, usize::MAX, |_| {});
    (outcome.client.unwrap().session, outcome.server.unwrap().session)
}

/// A record's buffer with `payload` in its place.
fn room(session: &Session, payload: &[u8]) -> Vec<u8> {
    [&[0; RECORD_HEADER], payload, &vec![0; session.tail()]].concat()
}

fn sealed(session: &mut Session, payload: &[u8]) -> Vec<u8> {
    let mut record = room(session, payload);
    session.seal(&mut record).unwrap();
    record
}

/// A record that rustls or [`Session::seal`] would never make.
fn sealed_as(session: &mut Session, inner_type: u8, content: &[u8]) -> Vec<u8> {
    let mut record = room(session, content);
    session.directions_mut().0.seal(inner_type, &mut record).unwrap();
    record
}

/// Opens all records in `bytes`: their data, and what else they were.
fn open_all(session: &mut Session, bytes: &mut [u8]) -> Result<(Vec<u8>, Vec<Opened>), RecordError> {
    let (mut data, mut events, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(length) = parse_header(&bytes[at..])? {
        let record = &mut bytes[at..at + length];
        match session.open(record)? {
            Opened::Data(range) => data.extend_from_slice(&record[range]),
            other => events.push(other),
        }
        at += length;
    }
    assert_eq!(at, bytes.len(), "a part of a record was left");
    Ok((data, events))
}
