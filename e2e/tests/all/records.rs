//! Session records, as a relay writes them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::{bound, echo_hosts, published};
use isthmus_e2e::{Loopback, Process, SOON, program};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the relay has written when it is gone.
fn records(world: &mut Loopback, path: &std::path::Path) -> Vec<Value> {
    world.relay.terminate();
    world.relay.wait_exit(SOON);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The one record that has these.
fn one(records: &[Value], fields: &[(&str, Value)]) -> Value {
    let fits = |record: &&Value| fields.iter().all(|(name, value)| record[name] == *value);
    let found: Vec<&Value> = records.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{fields:?} in {records:#?}");
    found[0].clone()
}

#[test]
fn each_kind_of_session_leaves_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sessions.jsonl");
    let (tcp, udp) = echo_hosts();
    let publish = [format!("tcp:127.0.0.1:0=cpe/{tcp}"), format!("udp:127.0.0.1:0=cpe/{udp}")];
    let shown = path.display().to_string();
    let args = ["--records", &shown, "--udp-idle", "1s", "--publish", &publish[0], "--publish", &publish[1]];
    let mut world = Loopback::start(&args, &[]);

    let mut visitor = TcpStream::connect(published(&world, "tcp")).unwrap();
    let from = visitor.local_addr().unwrap().to_string();
    visitor.write_all(&[7; 5000]).unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    visitor.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), 5000);

    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(published(&world, "udp")).unwrap();
    sender.set_read_timeout(Some(SOON)).unwrap();
    for _ in 0..3 {
        sender.send(b"hello").unwrap();
        sender.recv(&mut [0; 64]).unwrap();
    }

    let mut terminal = Command::new(program("isthmus"));
    terminal.args(["--relay", &world.service, "--pin", world.keys.pin()]);
    terminal.args(["--token", &world.keys.terminal_token("cpe", &[]), "info", "cpe"]);
    assert!(terminal.output().unwrap().status.success());

    let records = records(&mut world, &path);
    let stream = one(&records, &[("kind", "stream".into()), ("from", from.as_str().into())]);
    for (field, value) in [
        ("v", json!(1)),
        ("mediator", "cpe".into()),
        ("to", tcp.to_string().into()),
        ("bytes_in", 5000.into()),
        ("bytes_out", 5000.into()),
        ("end", "closed".into()),
    ] {
        assert_eq!(stream[field], value, "{field} in {stream}");
    }
    assert!(stream["door"].as_str().is_some_and(|door| door.starts_with("published tcp:127.0.0.1:")), "{stream}");
    let flow = one(&records, &[("kind", "flow".into()), ("to", udp.to_string().into())]);
    for (field, value) in [("datagrams_in", 3), ("datagrams_out", 3), ("bytes_in", 15), ("bytes_out", 15)] {
        assert_eq!(flow[field], value, "{field} in {flow}");
    }
    let terminal = one(&records, &[("kind", "terminal".into()), ("mediator", "cpe".into())]);
    assert!(terminal["who"].as_str().is_some_and(|who| !who.is_empty()), "{terminal}");
    let tunnel = one(&records, &[("kind", "tunnel".into()), ("mediator", "cpe".into()), ("end", "draining".into())]);
    assert!(tunnel["bytes_out"].as_u64().is_some_and(|bytes| bytes >= 5000), "{tunnel}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn full_disk_costs_records_that_are_counted_and_no_traffic() {
    let (tcp, _) = echo_hosts();
    let world = Loopback::start(&["--records", "/dev/full", "--publish", &format!("tcp:127.0.0.1:0=cpe/{tcp}")], &[]);
    let port = published(&world, "tcp");
    for _ in 0..3 {
        let mut visitor = TcpStream::connect(&port).unwrap();
        visitor.write_all(b"x").unwrap();
        visitor.read_exact(&mut [0; 1]).unwrap();
    }
    world.relay.wait_for_line("records cannot be written", SOON);
    let mut ctl = Command::new(program("isthmus-relay"));
    ctl.arg("ctl").arg("--state").arg(world.keys.path()).args(["show", "info", "json"]);
    let info: Value = serde_json::from_slice(&ctl.output().unwrap().stdout).unwrap();
    assert!(info["records_lost"].as_u64().is_some_and(|lost| lost > 0), "{info}");
    assert_eq!(info["records_written"], 0);
}

/// A relay that exposes this service and writes records.
fn exposing(service: &str) -> (Loopback, TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sessions.jsonl");
    let world = Loopback::start(&["--records", path.to_str().unwrap(), "--expose", service], &[]);
    (world, dir, path)
}

