//! Clients of SOCKS5 and HTTP CONNECT: read as guests until they have said where they want to go, and then streams of a
//! port as any visitor of a published one.
//!
//! A client is read on the shard that it came to, and moves once to the shard of its mediator, before anything is asked
//! there. It is answered only after the mediator has answered.

mod associate;
mod bind;
mod greet;
mod places;
mod rights;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use isthmus_engine::{Engine, Key};
use isthmus_proto::door::proxy::{Command, Proxy};
use isthmus_proto::door::target::{Host, Target};
use isthmus_proto::limits::CONNECT_TIMEOUT;
use isthmus_proto::link::{Slot, UNSPECIFIED};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{NamedTarget, OpenFlags, RequestKind};
use isthmus_proto::{Code, MediatorId};
use isthmus_ring::Socket;

use super::Shard;
use super::record::Began;
use super::tag::{Door, TagTable};
use crate::admin::Counter;
use crate::proxy::ProxyPort;
use crate::trust::{Credential, Grant, Operation, unix_now};
use greet::Greeting;
use places::{Place, Places};
use rights::Rights;

/// How much longer than the mediator may try, its answer may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// The proxies of a shard.
pub(super) struct Proxies {
    ports: TagTable<ProxyPort>,
    clients: HashMap<Key, Client>,
    /// Those of them that greet: only these count towards the bound on greetings.
    greeting: usize,
    places: Places,
    /// Clients by the sockets of their associations.
    by_socket: HashMap<Key, Key>,
    /// How long those who came with a token may stay.
    pub(super) rights: Rights,
}

/// What a client is at.
enum Client {
    Greeting(Box<Greeting>),
    Asking(Box<Asking>),
}

/// A client on its mediator's shard.
struct Asking {
    proxy: Proxy,
    mediator: MediatorId,
    tag: u32,
    link: Key,
    slot: Slot,
    wants: Wants,
    since: Instant,
    /// Where records are kept.
    began: Option<Began>,
    /// Of one that stays.
    _place: Option<Place>,
}

enum Wants {
    Connect,
    /// A server: whom it waits for, and its address once the client was told.
    Bind {
        from: Option<IpAddr>,
        bound: Option<SocketAddr>,
    },
    /// Datagrams by this socket, and whether the client was told of it.
    Associate {
        socket: Key,
        told: bool,
    },
}

/// A client's request on its way to its mediator's shard.
#[derive(Debug)]
pub(super) struct Call {
    proxy: Proxy,
    command: Command,
    target: Target,
    mediator: MediatorId,
    grant: Grant,
    peer: SocketAddr,
    /// Replies that are not sent yet, and what of its bytes was read.
    out: Vec<u8>,
    consumed: usize,
}

impl Proxies {
    pub(super) fn new() -> Self {
        Self {
            ports: TagTable::new(Door::Proxy),
            clients: HashMap::new(),
            greeting: 0,
            places: Places::default(),
            by_socket: HashMap::new(),
            rights: Rights::default(),
        }
    }
}

impl Shard {
    /// Serves a proxy's port.
    pub(super) fn add_proxy(&mut self, engine: &mut Engine, port: ProxyPort, socket: Socket) {
        self.proxies.ports.insert_with(|tag| {
            engine.add_listener(socket, tag);
            port
        });
    }

