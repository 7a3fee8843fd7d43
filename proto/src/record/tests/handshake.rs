use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::AlertDescription;

use super::*;

#[test]
fn both_ends_agree_on_a_secret_of_their_own() {
    let configs = configs();
    let mut secrets = Vec::new();
    for _ in 0..2 {
        let outcome = shake(configs.clone(), usize::MAX, |_| {});
        let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());
        assert_eq!(client.udp_secret, server.udp_secret);
        secrets.push(client.udp_secret);
    }
    assert_ne!(secrets[0], secrets[1]);
}

#[test]
fn bytes_may_come_one_by_one() {
    let outcome = shake(configs(), 1, |_| {});
    assert_eq!(outcome.client.unwrap().udp_secret, outcome.server.unwrap().udp_secret);
}

#[test]
fn messages_may_go_over_many_records() {
    let (client, server) = configs();
    let (mut client, mut server) = (Arc::unwrap_or_clone(client), Arc::unwrap_or_clone(server));
    client.max_fragment_size = Some(40);
    server.max_fragment_size = Some(40);
    let configs = (Arc::new(client), Arc::new(server));
    for piece in [1, 7, 50, usize::MAX] {
        let outcome = shake(configs.clone(), piece, |_| {});
        assert_eq!(outcome.client.unwrap().udp_secret, outcome.server.unwrap().udp_secret, "pieces of {piece}");
    }
}

#[test]
fn data_behind_the_last_handshake_record_stays_in_the_input() {
    let (client, server) = configs();
    let mut client = ClientHandshake::new(client, name()).unwrap();
    let mut server = ServerHandshake::new(server).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    client.feed(&mut Vec::new(), &mut to_server).unwrap();
    assert_eq!(first_byte(to_server[0]), FirstByte::Tls);
    assert_eq!(server.feed(&mut to_server, &mut to_client), Ok(Step::NeedMore));
    assert!(to_server.is_empty());
    assert_eq!(client.feed(&mut to_client, &mut to_server), Ok(Step::Done));
    let mut client = client.into_session().unwrap().session;
    let mut data = sealed(&mut client, b"early bird");
    data.extend(sealed(&mut client, b" and its worm"));
    data.truncate(data.len() - 3);
    to_server.extend_from_slice(&data);
    assert_eq!(server.feed(&mut to_server, &mut to_client), Ok(Step::Done));
    assert_eq!(to_server, data);
    assert_eq!(server.feed(&mut to_server, &mut to_client), Ok(Step::Done));
    assert_eq!(to_server, data);
    let mut server = server.into_session().unwrap().session;
    let first = parse_header(&to_server).unwrap().unwrap();
    assert_eq!(open_all(&mut server, &mut to_server[..first]).unwrap().0, b"early bird");
}

#[test]
fn session_is_not_to_be_had_before_the_end() {
    let (client, server) = configs();
    let mut client = ClientHandshake::new(client, name()).unwrap();
    client.feed(&mut Vec::new(), &mut Vec::new()).unwrap();
    assert!(matches!(client.into_session(), Err(HandshakeError::Other(_))));
    assert!(matches!(ServerHandshake::new(server).unwrap().into_session(), Err(HandshakeError::Other(_))));
}

#[test]
fn wrong_pin_is_named_on_both_sides() {
    let (server, mut pin) = server();
    pin[31] ^= 1;
    let outcome = shake((client_config(Trust::Pin(pin)).unwrap(), server), usize::MAX, |_| {});
    assert_eq!(outcome.client.unwrap_err(), HandshakeError::WrongPin);
    let told = outcome.server.unwrap_err();
    assert_eq!(told, HandshakeError::Alert(AlertDescription::AccessDenied));
    assert!(told.to_string().contains("its pin or CA does not match this relay"), "{told}");
}

