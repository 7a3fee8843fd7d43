//! Issuers' keys and callers' certificates, from their files to a grant.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus_proto::Code;
use isthmus_proto::hello::{Hello, Report, Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;

struct Place {
    dir: tempfile::TempDir,
    options: TrustOptions,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), options: TrustOptions::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self, before: Option<&Trust>) -> anyhow::Result<Trust> {
        Trust::load(&State::open(&self.path("state")).unwrap(), &self.options, before)
    }
}

/// A key of an issuer, and its public half as a JWK.
struct Signer {
    key: EncodingKey,
    jwk: Value,
}

fn key(algorithm: Algorithm) -> Signer {
    let random = SystemRandom::new();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match algorithm {
        Algorithm::EdDSA => {
            let document = Ed25519KeyPair::generate_pkcs8v1(&random).unwrap();
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document.as_ref()).unwrap();
            let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref()) });
            Signer { key: EncodingKey::from_ed_der(document.as_ref()), jwk }
        }
        _ => {
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
            // An uncompressed point: 4, x, y.
            let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
            let jwk = json!({ "kty": "EC", "crv": "P-256", "x": text(x), "y": text(y) });
            Signer { key: EncodingKey::from_ec_der(document.as_ref()), jwk }
        }
    }
}

fn publish(path: &Path, keys: &[(&Signer, &str)]) {
    let named = |&(signer, kid): &(&Signer, &str)| {
        let mut jwk = signer.jwk.clone();
        jwk["kid"] = kid.into();
        jwk
    };
    let keys: Vec<_> = keys.iter().map(named).collect();
    std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
}

fn signed(signer: &Signer, algorithm: Algorithm, kid: Option<&str>) -> String {
    let claims = json!({ "sub": "desk", "role": "terminal", "mediators": "*", "exp": NOW + 9, "iat": NOW, "jti": "j" });
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, &claims, &signer.key).unwrap()
}

#[test]
fn token_with_demands_that_are_not_understood_is_refused() {
    let mut place = Place::new();
    let file = place.path("jwks.json");
    place.options.jwks = Some(file.clone());
    let ed = key(Algorithm::EdDSA);
    publish(&file, &[(&ed, "e1")]);
    let trust = place.load(None).unwrap();
    let claims = json!({ "sub": "desk", "role": "terminal", "mediators": "*", "exp": NOW + 9, "iat": NOW });
    let mut header = Header { kid: Some("e1".into()), ..Header::new(Algorithm::EdDSA) };
    assert!(trust.grant(&jsonwebtoken::encode(&header, &claims, &ed.key).unwrap(), NOW).is_ok());
    header.crit = Some(vec!["bound".into()]);
    assert_eq!(trust.grant(&jsonwebtoken::encode(&header, &claims, &ed.key).unwrap(), NOW), Err(Code::BadToken));
}

#[test]
fn another_signature_does_not_make_another_token() {
    let mut place = Place::new();
    let file = place.path("jwks.json");
    place.options.jwks = Some(file.clone());
    let ec = key(Algorithm::ES256);
    publish(&file, &[(&ec, "c1")]);
    let trust = place.load(None).unwrap();
    let claims = json!({ "sub": "desk", "role": "terminal", "mediators": "*", "exp": NOW + 9, "iat": NOW });
    let header = Header { kid: Some("c1".into()), ..Header::new(Algorithm::ES256) };
    // Each signature is made with random numbers, so that two of them differ.
    let tokens = [(); 2].map(|()| jsonwebtoken::encode(&header, &claims, &ec.key).unwrap());
    assert_ne!(tokens[0], tokens[1]);
    let [one, two] = tokens.clone().map(|token| trust.grant(&token, NOW).unwrap().credential.id);
    assert_eq!(one, two);
    let (Target::Jti(named), _) = token_named(&tokens[1]).unwrap() else { panic!("not by its identifier") };
    assert_eq!(grant::digest64(named.as_bytes()), one);
}

