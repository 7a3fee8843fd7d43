//! What the management plane asks.

use isthmus_engine::Engine;
use isthmus_proto::{Code, MediatorId};

use super::{Party, Shard};
use crate::admin::{Command, TunnelFilter, TunnelRow};

/// Mediators that are told to go come back within this many milliseconds, spread evenly.
const DRAIN_SPREAD_MS: u64 = 5_000;

impl Shard {
    pub(super) fn on_command(&mut self, engine: &mut Engine, command: Command) {
        match command {
            Command::Tunnels { filter, reply } => {
                let _ = reply.send(self.rows(engine, &filter));
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
            Command::Check { reply } => {
                let _ = reply.send(self.begin_checks(engine));
            }
            Command::Trust { trust, reply } => {
                let _ = reply.send(self.take_trust(engine, trust));
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
            .take(filter.limit)
            .filter_map(|(id, _)| self.row(engine, id))
            .collect()
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

fn session_of(party: &Party) -> u64 {
    match party {
        Party::Tunnel(tunnel) => tunnel.session,
        Party::HalfOpen(_) | Party::Leaving | Party::Terminal(_) => 0,
    }
}
