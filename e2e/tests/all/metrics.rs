//! What the relay measures, as Prometheus, the dashboard and the alerts see it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{echo_hosts, published};
use isthmus_e2e::{Loopback, Process, SOON, have, program, word_after};
use serde_json::Value;

/// The host's bytes that come back to each visitor.
const BYTES: usize = 24 << 20;

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards")
}

struct Measured {
    world: Loopback,
    http: SocketAddr,
}

impl Measured {
    fn start() -> Self {
        let (tcp, udp) = echo_hosts();
        let publish = [format!("tcp:127.0.0.1:0=cpe/{tcp}"), format!("udp:127.0.0.1:0=cpe/{udp}")];
        let args = ["--http", "127.0.0.1:0", "--publish", &publish[0], "--publish", &publish[1]];
        let world = Loopback::start(&args, &[]);
        let line = world.relay.wait_for_line("HTTP listens", SOON);
        let http = word_after(&line, "address=").parse().unwrap();
        Self { world, http }
    }

    fn ctl(&self, command: &[&str]) -> String {
        let mut ctl = Command::new(program("isthmus-relay"));
        ctl.arg("ctl").arg("--state").arg(self.world.keys.path()).args(command);
        String::from_utf8(ctl.output().unwrap().stdout).unwrap()
    }

    fn published(&self, proto: &str) -> SocketAddr {
        published(&self.world, proto).parse().unwrap()
    }

    /// A visitor of each kind.
    fn make_traffic(&self) {
        let mut up = TcpStream::connect(self.published("tcp")).unwrap();
        let mut down = up.try_clone().unwrap();
        let reader = thread::spawn(move || std::io::copy(&mut (&mut down).take(BYTES as u64), &mut std::io::sink()));
        // In two halves with a rest between: round trips are measured twice a second at most.
        for _ in 0..2 {
            up.write_all(&vec![7; BYTES / 2]).unwrap();
            thread::sleep(Duration::from_millis(600));
        }
        assert_eq!(reader.join().unwrap().unwrap(), BYTES as u64);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(self.published("udp")).unwrap();
        udp.set_read_timeout(Some(SOON)).unwrap();
        for _ in 0..10 {
            udp.send(b"hello").unwrap();
            udp.recv(&mut [0; 64]).unwrap();
        }
    }

    fn metrics(&self) -> String {
        let (status, body) = get(self.http, "/metrics");
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// A page, by HTTP/1.0, so that it comes in one piece.
fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {at}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A figure, summed over the shards.
fn figure(text: &str, name: &str, label: &str) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name) && series.contains(label)).then(|| value.parse::<f64>().unwrap())
    };
    let values: Vec<f64> = text.lines().filter_map(of).collect();
    assert!(!values.is_empty(), "no {name} {label}");
    values.iter().sum()
}

#[test]
fn traffic_is_seen_in_counters_and_histograms() {
    let it = Measured::start();
    it.make_traffic();
    let text = it.metrics();
    for (name, label, least) in [
        ("isthmus_tunnels", "", 1.0),
        ("isthmus_visitors_opened_total", "", 1.0),
        ("isthmus_flows_opened_total", "", 1.0),
        ("isthmus_payload_bytes_total", "direction=\"to_mediators\"", BYTES as f64),
        ("isthmus_payload_bytes_total", "direction=\"from_mediators\"", BYTES as f64),
        ("isthmus_datagrams_total", "direction=\"to_mediators\"", 10.0),
        ("isthmus_connect_seconds_count", "", 1.0),
        ("isthmus_connect_seconds_sum", "", 1e-6),
        ("isthmus_maintain_round_trip_seconds_count", "", 1.0),
        ("isthmus_packet_in_relay_seconds_count", "", 1.0),
        ("isthmus_queued_bytes_count", "", 1.0),
        ("isthmus_shard_cpu_seconds_total", "", 0.0),
        ("isthmus_certificate_not_after_timestamp_seconds", "certificate=\"server\"", 2e9),
        ("process_resident_memory_bytes", "", 1e6),
    ] {
        let value = figure(&text, name, label);
        assert!(value >= least, "{name} {label}: {value} is less than {least}");
    }
    // The first visitor of sixteen is timed, and his connect is no failure.
    assert!(figure(&text, "isthmus_connect_seconds_sum", "") < SOON.as_secs_f64());
    assert_eq!(figure(&text, "isthmus_connect_failed_total", ""), 0.0);
}