#[test]
fn issuers_tokens_of_both_algorithms_are_good_by_the_named_key_only() {
    let mut place = Place::new();
    let file = place.path("jwks.json");
    place.options.jwks = Some(file.clone());
    let (ed, ec, other) = (key(Algorithm::EdDSA), key(Algorithm::ES256), key(Algorithm::EdDSA));
    publish(&file, &[(&ed, "e1"), (&ec, "c1")]);
    let trust = place.load(None).unwrap();
    let check = |token: &str| trust.grant(token, NOW).map(|grant| grant.name);
    assert_eq!(check(&signed(&ed, Algorithm::EdDSA, Some("e1"))), Ok("desk".into()));
    assert_eq!(check(&signed(&ec, Algorithm::ES256, Some("c1"))), Ok("desk".into()));
    // The only key of its algorithm needs no name.
    assert_eq!(check(&signed(&ed, Algorithm::EdDSA, None)), Ok("desk".into()));
    let secret = Signer { key: EncodingKey::from_secret(b"e1"), jwk: Value::Null };
    for bad in [
        signed(&ed, Algorithm::EdDSA, Some("c1")),
        signed(&other, Algorithm::EdDSA, Some("e1")),
        signed(&other, Algorithm::EdDSA, None),
        signed(&secret, Algorithm::HS256, Some("e1")),
    ] {
        assert_eq!(check(&bad), Err(Code::BadToken));
    }
    // Of two, one must be named.
    publish(&file, &[(&ed, "e1"), (&other, "e2")]);
    let two = place.load(Some(&trust)).unwrap();
    assert_eq!(two.grant(&signed(&ed, Algorithm::EdDSA, None), NOW), Err(Code::BadToken));
    assert!(two.grant(&signed(&other, Algorithm::EdDSA, Some("e2")), NOW).is_ok());
}

#[test]
fn sessions_end_with_the_issuers_key_that_they_came_by() {
    let mut place = Place::new();
    let file = place.path("jwks.json");
    place.options.jwks = Some(file.clone());
    let (old, new) = (key(Algorithm::ES256), key(Algorithm::ES256));
    publish(&file, &[(&old, "old"), (&new, "new")]);
    let both = place.load(None).unwrap();
    let grant = both.grant(&signed(&old, Algorithm::ES256, Some("old")), NOW).unwrap();
    let still = |trust: &Trust| trust.still(grant.holder, &grant.name, &grant.credential, NOW);
    assert_eq!(still(&place.load(Some(&both)).unwrap()), Ok(()));
    publish(&file, &[(&new, "new")]);
    assert_eq!(still(&place.load(Some(&both)).unwrap()), Err(Code::Revoked));
    std::fs::write(&file, "{").unwrap();
    assert!(format!("{:#}", place.load(Some(&both)).unwrap_err()).contains("--jwks"));
}

#[test]
fn revoking_a_holder_covers_what_an_issuer_signed_by_a_clock_that_is_ahead() {
    let mut place = Place::new();
    let issuer = key(Algorithm::ES256);
    let file = place.path("issuer.json");
    publish(&file, &[(&issuer, "one")]);
    place.options.jwks = Some(file);
    let before = place.load(None).unwrap();
    let desk = Target::Terminal("desk".into());
    State::revoke(&place.path("state"), Entry { target: desk, at: NOW, until: None }).unwrap();
    let after = place.load(Some(&before)).unwrap();
    let own = |issued: u64| {
        let mediators = "*".parse().unwrap();
        let scope = TerminalScope { name: "desk".into(), mediators, operations: None, destinations: None };
        let ttl = std::time::Duration::from_secs(3600);
        State::open(&place.path("state")).unwrap().tokens().issue_terminal(&scope, ttl, issued).unwrap()
    };
    let others = |issued: u64| {
        let claims = json!({ "sub": "desk", "role": "terminal", "mediators": "*", "iat": issued, "exp": NOW + 3600 });
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &issuer.key).unwrap()
    };
    for (token, good) in [(others(NOW + 30), false), (others(NOW + 31), true), (own(NOW), false), (own(NOW + 1), true)]
    {
        let want = if good { Ok(()) } else { Err(Code::Revoked) };
        assert_eq!(after.grant(&token, NOW + 60).map(|_| ()), want);
        // A session that came in before is judged alike.
        let grant = before.grant(&token, NOW + 60).unwrap();
        assert_eq!(after.still(grant.holder, &grant.name, &grant.credential, NOW + 60), want);
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn certificate(&self, uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().to_vec()
    }
}

