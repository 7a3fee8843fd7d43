//! Mediators: their registry on this shard, ghosts, reports.

use std::net::SocketAddr;

use isthmus_engine::{Engine, Key};
use isthmus_proto::door::name::HostName;
use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Offer, Report};
use isthmus_proto::link::Side;
use isthmus_proto::time::Instant;
use isthmus_proto::{Code, MediatorId};
use serde::Deserialize;

use super::asker::Askers;
use super::contest::Contest;
use super::{Party, Shard};
use crate::admin::{Counter, TunnelRow};
use crate::journal;
use crate::report::PackedReport;
use crate::trust::Credential;

pub(super) struct Tunnel {
    pub(super) id: MediatorId,
    pub(super) session: u64,
    /// What the mediator told of itself last.
    pub(super) report: PackedReport,
    /// Of the report, what each visitor of a name is looked up in.
    offers: Box<[Offer]>,
    pub(super) since: Instant,
    /// Attached terminals' links.
    pub(super) terminals: Vec<Key>,
    /// By what right it is here.
    pub(super) proof: Credential,
    contest: Contest,
    /// On whose behalf it was asked.
    pub(super) askers: Option<Box<Askers>>,
}

/// What of a greeting a mediator's tunnel keeps beside its report.
pub(super) struct Caller {
    pub(super) proof: Credential,
    pub(super) instance: u64,
}

impl Tunnel {
    /// The host that it offers under a name.
    pub(super) fn offered(&self, name: &HostName) -> Option<SocketAddr> {
        offered(&self.offers, name)
    }

    /// Of its report, the service that it wishes to use, without making the rest of it.
    fn service(&self) -> String {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Service {
            service: String,
        }
        self.report.read::<Service>().service
    }
}

/// An own offer of the name, or else one for all names.
fn offered(offers: &[Offer], name: &HostName) -> Option<SocketAddr> {
    let own = offers.iter().find(|offer| offer.name == name.as_str());
    own.or_else(|| offers.iter().find(|offer| offer.name == "*")).map(|offer| offer.target)
}

fn nowhere() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

impl Shard {
    pub(super) fn attach_mediator(
        &mut self,
        engine: &mut Engine,
        link: Key,
        id: MediatorId,
        report: Report,
        udp_channels: u8,
        caller: Caller,
    ) {
        let contest = self.replace_ghost(engine, link, &id, caller.instance);
        let session = self.welcome(engine, link, Side::Requester, udp_channels, None);
        let observed = engine.link_peer(link).unwrap_or_else(nowhere);
        let now = engine.now();
        // In a storm the first maintain packet measures.
        if !self.is_crowded()
            && let Some(machine) = engine.link(link)
        {
            machine.measure(now);
        }
        tracing::info!(mediator = %id, session, %observed, "tunnel attached");
        self.seat.recorder.record(journal::What::TunnelUp, Some(&id), format!("from {observed}, session {session}"));
        self.counters.add(Counter::TunnelsTotal, 1);
        self.mediators.insert(id.clone(), link);
        self.watch_expiry(engine, link, &caller.proof);
        let (name, asks) = (id.clone(), !report.asks.is_empty());
        let tunnel = Tunnel {
            id,
            session,
            report: PackedReport::from(&report),
            offers: report.offers.into(),
            since: engine.now(),
            terminals: Vec::new(),
            proof: caller.proof,
            contest,
            askers: None,
        };
        self.links.insert(link, Party::Tunnel(Box::new(tunnel)));
        self.open_exposes_of(engine, &name, link);
        self.note_asks(&name, asks);
    }

    /// Ends the session that a mediator had before. If two take turns at that, the one that goes is told to wait.
    fn replace_ghost(&mut self, engine: &mut Engine, link: Key, id: &MediatorId, instance: u64) -> Contest {
        let now = engine.now();
        let Some(ghost) = self.mediators.remove(id) else { return Contest::new(instance, now) };
        self.counters.add(Counter::GhostsReplaced, 1);
        let contest = match self.links.get(&ghost) {
            Some(Party::Tunnel(tunnel)) => tunnel.contest.replaced_by(instance, now),
            _ => Contest::new(instance, now),
        };
        let mut text = "a newer session of the same mediator took over";
        if !contest.wait().is_zero() {
            self.counters.add(Counter::MediatorsContended, 1);
            text = "another mediator uses the same token; give each one a token of its own";
            let (one, other) = (engine.link_peer(link), engine.link_peer(ghost));
            self.seat.recorder.record(journal::What::Contended, Some(id), "two mediators with one token");
            tracing::warn!(
                mediator = %id,
                one = one.map(tracing::field::display),
                other = other.map(tracing::field::display),
                rounds = contest.rounds(),
                wait_s = contest.wait().as_secs(),
                "two mediators with one token take the tunnel from each other; give each one a token of its own"
            );
        }
        engine.farewell(ghost, Code::Replaced, contest.wait().as_millis() as u32, text);
        engine.end_link_after_farewell(self, ghost, Code::Replaced);
        contest
    }

