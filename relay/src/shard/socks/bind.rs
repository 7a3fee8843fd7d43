//! BIND: a server on the mediator for one connection, by which a host calls the client back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use isthmus_engine::{Engine, Key};
use isthmus_proto::Code;
use isthmus_proto::door::target::{Host, Target};
use isthmus_proto::hello::Report;
use isthmus_proto::link::{Slot, UNSPECIFIED};
use isthmus_proto::wire::{OpenFlags, RequestKind};

use super::{Client, Wants, close_port};
use crate::shard::Shard;
use crate::trust::{Grant, Operation};

/// How long a host may take to connect.
const WAIT: Duration = Duration::from_secs(180);

pub(super) fn begin(
    engine: &mut Engine,
    guest: Key,
    link: Key,
    asker: u16,
    target: &Target,
    grant: &Grant,
) -> Result<(Slot, Wants), Code> {
    if !grant.permits(Operation::Open) || !grant.permits(Operation::Listen) {
        return Err(Code::NotPermitted);
    }
    // A host given by name is not known by its address here, so that any may connect.
    let from = match target.host {
        Host::Ip(ip) if !ip.is_unspecified() => Some(ip),
        Host::Ip(_) | Host::Name(_) => None,
    };
    let now = engine.now();
    let machine = engine.link(link).ok_or(Code::MediatorAway)?;
    let slot = machine.open_as(asker, guest.to_bits(), 0, OpenFlags(0), UNSPECIFIED, None, now)?;
    Ok((slot, Wants::Bind { from, bound: None }))
}

impl Shard {
    /// The port is open, or serves: then the client is told where.
    pub(super) fn on_bind_answer(&mut self, engine: &mut Engine, guest: Key, to: RequestKind, local: SocketAddr) {
        let Some(Client::Asking(asking)) = self.proxies.clients.get_mut(&guest) else { return };
        let Wants::Bind { from, bound } = &mut asking.wants else { return };
        match to {
            RequestKind::Open => {
                *bound = Some(local);
                if let Some(machine) = engine.link(asking.link) {
                    machine.serve(asking.slot, 0);
                    engine.touch(asking.link);
                }
            }
            RequestKind::Serve => {
                let number = bound.map_or(0, |bound| bound.port());
                let (from, mediator, proxy) = (*from, asking.mediator.clone(), asking.proxy.clone());
                let report = self.tunnel_of(&mediator).map(|(_, tunnel)| tunnel.report.unpack()).unwrap_or_default();
                let reply = proxy.granted(SocketAddr::new(own_address(&report, from), number));
                engine.reply_guest(guest, &reply);
                engine.set_guest_timeout(guest, Some(WAIT));
            }
            RequestKind::Connect | RequestKind::Close | RequestKind::Switch => {}
        }
    }

    /// A host connected to a client's server.
    pub(in crate::shard) fn on_bind_accepted(
        &mut self,
        engine: &mut Engine,
        link: Key,
        guest: Key,
        slot: Slot,
        peer: SocketAddr,
    ) {
        let expected = match self.proxies.clients.get(&guest) {
            Some(Client::Asking(asking)) => match asking.wants {
                Wants::Bind { from, .. } => from.is_none_or(|from| from == peer.ip().to_canonical()),
                Wants::Connect | Wants::Associate { .. } => false,
            },
            _ => false,
        };
        if !expected {
            // Somebody else than whom the client waits for.
            if let Some(machine) = engine.link(link) {
                machine.reset(slot, Code::NotPermitted);
                engine.touch(link);
            }
            return;
        }
        let Some(Client::Asking(asking)) = self.proxies.clients.remove(&guest) else { return };
        close_port(engine, link, asking.slot);
        let reply = asking.proxy.granted(peer);
        self.admit_client(engine, guest, &asking, slot, &reply);
    }
}

/// The mediator's address by which a host reaches it: in the host's own subnet, if there is one.
fn own_address(report: &Report, towards: Option<IpAddr>) -> IpAddr {
    let nets = || report.interfaces.iter().flat_map(|interface| &interface.addresses);
    let near = towards.and_then(|ip| nets().find(|net| net.contains(&ip)));
    let usable = |net: &&ipnet::IpNet| !net.addr().is_loopback();
    let alike = nets().filter(usable).find(|net| towards.is_none_or(|ip| ip.is_ipv4() == net.addr().is_ipv4()));
    near.or(alike).or_else(|| nets().next()).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |net| net.addr())
}

#[cfg(test)]
mod tests {
    use isthmus_proto::hello::Interface;

    use super::*;

    #[test]
    fn hosts_are_told_the_address_in_their_own_subnet() {
        let addresses = ["127.0.0.1/8", "10.1.0.2/24", "192.168.7.2/24", "fd00::2/64"];
        let addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        let report =
            Report { interfaces: vec![Interface { name: "e".into(), mtu: 1500, addresses }], ..Report::default() };
        for (towards, own) in [
            (Some("192.168.7.9"), "192.168.7.2"),
            (Some("8.8.8.8"), "10.1.0.2"),
            (Some("2001:db8::1"), "fd00::2"),
            (Some("127.0.0.5"), "127.0.0.1"),
            (None, "10.1.0.2"),
        ] {
            let towards = towards.map(|ip| ip.parse().unwrap());
            assert_eq!(own_address(&report, towards), own.parse::<IpAddr>().unwrap(), "{towards:?}");
        }
        assert!(own_address(&Report::default(), None).is_unspecified());
    }
}
