//! A carrier's own issuer: public keys from a JWKS file (RFC 7517).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::grant::digest64;
use super::token::Verifier;

/// Most keys of a file. One with more is no issuer's.
const KEYS_MAX: usize = 64;

/// Largest file in bytes.
const FILE_LEN_MAX: u64 = 256 * 1024;

/// One public key of the issuer.
#[derive(Clone, Debug)]
pub(super) struct IssuerKey {
    pub(super) kid: Option<String>,
    pub(super) verifier: Verifier,
}

/// The keys of a file that sign with EdDSA (Ed25519) or ES256 (P-256). Others are passed over, with a line in the log.
///
/// # Errors
/// The file cannot be read, is no JWKS, holds a secret, or no usable key.
pub(super) fn load(path: &Path) -> anyhow::Result<Vec<IssuerKey>> {
    let shown = path.display();
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("--jwks: cannot open {shown}"))?;
    file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).with_context(|| format!("--jwks: cannot read {shown}"))?;
    ensure!(text.len() as u64 <= FILE_LEN_MAX, "--jwks: {shown} is longer than {FILE_LEN_MAX} bytes, so no key set");
    parse(&text).with_context(|| format!("--jwks: {shown}"))
}

fn parse(text: &str) -> anyhow::Result<Vec<IssuerKey>> {
    let set: Value = serde_json::from_str(text).context("it is no JSON; give the issuer's JWKS document")?;
    let Some(keys) = set.get("keys").and_then(Value::as_array) else {
        bail!("it has no \"keys\"; give the issuer's JWKS document (RFC 7517)")
    };
    ensure!(keys.len() <= KEYS_MAX, "it has {} keys, and {KEYS_MAX} is the limit; leave old ones out", keys.len());
    let mut usable = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let has = |field| key.get(field).is_some();
        if key.get("kty").and_then(Value::as_str) == Some("oct") || has("d") {
            bail!("key {n} is a secret one; a JWKS file for a relay holds public keys only, take it out and replace it")
        }
        match usable_key(key) {
            Ok(key) => usable.push(key),
            Err(why) => tracing::info!(key = n, why, "a key of --jwks is passed over"),
        }
    }
    ensure!(!usable.is_empty(), "it holds no public key of EdDSA (Ed25519) or ES256 (P-256) for signatures");
    Ok(usable)
}

fn usable_key(value: &Value) -> Result<IssuerKey, &'static str> {
    let jwk = Jwk::deserialize(value).map_err(|_| "of an unknown kind")?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("not for signatures");
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        _ => return Err("neither Ed25519 nor P-256"),
    };
    if jwk.common.key_algorithm.is_some_and(|algorithm| algorithm != named) {
        return Err("for another algorithm than its curve's");
    }
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| "damaged")?;
    // The same key under another name is another one: a name stands for what its issuer says of it.
    let id = digest64(value.to_string().as_bytes());
    Ok(IssuerKey { kid: jwk.common.key_id, verifier: Verifier::new(id, algorithm, decoding) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"e1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const EC: &str = r#"{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256",
        "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    fn set(keys: &[&str]) -> String {
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    #[test]
    fn keys_of_both_kinds_are_taken_with_their_names() {
        let keys = parse(&set(&[ED, EC])).unwrap();
        assert_eq!((keys[0].kid.as_deref(), keys[0].verifier.algorithm), (Some("e1"), Algorithm::EdDSA));
        assert_eq!((keys[1].kid.as_deref(), keys[1].verifier.algorithm), (None, Algorithm::ES256));
        assert_ne!(keys[0].verifier.id, keys[1].verifier.id);
    }

    #[test]
    fn keys_of_other_kinds_are_passed_over_and_none_left_is_an_error() {
        let rsa = r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#;
        let future = r#"{"kty":"PQ","x":"AA"}"#;
        let enc = ED.replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
        assert_eq!(parse(&set(&[rsa, future, &enc, ED])).unwrap().len(), 1);
        let error = parse(&set(&[rsa])).unwrap_err().to_string();
        assert!(error.contains("Ed25519"), "{error}");
    }

    #[test]
    fn secrets_and_other_documents_are_refused_with_the_cure() {
        let private = ED.replace("\"x\"", "\"d\":\"nWGx\",\"x\"");
        for (text, part) in [
            (set(&[r#"{"kty":"oct","k":"AAAA"}"#]), "public keys only"),
            (set(&[ED, &private]), "key 1 is a secret"),
            ("{}".into(), "JWKS document"),
            ("-----BEGIN".into(), "no JSON"),
            (set(&[ED; KEYS_MAX + 1]), "limit"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
