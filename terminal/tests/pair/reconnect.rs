//! A lost connection comes back, and what outlives it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::wire::OpenFlags;
use isthmus_terminal::{Backoff, Code, Config, Error, Importance, Mediator, Relay as Asked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::relay::{Command, ECHO, Options, Relay, SILENT, Seen};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn host(port: u16) -> SocketAddr {
    ([10, 0, 0, 5], port).into()
}

/// With short waits between tries, and all the time for requests.
fn config(relay: &Relay) -> Config {
    relay
        .config()
        .reconnect(Backoff::new(Duration::from_millis(1), Duration::from_millis(20)))
        .link_timeout(Duration::from_secs(60))
}

async fn attach(config: &Config) -> Mediator {
    Mediator::attach(config, "cpe-1".parse().unwrap()).await.unwrap()
}

/// The error of this crate that an I/O error has within.
fn inner(error: &std::io::Error) -> &Error {
    error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap()
}

async fn echo(mediator: &Mediator) -> Result<(), Error> {
    let mut stream = mediator.connect(host(ECHO)).await?;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_and_restarted_is_found_again_and_streams_of_before_end_typed() {
    for plaintext in [false, true] {
        let mut relay = Relay::start(Options { plaintext, ..Options::default() }).await;
        let mediator = attach(&config(&relay)).await;
        for round in 1..=3 {
            let mut stream = mediator.connect(host(ECHO)).await.unwrap();
            let waiting = tokio::spawn({
                let mediator = mediator.clone();
                async move { mediator.connect(host(SILENT)).await.err().unwrap() }
            });
            // Both requests are there.
            for _ in 0..2 {
                relay.expect(Seen::Opened(OpenFlags::QUIET)).await;
            }
            relay.stop().await;
            assert!(matches!(mediator.disconnected().await, Error::Lost { code: Code::ConnectionLost, .. }));
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            assert!(matches!(inner(&error), Error::Lost { .. }), "{error}");
            let error = stream.write_all(b"x").await.unwrap_err();
            assert!(matches!(inner(&error), Error::Lost { .. }), "{error}");
            assert!(matches!(waiting.await.unwrap(), Error::Lost { .. }));
            assert!(!mediator.is_connected() && !mediator.is_closed());
            relay.restart().await;
            mediator.connected().await.unwrap();
            echo(&mediator).await.unwrap();
            assert_eq!(mediator.stats().reconnects, round);
            assert!(stream.read_u8().await.is_err(), "a stream of before stays lost");
        }
    }
}

#[tokio::test]
async fn a_request_waits_for_the_connection_or_fails_typed_at_its_deadline() {
    let mut relay = Relay::start(Options::default()).await;
    let hasty = attach(&config(&relay).link_timeout(Duration::from_millis(30))).await;
    relay.stop().await;
    hasty.disconnected().await;
    let error = echo(&hasty).await.unwrap_err();
    assert!(matches!(&error, Error::NotConnected { .. }), "{error}");
    assert!(error.is_transient());
    assert!(matches!(hasty.info().await, Err(Error::NotConnected { .. })));
    assert!(matches!(hasty.listen(ANY, Importance::Desired).await, Err(Error::NotConnected { .. })));
    drop(hasty);
    relay.restart().await;
    let patient = attach(&config(&relay)).await;
    relay.stop().await;
    patient.disconnected().await;
    let mut waiting = Box::pin(echo(&patient));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    relay.restart().await;
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_relay_alone_is_found_again() {
    let mut relay = Relay::start(Options::default()).await;
    let asked = Asked::connect(&config(&relay)).await.unwrap();
    relay.stop().await;
    relay.restart().await;
    // The first try may still meet the old connection.
    while let Err(error) = asked.list().await {
        assert!(matches!(error, Error::Lost { .. }), "{error}");
    }
    assert!(asked.is_connected());
}

#[tokio::test]
async fn a_listener_listens_again_at_its_number_and_accept_goes_on() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = attach(&config(&relay)).await;
    for (local, importance) in [("10.0.0.2:8080", Importance::Obligatory), ("10.0.0.2:0", Importance::Desired)] {
        let listener = mediator.listen(local.parse().unwrap(), importance).await.unwrap();
        let local = listener.local_addr();
        relay.expect(Seen::Served(local)).await;
        let accepting = tokio::spawn(async move {
            let (mut stream, peer) = listener.accept().await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            (listener, peer, all)
        });
        relay.stop().await;
        relay.restart().await;
        relay.expect(Seen::Served(local)).await;
        relay.commands.send(Command::Accept { peer: host(99) }).unwrap();
        let (listener, peer, all) = accepting.await.unwrap();
        assert_eq!((peer, all.as_slice(), listener.local_addr()), (host(99), &b"hi"[..], local));
    }
}

#[tokio::test]
async fn a_number_that_is_still_taken_is_tried_until_it_is_free() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = attach(&config(&relay)).await;
    let listener = mediator.listen(([10, 0, 0, 2], 8080).into(), Importance::Obligatory).await.unwrap();
    relay.expect(Seen::Served(listener.local_addr())).await;
    relay.stop().await;
    *relay.refusals.lock().unwrap() = vec![Code::AddressInUse; 2];
    relay.restart().await;
    relay.expect(Seen::Served(listener.local_addr())).await;
    assert!(relay.refusals.lock().unwrap().is_empty());
    relay.commands.send(Command::Accept { peer: host(99) }).unwrap();
    assert_eq!(listener.accept().await.unwrap().1, host(99));
}

#[tokio::test]
async fn a_listener_that_may_not_come_back_says_so_until_a_later_connection_lets_it() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = attach(&config(&relay)).await;
    let listener = mediator.listen(([10, 0, 0, 2], 8080).into(), Importance::Obligatory).await.unwrap();
    relay.expect(Seen::Served(listener.local_addr())).await;
    relay.stop().await;
    relay.refusals.lock().unwrap().push(Code::NotPermitted);
    relay.restart().await;
    for _ in 0..2 {
        assert!(matches!(listener.accept().await, Err(Error::Refused(Code::NotPermitted))));
    }
    relay.stop().await;
    relay.restart().await;
    relay.expect(Seen::Served(listener.local_addr())).await;
    relay.commands.send(Command::Accept { peer: host(99) }).unwrap();
    // The refusal is its answer until the new port is known here.
    let peer = loop {
        match listener.accept().await {
            Ok((_, peer)) => break peer,
            Err(error) => assert!(matches!(error, Error::Refused(Code::NotPermitted)), "{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(peer, host(99));
}

#[tokio::test]
async fn a_listener_that_found_another_number_tells_it() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = attach(&config(&relay)).await;
    let listener = mediator.listen(([10, 0, 0, 2], 0).into(), Importance::Desired).await.unwrap();
    let before = listener.local_addr();
    let moved = tokio::spawn(async move { listener.moved_from(before).await });
    relay.stop().await;
    relay.move_desired = true;
    relay.restart().await;
    assert_eq!(moved.await.unwrap(), SocketAddr::new(before.ip(), before.port() + 1));
}

#[tokio::test]
async fn udp_sockets_come_back_in_their_mode_and_go_on() {
    let mut relay = Relay::start(Options { channels: 1, ..Options::default() }).await;
    let mediator = attach(&config(&relay)).await;
    let plain = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    let switched = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    switched.set_redirect(true, true).await.unwrap();
    for (socket, flags) in
        [(plain, OpenFlags::UDP), (switched, OpenFlags::UDP | OpenFlags::REDIRECT | OpenFlags::FALLBACK)]
    {
        let local = socket.local_addr();
        let mut reading = Box::pin(socket.recv_datagram());
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(reading.as_mut().poll(cx).is_pending())).await);
        relay.stop().await;
        mediator.disconnected().await;
        relay.restart().await;
        relay.expect(Seen::Opened(flags)).await;
        socket.send_to(b"abc", host(53)).await.unwrap();
        assert_eq!(reading.await.unwrap(), (b"abc".to_vec(), host(53)));
        assert_eq!(socket.local_addr().port(), local.port());
    }
}

