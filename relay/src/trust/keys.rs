//! What a first start makes: a CA, a server certificate that it signs, the tokens' key.

use anyhow::{Context, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::{SERVER_NAME, hex};

pub(super) const CA_PEM: &str = "ca.pem";
pub(super) const CA_KEY: &str = "ca.key";
pub(super) const SERVER_PEM: &str = "server.pem";
pub(super) const SERVER_KEY: &str = "server.key";
pub(super) const TOKEN_KEY: &str = "token.key";

/// Every file of a state directory.
pub(super) const FILES: [&str; 5] = [CA_PEM, CA_KEY, SERVER_PEM, SERVER_KEY, TOKEN_KEY];

/// New keys, as files: name and content.
pub(super) fn generate() -> anyhow::Result<[(&'static str, String); 5]> {
    let ca_key = KeyPair::generate().context("cannot make the CA's key")?;
    let ca_key_pem = ca_key.serialize_pem();
    let ca_params = ca_params()?;
    let ca = ca_params.self_signed(&ca_key).context("cannot sign the CA's certificate")?;
    let server_key = KeyPair::generate().context("cannot make the server's key")?;
    let server = server_params()?
        .signed_by(&server_key, &Issuer::new(ca_params, ca_key))
        .context("cannot sign the server's certificate")?;
    Ok([
        (CA_PEM, ca.pem()),
        (CA_KEY, ca_key_pem),
        (SERVER_PEM, server.pem()),
        (SERVER_KEY, server_key.serialize_pem()),
        (TOKEN_KEY, generate_token_key()?),
    ])
}

/// A new token key's file.
pub(super) fn generate_token_key() -> anyhow::Result<String> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("the system gives no random bytes")?;
    Ok(hex(&secret) + "\n")
}

/// Reads a token key's file: 64 hex digits and a line's end.
pub(super) fn parse_token_key(content: &[u8]) -> anyhow::Result<[u8; 32]> {
    let digits = content.trim_ascii();
    ensure!(digits.len() == 64, "it holds {} characters, not 64 hexadecimal digits", digits.len());
    let mut secret = [0; 32];
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| (digit as char).to_digit(16).context("a character is no hexadecimal digit");
        *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
    }
    Ok(secret)
}

fn ca_params() -> anyhow::Result<CertificateParams> {
    let mut params = params(Vec::new(), "Isthmus relay CA")?;
    // No CA below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_params() -> anyhow::Result<CertificateParams> {
    let mut params = params(vec![SERVER_NAME.to_owned()], SERVER_NAME)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn params(names: Vec<String>, common_name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names).context("cannot name the certificate")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A mediator may be a small box without a clock of its own, which believes in 1970 after each start. The end is as
    // far off as a certificate can say: what ends the trust in this key is a change of the pin.
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_key_comes_back_from_its_file() {
        let files = generate().unwrap();
        let (_, content) = files.iter().find(|(name, _)| *name == TOKEN_KEY).unwrap();
        let secret = parse_token_key(content.as_bytes()).unwrap();
        assert_eq!(format!("{}\n", hex(&secret)), *content);
        assert_ne!(secret, [0; 32]);
    }

    #[test]
    fn damaged_token_keys_are_refused() {
        for bad in ["", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(parse_token_key(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_file_is_made_once() {
        let mut names: Vec<_> = generate().unwrap().map(|(name, _)| name).to_vec();
        names.sort_unstable();
        let mut files = FILES;
        files.sort_unstable();
        assert_eq!(names, files);
    }
}
