//! Exposed services: private hosts reach a public address by a server port of their mediator.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::common::{Host, bound, counter, ctl, exposed, until};
use isthmus_e2e::{Loopback, SOON};
use isthmus_proto::door::proxy_protocol::{Ends, Transport, Version, encode};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: terminal\r\n\r\n";

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("the mediator listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// Sends a request as a private host does, and gives the ends of its connection.
fn visit(to: SocketAddr) -> Ends {
    let mut stream = connect(to);
    let ends = Ends { source: stream.local_addr().expect("an address"), target: to };
    stream.write_all(REQUEST).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an orderly end");
    assert!(answer.ends_with("public"), "{answer}");
    ends
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

#[test]
fn public_end_is_reached_and_told_of_the_host_before_and_after_the_mediator_restarts() {
    let public = Host::http("public");
    let service = format!("tcp:cpe/127.0.0.1:0={},proxy=v2", public.address);
    let mut world = Loopback::start(&["--expose", &service], &[]);
    for round in 0..2 {
        let port = bound(&world);
        for _ in 0..5 {
            let header = encode(Version::V2, Transport::Stream, visit(port));
            assert_eq!(public.head(), [&header, REQUEST].concat(), "round {round}");
        }
        if round == 0 {
            world.agent.kill();
            until(SOON, || exposed(&world)["state"] == "away");
            let allow = ["--allow", "127.0.0.0/8"];
            world.agent = Loopback::start_agent(&world.keys, &world.service, "cpe", &allow);
        }
    }
    assert_eq!((counter(&world, "exposed_total"), counter(&world, "exposed_failed")), (10, 0));
    until(SOON, || counter(&world, "exposed_live") == 0);
}

#[test]
fn host_is_reset_where_the_public_address_refuses() {
    let service = format!("tcp:cpe/127.0.0.1:0=127.0.0.1:{}", free_port());
    let world = Loopback::start(&["--expose", &service], &[]);
    let mut stream = connect(bound(&world));
    let end = stream.read(&mut [0]).expect_err("no orderly end");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert_eq!((counter(&world, "exposed_failed"), counter(&world, "exposed_live")), (1, 0));
    assert_eq!(exposed(&world)["connections_failed"], 1);
}

#[test]
fn refused_port_is_shown_with_the_reason_and_had_once_it_is_free() {
    let public = Host::http("public");
    let world = Loopback::start(&[], &[]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address");
    assert!(ctl(&world, &format!("expose tcp:cpe/{port}={}", public.address)).starts_with("exposed "));
    until(SOON, || exposed(&world)["state"] == "refused");
    assert_eq!(exposed(&world)["reason"], "address-in-use");
    assert!(ctl(&world, "show exposes").contains("that port number is taken on the mediator"));
    drop(taken);
    assert_eq!(bound(&world), port);
    visit(port);
    assert!(counter(&world, "exposes_refused") > 0);
}

#[test]
fn mediator_whose_owner_allows_no_loopback_opens_none() {
    let world = Loopback::start(&[], &[]);
    let _other = Loopback::start_agent(&world.keys, &world.service, "strict", &["--allow", "10.0.0.0/8"]);
    ctl(&world, "expose tcp:strict/127.0.0.1:0=127.0.0.1:9");
    until(SOON, || exposed(&world)["state"] == "refused");
    assert_eq!(exposed(&world)["reason"], "denied");
}

#[test]
fn unexposed_port_is_closed_and_connections_stay_unless_cut_off() {
    let public = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = public.local_addr().expect("an address");
    let world = Loopback::start(&[], &[]);
    for now in [false, true] {
        ctl(&world, &format!("expose tcp:cpe/127.0.0.1:0={target}"));
        let port = bound(&world);
        let mut host = connect(port);
        let (mut end, _) = public.accept().expect("a connection");
        host.write_all(b"a").expect("written");
        end.read_exact(&mut [0]).expect("a byte");
        let words = if now { " now" } else { "" };
        let answer = ctl(&world, &format!("unexpose tcp:cpe/127.0.0.1:0{words}"));
        assert!(answer.contains(if now { "1 connections were cut off" } else { "1 connections stay" }), "{answer}");
        until(SOON, || TcpStream::connect(port).is_err());
        if now {
            let end = host.read(&mut [0]).expect_err("no orderly end");
            assert_eq!(end.kind(), ErrorKind::ConnectionReset);
        } else {
            end.write_all(b"b").expect("written");
            host.read_exact(&mut [0]).expect("a byte");
        }
    }
}
