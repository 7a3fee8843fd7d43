//! A future that is dropped half-way loses nothing and leaves nothing.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use isthmus_terminal::{Code, Importance, Mediator, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::relay::{Command, ECHO, HELLO, Options, Relay, SILENT, STALL, Seen};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn host(port: u16) -> SocketAddr {
    ([10, 0, 0, 5], port).into()
}

/// Lets a future begin to wait.
async fn begin<F: Future>(mut future: Pin<&mut F>) {
    assert!(poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await, "it waits");
}

async fn until_ports(mediator: &Mediator, ports: usize) {
    while mediator.stats().ports != ports {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn dropped_accepts_lose_no_connection() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let listener = mediator.listen(ANY, Importance::Desired).await.unwrap();
    for n in 1..=20 {
        let (mut first, mut second) = (Box::pin(listener.accept()), Box::pin(listener.accept()));
        begin(first.as_mut()).await;
        begin(second.as_mut()).await;
        relay.commands.send(Command::Accept { peer: host(n) }).unwrap();
        until_ports(&mediator, 2).await;
        // The one that was woken for it never looks.
        drop(first);
        let (stream, peer) = second.await.unwrap();
        assert_eq!(peer, host(n));
        drop(stream);
        until_ports(&mediator, 1).await;
    }
}

#[tokio::test]
async fn dropped_receives_lose_no_datagram() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let socket = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    let fence = mediator.udp_bind(ANY, Importance::Desired).await.unwrap();
    for n in 1..=20u16 {
        let (mut first, mut second) = (Box::pin(socket.recv_datagram()), Box::pin(socket.recv_datagram()));
        begin(first.as_mut()).await;
        begin(second.as_mut()).await;
        socket.send_to(&n.to_be_bytes(), host(53)).await.unwrap();
        fence.send_to(b"", host(53)).await.unwrap();
        fence.recv_datagram().await.unwrap();
        drop(first);
        assert_eq!(second.await.unwrap().0, n.to_be_bytes());
    }
}

#[tokio::test]
async fn dropped_requests_close_what_they_asked_for() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut listen = Box::pin(mediator.listen(ANY, Importance::Desired));
    begin(listen.as_mut()).await;
    drop(listen);
    relay.expect(Seen::Closed).await;
    let mut bind = Box::pin(mediator.udp_bind(ANY, Importance::Desired));
    begin(bind.as_mut()).await;
    drop(bind);
    relay.expect(Seen::Closed).await;
    let options = OpenOptions::tcp();
    let mut open = Box::pin(mediator.open(&options));
    begin(open.as_mut()).await;
    drop(open);
    relay.expect(Seen::Closed).await;
    let mut connect = Box::pin(mediator.connect(host(SILENT)));
    begin(connect.as_mut()).await;
    drop(connect);
    relay.expect(Seen::Reset(Code::Reset)).await;
    until_ports(&mediator, 0).await;
}

#[tokio::test]
async fn a_dropped_connect_of_an_opened_port_leaves_the_port_usable_once_it_is_answered() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let port = mediator.open(&OpenOptions::tcp()).await.unwrap();
    let mut info = Box::pin(mediator.info());
    begin(info.as_mut()).await;
    drop(info);
    let mut connect = Box::pin(port.connect(host(ECHO), None));
    begin(connect.as_mut()).await;
    drop(connect);
    // It was carried out: the next one is the second.
    assert_eq!(port.connect(host(ECHO), None).await.err().and_then(|error| error.code()), Some(Code::Dedicated));
    port.close().await.unwrap();
    assert_eq!(mediator.info().await.unwrap().ports, 3, "an answer that nobody wants harms no later one");
}

#[tokio::test]
async fn a_dropped_write_half_ends_its_direction_and_a_forgotten_one_resets() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let (mut read, mut write) = mediator.connect(host(HELLO)).await.unwrap().into_split();
    write.write_all(&[7; 100_000]).await.unwrap();
    drop(write);
    relay.expect(Seen::Sunk(100_000)).await;
    let mut all = Vec::new();
    read.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"hello");
    let (mut read, mut write) = mediator.connect(host(ECHO)).await.unwrap().into_split();
    write.write_all(b"x").await.unwrap();
    write.forget();
    assert_eq!(read.read_u8().await.unwrap(), b'x', "the other direction goes on");
    drop(read);
    relay.expect(Seen::Reset(Code::Reset)).await;
    until_ports(&mediator, 0).await;
}

#[tokio::test]
async fn a_dropped_write_took_nothing() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(host(STALL)).await.unwrap();
    stream.write_all(&[0; 64 * 1024]).await.unwrap();
    let sent = mediator.stats().bytes_out;
    {
        let mut write = std::pin::pin!(stream.write(&[1; 10]));
        begin(write.as_mut()).await;
    }
    assert_eq!(mediator.stats().bytes_out, sent);
}
