//! Datagrams that anybody can send, under the names of live channels.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use isthmus_engine::{Control, Engine, EngineConfig, Event, Key, UdpRole};
use isthmus_proto::record::{DATAGRAM_OVERHEAD, UdpSecret};
use isthmus_proto::{ChannelId, ShardId};
use isthmus_ring::{Ring, RingConfig, Socket, UdpOptions};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);

struct Nobody;

impl Control for Nobody {
    fn on_event(&mut self, _: &mut Engine, _: Event<'_>) {}
    fn on_turn(&mut self, _: &mut Engine) {}
    fn has_work(&self) -> bool {
        true
    }
}

/// The head that [`isthmus_proto::record`] draws, and zeros in place of what is sealed.
fn forged(channel: ChannelId, epoch: u8, packet: u64) -> Vec<u8> {
    let mut bytes = vec![0; DATAGRAM_OVERHEAD + 8];
    bytes[1] = epoch;
    bytes[4..8].copy_from_slice(&channel.0.to_be_bytes());
    bytes[8..16].copy_from_slice(&packet.to_be_bytes());
    bytes
}

#[test]
fn claims_of_new_epochs_make_few_keys_and_other_epochs_none() {
    let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
    let service = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
    let service = engine.add_udp(service, UdpRole::Service);
    let to = engine.udp_addr(service).unwrap();
    let secret = UdpSecret::new([7; 32].into());
    let channels: Vec<ChannelId> = (0..2000)
        .map(|_| engine.add_relay_channel(Key::control(0), service, ShardId(0), &secret, HANG).unwrap())
        .collect();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let mut sent = 0;
    let mut send = |engine: &mut Engine, epoch: u8| {
        for &channel in &channels {
            sent += 1;
            sender.send_to(&forged(channel, epoch, sent), to).unwrap();
            while engine.counts.datagrams_forged + engine.counts.datagrams_epoch_limited < sent {
                assert!(start.elapsed() < HANG, "{:?} of {sent}", engine.counts);
                engine.turn(&mut Nobody).unwrap();
            }
        }
    };
    send(&mut engine, 2);
    assert_eq!(engine.counts.datagrams_epoch_limited, 0);
    send(&mut engine, 1);
    let seconds = start.elapsed().as_secs() + 2;
    let made = engine.counts.datagrams_forged - 2000;
    assert!(made <= 256 * seconds, "{made} in {seconds} s");
    assert_eq!(made + engine.counts.datagrams_epoch_limited, 2000);
}
