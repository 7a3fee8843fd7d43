//! Requests and their answers, on both ends.

use std::net::{Ipv6Addr, SocketAddr};

use super::port::{PortKind, Slot};
use super::receive::{Input, Violation};
use super::{Link, Payload};
use crate::code::Code;
use crate::id::PortId;
use crate::limits::CONTROL_QUEUE_HIGH;
use crate::time::Instant;
use crate::wire::{Frame, NamedTarget, OpenFlags, RequestKind};

/// "No address": any address, any number.
pub const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Control bytes beyond which UDP errors are no longer told.
const ERRORS_QUEUED_MAX: usize = 16 * 1024;

/// The requester's end.
impl<P: Payload> Link<P> {
    /// Asks for a new port (open or redirect, by `flags`). Stream bytes may be queued before any answer.
    ///
    /// # Errors
    /// [`Code::TooManyPorts`].
    pub fn open(
        &mut self,
        owner: u64,
        request: u16,
        flags: OpenFlags,
        local: SocketAddr,
        peer: Option<SocketAddr>,
        now: Instant,
    ) -> Result<Slot, Code> {
        self.open_as(0, owner, request, flags, local, peer, now)
    }

    /// [`Link::open`] on behalf of somebody whose number and name an [`Frame::Asker`] has told the other end before.
    ///
    /// # Errors
    /// [`Code::TooManyPorts`]; [`Code::Overloaded`] while more than [`CONTROL_QUEUE_HIGH`] bytes of control frames wait.
    #[allow(clippy::too_many_arguments, reason = "a frame's fields")]
    pub fn open_as(
        &mut self,
        asker: u16,
        owner: u64,
        request: u16,
        flags: OpenFlags,
        local: SocketAddr,
        peer: Option<SocketAddr>,
        now: Instant,
    ) -> Result<Slot, Code> {
        let kind = if flags.has(OpenFlags::UDP) { PortKind::Udp } else { PortKind::Tcp };
        if self.control.len() > CONTROL_QUEUE_HIGH {
            return Err(Code::Overloaded);
        }
        let slot = self.ports.make(kind, owner)?;
        if let Some(port) = self.ports.get_mut(slot) {
            port.quiet = kind == PortKind::Tcp && flags.has(OpenFlags::QUIET);
        }
        self.control.push(&Frame::Open { port: slot.id(), request, flags, local, peer, asker });
        if kind == PortKind::Tcp {
            self.start_window(slot, now);
        }
        Ok(slot)
    }

    /// Asks to connect an opened TCP port.
    pub fn connect(&mut self, slot: Slot, request: u16, to: SocketAddr, timeout_ms: u32) {
        self.control.push(&Frame::Connect { port: slot.id(), request, to, timeout_ms, unanswered: false });
    }

    /// The same of a port opened [`OpenFlags::QUIET`], by somebody who wants to know of a failure only, and whose frames
    /// are never longer than [`Link::room`] leaves: that spares both ends a record.
    pub fn connect_unanswered(&mut self, slot: Slot, to: SocketAddr) {
        self.control.push(&Frame::Connect { port: slot.id(), request: 0, to, timeout_ms: 0, unanswered: true });
    }

    /// Asks to connect an opened TCP port to a host that the mediator finds by its name. Nothing may be sent on the port
    /// before the answer, which is that to a connect.
    pub fn connect_name(&mut self, slot: Slot, request: u16, to: NamedTarget<'_>, timeout_ms: u32) {
        self.control.push(&Frame::ConnectName { port: slot.id(), request, to, timeout_ms });
    }

    /// Asks to make a server of an opened TCP port.
    pub fn serve(&mut self, slot: Slot, request: u16) {
        self.control.push(&Frame::Serve { port: slot.id(), request });
    }

    /// Asks to switch a UDP port.
    pub fn switch(&mut self, slot: Slot, request: u16, flags: OpenFlags) {
        self.control.push(&Frame::Switch { port: slot.id(), request, flags });
    }

