//! SOCKS5 and HTTP CONNECT at the relay: curl, and a client of our own where every reply counts.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use isthmus_e2e::{Finished, Loopback, Process, SOON, have, noise, program, word_after};

mod associations;

/// A relay with a proxy for all mediators and one for the mediator `cpe`, and their addresses.
struct World {
    l: Loopback,
    any: SocketAddr,
    own: SocketAddr,
    token: String,
}

fn world() -> World {
    world_with(&[])
}

fn world_with(more: &[&str]) -> World {
    let args = [&["--socks", "127.0.0.1:0", "--socks", "127.0.0.1:0=cpe"], more].concat();
    let l = Loopback::start(&args, &[]);
    let own = l.relay.wait_for_line("SOCKS5 and HTTP CONNECT .. mediator=cpe", SOON);
    let lines = l.relay.lines();
    let any = lines.iter().find(|line| line.contains("HTTP CONNECT") && !line.contains("mediator=")).unwrap();
    let [any, own] = [any, &own].map(|line| word_after(line, "listen=").parse().unwrap());
    let token = l.keys.terminal_token("*", &[]);
    World { l, any, own, token }
}

impl World {
    fn counter(&self, name: &str) -> u64 {
        let mut ctl = Command::new(program("isthmus-relay"));
        ctl.args(["ctl", "--state"]).arg(self.l.keys.path()).args(["show", "stat", "json"]);
        let stat: serde_json::Value = serde_json::from_slice(&ctl.output().unwrap().stdout).unwrap();
        stat["total"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {stat}"))
    }

    /// Greets with a user name and a password, and sends a request; the reply comes back.
    fn ask(&self, user: &str, password: &str, request: &[u8]) -> (Client, u8, SocketAddr) {
        let mut client = Client::login(self.any, user, password).expect("a good login");
        client.0.write_all(request).unwrap();
        let (code, bound) = client.reply();
        (client, code, bound)
    }
}

/// A SOCKS5 client after its greeting.
struct Client(TcpStream);

impl Client {
    fn connect(to: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// In an open port.
    fn open(to: SocketAddr) -> Self {
        let mut stream = Self::connect(to);
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut method = [0; 2];
        stream.read_exact(&mut method).unwrap();
        assert_eq!(method, [5, 0]);
        Self(stream)
    }

    fn login(to: SocketAddr, user: &str, password: &str) -> Option<Self> {
        let mut stream = Self::connect(to);
        // Everything at once: a client need not wait for the reply to its methods.
        let mut bytes = vec![5, 2, 0, 2, 1];
        for text in [user, password] {
            bytes.push(u8::try_from(text.len()).expect("at most 255 bytes"));
            bytes.extend_from_slice(text.as_bytes());
        }
        stream.write_all(&bytes).unwrap();
        let mut replies = [0; 4];
        stream.read_exact(&mut replies).unwrap();
        assert_eq!(replies[..3], [5, 2, 1]);
        (replies[3] == 0).then_some(Self(stream))
    }

    fn reply(&mut self) -> (u8, SocketAddr) {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!((head[0], head[2]), (5, 0));
        let mut port = [0; 2];
        let ip = if head[3] == 1 {
            let mut ip = [0; 4];
            self.0.read_exact(&mut ip).unwrap();
            ip.into()
        } else {
            let mut ip = [0; 16];
            self.0.read_exact(&mut ip).unwrap();
            std::net::IpAddr::from(ip)
        };
        self.0.read_exact(&mut port).unwrap();
        (head[1], SocketAddr::new(ip, u16::from_be_bytes(port)))
    }
}

fn request(command: u8, to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("an IPv4 address") };
    [&[5, command, 0, 1][..], &to.ip().octets(), &to.port().to_be_bytes()].concat()
}

fn request_name(command: u8, name: &str, port: u16) -> Vec<u8> {
    [&[5, command, 0, 3, name.len() as u8][..], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// A host that answers each connection's first bytes with themselves, once each.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 64];
            let count = stream.read(&mut bytes).unwrap();
            let _ = stream.write_all(&bytes[..count]);
        }
    });
    address
}

