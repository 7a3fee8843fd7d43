//! Name routing: clients that know nothing of Isthmus reach what a mediator has by the name that they ask for.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::common::{Host, counter, ctl, curl, name_port};
use isthmus_e2e::{Loopback, Process, SOON, have, word_after};

/// Enough that two shards both accept some.
const VISITS: usize = 12;

#[test]
fn label_leads_to_what_the_mediator_of_that_name_offers() {
    if !have("curl") {
        return;
    }
    let args = ["--names", "127.0.0.1:0", "--name", "*.example.net=*", "--name", "www.example.org=device-1"];
    let first = Host::http("first");
    let world = Loopback::start(&args, &["--offer", &first.address]);
    let port = name_port(&world);
    let mut agents = Vec::new();
    for id in ["device-1", "device-2", "device-3"] {
        let host = Host::http(id);
        let offer = format!("{id}.example.net={}", host.address);
        let also = format!("www.example.org={}", host.address);
        let args = ["--allow", "127.0.0.0/8", "--offer", &offer, "--offer", &also];
        agents.push((Loopback::start_agent(&world.keys, &world.service, id, &args), host));
    }
    let expected = [
        ("cpe.example.net", "first"),
        ("Device-1.Example.NET", "device-1"),
        ("device-2.example.net:8080", "device-2"),
        ("device-3.example.net.", "device-3"),
        ("www.example.org", "device-1"),
    ];
    for _ in 0..VISITS {
        for (name, body) in expected {
            assert_eq!(curl(&port, name), format!("200 {body}"), "{name}");
        }
    }
    // In a proxy's form of a request the target counts, and what follows on the connection goes the same way.
    let mut raw = TcpStream::connect(&port).expect("the relay listens");
    let request = "GET http://device-2.example.net/ HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    raw.read_to_string(&mut answer).expect("an orderly end");
    assert!(answer.ends_with("device-2"), "{answer}");
    assert_eq!(counter(&world, "names_led"), (VISITS * expected.len() + 1) as u64);
}

#[test]
fn whoever_asks_for_nobody_is_told_so_in_plain_http() {
    if !have("curl") {
        return;
    }
    let host = Host::http("here");
    let route = format!("cpe.example.net=cpe/{}", host.address);
    let args = ["--names", "127.0.0.1:0", "--name", &route, "--name", "*.example.net=*", "--handshake-timeout", "3s"];
    let world = Loopback::start(&args, &[]);
    let port = name_port(&world);
    for (name, answer) in [
        ("cpe.example.net", "200 here"),
        ("example.net", "421 Nothing of that name is to be had\n"),
        ("x.y.example.net", "421 Nothing of that name is to be had\n"),
        ("127.0.0.1", "421 Nothing of that name is to be had\n"),
        ("[::1]", "421 Nothing of that name is to be had\n"),
        ("_x.example.net", "421 Nothing of that name is to be had\n"),
        ("gone.example.net", "503 What serves this name is not connected\n"),
        ("", "400 This is no HTTP request with one Host\n"),
        ("a b", "400 This is no HTTP request with one Host\n"),
    ] {
        assert_eq!(curl(&port, name), answer, "{name}");
    }
    assert_eq!(counter(&world, "names_unknown"), 5);
    assert_eq!(counter(&world, "names_bad"), 2);
    assert_eq!(counter(&world, "visitors_refused_away"), 1);
    // Too long a head, a client of something else, and one that says too little for too long.
    let say = |bytes: &[u8]| {
        let mut raw = TcpStream::connect(&port).expect("the relay listens");
        raw.set_read_timeout(Some(SOON)).expect("a timeout");
        raw.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        let ended = raw.read_to_end(&mut answer).map_err(|error| error.kind());
        (String::from_utf8_lossy(&answer).into_owned(), ended.map(|_| ()))
    };
    let long = format!("GET / HTTP/1.1\r\nHost: cpe.example.net\r\nX: {}", "x".repeat(9000));
    assert!(say(long.as_bytes()).0.starts_with("HTTP/1.1 431 "));
    assert_eq!(say(b"\x05\x01\x00"), (String::new(), Err(std::io::ErrorKind::ConnectionReset)));
    let (text, ended) = say(b"GET / HTTP/1.1\r\nHost: cpe.exam");
    assert!(text.is_empty() && ended != Err(std::io::ErrorKind::WouldBlock), "{text} {ended:?}");
    assert_eq!(counter(&world, "newcomers_slow"), 1);
    assert_eq!(counter(&world, "newcomers_live"), 0);
}

