//! UDP: every size, trains of datagrams, addresses, ICMP errors, steering.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::{Random, errno, run};
use isthmus_ring::{Completion, Datagrams, Piece, PoolConfig, Ring, RingConfig, Socket, UdpOptions};

fn ring() -> Ring {
    Ring::new(RingConfig::small()).unwrap()
}

fn udp(options: UdpOptions) -> (Socket, SocketAddr) {
    let socket = Socket::udp("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// The next datagrams on `receiver`, which is armed again when the kernel ended the receive: after an empty datagram,
/// or for want of a block. Completions of sends are checked and passed over.
fn next_datagrams(ring: &mut Ring, receiver: &Socket) -> Datagrams {
    run(ring, |ring, completion, _| match completion {
        Completion::Datagrams { user, result, more } => {
            if !more {
                ring.recv_datagrams(receiver, user);
            }
            match errno(&result) {
                Some(libc::ENOBUFS) if !more => None,
                _ => Some(result.unwrap()),
            }
        }
        Completion::SentDatagrams { batch, result, .. } => {
            assert_eq!(result.unwrap(), batch.bytes());
            None
        }
        other => panic!("{other:?}"),
    })
}

#[test]
fn datagrams_of_every_size_arrive_whole_with_their_addresses() {
    let mut ring = ring();
    let (receiver, to) = udp(UdpOptions { pktinfo: true, gro: true, ..UdpOptions::default() });
    let (sender, from) = udp(UdpOptions::default());
    ring.recv_datagrams(&receiver, 1);
    let mut random = Random::new(11);
    for size in [0, 1, 2, 159, 160, 161, 1200, 1472, 1473, 9000, 16_384, 65_000, 65_506, 65_507, 0] {
        let bytes = random.bytes(size);
        let mut batch = ring.datagram_batch();
        batch.set_to(Some(to));
        let mut rest = Piece::copy_from(&bytes, 0, 0);
        if size > 10 {
            batch.push(rest.split_to(random.below(size)));
        }
        batch.push(rest);
        ring.send_datagrams(&sender, batch, 2);
        let got = next_datagrams(&mut ring, &receiver);
        assert!(*got.payload == bytes, "size {size}");
        assert_eq!((got.peer, got.local, got.segment, got.truncated), (from, Some(to.ip()), 0, false), "size {size}");
    }
    // One byte more than UDP can carry is refused, and only that.
    let mut batch = ring.datagram_batch();
    batch.set_to(Some(to));
    batch.push(Piece::copy_from(&[0; 65_508], 0, 0));
    ring.send_datagrams(&sender, batch, 3);
    run(&mut ring, |_, completion, _| match completion {
        Completion::SentDatagrams { user: 3, result, .. } => {
            assert_eq!(errno(&result), Some(libc::EMSGSIZE));
            Some(())
        }
        _ => None,
    });
}

fn send_train(ring: &mut Ring, sender: &Socket, to: SocketAddr, datagrams: &[Vec<u8>]) {
    let mut batch = ring.datagram_batch();
    batch.set_to(Some(to));
    batch.set_segment(Some(1200));
    for datagram in datagrams {
        batch.push(Piece::copy_from(datagram, 0, 0));
    }
    ring.send_datagrams(sender, batch, 2);
}

fn train() -> Vec<Vec<u8>> {
    let mut random = Random::new(12);
    (0..21).map(|n| random.bytes(if n == 20 { 700 } else { 1200 })).collect()
}

#[test]
fn a_train_is_cut_by_the_kernel_and_coalesced_again() {
    for gro in [true, false] {
        let mut ring = ring();
        let (receiver, to) = udp(UdpOptions { gro, ..UdpOptions::default() });
        let (sender, _) = udp(UdpOptions::default());
        ring.recv_datagrams(&receiver, 1);
        let train = train();
        send_train(&mut ring, &sender, to, &train);
        let (mut got, mut coalesced) = (Vec::new(), 0);
        while got.len() < train.len() {
            let datagrams = next_datagrams(&mut ring, &receiver);
            let segment = usize::from(datagrams.segment);
            coalesced += usize::from(segment > 0);
            let size = if segment > 0 { segment } else { datagrams.payload.len() };
            got.extend(datagrams.payload.chunks(size).map(<[u8]>::to_vec));
        }
        assert!(got == train, "gro {gro}");
        assert_eq!(coalesced > 0, gro, "{coalesced} trains");
    }
}

#[test]
fn an_exhausted_pool_ends_the_receive_and_a_new_one_finds_the_rest() {
    let datagram = PoolConfig { provided_max: 2, blocks_max: 2, ..RingConfig::small().datagram };
    let mut ring = Ring::new(RingConfig { datagram, ..RingConfig::small() }).unwrap();
    let (receiver, to) = udp(UdpOptions::default());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..3u8 {
        sender.send_to(&[n], to).unwrap();
    }
    ring.recv_datagrams(&receiver, 1);
    let mut held = Vec::new();
    run(&mut ring, |_, completion, _| match completion {
        Completion::Datagrams { result: Ok(datagrams), more: true, .. } => {
            held.push(datagrams.payload);
            None
        }
        Completion::Datagrams { result, more: false, .. } => {
            assert_eq!(errno(&result), Some(libc::ENOBUFS));
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(held.len(), 2);
    assert_eq!(ring.pool_stats()[2].exhausted, 1);
    held.clear();
    ring.recv_datagrams(&receiver, 1);
    assert_eq!(*next_datagrams(&mut ring, &receiver).payload, [2]);
}

#[test]
fn a_dual_stack_socket_answers_from_the_address_that_was_asked() {
    let mut ring = ring();
    let options = UdpOptions { pktinfo: true, ..UdpOptions::default() };
    let server = Socket::udp("[::]:0".parse().unwrap(), options).unwrap();
    let port = server.local_addr().unwrap().port();
    ring.recv_datagrams(&server, 1);
    for asked in ["127.0.0.1", "127.0.0.9", "::1"] {
        let asked: IpAddr = asked.parse().unwrap();
        let client = UdpSocket::bind(if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
        client.send_to(b"?", (asked, port)).unwrap();
        let got = next_datagrams(&mut ring, &server);
        assert_eq!(got.local.map(|ip| ip.to_canonical()), Some(asked));
        let mut batch = ring.datagram_batch();
        batch.set_to(Some(got.peer));
        batch.set_from(got.local);
        batch.push(Piece::copy_from(b"!", 0, 0));
        ring.send_datagrams(&server, batch, 2);
        run(&mut ring, |_, completion, _| match completion {
            Completion::SentDatagrams { result, .. } => Some(result.unwrap()),
            _ => None,
        });
        let mut answer = [0; 2];
        assert_eq!(client.recv_from(&mut answer).unwrap(), (1, (asked, port).into()));
    }
}

#[test]
fn icmp_errors_name_the_destination() {
    let mut ring = ring();
    let (socket, _) = udp(UdpOptions { recverr: true, ..UdpOptions::default() });
    // A port that was free a moment ago and whose owner is gone.
    let nobody = udp(UdpOptions::default()).1;
    assert_eq!(socket.take_udp_error(), None);
    ring.recv_datagrams(&socket, 1);
    let mut batch = ring.datagram_batch();
    batch.set_to(Some(nobody));
    batch.push(Piece::copy_from(b"anyone?", 0, 0));
    ring.send_datagrams(&socket, batch, 2);
    run(&mut ring, |_, completion, _| match completion {
        Completion::Datagrams { result, more: false, .. } => {
            assert_eq!(errno(&result), Some(libc::ECONNREFUSED));
            Some(())
        }
        _ => None,
    });
    let error = socket.take_udp_error().unwrap();
    assert_eq!((error.code, error.destination), (libc::ECONNREFUSED, nobody));
    assert_eq!(socket.take_udp_error(), None);
}

#[test]
fn a_connected_socket_sends_without_a_destination() {
    let mut ring = ring();
    let (receiver, to) = udp(UdpOptions::default());
    let (sender, from) = udp(UdpOptions::default());
    sender.connect_udp(to).unwrap();
    ring.recv_datagrams(&receiver, 1);
    for text in [&b""[..], b"hello", b""] {
        let mut batch = ring.datagram_batch();
        batch.push(Piece::copy_from(text, 0, 0));
        ring.send_datagrams(&sender, batch, 2);
        let got = next_datagrams(&mut ring, &receiver);
        assert_eq!((&*got.payload, got.peer), (text, from));
    }
}

#[test]
fn the_first_byte_chooses_the_socket() {
    for count in [1u8, 3, 4] {
        let mut ring = ring();
        let options = UdpOptions { reuse_port: true, ..UdpOptions::default() };
        let (first, to) = udp(options);
        let mut sockets = vec![first];
        sockets.extend((1..count).map(|_| Socket::udp(to, options).unwrap()));
        sockets[0].attach_reuseport_steering(count).unwrap();
        for (index, socket) in sockets.iter().enumerate() {
            ring.recv_datagrams(socket, index as u64);
        }
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for byte in 0..=255u8 {
            sender.send_to(&[byte, 9], to).unwrap();
            let (user, got) = run(&mut ring, |_, completion, _| match completion {
                Completion::Datagrams { user, result, .. } => Some((user, result.unwrap().payload[0])),
                _ => None,
            });
            assert_eq!((user, got), (u64::from(byte % count), byte));
        }
        sender.send_to(&[], to).unwrap();
        let user = run(&mut ring, |_, completion, _| match completion {
            Completion::Datagrams { user, result, .. } => Some((user, result.unwrap().payload.len())),
            _ => None,
        });
        assert_eq!(user, (0, 0), "an empty datagram goes to the first socket");
    }
}