fn hello(role: Role) -> Hello {
    Hello { token: String::new(), role, udp_channels: 0, instance: 0 }
}

fn mediator(id: &str) -> Hello {
    hello(Role::Mediator { id: id.parse().unwrap(), report: Box::<Report>::default() })
}

fn terminal(mediator: &str) -> Hello {
    hello(Role::Terminal { mediator: Some(mediator.parse().unwrap()) })
}

/// Of a caller whose handshake began under the same trust.
fn admit_certificate(trust: &Trust, hello: &Hello, der: &[u8]) -> Result<Grant, (Code, String)> {
    trust.admit(hello, Some(Shown { der, judges: trust.judges() }), NOW)
}

#[test]
fn certificates_grant_what_their_names_say() {
    let mut place = Place::new();
    let authority = Authority::new();
    std::fs::write(place.path("ca.pem"), &authority.pem).unwrap();
    place.options.client_ca = Some(place.path("ca.pem"));
    let trust = place.load(None).unwrap();
    let admit = |hello: &Hello, uris: &[&str]| admit_certificate(&trust, hello, &authority.certificate(uris));

    let grant = admit(&mediator("cpe-1"), &["isthmus:mediator:cpe-1"]).unwrap();
    assert_eq!((grant.holder, grant.name.as_str()), (Holder::Mediator, "cpe-1"));
    assert_eq!(grant.credential.expires, 2_208_988_800);
    assert_eq!(admit(&mediator("cpe-2"), &["isthmus:mediator:cpe-1"]).unwrap_err().0, Code::TokenMismatch);
    assert_eq!(admit(&terminal("cpe-1"), &["isthmus:mediator:cpe-1"]).unwrap_err().0, Code::TokenMismatch);

    let desk =
        ["isthmus:terminal:desk", "isthmus:mediators:cpe-*", "isthmus:allow:connect,open", "isthmus:to:10.0.0.0/8:22"];
    let grant = admit(&terminal("cpe-1"), &desk).unwrap();
    assert!(grant.permits(Operation::Connect) && !grant.permits(Operation::Listen));
    assert!(grant.permits_destination("10.1.1.1:22".parse().unwrap()));
    assert!(!grant.permits_destination("10.1.1.1:23".parse().unwrap()));
    assert_eq!(admit(&terminal("hub"), &desk).unwrap_err().0, Code::TokenMismatch);
    let (code, text) = admit(&terminal("cpe-1"), &desk[..1]).unwrap_err();
    assert!(code == Code::BadToken && text.contains("isthmus:mediators:"), "{text}");
    let (code, text) =
        admit(&terminal("cpe-1"), &["isthmus:terminal:d", "isthmus:mediators:*", "isthmus:to:x"]).unwrap_err();
    assert!(code == Code::BadToken && text.contains("isthmus:to:x"), "{text}");
}

/// The same certificate with the other good signature: of ECDSA, (r, n - s) is as good as (r, s).
fn twin(der: &[u8]) -> Vec<u8> {
    let order = *b"\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51";
    let value = |tag: u8, content: &[u8]| {
        let [high, low] = (content.len() as u16).to_be_bytes();
        let length = match content.len() {
            0..0x80 => vec![low],
            0x80..0x100 => vec![0x81, low],
            _ => vec![0x82, high, low],
        };
        [[tag].as_slice(), &length, content].concat()
    };
    // 30 82 LL LL, what is signed and by which algorithm; 03 LL 00 30 LL 02 LL r 02 LL s at the end.
    let start = (der.len() - 75..der.len() - 60).find(|&at| {
        let length = usize::from(der[at + 1]);
        der[at] == 3 && at + 2 + length == der.len() && der[at + 2..at + 4] == [0, 0x30]
    });
    let start = start.expect("a P-256 signature");
    let r: &[u8] = &der[start + 5..start + 7 + usize::from(der[start + 6])];
    let s = &der[start + 5 + r.len() + 2..];
    let mut other = [0; 32];
    let s = &s[s.len().saturating_sub(32)..];
    let mut borrow = 0;
    for (at, (n, out)) in std::iter::zip(order, &mut other).enumerate().rev() {
        let digit = (at + s.len()).checked_sub(32).map_or(0, |at| i16::from(s[at]));
        let rest = i16::from(n) - digit - borrow;
        borrow = i16::from(rest < 0);
        *out = rest.rem_euclid(256) as u8;
    }
    let first = other.iter().position(|&byte| byte != 0).unwrap();
    let zero: &[u8] = if other[first] >= 0x80 { &[0] } else { &[] };
    let signature = value(0x30, &[r, &value(2, &[zero, &other[first..]].concat())].concat());
    value(0x30, &[&der[4..start], &value(3, &[[0].as_slice(), &signature].concat())].concat())
}

