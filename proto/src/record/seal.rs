//! The sending direction of a TLS session.

use super::keys::TrafficKey;
use super::{PLAINTEXT_MAX, RECORD_HEADER, RECORD_TAIL, RecordError, content_type, header};

/// A key update is due once this many records were sealed with one key. AES-GCM bears 2^24.5 full
/// ones (RFC 8446 5.5); ChaCha20-Poly1305 is held to the same, since an update costs nothing at this rate.
pub(super) const REKEY_AFTER: u64 = 1 << 23;

/// No record is sealed beyond this; the room above [`REKEY_AFTER`] is for what a driver still has queued.
pub(super) const SEALS_MAX: u64 = 1 << 24;

pub(super) struct Sealer {
    key: TrafficKey,
    /// Number of the next record under this key.
    pub(super) sequence: u64,
}

impl Sealer {
    pub(super) fn new(key: TrafficKey, sequence: u64) -> Self {
        Self { key, sequence }
    }

    /// Seals `record`, a whole one with the plaintext in place: writes header, inner type and tag.
    pub(super) fn seal(&mut self, inner_type: u8, record: &mut [u8]) -> Result<(), RecordError> {
        let length = record.len();
        if !(RECORD_HEADER + RECORD_TAIL..=RECORD_HEADER + PLAINTEXT_MAX + RECORD_TAIL).contains(&length) {
            return Err(RecordError::BadLength(length));
        }
        if self.sequence >= SEALS_MAX {
            return Err(RecordError::KeyExhausted);
        }
        let head = header(content_type::APPLICATION_DATA, length - RECORD_HEADER);
        record[..RECORD_HEADER].copy_from_slice(&head);
        record[length - RECORD_TAIL] = inner_type;
        let (inner, tag) = record[RECORD_HEADER..].split_at_mut(length - RECORD_HEADER - RECORD_TAIL + 1);
        let nonce = self.key.nonce(self.sequence);
        let sealed = self
            .key
            .context()
            .and_then(|context| context.seal(nonce, &head, inner))
            .map_err(|_| RecordError::Crypto)?;
        tag.copy_from_slice(&sealed);
        self.sequence += 1;
        Ok(())
    }

    pub(super) fn release(&mut self) {
        self.key.release();
    }

    pub(super) fn suite(&self) -> super::keys::Suite {
        self.key.suite()
    }

    #[cfg(test)]
    pub(super) fn has_context(&self) -> bool {
        self.key.has_context()
    }
}