#[test]
fn pinned_certificate_does_not_help_without_its_key() {
    let (cert, _) = identity();
    let (_, key) = identity();
    // rustls refuses a key that does not fit; a liar would not ask it.
    let provider = default_provider();
    let signer = provider.key_provider.load_private_key(key).unwrap();
    let liar = rustls::sign::CertifiedKey::new(vec![cert.clone()], signer);
    let mut server = Arc::unwrap_or_clone(server().0);
    server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(liar));
    let configs = (client_config(Trust::Pin(fingerprint(&cert))).unwrap(), Arc::new(server));
    let outcome = shake(configs, usize::MAX, |_| {});
    let told = HandshakeError::BadCertificate("the peer does not hold its private key".into());
    assert_eq!(outcome.client.unwrap_err(), told);
    assert_eq!(outcome.server.unwrap_err(), HandshakeError::Alert(AlertDescription::DecryptError));
}

/// A CA, and a server with a certificate that it signed for `host`.
fn signed_for(host: &str) -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([host.to_owned()]).unwrap();
    let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (ca_cert.der().clone(), server_config(vec![cert.der().clone()], key).unwrap())
}

#[test]
fn ca_is_trusted_for_its_own_certificates_and_names_only() {
    let (ca, server) = signed_for("relay.test");
    let (other, elsewhere) = signed_for("elsewhere.test");
    let trust = |ca: &[CertificateDer<'static>]| client_config(Trust::Ca(ca.to_vec())).unwrap();

    let outcome = shake((trust(&[other.clone(), ca]), server.clone()), usize::MAX, |_| {});
    assert_eq!(outcome.client.unwrap().udp_secret, outcome.server.unwrap().udp_secret);

    let outcome = shake((trust(std::slice::from_ref(&other)), server), usize::MAX, |_| {});
    // Both CAs have the same name, so that only the signature tells them apart.
    assert_eq!(outcome.client.unwrap_err(), HandshakeError::UnknownCa);
    assert_eq!(outcome.server.unwrap_err(), HandshakeError::Alert(AlertDescription::UnknownCA));

    let outcome = shake((trust(&[other]), elsewhere), usize::MAX, |_| {});
    assert!(matches!(outcome.client, Err(HandshakeError::BadCertificate(_))), "{:?}", outcome.client);
    assert!(outcome.server.is_err());
}

#[test]
fn certificate_of_a_ca_of_another_name_is_told_as_unknown_too() {
    let (ca, _) = signed_for("relay.test");
    let outcome = shake((client_config(Trust::Ca(vec![ca])).unwrap(), selfsigned_elsewhere()), usize::MAX, |_| {});
    assert_eq!(outcome.client.unwrap_err(), HandshakeError::UnknownCa);
}

fn selfsigned_elsewhere() -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(["relay.test".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "somebody else");
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    server_config(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
}

#[test]
fn failed_handshake_stays_failed() {
    let (client, server) = configs();
    let mut server = ServerHandshake::new(server).unwrap();
    let mut out = Vec::new();
    let mut hello = Vec::new();
    ClientHandshake::new(client, name()).unwrap().feed(&mut Vec::new(), &mut hello).unwrap();
    assert_eq!(server.feed(&mut b"x".to_vec(), &mut out), Err(HandshakeError::PeerNotTls));
    assert_eq!(server.feed(&mut hello, &mut out), Err(HandshakeError::PeerNotTls));
    assert!(out.is_empty());
}

#[test]
fn refused_hello_is_answered_by_one_alert() {
    let mut out = Vec::new();
    // A hello that ends in the midst of its random number.
    let mut input = [&[22, 3, 3, 0, 14, 1, 0, 0, 10, 3, 3][..], &[0; 8]].concat();
    let step = ServerHandshake::new(server().0).unwrap().feed(&mut input, &mut out);
    assert!(matches!(step, Err(HandshakeError::Other(_))), "{step:?}");
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 50]);
}

#[test]
fn trust_in_no_ca_or_a_broken_one_is_refused_at_once() {
    assert!(client_config(Trust::Ca(vec![])).is_err());
    assert!(client_config(Trust::Ca(vec![CertificateDer::from(vec![1, 2, 3])])).is_err());
}

