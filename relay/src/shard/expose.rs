//! Exposed services: a port on a mediator, asked for whenever the mediator is there, whose connections or datagrams lead to
//! a public address.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_engine::{Engine, Key};
use isthmus_proto::link::Slot;
use isthmus_proto::time::Instant;
use isthmus_proto::wire::{OpenFlags, RequestKind};
use isthmus_proto::{Code, MediatorId};

use super::Shard;
use super::tag::{Door, TagTable};
use crate::admin::{Counter, ExposeRow, ExposeState};
use crate::expose::{EXPOSES_MAX, Expose, ServerPort};
use crate::publish::{Origin, Proto};

mod flow;
mod host;

pub(super) use host::{Connects, TIMER_CONNECTS, code_of};

/// The number of the timer of the next try.
pub(super) const TIMER_RETRY: u32 = 0x6578_7265;

/// A mediator that refused is asked again after this, doubled each time, up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The exposed services of a shard's mediators.
pub(super) struct Exposes {
    table: TagTable<Exposed>,
    of_mediator: HashMap<MediatorId, Vec<u32>>,
    /// Those that were refused, by the time of the next try.
    retries: BTreeSet<(Instant, u32)>,
    retry_timer: isthmus_engine::TimerId,
    connects: Connects,
    /// Hosts' UDP flows, of all of them.
    flows: usize,
}

/// An exposed service.
struct Exposed {
    expose: Expose,
    origin: Origin,
    state: State,
    /// Refusals since the server port was last open.
    refusals: u32,
    /// Of hosts: connections, or UDP flows.
    connections_live: u64,
    connections_total: u64,
    connections_failed: u64,
}

/// How far its server port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The mediator is not connected.
    Away,
    /// Asked for; the address once it is bound.
    Opening {
        link: Key,
        slot: Slot,
        bound: Option<SocketAddr>,
    },
    Open {
        link: Key,
        slot: Slot,
        bound: SocketAddr,
    },
    Refused {
        code: Code,
        retry: Instant,
    },
}

impl Exposed {
    fn row(&self, shard: isthmus_proto::ShardId, now: Instant) -> ExposeRow {
        let (state, bound, code, retry) = match self.state {
            State::Away => (ExposeState::Away, None, None, None),
            State::Opening { bound, .. } => (ExposeState::Opening, bound, None, None),
            State::Open { bound, .. } => (ExposeState::Open, Some(bound), None, None),
            State::Refused { code, retry } => (ExposeState::Refused, None, Some(code), Some(retry)),
        };
        ExposeRow {
            expose: self.expose.clone(),
            shard,
            origin: self.origin,
            state,
            bound,
            reason: code.map(|code| code.word().to_owned()),
            cure: code.map(|code| code.text().to_owned()),
            retry_s: retry.map(|retry| retry.since(now).as_secs()),
            connections_live: self.connections_live,
            connections_total: self.connections_total,
            connections_failed: self.connections_failed,
        }
    }

    /// Hosts can come.
    fn opened(&mut self, link: Key, slot: Slot, bound: SocketAddr) {
        self.refusals = 0;
        self.state = State::Open { link, slot, bound };
        tracing::info!(expose = %self.expose, %bound, "exposed service's port is open");
    }

    /// Its name in the mediator's audit.
    fn asker(&self) -> String {
        format!("exposed {}", self.expose.target)
    }
}

impl Exposes {
    pub(super) fn new(engine: &mut Engine) -> Self {
        Self {
            table: TagTable::new(Door::Exposed),
            of_mediator: HashMap::new(),
            retries: BTreeSet::new(),
            retry_timer: engine.add_timer(TIMER_RETRY),
            connects: Connects::new(engine),
            flows: 0,
        }
    }

    fn find(&self, server: &ServerPort) -> Option<u32> {
        let tags = self.of_mediator.get(&server.mediator)?;
        tags.iter().copied().find(|&tag| self.table.get(tag).is_some_and(|exposed| exposed.expose.server == *server))
    }

    fn arm_retry(&mut self, engine: &mut Engine) {
        if let Some(&(first, _)) = self.retries.first() {
            engine.set_timer(self.retry_timer, first);
        }
    }
}

impl Shard {
    /// What is exposed by a number.
    pub(super) fn exposed_at(&self, tag: u32) -> Option<&Expose> {
        self.exposes.table.get(tag).map(|exposed| &exposed.expose)
    }

