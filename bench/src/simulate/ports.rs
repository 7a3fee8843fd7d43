//! The relay's requests: every destination is the echo service, or refuses.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use isthmus_engine::{Ask, Engine, Key, PortRoute, UdpRole, What};
use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use isthmus_proto::wire::{OpenFlags, RequestKind};
use isthmus_ring::{Family, Socket, UdpOptions};

use super::{Answer, Simulator};

/// Owner of an opened TCP port that is not connected yet: the engine knows all else about it.
const OPENED: Key = Key::control(1);

/// Requests to connect that are not answered yet, by their stream.
#[derive(Default)]
pub(super) struct Ports {
    connecting: HashMap<Key, u16>,
}

impl Ports {
    pub(super) fn forget(&mut self, stream: Key) {
        self.connecting.remove(&stream);
    }
}

impl Simulator {
    pub(super) fn on_request(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        owner: Key,
        request: u16,
        ask: Ask,
    ) {
        if let Ask::Open { flags, .. } | Ask::Switch { flags } = ask
            && flags.has(OpenFlags::REDIRECT)
        {
            self.open_channels(engine, link);
        }
        let (to, outcome) = match ask {
            Ask::Open { flags, .. } if flags.has(OpenFlags::UDP) => {
                (RequestKind::Open, self.open_udp(engine, link, slot, flags))
            }
            Ask::Open { .. } => {
                if let Some(machine) = engine.link(link) {
                    machine.set_owner(slot, OPENED.to_bits());
                }
                (RequestKind::Open, Ok(None))
            }
            Ask::Connect { .. } => match self.connect(engine, link, slot, owner, request) {
                Ok(()) => return,
                Err(code) => (RequestKind::Connect, Err(code)),
            },
            Ask::Serve => (RequestKind::Serve, Err(Code::Unsupported)),
            Ask::Switch { flags } => (RequestKind::Switch, switch(engine, owner, flags)),
            Ask::Close => {
                match owner.what() {
                    What::Stream => engine.drop_stream(self, owner, Code::Closed),
                    What::Udp => engine.remove_udp(owner),
                    _ => {}
                }
                (RequestKind::Close, Ok(None))
            }
        };
        let (code, local) = match outcome {
            Ok(local) => (Code::Ok, local),
            Err(code) => (code, None),
        };
        self.answer(engine, link, slot, to, request, code, local);
    }

    #[allow(clippy::too_many_arguments, reason = "an answer has that many parts")]
    fn answer(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        to: RequestKind,
        request: u16,
        code: Code,
        local: Option<SocketAddr>,
    ) {
        self.figures.refused += u64::from(!code.is_ok());
        if let Some(machine) = engine.link(link) {
            machine.answer(slot, to, request, code, local);
            engine.touch(link);
        }
    }

    fn connect(&mut self, engine: &mut Engine, link: Key, slot: Slot, owner: Key, request: u16) -> Result<(), Code> {
        if self.settings.answer == Answer::Refuse {
            return Err(Code::Refused);
        }
        if owner != OPENED {
            return Err(Code::Dedicated);
        }
        let to = self.services.tcp;
        let socket = Socket::tcp(Family::from(to)).map_err(|_| Code::NoResources)?;
        let stream = engine.connect_stream(socket, to, link, slot, 0);
        self.ports.connecting.insert(stream, request);
        Ok(())
    }

    pub(super) fn on_connected(&mut self, engine: &mut Engine, stream: Key, link: Key, slot: Slot, connected: bool) {
        let Some(request) = self.ports.connecting.remove(&stream) else { return };
        let (code, local) = match connected {
            true => (Code::Ok, engine.stream_local_addr(stream)),
            false => {
                if let Some(machine) = engine.link(link) {
                    machine.set_owner(slot, OPENED.to_bits());
                }
                (Code::Failed, None)
            }
        };
        self.answer(engine, link, slot, RequestKind::Connect, request, code, local);
    }

    fn open_udp(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        flags: OpenFlags,
    ) -> Result<Option<SocketAddr>, Code> {
        if self.settings.answer == Answer::Refuse {
            return Err(Code::Denied);
        }
        let peer = self.services.udp;
        let options = UdpOptions { gro: true, ..UdpOptions::default() };
        let socket = Socket::udp((Ipv4Addr::LOCALHOST, 0).into(), options).map_err(|_| Code::NoResources)?;
        socket.connect_udp(peer).map_err(|_| Code::Failed)?;
        let local = socket.local_addr().map_err(|_| Code::Failed)?;
        engine.add_udp(socket, UdpRole::Port { link, slot, route: route(flags), peer: Some(peer) });
        Ok(Some(local))
    }
}

fn switch(engine: &mut Engine, owner: Key, flags: OpenFlags) -> Result<Option<SocketAddr>, Code> {
    if owner.what() != What::Udp {
        return Err(Code::NotUdp);
    }
    engine.set_route(owner, route(flags));
    Ok(engine.udp_addr(owner))
}

/// A redirect without a working channel is not refused: the harness wants the load, whichever way it goes.
fn route(flags: OpenFlags) -> PortRoute {
    PortRoute { redirect: flags.has(OpenFlags::REDIRECT), fallback: true }
}
