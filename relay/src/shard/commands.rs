//! What the management plane asks.

use isthmus_engine::{Engine, Key, What};
use isthmus_proto::link::{PortKind, Slot};
use isthmus_proto::{Code, MediatorId};

use super::{Party, Shard};
use crate::admin::rows::PORT_ROWS_MAX;
use crate::admin::{Command, PortRow, TerminalRow, TunnelDetail, TunnelFilter, TunnelRow};

/// Mediators that are told to go come back within this many milliseconds, spread evenly.
const DRAIN_SPREAD_MS: u64 = 5_000;

impl Shard {
    pub(super) fn on_command(&mut self, engine: &mut Engine, command: Command) {
        match command {
            Command::Tunnels { filter, reply } => {
                let _ = reply.send(self.rows(engine, &filter));
            }
            Command::Detail { mediator, reply } => {
                let _ = reply.send(self.detail(engine, &mediator).map(Box::new));
            }
            Command::Kill { mediator, reply } => {
                let _ = reply.send(self.kill(engine, &mediator));
            }
            Command::Names { reply } => {
                let _ = reply.send(self.names.clone());
            }
            Command::SetNames(names) => {
                self.names = names;
                self.name_turns = Vec::new();
            }
            Command::Publishes { reply } => {
                let _ = reply.send(self.publish_rows());
            }
            Command::Reload { shared, reply } => {
                self.names = shared.names.clone();
                self.take_trust(engine, shared.trust.clone());
                engine.set_times(shared.config.handshake_timeout, shared.config.udp_idle);
                self.shared = shared;
                let _ = reply.send(());
            }
            Command::Publish { ports, reply } => {
                let _ = reply.send(self.publish(engine, ports));
            }
            Command::Unpublish { ports, how, reply } => {
                let _ = reply.send(self.unpublish(engine, &ports, how));
            }
            Command::Asks { reply } => {
                if let Err((taken, _)) = reply.send(self.take_asks()) {
                    self.put_asks_back(taken);
                }
            }
            Command::Outcomes(told) => self.tell_outcomes(engine, &told),
            Command::Exposes { reply } => {
                let _ = reply.send(self.expose_rows(engine));
            }
            Command::Expose { services, reply } => {
                let _ = reply.send(self.expose(engine, services));
            }
            Command::Unexpose { servers, now, reply } => {
                let _ = reply.send(self.unexpose(engine, &servers, now));
            }
            Command::Drain { over, reply } => {
                let _ = reply.send(self.drain(engine, over));
            }
            Command::Undrain { reply } => {
                let _ = reply.send(self.undrain());
            }
            Command::Check { within, reply } => {
                let _ = reply.send(self.begin_checks(engine, within));
            }
            Command::Trust { trust, reply } => {
                let _ = reply.send(self.take_trust(engine, trust));
            }
            Command::State { reply } => {
                let _ = reply.send(self.state(engine));
            }
            Command::Flows { from, glob, reply } => {
                let _ = reply.send(self.flows(engine, from, &glob));
            }
            Command::Turn { reply } => {
                let _ = reply.send(());
            }
            Command::Stop => self.stop(engine),
        }
    }

    fn rows(&self, engine: &mut Engine, filter: &TunnelFilter) -> Vec<TunnelRow> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = filter.after.as_ref().map_or(Unbounded, Excluded);
        self.mediators
            .range::<MediatorId, _>((from, Unbounded))
            .filter(|(id, _)| filter.passes(id))
            .filter_map(|(id, _)| self.row(engine, id))
            // Behind what may leave some out: fewer than wanted means that there are no more.
            .take(filter.limit)
            .collect()
    }

    fn detail(&self, engine: &mut Engine, id: &MediatorId) -> Option<TunnelDetail> {
        let row = self.row(engine, id)?;
        let (link, tunnel) = self.tunnel_of(id)?;
        let terminal = |&key: &Key| match self.links.get(&key) {
            Some(Party::Terminal(terminal)) => {
                Some(TerminalRow { name: terminal.grant.name.clone(), observed: engine.link_peer(key) })
            }
            _ => None,
        };
        let terminals = tunnel.terminals.iter().filter_map(terminal).collect();
        let machine = engine.link(link)?;
        let port = |(slot, owner): (Slot, u64)| PortRow {
            id: slot.id().0,
            kind: if machine.kind(slot) == Some(PortKind::Udp) { "udp" } else { "tcp" }.to_owned(),
            of: owner_word(Key::from_bits(owner).what()).to_owned(),
        };
        let ports = machine.live().take(PORT_ROWS_MAX).map(port).collect();
        let ports_more = machine.ports() > PORT_ROWS_MAX;
        Some(TunnelDetail { tunnel: row, terminals, ports, ports_more })
    }

    fn kill(&mut self, engine: &mut Engine, id: &MediatorId) -> bool {
        let Some(&link) = self.mediators.get(id) else { return false };
        engine.farewell(link, Code::Killed, 0, "ended by the operator");
        engine.end_link_after_farewell(self, link, Code::Killed);
        true
    }

    fn stop(&mut self, engine: &mut Engine) {
        self.stopping = true;
        let links: Vec<_> = self.links.iter().map(|(link, party)| (link, session_of(party))).collect();
        for (link, session) in links {
            // Spread without any state: neighbours in session number come back far apart.
            let wait = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            engine.farewell(link, Code::Draining, (wait % DRAIN_SPREAD_MS) as u32, "the relay is shutting down");
            engine.end_link_after_farewell(self, link, Code::Draining);
        }
    }
}

/// For whom a port is open.
fn owner_word(what: What) -> &'static str {
    match what {
        What::Stream => "visitor",
        What::Flow => "flow",
        What::BridgeA | What::BridgeB => "terminal",
        What::Guest => "client",
        What::Udp => "association",
        What::Control | What::Link | What::Listener | What::Watch | What::Probe => "relay",
    }
}

fn session_of(party: &Party) -> u64 {
    match party {
        Party::Tunnel(tunnel) => tunnel.session,
        Party::HalfOpen(_) | Party::Leaving | Party::Terminal(_) => 0,
    }
}
