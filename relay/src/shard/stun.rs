//! Questions about the way, from whoever has no session yet: see [`isthmus_proto::stun`].

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_engine::{Engine, Key, UdpRole};
use isthmus_proto::stun::{StunAnswer, StunQuestion};
use isthmus_proto::time::Instant;
use isthmus_ring::{Socket, UdpOptions};

use super::Shard;
use crate::admin::Counter;

/// Answers of a shard in a second. Doctors ask a few times each; who asks for more is no doctor.
const ANSWERS_MAX: u32 = 200;

/// What a shard needs for its answers.
#[derive(Default)]
pub(super) struct Stun {
    /// A socket of any other number, to answer from and to be asked at.
    other: Option<Key>,
    /// When the second began of which `made` were made.
    since: Instant,
    made: u32,
}

impl Stun {
    /// Opens the other socket. Without one there are answers from the service port alone.
    pub(super) fn new(engine: &mut Engine, service: SocketAddr) -> Self {
        let any = SocketAddr::new(service.ip(), 0);
        let other = match Socket::udp(any, UdpOptions::default()) {
            Ok(socket) => Some(engine.add_udp(socket, UdpRole::Stray)),
            Err(error) => {
                tracing::warn!(%error, "no second UDP port: doctors cannot tell what NATs map and filter");
                None
            }
        };
        let listen = other.and_then(|key| engine.udp_addr(key)).map(tracing::field::display);
        tracing::info!(listen, "questions about the way are answered at a second UDP port, too");
        Self { other, ..Self::default() }
    }

    fn may_answer(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.made) = (now, 0);
        }
        self.made = self.made.saturating_add(1);
        self.made <= ANSWERS_MAX
    }
}

impl Shard {
    pub(super) fn on_stray(&mut self, engine: &mut Engine, socket: Key, from: SocketAddr, datagram: &[u8]) {
        let Some(question) = StunQuestion::parse(datagram) else {
            engine.counts.datagrams_unknown_channel += 1;
            return;
        };
        if !self.stun.may_answer(engine.now()) {
            self.counters.add(Counter::StunRefusedLimit, 1);
            return;
        }
        // Of the two sockets, the one that was not asked.
        let other = if Some(socket) == self.stun.other { Some(self.service_udp) } else { self.stun.other };
        let answer = StunAnswer {
            transaction: question.transaction,
            mapped: SocketAddr::new(from.ip().to_canonical(), from.port()),
            other_port: other.and_then(|key| engine.udp_addr(key)).map(|address| address.port()),
        };
        let at = if question.change_port { other } else { Some(socket) };
        let (Some(answer), Some(at)) = (answer.encode(datagram.len()), at) else {
            engine.counts.datagrams_unknown_channel += 1;
            return;
        };
        self.counters.add(Counter::StunAnswered, 1);
        let to = SocketAddr::new(from.ip(), question.response_port.unwrap_or(from.port()));
        engine.send_stray(at, to, &answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_in_each_second() {
        let mut stun = Stun::default();
        for second in 1..4 {
            let start = second * 1_000_000_000;
            let made = (0..1000).filter(|n| stun.may_answer(Instant(start + n * 900_000))).count();
            assert_eq!(made, ANSWERS_MAX as usize);
        }
    }
}
