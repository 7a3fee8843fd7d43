//! Traffic secrets and what follows from them (RFC 8446 7.2, 7.3).
//!
//! rustls could derive the next keys itself, but its object for that takes more than half a kilobyte for as long as
//! the connection lives; the secrets alone take 64 bytes, or 96 with SHA-384.

use rustls::Tls13CipherSuite;
use rustls::crypto::tls13::OkmBlock;
use zeroize::Zeroize;

use super::RecordError;
use super::exporter::expand_label;
use super::keys::{Suite, TrafficKey};
use super::suites::tls13;

/// Longest hash of our suites, SHA-384.
const SECRET_MAX: usize = 48;

/// One direction's traffic secret, from which its present key was made.
pub(super) enum TrafficSecret {
    /// SHA-256.
    Short([u8; 32]),
    /// SHA-384.
    Long(Box<[u8; SECRET_MAX]>),
}

impl TrafficSecret {
    /// # Errors
    /// [`RecordError::Crypto`] when it is as long as no hash of ours.
    pub(super) fn new(secret: &[u8]) -> Result<Self, RecordError> {
        if let Ok(short) = secret.try_into() {
            return Ok(Self::Short(short));
        }
        secret.try_into().map(|long| Self::Long(Box::new(long))).map_err(|_| RecordError::Crypto)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => &**bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => &mut **bytes,
        }
    }

    /// Goes on to the next secret, and gives its key.
    ///
    /// # Errors
    /// [`RecordError::Crypto`].
    pub(super) fn advance(&mut self, suite: Suite) -> Result<TrafficKey, RecordError> {
        let tls = tls13(suite);
        let mut next = [0; SECRET_MAX];
        let out = next.get_mut(..self.bytes().len()).ok_or(RecordError::Crypto)?;
        self.expand(tls, b"traffic upd", out)?;
        self.bytes_mut().copy_from_slice(out);
        next.zeroize();
        self.key(suite)
    }

    /// The present key.
    pub(super) fn key(&self, suite: Suite) -> Result<TrafficKey, RecordError> {
        let tls = tls13(suite);
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        let key_out = key.get_mut(..suite.key_len()).ok_or(RecordError::Crypto)?;
        self.expand(tls, b"key", key_out)?;
        self.expand(tls, b"iv", &mut iv)?;
        let made = TrafficKey::new(suite, &key[..suite.key_len()], &iv);
        key.zeroize();
        made
    }

    fn expand(&self, suite: &Tls13CipherSuite, label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
        let secret = OkmBlock::new(self.bytes());
        expand_label(&*suite.hkdf_provider.expander_for_okm(&secret), label, &[], out).ok_or(RecordError::Crypto)
    }
}

impl Drop for TrafficSecret {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
    }
}
