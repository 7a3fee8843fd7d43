//! Datagrams at the socket of a SOCKS5 client's association, from whoever.

use std::net::UdpSocket;
use std::rc::Rc;
use std::time::{Duration, Instant};

use isthmus_engine::{AssociationSpec, Control, Engine, EngineConfig, Event, Key};
use isthmus_proto::Code;
use isthmus_proto::link::{Link, LinkConfig, Maintain, Side, UNSPECIFIED};
use isthmus_proto::time::Instant as Time;
use isthmus_proto::wire::OpenFlags;
use isthmus_ring::{Piece, Ring, RingConfig, Socket, UdpOptions};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Party {
    ended: Option<Code>,
}

impl Control for Party {
    fn on_event(&mut self, _: &mut Engine, event: Event<'_>) {
        if let Event::PortEnded { code, .. } = event {
            self.ended = Some(code);
        }
    }
    fn on_turn(&mut self, _: &mut Engine) {}
    fn has_work(&self) -> bool {
        true
    }
}

#[test]
fn what_is_refused_counts_as_no_traffic() {
    let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
    let mut party = Party::default();
    // A port of a link that is not there any more: nothing travels on.
    let config = LinkConfig { side: Side::Requester, ports_max: 4, maintain: Maintain::Relay { silence: HANG } };
    let mut gone = Link::<Piece>::new(config, Time(1));
    let slot = gone.open(0, 0, OpenFlags(OpenFlags::UDP), UNSPECIFIED, None, Time(1)).unwrap();
    let socket = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let permits = Rc::new(|to: std::net::SocketAddr| to.port() == 53);
    let spec = AssociationSpec {
        client: client.local_addr().unwrap().ip(),
        client_port: client.local_addr().unwrap().port(),
        link: Key::control(0),
        slot,
        permits,
    };
    let key = engine.add_association(socket, spec);
    engine.association_opened(key);
    let to = engine.udp_addr(key).unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = |port: u8| [0, 0, 0, 1, 10, 0, 0, 1, 0, port, b'x'];
    for (sender, bytes) in [(&stranger, datagram(53)), (&client, datagram(54)), (&client, [0xff; 11])] {
        sender.send_to(&bytes, to).unwrap();
    }
    client.send_to(&datagram(53), to).unwrap();
    let start = Instant::now();
    while engine.counts.associations_refused + engine.counts.associations_fragments < 3
        || engine.counts.datagrams_in < 1
    {
        assert!(start.elapsed() < HANG, "{:?}", engine.counts);
        engine.turn(&mut party).unwrap();
    }
    assert_eq!(engine.counts.datagrams_in, 1);
    assert_eq!(party.ended, None);
}
