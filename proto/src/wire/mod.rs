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
}

mod datagram;
mod decode;
mod encode;
mod frame;

pub use datagram::{Inner, InnerDatagrams, TRAILER_ADDR_LEN, TRAILER_LEN, write_trailer};
pub use decode::{DecodeError, Reader, read_header};
pub use encode::{ADDR_LEN, ControlBuf, write_data_header, write_datagram_header};
pub use frame::{Frame, HEADER_LEN, Header, Kind, NAME_LEN_MAX, NamedTarget, OpenFlags, RequestKind};
