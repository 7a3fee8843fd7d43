//! The receiving direction of a TLS session.

use std::ops::Range;

use super::keys::TrafficKey;
use super::{PLAINTEXT_MAX, RECORD_HEADER, RecordError, content_type, parse_header};

pub(super) struct Opener {
    key: TrafficKey,
    /// Number of the next record under this key.
    pub(super) sequence: u64,
}

impl Opener {
    pub(super) fn new(key: TrafficKey, sequence: u64) -> Self {
        Self { key, sequence }
    }

    /// Opens `record`, a whole one, in place. Gives the inner content type and where the content lies
    /// in `record`, the padding being taken off (RFC 8446 5.4).
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(u8, Range<usize>), RecordError> {
        if record.first() != Some(&content_type::APPLICATION_DATA) {
            return Err(RecordError::WrongType(record.first().copied().unwrap_or(0)));
        }
        if parse_header(record)? != Some(record.len()) {
            return Err(RecordError::BadLength(record.len()));
        }
        let Some((head, body)) = record.split_first_chunk_mut::<RECORD_HEADER>() else {
            return Err(RecordError::BadLength(record.len()));
        };
        let nonce = self.key.nonce(self.sequence);
        let context = self.key.context().map_err(|_| RecordError::Crypto)?;
        let inner = context.open(nonce, head, body).map_err(|_| RecordError::Forged)?;
        // 2^64 records take centuries; the wrap is here only so that no arithmetic can panic.
        self.sequence = self.sequence.wrapping_add(1);
        if inner.len() > PLAINTEXT_MAX + 1 {
            return Err(RecordError::BadLength(inner.len()));
        }
        let end = inner.iter().rposition(|&byte| byte != 0).ok_or(RecordError::Unexpected)?;
        Ok((inner[end], RECORD_HEADER..RECORD_HEADER + end))
    }

    pub(super) fn suite(&self) -> super::keys::Suite {
        self.key.suite()
    }

    pub(super) fn release(&mut self) {
        self.key.release();
    }

    #[cfg(test)]
    pub(super) fn has_context(&self) -> bool {
        self.key.has_context()
    }
}
