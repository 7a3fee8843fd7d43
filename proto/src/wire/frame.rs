//! The frames, one by one.

use std::net::SocketAddr;

use crate::code::Code;
use crate::id::PortId;

/// Bytes before each frame's payload.
pub const HEADER_LEN: usize = 8;

/// What a frame is: the header's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a caller: version, then JSON of [`crate::hello::Hello`].
    Hello = 0x01,
    /// First frame of the relay: version, then JSON of [`crate::hello::Welcome`].
    Welcome = 0x02,
    /// The link ends: code, milliseconds to wait before the next try, text.
    Goodbye = 0x03,
    /// JSON of [`crate::hello::Report`].
    Report = 0x04,
    /// Maintain packet: 8 opaque bytes, to be sent back.
    Ping = 0x05,
    /// Its echo.
    Pong = 0x06,
    /// JSON of [`crate::hello::Query`]; the port field numbers it.
    Query = 0x07,
    /// JSON of [`crate::hello::QueryAnswer`].
    QueryAnswer = 0x08,
    /// A new token of a caller whose link lives: text of the JWT.
    Renew = 0x09,
    /// Who is meant by a number in [`Kind::Open`]: text; the port field is the number.
    Asker = 0x0a,
    /// JSON of [`crate::hello::Outcomes`].
    Outcomes = 0x0b,
    /// Open a port (or redirect, by flag).
    Open = 0x10,
    /// Connect an opened TCP port.
    Connect = 0x11,
    /// Make an opened TCP port a server.
    Serve = 0x12,
    /// Close a port.
    Close = 0x13,
    /// Switch a live UDP port between open and redirect.
    Switch = 0x14,
    /// Connect an opened TCP port to a host by its name.
    ConnectName = 0x15,
    /// Answer to one of the five.
    Answer = 0x18,
    /// A host connected to a server port.
    Accepted = 0x19,
    /// Stream bytes.
    Data = 0x20,
    /// No more bytes in this direction.
    Fin = 0x21,
    /// The stream is cut: code.
    Reset = 0x22,
    /// Absolute offset up to which the other end may send.
    Credit = 0x23,
    /// A datagram over the TCP channel, or a part of one.
    Datagram = 0x30,
    /// A UDP port's ICMP error: code, address.
    UdpError = 0x31,
}

impl Kind {
    /// The kind of that number.
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0x01 => Self::Hello,
            0x02 => Self::Welcome,
            0x03 => Self::Goodbye,
            0x04 => Self::Report,
            0x05 => Self::Ping,
            0x06 => Self::Pong,
            0x07 => Self::Query,
            0x08 => Self::QueryAnswer,
            0x09 => Self::Renew,
            0x0a => Self::Asker,
            0x0b => Self::Outcomes,
            0x10 => Self::Open,
            0x11 => Self::Connect,
            0x12 => Self::Serve,
            0x13 => Self::Close,
            0x14 => Self::Switch,
            0x15 => Self::ConnectName,
            0x18 => Self::Answer,
            0x19 => Self::Accepted,
            0x20 => Self::Data,
            0x21 => Self::Fin,
            0x22 => Self::Reset,
            0x23 => Self::Credit,
            0x30 => Self::Datagram,
            0x31 => Self::UdpError,
            _ => return None,
        })
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind's number; unknown kinds are passed over, so that a later version may add some.
    pub kind: u8,
    /// Bits whose meaning the kind gives.
    pub flags: u8,
    /// Payload bytes that follow.
    pub len: u16,
    /// The port, zero where none is meant.
    pub port: PortId,
}

/// Flags of [`Kind::Open`] and [`Kind::Switch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags(pub u8);

impl OpenFlags {
    /// UDP rather than TCP.
    pub const UDP: u8 = 1;
    /// Datagrams travel over UDP channels.
    pub const REDIRECT: u8 = 2;
    /// Exactly that port number, or an error; else the first free one from it on.
    pub const OBLIGATORY: u8 = 4;
    /// No answer to success: the next request's answer tells. A port without an asked number is not
    /// bound before it connects.
    pub const QUIET: u8 = 8;
    /// A redirect may fall back to the TCP channel while no UDP channel works.
    pub const FALLBACK: u8 = 16;

    /// Whether all of `bits` are set.
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// Which request an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestKind {
    /// Open or redirect.
    Open = 0x10,
    /// Connect.
    Connect = 0x11,
    /// Make server.
    Serve = 0x12,
    /// Close.
    Close = 0x13,
    /// Switch between open and redirect.
    Switch = 0x14,
}

impl RequestKind {
    /// The request of that number.
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0x10 => Self::Open,
            0x11 => Self::Connect,
            0x12 => Self::Serve,
            0x13 => Self::Close,
            0x14 => Self::Switch,
            _ => return None,
        })
    }
}

/// A destination whose name the mediator resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedTarget<'a> {
    /// At most [`NAME_LEN_MAX`] bytes, UTF-8.
    pub name: &'a str,
    /// Port number.
    pub port: u16,
    /// Where the asker may go, beside the mediator's own list: allow rules, by commas. A terminal's are the relay's to
    /// write. Empty: nowhere.
    pub rules: &'a str,
}

