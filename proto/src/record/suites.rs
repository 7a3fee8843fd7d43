//! The cipher suites of TLS 1.3: aws-lc's, with the key schedule's HKDF (RFC 8446 7.1) by ring.
//!
//! A handshake derives some two dozen secrets and keys. aws-lc's HKDF begins each of them anew, with an extraction and with
//! contexts on the heap, which is a fifth of a resumed handshake (both ends: 203 us; with ring's HKDF 163). It wipes its
//! keys, though, which ring does not: what they are made of is wiped here and by rustls.

use std::sync::LazyLock;

use ring::hkdf::{self, KeyType, Prk, Salt};
use ring::hmac;
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroize;

use super::aead::Suite;

/// All of them, in the order in which they are preferred: AES-128-GCM is the fastest, and strong enough.
pub(super) fn cipher_suites() -> Vec<SupportedCipherSuite> {
    [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
        .map(|suite| SupportedCipherSuite::Tls13(tls13(suite)))
        .into()
}

/// The one with this AEAD.
pub(super) fn tls13(suite: Suite) -> &'static Tls13CipherSuite {
    static SHA256: RingHkdf = RingHkdf(&hkdf::HKDF_SHA256);
    static SHA384: RingHkdf = RingHkdf(&hkdf::HKDF_SHA384);
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
    let of = of.tls13().expect("a suite of TLS 1.3");
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

/// ring's HKDF, as rustls wants it.
struct RingHkdf(&'static hkdf::Algorithm);

impl RingHkdf {
    /// Without a salt, it is as many zeros as the hash has bytes.
    fn extract(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let zeros = [0; OkmBlock::MAX_LEN];
        let salt = salt.unwrap_or(&zeros[..self.0.len()]);
        self.expander(Salt::new(*self.0, salt).extract(secret))
    }

    fn expander(&self, prk: Prk) -> Box<dyn HkdfExpander> {
        Box::new(RingExpander { prk, hash_len: self.0.len() })
    }
}

impl Hkdf for RingHkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract(salt, &[0; OkmBlock::MAX_LEN][..self.0.len()])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.extract(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        self.expander(Prk::new_less_safe(*self.0, okm.as_ref()))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        let key = hmac::Key::new(self.0.hmac_algorithm(), key.as_ref());
        Tag::new(hmac::sign(&key, message).as_ref())
    }
}

/// A key, with what its first block makes of the hash: no later use has to do that again.
struct RingExpander {
    prk: Prk,
    hash_len: usize,
}

impl HkdfExpander for RingExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let okm = self.prk.expand(info, Length(output.len())).map_err(|_| OutputLengthError)?;
        okm.fill(output).map_err(|_| OutputLengthError)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let mut bytes = [0; OkmBlock::MAX_LEN];
        let block = &mut bytes[..self.hash_len];
        self.expand_slice(info, block).expect("one block, of at most 255");
        let block = OkmBlock::new(block);
        bytes.zeroize();
        block
    }

    fn hash_len(&self) -> usize {
        self.hash_len
    }
}

/// How long a key is to be.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::tls13::expand;

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
            let theirs = theirs.tls13().unwrap();
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
                let (most, more) = (255 * ours.hash_len(), 255 * ours.hash_len() + 1);
                assert!(ours.expand_slice(&[], &mut vec![0; most]).is_ok());
                assert!(ours.expand_slice(&[], &mut vec![0; more]).is_err());
            }
            let key = OkmBlock::new(&[9; 32]);
            let [ours, theirs] = [ours, theirs].map(|suite| suite.hkdf_provider);
            assert_eq!(ours.hmac_sign(&key, b"message").as_ref(), theirs.hmac_sign(&key, b"message").as_ref());
            let [ours, theirs] = [ours, theirs].map(|hkdf| hkdf.expander_for_okm(&key).expand_block(&[b"label"]));
            assert_eq!(ours.as_ref(), theirs.as_ref());
        }
    }
}
