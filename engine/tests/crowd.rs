//! Datagrams on very many sockets at once.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use isthmus_engine::{Control, Engine, EngineConfig, Event, Key, UdpRole};
use isthmus_ring::{Ring, RingConfig, Socket, UdpOptions};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);
const SOCKETS: usize = 1000;
/// To each socket: what waits in all of them, but what few buffers there are.
const DATAGRAMS: u8 = 3;

#[derive(Default)]
struct Party {
    came: HashMap<Key, Vec<u8>>,
}

impl Control for Party {
    fn on_event(&mut self, _: &mut Engine, event: Event<'_>) {
        if let Event::Stray { socket, datagram, .. } = event {
            self.came.entry(socket).or_default().push(datagram[0]);
        }
    }
    fn on_turn(&mut self, _: &mut Engine) {}
    fn has_work(&self) -> bool {
        true
    }
}

#[test]
fn all_sockets_are_read_in_order_with_few_receives_that_find_no_buffer() {
    let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
    let mut party = Party::default();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..SOCKETS {
        let socket = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
        for number in 0..DATAGRAMS {
            sender.send_to(&[number], socket.local_addr().unwrap()).unwrap();
        }
        engine.add_udp(socket, UdpRole::Stray);
    }
    let start = Instant::now();
    while party.came.values().map(Vec::len).sum::<usize>() < SOCKETS * usize::from(DATAGRAMS) {
        assert!(start.elapsed() < HANG, "{} sockets were read, {:?}", party.came.len(), engine.counts);
        engine.turn(&mut party).unwrap();
    }
    let expected: Vec<u8> = (0..DATAGRAMS).collect();
    assert!(party.came.values().all(|numbers| *numbers == expected));
    // All are armed at once, before anything is known; from then on each finds a buffer after a few tries at most, since no more
    // try in a turn than there are buffers. Else it would be dozens.
    let in_vain = engine.counts.buffers_exhausted;
    assert!(in_vain <= 5 * SOCKETS as u64, "{in_vain} in vain");
}
