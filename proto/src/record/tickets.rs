//! What a caller keeps for its next handshake with the same relay.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::time::Instant;

/// How often a ticket is shown at the most. Each connection brings another, so that one is shown again only where a call was
/// cut off: an overloaded relay, or a door before one that is down, does that to many at once.
pub(super) const SHOWN_MAX: usize = 2;

/// How long after a whole handshake its tickets and those that came by them hold: then the relay is to prove again who it is
/// (RFC 8446 4.6.1 has the same for one ticket).
const PROOF_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// One caller's latest ticket (RFC 8446 4.6.1), some hundred bytes.
/// Of TLS 1.2 there is nothing to be kept: it is not spoken.
#[derive(Default)]
pub struct Tickets(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// The latest first; the same one several times, since each is given away when it is shown.
    tickets: Vec<Tls13ClientSessionValue>,
    /// When the last whole handshake began.
    proved: Option<Instant>,
}

impl Tickets {
    /// Whether there is one, which a relay may or may not take.
    pub fn any(&self) -> bool {
        !self.kept().tickets.is_empty()
    }

    /// A handshake begins: what is too old is not shown.
    pub(super) fn begin(&self, now: Instant) {
        let mut kept = self.kept();
        if kept.proved.is_none_or(|proved| now.since(proved) >= PROOF_MAX) {
            kept.tickets.clear();
        }
    }

    /// In a handshake that began then, the relay has proved who it is.
    pub(super) fn prove(&self, begun: Instant) {
        self.kept().proved = Some(begun);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
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
        let mut kept = self.kept();
        kept.tickets.insert(0, value);
        kept.tickets.truncate(SHOWN_MAX);
    }

    fn take_tls13_ticket(&self, _server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.kept();
        if kept.tickets.is_empty() { None } else { Some(kept.tickets.remove(0)) }
    }
}

impl fmt::Debug for Tickets {
    /// Without the ticket: it holds a secret, and configurations print their stores.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("any", &self.any()).finish_non_exhaustive()
    }
}
