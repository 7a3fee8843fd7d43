//! A private host at an exposed service: the relay connects to the public address on its behalf.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use isthmus_engine::{Engine, Key, TimerId};
use isthmus_proto::Code;
use isthmus_proto::door::proxy_protocol::{Ends, Transport, encode};
use isthmus_proto::limits::CONNECT_TIMEOUT;
use isthmus_proto::link::Slot;
use isthmus_proto::time::Instant;
use isthmus_ring::{Family, Socket};

use crate::admin::Counter;
use crate::shard::Shard;
use crate::shard::record::Began;

/// The number of the timer of connects that take too long.
pub(in crate::shard) const TIMER_CONNECTS: u32 = 0x6578_636f;

/// Most connects of the last [`CONNECT_TIMEOUT`]; one more host is refused.
const CONNECTS_MAX: usize = 65_536;

/// Connects to public addresses. All may take the same time, so that the oldest one is always the first.
pub(in crate::shard) struct Connects {
    /// With the number of what is exposed.
    waiting: HashMap<Key, u32>,
    by_deadline: VecDeque<(Instant, Key)>,
    timer: TimerId,
}

impl Connects {
    pub(in crate::shard) fn new(engine: &mut Engine) -> Self {
        Self { waiting: HashMap::new(), by_deadline: VecDeque::new(), timer: engine.add_timer(TIMER_CONNECTS) }
    }

    fn begin(&mut self, engine: &mut Engine, stream: Key, tag: u32) {
        let deadline = engine.now() + CONNECT_TIMEOUT;
        if self.by_deadline.is_empty() {
            engine.set_timer(self.timer, deadline);
        }
        self.by_deadline.push_back((deadline, stream));
        self.waiting.insert(stream, tag);
    }

    /// A connect is over, if it was one: the number that it had.
    fn end(&mut self, stream: Key) -> Option<u32> {
        let tag = self.waiting.remove(&stream);
        while self.by_deadline.front().is_some_and(|(_, first)| !self.waiting.contains_key(first)) {
            self.by_deadline.pop_front();
        }
        tag
    }

    fn expire(&mut self, engine: &mut Engine) {
        let now = engine.now();
        while let Some(&(deadline, stream)) = self.by_deadline.front() {
            if deadline > now {
                engine.set_timer(self.timer, deadline);
                break;
            }
            self.by_deadline.pop_front();
            if self.waiting.contains_key(&stream) {
                engine.cancel_connect(stream);
            }
        }
    }
}

impl Shard {
    /// A host connected to the server port. What it sends meanwhile waits at the stream.
    pub(in crate::shard) fn on_exposed_host(
        &mut self,
        engine: &mut Engine,
        link: Key,
        tag: u32,
        slot: Slot,
        peer: SocketAddr,
        local: SocketAddr,
    ) {
        if let Err(code) = self.lead_host(engine, link, tag, slot, peer, local) {
            self.counters.add(Counter::ExposedRefusedLimit, 1);
            tracing::debug!(%peer, reason = code.word(), "host of an exposed service refused");
            if let Some(machine) = engine.link(link) {
                machine.reset(slot, code);
                engine.touch(link);
            }
        }
    }

    fn lead_host(
        &mut self,
        engine: &mut Engine,
        link: Key,
        tag: u32,
        slot: Slot,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<(), Code> {
        let exposed = self.exposes.table.get_mut(tag).ok_or(Code::UnknownPort)?;
        if engine.is_overcommitted() || self.exposes.connects.by_deadline.len() >= CONNECTS_MAX {
            return Err(Code::NoResources);
        }
        let target = exposed.expose.target;
        let socket = socket_for(target, self.shared.config.congestion.as_deref()).map_err(|_| Code::NoResources)?;
        exposed.connections_live += 1;
        exposed.connections_total += 1;
        let server = &exposed.expose.server;
        let recorded = self.recording.is_on().then(|| (server.mediator.clone(), format!("exposed {server}")));
        let stream = engine.connect_stream(socket, target, link, slot, tag);
        if let Some(version) = exposed.expose.options.proxy {
            let ends = Ends { source: SocketAddr::new(peer.ip().to_canonical(), peer.port()), target: local };
            engine.send_ahead(stream, &encode(version, Transport::Stream, ends));
        }
        if let Some((mediator, door)) = recorded {
            self.recording.begin(stream, || Began::new(&door, &mediator, peer, target, engine.now()));
        }
        self.exposes.connects.begin(engine, stream, tag);
        self.counters.add(Counter::ExposedTotal, 1);
        self.counters.add(Counter::ExposedLive, 1);
        Ok(())
    }

    /// The public address has taken a host's connection, or has not: then the host's one is reset.
    pub(in crate::shard) fn on_exposed_connected(
        &mut self,
        engine: &mut Engine,
        stream: Key,
        link: Key,
        slot: Slot,
        result: io::Result<()>,
    ) {
        let tag = self.exposes.connects.end(stream);
        let Err(error) = result else { return };
        let code = code_of(&error);
        tracing::debug!(%error, "the public address of an exposed service cannot be reached");
        if let Some(machine) = engine.link(link) {
            machine.reset(slot, code);
            engine.touch(link);
        }
        self.counters.add(Counter::ExposedFailed, 1);
        self.counters.sub(Counter::ExposedLive, 1);
        if let Some(exposed) = tag.and_then(|tag| self.exposes.table.get_mut(tag)) {
            exposed.connections_failed += 1;
            exposed.connections_live -= 1;
        }
    }

    /// A stream to a public address is gone.
    pub(in crate::shard) fn on_exposed_ended(&mut self, stream: Key, tag: u32) {
        self.exposes.connects.end(stream);
        self.counters.sub(Counter::ExposedLive, 1);
        if let Some(exposed) = self.exposes.table.get_mut(tag) {
            exposed.connections_live -= 1;
        }
    }

    pub(in crate::shard) fn on_exposed_timeout(&mut self, engine: &mut Engine) {
        self.exposes.connects.expire(engine);
    }
}

fn socket_for(to: SocketAddr, congestion: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::tcp(Family::from(to))?;
    if let Some(name) = congestion {
        socket.set_congestion(name)?;
    }
    Ok(socket)
}

/// Why a connect failed. One that takes too long is cancelled by us.
pub(in crate::shard) fn code_of(error: &io::Error) -> Code {
    use io::ErrorKind;
    const ECANCELED: i32 = 125;
    match error.kind() {
        ErrorKind::ConnectionRefused => Code::Refused,
        ErrorKind::HostUnreachable => Code::HostUnreachable,
        ErrorKind::NetworkUnreachable => Code::NetworkUnreachable,
        ErrorKind::TimedOut => Code::TimedOut,
        _ if error.raw_os_error() == Some(ECANCELED) => Code::TimedOut,
        _ => Code::Failed,
    }
}
