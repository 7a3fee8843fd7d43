//! Bytes to frames and back. Borrowing, and never panicking, whatever the bytes are.
//!
//! A record's plaintext is a row of whole frames:
//!
//! ```text
//!  0        1        2                 4                                   8
//! +--------+--------+-----------------+-----------------------------------+--------------- - -
//! |  kind  | flags  | payload length  |          port identifier          | payload
//! +--------+--------+-----------------+-----------------------------------+--------------- - -
//! ```
//!
//! Numbers are big-endian. Addresses are 18 bytes: an IPv6 address (IPv4 as `::ffff:a.b.c.d`) and a
//! port number.

/// Kinds of a UDP channel's datagram: what its plaintext is.
pub mod channel_kind {
    /// Inner datagrams: see [`super::InnerDatagrams`].
    pub const DATA: u8 = 0;
    /// Maintain packet: opaque bytes, to be sent back.
    pub const PING: u8 = 1;
    /// Its echo.
    pub const PONG: u8 = 2;
    /// From a spare local port: opaque bytes, to be sent back there after a silence; see [`super::MaintainBody`].
    pub const PROBE: u8 = 3;
    /// Its echo.
    pub const PROBED: u8 = 4;
}

/// What a caller's PING and PROBE carry on a UDP channel. A PONG and a PROBED bring it back.
///
/// ```text
/// | opaque: 8 | time in milliseconds: 4 |      big-endian
/// ```
///
/// A PING's time is the silence after which the channel is dead, a PROBE's how long to wait with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaintainBody {
    /// The sender's own.
    pub opaque: u64,
    /// In milliseconds.
    pub time_ms: u32,
}

impl MaintainBody {
    /// Its bytes.
    pub fn encode(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.opaque.to_be_bytes());
        bytes[8..].copy_from_slice(&self.time_ms.to_be_bytes());
        bytes
    }

    /// Reads it; what is shorter or longer is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[o0, o1, o2, o3, o4, o5, o6, o7, t0, t1, t2, t3] = bytes else { return None };
        let opaque = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        Some(Self { opaque, time_ms: u32::from_be_bytes([t0, t1, t2, t3]) })
    }
}

mod datagram;
mod decode;
mod encode;
mod frame;

pub use datagram::{Inner, InnerDatagrams, TRAILER_ADDR_LEN, TRAILER_LEN, write_trailer};
pub use decode::{DecodeError, Reader, read_header};
pub use encode::{ADDR_LEN, ControlBuf, write_data_header, write_datagram_header};
pub use frame::{Frame, HEADER_LEN, Header, Kind, NAME_LEN_MAX, NamedTarget, OpenFlags, RequestKind};
