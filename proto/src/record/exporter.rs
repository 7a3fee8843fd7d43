//! What TLS 1.3 tells of its secrets: the exporter (RFC 8446 7.5), and the traffic secrets for key updates.
//!
//! rustls's unbuffered connections have no call for it, and buffered ones cannot be turned into a
//! kernel connection. What the handshake does tell is the exporter's secret, through the key log; the
//! two remaining steps are done here, with the suite's own hash.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{KeyLog, Tls13CipherSuite};

/// What is caught: labels of the key log (NSS's SSLKEYLOGFILE format).
const LABELS: [&str; 3] = ["EXPORTER_SECRET", "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];

/// Catches one connection's exporter secret and traffic secrets. They never leave this process; what the
/// configuration's own key log wants to know goes on to it.
pub(super) struct Capture {
    /// In the order of [`LABELS`].
    secrets: Mutex<[Option<OkmBlock>; 3]>,
    next: Arc<dyn KeyLog>,
}

impl Capture {
    pub(super) fn new(next: Arc<dyn KeyLog>) -> Arc<Self> {
        Arc::new(Self { secrets: Mutex::default(), next })
    }

    /// The exporter's 32 bytes for `label` without context, once; `None` before the handshake's end.
    pub(super) fn export(&self, suite: &Tls13CipherSuite, label: &[u8]) -> Option<[u8; 32]> {
        let secret = self.take(0)?;
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

impl Capture {
    /// The first traffic secrets of client and server, once; `None` before the handshake's end.
    pub(super) fn traffic_secrets(&self) -> Option<(OkmBlock, OkmBlock)> {
        Some((self.take(1)?, self.take(2)?))
    }

    fn take(&self, index: usize) -> Option<OkmBlock> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)?.take()
    }
}

/// HKDF-Expand-Label (RFC 8446 7.1). `None` when a length does not fit.
pub(super) fn expand_label(expander: &dyn HkdfExpander, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let out_len = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_len = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_len = [u8::try_from(context.len()).ok()?];
    expander.expand_slice(&[&out_len, &label_len, PREFIX, label, &context_len, context], out).ok()
}

impl KeyLog for Capture {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if let Some(index) = LABELS.iter().position(|&wanted| wanted == label)
            && secret.len() <= OkmBlock::MAX_LEN
        {
            self.secrets.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(OkmBlock::new(secret));
        }
        if self.next.will_log(label) {
            self.next.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        LABELS.contains(&label) || self.next.will_log(label)
    }
}

impl fmt::Debug for Capture {
    /// Without the secrets: configurations print their key log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}
