//! Published ports: visitors need no software, and the relay asks the mediator on their behalf.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_engine::{Engine, FlowSpec, Key};
use isthmus_proto::Code;
use isthmus_proto::link::UNSPECIFIED;
use isthmus_proto::wire::OpenFlags;
use isthmus_ring::{Socket, UdpOptions};

use super::{Shard, spawn};
use crate::admin::Counter;
use crate::publish::{Proto, Publish};

pub(super) struct Published {
    /// With the real port number.
    pub(super) publish: Publish,
    /// Its listener or UDP socket, once it serves.
    pub(super) key: Option<Key>,
    pub(super) visitors_live: u64,
    pub(super) visitors_total: u64,
    pub(super) flows_live: u64,
    pub(super) flows_total: u64,
}

pub(super) enum PublishedSocket {
    Tcp(Socket),
    Udp(Socket),
}

impl Published {
    /// Binds a published port.
    ///
    /// # Errors
    /// Names the port and what the system says.
    pub(super) fn bind(publish: &Publish, congestion: Option<&str>) -> anyhow::Result<(Self, PublishedSocket)> {
        let listen = publish.listen;
        let cannot = || format!("--publish {publish}: cannot listen on {listen}");
        let mut publish = publish.clone();
        let socket = match publish.proto {
            Proto::Tcp => {
                let socket = retry_in_use(|| spawn::tcp_listener(listen, false, congestion)).with_context(cannot)?;
                publish.listen = socket.local_addr().with_context(cannot)?;
                PublishedSocket::Tcp(socket)
            }
            Proto::Udp => {
                let options = UdpOptions { gro: true, ..UdpOptions::default() };
                let socket = retry_in_use(|| Socket::udp(listen, options)).with_context(cannot)?;
                let _ = socket.set_buffers(Some(4 << 20), Some(4 << 20));
                publish.listen = socket.local_addr().with_context(cannot)?;
                PublishedSocket::Udp(socket)
            }
        };
        let (visitors_live, visitors_total, flows_live, flows_total) = (0, 0, 0, 0);
        Ok((Self { publish, key: None, visitors_live, visitors_total, flows_live, flows_total }, socket))
    }
}

/// How long a port may be in use by a relay that was killed: the system takes a moment to end what that one
/// had under way.
const IN_USE_RETRIES: u32 = 20;
const IN_USE_WAIT: Duration = Duration::from_millis(100);

pub(super) fn retry_in_use(bind: impl Fn() -> io::Result<Socket>) -> io::Result<Socket> {
    for _ in 0..IN_USE_RETRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(IN_USE_WAIT),
            result => return result,
        }
    }
    bind()
}

impl Shard {
    fn published(&mut self, tag: u32) -> Option<&mut Published> {
        self.published.get_mut((tag as usize).checked_sub(1)?)
    }

    /// A TCP visitor: open, connect and its first bytes travel together, without waiting.
    pub(super) fn on_visitor(&mut self, engine: &mut Engine, tag: u32, socket: Socket, peer: SocketAddr) {
        let Some(published) = self.published(tag) else { return };
        let (id, target) = (published.publish.mediator.clone(), published.publish.target());
        let Some(&link) = self.mediators.get(&id) else {
            self.counters.add(Counter::VisitorsRefusedAway, 1);
            tracing::debug!(mediator = %id, %peer, "visitor refused: the mediator is away");
            let _ = socket.set_reset_on_close();
            return;
        };
        let now = engine.now();
        let overcommitted = engine.is_overcommitted();
        let Some(machine) = engine.link(link) else { return };
        let opened = if overcommitted {
            Err(Code::NoResources)
        } else {
            machine.open(0, 0, OpenFlags(OpenFlags::QUIET), UNSPECIFIED, None, now)
        };
        let slot = match opened {
            Ok(slot) => slot,
            Err(code) => {
                self.counters.add(Counter::VisitorsRefusedLimit, 1);
                tracing::debug!(mediator = %id, %peer, reason = code.word(), "visitor refused");
                let _ = socket.set_reset_on_close();
                return;
            }
        };
        machine.connect_unanswered(slot, target);
        engine.add_stream(socket, link, slot, tag);
        engine.touch(link);
        self.counters.add(Counter::VisitorsTotal, 1);
        self.counters.add(Counter::VisitorsLive, 1);
        if let Some(published) = self.published(tag) {
            published.visitors_total += 1;
            published.visitors_live += 1;
        }
    }

    /// The mediator's answer to a visitor's connect.
    pub(super) fn on_visitor_answer(&mut self, engine: &mut Engine, stream: Key, code: Code, over: bool) {
        if over {
            self.counters.add(Counter::ConnectFailed, 1);
            tracing::debug!(reason = code.word(), "visitor's connection failed");
            engine.drop_stream(self, stream, code);
        }
    }

    pub(super) fn on_visitor_ended(&mut self, tag: u32, _code: Code) {
        self.counters.sub(Counter::VisitorsLive, 1);
        if let Some(published) = self.published(tag) {
            published.visitors_live -= 1;
        }
    }

    /// The first datagram of a UDP visitor: a port of its own on the mediator.
    pub(super) fn on_new_flow(&mut self, engine: &mut Engine, socket: Key, tag: u32, visitor: SocketAddr) {
        let limit = self.shared.config.udp_flows_max as usize;
        if engine.flows_of(socket) >= limit || engine.is_overcommitted() {
            return;
        }
        let Some(published) = self.published(tag) else { return };
        let (id, target) = (published.publish.mediator.clone(), published.publish.target());
        let Some(&link) = self.mediators.get(&id) else {
            self.counters.add(Counter::VisitorsRefusedAway, 1);
            return;
        };
        let now = engine.now();
        let Some(machine) = engine.link(link) else { return };
        let flags = OpenFlags(OpenFlags::UDP | OpenFlags::REDIRECT | OpenFlags::FALLBACK);
        match machine.open(0, 0, flags, UNSPECIFIED, Some(target), now) {
            Ok(slot) => {
                engine.add_flow(FlowSpec { socket, visitor, link, slot, target });
                engine.touch(link);
                self.counters.add(Counter::FlowsTotal, 1);
                self.counters.add(Counter::FlowsLive, 1);
                if let Some(published) = self.published(tag) {
                    published.flows_total += 1;
                    published.flows_live += 1;
                }
            }
            Err(code) => {
                self.counters.add(Counter::VisitorsRefusedLimit, 1);
                tracing::debug!(mediator = %id, %visitor, reason = code.word(), "UDP visitor refused");
            }
        }
    }

    pub(super) fn on_flow_answer(&mut self, engine: &mut Engine, flow: Key, code: Code, over: bool) {
        if over {
            self.counters.add(Counter::ConnectFailed, 1);
            tracing::debug!(reason = code.word(), "UDP visitor's port failed");
            engine.end_flow(self, flow, false);
        } else {
            engine.flow_opened(flow);
        }
    }

    pub(super) fn on_flow_ended(&mut self, tag: u32) {
        self.counters.sub(Counter::FlowsLive, 1);
        if let Some(published) = self.published(tag) {
            published.flows_live -= 1;
        }
    }
}