#[test]
fn promtool_finds_nothing_to_say() {
    if !have("promtool") {
        return;
    }
    let it = Measured::start();
    it.make_traffic();
    for text in [it.metrics(), it.ctl(&["show", "metrics"])] {
        let mut check = Command::new("promtool");
        check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = check.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", text.trim_end()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    for words in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new("promtool").args(words).current_dir(dashboards()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

/// A Prometheus of its own that scrapes the relay each second.
struct Prometheus {
    at: SocketAddr,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; it cannot be told to choose one by itself and to tell.
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = folder.path().join("prometheus.yml");
        let rules = dashboards().canonicalize().unwrap().join("alerts.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\nscrape_configs:\n  - \
             job_name: isthmus\n    static_configs: [{{ targets: [\"{target}\"] }}]\n",
            rules.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={at}"));
        let process = Process::spawn("prometheus", command);
        process.wait_for_line("Server is ready to receive web requests", SOON * 3);
        Self { at, process, _folder: folder }
    }

    /// What it answers to a query; an error is a text.
    fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let mut escaped = String::new();
        for byte in expression.bytes() {
            let _ = write!(escaped, "%{byte:02x}");
        }
        let (_, body) = get(self.at, &format!("/api/v1/query?query={escaped}"));
        let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].to_string()),
        }
    }

    /// Waits until a query has an answer.
    fn await_answer(&self, expression: &str) {
        let deadline = Instant::now() + SOON;
        while self.query(expression).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "no answer to {expression}");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Every expression of the dashboard.
fn expressions(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(expression) = fields.get("expr").and_then(Value::as_str) {
                found.insert(expression.replace("$instance", ".*").replace("$__rate_interval", "1m"));
            }
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn every_query_of_dashboard_and_alerts_has_data_in_a_real_prometheus() {
    if !have("prometheus") {
        return;
    }
    let it = Measured::start();
    let mut prometheus = Prometheus::start(it.http);
    prometheus.await_answer("isthmus_tunnels");
    it.make_traffic();
    prometheus.await_answer("sum(rate(isthmus_connect_seconds_count[1m])) > 0");

    let dashboard = std::fs::read_to_string(dashboards().join("grafana.json")).unwrap();
    let mut wanted = BTreeSet::new();
    expressions(&serde_json::from_str(&dashboard).unwrap(), &mut wanted);
    assert!(wanted.len() > 40, "only {} queries", wanted.len());

    let (_, rules) = get(prometheus.at, "/api/v1/rules");
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 8, "only {} alerts", rules.len());
    for rule in rules {
        // An alert is silent when all is well; what it looks at is there.
        let query = rule["query"].as_str().unwrap();
        let compared = [" == ", " > ", " < "].into_iter().filter_map(|operator| query.rfind(operator)).max();
        wanted.insert(query[..compared.expect("a comparison")].to_owned());
    }
    let mut wrong = String::new();
    for expression in &wanted {
        match prometheus.query(expression) {
            Ok(result) if !result.is_empty() => {}
            Ok(_) => writeln!(wrong, "no data: {expression}").unwrap(),
            Err(error) => writeln!(wrong, "{error}: {expression}").unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let firing = prometheus.query("ALERTS").unwrap();
    assert!(firing.is_empty(), "alarms about a relay that works: {firing:?}");
    prometheus.process.terminate();
    prometheus.process.wait_exit(SOON);
}
