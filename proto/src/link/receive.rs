//! Frames from the other end.

use std::net::SocketAddr;
use std::time::Duration;

use super::port::{PortKind, Slot};
use super::request::UNSPECIFIED;
use super::{Link, Payload, Side};
use crate::code::Code;
use crate::time::Instant;
use crate::wire::{Frame, NamedTarget, OpenFlags, RequestKind};

/// What a received frame means to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// Nothing to do.
    None,
    /// Nothing to do; our last maintain packet has its echo after this long.
    RoundTrip(Duration),
    /// The frame's payload goes to this port's owner.
    Data {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Payload bytes.
        len: usize,
    },
    /// No more bytes come; when both directions have ended the port is gone (`over`).
    Fin {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Whether the port is gone.
        over: bool,
    },
    /// The stream was cut; the port is gone.
    Reset {
        /// The port's owner.
        owner: u64,
        /// Why.
        code: Code,
    },
    /// Credit came: the port's source may read on.
    Writable {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
    },
    /// The frame's last `len` bytes are a datagram, or a part of one.
    Datagram {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Remote party, in a datagram's first part.
        remote: Option<SocketAddr>,
        /// Whether further parts follow.
        more: bool,
        /// Payload bytes.
        len: usize,
    },
    /// Asked (of a responder) to open the new port `slot`; its owner is to be set.
    Open {
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
        /// How.
        flags: OpenFlags,
        /// Local address.
        local: SocketAddr,
        /// Only party.
        peer: Option<SocketAddr>,
        /// On whose behalf; zero for untold.
        asker: u16,
    },
    /// Asked to connect to a host by its name.
    ConnectName {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
        /// Where to.
        to: NamedTarget<'a>,
        /// Milliseconds; 0 for the default.
        timeout_ms: u32,
    },
    /// Asked to connect.
    Connect {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
        /// Destination.
        to: SocketAddr,
        /// Milliseconds to wait; 0 for the default.
        timeout_ms: u32,
    },
    /// Asked to make a server of it.
    Serve {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
    },
    /// Asked to close. Answering ends the port.
    Close {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
    },
    /// Asked to switch a UDP port.
    Switch {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Number for the answer.
        request: u16,
        /// To what.
        flags: OpenFlags,
    },
    /// An answer (to a requester). If it ends the port, `over`.
    Answer {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// To which request.
        to: RequestKind,
        /// Its number.
        request: u16,
        /// How it went.
        code: Code,
        /// The port's local address where known.
        local: SocketAddr,
        /// Whether the port is gone.
        over: bool,
    },
    /// A host connected to a server port; the owner of `slot` is to be set.
    Accepted {
        /// The server port's owner.
        owner: u64,
        /// The server port.
        parent: Slot,
        /// The new port.
        slot: Slot,
        /// The host.
        peer: SocketAddr,
        /// The local address that it reached.
        local: SocketAddr,
    },
    /// A UDP port's ICMP error.
    UdpError {
        /// The port's owner.
        owner: u64,
        /// The port.
        slot: Slot,
        /// Refused or unreachable.
        code: Code,
        /// Whose packet failed.
        remote: SocketAddr,
    },
    /// JSON of a new report.
    Report(&'a [u8]),
    /// A caller's new token.
    Renew(&'a str),
    /// Who is meant by a number in [`Input::Open`].
    Asker {
        /// The number.
        asker: u16,
        /// Who.
        name: &'a str,
    },
    /// JSON of what became of a mediator's asks.
    Outcomes(&'a [u8]),
    /// A terminal's question.
    Query {
        /// Its number.
        query: u32,
        /// JSON text.
        json: &'a [u8],
    },
    /// The relay's answer to a question.
    QueryAnswer {
        /// The question's number.
        query: u32,
        /// JSON text.
        json: &'a [u8],
    },
    /// The other end goes.
    Goodbye {
        /// Why.
        code: Option<Code>,
        /// Milliseconds to wait before coming back.
        retry_after_ms: u32,
        /// More about it.
        text: &'a str,
    },
}

/// The other end broke the protocol; its link ends with [`Code::ProtocolError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More bytes than were granted.
    #[error("more bytes came on a port than were granted")]
    Flow,
    /// A frame that this side never takes, such as a request from a mediator.
    #[error("a frame came that only the other side may send")]
    Role,
    /// Bytes after FIN, or on a UDP port, or datagrams on a TCP port.
    #[error("payload came where the port takes none")]
    State,
    /// A port identifier of the wrong maker or beyond every limit.
    #[error("an impossible port identifier")]
    Identifier,
}

impl<P: Payload> Link<P> {
    /// Takes a frame. Frames for ports that are gone are passed over (they crossed the end on the
    /// way), but requests for them are answered.
    ///
    /// # Errors
    /// [`Violation`]: end the link.
    pub fn receive<'a>(&mut self, frame: Frame<'a>, now: Instant) -> Result<Input<'a>, Violation> {
        self.pulse.heard(now);
        if matches!(frame, Frame::Data { .. } | Frame::Datagram { .. }) {
            self.stats.last_payload = now;
        }
        match frame {
            Frame::Data { port, len } => self.on_data(port, len),
            Frame::Credit { port, offset } => Ok(self.on_credit(port, offset)),
            Frame::Fin { port } => self.on_fin(port),
            Frame::Reset { port, code } => Ok(match self.ports.find(port).and_then(|slot| self.forget(slot)) {
                Some(owner) => Input::Reset { owner, code },
                None => self.stale(),
            }),
            Frame::Datagram { port, remote, more, len } => self.on_datagram(port, remote, more, len),
            Frame::Ping { opaque } => {
                self.control.push(&Frame::Pong { opaque });
                self.pulse.measure_once(now, &mut self.control);
                Ok(Input::None)
            }
            Frame::Pong { opaque } => Ok(self.pulse.pong(opaque, now).map_or(Input::None, Input::RoundTrip)),
            Frame::Open { .. }
            | Frame::Connect { .. }
            | Frame::ConnectName { .. }
            | Frame::Serve { .. }
            | Frame::Close { .. }
            | Frame::Switch { .. } => {
                self.expect(Side::Responder)?;
                self.on_request(frame, now)
            }
            Frame::Answer { port, to, request, code, local } => {
                self.expect(Side::Requester)?;
                Ok(self.on_answer(port, to, request, code, local))
            }
            Frame::Accepted { port, parent, peer, local } => {
                self.expect(Side::Requester)?;
                self.on_accepted(port, parent, peer, local, now)
            }
            Frame::UdpError { port, code, remote } => {
                self.expect(Side::Requester)?;
                Ok(match self.find_owner(port) {
                    Some((slot, owner)) => Input::UdpError { owner, slot, code, remote },
                    None => self.stale(),
                })
            }
            Frame::Report { json } => self.expect(Side::Requester).map(|()| Input::Report(json)),
            Frame::Query { query, json } => self.expect(Side::Responder).map(|()| Input::Query { query, json }),
            Frame::QueryAnswer { query, json } => {
                self.expect(Side::Requester).map(|()| Input::QueryAnswer { query, json })
            }
            // Only the relay can use it; another end passes it over, as if it did not know the kind.
            Frame::Renew { token } => Ok(Input::Renew(token)),
            Frame::Asker { asker, name } => self.expect(Side::Responder).map(|()| Input::Asker { asker, name }),
            Frame::Outcomes { json } => self.expect(Side::Responder).map(|()| Input::Outcomes(json)),
            Frame::Goodbye { code, retry_after_ms, text } => Ok(Input::Goodbye { code, retry_after_ms, text }),
            Frame::Hello { .. } | Frame::Welcome { .. } => Err(Violation::Role),
            Frame::Unknown => Ok(Input::None),
        }
    }

    /// The UDP port that an authentic channel datagram names, and its owner; counts `len` payload bytes.
    pub fn datagram_received(&mut self, port: crate::PortId, len: usize, now: Instant) -> Option<(Slot, u64)> {
        let slot = self.ports.find(port)?;
        let port = self.ports.get(slot)?;
        if port.kind != PortKind::Udp || port.closing.is_some() {
            return None;
        }
        self.stats.bytes_in += len as u64;
        self.stats.datagrams_in += 1;
        self.stats.last_payload = now;
        Some((slot, port.owner))
    }

    fn expect(&self, side: Side) -> Result<(), Violation> {
        if self.side == side { Ok(()) } else { Err(Violation::Role) }
    }

    fn find_owner(&self, port: crate::PortId) -> Option<(Slot, u64)> {
        let slot = self.ports.find(port)?;
        Some((slot, self.ports.get(slot)?.owner))
    }

    fn stale(&mut self) -> Input<'static> {
        self.stats.stale_frames += 1;
        Input::None
    }

    fn on_data<'a>(&mut self, port: crate::PortId, len: usize) -> Result<Input<'a>, Violation> {
        let Some(slot) = self.ports.find(port) else { return Ok(self.stale()) };
        let Some(port) = self.ports.get_mut(slot) else { return Ok(Input::None) };
        // An empty one would cost memory and no credit.
        if port.kind != PortKind::Tcp || port.fin_received || len == 0 {
            return Err(Violation::State);
        }
        port.received += len as u64;
        if port.received > port.granted {
            return Err(Violation::Flow);
        }
        if port.closing.is_some() {
            return Ok(Input::None);
        }
        self.stats.bytes_in += len as u64;
        Ok(Input::Data { owner: port.owner, slot, len })
    }

    fn on_credit(&mut self, port: crate::PortId, offset: u64) -> Input<'static> {
        let Some(slot) = self.ports.find(port) else { return self.stale() };
        let Some(port) = self.ports.get_mut(slot) else { return Input::None };
        if offset <= port.send_max {
            return Input::None;
        }
        port.send_max = offset;
        let owner = port.owner;
        self.list(slot);
        Input::Writable { owner, slot }
    }

    fn on_fin<'a>(&mut self, port: crate::PortId) -> Result<Input<'a>, Violation> {
        let Some(slot) = self.ports.find(port) else { return Ok(self.stale()) };
        let Some(port) = self.ports.get_mut(slot) else { return Ok(Input::None) };
        if port.kind != PortKind::Tcp || port.fin_received {
            return Err(Violation::State);
        }
        port.fin_received = true;
        let owner = port.owner;
        let (over, closing) = (port.is_over(), port.closing);
        if over {
            self.forget(slot);
        } else {
            self.charge(slot);
        }
        Ok(match closing {
            None => Input::Fin { owner, slot, over },
            // The other end has forgotten the port, and may reuse its place, before it reads our close.
            Some(request) if over => closed_by_fin(owner, slot, request),
            Some(_) => Input::None,
        })
    }

    fn on_datagram<'a>(
        &mut self,
        port: crate::PortId,
        remote: Option<SocketAddr>,
        more: bool,
        len: usize,
    ) -> Result<Input<'a>, Violation> {
        let Some(slot) = self.ports.find(port) else { return Ok(self.stale()) };
        let Some(port) = self.ports.get_mut(slot) else { return Ok(Input::None) };
        if port.kind != PortKind::Udp {
            return Err(Violation::State);
        }
        if port.closing.is_some() {
            return Ok(Input::None);
        }
        self.stats.bytes_in += len as u64;
        self.stats.datagrams_in += u64::from(remote.is_some());
        Ok(Input::Datagram { owner: port.owner, slot, remote, more, len })
    }
}

/// The answer that a close gets when the port's last FIN crosses it: the other end's own would find no port.
fn closed_by_fin(owner: u64, slot: Slot, request: u16) -> Input<'static> {
    Input::Answer { owner, slot, to: RequestKind::Close, request, code: Code::Ok, local: UNSPECIFIED, over: true }
}
