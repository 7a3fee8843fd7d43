//! A client's greeting: who it is, which mediator it means, and what it wants there.

use std::net::SocketAddr;

use isthmus_engine::{Engine, Key};
use isthmus_proto::door::proxy::{Bad, Proxy, Request, Step};
use isthmus_proto::hello::{Hello, Role};
use isthmus_proto::{Code, MediatorId};
use isthmus_ring::Socket;

use super::{Call, Client};
use crate::admin::Counter;
use crate::shard::Shard;
use crate::shard::handover::Message;
use crate::trust::{Glob, Grant, unix_now};

/// What is known of a client that has not said all.
pub(super) struct Greeting {
    proxy: Proxy,
    peer: SocketAddr,
    /// The port's only mediator.
    only: Option<MediatorId>,
    /// Of an open port: what anybody may do there.
    open: Option<Grant>,
    /// Whom it named, and what its token allows.
    login: Option<(Option<MediatorId>, Grant)>,
    /// Replies that are not sent yet.
    out: Vec<u8>,
}

impl Shard {
    /// A connection to a proxy's port.
    pub(in crate::shard) fn on_client(&mut self, engine: &mut Engine, tag: u32, socket: Socket, peer: SocketAddr) {
        let Some(port) = self.proxies.ports.get(tag) else { return };
        let config = &self.shared.config;
        let limit = (config.half_open_max as usize).div_ceil(self.peers.len().max(1));
        if self.stopping || self.proxies.greeting >= limit {
            self.counters.add(Counter::SocksRefusedLimit, 1);
            let _ = socket.set_reset_on_close();
            return;
        }
        let only = port.mediator.clone();
        let open = only.as_ref().filter(|_| port.is_open(config.socks_open)).map(anybody);
        let proxy = Proxy::new(open.is_some());
        let guest = engine.add_guest(socket, tag, config.handshake_timeout);
        let greeting = Greeting { proxy, peer, only, open, login: None, out: Vec::new() };
        self.proxies.clients.insert(guest, Client::Greeting(Box::new(greeting)));
        self.proxies.greeting += 1;
    }

    pub(super) fn on_greeting_bytes(&mut self, engine: &mut Engine, guest: Key, tag: u32, ended: bool) {
        let Some(Client::Greeting(mut greeting)) = self.proxies.clients.remove(&guest) else { return };
        self.proxies.greeting -= 1;
        let mut consumed = 0;
        loop {
            let bytes = engine.guest_bytes(guest).get(consumed..).unwrap_or_default();
            let (count, step) = greeting.proxy.feed(bytes, &mut greeting.out);
            consumed += count;
            match step {
                Step::More if count > 0 => {}
                Step::More if ended => return engine.dismiss(guest, &[], true),
                Step::More => {
                    if !greeting.out.is_empty() {
                        engine.reply_guest(guest, &std::mem::take(&mut greeting.out));
                    }
                    engine.consume_guest(guest, consumed);
                    self.proxies.clients.insert(guest, Client::Greeting(greeting));
                    self.proxies.greeting += 1;
                    return;
                }
                Step::Login { user, password } => {
                    greeting.login = match &greeting.open {
                        Some(grant) => Some((None, grant.clone())),
                        None => self.check_login(&user, &password),
                    };
                    let good = greeting.login.is_some();
                    greeting.proxy.logged_in(good, &mut greeting.out);
                    if !good {
                        // What stands behind the slash is a part of a token.
                        let mediator = user.split('/').next();
                        tracing::debug!(client = %greeting.peer, mediator, "SOCKS5 client refused: bad token");
                        return self.refuse_greeting(engine, guest, &greeting, Bad::Login);
                    }
                }
                Step::Refused(bad) => return self.refuse_greeting(engine, guest, &greeting, bad),
                Step::Request(request) => {
                    return self.on_client_request(engine, guest, tag, *greeting, request, consumed);
                }
            }
        }
    }

    fn refuse_greeting(&mut self, engine: &mut Engine, guest: Key, greeting: &Greeting, bad: Bad) {
        let counter = match bad {
            Bad::Login => Counter::SocksRefusedLogin,
            Bad::Malformed | Bad::Command | Bad::AddressType => Counter::SocksRefusedProtocol,
        };
        self.counters.add(counter, 1);
        tracing::debug!(client = %greeting.peer, reason = ?bad, "SOCKS5 client refused");
        engine.dismiss(guest, &greeting.out, greeting.out.is_empty());
    }

    /// The user name is the mediator's, the password a terminal's token. SOCKS5 has room for 255 bytes in each, so the
    /// beginning of a longer token stands behind the mediator's name and a slash.
    fn check_login(&self, user: &str, password: &str) -> Option<(Option<MediatorId>, Grant)> {
        let (mediator, front) = user.split_once('/').unwrap_or((user, ""));
        let token = [front, password].concat();
        let hello = Hello { token, role: Role::Terminal { mediator: None }, udp_channels: 0, instance: 0 };
        let grant = self.trust.admit(&hello, None, unix_now()).ok()?;
        Some((mediator.parse().ok(), grant))
    }

    fn on_client_request(
        &mut self,
        engine: &mut Engine,
        guest: Key,
        tag: u32,
        greeting: Greeting,
        request: Request,
        consumed: usize,
    ) {
        let Greeting { proxy, peer, only, open, login, out } = greeting;
        let Request { command, mut target } = request;
        let named = target.host.mediator().map(|(host, mediator)| {
            target.host = host;
            mediator
        });
        let (user, grant) = match login.or_else(|| open.map(|grant| (None, grant))) {
            Some((user, grant)) => (user, grant),
            None => return engine.dismiss(guest, &[], true),
        };
        let chosen = match (only, named) {
            (Some(only), Some(named)) if only != named => None,
            (Some(only), _) => Some(only),
            (None, named) => named.or(user),
        };
        let Some(mediator) = chosen.filter(|id| grant.mediators.matches(id)) else {
            engine.consume_guest(guest, consumed);
            engine.reply_guest(guest, &out);
            return self.refuse_client(engine, guest, &proxy, Code::TokenMismatch);
        };
        let owner = mediator.shard(self.peers.len());
        let call = Call { proxy, command, target, mediator, grant, peer, out, consumed };
        if owner == self.seat.id {
            return self.serve_call(engine, guest, tag, call);
        }
        // A reply that is still on its way: a client that does not wait for replies sent in several parts.
        let Some(taken) = engine.take_guest(guest) else {
            // They come before the refusal.
            engine.consume_guest(guest, call.consumed);
            engine.reply_guest(guest, &call.out);
            return self.refuse_client(engine, guest, &call.proxy, Code::Overloaded);
        };
        if self.send(owner, Message::Client { taken, tag, call: Box::new(call) }).is_err() {
            // The message was dropped, and the connection with it.
            self.counters.add(Counter::SocksRefusedLimit, 1);
        }
    }
}

/// What anybody may do at an open port.
fn anybody(mediator: &MediatorId) -> Grant {
    Grant::everything("anybody", Glob::exactly(mediator))
}
