//! The answers, as JSON with a version. Texts of mediators are in them as they came: the page sets them as text only.

use isthmus_proto::{Code, MediatorId};
use serde_json::{Map, Value, json};

use super::history::is_drop;
use crate::admin::answer;
use crate::admin::command::TunnelFilter;
use crate::admin::counters::{Counter, ShardCounters};
use crate::admin::serve::Plane;
use crate::admin::{show, tunnels};
use crate::http::Asked;
use crate::trust::Glob;

/// Rows of one page of mediators.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 500;

/// The relay itself: what it is, what there is now, and what was refused or dropped since the start.
pub(super) fn overview(plane: &Plane) -> Result<String, String> {
    let info = plane.info.borrow();
    let shards: Vec<&ShardCounters> = plane.shards.iter().map(|shard| &*shard.counters).collect();
    let sum = |counter: Counter| shards.iter().map(|shard| shard.get(counter)).sum::<u64>();
    let some = |keep: fn(Counter) -> bool| -> Vec<Value> {
        let all = Counter::ALL.iter().copied().filter(|&counter| keep(counter));
        let counted = all.map(|counter| (counter, sum(counter))).filter(|&(_, value)| value > 0);
        counted.map(|(c, value)| json!({ "name": c.word(), "help": c.help(), "value": value })).collect()
    };
    let closed: Vec<Value> = Code::ALL
        .iter()
        .map(|&code| (code, shards.iter().map(|shard| shard.links_closed(code)).sum::<u64>()))
        .filter(|&(_, count)| count > 0)
        .map(|(code, count)| json!({ "reason": code.word(), "value": count }))
        .collect();
    answer::json(&json!({
        "relay_version": env!("CARGO_PKG_VERSION"),
        "uptime_s": info.started.elapsed().as_secs(),
        "listen": info.listen,
        "fingerprint": info.fingerprint.to_string(),
        "plaintext": info.plaintext,
        "shards": shards.len(),
        "tunnels": sum(Counter::TunnelsLive),
        "terminals": sum(Counter::TerminalsLive),
        "streams": sum(Counter::VisitorsLive) + sum(Counter::SocksLive) + sum(Counter::ExposedLive),
        "flows": sum(Counter::FlowsLive) + sum(Counter::ExposedFlowsLive),
        "handshakes": sum(Counter::HalfOpen),
        "drops": some(is_drop),
        "refusals": some(is_refusal),
        "ends": closed,
        "events_lost": plane.journal.lost(),
    }))
}

fn is_refusal(counter: Counter) -> bool {
    let word = counter.word();
    !is_drop(counter) && ["refused", "failed", "_bad", "_unknown", "contended"].iter().any(|part| word.contains(part))
}

/// Reads `search` (a part of a name, or a pattern), `after` and `limit`.
pub(super) fn filter(asked: &Asked) -> Result<TunnelFilter, String> {
    let glob = match asked.query("search").filter(|text| !text.is_empty()) {
        None => Glob::any(),
        Some(text) => {
            let pattern = if text.contains(['*', '?']) { text.to_owned() } else { format!("*{text}*") };
            pattern.parse().map_err(|error: crate::trust::BadGlob| format!("search: {error}"))?
        }
    };
    let after = asked.query("after").filter(|text| !text.is_empty());
    let after = after.map(|id| id.parse().map_err(|_| "after: that is no mediator's name".to_owned())).transpose()?;
    let limit = match asked.query("limit").map(str::parse) {
        None => LIMIT_DEFAULT,
        Some(Ok(limit @ 1..=LIMIT_MAX)) => limit,
        Some(_) => return Err(format!("limit is a number from 1 to {LIMIT_MAX}")),
    };
    Ok(TunnelFilter { glob, after, limit })
}

/// A page of mediators, in the order of their names.
pub(super) async fn tunnels(plane: &Plane, filter: TunnelFilter) -> Result<String, String> {
    let (rows, more) = tunnels::page(plane, filter).await?;
    answer::json(&json!({ "tunnels": rows, "more": more }))
}

/// One mediator; `None` if it is not connected.
pub(super) async fn tunnel(plane: &Plane, mediator: MediatorId) -> Result<Option<String>, String> {
    let Some(detail) = show::ask_detail(plane, mediator).await? else { return Ok(None) };
    answer::json(&detail).map(Some)
}

/// Every counter of every shard.
pub(super) fn shards(plane: &Plane) -> Result<String, String> {
    let of = |shard: &ShardCounters| -> Map<String, Value> {
        Counter::ALL.iter().map(|&counter| (counter.word().to_owned(), json!(shard.get(counter)))).collect()
    };
    let shards: Vec<_> = plane.shards.iter().map(|shard| of(&shard.counters)).collect();
    answer::json(&json!({ "shards": shards }))
}