#[test]
fn host_whom_the_public_address_refused_leaves_a_record() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut world, _dir, path) = exposing(&format!("tcp:cpe/127.0.0.1:0={closed}"));
    let mut host = TcpStream::connect(bound(&world)).unwrap();
    let from = host.local_addr().unwrap().to_string();
    assert!(host.read(&mut [0; 1]).is_err(), "it is reset");
    let stream = one(&records(&mut world, &path), &[("kind", "stream".into()), ("from", from.into())]);
    assert_eq!((&stream["end"], &stream["to"]), (&"refused".into(), &closed.to_string().into()), "{stream}");
}

#[test]
fn flow_of_an_exposed_service_leaves_a_record() {
    let (_, udp) = echo_hosts();
    let (mut world, _dir, path) = exposing(&format!("udp:cpe/127.0.0.1:0={udp}"));
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.connect(bound(&world)).unwrap();
    host.set_read_timeout(Some(SOON)).unwrap();
    host.send(b"hello").unwrap();
    host.recv(&mut [0; 64]).unwrap();
    let flow = one(&records(&mut world, &path), &[("kind", "flow".into()), ("to", udp.to_string().into())]);
    assert!(flow["door"].as_str().is_some_and(|door| door.starts_with("exposed udp:cpe/")), "{flow}");
    // "In" is from the public address.
    assert_eq!((&flow["datagrams_in"], &flow["datagrams_out"]), (&1.into(), &1.into()), "{flow}");
}

#[test]
fn each_connection_and_udp_port_of_a_terminal_leaves_its_line_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sessions.jsonl");
    let (tcp, udp) = echo_hosts();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut world = Loopback::start(&["--records", path.to_str().unwrap()], &[]);
    let token = world.keys.terminal_token("cpe", &[]);
    let terminal = |args: &[&str]| {
        let mut terminal = Command::new(program("isthmus"));
        terminal.env("ISTHMUS_RELAY", &world.service).env("ISTHMUS_PIN", world.keys.pin()).env("ISTHMUS_TOKEN", &token);
        terminal.args(args);
        terminal
    };
    let sent = dir.path().join("sent");
    std::fs::write(&sent, [7; 3000]).unwrap();
    for (port, works) in [(tcp.port(), true), (closed.port(), false)] {
        let mut nc = terminal(&["nc", "cpe", "127.0.0.1", &port.to_string()]);
        let output = nc.stdin(std::fs::File::open(&sent).unwrap()).output().unwrap();
        assert_eq!(output.status.success(), works, "{output:?}");
    }
    // A server port there, whose host says 4 bytes and hears as many.
    let mut listen = Process::spawn("listen", terminal(&["listen", "cpe", "127.0.0.1:0", "--to", &tcp.to_string()]));
    let line = listen.wait_for_line("127.0.0.1:", SOON);
    let server = line.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).find(|word| {
        word.parse::<std::net::SocketAddr>().is_ok_and(|address| address != tcp && address.ip() == tcp.ip())
    });
    let mut host = TcpStream::connect(server.unwrap_or_else(|| panic!("no address in {line}"))).unwrap();
    host.write_all(b"four").unwrap();
    host.read_exact(&mut [0; 4]).unwrap();
    let from = host.local_addr().unwrap().to_string();
    drop(host);
    // A UDP port.
    let local = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let forward = format!("{local}:{udp}");
    let mut forward = Process::spawn("forward", terminal(&["forward", "cpe", "-L", &forward, "-U"]));
    forward.wait_for_line(&local.to_string(), SOON);
    let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
    visitor.connect(local).unwrap();
    visitor.set_read_timeout(Some(SOON)).unwrap();
    visitor.send(b"hello").unwrap();
    visitor.recv(&mut [0; 64]).unwrap();
    forward.terminate();
    forward.wait_exit(SOON);
    listen.terminate();
    listen.wait_exit(SOON);

    let records = records(&mut world, &path);
    let stream = one(&records, &[("door", "terminal".into()), ("to", tcp.to_string().into())]);
    for (field, value) in
        [("kind", json!("stream")), ("bytes_in", 3000.into()), ("bytes_out", 3000.into()), ("end", "closed".into())]
    {
        assert_eq!(stream[field], value, "{field} in {stream}");
    }
    assert!(stream["who"].as_str().is_some_and(|who| !who.is_empty()) && stream["mediator"] == "cpe", "{stream}");
    let refused = one(&records, &[("door", "terminal".into()), ("to", closed.to_string().into())]);
    assert_eq!((&refused["end"], &refused["bytes_in"]), (&"refused".into(), &0.into()), "{refused}");
    let of_host = one(&records, &[("door", "terminal server".into()), ("from", from.into())]);
    assert_eq!((&of_host["bytes_in"], &of_host["bytes_out"]), (&4.into(), &4.into()), "{of_host}");
    let flow = one(&records, &[("door", "terminal".into()), ("kind", "flow".into())]);
    assert_eq!((&flow["datagrams_in"], &flow["datagrams_out"]), (&1.into(), &1.into()), "{flow}");
    assert_eq!((&flow["bytes_in"], &flow["bytes_out"]), (&5.into(), &5.into()), "{flow}");
}