    /// Asks to close a port: nothing of it is sent or delivered any more, and its answer ends it.
    pub fn close(&mut self, slot: Slot, request: u16) {
        if let Some(port) = self.ports.get_mut(slot) {
            port.closing.get_or_insert(request);
            self.queued -= port.queued;
            if port.is_ready() {
                self.ready -= port.queued;
            }
            port.queued = 0;
            port.queue.clear();
        }
        self.control.push(&Frame::Close { port: slot.id(), request });
    }

    pub(super) fn on_answer(
        &mut self,
        port: PortId,
        to: RequestKind,
        request: u16,
        code: Code,
        local: SocketAddr,
    ) -> Input<'static> {
        let Some(slot) = self.ports.find(port) else {
            self.stats.stale_frames += 1;
            return Input::None;
        };
        let Some(port) = self.ports.get(slot) else { return Input::None };
        let owner = port.owner;
        let over = ends_port(to, code, port.quiet);
        if over {
            self.forget(slot);
        }
        Input::Answer { owner, slot, to, request, code, local, over }
    }

    pub(super) fn on_accepted<'a>(
        &mut self,
        port: PortId,
        parent: PortId,
        peer: SocketAddr,
        local: SocketAddr,
        now: Instant,
    ) -> Result<Input<'a>, Violation> {
        let parent = self.ports.find(parent);
        let slot = match self.ports.adopt(port, PortKind::Tcp) {
            Ok(slot) => slot,
            Err(Code::ProtocolError) => return Err(Violation::Identifier),
            Err(code) => {
                self.control.push(&Frame::Reset { port, code });
                return Ok(Input::None);
            }
        };
        let Some((parent, owner)) =
            parent.and_then(|parent| self.ports.get(parent).filter(|p| p.closing.is_none()).map(|p| (parent, p.owner)))
        else {
            // The server port was closed while this was on its way.
            self.reset(slot, Code::PeerGone);
            return Ok(Input::None);
        };
        self.start_window(slot, now);
        Ok(Input::Accepted { owner, parent, slot, peer, local })
    }
}

/// The responder's end.
impl<P: Payload> Link<P> {
    /// Answers a request. A refused open, a failed connect of an ephemeral port, and a close end the port.
    pub fn answer(&mut self, slot: Slot, to: RequestKind, request: u16, code: Code, local: Option<SocketAddr>) {
        let Some(port) = self.ports.get(slot) else { return };
        let over = ends_port(to, code, port.quiet);
        let (silent, connected) = match to {
            RequestKind::Open => (code.is_ok() && port.quiet, false),
            RequestKind::Connect => (code.is_ok() && port.unanswered, code.is_ok() && !port.fin_received),
            RequestKind::Serve | RequestKind::Close | RequestKind::Switch => (false, false),
        };
        if !silent {
            let local = local.unwrap_or(UNSPECIFIED);
            self.control.push(&Frame::Answer { port: slot.id(), to, request, code, local });
            // What a quiet open held back, if more may come.
            if connected {
                self.grant(slot);
            }
        }
        if over {
            self.forget(slot);
        }
    }

    /// Tells of a host that connected to the server port `parent`.
    ///
    /// # Errors
    /// [`Code::TooManyPorts`], [`Code::UnknownPort`] when the server port is gone.
    pub fn accepted(
        &mut self,
        parent: Slot,
        owner: u64,
        peer: SocketAddr,
        local: SocketAddr,
        now: Instant,
    ) -> Result<Slot, Code> {
        self.ports.get(parent).ok_or(Code::UnknownPort)?;
        let slot = self.ports.make(PortKind::Tcp, owner)?;
        self.control.push(&Frame::Accepted { port: slot.id(), parent: parent.id(), peer, local });
        self.start_window(slot, now);
        Ok(slot)
    }

    /// Tells of a UDP port's ICMP error.
    pub fn udp_error(&mut self, slot: Slot, code: Code, remote: SocketAddr) {
        // Errors of a flood are told as far as they are read.
        if self.control.len() < ERRORS_QUEUED_MAX {
            self.control.push(&Frame::UdpError { port: slot.id(), code, remote });
        }
    }

