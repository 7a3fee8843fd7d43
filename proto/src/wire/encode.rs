//! Frames to bytes.

use std::net::{IpAddr, SocketAddr};

use super::frame::{Frame, HEADER_LEN, Kind, NAME_LEN_MAX, OpenFlags};
use crate::code::Code;
use crate::id::PortId;
use crate::limits::FRAME_PAYLOAD_MAX;

/// Bytes of an address on the wire.
pub const ADDR_LEN: usize = 18;

pub(super) const OPEN_PEER: u8 = 0x80;
pub(super) const OPEN_ASKER: u8 = 0x40;
/// A CONNECT's flag.
pub(super) const CONNECT_UNANSWERED: u8 = 1;
pub(super) const DATAGRAM_FIRST: u8 = 1;
pub(super) const DATAGRAM_MORE: u8 = 2;

/// Writes a data frame's header before a payload of `len` bytes.
pub fn write_data_header(header: &mut [u8; HEADER_LEN], port: PortId, len: u16) {
    write_header(header, Kind::Data, 0, port, len);
}

/// Writes a datagram frame's header, and its address where this is the first part, before a payload
/// of `len` bytes. `head` has [`HEADER_LEN`] bytes, or [`ADDR_LEN`] more with `remote`.
pub fn write_datagram_header(head: &mut [u8], port: PortId, remote: Option<SocketAddr>, more: bool, len: u16) {
    let flags = datagram_flags(remote, more);
    let addr_len = if remote.is_some() { ADDR_LEN } else { 0 };
    if let Some(front) = head.first_chunk_mut::<HEADER_LEN>() {
        write_header(front, Kind::Datagram, flags, port, len + addr_len as u16);
    }
    if let Some(remote) = remote {
        head[HEADER_LEN..HEADER_LEN + ADDR_LEN].copy_from_slice(&addr_bytes(remote));
    }
}

fn datagram_flags(remote: Option<SocketAddr>, more: bool) -> u8 {
    let first = if remote.is_some() { DATAGRAM_FIRST } else { 0 };
    let more = if more { DATAGRAM_MORE } else { 0 };
    first | more
}

fn write_header(header: &mut [u8; HEADER_LEN], kind: Kind, flags: u8, port: PortId, len: u16) {
    header[0] = kind as u8;
    header[1] = flags;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[4..8].copy_from_slice(&port.0.to_be_bytes());
}

pub(super) fn addr_bytes(addr: SocketAddr) -> [u8; ADDR_LEN] {
    let mut bytes = [0; ADDR_LEN];
    let ip = match addr.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&addr.port().to_be_bytes());
    bytes
}

/// Encoded control frames that wait to be put into records.
#[derive(Debug, Default)]
pub struct ControlBuf {
    bytes: Vec<u8>,
    /// What is already taken from the front.
    taken: usize,
}

impl ControlBuf {
    /// Without any, and without memory.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0 }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts what waits in `other` behind what waits here.
    pub fn append(&mut self, other: &mut Self) {
        self.bytes.extend_from_slice(other.take(usize::MAX));
        other.reclaim();
    }

    /// Takes whole frames off the front, as many as fit `room` bytes.
    pub fn take(&mut self, room: usize) -> &[u8] {
        let start = self.taken;
        let mut end = start;
        while let Some(head) = self.bytes.get(end..end + HEADER_LEN) {
            let next = end + HEADER_LEN + usize::from(u16::from_be_bytes([head[2], head[3]]));
            if next - start > room {
                break;
            }
            end = next;
        }
        self.taken = end;
        &self.bytes[start..end]
    }

