//! One established connection.

use std::fmt;
use std::ops::Range;

use rustls::ExtractedSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;

use super::keys::TrafficKey;
use super::open::Opener;
use super::seal::{REKEY_AFTER, Sealer};
use super::secret::TrafficSecret;
use super::tickets::SHOWN_MAX;
use super::{PLAINTEXT_MAX, RECORD_HEADER, RECORD_TAIL, RecordError, content_type, header, parse_header};

const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
const ALERT_CLOSE_NOTIFY: u8 = 0;
const ALERT_USER_CANCELED: u8 = 90;
const ALERT_LEVEL_WARNING: u8 = 1;
const ALERT_LEVEL_FATAL: u8 = 2;

/// Seals and opens one connection's records. It is made by a handshake's `into_session`, or by
/// [`Session::plaintext`]; it may move to another thread at any time.
///
/// An error of any call is final: the connection must end.
pub struct Session {
    tls: Option<Tls>,
    /// Received records without data since the last one with data.
    quiet: u32,
    /// The peer's key update asked for ours.
    answer_due: bool,
}

struct Tls {
    sealer: Sealer,
    opener: Opener,
    /// What the sealer's and the opener's next keys come from.
    sealing: TrafficSecret,
    opening: TrafficSecret,
    is_client: bool,
    /// Reads the ticket that may come before any data.
    ticket: Option<Box<KernelConnection<ClientConnectionData>>>,
}

/// What [`Session::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Payload, lying at these bytes of the record's buffer; at least one.
    Data(Range<usize>),
    /// The peer renewed its key, and so did the opener. With `respond`, [`Session::key_update_due`] is
    /// now true.
    KeyUpdate {
        /// Whether the peer asked for our renewal as well.
        respond: bool,
    },
    /// The peer will send nothing more, in an orderly way.
    CloseNotify,
    /// The peer gave up; its description (RFC 8446 6.2).
    Alert(u8),
    /// Nothing of interest: a ticket, or no data.
    Ignored,
}

impl Session {
    /// Most records without data that are taken in a row: each costs as much as one with data, and an
    /// honest peer has no use for many.
    pub const QUIET_RECORDS_MAX: u32 = 32;

    /// A session of plaintext mode: headers, but no secrecy, no proof of origin, no tail.
    pub fn plaintext() -> Self {
        Self { tls: None, quiet: 0, answer_due: false }
    }

    /// Takes what a handshake left: keys with their record numbers, and the secrets that they came from.
    pub(super) fn tls(
        secrets: &ExtractedSecrets,
        sealing: TrafficSecret,
        opening: TrafficSecret,
        is_client: bool,
    ) -> Result<Self, RecordError> {
        let sealer = Sealer::new(TrafficKey::from_secrets(&secrets.tx.1)?, secrets.tx.0);
        let opener = Opener::new(TrafficKey::from_secrets(&secrets.rx.1)?, secrets.rx.0);
        let tls = Tls { sealer, opener, sealing, opening, is_client, ticket: None };
        Ok(Self { tls: Some(tls), quiet: 0, answer_due: false })
    }

    /// Has the relay's first ticket kept, if it comes before its data.
    pub(super) fn await_ticket(&mut self, kernel: KernelConnection<ClientConnectionData>) {
        if let Some(tls) = &mut self.tls {
            tls.ticket = Some(Box::new(kernel));
        }
    }

    /// Whether this is a session of plaintext mode.
    pub fn is_plaintext(&self) -> bool {
        self.tls.is_none()
    }

    /// Bytes that a record needs behind its plaintext: [`RECORD_TAIL`], or 0 in plaintext mode.
    pub fn tail(&self) -> usize {
        if self.tls.is_some() { RECORD_TAIL } else { 0 }
    }

    /// Seals `record` in place: a whole one, [`RECORD_HEADER`] bytes of room, 0 to [`PLAINTEXT_MAX`]
    /// bytes of plaintext, [`Session::tail`] bytes of room.
    ///
    /// # Errors
    /// [`RecordError::BadLength`]; [`RecordError::KeyExhausted`] when [`Session::key_update_due`] was
    /// passed over for 8 million records; [`RecordError::Crypto`].
    pub fn seal(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        match &mut self.tls {
            Some(tls) => tls.sealer.seal(content_type::APPLICATION_DATA, record),
            None => {
                let length = record.len();
                if !(RECORD_HEADER..=RECORD_HEADER + PLAINTEXT_MAX).contains(&length) {
                    return Err(RecordError::BadLength(length));
                }
                record[..RECORD_HEADER].copy_from_slice(&header(content_type::PLAINTEXT, length - RECORD_HEADER));
                Ok(())
            }
        }
    }

