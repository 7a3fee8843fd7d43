//! What a caller keeps for its next handshake with the same relay.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// One caller's latest ticket (RFC 8446 4.6.1), some hundred bytes. It is shown once, and each connection brings another.
/// Of TLS 1.2 there is nothing to be kept: it is not spoken.
#[derive(Default)]
pub struct Tickets(Mutex<Option<Tls13ClientSessionValue>>);

impl Tickets {
    /// Whether there is one, which a relay may or may not take.
    pub fn any(&self) -> bool {
        self.latest().is_some()
    }

    fn latest(&self) -> MutexGuard<'_, Option<Tls13ClientSessionValue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server_name: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server_name: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _server_name: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        *self.latest() = Some(value);
    }

    fn take_tls13_ticket(&self, _server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.latest().take()
    }
}

impl fmt::Debug for Tickets {
    /// Without the ticket: it holds a secret, and configurations print their stores.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("any", &self.any()).finish_non_exhaustive()
    }
}
