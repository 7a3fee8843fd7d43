//! A private host at an exposed service by UDP: a socket of its own towards the public address, so that what comes back
//! there is for this host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use isthmus_engine::{Engine, HostSpec};
use isthmus_proto::Code;
use isthmus_proto::door::proxy_protocol::{Ends, Transport, encode};
use isthmus_ring::{Socket, UdpOptions};

use super::{Exposed, State};
use crate::admin::Counter;
use crate::shard::Shard;
use crate::shard::record::Began;

/// Most flows of all exposed services of a shard: each takes a descriptor, and one of some 28,000 port numbers of the relay.
const FLOWS_MAX: usize = 16_384;

impl Shard {
    /// A datagram of a host without a flow: it gets one, or the datagram is dropped.
    pub(in crate::shard) fn on_exposed_datagram(&mut self, engine: &mut Engine, tag: u32, host: SocketAddr) {
        let code = match self.begin_host(engine, tag, host) {
            Ok(()) => return,
            Err(code) => code,
        };
        tracing::debug!(%host, reason = code.word(), "a host's datagram to an exposed service is dropped");
        if code == Code::NoResources {
            self.counters.add(Counter::ExposedRefusedLimit, 1);
        } else {
            self.on_exposed_flow_failed(tag);
        }
    }

    fn begin_host(&mut self, engine: &mut Engine, tag: u32, host: SocketAddr) -> Result<(), Code> {
        let exposed = self.exposes.table.get_mut(tag).ok_or(Code::UnknownPort)?;
        let limit = self.shared.config.exposed_flows_max as usize;
        if engine.is_overcommitted() || !has_room(engine.hosts_of(tag), limit, self.exposes.flows) {
            return Err(Code::NoResources);
        }
        let target = exposed.expose.target;
        let socket = socket_for(target).map_err(|_| Code::NoResources)?;
        // It sends nothing: what fails is the way there.
        socket.connect_udp(target).map_err(|error| super::host::code_of(&error))?;
        let ahead = exposed.header_for(host);
        let flow = engine.add_host(HostSpec { tag, host, socket, target, ahead }).ok_or(Code::UnknownPort)?;
        let server = &exposed.expose.server;
        let door = || format!("exposed {server}");
        self.recording.begin(flow, || Began::new(&door(), &server.mediator, host, target, engine.now()));
        exposed.connections_live += 1;
        exposed.connections_total += 1;
        self.exposes.flows += 1;
        self.counters.add(Counter::ExposedFlowsTotal, 1);
        self.counters.add(Counter::ExposedFlowsLive, 1);
        Ok(())
    }

    /// The public address, or the way there, does not take a host's datagrams.
    pub(in crate::shard) fn on_exposed_flow_failed(&mut self, tag: u32) {
        self.counters.add(Counter::ExposedFailed, 1);
        if let Some(exposed) = self.exposes.table.get_mut(tag) {
            exposed.connections_failed += 1;
        }
    }

    pub(in crate::shard) fn on_exposed_flow_ended(&mut self, tag: u32) {
        self.exposes.flows -= 1;
        self.counters.sub(Counter::ExposedFlowsLive, 1);
        if let Some(exposed) = self.exposes.table.get_mut(tag) {
            exposed.connections_live -= 1;
        }
    }
}

impl Exposed {
    /// What begins a flow's first datagram.
    fn header_for(&self, host: SocketAddr) -> Box<[u8]> {
        let Some(version) = self.expose.options.proxy else { return Box::default() };
        let target = match self.state {
            State::Opening { bound: Some(bound), .. } | State::Open { bound, .. } => bound,
            State::Opening { bound: None, .. } | State::Away | State::Refused { .. } => self.expose.server.listen,
        };
        encode(version, Transport::Datagram, Ends { source: host, target }).into()
    }
}

/// Whether one more flow keeps to the bounds of its service and of the shard.
fn has_room(of_service: usize, limit: usize, of_shard: usize) -> bool {
    of_service < limit && of_shard < FLOWS_MAX
}

fn socket_for(target: SocketAddr) -> io::Result<Socket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Socket::udp(SocketAddr::new(any, 0), UdpOptions { gro: true, ..UdpOptions::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_bounded_for_each_service_and_for_the_shard() {
        assert!(has_room(9, 10, FLOWS_MAX - 1));
        assert!(!has_room(10, 10, FLOWS_MAX - 1));
        assert!(!has_room(9, 10, FLOWS_MAX));
    }

    #[test]
    fn socket_of_a_flow_speaks_the_targets_family() {
        for target in ["127.0.0.1:9", "[::1]:9"] {
            let target: SocketAddr = target.parse().unwrap();
            let local = socket_for(target).unwrap().local_addr().unwrap();
            assert_eq!((local.is_ipv4(), local.port() > 0), (target.is_ipv4(), true));
        }
    }
}
