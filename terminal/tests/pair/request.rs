//! The requests one by one, and their refusals.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::wire::OpenFlags;
use isthmus_terminal::{Code, Error, Importance, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::relay::{ECHO, Options, REFUSE, Relay, SILENT, Seen};

fn host(port: u16) -> SocketAddr {
    ([10, 0, 0, 5], port).into()
}

fn code<T>(result: Result<T, Error>) -> Option<Code> {
    result.err().and_then(|error| error.code())
}

#[tokio::test]
async fn every_refusal_of_a_connect_keeps_its_code() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    for refusal in [Code::Refused, Code::HostUnreachable, Code::TimedOut, Code::Denied, Code::NotPermitted] {
        assert_eq!(code(mediator.connect(host(REFUSE + refusal as u16)).await), Some(refusal));
    }
    assert_eq!(mediator.stats().ports, 0);
}

#[tokio::test]
async fn a_cancelled_connect_leaves_no_port() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let connect = mediator.connect(host(SILENT));
    assert!(tokio::time::timeout(Duration::from_millis(20), connect).await.is_err());
    relay.expect(Seen::Reset(Code::Reset)).await;
    assert_eq!(mediator.stats().ports, 0);
}

#[tokio::test]
async fn open_tells_the_assigned_number_or_refuses() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let at_80 = OpenOptions::tcp().local(([10, 0, 0, 2], 80).into());
    assert_eq!(code(mediator.open(&at_80.importance(Importance::Obligatory)).await), Some(Code::AddressInUse));
    relay.expect(Seen::Opened(OpenFlags::OBLIGATORY)).await;
    let port = mediator.open(&at_80).await.unwrap();
    assert_eq!(port.local_addr().port(), 80);
    let port = mediator.open(&OpenOptions::tcp()).await.unwrap();
    assert!(port.local_addr().port() > 40_000);
    assert_eq!(
        code(mediator.listen(([10, 0, 0, 2], 80).into(), Importance::Obligatory).await),
        Some(Code::AddressInUse)
    );
}

#[tokio::test]
async fn a_port_is_dedicated_once_and_closed_once() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let port = mediator.open(&OpenOptions::tcp()).await.unwrap();
    assert_eq!(code(port.connect(host(REFUSE + Code::Refused as u16), None).await), Some(Code::Refused));
    // An opened port outlives a refused connect.
    let mut stream = port.connect(host(ECHO), None).await.unwrap();
    assert_eq!(code(port.connect(host(ECHO), None).await), Some(Code::Dedicated));
    stream.write_all(b"a").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a', "a refused second connect changes nothing");
    assert_eq!(code(port.switch(false, false).await), Some(Code::NotUdp));
    assert!(matches!(port.udp_socket().err(), Some(Error::Refused(Code::NotUdp))));
    port.close().await.unwrap();
    assert_eq!(code(port.close().await), Some(Code::UnknownPort));
    assert_eq!(code(port.connect(host(ECHO), None).await), Some(Code::UnknownPort));
    assert!(stream.read_u8().await.is_err());
}

#[tokio::test]
async fn two_closes_at_once_are_done_and_unknown() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let port = mediator.open(&OpenOptions::tcp()).await.unwrap();
    let (first, second) = tokio::join!(port.close(), port.close());
    first.unwrap();
    assert_eq!(code(second), Some(Code::UnknownPort));
}

#[tokio::test]
async fn a_udp_port_neither_connects_nor_serves() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let port = mediator.open(&OpenOptions::udp()).await.unwrap();
    assert_eq!(code(port.connect(host(ECHO), None).await), Some(Code::NotTcp));
    assert_eq!(code(port.serve().await), Some(Code::NotTcp));
    assert!(matches!(mediator.udp(&OpenOptions::tcp()).await.err(), Some(Error::Refused(Code::NotUdp))));
}

#[tokio::test]
async fn a_dropped_port_is_closed() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    drop(mediator.open(&OpenOptions::tcp()).await.unwrap());
    relay.expect(Seen::Closed).await;
}

#[tokio::test]
async fn the_limit_of_ports_holds_and_frees() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(mediator.connect(host(ECHO)).await.unwrap());
    }
    assert_eq!(code(mediator.connect(host(ECHO)).await), Some(Code::TooManyPorts));
    streams.pop();
    mediator.connect(host(ECHO)).await.unwrap();
}