    pub(super) fn on_tunnel_ended(&mut self, engine: &mut Engine, link: Key, tunnel: &Tunnel, code: Code, text: &str) {
        tracing::info!(mediator = %tunnel.id, session = tunnel.session, reason = code.word(), text, "tunnel ended");
        let said = if text.is_empty() { code.word().to_owned() } else { format!("{}: {text}", code.word()) };
        self.seat.recorder.record(journal::What::TunnelDown, Some(&tunnel.id), said);
        self.forget_expiry(link, &tunnel.proof);
        if self.mediators.get(&tunnel.id) == Some(&link) {
            self.mediators.remove(&tunnel.id);
            self.hold_asked(engine, &tunnel.id, tunnel.proof);
        }
        for &terminal in &tunnel.terminals {
            self.counters_terminal_left(terminal);
            engine.farewell(terminal, Code::MediatorAway, 0, "the mediator's tunnel ended");
        }
    }

    pub(super) fn on_report(&mut self, link: Key, json: &[u8]) {
        let Some(Party::Tunnel(tunnel)) = self.links.get_mut(&link) else { return };
        match serde_json::from_slice::<Report>(json) {
            Ok(report) => {
                tunnel.report = PackedReport::from(&report);
                tunnel.offers = report.offers.into();
                let id = tunnel.id.clone();
                tracing::info!(mediator = %id, "environment changed");
                self.seat.recorder.record(journal::What::Environment, Some(&id), "environment or wishes changed");
                self.note_asks(&id, !report.asks.is_empty());
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
            observed: self.mediators.get(&tunnel.id).and_then(|&link| engine.link_peer(link)).unwrap_or_else(nowhere),
            age_s: engine.now().since(tunnel.since).as_secs(),
            service: tunnel.service(),
        }
    }

    pub(super) fn info(&self, engine: &mut Engine, id: &MediatorId) -> Option<MediatorInfo> {
        let (link, tunnel) = self.tunnel_of(id)?;
        let (_, live) = engine.channels_of(link);
        let machine = engine.link(link)?;
        let (ports, rtt, stats) = (machine.ports() as u32, machine.rtt(), machine.stats());
        Some(MediatorInfo {
            summary: self.summary(engine, tunnel),
            report: tunnel.report.unpack(),
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
        let silence = engine.channel_silence(link).unwrap_or_default();
        let observed = engine.link_peer(link)?;
        let machine = engine.link(link)?;
        let stats = machine.stats();
        Some(TunnelRow {
            id: tunnel.id.clone(),
            session: tunnel.session,
            shard: self.seat.id,
            observed,
            age_s: now.since(tunnel.since).as_secs(),
            idle_s: now.since(stats.last_payload.max(tunnel.since)).as_secs(),
            ports: machine.ports() as u32,
            terminals: tunnel.terminals.len() as u32,
            udp_channels: channels as u32,
            udp_channels_live: live as u32,
            udp_period_s: silence.saturating_sub(self.shared.config.dead_after).as_secs(),
            rtt_us: machine.rtt().map(|rtt| rtt.as_micros() as u64),
            bps: None,
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
            datagrams_in: stats.datagrams_in,
            datagrams_out: stats.datagrams_out,
            oversize: stats.datagrams_oversize,
            report: tunnel.report.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_names_own_offer_goes_before_the_one_for_all() {
        let offer = |name: &str, port| Offer { name: name.into(), target: SocketAddr::from(([10, 0, 0, 5], port)) };
        let offers = [offer("*", 1), offer("www.example.net", 2)];
        let found = |offers: &[Offer], name: &str| offered(offers, &name.parse().unwrap()).map(|to| to.port());
        assert_eq!(found(&offers, "www.example.net"), Some(2));
        assert_eq!(found(&offers, "other.example.net"), Some(1));
        assert_eq!(found(&offers[1..], "other.example.net"), None);
    }
}
