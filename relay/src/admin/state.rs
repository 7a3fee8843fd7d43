//! How the relay is made and how full it is: `show shards`, `show pools`, `show flows`, `show limits`, `show config`.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::answer::{json, table, word};
use super::command::Command;
use super::counters::Counter;
use super::dispatch::Format;
use super::metrics::open_descriptors;
use super::rows::{FlowRow, ShardState};
use super::serve::Plane;
use super::show::{answer_of, ask_all, ask_each};
use crate::publish::Proto;
use crate::trust::Glob;

/// Over which a shard's load is measured.
const LOAD_OVER: Duration = Duration::from_millis(250);

/// Each shard: its load over a quarter of a second, what it has, what waits.
pub(super) async fn shards(plane: &Plane, format: Format) -> Result<String, String> {
    let ask = || ask_each(plane, |reply| Command::State { reply });
    let (before, then) = (ask().await?, Instant::now());
    tokio::time::sleep(LOAD_OVER).await;
    let (states, over) = (ask().await?, then.elapsed());
    let rows: Vec<(Value, Vec<String>)> = states
        .iter()
        .zip(&before)
        .map(|(state, before)| {
            let cpu = state.cpu_us.saturating_sub(before.cpu_us) as f64 / over.as_micros() as f64;
            let load_pct = (cpu * 100.0).round().min(100.0) as u64;
            (shard_json(plane, state, load_pct), shard_cells(plane, state, load_pct))
        })
        .collect();
    let (objects, cells): (Vec<Value>, Vec<Vec<String>>) = rows.into_iter().unzip();
    match format {
        Format::Json => json(&json!({ "shards": objects })),
        Format::Text => {
            let header = [
                "shard",
                "load_%",
                "cpu_s",
                "tunnels",
                "terminals",
                "streams",
                "flows",
                "half_open",
                "queued_bytes",
                "operations",
                "direct_fds",
            ];
            Ok(table(&header, &cells))
        }
    }
}

/// Of a shard's gauges, those that are shown with its state.
const GAUGES: [Counter; 3] = [Counter::TunnelsLive, Counter::TerminalsLive, Counter::HalfOpen];

fn gauges(plane: &Plane, state: &ShardState) -> [u64; 3] {
    let counters = plane.shards.get(usize::from(state.shard.0)).map(|shard| &shard.counters);
    GAUGES.map(|counter| counters.map_or(0, |counters| counters.get(counter)))
}

fn shard_json(plane: &Plane, state: &ShardState, load_pct: u64) -> Value {
    let [tunnels, terminals, half_open] = gauges(plane, state);
    json!({
        "shard": state.shard,
        "load_pct": load_pct,
        "cpu_us": state.cpu_us,
        "tunnels": tunnels,
        "terminals": terminals,
        "streams": state.streams,
        "flows": state.flows,
        "half_open": half_open,
        "queued_bytes": state.queued_bytes,
        "queued_bytes_max": state.queued_bytes_max,
        "operations": state.operations,
        "direct_descriptors": state.direct_descriptors,
    })
}

fn shard_cells(plane: &Plane, state: &ShardState, load_pct: u64) -> Vec<String> {
    let [tunnels, terminals, half_open] = gauges(plane, state);
    let seconds = format!("{:.1}", state.cpu_us as f64 / 1e6);
    let numbers = [tunnels, terminals, state.streams, state.flows, half_open, state.queued_bytes, state.operations];
    let mut cells = vec![state.shard.0.to_string(), load_pct.to_string(), seconds];
    cells.extend(numbers.iter().chain([&state.direct_descriptors]).map(u64::to_string));
    cells
}

/// Each shard's buffers.
pub(super) async fn pools(plane: &Plane, format: Format) -> Result<String, String> {
    let states = ask_each(plane, |reply| Command::State { reply }).await?;
    match format {
        Format::Json => {
            let shards: Vec<Value> =
                states.iter().map(|state| json!({ "shard": state.shard, "pools": state.pools })).collect();
            json(&json!({ "shards": shards }))
        }
        Format::Text => {
            let header =
                ["shard", "pool", "block_bytes", "live", "live_max", "free", "lent", "held", "held_most", "exhausted"];
            let rows = states.iter().flat_map(|state| state.pools.iter().map(move |pool| (state, pool)));
            let cells: Vec<Vec<String>> = rows
                .map(|(state, pool)| {
                    let mut cells = vec![state.shard.0.to_string(), pool.pool.clone()];
                    let numbers = [pool.block_bytes, pool.live, pool.live_max, pool.free, pool.lent, pool.held];
                    cells.extend(numbers.iter().chain([&pool.held_most, &pool.exhausted]).map(u64::to_string));
                    cells
                })
                .collect();
            Ok(table(&header, &cells))
        }
    }
}

/// UDP flows, shard by shard.
pub(super) async fn flows(plane: &Plane, glob: &Glob, limit: usize, format: Format) -> Result<String, String> {
    let mut rows: Vec<FlowRow> = Vec::new();
    for shard in 0..plane.shards.len() {
        let mut from = Some(0);
        // One more than wanted, to know whether there are more.
        while let (Some(place), true) = (from, rows.len() <= limit) {
            let (reply, answer) = oneshot::channel();
            plane.send(shard, Command::Flows { from: place, glob: glob.clone(), reply })?;
            let mut page = answer_of(plane, shard, answer, plane.reply_deadline()).await?;
            rows.append(&mut page.rows);
            from = page.next;
        }
    }
    let more = rows.len() > limit;
    rows.truncate(limit);
    match format {
        Format::Json => json(&json!({ "flows": rows, "more": more })),
        Format::Text => {
            let header = [
                "mediator",
                "shard",
                "from",
                "to",
                "idle_s",
                "bytes_in",
                "bytes_out",
                "datagrams_in",
                "datagrams_out",
                "door",
            ];
            let cells: Vec<Vec<String>> = rows.iter().map(flow_cells).collect();
            let mut text = table(&header, &cells);
            if more {
                text.push_str("# there are more: give id=GLOB or a higher limit\n");
            }
            Ok(text)
        }
    }
}

