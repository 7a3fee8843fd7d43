//! The TLS 1.3 exporter (RFC 8446 7.5).
//!
//! rustls's unbuffered connections have no call for it, and buffered ones cannot be turned into a
//! kernel connection. What the handshake does tell is the exporter's secret, through the key log; the
//! two remaining steps are done here, with the suite's own hash.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{KeyLog, Tls13CipherSuite};

const SECRET_LABEL: &str = "EXPORTER_SECRET";

/// Catches one connection's exporter secret. It never leaves this process; what the configuration's
/// own key log wants to know goes on to it.
pub(super) struct Capture {
    secret: Mutex<Option<OkmBlock>>,
    next: Arc<dyn KeyLog>,
}

impl Capture {
    pub(super) fn new(next: Arc<dyn KeyLog>) -> Arc<Self> {
        Arc::new(Self { secret: Mutex::new(None), next })
    }

    /// The exporter's 32 bytes for `label` without context, once; `None` before the handshake's end.
    pub(super) fn export(&self, suite: &Tls13CipherSuite, label: &[u8]) -> Option<[u8; 32]> {
        let secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let empty = suite.common.hash_provider.hash(&[]);
        let derived = {
            let expander = suite.hkdf_provider.expander_for_okm(&secret);
            let mut block = [0; OkmBlock::MAX_LEN];
            let block = block.get_mut(..expander.hash_len())?;
            expand_label(&*expander, label, empty.as_ref(), block)?;
            OkmBlock::new(block)
        };
        let mut out = [0; 32];
        expand_label(&*suite.hkdf_provider.expander_for_okm(&derived), b"exporter", empty.as_ref(), &mut out)?;
        Some(out)
    }
}

/// HKDF-Expand-Label (RFC 8446 7.1). `None` when a length does not fit.
fn expand_label(expander: &dyn HkdfExpander, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let out_len = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_len = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_len = [u8::try_from(context.len()).ok()?];
    expander.expand_slice(&[&out_len, &label_len, PREFIX, label, &context_len, context], out).ok()
}

impl KeyLog for Capture {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if label == SECRET_LABEL && secret.len() <= OkmBlock::MAX_LEN {
            *self.secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(OkmBlock::new(secret));
        }
        if self.next.will_log(label) {
            self.next.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == SECRET_LABEL || self.next.will_log(label)
    }
}

impl fmt::Debug for Capture {
    /// Without the secret: configurations print their key log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}
