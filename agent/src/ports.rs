//! The mediator's ports: what it keeps of them beside the engine, and the requests about them.

mod requests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_engine::{Engine, Key, TimerId, What};
use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use isthmus_ring::Socket;
use slab::Slab;

pub(crate) use requests::{Asked, Request, connect_timeout};

/// What the mediator keeps of its ports beside the engine.
#[derive(Default)]
pub(crate) struct Ports {
    /// Opened TCP ports that are neither connected nor servers, by the number in their owner's key.
    opened: Slab<Opened>,
    connecting: Slab<Connecting>,
    by_stream: HashMap<Key, usize>,
    /// Server ports, by their listener's number.
    servers: Slab<Server>,
}

/// An opened TCP port.
struct Opened {
    /// Its socket, bound where a number was asked for.
    socket: Option<Socket>,
    /// The address that it is bound to.
    local: Option<SocketAddr>,
    /// A name is being looked up for it.
    looking: bool,
}

struct Connecting {
    stream: Key,
    /// The request's.
    number: u16,
    timer: TimerId,
    to: SocketAddr,
    /// To be bound again if the connect fails and the port stays.
    local: Option<SocketAddr>,
    /// Further addresses of a name, the next one last, and how long each may take.
    others: Vec<SocketAddr>,
    timeout: Duration,
    name: Option<Box<str>>,
}

/// Where a port shall be connected to.
pub(crate) struct Target {
    /// The addresses to be tried, the next one last; there is one at least.
    pub(crate) addresses: Vec<SocketAddr>,
    /// How long each may take.
    pub(crate) timeout: Duration,
    /// The name that they are of.
    pub(crate) name: Option<Box<str>>,
}

struct Server {
    link: Key,
    slot: Slot,
    local: SocketAddr,
    listener: Option<Key>,
}

impl Ports {
    /// An opened port has ended without a close.
    pub(crate) fn forget(&mut self, owner: Key) {
        match owner.what() {
            What::Control if owner.index() > 0 => {
                self.opened.try_remove(owner.index() as usize - 1);
            }
            What::Listener => self.servers.retain(|_, server| server.listener != Some(owner)),
            _ => {}
        }
    }

    /// A stream ended: if it was still connecting, nobody waits for that any more.
    pub(crate) fn forget_connect(&mut self, engine: &mut Engine, stream: Key) {
        if let Some(place) = self.by_stream.remove(&stream)
            && let Some(connecting) = self.connecting.try_remove(place)
        {
            engine.remove_timer(connecting.timer);
        }
    }

    /// The tunnel is gone, and every port with it.
    pub(crate) fn clear(&mut self, engine: &mut Engine) {
        for connecting in self.connecting.drain() {
            engine.remove_timer(connecting.timer);
        }
        for listener in self.servers.drain().filter_map(|server| server.listener) {
            engine.remove_listener(listener);
        }
        self.by_stream.clear();
        self.opened.clear();
    }

    /// Gives up the connects that are under way to what is `forbidden`: their first bytes must not follow.
    pub(crate) fn cut_connects(&self, engine: &mut Engine, forbidden: impl Fn(SocketAddr) -> bool) {
        for (_, connecting) in self.connecting.iter().filter(|(_, connecting)| forbidden(connecting.to)) {
            engine.forbid_connect(connecting.stream);
        }
    }

    /// Closes the server ports whose address is `forbidden`; which they were.
    pub(crate) fn cut_servers(
        &mut self,
        engine: &mut Engine,
        forbidden: impl Fn(SocketAddr) -> bool,
    ) -> Vec<(Key, Slot, SocketAddr)> {
        let mut cut = Vec::new();
        self.servers.retain(|_, server| {
            let keep = !forbidden(server.local);
            if !keep {
                cut.push((server.link, server.slot, server.local));
                if let Some(listener) = server.listener {
                    engine.remove_listener(listener);
                }
            }
            keep
        });
        cut
    }

    pub(crate) fn on_connect_timeout(&mut self, engine: &mut Engine, place: u32) {
        if let Some(connecting) = self.connecting.get(place as usize) {
            engine.cancel_connect(connecting.stream);
        }
    }

    /// Owner key of an opened port: a number of the control's, above zero.
    fn insert(&mut self, opened: Opened) -> Key {
        Key::control(self.opened.insert(opened) as u32 + 1)
    }

    pub(crate) fn begin_look(&mut self, owner: Key) -> Result<(), Code> {
        let opened = self.opened_mut(owner).filter(|opened| !opened.looking).ok_or(Code::Dedicated)?;
        opened.looking = true;
        Ok(())
    }

    /// The look is over.
    pub(crate) fn end_look(&mut self, owner: Key) {
        if let Some(opened) = self.opened_mut(owner) {
            opened.looking = false;
        }
    }

    fn opened_mut(&mut self, owner: Key) -> Option<&mut Opened> {
        if owner.what() != What::Control {
            return None;
        }
        self.opened.get_mut((owner.index() as usize).checked_sub(1)?)
    }
}
