//! Trust in the relay's certificate, by fingerprint or by CA. A pin is the SHA-256 of the relay's certificate (the whole DER), as
//! `openssl x509 -fingerprint -sha256` prints it.

use std::fmt::Write;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

const PREFIX: &str = "SHA256:";

/// The SHA-256 of a certificate's DER.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, certificate.as_ref()).as_ref());
    hash
}

/// A pin as text: `SHA256:` and 64 lower-case hex digits.
pub fn format_pin(pin: &[u8; 32]) -> String {
    pin.iter().fold(String::from(PREFIX), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The text is not a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a pin; write SHA256: and 64 hex digits, as `isthmus-relay fingerprint` prints it (colons between the bytes are fine)"
)]
pub struct BadPin(String);

/// Reads a pin: 32 bytes in hex of any case, with a colon between each two or none, with `SHA256:`
/// before them or not.
///
/// # Errors
/// [`BadPin`] with the text.
pub fn parse_pin(text: &str) -> Result<[u8; 32], BadPin> {
    let bad = || BadPin(text.to_owned());
    let trimmed = text.trim();
    let hex = match trimmed.get(..PREFIX.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => &trimmed[PREFIX.len()..],
        _ => trimmed,
    };
    let stride = match hex.len() {
        64 => 2,
        95 if hex.bytes().skip(2).step_by(3).all(|byte| byte == b':') => 3,
        _ => return Err(bad()),
    };
    let mut pin = [0; 32];
    for (byte, pair) in pin.iter_mut().zip(hex.as_bytes().chunks(stride)) {
        let digit = |at: usize| pair.get(at).and_then(|&c| char::from(c).to_digit(16)).ok_or_else(bad);
        // Two digits make at most 255.
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Ok(pin)
}

/// Takes exactly one certificate, whatever its names, dates and issuer; that its holder has the
/// private key is still proved by the handshake's signature.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pub(super) pin: [u8; 32],
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if fingerprint(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            // No verifier but this one gives this error: `HandshakeError::WrongPin` is told by it.
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The usual verification against CAs, but for one answer: where a CA of the same name has another
/// key, a bad signature is found rather than an unknown issuer. Every relay that makes its own CA may well give it
/// the same name, and for the operator both are the same mistake.
#[derive(Debug)]
pub(super) struct CaVerifier(pub(super) Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for CaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).map_err(|error| {
            match error {
                Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
                other => other,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_in_every_spelling_and_printed_in_one() {
        let pin: [u8; 32] = std::array::from_fn(|n| (n * 7 + 9) as u8);
        let text = format_pin(&pin);
        assert_eq!(text.len(), 7 + 64);
        let hex = &text[7..];
        let colons = hex.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join(":");
        for spelling in [
            text.clone(),
            hex.to_owned(),
            text.to_uppercase(),
            colons.to_uppercase(),
            format!("SHA256:{colons}"),
            format!(" sha256:{hex}\n"),
        ] {
            assert_eq!(parse_pin(&spelling), Ok(pin), "{spelling}");
        }
    }

    #[test]
    fn texts_that_are_no_pins_are_named() {
        let good = format_pin(&[0xab; 32]);
        let colons = ["ab"; 32].join(":");
        for bad in [
            String::new(),
            "SHA256:".into(),
            good[..good.len() - 1].into(),
            format!("{good}0"),
            good.replacen('a', "g", 1),
            good.replacen("ab", "+a", 1),
            good.replace("SHA256", "SHA1"),
            colons.replacen(':', "-", 1),
            format!("{colons}:"),
            good.replacen("aba", "aä", 1),
        ] {
            assert_eq!(parse_pin(&bad), Err(BadPin(bad.clone())), "{bad}");
        }
    }
}
