//! The relay's requests carried out: open, redirect, connect, make server, close, switch; each refused
//! with its own code.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use isthmus_engine::{Ask, Engine, Key, PortRoute, UdpRole, What};
use isthmus_proto::Code;
use isthmus_proto::limits::CONNECT_TIMEOUT;
use isthmus_proto::link::Slot;
use isthmus_proto::wire::{OpenFlags, RequestKind};
use isthmus_ring::{Family, Socket};

use super::{Connecting, Opened, Server, Target};
use crate::audit::Operation;
use crate::bind::{self, code_of, connect_code};
use crate::mediator::{Mediator, TAG_ACCEPTED, TIMER_CONNECT};

/// Connections that may wait at a server port.
const BACKLOG: u32 = 1024;

/// Longest wait that a request may ask for.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// Which request of the relay's it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) link: Key,
    pub(crate) slot: Slot,
    /// Who has the port here.
    pub(crate) owner: Key,
    /// Its number, for the answer.
    pub(crate) number: u16,
}

/// A request of the relay's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) asked: Asked,
    pub(crate) ask: Ask,
}

/// What a request comes to at once: an answer, or one that comes later.
pub(crate) type Outcome = Result<Option<SocketAddr>, Code>;

impl Mediator {
    pub(crate) fn on_request(&mut self, engine: &mut Engine, request: Request) {
        if let Ask::Open { asker, .. } = request.ask {
            self.audit.opened(request.asked.slot, asker);
        }
        if !self.waits_for_channel(engine, request) {
            self.do_request(engine, request);
        }
    }

    pub(crate) fn do_request(&mut self, engine: &mut Engine, request: Request) {
        let Request { asked: Asked { link, slot, owner, number }, ask } = request;
        // One that waited before it may have given the port an owner.
        let owner = engine.link(link).and_then(|machine| machine.owner(slot)).map_or(owner, Key::from_bits);
        let asked = Asked { link, slot, owner, number };
        let (to, outcome) = match ask {
            Ask::Open { flags, local, peer, .. } if flags.has(OpenFlags::UDP) => {
                (RequestKind::Open, self.open_udp(engine, link, slot, flags, local, peer))
            }
            Ask::Open { flags, local, .. } => (RequestKind::Open, self.open_tcp(engine, link, slot, flags, local)),
            Ask::Connect { to, timeout_ms } => match self.connect_address(engine, asked, to, timeout_ms) {
                Ok(()) => return,
                Err(code) => (RequestKind::Connect, Err(code)),
            },
            Ask::Serve => (RequestKind::Serve, self.serve(engine, link, slot, owner)),
            Ask::Close => (RequestKind::Close, self.close(engine, owner)),
            Ask::Switch { flags } => (RequestKind::Switch, self.switch(engine, link, owner, flags)),
        };
        self.write_down(slot, &ask, outcome);
        self.answer(engine, asked, to, outcome);
    }

    pub(crate) fn answer(&mut self, engine: &mut Engine, asked: Asked, to: RequestKind, outcome: Outcome) {
        let Asked { link, slot, owner, number } = asked;
        if let Some(machine) = engine.link(link) {
            match outcome {
                Ok(local) => machine.answer(slot, to, number, Code::Ok, local),
                Err(code) => machine.answer(slot, to, number, code, None),
            }
            engine.touch(link);
        }
        self.forget_ended(engine, link, slot, owner);
    }

    /// The audit of a request that is answered at once.
    fn write_down(&self, slot: Slot, ask: &Ask, outcome: Outcome) {
        let (op, to) = match *ask {
            // A TCP port without a number is not bound yet: what it does comes with its connect.
            Ask::Open { flags, .. } if flags.has(OpenFlags::QUIET) && outcome == Ok(None) => return,
            Ask::Open { flags, peer, .. } if flags.has(OpenFlags::REDIRECT) => (Operation::Redirect, peer),
            Ask::Open { peer, .. } => (Operation::Open, peer),
            Ask::Connect { to, .. } => (Operation::Connect, Some(to)),
            Ask::Serve => (Operation::Listen, None),
            Ask::Close => (Operation::Close, None),
            Ask::Switch { .. } => (Operation::Switch, None),
        };
        let code = outcome.err().unwrap_or(Code::Ok);
        self.audit.record(op, slot, to, outcome.ok().flatten(), code);
    }

    /// An answer may have ended the port, as that to a failed connect of an ephemeral one.
    fn forget_ended(&mut self, engine: &mut Engine, link: Key, slot: Slot, owner: Key) {
        if engine.link(link).is_none_or(|machine| machine.kind(slot).is_none()) {
            // Nothing is left to be answered: whatever it was ends.
            let _ = self.close(engine, owner);
        }
    }

