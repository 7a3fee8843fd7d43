//! The HTTP server from a client's side, byte by byte; and the relay's own pages.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Plane};
use hyper::StatusCode;
use isthmus_relay::admin::{self, Command, ShardHandle};
use isthmus_relay::http::{Access, Body, HttpSocket, Limits, Reply, Router, Tally, serve, text};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A server with pages for these tests, that ends with the test's process.
struct Server(SocketAddr);

impl Server {
    fn start(limits: Limits) -> Self {
        Self::start_at(HttpSocket::bind("127.0.0.1:0".parse().unwrap(), None).unwrap(), limits)
    }

    fn start_at(socket: HttpSocket, limits: Limits) -> Self {
        let address = socket.address();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tally = Rc::new(Tally::default());
            let pages = pages(&tally);
            tokio::task::LocalSet::new().block_on(&runtime, serve(socket, pages, limits, tally));
        });
        Self(address)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request, and reads all until the server closes.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        // One that is refused may be closed already; the answer tells.
        let _ = stream.write_all(request.as_bytes());
        rest(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// Asks until the server has counted one of these.
    fn await_count(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        // While the last connections end, this one may be one too many.
        while self.get("/tally").lines().find_map(|line| line.strip_prefix(name)).is_none_or(|count| count == " 0") {
            assert!(Instant::now() < deadline, "{name} is never counted");
        }
    }
}

fn pages(tally: &Rc<Tally>) -> Router {
    let tally = tally.clone();
    Router::default()
        .page("/open", Access::Open, |_| async { text(StatusCode::OK, "open\n") })
        .page("/closed", Access::Token, |_| async { text(StatusCode::OK, "closed\n") })
        .page("/under/*", Access::Open, |asked| async move {
            text(StatusCode::OK, format!("{} {}\n", asked.rest, asked.query("n").unwrap_or("-")))
        })
        .page("/never", Access::Open, |_| std::future::pending::<Reply>())
        .page("/large", Access::Open, |_| async { text(StatusCode::OK, "x".repeat(32 << 20)) })
        .page("/stream", Access::Open, |_| async {
            let (pieces, body) = Body::stream();
            tokio::task::spawn_local(async move {
                let mut n = 0;
                while pieces.send(format!("data: {n}\n\n").into()).await.is_ok() {
                    n += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            Reply::new(body)
        })
        .page("/tally", Access::Open, move |_| {
            let lines: String = tally.fields().map(|(name, _, value)| format!("{name} {value}\n")).collect();
            async move { text(StatusCode::OK, lines) }
        })
}

/// What comes until the end; a reset is one as well.
fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 64 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no answer: {error}"),
        }
    }
    String::from_utf8(all).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// Reads until the text has come.
fn read_until(stream: &mut TcpStream, want: &str) -> String {
    let mut all = String::new();
    let mut byte = [0; 1];
    while !all.contains(want) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the end after {all:?}");
        all.push(char::from(byte[0]));
    }
    all
}

#[test]
fn page_is_answered_with_the_headers_that_protect_it() {
    let server = Server::start(Limits::default());
    let answer = server.get("/open");
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("\r\n\r\nopen\n"), "{answer}");
    for header in [
        "content-type: text/plain; charset=utf-8",
        "content-length: 5",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
        "content-security-policy: default-src 'none'",
        "referrer-policy: no-referrer",
    ] {
        assert!(answer.contains(&format!("\r\n{header}")), "{header}: {answer}");
    }
    assert!(server.get("/under/a/b?m=1&n=2").ends_with("\r\n\r\na/b 2\n"));
}

