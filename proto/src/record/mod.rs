//! Sealing and opening, in place: TLS 1.3 records on the TCP channel, and our own datagrams on UDP
//! channels.
//!
//! rustls does the handshake ([`ServerHandshake`], [`ClientHandshake`]) and hands the traffic secrets
//! over; from then on a [`Session`] seals and opens records in the buffers where their payload lies.
//! A record's place in memory is its place on the wire:
//!
//! ```text
//! | header: 5 | plaintext: 0 to 16384 | inner content type: 1 | tag: 16 |     TLS, RFC 8446 5.2
//! | header: 5 | plaintext: 0 to 16384 |                                       plaintext mode
//! ```
//!
//! **Invariant:** nothing here allocates per record or per datagram.

mod aead;
mod channel;
mod config;
mod datagram;
mod exporter;
mod handshake;
mod identity;
mod keys;
mod open;
mod replay;
mod seal;
mod secret;
mod session;
mod suites;
#[cfg(test)]
mod tests;
mod tickets;
mod verify;

pub use channel::{ChannelKeys, UdpSecret};
pub use config::{
    ALPN, Identity, Trust, client_config, client_config_with_identity, server_config, server_config_with_callers,
    server_config_with_tickets,
};
pub use datagram::{DATAGRAM_HEADER, DATAGRAM_OVERHEAD, DatagramError, DatagramHeader, End};
pub use handshake::{ClientHandshake, Established, HandshakeError, ServerHandshake, Step};
pub use identity::{BadIdentity, Certified, Holder, Known};
pub use session::{Opened, Session};
pub use tickets::Tickets;
pub use verify::{BadPin, fingerprint, format_pin, parse_pin};

/// Bytes of a record before its plaintext: content type, legacy version, length.
pub const RECORD_HEADER: usize = 5;

/// Bytes of a TLS record behind its plaintext: inner content type and AEAD tag.
pub const RECORD_TAIL: usize = 1 + TAG;

/// Most plaintext bytes of one record (RFC 8446 5.1).
pub const PLAINTEXT_MAX: usize = 16_384;

/// Longest record that may be received, whole: a peer may pad (RFC 8446 5.2).
pub const RECORD_MAX: usize = RECORD_HEADER + PLAINTEXT_MAX + 256;

/// Bytes of an AEAD tag, the same in all three suites.
const TAG: usize = 16;

/// Plain `u8` constants rather than an enum: an unknown type is a wire error, not a state.
mod content_type {
    pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const APPLICATION_DATA: u8 = 23;
    /// Outer type in plaintext mode; no TLS content type, so that neither mode takes the other for its own.
    pub(super) const PLAINTEXT: u8 = 0x50;
}

/// What a caller speaks, told by the first byte that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstByte {
    /// A TLS handshake record.
    Tls,
    /// A record of plaintext mode.
    Plaintext,
    /// Neither.
    Garbage,
}

/// Tells the two modes apart by a connection's first byte.
pub fn first_byte(byte: u8) -> FirstByte {
    match byte {
        content_type::HANDSHAKE => FirstByte::Tls,
        content_type::PLAINTEXT => FirstByte::Plaintext,
        _ => FirstByte::Garbage,
    }
}

/// The whole length, header and tail included, of the record that `bytes` begins with; `None` while
/// that cannot be known yet. Both modes' records pass; [`Session::open`] takes its own only.
///
/// # Errors
/// [`RecordError::WrongType`] as soon as the first byte shows it, [`RecordError::BadLength`].
pub fn parse_header(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let lengths = match bytes.first() {
        None => return Ok(None),
        Some(&content_type::APPLICATION_DATA) => RECORD_TAIL..=RECORD_MAX - RECORD_HEADER,
        Some(&content_type::PLAINTEXT) => 0..=PLAINTEXT_MAX,
        Some(&other) => return Err(RecordError::WrongType(other)),
    };
    // The legacy version between them is to be ignored (RFC 8446 5.1).
    let Some(&[_, _, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if lengths.contains(&length) { Ok(Some(RECORD_HEADER + length)) } else { Err(RecordError::BadLength(length)) }
}

/// A record's header; `length` is at most [`RECORD_MAX`], so that its cast loses nothing.
fn header(content_type: u8, length: usize) -> [u8; RECORD_HEADER] {
    debug_assert!(length <= RECORD_MAX);
    let [high, low] = (length as u16).to_be_bytes();
    [content_type, 3, 3, high, low]
}

/// Why a record could not be sealed or opened. Each is the connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record's outer content type has no place here.
    #[error("a record of type {0} came where only sealed data may")]
    WrongType(u8),
    /// The length is outside of what its kind of record may have, or is not the buffer's.
    #[error("a record of {0} bytes is shorter or longer than it may be")]
    BadLength(usize),
    /// The tag is wrong: the record was changed, reordered or sealed by another key.
    #[error("a record was changed on its way or sealed with another key")]
    Forged,
    /// A sealed message that may not come after the handshake, or in parts.
    #[error("a TLS message came that has no place after the handshake")]
    Unexpected,
    /// More than [`Session::QUIET_RECORDS_MAX`] records in a row carried no data.
    #[error("too many records in a row carried no data")]
    TooManyQuiet,
    /// The key has sealed all that it may (RFC 8446 5.5) and no key update was written.
    #[error("the traffic key is used up and was not renewed")]
    KeyExhausted,
    /// The cryptographic library failed; out of memory is the one known cause.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl RecordError {
    /// The TLS alert that tells the peer (RFC 8446 6.2), for [`Session::write_alert`].
    pub fn alert(self) -> u8 {
        match self {
            Self::WrongType(_) | Self::Unexpected | Self::TooManyQuiet => 10,
            Self::BadLength(_) => 22,
            Self::Forged => 20,
            Self::KeyExhausted | Self::Crypto => 80,
        }
    }
}
