//! `show info`, `show stat` and `show errors`: the relay itself and its counters.

use std::fmt::Write;

use isthmus_proto::Code;
use serde_json::{Map, Value, json};

use super::answer::{self, phrase, table};
use super::counters::{Counter, ShardCounters};
use super::dispatch::Format;
use super::serve::Plane;
use crate::records::Records;

/// The relay itself: one `name: value` a line, or one object.
pub(super) fn info(plane: &Plane, format: Format) -> Result<String, String> {
    let info = plane.info.borrow();
    let sum = |counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).sum::<u64>();
    let mut fields: Vec<(&str, Value)> = vec![
        ("name", json!("isthmus-relay")),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("pid", json!(std::process::id())),
        ("uptime_s", json!(info.started.elapsed().as_secs())),
        ("listen", json!(info.listen)),
        ("plaintext", json!(info.plaintext)),
        ("fingerprint", json!(info.fingerprint.to_string())),
        ("shards", json!(plane.shards.len())),
    ];
    for counter in [
        Counter::TunnelsLive,
        Counter::TerminalsLive,
        Counter::VisitorsLive,
        Counter::FlowsLive,
        Counter::ChannelsLive,
        Counter::HalfOpen,
    ] {
        fields.push((counter.word(), json!(sum(counter))));
    }
    fields.extend(plane.http_address.map(|address| ("http", json!(address))));
    fields.extend(plane.records.iter().flat_map(Records::fields).map(|(name, value)| (name, json!(value))));
    fields.extend(plane.tally.fields().map(|(name, value)| (name, json!(value))));
    fields.extend(plane.http_tally.fields().map(|(name, _, value)| (name, json!(value))));
    match format {
        Format::Json => answer::json(&fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>()),
        Format::Text => {
            let mut text = String::new();
            for (name, value) in fields {
                let value = value.as_str().map_or_else(|| value.to_string(), phrase_of_ours);
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name}: {value}");
            }
            Ok(text)
        }
    }
}

/// Our own words are short, but a fingerprint is longer than what is shown of others' texts.
fn phrase_of_ours(text: &str) -> String {
    if text.is_ascii() { text.to_owned() } else { phrase(text) }
}

/// Every counter in total and per shard: a table, or an object with `total` and `shards`. Links' ends are
/// shown for the reasons that have occurred.
pub(super) fn stat(plane: &Plane, format: Format) -> Result<String, String> {
    let shards: Vec<&ShardCounters> = plane.shards.iter().map(|shard| &*shard.counters).collect();
    match format {
        Format::Json => {
            let each: Vec<Value> = shards.iter().map(|shard| object(&[shard])).collect();
            answer::json(&json!({ "total": object(&shards), "shards": each }))
        }
        Format::Text => {
            let names: Vec<String> = (0..shards.len()).map(|n| format!("shard{n}")).collect();
            let mut header = vec!["counter", "total"];
            header.extend(names.iter().map(String::as_str));
            let mut rows = Vec::new();
            for &counter in Counter::ALL {
                rows.push(row(counter.word(), shards.iter().map(|shard| shard.get(counter))));
            }
            for &code in Code::ALL {
                if shards.iter().any(|shard| shard.links_closed(code) > 0) {
                    let name = format!("links_closed_{}", code.word().replace('-', "_"));
                    rows.push(row(&name, shards.iter().map(|shard| shard.links_closed(code))));
                }
            }
            Ok(table(&header, &rows))
        }
    }
}

/// What went wrong since the start: counters above zero of what was refused, dropped or failed, and links that ended by
/// force, each with its meaning.
pub(super) fn errors(plane: &Plane, format: Format) -> Result<String, String> {
    let shards: Vec<&ShardCounters> = plane.shards.iter().map(|shard| &*shard.counters).collect();
    let counted = Counter::ALL.iter().filter(|counter| counter.is_trouble()).map(|&counter| {
        let each: Vec<u64> = shards.iter().map(|shard| shard.get(counter)).collect();
        (counter.word().to_owned(), each, counter.help())
    });
    let closed = Code::ALL.iter().filter(|&&code| !PEACEFUL.contains(&code)).map(|&code| {
        let each: Vec<u64> = shards.iter().map(|shard| shard.links_closed(code)).collect();
        (format!("links_closed_{}", code.word().replace('-', "_")), each, code.text())
    });
    let found: Vec<(String, Vec<u64>, &str)> =
        counted.chain(closed).filter(|(_, each, _)| each.iter().any(|&count| count > 0)).collect();
    match format {
        Format::Json => {
            let errors: Vec<Value> = found
                .iter()
                .map(|(name, each, meaning)| {
                    json!({ "name": name, "count": each.iter().sum::<u64>(), "shards": each, "meaning": meaning })
                })
                .collect();
            answer::json(&json!({ "errors": errors }))
        }
        Format::Text if found.is_empty() => Ok("# nothing went wrong\n".to_owned()),
        Format::Text => {
            let cells: Vec<Vec<String>> = found
                .iter()
                .map(|(name, each, meaning)| {
                    vec![name.clone(), each.iter().sum::<u64>().to_string(), (*meaning).to_owned()]
                })
                .collect();
            Ok(table(&["error", "count", "meaning"], &cells))
        }
    }
}

/// Ends of links that are nobody's trouble.
const PEACEFUL: [Code; 5] = [Code::Ok, Code::Closed, Code::Draining, Code::Killed, Code::PeerClosed];

fn row(name: &str, values: impl Iterator<Item = u64> + Clone) -> Vec<String> {
    let mut row = vec![name.to_owned(), values.clone().sum::<u64>().to_string()];
    row.extend(values.map(|value| value.to_string()));
    row
}

/// The sums of `shards`.
fn object(shards: &[&ShardCounters]) -> Value {
    let mut object = Map::new();
    for &counter in Counter::ALL {
        let sum: u64 = shards.iter().map(|shard| shard.get(counter)).sum();
        object.insert(counter.word().to_owned(), json!(sum));
    }
    let mut closed = Map::new();
    for &code in Code::ALL {
        let sum: u64 = shards.iter().map(|shard| shard.links_closed(code)).sum();
        if sum > 0 {
            closed.insert(code.word().to_owned(), json!(sum));
        }
    }
    object.insert("links_closed".to_owned(), Value::Object(closed));
    Value::Object(object)
}
