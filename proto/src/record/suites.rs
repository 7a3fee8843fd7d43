//! The cipher suites of TLS 1.3: aws-lc's, with the key schedule's HMAC (RFC 8446 7.1) by ring.
//!
//! A handshake derives some two dozen secrets and keys. aws-lc's HKDF begins each of them anew, with an extraction and with
//! contexts on the heap, which is a fifth of a resumed handshake (both ends: 203 us; with ring's HMAC 163).

use std::sync::LazyLock;

use ring::hmac as ring_hmac;
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::{Hkdf, HkdfUsingHmac};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

use super::aead::Suite;

/// All of them, in the order in which they are preferred: AES-128-GCM is the fastest, and strong enough.
pub(super) fn cipher_suites() -> Vec<SupportedCipherSuite> {
    [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
        .map(|suite| SupportedCipherSuite::Tls13(tls13(suite)))
        .into()
}

/// The one with this AEAD.
pub(super) fn tls13(suite: Suite) -> &'static Tls13CipherSuite {
    static SHA256: HkdfUsingHmac<'static> = HkdfUsingHmac(&RingHmac(&ring_hmac::HMAC_SHA256));
    static SHA384: HkdfUsingHmac<'static> = HkdfUsingHmac(&RingHmac(&ring_hmac::HMAC_SHA384));
    static AES_128_GCM: LazyLock<Tls13CipherSuite> =
        LazyLock::new(|| with_hkdf(&cipher_suite::TLS13_AES_128_GCM_SHA256, &SHA256));
    static AES_256_GCM: LazyLock<Tls13CipherSuite> =
        LazyLock::new(|| with_hkdf(&cipher_suite::TLS13_AES_256_GCM_SHA384, &SHA384));
    static CHACHA20_POLY1305: LazyLock<Tls13CipherSuite> =
        LazyLock::new(|| with_hkdf(&cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &SHA256));
    match suite {
        Suite::Aes128Gcm => &AES_128_GCM,
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    }
}

/// `of` is one of TLS 1.3, with the hash of `hkdf`.
fn with_hkdf(of: &'static SupportedCipherSuite, hkdf: &'static dyn Hkdf) -> Tls13CipherSuite {
    let SupportedCipherSuite::Tls13(of) = of;
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: of.common.suite,
            hash_provider: of.common.hash_provider,
            confidentiality_limit: of.common.confidentiality_limit,
        },
        hkdf_provider: hkdf,
        aead_alg: of.aead_alg,
        quic: of.quic,
    }
}

/// ring's HMAC, as rustls wants it.
struct RingHmac(&'static ring_hmac::Algorithm);

impl Hmac for RingHmac {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(RingKey(ring_hmac::Key::new(*self.0, key)))
    }

    fn hash_output_len(&self) -> usize {
        self.0.digest_algorithm().output_len()
    }
}

/// A key with what its first block makes of the hash, so that each use costs two blocks less.
struct RingKey(ring_hmac::Key);

impl Key for RingKey {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = ring_hmac::Context::with_key(&self.0);
        context.update(first);
        for bytes in middle {
            context.update(bytes);
        }
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::tls13::{HkdfExpander, expand};

    /// Both libraries derive the same, whichever way a handshake goes: with and without salt and secret, over more than
    /// one block, in pieces.
    #[test]
    fn hkdf_is_the_one_of_the_suite() {
        let pairs = [
            (Suite::Aes128Gcm, &cipher_suite::TLS13_AES_128_GCM_SHA256),
            (Suite::Aes256Gcm, &cipher_suite::TLS13_AES_256_GCM_SHA384),
            (Suite::ChaCha20Poly1305, &cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
        ];
        for (suite, theirs) in pairs {
            let ours = tls13(suite);
            let SupportedCipherSuite::Tls13(theirs) = theirs;
            assert_eq!(ours.common.suite, theirs.common.suite);
            let expanders = |hkdf: &dyn Hkdf| -> Vec<Box<dyn HkdfExpander>> {
                vec![
                    hkdf.extract_from_zero_ikm(None),
                    hkdf.extract_from_zero_ikm(Some(b"salt")),
                    hkdf.extract_from_secret(None, b"secret"),
                    hkdf.extract_from_secret(Some(b"salt"), &[7; 200]),
                ]
            };
            for (ours, theirs) in expanders(ours.hkdf_provider).iter().zip(&expanders(theirs.hkdf_provider)) {
                assert_eq!(ours.hash_len(), theirs.hash_len());
                let block = ours.expand_block(&[b"la", b"bel"]);
                assert_eq!(block.as_ref(), theirs.expand_block(&[b"lab", b"el"]).as_ref());
                let long: [u8; 130] = expand(&**ours, &[b"label"]);
                assert_eq!(long, expand::<[u8; 130], 130>(&**theirs, &[b"label"]));
            }
            let tag = ours.hkdf_provider.hmac_sign(&rustls::crypto::tls13::OkmBlock::new(&[9; 32]), b"message");
            let other = theirs.hkdf_provider.hmac_sign(&rustls::crypto::tls13::OkmBlock::new(&[9; 32]), b"message");
            assert_eq!(tag.as_ref(), other.as_ref());
        }
    }
}
