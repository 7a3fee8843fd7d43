//! Sockets of channels that have ended. Nobody waits for one to be closed, and it costs more than most of what a turn does (the
//! receive that is armed on it has to be found among all others), so it waits until a return has passed: when a relay restarts,
//! all of a process's channels end at once, just as all are on their way back. What comes to one meanwhile is dropped.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::time::Instant;

use super::UdpSocket;
use crate::Engine;
use crate::key::Key;

/// How long such a socket is kept, unless a new channel comes sooner: then the oldest one goes for it.
const SPENT_FOR: Duration = Duration::from_secs(10);

/// Those that are closed in one turn.
const CLOSED_MAX: usize = 32;

/// In the order of their end.
#[derive(Default)]
pub(crate) struct Spent(VecDeque<(Instant, UdpSocket)>);

impl Spent {
    fn next(&mut self) -> Option<UdpSocket> {
        let (_, udp) = self.0.pop_front()?;
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Some(udp)
    }

    /// Whether one is to be closed.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| until <= now)
    }

    /// When the next one is to be closed.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.0.front().map(|&(until, _)| until)
    }
}

impl Engine {
    /// Nobody reads from the socket any more, nor sends: it is closed later.
    pub(crate) fn spend_udp(&mut self, key: Key) {
        if let Some(udp) = self.sockets.remove(key) {
            self.spent.0.push_back((self.now + SPENT_FOR, udp));
        }
    }

    /// Closes the oldest one, so that of them and of new ones there are no more than there were, and what one turn opens: the ring
    /// closes at its next entry.
    pub(crate) fn replace_spent(&mut self) {
        if let Some(udp) = self.spent.next() {
            self.close_udp(udp);
        }
    }

    /// Closes those that nobody came for.
    pub(crate) fn close_spent(&mut self) {
        for _ in 0..CLOSED_MAX {
            if !self.spent.is_due(self.now) {
                return;
            }
            self.replace_spent();
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::link::ChannelClock;
    use isthmus_proto::record::UdpSecret;
    use isthmus_proto::{ChannelId, ShardId};
    use isthmus_ring::{Ring, RingConfig, Socket, UdpOptions};

    use super::*;
    use crate::event::{Control, Event};
    use crate::{Engine, EngineConfig};

    struct Nobody;

    impl Control for Nobody {
        fn on_event(&mut self, _: &mut Engine, _: Event<'_>) {}

        fn on_turn(&mut self, _: &mut Engine) {}

        fn has_work(&self) -> bool {
            true
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn add(engine: &mut Engine) -> u16 {
        let socket = Socket::udp(([127, 0, 0, 1], 0).into(), UdpOptions::default()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let secret = UdpSecret::new([7; 32].into());
        let clock = ChannelClock::new(SECOND, SECOND);
        engine.add_caller_channel(Key::control(0), socket, ShardId(0), ChannelId(1), &secret, clock).unwrap();
        port
    }

    /// A socket whose receive is still armed would keep its port.
    fn closed(engine: &mut Engine, ports: &[u16]) -> usize {
        for _ in 0..10 {
            engine.ring.enter(Some(Duration::ZERO), || true).unwrap();
            while engine.ring.next(&mut Vec::new()).is_some() {}
        }
        ports.iter().filter(|&&port| std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()).count()
    }

    #[test]
    fn sockets_of_ended_channels_go_when_new_ones_come_or_after_a_while_a_few_a_turn() {
        let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
        let ports: Vec<u16> = (0..CLOSED_MAX + 3).map(|_| add(&mut engine)).collect();
        let indexes: Vec<u32> = (0..ports.len() as u32).collect();
        engine.end_channels(&indexes);
        assert_eq!((engine.sockets.len(), closed(&mut engine, &ports)), (0, 0));
        let due = engine.spent.until().unwrap();
        // By the turns' own clock, it is woken when the first is due, and not only after the longest sleep.
        engine.start -= SPENT_FOR - 2 * SECOND;
        let sleep = engine.sleep_for();
        assert!(sleep <= 2 * SECOND && sleep > SECOND, "{sleep:?}");
        add(&mut engine);
        assert_eq!((closed(&mut engine, &ports), engine.spent.until()), (1, Some(due)));
        engine.now = engine.now + (SPENT_FOR - Duration::from_nanos(1));
        engine.close_spent();
        assert_eq!(closed(&mut engine, &ports), 1);
        engine.start -= 2 * SECOND;
        engine.turn(&mut Nobody).unwrap();
        assert!(engine.spent.is_due(engine.now));
        assert_eq!(closed(&mut engine, &ports), 1 + CLOSED_MAX);
        engine.turn(&mut Nobody).unwrap();
        assert_eq!(closed(&mut engine, &ports), ports.len());
        assert_eq!(engine.spent.0.capacity(), 0, "what a wave needed is given back");
        assert_eq!(engine.sockets.len(), 1);
    }
}