    /// What the configuration exposes by mediators of this shard, which is one of `shards`.
    pub(super) fn exposes_of_config(&self, shards: usize) -> Vec<(Expose, Origin)> {
        let mine = |expose: &&Expose| expose.server.mediator.shard(shards) == self.seat.id;
        self.shared.config.expose.iter().filter(mine).map(|expose| (expose.clone(), Origin::Config)).collect()
    }

    /// Exposes services. One whose server port is exposed already leads elsewhere from now on; who is connected stays.
    ///
    /// # Errors
    /// There is no room for all; then none is exposed.
    pub(super) fn expose(&mut self, engine: &mut Engine, services: Vec<(Expose, Origin)>) -> Result<(), String> {
        if self.exposes.table.len() + services.len() > EXPOSES_MAX {
            return Err(format!("a shard exposes at most {EXPOSES_MAX} services"));
        }
        for (expose, origin) in services {
            tracing::info!(%expose, origin = origin.word(), "exposed");
            if let Some(tag) = self.exposes.find(&expose.server) {
                if let Some(exposed) = self.exposes.table.get_mut(tag) {
                    (exposed.expose, exposed.origin) = (expose, origin);
                }
                continue;
            }
            let mediator = expose.server.mediator.clone();
            let tag = self.exposes.table.insert_with(|_| Exposed {
                expose,
                origin,
                state: State::Away,
                refusals: 0,
                connections_live: 0,
                connections_total: 0,
                connections_failed: 0,
            });
            if let Some(&link) = self.mediators.get(&mediator) {
                self.open_exposed(engine, link, tag);
            }
            self.exposes.of_mediator.entry(mediator).or_default().push(tag);
        }
        Ok(())
    }

    /// Closes server ports; those that are not exposed here are passed over. Who is connected stays, but for `now`; UDP flows
    /// end with their port.
    pub(super) fn unexpose(&mut self, engine: &mut Engine, servers: &[ServerPort], now: bool) -> Vec<ExposeRow> {
        let tags: Vec<u32> = servers.iter().filter_map(|server| self.exposes.find(server)).collect();
        let mut gone = Vec::with_capacity(tags.len());
        for tag in tags {
            let Some(exposed) = self.exposes.table.get(tag) else { continue };
            let row = exposed.row(self.seat.id, engine.now());
            if now {
                for stream in engine.streams_of(tag) {
                    engine.end_stream(self, stream, Code::Killed);
                }
            }
            engine.remove_outlet(self, tag);
            let Some(exposed) = self.exposes.table.remove(tag) else { continue };
            tracing::info!(expose = %exposed.expose, now, "no longer exposed");
            if let Some(tags) = self.exposes.of_mediator.get_mut(&exposed.expose.server.mediator) {
                tags.retain(|&other| other != tag);
                if tags.is_empty() {
                    self.exposes.of_mediator.remove(&exposed.expose.server.mediator);
                }
            }
            match exposed.state {
                State::Away => {}
                State::Opening { link, slot, .. } | State::Open { link, slot, .. } => close_server(engine, link, slot),
                State::Refused { retry, .. } => {
                    self.exposes.retries.remove(&(retry, tag));
                }
            }
            gone.push(row);
        }
        gone
    }

    pub(super) fn expose_rows(&self, engine: &Engine) -> Vec<ExposeRow> {
        self.exposes.table.iter().map(|(_, exposed)| exposed.row(self.seat.id, engine.now())).collect()
    }

    /// A mediator is there: it is asked for the server ports of what is exposed by it.
    pub(super) fn open_exposes_of(&mut self, engine: &mut Engine, id: &MediatorId, link: Key) {
        for tag in self.exposes.of_mediator.get(id).cloned().unwrap_or_default() {
            if let Some(exposed) = self.exposes.table.get_mut(tag) {
                exposed.refusals = 0;
            }
            self.open_exposed(engine, link, tag);
        }
    }

