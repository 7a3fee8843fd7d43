//! Requests of the user, and their answers.

use std::net::SocketAddr;

use isthmus_proto::hello::{Query, QueryAnswer};
use isthmus_proto::link::{PortKind, Slot, UNSPECIFIED};
use isthmus_proto::wire::{Frame, NamedTarget, OpenFlags, RequestKind};
use isthmus_proto::{Code, Instant};
use tokio::sync::oneshot;

use super::State;
use super::entry::{Body, Entry, Pending, Server, Stream, Udp};
use crate::Error;

/// The answer to a request, to come.
pub(crate) type Reply = oneshot::Receiver<Code>;

impl State {
    /// Asks for a new port; its entry is held once.
    pub(crate) fn open(
        &mut self,
        flags: OpenFlags,
        local: SocketAddr,
        peer: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(usize, Reply), Error> {
        self.check()?;
        let request = self.next_request();
        let place = self.entries.vacant_entry();
        let slot = self.link.open(place.key() as u64, request, flags, local, peer, now).map_err(Error::Refused)?;
        let key = place.key();
        let (kind, body) = if flags.has(OpenFlags::UDP) {
            let udp = Udp::new(peer, flags.has(OpenFlags::REDIRECT), flags.has(OpenFlags::FALLBACK));
            (PortKind::Udp, Body::Udp(udp))
        } else {
            (PortKind::Tcp, Body::Opened)
        };
        place.insert(Entry::new(slot, kind, body));
        let reply = if flags.has(OpenFlags::QUIET) {
            oneshot::channel().1
        } else {
            self.expect(key, RequestKind::Open, request, None)
        };
        Ok((key, reply))
    }

    /// Asks to connect an opened port.
    pub(crate) fn connect(&mut self, key: usize, to: SocketAddr, timeout_ms: u32) -> Result<Reply, Error> {
        let slot = self.slot(key)?;
        let request = self.next_request();
        let stream = Body::Stream(Box::new(Stream::new(to)));
        let reply = self.expect(key, RequestKind::Connect, request, Some(stream));
        self.link.connect(slot, request, to, timeout_ms);
        Ok(reply)
    }

    /// Asks to connect an opened port to a host that the mediator finds by its name.
    pub(crate) fn connect_name(&mut self, key: usize, name: &str, port: u16, timeout_ms: u32) -> Result<Reply, Error> {
        let slot = self.slot(key)?;
        let request = self.next_request();
        // Which of the name's addresses it is, only the mediator knows.
        let stream = Body::Stream(Box::new(Stream::new(UNSPECIFIED)));
        let reply = self.expect(key, RequestKind::Connect, request, Some(stream));
        // Where the token lets us go is the relay's to write.
        self.link.connect_name(slot, request, NamedTarget { name, port, rules: "" }, timeout_ms);
        Ok(reply)
    }

    /// Asks to make a server of an opened port.
    pub(crate) fn serve(&mut self, key: usize) -> Result<Reply, Error> {
        let slot = self.slot(key)?;
        let request = self.next_request();
        let reply = self.expect(key, RequestKind::Serve, request, Some(Body::Server(Server::default())));
        self.link.serve(slot, request);
        Ok(reply)
    }

    /// Asks to close a port.
    pub(crate) fn close(&mut self, key: usize) -> Result<Reply, Error> {
        let slot = self.slot(key)?;
        let request = self.next_request();
        let reply = self.expect(key, RequestKind::Close, request, None);
        self.link.close(slot, request);
        Ok(reply)
    }

    /// Asks to switch a UDP port.
    pub(crate) fn switch(&mut self, key: usize, flags: OpenFlags) -> Result<Reply, Error> {
        let slot = self.slot(key)?;
        let request = self.next_request();
        let then = self.entries.get(key).and_then(|entry| match &entry.body {
            Body::Udp(udp) => {
                Some(Body::Udp(Udp::new(udp.peer, flags.has(OpenFlags::REDIRECT), flags.has(OpenFlags::FALLBACK))))
            }
            _ => None,
        });
        let reply = self.expect(key, RequestKind::Switch, request, then);
        self.link.switch(slot, request, flags);
        Ok(reply)
    }

    /// Asks the relay itself.
    pub(crate) fn query(&mut self, query: &Query) -> Result<oneshot::Receiver<QueryAnswer>, Error> {
        self.check()?;
        let json = serde_json::to_vec(query).map_err(Error::protocol)?;
        self.next_query = self.next_query.wrapping_add(1);
        let (reply, answer) = oneshot::channel();
        self.queries.retain(|_, waiting| !waiting.is_closed());
        self.queries.insert(self.next_query, reply);
        self.link.control().push(&Frame::Query { query: self.next_query, json: &json });
        Ok(answer)
    }

    pub(super) fn on_query_answer(&mut self, query: u32, json: &[u8]) {
        if let Some(reply) = self.queries.remove(&query) {
            let unreadable = || QueryAnswer::Error { code: Code::ProtocolError.word().to_owned() };
            let _ = reply.send(serde_json::from_slice(json).unwrap_or_else(|_| unreadable()));
        }
    }

    pub(super) fn on_answer(
        &mut self,
        key: usize,
        to: RequestKind,
        request: u16,
        code: Code,
        local: SocketAddr,
        over: bool,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if code.is_ok() && local != UNSPECIFIED {
            entry.local = local;
        }
        let place = entry.pending.iter().position(|pending| pending.to == to && pending.request == request);
        if let Some(place) = place {
            let pending = entry.pending.remove(place);
            if code.is_ok() {
                become_what_was_asked(&mut entry.body, pending.then);
            }
            let _ = pending.reply.send(code);
        }
        if over {
            // What else was asked meets no port any more; a refused open refuses all.
            entry.on_over(if code.is_ok() { Code::UnknownPort } else { code });
            entry.wake_all(&mut self.wakers);
        }
    }

    /// # Errors
    /// The connection's end; when the port is gone, why: an open may be refused before it is used.
    fn slot(&self, key: usize) -> Result<Slot, Error> {
        self.check()?;
        match self.entries.get(key) {
            Some(entry) if entry.live => Ok(entry.slot),
            entry => Err(Error::Refused(entry.and_then(|entry| entry.over).unwrap_or(Code::UnknownPort))),
        }
    }

    fn expect(&mut self, key: usize, to: RequestKind, request: u16, then: Option<Body>) -> Reply {
        let (reply, answer) = oneshot::channel();
        if let Some(entry) = self.entries.get_mut(key) {
            entry.pending.push(Pending { to, request, reply, then });
        }
        answer
    }
}

fn become_what_was_asked(body: &mut Body, then: Option<Body>) {
    match (body, then) {
        // A switch keeps what was received and who waits.
        (Body::Udp(udp), Some(Body::Udp(asked))) => {
            udp.redirect = asked.redirect;
            udp.fallback = asked.fallback;
        }
        (body, Some(then)) => *body = then,
        (_, None) => {}
    }
}