    pub(super) fn on_request<'a>(&mut self, frame: Frame<'a>, now: Instant) -> Result<Input<'a>, Violation> {
        let (port, to, request) = match frame {
            Frame::Open { port, request, flags, local, peer, asker } => {
                return Ok(match self.on_open(port, request, flags, now)? {
                    Ok(slot) => Input::Open { slot, request, flags, local, peer, asker },
                    Err(refused) => refused,
                });
            }
            Frame::Connect { port, request, .. } | Frame::ConnectName { port, request, .. } => {
                (port, RequestKind::Connect, request)
            }
            Frame::Serve { port, request } => (port, RequestKind::Serve, request),
            Frame::Close { port, request } => (port, RequestKind::Close, request),
            Frame::Switch { port, request, .. } => (port, RequestKind::Switch, request),
            _ => return Ok(Input::None),
        };
        let found = self.ports.find(port).and_then(|slot| self.ports.get(slot).map(|port| (slot, port)));
        let Some((slot, known)) = found else {
            return Ok(self.refuse(port, to, request, Code::UnknownPort));
        };
        let (owner, kind) = (known.owner, known.kind);
        match frame {
            Frame::Connect { .. } | Frame::ConnectName { .. } | Frame::Serve { .. } if kind != PortKind::Tcp => {
                Ok(self.refuse(port, to, request, Code::NotTcp))
            }
            Frame::Switch { .. } if kind != PortKind::Udp => Ok(self.refuse(port, to, request, Code::NotUdp)),
            Frame::Connect { to, timeout_ms, unanswered, .. } => {
                if let Some(port) = self.ports.get_mut(slot) {
                    port.unanswered = unanswered && port.quiet;
                }
                Ok(Input::Connect { owner, slot, request, to, timeout_ms })
            }
            Frame::ConnectName { to, timeout_ms, .. } => {
                Ok(Input::ConnectName { owner, slot, request, to, timeout_ms })
            }
            Frame::Serve { .. } => Ok(Input::Serve { owner, slot, request }),
            Frame::Switch { flags, .. } => Ok(Input::Switch { owner, slot, request, flags }),
            _ => Ok(Input::Close { owner, slot, request }),
        }
    }

    /// Makes room for the port that the other end opens, or refuses it.
    fn on_open(
        &mut self,
        port: PortId,
        request: u16,
        flags: OpenFlags,
        now: Instant,
    ) -> Result<Result<Slot, Input<'static>>, Violation> {
        let kind = if flags.has(OpenFlags::UDP) { PortKind::Udp } else { PortKind::Tcp };
        let slot = match self.ports.adopt(port, kind) {
            Ok(slot) => slot,
            Err(Code::ProtocolError) => return Err(Violation::Identifier),
            Err(code) => return Ok(Err(self.refuse(port, RequestKind::Open, request, code))),
        };
        if kind == PortKind::Tcp {
            let quiet = flags.has(OpenFlags::QUIET);
            if let Some(port) = self.ports.get_mut(slot) {
                port.quiet = quiet;
            }
            // A quiet open is worth no record: what it grants comes with the connect's answer, or once something was consumed.
            if quiet {
                self.reserve_window(slot, now);
            } else {
                self.start_window(slot, now);
            }
        }
        Ok(Ok(slot))
    }

    fn refuse(&mut self, port: PortId, to: RequestKind, request: u16, code: Code) -> Input<'static> {
        self.control.push(&Frame::Answer { port, to, request, code, local: UNSPECIFIED });
        Input::None
    }
}

fn ends_port(to: RequestKind, code: Code, quiet: bool) -> bool {
    match to {
        RequestKind::Open => !code.is_ok(),
        RequestKind::Connect => quiet && !code.is_ok(),
        RequestKind::Close => code.is_ok(),
        RequestKind::Serve | RequestKind::Switch => false,
    }
}
