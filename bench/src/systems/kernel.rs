//! The ceilings, which no process carries, and the hole in the NAT that one-hop peers need.

use std::net::SocketAddr;

use crate::systems::{Carries, Running, SINK_PORT, Site, System};
use crate::world::{Role, SOON};

/// From the mediator's machine to the public sink: what the gateway's masquerade lets through without help.
pub(super) struct Direct;

/// From the visitor's machine to the private host, by a rule of the gateway.
pub(super) struct Dnat;

const BOTH: Carries = Carries { tcp: true, udp: true, encrypted: false };

impl System for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn carries(&self) -> Carries {
        BOTH
    }

    fn start(&self, _: &Site<'_>) -> anyhow::Result<Running> {
        let sink = Some((Role::Public.address(), SINK_PORT).into());
        Ok(Running { from: Role::Private, ..Running::at(sink, sink) })
    }
}

impl System for Dnat {
    fn name(&self) -> &'static str {
        "dnat"
    }

    fn carries(&self) -> Carries {
        BOTH
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let hole = Some(open_hole(site)?);
        Ok(Running::at(hole, hole))
    }
}

/// Makes the gateway forward a port of its public address to the private host's sink; once is enough for all.
pub(super) fn open_hole(site: &Site<'_>) -> anyhow::Result<SocketAddr> {
    let chain = site.world.run(Role::Gateway, "nft", ["list", "chain", "inet", "gateway", "forward"], SOON)?;
    if !chain.contains("dnat") {
        site.world.rules(Role::Gateway, &rules(site.sink()))?;
    }
    Ok((Role::Gateway.address(), SINK_PORT).into())
}

fn rules(sink: SocketAddr) -> String {
    format!(
        "table ip hole {{
    chain prerouting {{
        type nat hook prerouting priority -100; policy accept;
        ip daddr {public} tcp dport {SINK_PORT} dnat to {sink}
        ip daddr {public} udp dport {SINK_PORT} dnat to {sink}
    }}
}}
insert rule inet gateway forward ct status dnat accept
",
        public = Role::Gateway.address()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hole_leads_both_protocols_to_the_sink() {
        let rules = rules("10.77.0.3:7000".parse().unwrap());
        for proto in ["tcp", "udp"] {
            assert!(rules.contains(&format!("198.51.100.10 {proto} dport 7000 dnat to 10.77.0.3:7000")), "{rules}");
        }
    }
}