    /// Forgets what was taken; frees the memory when nothing waits, so that an idle link holds none.
    pub fn reclaim(&mut self) {
        if self.is_empty() {
            self.taken = 0;
            if self.bytes.capacity() > 256 {
                self.bytes = Vec::new();
            } else {
                self.bytes.clear();
            }
        } else if self.taken > 16 * 1024 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Appends a frame. Stream bytes and datagrams are not control: those variants write their header
    /// only, and the caller their payload.
    ///
    /// A payload over the frame's limit (only a too long JSON or text could be one) is cut, and the
    /// other end will refuse it.
    pub fn push(&mut self, frame: &Frame<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_LEN]);
        let (kind, flags, port) = self.payload(frame);
        self.bytes.truncate(start + HEADER_LEN + FRAME_PAYLOAD_MAX);
        let len = (self.bytes.len() - start - HEADER_LEN) as u16;
        if let Some(header) = self.bytes[start..].first_chunk_mut() {
            write_header(header, kind, flags, port, len);
        }
    }

    fn payload(&mut self, frame: &Frame<'_>) -> (Kind, u8, PortId) {
        let none = PortId(0);
        match *frame {
            Frame::Hello { version, json } => self.u16(version).raw(json).done(Kind::Hello, 0, none),
            Frame::Welcome { version, json } => self.u16(version).raw(json).done(Kind::Welcome, 0, none),
            Frame::Goodbye { code, retry_after_ms, text } => self
                .u16(code.unwrap_or(Code::Failed) as u16)
                .raw(&retry_after_ms.to_be_bytes())
                .raw(text.as_bytes())
                .done(Kind::Goodbye, 0, none),
            Frame::Report { json } => self.raw(json).done(Kind::Report, 0, none),
            Frame::Ping { opaque } => self.raw(&opaque.to_be_bytes()).done(Kind::Ping, 0, none),
            Frame::Pong { opaque } => self.raw(&opaque.to_be_bytes()).done(Kind::Pong, 0, none),
            Frame::Query { query, json } => self.raw(json).done(Kind::Query, 0, PortId(query)),
            Frame::QueryAnswer { query, json } => self.raw(json).done(Kind::QueryAnswer, 0, PortId(query)),
            Frame::Renew { token } => self.raw(token.as_bytes()).done(Kind::Renew, 0, none),
            Frame::Outcomes { json } => self.raw(json).done(Kind::Outcomes, 0, none),
            Frame::Asker { asker, name } => self.raw(name.as_bytes()).done(Kind::Asker, 0, PortId(asker.into())),
            Frame::Open { port, request, flags: OpenFlags(flags), local, peer, asker } => {
                self.u16(request).addr(local);
                if let Some(peer) = peer {
                    self.addr(peer);
                }
                if asker != 0 {
                    self.u16(asker);
                }
                let has_peer = if peer.is_some() { OPEN_PEER } else { 0 };
                let has_asker = if asker != 0 { OPEN_ASKER } else { 0 };
                (Kind::Open, flags | has_peer | has_asker, port)
            }
            Frame::Connect { port, request, to, timeout_ms, unanswered } => {
                let flags = if unanswered { CONNECT_UNANSWERED } else { 0 };
                self.u16(request).addr(to).raw(&timeout_ms.to_be_bytes()).done(Kind::Connect, flags, port)
            }
            Frame::ConnectName { port, request, to, timeout_ms } => {
                let (name, rules) = (to.name.as_bytes(), to.rules.as_bytes());
                let name = &name[..name.len().min(NAME_LEN_MAX)];
                // Between two rules: a part of one could allow more than the whole.
                let rules = match FRAME_PAYLOAD_MAX - NAME_LEN_MAX - 11 {
                    max if rules.len() <= max => rules,
                    max => &rules[..rules[..max].iter().rposition(|&byte| byte == b',').unwrap_or(0)],
                };
                self.u16(request).raw(&timeout_ms.to_be_bytes()).u16(to.port);
                self.raw(&[name.len() as u8]).raw(name);
                self.u16(rules.len() as u16).raw(rules).done(Kind::ConnectName, 0, port)
            }
            Frame::Serve { port, request } => self.u16(request).done(Kind::Serve, 0, port),
            Frame::Close { port, request } => self.u16(request).done(Kind::Close, 0, port),
            Frame::Switch { port, request, flags } => self.u16(request).done(Kind::Switch, flags.0, port),
            Frame::Answer { port, to, request, code, local } => {
                self.u16(request).u16(code as u16).addr(local).done(Kind::Answer, to as u8, port)
            }
            Frame::Accepted { port, parent, peer, local } => {
                self.raw(&parent.0.to_be_bytes()).addr(peer).addr(local).done(Kind::Accepted, 0, port)
            }
            Frame::Data { port, .. } => (Kind::Data, 0, port),
            Frame::Fin { port } => (Kind::Fin, 0, port),
            Frame::Reset { port, code } => self.u16(code as u16).done(Kind::Reset, 0, port),
            Frame::Credit { port, offset } => self.raw(&offset.to_be_bytes()).done(Kind::Credit, 0, port),
            Frame::Datagram { port, remote, more, .. } => {
                if let Some(remote) = remote {
                    self.addr(remote);
                }
                (Kind::Datagram, datagram_flags(remote, more), port)
            }
            Frame::UdpError { port, code, remote } => self.u16(code as u16).addr(remote).done(Kind::UdpError, 0, port),
            Frame::Unknown => (Kind::Pong, 0, none),
        }
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    fn addr(&mut self, addr: SocketAddr) -> &mut Self {
        self.raw(&addr_bytes(addr))
    }

    fn done(&mut self, kind: Kind, flags: u8, port: PortId) -> (Kind, u8, PortId) {
        (kind, flags, port)
    }
}