    /// Carries out a client's request, on its mediator's shard.
    pub(super) fn serve_call(&mut self, engine: &mut Engine, guest: Key, tag: u32, call: Call) {
        engine.consume_guest(guest, call.consumed);
        if !call.out.is_empty() {
            engine.reply_guest(guest, &call.out);
        }
        engine.set_guest_timeout(guest, Some(CONNECT_TIMEOUT + ANSWER_MARGIN));
        let Call { proxy, command, target, mediator, grant, peer, .. } = call;
        // What is trusted may have changed since its greeting, or the token may have expired.
        let proof = &grant.credential;
        if *proof != Credential::NOBODYS
            && let Err(code) = self.trust.still(grant.holder, &grant.name, proof, unix_now())
        {
            return self.refuse_client(engine, guest, &proxy, code);
        }
        let Some(&link) = self.mediators.get(&mediator) else {
            return self.refuse_client(engine, guest, &proxy, Code::MediatorAway);
        };
        if engine.is_overcommitted() {
            return self.refuse_client(engine, guest, &proxy, Code::NoResources);
        }
        let place = match command {
            Command::Connect => None,
            Command::Bind | Command::Associate => match self.proxies.places.take(&grant.name) {
                None => return self.refuse_client(engine, guest, &proxy, Code::Overloaded),
                place => place,
            },
        };
        let grant = Rc::new(grant);
        let asker = self.asker(engine, link, &format!("socks {}", grant.name));
        let begun = match command {
            Command::Connect => begin_connect(engine, guest, link, asker, &target, &grant),
            Command::Bind => bind::begin(engine, guest, link, asker, &target, &grant),
            Command::Associate => self.begin_association(engine, guest, link, asker, &target, &grant, peer),
        };
        match begun {
            Ok((slot, wants)) => {
                tracing::debug!(%mediator, client = %peer, %target, ?command, "SOCKS5 request");
                engine.touch(link);
                self.watch_client(engine, guest, &grant);
                let since = engine.now();
                let began = self.recording.is_on().then(|| Began {
                    door: "socks".into(),
                    mediator: mediator.clone(),
                    who: Some(grant.name.as_str().into()),
                    from: peer,
                    to: target.to_string().into(),
                    at: since,
                });
                let asking = Asking { proxy, mediator, tag, link, slot, wants, since, began, _place: place };
                self.proxies.clients.insert(guest, Client::Asking(Box::new(asking)));
            }
            Err(code) => self.refuse_client(engine, guest, &proxy, code),
        }
    }

    /// Tells a client that it does not get what it asked for.
    fn refuse_client(&mut self, engine: &mut Engine, guest: Key, proxy: &Proxy, code: Code) {
        let counter = match code {
            Code::Denied | Code::NotPermitted | Code::TokenMismatch | Code::TokenExpired | Code::Revoked => {
                Counter::SocksRefusedRules
            }
            Code::MediatorAway => Counter::SocksRefusedAway,
            Code::NoResources | Code::TooManyPorts | Code::Overloaded => Counter::SocksRefusedLimit,
            Code::Unsupported => Counter::SocksRefusedProtocol,
            _ => Counter::SocksFailed,
        };
        self.counters.add(counter, 1);
        tracing::debug!(reason = code.word(), "SOCKS5 client refused");
        engine.dismiss(guest, &proxy.refused(code), false);
    }

    /// The mediator's answer about a client's port.
    pub(super) fn on_client_answer(
        &mut self,
        engine: &mut Engine,
        guest: Key,
        to: RequestKind,
        code: Code,
        local: SocketAddr,
        over: bool,
    ) {
        let Some(Client::Asking(asking)) = self.proxies.clients.get(&guest) else { return };
        if !code.is_ok() {
            if over {
                // The port is gone, and need not be closed.
                return self.end_client(engine, guest, Some(code), false);
            }
            return self.end_client(engine, guest, Some(code), true);
        }
        match (&asking.wants, to) {
            (Wants::Connect, RequestKind::Connect) => {
                let Some(Client::Asking(asking)) = self.proxies.clients.remove(&guest) else { return };
                let reply = asking.proxy.granted(local);
                self.observe_connect(engine, asking.since);
                self.admit_client(engine, guest, &asking, asking.slot, &reply);
            }
            (Wants::Bind { .. }, _) => self.on_bind_answer(engine, guest, to, local),
            (Wants::Connect | Wants::Associate { .. }, _) => {}
        }
    }

    /// The client becomes the port's stream, its reply before the port's first bytes.
    fn admit_client(&mut self, engine: &mut Engine, guest: Key, asking: &Asking, slot: Slot, reply: &[u8]) {
        engine.reply_guest(guest, reply);
        if let Some(stream) = engine.admit(guest, asking.link, slot, asking.tag, 0, &[]) {
            self.proxies.rights.rename(guest, stream);
            if let Some(began) = asking.began.clone() {
                self.recording.begin(stream, || began);
            }
            self.counters.add(Counter::SocksTotal, 1);
            self.counters.add(Counter::SocksLive, 1);
        } else {
            self.proxies.rights.forget(guest);
            close_port(engine, asking.link, slot);
        }
    }