fn flow_cells(row: &FlowRow) -> Vec<String> {
    let mut cells = vec![row.mediator.to_string(), row.shard.0.to_string(), row.from.to_string(), row.to.to_string()];
    let numbers = [row.idle_s, row.bytes_in, row.bytes_out, row.datagrams_in, row.datagrams_out];
    cells.extend(numbers.iter().map(u64::to_string));
    cells.push(row.door.clone());
    cells
}

/// A bound.
struct Limit {
    name: &'static str,
    /// What has as many.
    of: &'static str,
    most: u64,
    /// How many there are, where it is fullest.
    now: u64,
    refused: u64,
    cure: &'static str,
}

/// The bounds that refuse somebody first.
pub(super) async fn limits(plane: &Plane, format: Format) -> Result<String, String> {
    let states = ask_each(plane, |reply| Command::State { reply }).await?;
    let publishes = ask_all(plane, |reply| Command::Publishes { reply }).await?;
    let exposes = ask_all(plane, |reply| Command::Exposes { reply }).await?;
    let sum = |counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).sum::<u64>();
    let most = |counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).max().unwrap_or(0);
    let udp = exposes.iter().filter(|row| row.expose.server.proto == Proto::Udp);
    let config = plane.config.borrow();
    let limits = [
        Limit {
            name: "handshakes",
            of: "shard",
            most: u64::from(config.half_open_max).div_ceil(plane.shards.len().max(1) as u64),
            now: most(Counter::HalfOpen),
            refused: sum(Counter::HandshakesFailedOverload),
            cure: "--half-open-max; whoever is refused tries again by itself",
        },
        Limit {
            name: "flows",
            of: "published port",
            most: config.udp_flows_max.into(),
            now: publishes.iter().map(|row| row.flows_live).max().unwrap_or(0),
            refused: sum(Counter::DatagramsFlowLimit),
            cure: "--udp-flows-max, or a shorter --udp-idle",
        },
        Limit {
            name: "flows",
            of: "exposed service",
            most: config.exposed_flows_max.into(),
            now: udp.map(|row| row.connections_live).max().unwrap_or(0),
            refused: sum(Counter::ExposedRefusedLimit),
            cure: "--exposed-flows-max, or a shorter --udp-idle; TCP hosts that are refused count here too",
        },
        Limit {
            name: "queued-bytes",
            of: "shard",
            most: states.iter().map(|state| state.queued_bytes_max).max().unwrap_or(0),
            now: states.iter().map(|state| state.queued_bytes).max().unwrap_or(0),
            refused: sum(Counter::VisitorsRefusedLimit) + sum(Counter::SocksRefusedLimit),
            cure: "visitors and clients refused at any limit: bytes of slow readers, --ports-max, --half-open-max of those read first",
        },
        Limit {
            name: "descriptors",
            of: "process",
            most: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            now: open_descriptors().unwrap_or(0.0) as u64,
            refused: sum(Counter::AcceptErrors),
            cure: "LimitNOFILE= of the unit, or ulimit -n",
        },
        Limit {
            name: "operators",
            of: "stats socket",
            most: plane.limits.connections_max as u64,
            now: plane.streams.borrow().len() as u64,
            refused: plane.tally.refused.get(),
            cure: "close sessions that are not needed",
        },
        Limit {
            name: "clients",
            of: "HTTP port",
            most: plane.limits.http.connections_max as u64,
            now: plane.http_tally.live.get(),
            refused: plane.http_tally.refused.get(),
            cure: "fewer monitors, or less often",
        },
    ];
    match format {
        Format::Json => {
            let objects: Vec<Value> = limits.iter().map(limit_json).collect();
            json(&json!({ "limits": objects }))
        }
        Format::Text => {
            let header = ["limit", "of_each", "most", "now", "refused", "cure"];
            let cells: Vec<Vec<String>> = limits.iter().map(limit_cells).collect();
            Ok(table(&header, &cells))
        }
    }
}

fn limit_json(limit: &Limit) -> Value {
    let Limit { name, of, most, now, refused, cure } = limit;
    json!({ "limit": name, "of": of, "most": most, "now": now, "refused": refused, "cure": cure })
}

fn limit_cells(limit: &Limit) -> Vec<String> {
    let numbers = [limit.most, limit.now, limit.refused];
    let mut cells = vec![limit.name.to_owned(), word(limit.of)];
    cells.extend(numbers.iter().map(u64::to_string));
    cells.push(limit.cure.to_owned());
    cells
}

/// Every setting that is in force, and where it is from.
pub(super) fn config(plane: &Plane, format: Format) -> Result<String, String> {
    let config = plane.config.borrow();
    match format {
        Format::Json => {
            let settings: Vec<Value> = config
                .told
                .iter()
                .map(|setting| json!({ "name": setting.name, "values": setting.values, "from": setting.from }))
                .collect();
            json(&json!({ "settings": settings }))
        }
        Format::Text => {
            let cells: Vec<Vec<String>> = config
                .told
                .iter()
                .map(|setting| {
                    let values: Vec<String> = setting.values.iter().map(|value| word(value)).collect();
                    let values = if values.is_empty() { "-".to_owned() } else { values.join(" ") };
                    vec![setting.name.clone(), values, setting.from.clone()]
                })
                .collect();
            Ok(table(&["setting", "value", "from"], &cells))
        }
    }
}