    /// Opens `record` in place: exactly one, of the length that [`parse_header`] told.
    ///
    /// # Errors
    /// Any [`RecordError`] but [`RecordError::KeyExhausted`]; the record's bytes are then undefined.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let opened = match &mut self.tls {
            Some(tls) => tls.open(record)?,
            None => open_plaintext(record)?,
        };
        match opened {
            Opened::Data(_) => self.quiet = 0,
            Opened::KeyUpdate { .. } | Opened::Ignored if self.quiet >= Self::QUIET_RECORDS_MAX => {
                return Err(RecordError::TooManyQuiet);
            }
            Opened::KeyUpdate { respond } => {
                self.quiet += 1;
                self.answer_due |= respond;
            }
            Opened::Ignored => self.quiet += 1,
            Opened::CloseNotify | Opened::Alert(_) => {}
        }
        Ok(opened)
    }

    /// Whether [`Session::write_key_update`] should be called before more is sealed: the peer asked
    /// for it, or the key has sealed much. May change after [`Session::open`], [`Session::seal`] and
    /// the `write_` calls.
    pub fn key_update_due(&self) -> bool {
        self.answer_due || self.tls.as_ref().is_some_and(|tls| tls.sealer.sequence >= REKEY_AFTER)
    }

    /// Appends a sealed key update to `out` and seals with the next key from now on (RFC 8446 4.6.3);
    /// with `request`, asks the peer to do likewise. Records must leave in the order in which they
    /// were sealed, this one among them. Does nothing in plaintext mode.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`], [`RecordError::Crypto`].
    pub fn write_key_update(&mut self, request: bool, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.write(content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, u8::from(request)], out)?;
        tls.sealer = Sealer::new(tls.sealing.advance(tls.sealer.suite())?, 0);
        self.answer_due = false;
        Ok(())
    }

    /// Appends the orderly end of our direction to `out`; nothing may be sealed after it. Does nothing
    /// in plaintext mode, where the socket's end of stream has to do.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`], [`RecordError::Crypto`].
    pub fn write_close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.write(content_type::ALERT, &[ALERT_LEVEL_WARNING, ALERT_CLOSE_NOTIFY], out)
    }

    /// Appends a fatal alert to `out`, so that the peer learns why; see [`RecordError::alert`]. Does
    /// nothing in plaintext mode.
    ///
    /// # Errors
    /// [`RecordError::KeyExhausted`], [`RecordError::Crypto`].
    pub fn write_alert(&mut self, description: u8, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.write(content_type::ALERT, &[ALERT_LEVEL_FATAL, description], out)
    }

    /// Frees what can be built again (two key contexts of 632 B), for a connection that fell idle.
    pub fn release_context(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.sealer.release();
            tls.opener.release();
        }
    }

    #[cfg(test)]
    pub(super) fn contexts(&self) -> (bool, bool) {
        self.tls.as_ref().map_or((false, false), |tls| (tls.sealer.has_context(), tls.opener.has_context()))
    }

    #[cfg(test)]
    pub(super) fn directions_mut(&mut self) -> (&mut Sealer, &mut Opener) {
        let tls = self.tls.as_mut().unwrap();
        (&mut tls.sealer, &mut tls.opener)
    }

    #[cfg(test)]
    pub(super) fn suite(&self) -> Option<super::keys::Suite> {
        self.tls.as_ref().map(|tls| tls.sealer.suite())
    }
}

impl fmt::Debug for Session {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("plaintext", &self.is_plaintext()).finish_non_exhaustive()
    }
}

impl Tls {
    fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let (inner_type, content) = self.opener.open(record)?;
        match inner_type {
            content_type::APPLICATION_DATA if content.is_empty() => Ok(Opened::Ignored),
            content_type::APPLICATION_DATA => {
                self.ticket = None;
                Ok(Opened::Data(content))
            }
            content_type::HANDSHAKE => self.on_handshake(&record[content]),
            content_type::ALERT => match record[content] {
                [_, ALERT_CLOSE_NOTIFY] => Ok(Opened::CloseNotify),
                // Always followed by close_notify, which tells all (RFC 8446 6.1).
                [_, ALERT_USER_CANCELED] => Ok(Opened::Ignored),
                [_, description] => Ok(Opened::Alert(description)),
                _ => Err(RecordError::Unexpected),
            },
            _ => Err(RecordError::Unexpected),
        }
    }

    /// Reads one record's handshake messages. A message in parts is refused: none that may come has
    /// a need to be.
    fn on_handshake(&mut self, mut messages: &[u8]) -> Result<Opened, RecordError> {
        if messages.is_empty() {
            return Err(RecordError::Unexpected);
        }
        while let Some((&[kind, a, b, c], rest)) = messages.split_first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let (body, rest) = rest.split_at_checked(length).ok_or(RecordError::Unexpected)?;
            match (kind, body) {
                // What follows a key update is sealed with the next key, so nothing can follow in here (RFC 8446 5.1).
                (KEY_UPDATE, &[request @ (0 | 1)]) if rest.is_empty() => {
                    self.opener = Opener::new(self.opening.advance(self.opener.suite())?, 0);
                    return Ok(Opened::KeyUpdate { respond: request == 1 });
                }
                (NEW_SESSION_TICKET, _) if self.is_client => {
                    if let Some(mut kernel) = self.ticket.take() {
                        for _ in 0..SHOWN_MAX {
                            kernel.handle_new_session_ticket(body).map_err(|_| RecordError::Unexpected)?;
                        }
                    }
                    messages = rest;
                }
                _ => return Err(RecordError::Unexpected),
            }
        }
        if messages.is_empty() { Ok(Opened::Ignored) } else { Err(RecordError::Unexpected) }
    }

    /// Appends one sealed record of `inner_type` to `out`.
    fn write(&mut self, inner_type: u8, content: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER]);
        out.extend_from_slice(content);
        out.extend_from_slice(&[0; RECORD_TAIL]);
        self.sealer.seal(inner_type, &mut out[start..]).inspect_err(|_| out.truncate(start))
    }
}

fn open_plaintext(record: &[u8]) -> Result<Opened, RecordError> {
    match record.first() {
        Some(&content_type::PLAINTEXT) if parse_header(record)? != Some(record.len()) => {
            Err(RecordError::BadLength(record.len()))
        }
        Some(&content_type::PLAINTEXT) if record.len() == RECORD_HEADER => Ok(Opened::Ignored),
        Some(&content_type::PLAINTEXT) => Ok(Opened::Data(RECORD_HEADER..record.len())),
        other => Err(RecordError::WrongType(other.copied().unwrap_or(0))),
    }
}

/// Sessions are handed from the shard that accepted to the one that owns.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Session>();
    assert!(size_of::<Session>() <= 224);
};
