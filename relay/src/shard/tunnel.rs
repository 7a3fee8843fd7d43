//! Mediators: their registry on this shard, ghosts, reports.

use std::net::SocketAddr;

use isthmus_engine::{Engine, Key};
use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Report};
use isthmus_proto::link::Side;
use isthmus_proto::time::Instant;
use isthmus_proto::{Code, MediatorId};

use super::{Party, Shard};
use crate::admin::{Counter, TunnelRow};

pub(super) struct Tunnel {
    pub(super) id: MediatorId,
    pub(super) session: u64,
    pub(super) report: Report,
    pub(super) since: Instant,
    pub(super) observed: SocketAddr,
    /// Attached terminals' links.
    pub(super) terminals: Vec<Key>,
}

impl Shard {
    pub(super) fn attach_mediator(
        &mut self,
        engine: &mut Engine,
        link: Key,
        id: MediatorId,
        report: Report,
        udp_channels: u8,
    ) {
        if let Some(ghost) = self.mediators.remove(&id) {
            self.counters.add(Counter::GhostsReplaced, 1);
            engine.farewell(ghost, Code::Replaced, 0, "a newer session of the same mediator took over");
            engine.end_link_after_farewell(self, ghost, Code::Replaced);
        }
        let session = self.welcome(engine, link, Side::Requester, udp_channels, None);
        let observed = engine.link_peer(link).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let now = engine.now();
        if let Some(machine) = engine.link(link) {
            machine.measure(now);
        }
        tracing::info!(mediator = %id, session, %observed, "tunnel attached");
        self.counters.add(Counter::TunnelsTotal, 1);
        self.mediators.insert(id.clone(), link);
        let tunnel = Tunnel { id, session, report, since: engine.now(), observed, terminals: Vec::new() };
        self.links.insert(link, Party::Tunnel(Box::new(tunnel)));
    }

    pub(super) fn on_tunnel_ended(&mut self, engine: &mut Engine, link: Key, tunnel: &Tunnel, code: Code, text: &str) {
        tracing::info!(mediator = %tunnel.id, session = tunnel.session, reason = code.word(), text, "tunnel ended");
        if self.mediators.get(&tunnel.id) == Some(&link) {
            self.mediators.remove(&tunnel.id);
        }
        for &terminal in &tunnel.terminals {
            self.counters_terminal_left(terminal);
            engine.farewell(terminal, Code::MediatorAway, 0, "the mediator's tunnel ended");
        }
    }

    pub(super) fn on_report(&mut self, link: Key, json: &[u8]) {
        let Some(Party::Tunnel(tunnel)) = self.links.get_mut(&link) else { return };
        match serde_json::from_slice(json) {
            Ok(report) => {
                tunnel.report = report;
                tracing::info!(mediator = %tunnel.id, "environment changed");
            }
            Err(error) => tracing::warn!(mediator = %tunnel.id, %error, "unintelligible report"),
        }
    }

    /// A connected mediator's link and tunnel.
    pub(super) fn tunnel_of(&self, id: &MediatorId) -> Option<(Key, &Tunnel)> {
        let link = *self.mediators.get(id)?;
        match self.links.get(&link) {
            Some(Party::Tunnel(tunnel)) => Some((link, tunnel)),
            _ => None,
        }
    }

    pub(super) fn summary(&self, engine: &Engine, tunnel: &Tunnel) -> MediatorSummary {
        MediatorSummary {
            id: tunnel.id.clone(),
            observed: tunnel.observed,
            age_s: engine.now().since(tunnel.since).as_secs(),
            service: tunnel.report.service.clone(),
        }
    }

    pub(super) fn info(&self, engine: &mut Engine, id: &MediatorId) -> Option<MediatorInfo> {
        let (link, tunnel) = self.tunnel_of(id)?;
        let (_, live) = engine.channels_of(link);
        let machine = engine.link(link)?;
        let (ports, rtt, stats) = (machine.ports() as u32, machine.rtt(), machine.stats());
        Some(MediatorInfo {
            summary: self.summary(engine, tunnel),
            report: tunnel.report.clone(),
            session: tunnel.session,
            ports,
            udp_channels_live: live as u32,
            rtt_us: rtt.map(|rtt| rtt.as_micros() as u64),
            bytes_to_mediator: stats.bytes_out,
            bytes_from_mediator: stats.bytes_in,
        })
    }

    pub(super) fn row(&self, engine: &mut Engine, id: &MediatorId) -> Option<TunnelRow> {
        let (link, tunnel) = self.tunnel_of(id)?;
        let (channels, live) = engine.channels_of(link);
        let now = engine.now();
        let machine = engine.link(link)?;
        let stats = machine.stats();
        Some(TunnelRow {
            id: tunnel.id.clone(),
            session: tunnel.session,
            shard: self.seat.id,
            observed: tunnel.observed,
            age_s: now.since(tunnel.since).as_secs(),
            idle_s: now.since(stats.last_payload.max(tunnel.since)).as_secs(),
            ports: machine.ports() as u32,
            terminals: tunnel.terminals.len() as u32,
            udp_channels: channels as u32,
            udp_channels_live: live as u32,
            rtt_us: machine.rtt().map(|rtt| rtt.as_micros() as u64),
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
            datagrams_in: stats.datagrams_in,
            datagrams_out: stats.datagrams_out,
            oversize: stats.datagrams_oversize,
            report: tunnel.report.clone(),
        })
    }
}
