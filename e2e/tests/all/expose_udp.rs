//! Exposed UDP services: private hosts' datagrams at a port of their mediator reach a public address, and its answers them.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use crate::common::{bound, counter, ctl, exposed, until};
use isthmus_e2e::{Agent, Keys, Loopback, Ns, Relay, SOON, World};
use isthmus_proto::door::proxy_protocol::{Ends, Transport, Version, encode};

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("an address")
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    buffer.truncate(length);
    (buffer, from)
}

fn send(from: &UdpSocket, to: SocketAddr, bytes: &[u8]) {
    assert_eq!(from.send_to(bytes, to).expect("sent"), bytes.len());
}

/// Sends a datagram as a private host does, and gives what came to the public end, and where from.
fn ask(host: &UdpSocket, port: SocketAddr, public: &UdpSocket, bytes: &[u8]) -> (Vec<u8>, SocketAddr) {
    send(host, port, bytes);
    receive(public)
}

fn quiet(socket: &UdpSocket) {
    socket.set_nonblocking(true).expect("set");
    assert!(socket.recv_from(&mut [0]).is_err(), "nothing more came");
    socket.set_nonblocking(false).expect("set");
}

fn start(public: &UdpSocket, options: &str, relay: &[&str], agent: &[&str]) -> Loopback {
    let service = format!("udp:cpe/127.0.0.1:0={}{options}", address(public));
    Loopback::start(&[&["--expose", &service], relay].concat(), agent)
}

/// Every host asks; the answers, sent in the other order, come to who asked, from the mediator's port.
fn answers_find_their_hosts(world: &Loopback, public: &UdpSocket, hosts: &[UdpSocket]) {
    let port = bound(world);
    let mut flows = Vec::new();
    for (n, host) in hosts.iter().enumerate() {
        let (bytes, from) = ask(host, port, public, format!("question {n}").as_bytes());
        assert_eq!(bytes, format!("question {n}").as_bytes());
        flows.push(from);
    }
    for (n, &flow) in flows.iter().enumerate().rev() {
        send(public, flow, format!("answer {n}").as_bytes());
        send(public, flow, b"");
    }
    for (n, host) in hosts.iter().enumerate() {
        assert_eq!(receive(host), (format!("answer {n}").into_bytes(), port));
        assert_eq!(receive(host), (Vec::new(), port));
        quiet(host);
    }
}

#[test]
fn each_host_gets_its_own_answers_before_and_after_the_mediator_restarts() {
    let public = socket();
    let mut world = start(&public, "", &[], &[]);
    let hosts = [socket(), socket(), socket()];
    answers_find_their_hosts(&world, &public, &hosts);
    assert_eq!(exposed(&world)["connections_live"], 3);
    world.agent.kill();
    until(SOON, || exposed(&world)["state"] == "away");
    assert_eq!((exposed(&world)["connections_live"].as_u64(), counter(&world, "exposed_flows_live")), (Some(0), 0));
    world.agent = Loopback::start_agent(&world.keys, &world.service, "cpe", &["--allow", "127.0.0.0/8"]);
    answers_find_their_hosts(&world, &public, &hosts);
    assert_eq!((counter(&world, "exposed_flows_live"), counter(&world, "exposed_flows_total")), (3, 6));
}

#[test]
fn many_hosts_behind_a_gateway_reach_a_public_address_with_udp_and_where_it_is_blocked() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Public, &["udp-echo", "198.51.100.2:5300"]);
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &["--expose", "udp:cpe/10.77.0.2:5300=198.51.100.2:5300"]);
    let agent = Agent::start(&world, &keys, "cpe", &[]);
    agent.process.wait_for_line("UDP channels", SOON);
    relay.process.wait_for_line("exposed service's port is open", SOON);
    let ping = ["udp-ping", "--visitors", "50", "--count", "4", "--sizes", "16,900", "--retries", "2"];
    let ping = [&ping[..], &["10.77.0.2:5300"]].concat();
    world.run_tool(Ns::Host, &ping).ok();
    world.run_tool(Ns::Private, &ping).ok();
    let before = world.counters().udp_out.packets;
    assert!(before >= 100, "{before} packets took UDP channels");
    drop(agent);
    world.drop_udp(true);
    let mark = relay.process.mark();
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    relay.process.wait_for_line_after(mark, "exposed service's port is open", SOON);
    world.run_tool(Ns::Host, &ping).ok();
}

