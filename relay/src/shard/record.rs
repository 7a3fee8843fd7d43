//! What a shard remembers of live sessions for their records; nothing where none are asked for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use isthmus_engine::{Carried, EndedBridge, Engine, Event, Key};
use isthmus_proto::link::{LinkStats, PortKind};
use isthmus_proto::time::Instant;
use isthmus_proto::wire::RequestKind;
use isthmus_proto::{Code, MediatorId};

use super::expose::code_of;
use super::{Party, Shard};
use crate::records::{Kind, Record, Records};

/// What a stream's or flow's record will say that its end does not.
#[derive(Clone, Debug)]
pub(super) struct Began {
    pub(super) door: Box<str>,
    pub(super) mediator: MediatorId,
    pub(super) who: Option<Box<str>>,
    pub(super) from: SocketAddr,
    pub(super) to: Box<str>,
    pub(super) at: Instant,
}

impl Began {
    /// Of somebody who has shown no token.
    pub(super) fn new(door: &str, mediator: &MediatorId, from: SocketAddr, to: SocketAddr, at: Instant) -> Self {
        let to = to.to_string().into();
        Self { door: door.into(), mediator: mediator.clone(), who: None, from, to, at }
    }
}

/// The records of one shard.
pub(super) struct Recording {
    records: Option<Records>,
    /// By stream and flow, as many as there are of these.
    live: HashMap<Key, Began>,
    /// By the bridge's end A: what terminals use.
    bridges: HashMap<Key, Bridged>,
}

/// What a terminal uses, or a host that came to a terminal's server port.
struct Bridged {
    began: Began,
    kind: Kind,
    /// `from` is at the mediator's end.
    by_host: bool,
}

impl Recording {
    pub(super) fn new(records: Option<Records>) -> Self {
        Self { records, live: HashMap::new(), bridges: HashMap::new() }
    }

    /// Whether there are any.
    pub(super) fn is_on(&self) -> bool {
        self.records.is_some()
    }

    /// Begins a stream's or flow's record.
    pub(super) fn begin(&mut self, key: Key, began: impl FnOnce() -> Began) {
        if self.records.is_some() {
            self.live.insert(key, began());
        }
    }
}

/// When something began that has lasted until now.
fn since(engine: &Engine, at: Instant) -> (SystemTime, std::time::Duration) {
    let lasted = engine.now().since(at);
    (SystemTime::now().checked_sub(lasted).unwrap_or(SystemTime::UNIX_EPOCH), lasted)
}

impl Shard {
    /// Writes the record of what has ended, before anybody forgets it.
    pub(super) fn record(&mut self, engine: &Engine, event: &Event<'_>) {
        if self.recording.records.is_none() {
            return;
        }
        match *event {
            Event::StreamEnded { stream, code, carried, .. } => {
                self.record_end(engine, stream, Kind::Stream, code, carried);
            }
            // A stream that never came to be has no other end.
            Event::Connected { stream, result: Err(ref error), .. } => {
                self.record_end(engine, stream, Kind::Stream, code_of(error), Carried::default());
            }
            Event::FlowEnded { flow, carried, .. } => self.record_end(engine, flow, Kind::Flow, Code::Closed, carried),
            Event::LinkEnded { link, code, peer, ref stats, .. } => self.record_link(engine, link, code, peer, stats),
            _ => {}
        }
    }

    /// Begins the record of what a terminal of `link` uses: a connection to `to`, or a UDP port.
    pub(super) fn record_bridge(&mut self, engine: &mut Engine, bridge: Key, link: Key, door: &str, to: &str) {
        if !self.recording.is_on() {
            return;
        }
        let (Some(Party::Terminal(terminal)), Some(end)) = (self.links.get(&link), engine.bridge_other(bridge)) else {
            return;
        };
        let (Some(mediator), Some(from)) = (terminal.mediator.clone(), engine.link_peer(link)) else { return };
        let who = Some(terminal.grant.name.as_str().into());
        let udp = engine.link(end.link).and_then(|machine| machine.kind(end.slot)) == Some(PortKind::Udp);
        let began = Began { door: door.into(), mediator, who, from, to: to.into(), at: engine.now() };
        let kind = if udp { Kind::Flow } else { Kind::Stream };
        self.recording.bridges.insert(bridge.as_bridge(), Bridged { began, kind, by_host: false });
    }

    /// Begins the record of a host that came to a server port of a terminal's.
    pub(super) fn record_host(
        &mut self,
        engine: &mut Engine,
        bridge: Key,
        link: Key,
        host: SocketAddr,
        local: SocketAddr,
    ) {
        self.record_bridge(engine, bridge, link, "terminal server", &local.to_string());
        if let Some(bridged) = self.recording.bridges.get_mut(&bridge.as_bridge()) {
            (bridged.began.from, bridged.by_host) = (host, true);
        }
    }

    /// A connection that was refused is over for its record, though the port may live on.
    pub(super) fn record_bridge_answer(&mut self, engine: &Engine, owner: Key, to: RequestKind, code: Code) {
        if to == RequestKind::Connect && !code.is_ok() {
            let key = owner.as_bridge();
            self.record_bridge_end(engine, EndedBridge { key, code, carried: Carried::default() });
        }
    }

    /// Writes the records of bridges that have ended since the turn before.
    pub(super) fn record_ended_bridges(&mut self, engine: &mut Engine) {
        if self.recording.is_on() {
            for ended in engine.take_ended_bridges() {
                self.record_bridge_end(engine, ended);
            }
        }
    }

    fn record_bridge_end(&mut self, engine: &Engine, ended: EndedBridge) {
        let Some(Bridged { began, kind, by_host }) = self.recording.bridges.remove(&ended.key) else { return };
        let carried = if by_host { ended.carried.turned() } else { ended.carried };
        self.write_end(engine, began, kind, ended.code, carried);
    }

    fn record_end(&mut self, engine: &Engine, key: Key, kind: Kind, code: Code, carried: Carried) {
        if let Some(began) = self.recording.live.remove(&key) {
            self.write_end(engine, began, kind, code, carried);
        }
    }

    fn write_end(&self, engine: &Engine, began: Began, kind: Kind, code: Code, carried: Carried) {
        let Began { door, mediator, who, from, to, at } = began;
        let (began, lasted) = since(engine, at);
        self.write_record(Record {
            kind,
            door,
            mediator: Some(mediator),
            who,
            from: Some(from),
            to: Some(to),
            began,
            lasted,
            bytes_in: carried.bytes_in,
            bytes_out: carried.bytes_out,
            datagrams: (kind == Kind::Flow).then_some((carried.datagrams_in, carried.datagrams_out)),
            end: code,
        });
    }

    fn record_link(&mut self, engine: &Engine, link: Key, code: Code, peer: SocketAddr, stats: &LinkStats) {
        let (kind, mediator, who, at) = match self.links.get(&link) {
            Some(Party::Tunnel(tunnel)) => (Kind::Tunnel, Some(tunnel.id.clone()), None, tunnel.since),
            Some(Party::Terminal(terminal)) => {
                let who = Some(terminal.grant.name.as_str().into());
                (Kind::Terminal, terminal.mediator.clone(), who, terminal.since)
            }
            _ => return,
        };
        let (began, lasted) = since(engine, at);
        self.write_record(Record {
            kind,
            door: "service".into(),
            mediator,
            who,
            from: Some(peer),
            to: None,
            began,
            lasted,
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
            datagrams: Some((stats.datagrams_in, stats.datagrams_out)),
            end: code,
        });
    }

    fn write_record(&self, record: Record) {
        if let Some(records) = &self.recording.records {
            records.write(record);
        }
    }
}