#[test]
fn head_has_the_lengths_and_no_body() {
    let server = Server::start(Limits::default());
    let answer = server.ask("HEAD /open HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn requests_of_one_connection_are_answered_in_order() {
    let server = Server::start(Limits::default());
    let one = "GET /open HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /under/last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = server.ask(&format!("{one}{one}{last}"));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert!(answer.ends_with("last -\n"), "{answer}");
}

#[test]
fn what_is_not_understood_is_refused_in_plain_words() {
    let server = Server::start(Limits::default());
    let long = format!("GET /open HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let many = format!("GET /open HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(100));
    for (request, want, part) in [
        ("GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404, "no such page"),
        ("POST /open HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhello", 405, "allow: GET, HEAD"),
        ("DELETE /open HTTP/1.1\r\nhost: localhost\r\n\r\n", 405, "only GET and HEAD"),
        ("GET /open HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhello", 413, "no body"),
        ("GET /open HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 413, "no body"),
        ("GET /open HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", 421, "localhost"),
        ("GET http://evil.example/open HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 421, "localhost"),
        ("GET /open HTTP/1.1\r\nconnection: close\r\n\r\n", 421, "localhost"),
        ("nonsense\r\n\r\n", 400, ""),
        (&long, 431, ""),
        (&many, 431, ""),
    ] {
        let answer = server.ask(request);
        assert_eq!(status(&answer), want, "{request:.60}: {answer}");
        assert!(answer.contains(part), "{request:.60}: {answer}");
    }
    server.await_count("http_requests_refused_host");
    server.await_count("http_requests_bad");
}

#[test]
fn token_guards_what_is_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let socket = HttpSocket::bind("127.0.0.1:0".parse().unwrap(), Some(&path)).unwrap();
    let server = Server::start_at(socket, Limits::default());
    let ask = |path: &str, header: &str| {
        server.ask(&format!("GET {path} HTTP/1.1\r\nhost: relay.example\r\n{header}connection: close\r\n\r\n"))
    };
    let refused = ask("/closed", "");
    assert_eq!(status(&refused), 401);
    assert!(refused.contains("www-authenticate: Bearer") && refused.contains("www-authenticate: Basic"), "{refused}");
    assert!(ask("/closed", &format!("authorization: Bearer {TOKEN}\r\n")).ends_with("closed\n"));
    assert_eq!(status(&ask("/closed", &format!("authorization: Bearer {TOKEN}0\r\n"))), 401);
    assert_eq!(status(&ask(&format!("/closed?token={TOKEN}"), "")), 401);
    assert!(ask("/open", "").ends_with("open\n"));
    assert!(ask("/tally", "").contains("http_requests_refused_token 3\n"));
}

#[test]
fn stream_goes_on_until_its_reader_leaves_and_then_frees_its_place() {
    let server = Server::start(Limits { streams_max: 1, ..Limits::default() });
    let mut reader = server.connect();
    reader.write_all(b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let head = read_until(&mut reader, "data: 9\n\n");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    // Nobody else has a stream meanwhile, but everybody else a page.
    assert_eq!(status(&server.get("/stream")), 503);
    assert_eq!(status(&server.get("/open")), 200);
    drop(reader);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut next = server.connect();
        next.write_all(b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        if read_until(&mut next, "\r\n").contains("200") {
            break;
        }
        assert!(Instant::now() < deadline, "the place is never free");
    }
    server.await_count("http_streams_refused");
}

#[test]
fn connection_beyond_the_limit_is_told_so() {
    let server = Server::start(Limits { connections_max: 2, ..Limits::default() });
    let held: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /open HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            read_until(&mut stream, "open\n");
            stream
        })
        .collect();
    let mut third = server.connect();
    let answer = rest(&mut third);
    assert_eq!(status(&answer), 503);
    assert!(answer.contains("too many connections"), "{answer}");
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while !server.get("/open").ends_with("open\n") {
        assert!(Instant::now() < deadline, "a place is never free");
    }
    server.await_count("http_connections_refused");
}

#[test]
fn slow_clients_are_cut_off_and_counted() {
    let short = Duration::from_millis(50);
    let server = Server::start(Limits { head: short, ..Limits::default() });
    // Half a request; a byte now and then does not help.
    let mut half = server.connect();
    half.write_all(b"GET /open HTTP/1.1\r\nx: ").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while half.write_all(b"y").is_ok() {
        assert!(Instant::now() < deadline, "a request may take for ever");
        thread::sleep(Duration::from_millis(10));
    }
    server.await_count("http_head_timeouts");
    // None at all.
    rest(&mut server.connect());
    server.await_count("http_idle_timeouts");

    // Who does not read the answer.
    let server = Server::start(Limits { write: short, ..Limits::default() });
    let mut deaf = server.connect();
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    server.await_count("http_write_timeouts");
}

#[test]
fn handler_that_takes_too_long_is_not_waited_for() {
    let server = Server::start(Limits { answer: Duration::from_millis(20), ..Limits::default() });
    assert_eq!(status(&server.get("/never")), 504);
    server.await_count("http_answer_timeouts");
}

/// The HTTP port of a management plane.
fn port(plane: &Plane) -> Server {
    Server(plane.client().ask_json("show info json")["http"].as_str().unwrap().parse().unwrap())
}

#[test]
fn relay_tells_that_it_lives_and_that_its_shards_answer() {
    let plane = Plane::start_flags(3, Vec::new(), admin::Limits::default(), &["--http", "127.0.0.1:0"]);
    let server = port(&plane);
    assert!(server.get("/healthz").ends_with("\r\n\r\nok\n"));
    assert!(server.get("/readyz").ends_with("\r\n\r\nready\n"));
    assert_eq!(plane.client().figure("http_requests_total"), 2);
    let mut open = server.connect();
    plane.stop();
    assert_eq!(rest(&mut open), "");
    assert!(TcpStream::connect(server.0).is_err());
}

#[test]
fn relay_is_not_ready_while_a_shard_does_not_answer() {
    let (stuck, _queue) = crossbeam_channel::bounded::<Command>(8);
    let handle = ShardHandle { commands: stuck, wake: Arc::new(|| {}), counters: Arc::default() };
    let limits = admin::Limits { reply: Duration::from_millis(50), ..admin::Limits::default() };
    let plane = Plane::start_configured(vec![handle], Vec::new(), limits, &["--http", "127.0.0.1:0"]);
    let server = port(&plane);
    let answer = server.get("/readyz");
    assert_eq!(status(&answer), 503);
    assert!(answer.contains("shard 0 did not answer"), "{answer}");
    assert!(server.get("/healthz").ends_with("ok\n"));
    plane.stop();
}