#[test]
fn what_is_no_tls_is_named_at_its_first_byte_and_not_answered() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH", &[0x50, 3, 3, 0, 1, 0], &[22, 2], b"\0"] {
        let (client, server) = configs();
        let mut out = Vec::new();
        let mut server = ServerHandshake::new(server).unwrap();
        assert_eq!(server.feed(&mut bytes.to_vec(), &mut out), Err(HandshakeError::PeerNotTls), "{bytes:?}");
        assert!(out.is_empty());
        let mut client = ClientHandshake::new(client, name()).unwrap();
        client.feed(&mut Vec::new(), &mut out).unwrap();
        out.clear();
        assert_eq!(client.feed(&mut bytes.to_vec(), &mut out), Err(HandshakeError::PeerNotTls), "{bytes:?}");
        assert!(out.is_empty());
    }
}

#[test]
fn garbage_in_the_midst_is_refused() {
    let (client, server) = configs();
    let mut client = ClientHandshake::new(client, name()).unwrap();
    let mut server = ServerHandshake::new(server).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    client.feed(&mut Vec::new(), &mut to_server).unwrap();
    to_server.extend_from_slice(b"GET /");
    assert!(matches!(server.feed(&mut to_server, &mut to_client), Err(HandshakeError::Other(_))));
}

#[test]
fn endless_message_is_cut_off() {
    let mut server = ServerHandshake::new(server().0).unwrap();
    let mut out = Vec::new();
    // A hello that says it has 65,535 bytes, in records of 1,000.
    let mut input = [&[22, 3, 3, 3, 232, 1, 0, 0xff, 0xff][..], &[0; 996]].concat();
    let fed = (1..100).find(|_| {
        let step = server.feed(&mut input, &mut out);
        input.extend_from_slice(&[&[22, 3, 3, 3, 232][..], &[0; 1000]].concat());
        match step {
            Ok(step) => {
                assert_eq!(step, Step::NeedMore);
                false
            }
            Err(error) => matches!(error, HandshakeError::Other(_)),
        }
    });
    assert!(fed.is_some_and(|records| (60..=66).contains(&records)), "{fed:?}");
}

#[test]
fn peer_of_another_protocol_is_named_on_both_sides() {
    let (client, server) = configs();
    let mut client = Arc::unwrap_or_clone(client);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let outcome = shake((Arc::new(client), server), usize::MAX, |_| {});
    let want = HandshakeError::Alert(AlertDescription::NoApplicationProtocol);
    assert_eq!(outcome.server.unwrap_err(), want);
    assert_eq!(outcome.client.unwrap_err(), want);
}

#[test]
fn servers_first_suite_is_taken_whatever_the_clients_order() {
    let (client, server) = configs();
    let outcome = shake((client, server), usize::MAX, |_| {});
    let session = outcome.client.unwrap().session;
    assert_eq!(session.suite(), Some(keys::Suite::Aes128Gcm));
    for (suite, want) in
        SUITES.into_iter().zip([keys::Suite::Aes128Gcm, keys::Suite::Aes256Gcm, keys::Suite::ChaCha20Poly1305])
    {
        assert_eq!(connected(configs_with(suite)).1.suite(), Some(want));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A record header's version is not authenticated, so that a change may pass unseen; but then both agree.
    #[test]
    fn changed_flight_never_makes_the_ends_differ(flight in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut number = 0;
        let outcome = shake(configs(), usize::MAX, |bytes| {
            if number == flight && !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            number += 1;
        });
        if let (Ok(client), Ok(server)) = (outcome.client, outcome.server) {
            prop_assert_eq!(client.udp_secret, server.udp_secret);
        }
    }

    #[test]
    fn random_bytes_never_establish(bytes in prop::collection::vec(any::<u8>(), 0..600), as_record in any::<bool>()) {
        let mut input = bytes;
        if as_record {
            let [high, low] = (input.len() as u16).to_be_bytes();
            input.splice(..0, [22, 3, 1, high, low]);
        }
        let mut out = Vec::new();
        prop_assert_ne!(ServerHandshake::new(server().0).unwrap().feed(&mut input, &mut out), Ok(Step::Done));
    }
}
