//! Hosts whose visitors are looked at, and clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_e2e::{Loopback, SOON, program, word_after};

/// A host on a loopback address.
pub(crate) struct Host {
    /// Where it is.
    pub(crate) address: String,
    /// What each connection's bytes were, to the first blank line or the end.
    pub(crate) heads: Receiver<Vec<u8>>,
}

impl Host {
    /// Answers every HTTP request with this body, and closes.
    pub(crate) fn http(body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (tell, heads) = channel();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let tell = tell.clone();
                thread::spawn(move || {
                    let head = answer(stream, body);
                    let _ = tell.send(head);
                });
            }
        });
        Self { address, heads }
    }

    /// The bytes of the next connection.
    pub(crate) fn head(&self) -> Vec<u8> {
        self.heads.recv_timeout(SOON).expect("a visitor came")
    }
}

fn answer(mut stream: TcpStream, body: &str) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0];
    // A PROXY header of version 2 has blank lines of its own, in front.
    while !(head.len() > 16 && head.ends_with(b"\r\n\r\n")) && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    head
}

/// What curl gets from `port` for a Host: the status and the body.
pub(crate) fn curl(port: &str, host: &str) -> String {
    let header = if host.is_empty() { "Host:".to_owned() } else { format!("Host: {host}") };
    let output = Command::new("curl")
        .args(["-sS", "-m", "20", "-w", "%{stderr}%{http_code}", "-H", &header])
        .arg(format!("http://{port}/"))
        .output()
        .expect("curl can be started");
    format!("{} {}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

/// The relay's name listener.
pub(crate) fn name_port(world: &Loopback) -> String {
    word_after(&world.relay.wait_for_line("names lead to mediators", SOON), "listen=").to_owned()
}

/// The relay's published port of a protocol.
pub(crate) fn published(world: &Loopback, proto: &str) -> String {
    let line = world.relay.wait_for_line(&format!("published publish={proto}:"), SOON);
    let text = word_after(&line, &format!("publish={proto}:"));
    text.split('=').next().unwrap_or_default().to_owned()
}

/// Sends a command to the relay's stats socket.
pub(crate) fn ctl(world: &Loopback, command: &str) -> String {
    let output = Command::new(program("isthmus-relay"))
        .arg("ctl")
        .arg("--state")
        .arg(world.keys.path())
        .arg(command)
        .output()
        .expect("isthmus-relay can be started");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// A counter of the relay, in total.
pub(crate) fn counter(world: &Loopback, name: &str) -> u64 {
    let text = ctl(world, "show stat");
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    let value = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_else(|| panic!("no {name} in {text}"));
    value.parse().expect("a number")
}

/// What `show exposes` tells of the only one.
pub(crate) fn exposed(world: &Loopback) -> serde_json::Value {
    let text = ctl(world, "show exposes json");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    json["exposes"][0].clone()
}

/// Waits until the only exposed service's port is open, and gives its address.
pub(crate) fn bound(world: &Loopback) -> SocketAddr {
    until(SOON, || exposed(world)["state"] == "open");
    exposed(world)["bound"].as_str().expect("an address").parse().expect("an address")
}

/// Tries until it holds.
pub(crate) fn until(timeout: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !holds() {
        assert!(Instant::now() < deadline, "it never held");
        thread::yield_now();
    }
}

/// Hosts that echo: TCP and UDP, at these addresses.
pub(crate) fn echo_hosts() -> (SocketAddr, SocketAddr) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..len], from);
        }
    });
    addresses
}
