//! Datagrams over the TCP channel and over UDP channels.

use std::io::ErrorKind;
use std::net::SocketAddr;

use isthmus_terminal::{Code, Error, Importance, OpenOptions, Unreachable};

use crate::relay::{Options, Relay, Seen};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn host(port: u16) -> SocketAddr {
    ([10, 0, 0, 5], port).into()
}

#[tokio::test]
async fn datagrams_over_tcp_keep_boundaries_sizes_and_addresses() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    assert!(socket.local_addr().port() > 40_000);
    for (n, len) in [0, 1, 1400, 16_358, 16_359, 40_000, 65_507].into_iter().enumerate() {
        let sent = vec![n as u8; len];
        socket.send_to(&sent, host(100 + n as u16)).await.unwrap();
        relay.expect(Seen::Datagram { len, channel: false }).await;
        let (got, from) = socket.recv_datagram().await.unwrap();
        assert!(got == sent, "{len}");
        assert_eq!(from, host(100 + n as u16));
    }
    assert_eq!(socket.send_to(&vec![0; 65_508], host(1)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    socket.send_to(b"long", host(5)).await.unwrap();
    let mut short = [0; 2];
    assert_eq!(socket.recv_from(&mut short).await.unwrap(), (2, host(5)));
    assert_eq!(&short, b"lo");
}

#[tokio::test]
async fn redirected_datagrams_travel_over_a_channel_and_oversize_ones_over_tcp() {
    for plaintext in [false, true] {
        let mut relay = Relay::start(Options { channels: 2, plaintext, ..Options::default() }).await;
        let mediator = relay.attach().await;
        let socket = mediator.udp_redirect(ANY, Importance::Desired, false).await.unwrap();
        for len in [0usize, 1, 500, 1200] {
            socket.send_to(&vec![7; len], host(53)).await.unwrap();
            relay.expect(Seen::Datagram { len, channel: true }).await;
            let (got, from) = socket.recv_datagram().await.unwrap();
            assert_eq!((got.len(), from), (len, host(53)));
            // Both inner datagrams of the packet come, in order.
            let (count, _) = socket.recv_datagram().await.unwrap();
            assert_eq!(count, (len as u16).to_be_bytes());
        }
        socket.send_to(&[1; 3000], host(53)).await.unwrap();
        relay.expect(Seen::Datagram { len: 3000, channel: false }).await;
        assert_eq!(socket.recv_datagram().await.unwrap().0, [1; 3000]);
        assert_eq!(mediator.stats().datagrams_by_tcp, 1);
        assert!(mediator.stats().udp_channels_live > 0);
    }
}

#[tokio::test]
async fn a_live_port_switches_both_ways() {
    let mut relay = Relay::start(Options { channels: 1, ..Options::default() }).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    for redirect in [true, false, true] {
        socket.set_redirect(redirect, false).await.unwrap();
        socket.send_to(b"abc", host(53)).await.unwrap();
        relay.expect(Seen::Datagram { len: 3, channel: redirect }).await;
        assert_eq!(socket.recv_datagram().await.unwrap().0, b"abc");
        if redirect {
            assert_eq!(socket.recv_datagram().await.unwrap().0, [0, 3]);
        }
    }
}

#[tokio::test]
async fn without_a_working_channel_redirect_refuses_or_falls_back() {
    for channels in [0, 1] {
        let mut relay = Relay::start(Options { channels, deaf: true, ..Options::default() }).await;
        let mediator = relay.attach().await;
        let refused = mediator.udp_redirect(ANY, Importance::Desired, false).await;
        assert!(matches!(refused.err(), Some(Error::Refused(Code::NoUdpChannel))));
        let socket = mediator.udp_redirect(ANY, Importance::Desired, true).await.unwrap();
        socket.send_to(b"abc", host(53)).await.unwrap();
        relay.expect(Seen::Datagram { len: 3, channel: false }).await;
    }
}

#[tokio::test]
async fn an_icmp_error_is_told_and_the_socket_goes_on() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    socket.send_to(b"abc", host(1)).await.unwrap();
    let error = socket.recv_datagram().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Unreachable>());
    assert_eq!(inner.map(|inner| (inner.remote, inner.code)), Some((host(1), Code::Refused)));
    socket.send_to(b"abc", host(2)).await.unwrap();
    assert_eq!(socket.recv_datagram().await.unwrap().0, b"abc");
}

#[tokio::test]
async fn a_port_with_one_party_sends_there() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp(&OpenOptions::udp().peer(host(53))).await.unwrap();
    assert_eq!(socket.peer_addr(), Some(host(53)));
    socket.send(b"abc").await.unwrap();
    assert_eq!(socket.recv_datagram().await.unwrap(), (b"abc".to_vec(), host(53)));
}

#[tokio::test]
async fn a_full_tcp_channel_makes_senders_wait_and_loses_nothing() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    // Eight megabytes, much more than may wait; each of another length, so that the order shows.
    let send = async {
        for n in 0..2000 {
            socket.send_to(&vec![0; 3000 + n], host(53)).await.unwrap();
        }
    };
    let arrive = async {
        for n in 0..2000 {
            relay.expect(Seen::Datagram { len: 3000 + n, channel: false }).await;
        }
    };
    tokio::join!(send, arrive);
}
