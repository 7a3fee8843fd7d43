//! A traffic key and its nonces.

use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroize;

use super::RecordError;
pub(super) use super::aead::Suite;
use super::aead::{Context, Failed};

/// One direction's key and IV. The library's key context (about 600 B of heap, 140 ns to build) exists only
/// between the first use and [`TrafficKey::release`], so that an idle tunnel is small.
pub(super) struct TrafficKey {
    context: Option<Box<Context>>,
    iv: [u8; 12],
    key: Key,
}

/// A suite with its key, as small as the suite's key is: very many tunnels have four and more of them each.
enum Key {
    Aes128([u8; 16]),
    Aes256(Box<[u8; 32]>),
    ChaCha20(Box<[u8; 32]>),
}

const _: () = assert!(size_of::<TrafficKey>() <= 48);

impl Key {
    fn new(suite: Suite, key: &[u8]) -> Option<Self> {
        let long = || Some(Box::new(<[u8; 32]>::try_from(key).ok()?));
        Some(match suite {
            Suite::Aes128Gcm => Self::Aes128(key.try_into().ok()?),
            Suite::Aes256Gcm => Self::Aes256(long()?),
            Suite::ChaCha20Poly1305 => Self::ChaCha20(long()?),
        })
    }

    fn suite(&self) -> Suite {
        match self {
            Self::Aes128(_) => Suite::Aes128Gcm,
            Self::Aes256(_) => Suite::Aes256Gcm,
            Self::ChaCha20(_) => Suite::ChaCha20Poly1305,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Aes128(key) => key,
            Self::Aes256(key) | Self::ChaCha20(key) => &**key,
        }
    }

    fn zeroize(&mut self) {
        match self {
            Self::Aes128(key) => key.zeroize(),
            Self::Aes256(key) | Self::ChaCha20(key) => key.zeroize(),
        }
    }
}

impl TrafficKey {
    /// # Errors
    /// [`RecordError::Crypto`] when `key` or `iv` have not the suite's lengths.
    pub(super) fn new(suite: Suite, key: &[u8], iv: &[u8]) -> Result<Self, RecordError> {
        let key = Key::new(suite, key).ok_or(RecordError::Crypto)?;
        let iv = iv.try_into().map_err(|_| RecordError::Crypto)?;
        Ok(Self { context: None, iv, key })
    }

    /// Takes what rustls hands out.
    ///
    /// # Errors
    /// [`RecordError::Crypto`] for a suite that is not one of ours.
    pub(super) fn from_secrets(secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => Self::new(Suite::Aes128Gcm, key.as_ref(), iv.as_ref()),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => Self::new(Suite::Aes256Gcm, key.as_ref(), iv.as_ref()),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                Self::new(Suite::ChaCha20Poly1305, key.as_ref(), iv.as_ref())
            }
            _ => Err(RecordError::Crypto),
        }
    }

    /// The IV combined with a record's or datagram's number (RFC 8446 5.3).
    pub(super) fn nonce(&self, number: u64) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= part;
        }
        nonce
    }

    /// The key context, built if there is none.
    pub(super) fn context(&mut self) -> Result<&Context, Failed> {
        match &mut self.context {
            Some(context) => Ok(context),
            empty => Ok(empty.insert(Box::new(Context::new(self.key.suite(), self.key.bytes())?))),
        }
    }

    /// Frees the key context; the next use builds it again.
    pub(super) fn release(&mut self) {
        self.context = None;
    }

    pub(super) fn suite(&self) -> Suite {
        self.key.suite()
    }

    pub(super) fn has_context(&self) -> bool {
        self.context.is_some()
    }
}

impl Drop for TrafficKey {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
    }
}