    fn open_exposed(&mut self, engine: &mut Engine, link: Key, tag: u32) {
        let Some(exposed) = self.exposes.table.get_mut(tag) else { return };
        if let State::Refused { retry, .. } = exposed.state {
            self.exposes.retries.remove(&(retry, tag));
        }
        let name = exposed.asker();
        let ServerPort { listen, proto, .. } = exposed.expose.server;
        let kind = match proto {
            Proto::Tcp => 0,
            // Over UDP channels where one works, and over TCP otherwise.
            Proto::Udp => OpenFlags::UDP | OpenFlags::REDIRECT | OpenFlags::FALLBACK,
        };
        let asker = self.asker(engine, link, &name);
        let now = engine.now();
        let Some(machine) = engine.link(link) else { return };
        let owner = Key::control(tag).to_bits();
        match machine.open_as(asker, owner, 0, OpenFlags(OpenFlags::OBLIGATORY | kind), listen, None, now) {
            Ok(slot) => {
                engine.touch(link);
                if proto == Proto::Udp {
                    // At once: on a UDP channel a host's datagram may come before the answer on TCP.
                    engine.add_outlet(self, tag, link, slot);
                }
                if let Some(exposed) = self.exposes.table.get_mut(tag) {
                    exposed.state = State::Opening { link, slot, bound: None };
                }
            }
            Err(code) => self.refuse_exposed(engine, tag, code),
        }
    }

    /// The server port is not to be had now.
    fn refuse_exposed(&mut self, engine: &mut Engine, tag: u32, code: Code) {
        engine.remove_outlet(self, tag);
        let Some(exposed) = self.exposes.table.get_mut(tag) else { return };
        let wait = RETRY_MAX.min(RETRY_FIRST * (1 << exposed.refusals.min(6)));
        let retry = engine.now() + wait;
        if exposed.refusals == 0 {
            let (expose, why) = (&exposed.expose, code.text());
            tracing::warn!(%expose, reason = code.word(), why, "the mediator refuses an exposed service's port");
        }
        exposed.refusals += 1;
        exposed.state = State::Refused { code, retry };
        self.counters.add(Counter::ExposesRefused, 1);
        self.exposes.retries.insert((retry, tag));
        self.exposes.arm_retry(engine);
    }

    pub(super) fn on_expose_retry(&mut self, engine: &mut Engine) {
        let now = engine.now();
        while let Some(&(retry, tag)) = self.exposes.retries.first()
            && retry <= now
        {
            self.exposes.retries.pop_first();
            let Some(exposed) = self.exposes.table.get_mut(tag) else { continue };
            exposed.state = State::Away;
            if let Some(&link) = self.mediators.get(&exposed.expose.server.mediator) {
                self.open_exposed(engine, link, tag);
            }
        }
        self.exposes.arm_retry(engine);
    }

    /// The mediator's answer about a server port.
    #[allow(clippy::too_many_arguments, reason = "an answer's fields")]
    pub(super) fn on_expose_answer(
        &mut self,
        engine: &mut Engine,
        link: Key,
        slot: Slot,
        tag: u32,
        to: RequestKind,
        code: Code,
        local: SocketAddr,
    ) {
        let Some(exposed) = self.exposes.table.get_mut(tag) else { return };
        let State::Opening { link: asked, bound, .. } = exposed.state else { return };
        if asked != link {
            return;
        }
        match (to, code.is_ok()) {
            (RequestKind::Open, true) if exposed.expose.server.proto == Proto::Udp => exposed.opened(link, slot, local),
            (RequestKind::Open, true) => {
                exposed.state = State::Opening { link, slot, bound: Some(local) };
                if let Some(machine) = engine.link(link) {
                    machine.serve(slot, 0);
                    engine.touch(link);
                }
            }
            (RequestKind::Serve, true) => exposed.opened(link, slot, bound.unwrap_or(local)),
            (RequestKind::Open, false) => self.refuse_exposed(engine, tag, code),
            (_, false) => {
                close_server(engine, link, slot);
                self.refuse_exposed(engine, tag, code);
            }
            (RequestKind::Connect | RequestKind::Close | RequestKind::Switch, true) => {}
        }
    }

    /// A server port is gone, with its tunnel or without.
    pub(super) fn on_expose_ended(&mut self, engine: &mut Engine, link: Key, tag: u32, code: Code) {
        let Some(exposed) = self.exposes.table.get_mut(tag) else { return };
        match exposed.state {
            State::Opening { link: asked, .. } | State::Open { link: asked, .. } if asked == link => {}
            // That of a session before.
            _ => return,
        }
        if self.mediators.get(&exposed.expose.server.mediator) == Some(&link) && engine.link(link).is_some() {
            return self.refuse_exposed(engine, tag, code);
        }
        exposed.state = State::Away;
        engine.remove_outlet(self, tag);
    }
}

/// Closes a port that leads nowhere any more.
fn close_server(engine: &mut Engine, link: Key, slot: Slot) {
    if let Some(machine) = engine.link(link) {
        machine.set_owner(slot, Key::control(0).to_bits());
        machine.close(slot, 0);
        engine.touch(link);
    }
}
