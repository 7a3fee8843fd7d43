//! Probes of silent plain connections. Most end sooner than any probe could go out: these are spared the system calls.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::time::Instant;
use isthmus_ring::Socket;

use crate::Engine;
use crate::key::Key;

/// When a silent plain connection is probed, how often, and how many lost probes end it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_COUNT: u32 = 6;

/// A stream that lives so long has its socket probe a silent peer.
const YOUNG_FOR: Duration = Duration::from_secs(10);

/// Streams that grow up in one turn, and how many that have ended are passed by for them: more than a turn can begin.
const GROWN_MAX: usize = 32;
const PASSED_MAX: usize = 4096;

/// Streams that are young, or have ended while they were, in the order of their age.
#[derive(Default)]
pub(crate) struct Young(VecDeque<(Instant, Key)>);

impl Young {
    pub(super) fn add(&mut self, key: Key, now: Instant) {
        self.0.push_back((now + YOUNG_FOR, key));
    }

    /// The next one that is young no more.
    fn grown(&mut self, now: Instant) -> Option<Key> {
        let &(until, key) = self.0.front()?;
        if until > now {
            return None;
        }
        self.0.pop_front();
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Some(key)
    }

    /// Whether one waits for a turn.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.0.front().is_some_and(|&(until, _)| until <= now)
    }
}

/// Has a silent peer probed. Where it cannot be set, that is all that is lost.
pub(crate) fn probe(socket: &Socket) {
    let _ = socket.set_keepalive(KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT);
}

impl Engine {
    /// A peer that vanished would hold its port for ever: sockets of streams that are young no more probe it.
    pub(crate) fn probe_grown_streams(&mut self) {
        let mut grown = 0;
        for _ in 0..PASSED_MAX {
            let Some(key) = self.young.grown(self.now) else { return };
            if let Some(stream) = self.streams.get(key) {
                probe(&stream.socket);
                grown += 1;
                if grown == GROWN_MAX {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::link::Slot;
    use isthmus_ring::{Family, Ring, RingConfig};
    use socket2::SockRef;

    use super::*;
    use crate::EngineConfig;

    #[test]
    fn streams_that_live_are_probed_a_bounded_number_a_turn() {
        let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
        let add = |engine: &mut Engine| {
            let socket = Socket::tcp(Family::V4).unwrap();
            engine.add_stream(socket, Key::control(0), Slot::NONE, 0)
        };
        let probed =
            |engine: &Engine, key| SockRef::from(&engine.streams.get(key).unwrap().socket).keepalive().unwrap();
        let begun = engine.now;
        // More than a turn's that have ended take no turn of the others.
        for _ in 0..4 * GROWN_MAX {
            let gone = add(&mut engine);
            engine.streams.remove(gone);
        }
        let keys: Vec<Key> = (0..2 * GROWN_MAX).map(|_| add(&mut engine)).collect();
        engine.now = begun + Duration::from_secs(5);
        let last = add(&mut engine);
        engine.now = begun + (YOUNG_FOR - Duration::from_nanos(1));
        engine.probe_grown_streams();
        assert!(!engine.young.is_due(engine.now) && !probed(&engine, keys[0]));
        engine.now = begun + YOUNG_FOR;
        for turn in [1, 2] {
            assert!(engine.young.is_due(engine.now));
            engine.probe_grown_streams();
            let count = keys.iter().filter(|&&key| probed(&engine, key)).count();
            assert_eq!(count, turn * GROWN_MAX);
        }
        assert!(!engine.young.is_due(engine.now) && !probed(&engine, last));
        engine.now = begun + YOUNG_FOR + Duration::from_secs(5);
        engine.probe_grown_streams();
        assert!(probed(&engine, last));
        assert_eq!(engine.young.0.capacity(), 0, "what a wave needed is given back");
    }
}