#[tokio::test]
async fn an_error_that_waiting_does_not_cure_ends_everything_with_its_code() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = attach(&config(&relay)).await;
    let listener = mediator.listen(ANY, Importance::Desired).await.unwrap();
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    // One that waiting cures comes first.
    relay.commands.send(Command::Cut).unwrap();
    relay.expect(Seen::Gone).await;
    mediator.connected().await.unwrap();
    relay.commands.send(Command::Goodbye(Code::TokenExpired)).unwrap();
    assert_eq!(mediator.closed().await.code(), Some(Code::TokenExpired));
    assert!(mediator.is_closed() && !mediator.is_connected());
    assert_eq!(listener.accept().await.err().unwrap().code(), Some(Code::TokenExpired));
    assert_eq!(inner(&socket.recv_datagram().await.unwrap_err()).code(), Some(Code::TokenExpired));
    assert_eq!(inner(&socket.send_to(b"x", host(1)).await.unwrap_err()).code(), Some(Code::TokenExpired));
    assert_eq!(echo(&mediator).await.unwrap_err().code(), Some(Code::TokenExpired));
    assert_eq!(mediator.connected().await.unwrap_err().code(), Some(Code::TokenExpired));
}

#[tokio::test]
async fn every_task_ends_with_the_last_handle_connected_or_not() {
    let mut relay = Relay::start(Options { channels: 2, ..Options::default() }).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let idle = tasks();
    for stopped in [false, true] {
        let mediator = attach(&config(&relay)).await;
        let listener = mediator.listen(ANY, Importance::Desired).await.unwrap();
        let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
        assert!(tasks() > idle);
        if stopped {
            relay.stop().await;
            mediator.disconnected().await;
        }
        drop(mediator);
        drop((listener, socket));
        // The relay's own task is gone, too.
        while tasks() > idle - usize::from(stopped) {
            tokio::task::yield_now().await;
        }
    }
}
