//! `/metrics` and `show metrics`: the same text, documented, and without anybody's name.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crate::common::{Client, PATIENCE, Plane, names, row};
use isthmus_proto::{Code, ShardId};
use isthmus_relay::admin::{Counter, Counters, Limits, Series, ShardCounters};

const DOCS: &str = include_str!("../../../docs/metrics.md");

fn plane() -> Plane {
    let rows = names(3).iter().map(|id| row(id.as_str(), ShardId(0))).collect();
    Plane::start_flags(2, rows, Limits::default(), &["--http", "127.0.0.1:0"])
}

fn get(client: &mut Client, path: &str) -> String {
    let address = client.ask_json("show info json")["http"].as_str().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Name, type and help of every family, as rows of a table.
fn rows_of(text: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).expect("a type behind the help");
        rows.push(format!("| `{name}` | {kind} | {help} |"));
    }
    rows
}

#[test]
fn both_ways_give_the_same_families_with_the_same_figures() {
    let plane = plane();
    let mut client = plane.client();
    let (mut own, shared): (Counters, &Arc<ShardCounters>) = (Counters::default(), &plane.counters[1]);
    own.add(Counter::TunnelsTotal, 7);
    own.add(Counter::DatagramsReplayed, 3);
    own.link_closed(Code::Silent);
    own.publish(shared);
    shared.histograms.observe(Series::Connect, 1_500_000);
    let page = get(&mut client, "/metrics");
    assert!(page.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page:.600}");
    let (_, page) = page.split_once("\r\n\r\n").unwrap();
    let shown = client.ask("show metrics");
    assert_eq!(rows_of(page), rows_of(&shown));
    for line in [
        "isthmus_tunnels_opened_total{shard=\"1\"} 7",
        "isthmus_tunnels_opened_total{shard=\"0\"} 0",
        "isthmus_datagrams_dropped_total{shard=\"1\",reason=\"replayed\"} 3",
        "isthmus_links_closed_total{shard=\"1\",reason=\"silent\"} 1",
        "isthmus_connect_seconds_bucket{shard=\"1\",le=\"0.001\"} 0",
        "isthmus_connect_seconds_bucket{shard=\"1\",le=\"0.002\"} 1",
        "isthmus_connect_seconds_bucket{shard=\"1\",le=\"+Inf\"} 1",
        "isthmus_connect_seconds_sum{shard=\"1\"} 0.0015",
        "isthmus_connect_seconds_count{shard=\"1\"} 1",
        "isthmus_http_requests_total 1",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no {line}");
    }
    assert!(!shown.contains("cpe-"), "a mediator's name");
    plane.stop();
}

#[test]
fn every_sample_has_a_family_and_no_two_are_the_same() {
    let plane = plane();
    let text = plane.client().ask("show metrics");
    let mut seen = BTreeSet::new();
    let (mut family, mut kind) = ("", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').unwrap();
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} in {family}"));
            let good: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(good.contains(&suffix) && seen.insert(series), "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        }
    }
    plane.stop();
}

#[test]
fn documentation_has_every_metric_and_no_other() {
    let plane = plane();
    let rows = rows_of(&plane.client().ask("show metrics"));
    let documented: Vec<&str> = DOCS.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows == documented, "docs/metrics.md should have these rows:\n{}", rows.join("\n"));
    plane.stop();
}
