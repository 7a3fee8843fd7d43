//! Ports and names of the relay that a mediator's own configuration asks for, with the real programs on the loopback
//! interface.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::common::{Host, counter, ctl, curl, name_port, until};
use isthmus_e2e::{Loopback, Process, SOON, have, program};
use rustix::process::Signal;
use tempfile::TempDir;

/// Longer than what was refused waits for its next try.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// A port number that is free for TCP and UDP now.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What the host behind a port says; `None` where nobody listens, or nobody answers.
fn visit(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.rsplit_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn is_open(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// A mediator's configuration file, which may change.
struct File(TempDir);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(TempDir::new().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("settings.toml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }
}

#[test]
fn asked_ports_serve_visitors_and_what_is_outside_the_policy_is_refused_with_the_reason() {
    let (tcp, udp, other) = (free_port(), free_port(), free_port());
    let host = Host::http("here");
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let allow_tcp = format!("c*=tcp:127.0.0.1:{tcp}");
    let allow_udp = format!("cpe=udp:{udp}");
    let ask_tcp = format!("tcp:{tcp}={}", host.address);
    let ask_udp = format!("udp:127.0.0.1:{udp}={}", echo.local_addr().unwrap());
    let ask_other = format!("tcp:{other}={}", host.address);
    let world = Loopback::start(
        &["--allow-publish", &allow_tcp, "--allow-publish", &allow_udp],
        &["--ask-publish", &ask_tcp, "--ask-publish", &ask_udp, "--ask-publish", &ask_other],
    );
    world.agent.wait_for_line(&format!("granted=127.0.0.1:{tcp}"), SOON);
    world.agent.wait_for_line(&format!("granted=127.0.0.1:{udp}"), SOON);
    let refused = world.agent.wait_for_line("reason=not-allowed", SOON);
    assert!(refused.contains(&ask_other) && refused.contains("--allow-publish"), "{refused}");

    assert_eq!(visit(tcp).as_deref(), Some("here"));
    assert!(!is_open(other));
    let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
    visitor.connect(("127.0.0.1", udp)).unwrap();
    visitor.send(b"ping").unwrap();
    echo.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = [0; 8];
    let (len, from) = echo.recv_from(&mut bytes).unwrap();
    echo.send_to(&bytes[..len], from).unwrap();
    visitor.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(visitor.recv(&mut bytes).unwrap(), 4);

    let publishes = ctl(&world, "show publishes");
    assert!(
        publishes.lines().any(|line| line.contains(&format!(":{tcp}=cpe/")) && line.contains("asked")),
        "{publishes}"
    );
    let asks = ctl(&world, "show asks");
    assert!(asks.contains("refused:not-allowed") && asks.contains(&ask_other), "{asks}");
    assert_eq!((counter(&world, "asks_granted"), counter(&world, "asks_refused")), (2, 1));
}

#[test]
fn without_a_policy_nothing_is_given_and_a_mediators_own_list_still_decides() {
    let (open, host) = (free_port(), Host::http("here"));
    let ask = format!("tcp:{open}={}", host.address);
    let world = Loopback::start(&[], &["--ask-publish", &ask]);
    world.agent.wait_for_line("reason=not-allowed", SOON);
    assert!(!is_open(open));

    let world = Loopback::start(&["--allow-publish", &format!("m=tcp:{open}")], &[]);
    let agent =
        Loopback::start_agent(&world.keys, &world.service, "m", &["--allow", "10.99.0.0/16", "--ask-publish", &ask]);
    agent.wait_for_line("its visitors are refused", SOON);
    assert!(is_open(open) && visit(open).is_none());
}

#[test]
fn operators_publish_wins_and_the_port_comes_back_when_it_goes() {
    let (port, asked, operators) = (free_port(), Host::http("asked"), Host::http("operator"));
    let ask = format!("tcp:{port}={}", asked.address);
    let world = Loopback::start(&["--allow-publish", &format!("cpe=tcp:{port}")], &["--ask-publish", &ask]);
    world.agent.wait_for_line("granted=", SOON);
    assert_eq!(visit(port).as_deref(), Some("asked"));

    let mark = world.agent.mark();
    let publish = format!("tcp:127.0.0.1:{port}");
    let answer = ctl(&world, &format!("publish {publish}=cpe/{}", operators.address));
    assert!(answer.starts_with("published"), "{answer}");
    world.agent.wait_for_line_after(mark, "reason=taken", SOON);
    assert_eq!(visit(port).as_deref(), Some("operator"));

    let mark = world.agent.mark();
    ctl(&world, &format!("unpublish {publish}"));
    world.agent.wait_for_line_after(mark, "granted=", TRIED_AGAIN);
    assert_eq!(visit(port).as_deref(), Some("asked"));

    // What an operator takes away does not come back by itself.
    let mark = world.agent.mark();
    ctl(&world, &format!("unpublish tcp:[::]:{port}"));
    world.agent.wait_for_line_after(mark, "reason=withdrawn", SOON);
    until(SOON, || !is_open(port));
}

#[test]
fn asks_follow_the_mediators_configuration_and_the_relays_policy() {
    let (one, two) = (free_port(), free_port());
    let (first, second) = (Host::http("first"), Host::http("second"));
    let file = File::new(&format!("ask-publish = [\"tcp:{one}={}\"]", first.address));
    let policy = |ports: &[u16]| {
        let rules: Vec<String> = ports.iter().map(|port| format!("\"cpe=tcp:{port}\"")).collect();
        format!("allow-publish = [{}]", rules.join(","))
    };
    let relays = File::new(&policy(&[one, two]));
    let (relays_path, path) = (relays.path().display().to_string(), file.path().display().to_string());
    let world = Loopback::start(&["--config", &relays_path], &["--config", &path]);
    world.agent.wait_for_line("granted=", SOON);
    assert_eq!(visit(one).as_deref(), Some("first"));

    // The same port leads elsewhere, and another one comes.
    let mark = world.agent.mark();
    file.write(&format!("ask-publish = [\"tcp:{one}={0}\", \"tcp:{two}={0}\"]", second.address));
    world.agent.signal(Signal::HUP);
    world.agent.wait_for_line_after(mark, &format!("granted=[::]:{two}"), SOON);
    assert_eq!((visit(one).as_deref(), visit(two).as_deref()), (Some("second"), Some("second")));

    // One is not asked for any more.
    file.write(&format!("ask-publish = [\"tcp:{two}={}\"]", second.address));
    world.agent.signal(Signal::HUP);
    until(SOON, || !is_open(one));
    assert_eq!(visit(two).as_deref(), Some("second"));

    // The other is not allowed any more, and then again; a bad policy changes nothing.
    let mark = world.agent.mark();
    relays.write("allow-publish = [\"cpe=tcp:x\"]");
    assert!(ctl(&world, "reload").contains("nothing is changed"));
    assert_eq!(visit(two).as_deref(), Some("second"));
    relays.write(&policy(&[one]));
    let answer = ctl(&world, "reload");
    assert!(answer.contains("allow-publish"), "{answer}");
    world.agent.wait_for_line_after(mark, "reason=not-allowed", SOON);
    until(SOON, || !is_open(two));
    let mark = world.agent.mark();
    relays.write(&policy(&[one, two]));
    ctl(&world, "reload");
    world.agent.wait_for_line_after(mark, "granted=", SOON);
    assert_eq!(visit(two).as_deref(), Some("second"));

    // The relay's own configuration wins.
    let mark = world.agent.mark();
    let publish = format!("publish = [\"tcp:127.0.0.1:{two}=cpe/{}\"]", first.address);
    relays.write(&format!("{}\n{publish}", policy(&[one, two])));
    let answer = ctl(&world, "reload");
    assert!(answer.contains("published"), "{answer}");
    world.agent.wait_for_line_after(mark, "reason=taken", SOON);
    assert_eq!(visit(two).as_deref(), Some("first"));
    assert!(!world.agent.said_after(0, "tunnel down"));
}

#[test]
fn first_come_keeps_the_port_for_as_long_as_it_may_be_away() {
    let port = free_port();
    let (first, second) = (Host::http("first"), Host::http("second"));
    let allow = format!("*=tcp:127.0.0.1:{port}");
    let ask = |host: &Host| format!("tcp:{port}={}", host.address);
    let mut world =
        Loopback::start(&["--allow-publish", &allow, "--ask-hold", "10s"], &["--ask-publish", &ask(&first)]);
    world.agent.wait_for_line("granted=", SOON);
    let args = ["--allow", "127.0.0.0/8", "--ask-publish", &ask(&second)];
    let rival = Loopback::start_agent(&world.keys, &world.service, "rival", &args);
    rival.wait_for_line("reason=taken", SOON);

    // It comes back in time.
    world.agent.kill();
    assert!(is_open(port));
    let args = ["--allow", "127.0.0.0/8", "--ask-publish", &ask(&first)];
    world.agent = Loopback::start_agent(&world.keys, &world.service, "cpe", &args);
    world.agent.wait_for_line("granted=", SOON);
    assert_eq!(visit(port).as_deref(), Some("first"));

    // It does not.
    world.agent.kill();
    rival.wait_for_line("granted=", TRIED_AGAIN);
    assert_eq!(visit(port).as_deref(), Some("second"));
}

#[test]
fn port_goes_with_the_mediators_right() {
    let (port, host) = (free_port(), Host::http("here"));
    let ask = format!("tcp:{port}={}", host.address);
    let world = Loopback::start(&["--allow-publish", &format!("*=tcp:127.0.0.1:{port}")], &["--ask-publish", &ask]);
    world.agent.wait_for_line("granted=", SOON);
    ctl(&world, "revoke mediator cpe");
    until(SOON, || !is_open(port));

    // Also while it is away.
    let args = ["--allow", "127.0.0.0/8", "--ask-publish", &ask];
    let mut other = Loopback::start_agent(&world.keys, &world.service, "m", &args);
    other.wait_for_line("granted=", SOON);
    other.kill();
    world.relay.wait_for_line("tunnel ended mediator=m", SOON);
    assert!(is_open(port));
    ctl(&world, "revoke mediator m");
    until(SOON, || !is_open(port));
}

#[test]
fn asked_port_is_there_again_after_a_restart_of_the_relay() {
    let (port, host) = (free_port(), Host::http("here"));
    let allow = format!("cpe=tcp:127.0.0.1:{port}");
    let ask = format!("tcp:{port}={}", host.address);
    let mut world = Loopback::start(&["--allow-publish", &allow], &["--ask-publish", &ask]);
    world.agent.wait_for_line("granted=", SOON);
    let mark = world.agent.mark();
    world.relay.kill();
    let mut command = Command::new(program("isthmus-relay"));
    command.arg("--state").arg(world.keys.path());
    command.args(["--listen", &world.service, "--shards", "2", "--allow-publish", &allow]);
    world.relay = Process::spawn("relay", command);
    world.agent.wait_for_line_after(mark, "granted=", TRIED_AGAIN);
    assert_eq!(visit(port).as_deref(), Some("here"));
}

#[test]
fn asked_names_lead_to_what_is_offered_within_the_policy() {
    if !have("curl") {
        return;
    }
    let (host, operators) = (Host::http("asked"), Host::http("operator"));
    let offer = format!("www.a.test={}", host.address);
    let world = Loopback::start(
        &["--names", "127.0.0.1:0", "--allow-name", "c*=*.a.test"],
        &["--offer", &offer, "--ask-name", "www.a.test", "--ask-name", "www.b.test"],
    );
    world.agent.wait_for_line("granted=www.a.test", SOON);
    world.agent.wait_for_line("reason=not-allowed", SOON);
    let port = name_port(&world);
    until(SOON, || curl(&port, "www.a.test") == "200 asked");
    assert!(curl(&port, "www.b.test").starts_with("421"));
    assert!(ctl(&world, "show names").contains("www.a.test=cpe # asked"));

    // An operator's route goes before it.
    let mark = world.agent.mark();
    let answer = ctl(&world, &format!("name www.a.test=cpe/{}", operators.address));
    assert!(answer.starts_with("added"), "{answer}");
    world.agent.wait_for_line_after(mark, "reason=taken", SOON);
    until(SOON, || curl(&port, "www.a.test") == "200 operator");
    ctl(&world, "unname www.a.test");
    world.agent.wait_for_line_after(mark, "granted=", TRIED_AGAIN);
    until(SOON, || curl(&port, "www.a.test") == "200 asked");
}
