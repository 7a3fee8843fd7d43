//! Bytes to frames.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::encode::{CONNECT_UNANSWERED, DATAGRAM_FIRST, DATAGRAM_MORE, OPEN_ASKER, OPEN_PEER};
use super::frame::{Frame, HEADER_LEN, Header, Kind, NamedTarget, OpenFlags, RequestKind};
use crate::code::Code;
use crate::id::PortId;

/// The bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A frame ends after its record.
    #[error("a frame is longer than its record")]
    Truncated,
    /// A payload is shorter than its kind demands, or has a forbidden value.
    #[error("a frame of kind {0:#04x} has a bad payload")]
    BadPayload(u8),
}

/// The header at the front of `bytes`, whose payload is wholly there.
pub fn read_header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Err(DecodeError::Truncated) };
    let len = u16::from_be_bytes([head[2], head[3]]);
    if rest.len() < usize::from(len) {
        return Err(DecodeError::Truncated);
    }
    let port = PortId(u32::from_be_bytes([head[4], head[5], head[6], head[7]]));
    Ok(Header { kind: head[0], flags: head[1], len, port })
}

impl<'a> Frame<'a> {
    /// The frame of `header` with its whole payload.
    ///
    /// # Errors
    /// [`DecodeError::BadPayload`]; unknown kinds are no error but [`Frame::Unknown`].
    #[inline]
    pub fn decode(header: Header, payload: &'a [u8]) -> Result<Self, DecodeError> {
        // Nearly all are of this kind, and pass all others by.
        if header.kind == Kind::Data as u8 {
            return Ok(Self::Data { port: header.port, len: payload.len() });
        }
        Self::decode_any(header, payload)
    }

    fn decode_any(header: Header, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let bad = DecodeError::BadPayload(header.kind);
        let Some(kind) = Kind::from_u8(header.kind) else { return Ok(Self::Unknown) };
        Self::of_kind(kind, header, payload).ok_or(bad)
    }

    fn of_kind(kind: Kind, header: Header, payload: &'a [u8]) -> Option<Self> {
        let port = header.port;
        let mut reader = Reader(payload);
        Some(match kind {
            Kind::Hello => Self::Hello { version: reader.u16()?, json: reader.rest() },
            Kind::Welcome => Self::Welcome { version: reader.u16()?, json: reader.rest() },
            Kind::Goodbye => Self::Goodbye {
                code: Code::from_u16(reader.u16()?),
                retry_after_ms: reader.u32()?,
                text: std::str::from_utf8(reader.rest()).ok()?,
            },
            Kind::Report => Self::Report { json: payload },
            Kind::Ping => Self::Ping { opaque: reader.u64()? },
            Kind::Pong => Self::Pong { opaque: reader.u64()? },
            Kind::Query => Self::Query { query: port.0, json: payload },
            Kind::QueryAnswer => Self::QueryAnswer { query: port.0, json: payload },
            Kind::Renew => Self::Renew { token: std::str::from_utf8(payload).ok()? },
            Kind::Outcomes => Self::Outcomes { json: payload },
            Kind::Asker => Self::Asker { asker: u16::try_from(port.0).ok()?, name: std::str::from_utf8(payload).ok()? },
            Kind::Open => Self::Open {
                port,
                request: reader.u16()?,
                flags: OpenFlags(header.flags & !(OPEN_PEER | OPEN_ASKER)),
                local: reader.addr()?,
                peer: if header.flags & OPEN_PEER != 0 { Some(reader.addr()?) } else { None },
                asker: if header.flags & OPEN_ASKER != 0 { reader.u16()? } else { 0 },
            },
            Kind::Connect => Self::Connect {
                port,
                request: reader.u16()?,
                to: reader.addr()?,
                timeout_ms: reader.u32()?,
                unanswered: header.flags & CONNECT_UNANSWERED != 0,
            },
            Kind::ConnectName => {
                let (request, timeout_ms, number) = (reader.u16()?, reader.u32()?, reader.u16()?);
                let name_len = reader.take::<1>()?[0];
                let name = reader.text(usize::from(name_len))?;
                let rules_len = reader.u16()?;
                let rules = reader.text(usize::from(rules_len))?;
                Self::ConnectName { port, request, to: NamedTarget { name, port: number, rules }, timeout_ms }
            }
            Kind::Serve => Self::Serve { port, request: reader.u16()? },
            Kind::Close => Self::Close { port, request: reader.u16()? },
            Kind::Switch => Self::Switch { port, request: reader.u16()?, flags: OpenFlags(header.flags) },
            Kind::Answer => Self::Answer {
                port,
                to: RequestKind::from_u8(header.flags)?,
                request: reader.u16()?,
                code: Code::from_u16(reader.u16()?).unwrap_or(Code::Failed),
                local: reader.addr()?,
            },
            Kind::Accepted => {
                Self::Accepted { port, parent: PortId(reader.u32()?), peer: reader.addr()?, local: reader.addr()? }
            }
            Kind::Data => Self::Data { port, len: payload.len() },
            Kind::Fin => Self::Fin { port },
            Kind::Reset => Self::Reset { port, code: Code::from_u16(reader.u16()?).unwrap_or(Code::Reset) },
            Kind::Credit => Self::Credit { port, offset: reader.u64()? },
            Kind::Datagram => {
                let remote = if header.flags & DATAGRAM_FIRST != 0 { Some(reader.addr()?) } else { None };
                let more = header.flags & DATAGRAM_MORE != 0;
                Self::Datagram { port, remote, more, len: reader.rest().len() }
            }
            Kind::UdpError => Self::UdpError {
                port,
                code: Code::from_u16(reader.u16()?).unwrap_or(Code::Failed),
                remote: reader.addr()?,
            },
        })
    }
}

/// Takes fixed-size fields off the front of a slice.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(front)
    }

    fn text(&mut self, len: usize) -> Option<&'a str> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(front).ok()
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(|b| u16::from_be_bytes(*b))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(|b| u32::from_be_bytes(*b))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(|b| u64::from_be_bytes(*b))
    }

    /// An address: 18 bytes. IPv4-mapped ones come out as IPv4.
    pub fn addr(&mut self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(*self.take::<16>()?).to_canonical();
        Some(SocketAddr::new(
            match ip {
                IpAddr::V4(v4) => v4.into(),
                IpAddr::V6(v6) => v6.into(),
            },
            self.u16()?,
        ))
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}