    fn open_tcp(&mut self, engine: &mut Engine, link: Key, slot: Slot, flags: OpenFlags, local: SocketAddr) -> Outcome {
        let anywhere = local.ip().is_unspecified() && local.port() == 0;
        let opened = if anywhere && flags.has(OpenFlags::QUIET) {
            // Nobody wants to know the number: the system chooses it when the port connects.
            Opened { socket: None, local: None, looking: false }
        } else {
            let congestion = self.config.congestion.as_deref();
            let socket = bind::bind(&self.policy.borrow(), flags, local, |addr| bind::tcp(addr, congestion))?;
            let local = socket.local_addr().map_err(|error| code_of(&error))?;
            Opened { socket: Some(socket), local: Some(local), looking: false }
        };
        let bound = opened.local;
        let owner = self.ports.insert(opened);
        if let Some(machine) = engine.link(link) {
            machine.set_owner(slot, owner.to_bits());
        }
        Ok(bound)
    }

    fn open_udp(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        flags: OpenFlags,
        local: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> Outcome {
        let route = self.route(engine, link, flags)?;
        if peer.is_some_and(|peer| !self.policy.borrow().permits(peer)) {
            return Err(Code::Denied);
        }
        // Towards one party the socket speaks that party's family.
        let local = match peer {
            Some(peer) if local.ip().is_unspecified() => SocketAddr::new(any_like(peer), local.port()),
            _ => local,
        };
        let socket = bind::bind(&self.policy.borrow(), flags, local, bind::udp)?;
        if let Some(peer) = peer {
            socket.connect_udp(peer).map_err(|error| connect_code(&error))?;
        }
        let bound = socket.local_addr().map_err(|error| code_of(&error))?;
        engine.add_udp(socket, UdpRole::Port { link, slot, route, peer });
        Ok(Some(bound))
    }

    /// How a UDP port shall reach the relay, if it can.
    fn route(&self, engine: &Engine, link: Key, flags: OpenFlags) -> Result<PortRoute, Code> {
        let route = PortRoute { redirect: flags.has(OpenFlags::REDIRECT), fallback: flags.has(OpenFlags::FALLBACK) };
        if route.redirect && !route.fallback && engine.channels_of(link).1 == 0 {
            return Err(Code::NoUdpChannel);
        }
        Ok(route)
    }

    fn connect_address(
        &mut self,
        engine: &mut Engine,
        asked: Asked,
        to: SocketAddr,
        timeout_ms: u32,
    ) -> Result<(), Code> {
        self.ports.opened_mut(asked.owner).filter(|opened| !opened.looking).ok_or(Code::Dedicated)?;
        if !self.policy.borrow().permits(to) {
            return Err(Code::Denied);
        }
        let target = Target { addresses: vec![to], timeout: connect_timeout(timeout_ms), name: None };
        self.connect(engine, asked, target)
    }

    /// Connects an opened port to the first of permitted addresses that takes it.
    pub(crate) fn connect(&mut self, engine: &mut Engine, asked: Asked, mut target: Target) -> Result<(), Code> {
        let Asked { link, slot, owner, number } = asked;
        let Some(to) = target.addresses.pop() else { return Err(Code::NameNotFound) };
        let congestion = self.config.congestion.clone();
        let opened = self.ports.opened_mut(owner).ok_or(Code::Dedicated)?;
        let local = opened.local;
        let socket = match (opened.socket.take(), local) {
            (Some(socket), _) => socket,
            // An earlier connect failed and used the socket up.
            (None, Some(local)) => bind::tcp(local, congestion.as_deref()).map_err(|error| code_of(&error))?,
            (None, None) => unbound(to, congestion.as_deref()).map_err(|error| code_of(&error))?,
        };
        let address = match (to, local) {
            (SocketAddr::V4(v4), Some(SocketAddr::V6(_))) => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            _ => to,
        };
        self.ports.forget(owner);
        let stream = engine.connect_stream(socket, address, link, slot, 0);
        let place = self.ports.connecting.vacant_key();
        let timer = engine.add_timer(TIMER_CONNECT + place as u32);
        let Target { addresses: others, timeout, name } = target;
        engine.set_timer(timer, engine.now() + timeout);
        self.ports.connecting.insert(Connecting { stream, number, timer, to: address, local, others, timeout, name });
        self.ports.by_stream.insert(stream, place);
        Ok(())
    }

    pub(crate) fn on_connected(
        &mut self,
        engine: &mut Engine,
        stream: Key,
        link: Key,
        slot: Slot,
        result: std::io::Result<()>,
    ) {
        let Some(place) = self.ports.by_stream.remove(&stream) else { return };
        let Some(connecting) = self.ports.connecting.try_remove(place) else { return };
        engine.remove_timer(connecting.timer);
        let local = engine.stream_local_addr(stream);
        let code = match &result {
            Ok(()) => Code::Ok,
            // The policy has changed since the request.
            Err(_) if !self.permits(connecting.to) => Code::Denied,
            Err(error) => connect_code(error),
        };
        self.audit.record_connect(slot, connecting.name.as_deref(), Some(connecting.to), local, code);
        if !code.is_ok() {
            // The port stays opened, unless it is an ephemeral one, or bytes came for it: a further connect
            // would begin in their middle.
            let owner = self.ports.insert(Opened { socket: None, local: connecting.local, looking: false });
            let Connecting { number, mut others, timeout, name, .. } = connecting;
            others.retain(|&other| self.permits(other));
            let untouched = engine.link(link).is_some_and(|machine| !machine.has_received(slot));
            let target = Target { addresses: others, timeout, name };
            if untouched && self.connect(engine, Asked { link, slot, owner, number }, target).is_ok() {
                return;
            }
            if let Some(machine) = engine.link(link) {
                machine.set_owner(slot, owner.to_bits());
                machine.answer(slot, RequestKind::Connect, number, code, None);
                if machine.has_received(slot) {
                    machine.reset(slot, code);
                }
            }
            self.forget_ended(engine, link, slot, owner);
        } else if let Some(machine) = engine.link(link) {
            machine.answer(slot, RequestKind::Connect, connecting.number, code, local);
            // The policy may have changed in this very turn.
            if !self.permits(connecting.to) {
                self.audit.record(Operation::Cut, slot, Some(connecting.to), local, Code::Denied);
                engine.cut_stream(self, stream, Code::Denied);
            }
        }
        engine.touch(link);
    }

    fn serve(&mut self, engine: &mut Engine, link: Key, slot: Slot, owner: Key) -> Outcome {
        let opened = self.ports.opened_mut(owner).ok_or(Code::Dedicated)?;
        let Some(local) = opened.local else { return Err(Code::Unsupported) };
        // The policy may have changed since it was bound.
        if self.policy.borrow().forbids_bound(local.ip()) {
            return Err(Code::Denied);
        }
        let socket = match opened.socket.take() {
            Some(socket) => socket,
            None => bind::tcp(local, None).map_err(|error| code_of(&error))?,
        };
        if let Err(error) = socket.listen(BACKLOG) {
            // Another socket that is bound to the number listens already.
            opened.socket = Some(socket);
            return Err(code_of(&error));
        }
        self.ports.forget(owner);
        let tag = self.ports.servers.insert(Server { link, slot, local, listener: None });
        let listener = engine.add_listener(socket, tag as u32);
        self.ports.servers[tag].listener = Some(listener);
        if let Some(machine) = engine.link(link) {
            machine.set_owner(slot, listener.to_bits());
        }
        Ok(Some(local))
    }

    /// A host connected to a server port.
    pub(crate) fn on_host(&mut self, engine: &mut Engine, tag: u32, socket: Socket, peer: SocketAddr) {
        let Some(&Server { link, slot: parent, .. }) = self.ports.servers.get(tag as usize) else { return };
        let local = socket.local_addr().unwrap_or(peer);
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let now = engine.now();
        let Some(machine) = engine.link(link) else { return };
        match machine.accepted(parent, 0, peer, local, now) {
            Ok(slot) => {
                self.audit.accepted(slot, parent);
                self.audit.record(Operation::Accept, slot, Some(peer), Some(local), Code::Ok);
                engine.add_stream(socket, link, slot, TAG_ACCEPTED);
                engine.touch(link);
            }
            Err(code) => {
                tracing::debug!(%peer, reason = code.word(), "host refused");
                let _ = socket.set_reset_on_close();
            }
        }
    }

    fn close(&mut self, engine: &mut Engine, owner: Key) -> Outcome {
        match owner.what() {
            What::Stream => {
                engine.drop_stream(self, owner, Code::Closed);
            }
            What::Listener => {
                self.ports.forget(owner);
                engine.remove_listener(owner);
            }
            What::Udp => engine.remove_udp(owner),
            _ => self.ports.forget(owner),
        }
        Ok(None)
    }

    fn switch(&mut self, engine: &mut Engine, link: Key, owner: Key, flags: OpenFlags) -> Outcome {
        let route = self.route(engine, link, flags)?;
        if owner.what() != What::Udp {
            return Err(Code::NotUdp);
        }
        engine.set_route(owner, route);
        Ok(engine.udp_addr(owner))
    }
}

/// How long a connect may take that asks for so many milliseconds.
pub(crate) fn connect_timeout(timeout_ms: u32) -> Duration {
    match timeout_ms {
        0 => CONNECT_TIMEOUT,
        ms => Duration::from_millis(u64::from(ms)).min(CONNECT_TIMEOUT_MAX),
    }
}

/// A socket for a destination, whose own address is the system's choice.
fn unbound(to: SocketAddr, congestion: Option<&str>) -> std::io::Result<Socket> {
    let socket = Socket::tcp(Family::from(to))?;
    if let Some(name) = congestion {
        socket.set_congestion(name)?;
    }
    Ok(socket)
}

fn any_like(peer: SocketAddr) -> std::net::IpAddr {
    match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