#[test]
fn every_size_arrives_both_ways_as_it_was_sent() {
    let public = socket();
    let world = start(&public, "", &[], &[]);
    let (host, port) = (socket(), bound(&world));
    for size in [0, 1, 1199, 1200, 1350, 1400, 1420, 1473, 9000, 16_384, 65_506, 65_507] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let (got, flow) = ask(&host, port, &public, &bytes);
        assert!(got == bytes, "{size} bytes to the public end");
        send(&public, flow, &bytes);
        assert!(receive(&host) == (bytes, port), "{size} bytes back");
    }
    assert_eq!(counter(&world, "exposed_flows_total"), 1);
}

#[test]
fn datagrams_pass_over_tcp_where_there_is_no_udp_channel() {
    let public = socket();
    let world = start(&public, "", &[], &["--udp-channels", "0"]);
    answers_find_their_hosts(&world, &public, &[socket(), socket()]);
}

#[test]
fn public_end_is_told_of_the_host_in_a_flows_first_datagram_only() {
    let public = socket();
    // One channel: nothing overtakes.
    let world = start(&public, ",proxy=v2", &[], &["--udp-channels", "0"]);
    let port = bound(&world);
    for host in [socket(), socket()] {
        let ends = Ends { source: address(&host), target: port };
        let header = encode(Version::V2, Transport::Datagram, ends);
        assert_eq!(header.len(), 28);
        // A datagram that leaves no room for it is dropped; it begins the next one.
        send(&host, port, &vec![1; 65_507 - 27]);
        assert_eq!(ask(&host, port, &public, b"first").0, [&header[..], b"first"].concat());
        assert_eq!(ask(&host, port, &public, b"second").0, b"second");
    }
    let longest = vec![1; 65_507 - 28];
    assert_eq!(ask(&socket(), port, &public, &longest).0.len(), 65_507);
}

#[test]
fn flows_are_bounded_and_make_room_when_they_are_idle() {
    let public = socket();
    let world = start(&public, "", &["--exposed-flows-max", "2", "--udp-idle", "4s"], &[]);
    let port = bound(&world);
    let hosts = [socket(), socket(), socket()];
    for host in &hosts[..2] {
        ask(host, port, &public, b"one of two");
    }
    send(&hosts[2], port, b"one too many");
    until(SOON, || counter(&world, "exposed_refused_limit") == 1);
    quiet(&public);
    until(SOON, || counter(&world, "exposed_flows_live") == 0);
    assert_eq!(ask(&hosts[2], port, &public, b"now there is room").0, b"now there is room");
}

#[test]
fn port_unreachable_at_the_public_end_does_not_end_the_flow() {
    let public = socket();
    let target = address(&public);
    let world = start(&public, "", &[], &[]);
    let (host, port) = (socket(), bound(&world));
    let (_, before) = ask(&host, port, &public, b"before");
    drop(public);
    send(&host, port, b"lost");
    until(SOON, || counter(&world, "exposed_failed") == 1);
    assert_eq!(exposed(&world)["connections_failed"], 1);
    let public = UdpSocket::bind(target).expect("free again");
    public.set_read_timeout(Some(SOON)).expect("a timeout");
    assert_eq!(ask(&host, port, &public, b"after"), (b"after".to_vec(), before));
    send(&public, before, b"answer");
    assert_eq!(receive(&host), (b"answer".to_vec(), port));
}

