//! What a shard remembers of live sessions for their records; nothing where none are asked for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use isthmus_engine::{Carried, Engine, Event, Key};
use isthmus_proto::link::LinkStats;
use isthmus_proto::time::Instant;
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
}

impl Recording {
    pub(super) fn new(records: Option<Records>) -> Self {
        Self { records, live: HashMap::new() }
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

    fn record_end(&mut self, engine: &Engine, key: Key, kind: Kind, code: Code, carried: Carried) {
        let Some(Began { door, mediator, who, from, to, at }) = self.recording.live.remove(&key) else { return };
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