/// Longest name of a host in bytes: what SOCKS5 can carry, and more than a domain name can have.
pub const NAME_LEN_MAX: usize = 255;

/// A decoded frame. Payloads are borrowed; stream bytes and datagrams are named by length only, since
/// they stay in the driver's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Kind::Hello`].
    Hello {
        /// Protocol version.
        version: u16,
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::Welcome`].
    Welcome {
        /// Protocol version.
        version: u16,
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::Goodbye`].
    Goodbye {
        /// Why; `None` for a code of a later version.
        code: Option<Code>,
        /// Milliseconds that the other end shall wait before it comes back.
        retry_after_ms: u32,
        /// More about it.
        text: &'a str,
    },
    /// See [`Kind::Report`].
    Report {
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::Ping`].
    Ping {
        /// Sent back as it is.
        opaque: u64,
    },
    /// See [`Kind::Pong`].
    Pong {
        /// What the ping carried.
        opaque: u64,
    },
    /// See [`Kind::Query`].
    Query {
        /// Numbers the question.
        query: u32,
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::QueryAnswer`].
    QueryAnswer {
        /// The question's number.
        query: u32,
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::Renew`].
    Renew {
        /// The token.
        token: &'a str,
    },
    /// See [`Kind::Asker`].
    Asker {
        /// The number; zero is nobody's.
        asker: u16,
        /// Who, for the mediator's audit.
        name: &'a str,
    },
    /// See [`Kind::Outcomes`].
    Outcomes {
        /// JSON text.
        json: &'a [u8],
    },
    /// See [`Kind::Open`].
    Open {
        /// The new port.
        port: PortId,
        /// Number of the request, given back by the answer.
        request: u16,
        /// How.
        flags: OpenFlags,
        /// Local address on the mediator; unspecified for any, port 0 for any number.
        local: SocketAddr,
        /// For UDP: the only party that this port talks to; its datagrams then need no address.
        peer: Option<SocketAddr>,
        /// On whose behalf, by a number that [`Kind::Asker`] told; zero for untold.
        asker: u16,
    },
    /// See [`Kind::Connect`].
    Connect {
        /// An opened TCP port.
        port: PortId,
        /// Number of the request.
        request: u16,
        /// Destination in the private network.
        to: SocketAddr,
        /// Milliseconds to wait for it; 0 for the default.
        timeout_ms: u32,
        /// On a port opened [`OpenFlags::QUIET`]: success is not answered, and no frame is longer than what credit is
        /// left, so that credit may come late.
        unanswered: bool,
    },
    /// See [`Kind::ConnectName`]. It is answered as a [`RequestKind::Connect`].
    ConnectName {
        /// An opened TCP port.
        port: PortId,
        /// Number of the request.
        request: u16,
        /// The destination, by name.
        to: NamedTarget<'a>,
        /// Milliseconds to wait for it, all its addresses together; 0 for the default.
        timeout_ms: u32,
    },
    /// See [`Kind::Serve`].
    Serve {
        /// An opened TCP port.
        port: PortId,
        /// Number of the request.
        request: u16,
    },
    /// See [`Kind::Close`].
    Close {
        /// Any port.
        port: PortId,
        /// Number of the request.
        request: u16,
    },
    /// See [`Kind::Switch`].
    Switch {
        /// A UDP port.
        port: PortId,
        /// Number of the request.
        request: u16,
        /// [`OpenFlags::REDIRECT`] and [`OpenFlags::FALLBACK`] count.
        flags: OpenFlags,
    },
    /// See [`Kind::Answer`].
    Answer {
        /// The port asked about.
        port: PortId,
        /// To which request.
        to: RequestKind,
        /// Its number.
        request: u16,
        /// How it went.
        code: Code,
        /// The port's local address and number on the mediator, where known (else unspecified).
        local: SocketAddr,
    },
    /// See [`Kind::Accepted`].
    Accepted {
        /// The new port, of the accepted connection.
        port: PortId,
        /// The server port.
        parent: PortId,
        /// The host that connected.
        peer: SocketAddr,
        /// The local address that it reached.
        local: SocketAddr,
    },
    /// See [`Kind::Data`].
    Data {
        /// The stream.
        port: PortId,
        /// How many bytes.
        len: usize,
    },
    /// See [`Kind::Fin`].
    Fin {
        /// The stream.
        port: PortId,
    },
    /// See [`Kind::Reset`].
    Reset {
        /// The stream.
        port: PortId,
        /// Why.
        code: Code,
    },
    /// See [`Kind::Credit`].
    Credit {
        /// The stream.
        port: PortId,
        /// Absolute offset in bytes.
        offset: u64,
    },
    /// See [`Kind::Datagram`].
    Datagram {
        /// The UDP port.
        port: PortId,
        /// Its remote party, in a datagram's first part; `None` in the further ones.
        remote: Option<SocketAddr>,
        /// Whether parts of the same datagram follow.
        more: bool,
        /// Payload bytes of this part; they are the frame's last ones.
        len: usize,
    },
    /// See [`Kind::UdpError`].
    UdpError {
        /// The UDP port.
        port: PortId,
        /// Refused or unreachable.
        code: Code,
        /// The destination whose packet failed.
        remote: SocketAddr,
    },
    /// A kind that this version does not know.
    Unknown,
}