#[test]
fn answers_come_from_the_public_address_only() {
    let public = socket();
    let world = start(&public, "", &[], &[]);
    let (host, port) = (socket(), bound(&world));
    let (_, flow) = ask(&host, port, &public, b"question");
    send(&socket(), flow, b"not from there");
    send(&public, flow, b"answer");
    assert_eq!(receive(&host).0, b"answer");
    quiet(&host);
}

#[test]
fn unexposed_port_is_closed_and_its_flows_end_with_it() {
    let public = socket();
    let world = Loopback::start(&[], &[]);
    let taken = address(&socket());
    let (tcp, udp) = (format!("tcp:cpe/{taken}"), format!("udp:cpe/{taken}"));
    ctl(&world, &format!("expose {udp}={}", address(&public)));
    // The same number with the other protocol is another port.
    assert!(ctl(&world, &format!("expose {tcp}={}", address(&public))).starts_with("exposed "));
    ctl(&world, &format!("unexpose {tcp}"));
    assert_eq!(bound(&world), taken);
    let host = socket();
    ask(&host, taken, &public, b"question");
    let answer = ctl(&world, &format!("unexpose {udp}"));
    assert!(answer.contains("(1 flows ended)"), "{answer}");
    until(SOON, || UdpSocket::bind(taken).is_ok());
    assert_eq!(counter(&world, "exposed_flows_live"), 0);
}

#[test]
fn service_that_leads_elsewhere_keeps_its_port_and_flows_that_are_there_their_end() {
    let (first, second) = (socket(), socket());
    let keys = Keys::new();
    let file = keys.path().join("relay.toml");
    let lead = |to: &UdpSocket| {
        let text = format!("expose = ['udp:cpe/127.0.0.1:0={}']", address(to));
        std::fs::write(&file, text).expect("written");
    };
    lead(&first);
    let world = Loopback::start(&["--config", path(&file)], &[]);
    let port = bound(&world);
    let (old, new) = (socket(), socket());
    ask(&old, port, &first, b"old");
    lead(&second);
    let answer = ctl(&world, "reload");
    assert!(answer.contains("changed udp:cpe/"), "{answer}");
    assert_eq!(bound(&world), port);
    assert_eq!(ask(&new, port, &second, b"new").0, b"new");
    assert_eq!(ask(&old, port, &first, b"still").0, b"still");
}

fn path(file: &Path) -> &str {
    file.to_str().expect("plain")
}

#[test]
fn owners_list_and_audit_hold_for_the_port() {
    let public = socket();
    let world = Loopback::start(&[], &[]);
    let audit = world.keys.path().join("audit.jsonl");
    let args = ["--allow", "10.0.0.0/8", "--udp-channels", "0", "--audit", path(&audit)];
    let _strict = Loopback::start_agent(&world.keys, &world.service, "strict", &args);
    ctl(&world, &format!("expose udp:strict/127.0.0.1:0={}", address(&public)));
    until(SOON, || exposed(&world)["state"] == "refused");
    assert_eq!(exposed(&world)["reason"], "denied");
    ctl(&world, "unexpose udp:strict/127.0.0.1:0");
    ctl(&world, &format!("expose udp:strict/0.0.0.0:0={}", address(&public)));
    let port = SocketAddr::from(([127, 0, 0, 1], bound(&world).port()));
    // The list has no such host: it reaches the public end as by a TCP port, but nothing is sent to it.
    let host = socket();
    let (_, flow) = ask(&host, port, &public, b"question");
    send(&public, flow, b"answer");
    until(SOON, || counter(&world, "datagrams_to_mediators") > 0);
    // What is asked for after it is done after it.
    ctl(&world, &format!("expose tcp:strict/0.0.0.0:0={}", address(&public)));
    until(SOON, || exposed(&world)["state"] == "open" && exposed(&world)["expose"].to_string().contains("tcp:"));
    quiet(&host);
    let lines = std::fs::read_to_string(&audit).expect("written");
    let asked = |line: &&str| line.contains(&format!("exposed {}", address(&public))) && line.contains("redirect");
    assert_eq!(lines.lines().filter(asked).count(), 2, "{lines}");
}
