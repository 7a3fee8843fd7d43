//! Callers' certificates: shown, not shown, and not good.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Ca { issuer: Issuer::new(params, key), der }
}

fn identity(ca: &Ca, purpose: ExtendedKeyUsagePurpose) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    let chain = vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()];
    Identity { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
}

/// What the relay makes of a caller, and whether the caller's own handshake came to its end.
fn meet(
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
) -> (Result<Established, HandshakeError>, bool) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().der().clone();
    let pin = fingerprint(&certificate);
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = server_config_with_callers(vec![certificate], key, authorities).unwrap();
    let client = client_config_with_identity(Trust::Pin(pin), identity).unwrap();
    let mut server = ServerHandshake::new(server).unwrap();
    let mut client = ClientHandshake::new(client, ServerName::try_from("relay").unwrap()).unwrap();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut done = false;
    for _ in 0..8 {
        done |= client.feed(&mut to_client, &mut to_server).is_ok_and(|step| step == Step::Done);
        match server.feed(&mut to_server, &mut to_client) {
            Ok(Step::Done) => return (server.into_session(), done),
            Ok(Step::NeedMore) => {}
            Err(error) => return (Err(error), done),
        }
    }
    panic!("no end")
}

#[test]
fn verified_certificate_reaches_the_relay_as_it_is() {
    let ca = ca();
    let identity = identity(&ca, ExtendedKeyUsagePurpose::ClientAuth);
    let shown = identity.chain[0].clone();
    let (established, done) = meet(vec![ca.der], Some(identity));
    assert_eq!((established.unwrap().caller, done), (Some(shown), true));
}

#[test]
fn caller_without_a_certificate_goes_on() {
    let (established, done) = meet(vec![ca().der], None);
    assert_eq!((established.unwrap().caller, done), (None, true));
}

#[test]
fn certificate_is_not_asked_for_without_an_authority() {
    let identity = identity(&ca(), ExtendedKeyUsagePurpose::ClientAuth);
    let (established, _) = meet(Vec::new(), Some(identity));
    assert_eq!(established.unwrap().caller, None);
}

#[test]
fn certificates_of_other_authorities_and_for_servers_are_refused_with_the_cure() {
    let trusted = ca();
    for identity in
        [identity(&ca(), ExtendedKeyUsagePurpose::ClientAuth), identity(&trusted, ExtendedKeyUsagePurpose::ServerAuth)]
    {
        let error = meet(vec![trusted.der.clone()], Some(identity)).0.unwrap_err();
        assert!(matches!(error, HandshakeError::BadCaller(_)) && error.to_string().contains("--client-ca"), "{error}");
    }
}

#[test]
fn key_of_another_certificate_is_refused_at_once() {
    let ca = ca();
    let (one, other) =
        (identity(&ca, ExtendedKeyUsagePurpose::ClientAuth), identity(&ca, ExtendedKeyUsagePurpose::ClientAuth));
    let mixed = Identity { chain: one.chain, key: other.key };
    assert!(client_config_with_identity(Trust::Pin([0; 32]), Some(mixed)).is_err());
}