#[test]
fn certificates_are_revoked_by_name_and_by_themselves_whatever_their_signature() {
    let mut place = Place::new();
    let authority = Authority::new();
    std::fs::write(place.path("ca.pem"), &authority.pem).unwrap();
    place.options.client_ca = Some(place.path("ca.pem"));
    let der = authority.certificate(&["isthmus:mediator:cpe-1"]);
    let twin = twin(&der);
    let print = |der: &[u8]| hex(&isthmus_proto::record::fingerprint(&der.to_vec().into()));
    assert_ne!(print(&der), print(&twin));
    // Both are good for TLS.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    for der in [&der, &twin] {
        tls.verify_client_cert(&der.clone().into(), &[], now).unwrap();
    }
    let (itself, end) = certificate_named(&der).unwrap();
    assert_eq!(end, 2_208_988_800);
    let by_print = Target::Jti(print(&der));
    for (target, covers_twin) in [(itself, true), (Target::Mediator("cpe-1".parse().unwrap()), true), (by_print, false)]
    {
        let before = place.load(None).unwrap();
        State::revoke(&place.path("state"), Entry { target, at: NOW, until: None }).unwrap();
        let after = place.load(Some(&before)).unwrap();
        for (der, covered) in [(&der, true), (&twin, covers_twin)] {
            let grant = admit_certificate(&before, &mediator("cpe-1"), der).unwrap();
            let want = if covered { Err(Code::Revoked) } else { Ok(()) };
            let admitted = admit_certificate(&after, &mediator("cpe-1"), der);
            assert_eq!(admitted.map(|_| ()).map_err(|(code, _)| code), want);
            assert_eq!(after.still(grant.holder, &grant.name, &grant.credential, NOW), want);
        }
        std::fs::remove_file(place.path("state/revoked")).unwrap();
    }
}

#[test]
fn an_authority_more_keeps_sessions_and_one_less_ends_them() {
    let mut place = Place::new();
    let (first, second) = (Authority::new(), Authority::new());
    let file = place.path("ca.pem");
    place.options.client_ca = Some(file.clone());
    std::fs::write(&file, &first.pem).unwrap();
    let one = place.load(None).unwrap();
    let der = first.certificate(&["isthmus:mediator:cpe-1"]);
    let grant = admit_certificate(&one, &mediator("cpe-1"), &der).unwrap();
    let still = |trust: &Trust| trust.still(grant.holder, &grant.name, &grant.credential, NOW);
    std::fs::write(&file, format!("{}{}", first.pem, second.pem)).unwrap();
    let two = place.load(Some(&one)).unwrap();
    assert_eq!(still(&two), Ok(()));
    std::fs::write(&file, &second.pem).unwrap();
    let other = place.load(Some(&two)).unwrap();
    assert_eq!(still(&other), Err(Code::Revoked));
    // Nor is a handshake that was judged by the ones before worth anything now.
    let late = Shown { der: &der, judges: one.judges() };
    assert!(two.admit(&mediator("cpe-1"), Some(late), NOW).is_ok());
    assert_eq!(other.admit(&mediator("cpe-1"), Some(late), NOW).unwrap_err().0, Code::Revoked);
    // It does not become good again by what comes later.
    std::fs::write(&file, format!("{}{}", first.pem, second.pem)).unwrap();
    assert_eq!(still(&place.load(Some(&other)).unwrap()), Err(Code::Revoked));
    place.options.plaintext = true;
    assert!(place.load(None).unwrap_err().to_string().contains("--plaintext"));
}