#[test]
fn server_name_leads_tls_through_untouched() {
    if !have("curl") || !have("openssl") {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| files.path().join(name).display().to_string();
    let make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let made = Command::new("openssl")
        .args(make)
        .args(["-subj", "/CN=cpe.example.net", "-addext", "subjectAltName=DNS:cpe.example.net"])
        .args(["-keyout", &path("key"), "-out", &path("cert")])
        .output()
        .expect("openssl can be started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new("openssl");
    command.args(["s_server", "-www", "-accept", "127.0.0.1:0", "-key", &path("key"), "-cert", &path("cert")]);
    let server = Process::spawn("openssl", command);
    let host = word_after(&server.wait_for_line("ACCEPT ", SOON), "ACCEPT ").to_owned();
    let args = ["--names", "127.0.0.1:0", "--name", "*.example.net=*"];
    let world = Loopback::start(&args, &["--offer", &format!("cpe.example.net={host}")]);
    let port = name_port(&world);
    let fetch = |name: &str, more: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "-m", "20", "--cacert", &path("cert"), "--connect-to", &format!("::{port}")])
            .args(more)
            .arg(format!("https://{name}/"))
            .output()
            .expect("curl can be started");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for _ in 0..VISITS {
        let (whole, text) = fetch("cpe.example.net", &[]);
        // The certificate is the host's own: curl has checked it.
        assert!(whole && text.contains("s_server"), "{text}");
    }
    for (name, alert) in [("cpe.example.org", "unrecognized name"), ("gone.example.net", "internal error")] {
        let (whole, text) = fetch(name, &[]);
        assert!(!whole && text.to_lowercase().contains(alert), "{name}: {text}");
    }
    // An address as the URL's host: no server name at all.
    let (whole, text) = fetch("127.0.0.1", &["-k"]);
    assert!(!whole && text.to_lowercase().contains("unrecognized name"), "{text}");
    assert_eq!(counter(&world, "names_unknown"), 2);
}

#[test]
fn visitors_are_shared_by_those_mediators_that_are_there() {
    if !have("curl") {
        return;
    }
    let host = Host::http("x");
    let publish = format!("tcp:127.0.0.1:0=gone-1|m-1|m-2|cpe/{}", host.address);
    let args = [
        "--names",
        "127.0.0.1:0",
        "--name",
        "shop.example=m-1|gone-1|m-2|m-3",
        "--publish",
        &publish,
        "--log",
        "debug",
    ];
    let world = Loopback::start(&args, &[]);
    let port = name_port(&world);
    assert!(curl(&port, "shop.example").starts_with("503 "));
    let mut agents = Vec::new();
    for id in ["m-1", "m-2", "m-3"] {
        let host = Host::http(id);
        let args = ["--allow", "127.0.0.0/8", "--offer", &host.address];
        agents.push((Loopback::start_agent(&world.keys, &world.service, id, &args), host));
    }
    let mut served = std::collections::BTreeMap::new();
    for _ in 0..40 {
        *served.entry(curl(&port, "shop.example")).or_insert(0) += 1;
    }
    // Each of two shards goes round; the turn of the one that is away falls to its neighbour.
    let names: Vec<&str> = served.keys().map(String::as_str).collect();
    assert_eq!(names, ["200 m-1", "200 m-2", "200 m-3"], "{served:?}");
    assert!(served.values().all(|&count| count >= 5), "{served:?}");

    let listen = crate::common::published(&world, "tcp");
    let mark = world.relay.mark();
    for _ in 0..8 {
        assert_eq!(curl(&listen, "any"), "200 x");
    }
    for id in ["cpe", "m-1", "m-2"] {
        world.relay.wait_for_line_after(mark, &format!("visitor led mediator={id} "), SOON);
    }
    // One after the other leaves, and the others go on.
    for _ in 0..2 {
        let (mut agent, _) = agents.remove(0);
        let mark = world.relay.mark();
        agent.terminate();
        agent.wait_exit(SOON);
        world.relay.wait_for_line_after(mark, "tunnel ended", SOON);
        for _ in 0..8 {
            assert!(curl(&port, "shop.example").starts_with("200 m-"));
            assert_eq!(curl(&listen, "any"), "200 x");
        }
    }
}

#[test]
fn routes_change_while_visitors_stay() {
    if !have("curl") {
        return;
    }
    let (old, new) = (Host::http("old"), Host::http("new"));
    let world = Loopback::start(&["--names", "127.0.0.1:0"], &[]);
    let port = name_port(&world);
    assert!(curl(&port, "a.example").starts_with("421 "));
    let route = format!("a.example=cpe/{}", old.address);
    assert_eq!(ctl(&world, &format!("name {route}")).trim(), format!("added {route}"));
    assert_eq!(curl(&port, "a.example"), "200 old");
    let mut stays = TcpStream::connect(&port).expect("the relay listens");
    stays.set_read_timeout(Some(SOON)).expect("a timeout");
    stays.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").expect("written");
    let mut first = [0];
    stays.read_exact(&mut first).expect("an answer begins");
    let route = format!("a.example=cpe/{}", new.address);
    assert_eq!(ctl(&world, &format!("name {route}")).trim(), format!("replaced by {route}"));
    // Shards take it between two turns.
    crate::common::until(Duration::from_secs(10), || curl(&port, "a.example") == "200 new");
    assert_eq!(ctl(&world, "show names").trim(), route);
    let mut rest = String::new();
    stays.read_to_string(&mut rest).expect("an orderly end");
    assert!(rest.ends_with("old"), "{rest}");
    assert_eq!(ctl(&world, "unname a.example").trim(), format!("removed {route}"));
    crate::common::until(Duration::from_secs(10), || curl(&port, "a.example").starts_with("421 "));
    assert!(ctl(&world, "unname a.example").contains("no route is for a.example"));
}
