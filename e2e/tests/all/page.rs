//! The web page and its questions, at a real relay; in a real browser where there is one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use isthmus_e2e::{Loopback, SOON, have, word_after};
use serde_json::Value;

/// What a hostile mediator would call its service.
const SERVICE: &str = "<img src=x onerror=document.title='taken'> & more";

struct Watched {
    world: Loopback,
    http: SocketAddr,
}

impl Watched {
    fn start() -> Self {
        let world = Loopback::start(&["--http", "127.0.0.1:0"], &["--service", SERVICE]);
        let line = world.relay.wait_for_line("HTTP listens", SOON);
        Self { http: word_after(&line, "address=").parse().unwrap(), world }
    }

    fn connect(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.http).unwrap();
        stream
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        let mut answer = String::new();
        self.connect(path).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    fn json(&self, path: &str) -> Value {
        let (status, _, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Asks until the answer is as wanted.
    fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let value = self.json(path);
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} stays {value}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn questions_of_the_page_tell_what_the_relay_has() {
    let it = Watched::start();
    let overview = it.until("/api/v1/overview", |value| value["tunnels"] == 1);
    assert_eq!((&overview["v"], &overview["plaintext"]), (&1.into(), &false.into()));
    let page = it.json("/api/v1/tunnels?search=CP&limit=5");
    assert_eq!(page["tunnels"].as_array().unwrap().len(), 0, "names tell upper from lower case: {page}");
    let page = it.json("/api/v1/tunnels?search=p&limit=5");
    assert_eq!((&page["tunnels"][0]["id"], &page["more"]), (&"cpe".into(), &false.into()), "{page}");
    assert_eq!(it.json("/api/v1/tunnels?after=cpe")["tunnels"].as_array().unwrap().len(), 0);
    let one = it.json("/api/v1/tunnels/cpe");
    assert_eq!(one["tunnel"]["report"]["service"], SERVICE);
    // A rate needs two looks, a second apart.
    let past = it.until("/api/v1/history", |value| value["at"].as_array().is_some_and(|rows| rows.len() > 1));
    let rows = past["at"].as_array().unwrap().len();
    for column in ["tunnels", "bits_in", "packets_out", "drops", "attached", "load"] {
        assert_eq!(past[column].as_array().unwrap().len(), rows, "{column}");
    }
    let shards = it.json("/api/v1/shards");
    let live: u64 =
        shards["shards"].as_array().unwrap().iter().map(|shard| shard["tunnels_live"].as_u64().unwrap()).sum();
    assert_eq!(live, 1);
    for (path, status) in [
        ("/api/v1/tunnels/nobody", 404),
        ("/api/v1/tunnels/a%2Fb", 400),
        ("/api/v1/tunnels?limit=0", 400),
        ("/api/v1/tunnels?limit=501", 400),
        ("/api/v1/tunnels?search=a/b", 400),
        ("/api/v1/tunnels?after=-", 400),
        ("/api/v1/history?span=year", 400),
        ("/api/v1/events?id=a/b", 400),
        ("/api/v1/other", 404),
    ] {
        assert_eq!(it.get(path).0, status, "{path}");
    }
}

#[test]
fn page_may_load_its_own_files_only() {
    let it = Watched::start();
    let (status, head, page) = it.get("/");
    assert_eq!(status, 200);
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    for (file, kind) in [("page.css", "text/css"), ("page.js", "text/javascript")] {
        assert!(page.contains(&format!("\"{file}\"")), "{file}");
        let (status, head, body) = it.get(&format!("/{file}"));
        assert!(status == 200 && head.contains(&format!("content-type: {kind}")) && !body.is_empty(), "{file}: {head}");
    }
}

#[test]
fn events_come_as_they_happen_and_go_on_where_a_browser_was() {
    let it = Watched::start();
    it.until("/api/v1/overview", |value| value["tunnels"] == 1);
    let mut events = BufReader::new(it.connect("/api/v1/events?id=cpe"));
    let mut next = |what: &str| {
        let mut number = String::new();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(events.read_line(&mut line).unwrap() > 0, "the stream ends before {what}");
            if let Some(id) = line.strip_prefix("id: ") {
                number = id.trim().to_owned();
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["mediator"], "cpe");
                if event["what"] == what {
                    return (number, event);
                }
            }
        }
    };
    let (up, _) = next("tunnel-up");
    it.world.agent.terminate();
    let (_, down) = next("tunnel-down");
    assert!(down["text"].as_str().is_some_and(|text| !text.is_empty()), "{down}");
    let mut stream = TcpStream::connect(it.http).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET /api/v1/events HTTP/1.0\r\nhost: {}\r\nlast-event-id: {up}\r\n\r\n", it.http).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let first = lines.find(|line| line.starts_with("data: ")).unwrap();
    assert!(first.contains("tunnel-down"), "{first}");
}

#[test]
fn browser_shows_overview_and_mediators_and_takes_no_markup_of_theirs() {
    if !have("chromium") {
        eprintln!("skipped: no chromium");
        return;
    }
    let it = Watched::start();
    it.until("/api/v1/overview", |value| value["tunnels"] == 1);
    let profile = tempfile::tempdir().unwrap();
    let dom = |view: &str| {
        let mut browser = Command::new("chromium");
        browser.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]);
        browser.arg(format!("--user-data-dir={}", profile.path().display()));
        browser.arg(format!("http://{}/#{view}", it.http)).stderr(Stdio::null());
        String::from_utf8(browser.output().unwrap().stdout).unwrap()
    };
    let overview = dom("overview");
    assert!(overview.contains("<dt>Mediators</dt><dd>1</dd>"), "{overview}");
    assert!(overview.contains("<svg"), "{overview}");
    let mediators = dom("mediators");
    assert!(mediators.contains("href=\"#mediator/cpe\""), "{mediators}");
    assert!(mediators.contains("&lt;img src=x"), "{mediators}");
    assert!(!mediators.contains("<title>taken"), "{mediators}");
}