fn speak(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

fn curl(args: &[&str]) -> Finished {
    let output = Command::new("curl").args(["-sS", "-f", "-g", "-m", "30"]).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Finished { status: output.status, stdout: output.stdout, stderr }
}

#[test]
fn curl_reaches_hosts_by_address_and_name_over_socks_and_http_connect() {
    if !have("curl") {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let content = noise(23, 4 << 20);
    std::fs::write(files.path().join("file"), &content).expect("a file");
    let mut http = Command::new(program("e2e-tool"));
    http.args(["http", "127.0.0.1:0", "--dir"]).arg(files.path());
    let http = Process::spawn("http", http);
    let ready = http.wait_for_line("ready", SOON);
    let port = word_after(&ready, "ready ").rsplit(':').next().unwrap().to_owned();

    let w = world();
    let (any, own) = (w.any.to_string(), w.own.to_string());
    let (any, own) = (any.as_str(), own.as_str());
    let user = format!("cpe:{}", w.token);
    let other = format!("whoever:{}", w.token);
    let url = |host: &str| format!("http://{host}:{port}/file");
    let proxied = format!("http://{any}");
    for args in [
        ["--socks5-hostname", any, "-U", &user, &url("127.0.0.1")],
        ["--socks5-hostname", any, "-U", &user, &url("localhost")],
        ["--socks5-hostname", any, "-U", &other, &url("127-0-0-1.cpe.isthmus")],
        ["--socks5-hostname", any, "-U", &other, &url("localhost.cpe.isthmus")],
        ["--socks5", any, "-U", &user, &url("127.0.0.1")],
        ["--socks5-hostname", own, "-U", "", &url("127.0.0.1")],
        ["--socks5-hostname", own, "-U", "", &url("localhost.cpe.isthmus")],
    ] {
        let got = curl(&args).ok().stdout;
        assert!(got == content, "{args:?}: {} bytes, and not those that were sent", got.len());
    }
    for host in ["127.0.0.1", "localhost"] {
        let got = curl(&["-p", "-x", &proxied, "-U", &user, &url(host)]).ok().stdout;
        assert!(got == content, "{host}");
    }
    assert!(curl(&["-p", "-x", &proxied, &url("127.0.0.1")]).failed().stderr.contains("407"));
    let nobody = format!("nobody:{}", w.token);
    assert!(curl(&["-p", "-x", &proxied, "-U", &nobody, &url("127.0.0.1")]).failed().stderr.contains("503"));
    assert!(curl(&["-p", "-x", &proxied, "-U", &user, &url("192.0.2.7")]).failed().stderr.contains("403"));
    assert!(curl(&["-p", "-x", &proxied, "-U", &user, &url("none.invalid")]).failed().stderr.contains("50"));
    assert_eq!((w.counter("socks_refused_login"), w.counter("socks_refused_away")), (1, 1));
    assert_eq!(w.counter("socks_total"), 9);
}

#[test]
fn replies_tell_apart_why_a_connection_is_refused() {
    let w = world();
    let host = echo();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let token = w.token.as_str();
    let (mut client, code, bound) = w.ask("cpe", token, &request(1, host));
    assert_eq!((code, bound.ip()), (0, host.ip()));
    speak(&mut client.0, b"hello");
    for (user, bytes, reply) in [
        ("cpe", request(1, closed), 5),
        ("cpe", request(1, "192.0.2.7:80".parse().unwrap()), 2),
        ("nobody", request(1, host), 3),
        ("cpe", request_name(1, "none.invalid", 80), 4),
        ("cpe", request(9, host), 7),
        ("cpe", [&[5, 1, 0, 9][..], &[0; 6]].concat(), 8),
        ("bad name", request(1, host), 2),
    ] {
        let (_, code, _) = w.ask(user, token, &bytes);
        // Without any name server the answer is that, and not that the name is unknown.
        let fits = code == reply || bytes[3] == 3 && reply == 4 && code == 6;
        assert!(fits, "{user} {bytes:?}: {code}, not {reply}");
    }
    assert!(Client::login(w.any, "cpe", "no token").is_none());
    let mut methods = Client::connect(w.any);
    methods.write_all(&[5, 1, 0]).unwrap();
    let mut told = Vec::new();
    methods.read_to_end(&mut told).unwrap();
    assert_eq!(told, [5, 0xff]);
    assert_eq!(w.counter("socks_refused_login"), 2);
}

#[test]
fn tokens_bound_where_clients_go_by_address_and_by_name() {
    let w = world();
    let host = echo();
    let long = w.l.keys.terminal_token("*", &["--to", "127.0.0.0/8,10.0.0.0/8", "--allow", "connect"]);
    assert!(long.len() > 255, "{}", long.len());
    let (front, rest) = long.split_at(long.len() - 255);
    let user = format!("cpe/{front}");
    for (bytes, reply) in [
        (request(1, host), 0),
        (request_name(1, "127.0.0.1", host.port()), 0),
        (request(1, "192.168.1.1:80".parse().unwrap()), 2),
        (request(2, host), 2),
        (request(3, "0.0.0.0:0".parse().unwrap()), 2),
    ] {
        assert_eq!(w.ask(&user, rest, &bytes).1, reply, "{bytes:?}");
    }
    let elsewhere = w.l.keys.terminal_token("*", &["--to", "10.0.0.0/8"]);
    let (front, rest) = elsewhere.split_at(elsewhere.len().saturating_sub(255));
    let user = format!("cpe/{front}");
    assert_eq!(w.ask(&user, rest, &request_name(1, "localhost", host.port())).1, 2);
    let others = w.l.keys.terminal_token("hub", &[]);
    assert_eq!(w.ask("cpe", &others, &request(1, host)).1, 2);
}

#[test]
fn bind_names_the_host_that_calls_back() {
    let w = world();
    let (mut client, code, bound) = w.ask("cpe", &w.token, &request(2, "127.0.0.1:0".parse().unwrap()));
    assert_eq!(code, 0);
    assert!(!bound.ip().is_unspecified() && bound.port() != 0, "{bound}");
    let bound = SocketAddr::new("127.0.0.1".parse().unwrap(), bound.port());
    let mut host = TcpStream::connect(bound).unwrap();
    host.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.reply(), (0, host.local_addr().unwrap()));
    speak_to(&mut client.0, &mut host, b"from the client");
    speak_to(&mut host, &mut client.0, b"from the host");
    drop(client);
    assert_ended(&mut host);
    // One connection, and then it serves no more.
    assert!(ends(|| TcpStream::connect(bound).is_err()));

    // Nobody but the host that was named.
    let (client, code, bound) = w.ask("cpe", &w.token, &request(2, "127.0.0.9:0".parse().unwrap()));
    assert_eq!(code, 0);
    let mut stranger = TcpStream::connect(SocketAddr::new("127.0.0.1".parse().unwrap(), bound.port())).unwrap();
    stranger.set_read_timeout(Some(SOON)).unwrap();
    assert_ended(&mut stranger);
    // The server ends with its client.
    client.0.set_read_timeout(Some(SOON)).unwrap();
    drop(client);
    let at = SocketAddr::new("127.0.0.1".parse().unwrap(), bound.port());
    assert!(ends(|| TcpStream::connect(at).is_err()));
}

fn speak_to(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

fn assert_ended(stream: &mut TcpStream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

/// Whether something becomes true soon.
fn ends(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + SOON;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Of one token: a connected client, one whose server waits, and one with an association, with what it sends.
struct Three {
    connected: Client,
    bound: Client,
    associate: Client,
    datagrams: UdpSocket,
}

impl Three {
    fn new(w: &World, token: &str, host: SocketAddr) -> Self {
        let (mut connected, code, _) = w.ask("cpe", token, &request(1, host));
        assert_eq!(code, 0);
        speak(&mut connected.0, b"hello");
        let (bound, code, _) = w.ask("cpe", token, &request(2, "127.0.0.1:0".parse().unwrap()));
        assert_eq!(code, 0);
        let (associate, code, relay) = w.ask("cpe", token, &request(3, "0.0.0.0:0".parse().unwrap()));
        assert_eq!(code, 0);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(relay).unwrap();
        Self { connected, bound, associate, datagrams }
    }

    fn assert_cut(mut self) {
        assert_ended(&mut self.connected.0);
        assert_eq!(self.bound.reply().0, 2);
        assert_ended(&mut self.associate.0);
        // The system says that nobody is there any more.
        assert!(ends(|| self.datagrams.send(&[0; 10]).is_err()));
    }
}

/// A host that answers all that comes on each connection.
fn lasting_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    address
}

#[test]
fn live_clients_end_with_their_token_and_no_others() {
    let w = world();
    let host = lasting_echo();
    let revoke = w.l.keys.terminal_token("*", &[]);
    let (mut others, code, _) = w.ask("cpe", &w.token, &request(1, host));
    assert_eq!(code, 0);
    let revoked = Three::new(&w, &revoke, host);
    let short = w.l.keys.terminal_token("*", &["--ttl", "5s"]);
    Three::new(&w, &short, host).assert_cut();
    w.l.relay.wait_for_line("proxy clients cut .. reason=token-expired", SOON);
    assert!(Client::login(w.any, "cpe", &short).is_none());
    assert!(!w.l.relay.said_after(0, "reason=revoked"));

    let mut command = Command::new(program("isthmus-relay"));
    let output = command.args(["token", "revoke", &revoke, "--state"]).arg(w.l.keys.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    revoked.assert_cut();
    assert!(Client::login(w.any, "cpe", &revoke).is_none());
    speak(&mut others.0, b"still there");
    assert!(ends(|| w.counter("socks_live") == 1 && w.counter("socks_associations_live") == 0));
    assert!(!w.l.agent.said_after(0, "tunnel down"));
}

#[test]
fn terminals_proxy_serves_the_same_clients() {
    let w = world();
    let host = echo();
    let mut socks = Command::new(program("isthmus"));
    socks.args(["--relay", &w.l.service, "--pin", w.l.keys.pin(), "--token", &w.token]);
    let socks = Process::spawn("socks", {
        socks.args(["socks", "cpe", "--listen", "127.0.0.1:0"]);
        socks
    });
    let line = socks.wait_for_line("SOCKS5 and HTTP CONNECT on", SOON);
    let proxy: SocketAddr = word_after(&line, "CONNECT on ").parse().unwrap();

    for bytes in [
        request(1, host),
        request_name(1, "localhost", host.port()),
        request_name(1, "127-0-0-1.cpe.isthmus", host.port()),
    ] {
        let mut client = Client::open(proxy);
        client.0.write_all(&bytes).unwrap();
        assert_eq!(client.reply().0, 0, "{bytes:?}");
        speak(&mut client.0, b"hello");
    }
    let mut http = Client::connect(proxy);
    http.write_all(format!("CONNECT {host} HTTP/1.1\r\n\r\nhello").as_bytes()).unwrap();
    let answer = "HTTP/1.1 200 Connection established\r\n\r\nhello";
    let mut got = vec![0; answer.len()];
    http.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), answer);
    for (bytes, reply) in [
        (request(1, "192.0.2.7:80".parse().unwrap()), 2),
        (request_name(1, "127-0-0-1.hub.isthmus", host.port()), 2),
        (request(9, host), 7),
    ] {
        let mut client = Client::open(proxy);
        client.0.write_all(&bytes).unwrap();
        assert_eq!(client.reply().0, reply, "{bytes:?}");
    }

    let mut bind = Client::open(proxy);
    bind.0.write_all(&request(2, "127.0.0.1:0".parse().unwrap())).unwrap();
    let (code, bound) = bind.reply();
    assert_eq!(code, 0);
    let mut caller = TcpStream::connect(("127.0.0.1", bound.port())).unwrap();
    caller.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(bind.reply(), (0, caller.local_addr().unwrap()));
    speak_to(&mut caller, &mut bind.0, b"from the host");
    speak_to(&mut bind.0, &mut caller, b"from the client");

    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    echo.set_read_timeout(Some(SOON)).unwrap();
    let SocketAddr::V4(to) = echo.local_addr().unwrap() else { unreachable!("bound so") };
    let mut control = Client::open(proxy);
    control.0.write_all(&request(3, "0.0.0.0:0".parse().unwrap())).unwrap();
    let (code, at) = control.reply();
    assert_eq!(code, 0);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let sent = [&[0, 0, 0, 1][..], &to.ip().octets(), &to.port().to_be_bytes(), b"datagram"].concat();
    client.send_to(&sent, at).unwrap();
    let mut bytes = [0; 64];
    let (count, from) = echo.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..count], *b"datagram");
    echo.send_to(b"back", from).unwrap();
    let count = client.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..count], [&sent[..10], b"back"].concat());
}
