//! Streams: data both ways, ends, resets, and that one does not hinder another.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use isthmus_terminal::{Code, Error, Importance};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::relay::{COUNT, Command, ECHO, HELLO, Options, RESET, Relay, SOURCE, SOURCE_BYTES, STALL, Seen};

fn host(port: u16) -> SocketAddr {
    ([10, 0, 0, 5], port).into()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 256 + seed) as u8).collect()
}

#[tokio::test]
async fn bytes_come_back_and_half_close_is_kept() {
    for plaintext in [false, true] {
        let relay = Relay::start(Options { plaintext, ..Options::default() }).await;
        let mediator = relay.attach().await;
        let mut stream = mediator.connect(host(ECHO)).await.unwrap();
        assert_eq!(stream.peer_addr(), host(ECHO));
        assert_eq!(stream.local_addr(), "10.0.0.2:50000".parse().unwrap());
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"ping");
        assert_eq!(mediator.stats().ports, 0, "both directions ended: the port is gone");
    }
}

#[tokio::test]
async fn after_the_hosts_end_the_other_direction_stays_usable() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(host(HELLO)).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"hello");
    stream.write_all(&pattern(300_000, 0)).await.unwrap();
    stream.shutdown().await.unwrap();
    relay.expect(Seen::Sunk(300_000)).await;
}

#[tokio::test]
async fn a_reset_comes_after_the_bytes_before_it_and_is_no_end() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(host(RESET)).await.unwrap();
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(all, b"hello");
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).and_then(Error::code);
    assert_eq!(inner, Some(Code::Reset));
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(stream.shutdown().await.is_err());
}

#[tokio::test]
async fn dropping_an_unfinished_stream_resets_it_and_a_finished_one_delivers_all() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(host(ECHO)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    drop(stream);
    relay.expect(Seen::Reset(Code::Reset)).await;
    let mut stream = mediator.connect(host(HELLO)).await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    stream.write_all(&pattern(1_000_000, 0)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    drop(mediator);
    relay.expect(Seen::Sunk(1_000_000)).await;
    relay.expect(Seen::Gone).await;
}

#[tokio::test]
async fn many_streams_carry_much_both_ways_at_once() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20usize {
        let mediator = mediator.clone();
        tasks.spawn(async move {
            let sent = pattern(500_000 + n * 7919, n);
            let (mut read, mut write) = mediator.connect(host(ECHO)).await.unwrap().into_split();
            let copy = sent.clone();
            let writer = tokio::spawn(async move {
                for part in copy.chunks(1 + n * 4001) {
                    write.write_all(part).await.unwrap();
                }
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got == sent, "stream {n}: {} bytes of {}", got.len(), sent.len());
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(mediator.stats().ports, 0);
}

#[tokio::test]
async fn a_stalled_reader_stops_its_own_stream_only() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    // Nobody reads this one while three megabytes want to come …
    let mut unread = mediator.connect(host(SOURCE)).await.unwrap();
    // … and nobody takes what is written to this one.
    let mut stalled = mediator.connect(host(STALL)).await.unwrap();
    stalled.write_all(&[0; 64 * 1024]).await.unwrap();
    let blocked = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut stalled).poll_write(cx, &[0]).is_pending()));
    assert!(blocked.await, "its window is full");
    let mut count = mediator.connect(host(COUNT)).await.unwrap();
    count.write_all(&pattern(2_000_000, 0)).await.unwrap();
    count.shutdown().await.unwrap();
    assert_eq!(count.read_u64().await.unwrap(), 2_000_000);
    let mut all = Vec::new();
    unread.read_to_end(&mut all).await.unwrap();
    assert!(all.iter().enumerate().all(|(n, &byte)| byte == (n % 251) as u8));
    assert_eq!(all.len(), SOURCE_BYTES);
}

#[tokio::test]
async fn accepted_connections_carry_data_and_tell_both_addresses() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let listener = mediator.listen(([10, 0, 0, 2], 8080).into(), Importance::Obligatory).await.unwrap();
    assert_eq!(listener.local_addr(), "10.0.0.2:8080".parse().unwrap());
    for n in 1..=3 {
        relay.commands.send(Command::Accept { peer: host(n) }).unwrap();
    }
    for n in 1..=3 {
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!((peer, stream.peer_addr()), (host(n), host(n)));
        assert_eq!(stream.local_addr(), "10.0.0.2:8080".parse().unwrap());
        stream.write_all(b" there").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"hi there");
    }
    relay.commands.send(Command::Accept { peer: host(9) }).unwrap();
    relay.commands.send(Command::Accept { peer: host(9) }).unwrap();
    // One was taken, one waits untaken when the listener goes.
    let (taken, _) = listener.accept().await.unwrap();
    drop(listener);
    relay.expect(Seen::Closed).await;
    drop(taken);
    relay.expect(Seen::Reset(Code::Reset)).await;
}

#[tokio::test]
async fn borrowed_halves_work_at_once() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(host(ECHO)).await.unwrap();
    let (mut read, mut write) = stream.split();
    let sent = pattern(400_000, 0);
    let mut got = vec![0; sent.len()];
    let (wrote, got_all) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
    wrote.unwrap();
    got_all.unwrap();
    assert!(got == sent);
}