    /// A client that had become a stream is gone.
    pub(super) fn on_client_stream_ended(&mut self, stream: Key) {
        self.proxies.rights.forget(stream);
        self.counters.sub(Counter::SocksLive, 1);
    }

    /// A client is gone by itself.
    pub(super) fn on_client_ended(&mut self, engine: &mut Engine, guest: Key) {
        self.end_client(engine, guest, None, true);
    }

    /// A client's port is gone: `owner` is the client, or the socket of its association.
    pub(super) fn on_client_port_ended(&mut self, engine: &mut Engine, owner: Key, code: Code) {
        let guest = self.proxies.by_socket.get(&owner).copied().unwrap_or(owner);
        let code = if code == Code::PeerGone { Code::MediatorAway } else { code };
        self.end_client(engine, guest, Some(code), false);
    }

    /// Ends what a client is at: it is told `code`, where there is one and it still waits for its reply; its port is
    /// closed where that is to be done (`close`).
    fn end_client(&mut self, engine: &mut Engine, guest: Key, code: Option<Code>, close: bool) {
        let Some(client) = self.proxies.clients.remove(&guest) else { return };
        let Client::Asking(asking) = client else {
            self.proxies.greeting -= 1;
            return;
        };
        self.proxies.rights.forget(guest);
        if let Wants::Associate { socket, .. } = asking.wants {
            self.end_association(engine, socket);
        }
        if close {
            close_port(engine, asking.link, asking.slot);
        }
        match code {
            // Its connection's end tells the client of an association that this one is over.
            Some(_) if matches!(asking.wants, Wants::Associate { told: true, .. }) => engine.dismiss(guest, &[], false),
            Some(code) => self.refuse_client(engine, guest, &asking.proxy, code),
            None => {}
        }
    }

    /// Bytes of a client, or its end.
    pub(super) fn on_client_bytes(&mut self, engine: &mut Engine, guest: Key, tag: u32, ended: bool) {
        match self.proxies.clients.get(&guest) {
            Some(Client::Greeting(_)) => self.on_greeting_bytes(engine, guest, tag, ended),
            // What it sends before it is connected waits for that. A server or an association ends with its client.
            Some(Client::Asking(asking)) if ended && !matches!(asking.wants, Wants::Connect) => {
                self.end_client(engine, guest, None, true);
                engine.dismiss(guest, &[], false);
            }
            Some(Client::Asking(asking)) if matches!(asking.wants, Wants::Associate { .. }) => {
                // Nothing is to be said here.
                let count = engine.guest_bytes(guest).len();
                engine.consume_guest(guest, count);
            }
            Some(Client::Asking(_)) | None => {}
        }
    }
}

fn begin_connect(
    engine: &mut Engine,
    guest: Key,
    link: Key,
    asker: u16,
    target: &Target,
    grant: &Grant,
) -> Result<(Slot, Wants), Code> {
    let permitted =
        grant.permits(Operation::Connect) && target.address().is_none_or(|to| grant.permits_destination(to));
    if !permitted {
        return Err(Code::NotPermitted);
    }
    let now = engine.now();
    let machine = engine.link(link).ok_or(Code::MediatorAway)?;
    let slot = machine.open_as(asker, guest.to_bits(), 0, OpenFlags(OpenFlags::QUIET), UNSPECIFIED, None, now)?;
    match &target.host {
        Host::Ip(ip) => machine.connect(slot, 0, SocketAddr::new(*ip, target.port), 0),
        Host::Name(name) => {
            let rules = rules_of(grant);
            machine.connect_name(slot, 0, NamedTarget { name, port: target.port, rules: &rules }, 0);
        }
    }
    Ok((slot, Wants::Connect))
}

/// A grant's destinations, for the mediator to check names' addresses against.
pub(super) fn rules_of(grant: &Grant) -> String {
    grant.destinations.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Closes a port that nobody owns any more.
fn close_port(engine: &mut Engine, link: Key, slot: Slot) {
    if let Some(machine) = engine.link(link) {
        machine.set_owner(slot, Key::control(0).to_bits());
        machine.close(slot, 0);
        engine.touch(link);
    }
}
