//! What the shards are asked for: `show tunnels`, `show publishes`, `kill tunnel`.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use isthmus_proto::MediatorId;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::answer::{json, phrase, table, word};
use super::command::{Command, PublishRow, TunnelDetail, TunnelFilter, TunnelRow};
use super::counters::Counter;
use super::dispatch::Format;
use super::serve::Plane;

/// One page of tunnels, in the order of their mediators' names.
pub(super) async fn tunnels(plane: &Plane, filter: TunnelFilter, format: Format) -> Result<String, String> {
    let (rows, more) = page(plane, filter).await?;
    match format {
        Format::Json => json(&json!({ "tunnels": rows, "more": more })),
        Format::Text => Ok(tunnel_table(&rows, more)),
    }
}

/// Rows that a shard makes between two turns of its loop: under a millisecond's work, so that a long page holds up nobody.
const CHUNK: usize = 100;

/// Its rows, and whether there are more behind them.
pub(super) async fn page(plane: &Plane, filter: TunnelFilter) -> Result<(Vec<TunnelRow>, bool), String> {
    let mut rows: Vec<TunnelRow> = Vec::new();
    loop {
        let after = rows.last().map(|row| row.id.clone()).or_else(|| filter.after.clone());
        let wanted = CHUNK.min(filter.limit - rows.len());
        // One more than wanted, to know whether there are more.
        let part = TunnelFilter { after, limit: wanted + 1, ..filter.clone() };
        let mut found = ask_all(plane, |reply| Command::Tunnels { filter: part.clone(), reply }).await?;
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let more = found.len() > wanted;
        found.truncate(wanted);
        rows.append(&mut found);
        if !more || rows.len() >= filter.limit {
            return Ok((rows, more));
        }
    }
}

fn tunnel_table(rows: &[TunnelRow], more: bool) -> String {
    let header = [
        "id",
        "session",
        "shard",
        "observed",
        "age_s",
        "idle_s",
        "ports",
        "terminals",
        "udp",
        "udp_period_s",
        "rtt_us",
        "bytes_in",
        "bytes_out",
        "datagrams_in",
        "datagrams_out",
        "oversize",
        "version",
        "hostname",
        "service",
    ];
    let cells: Vec<Vec<String>> = rows.iter().map(tunnel_cells).collect();
    let mut text = table(&header, &cells);
    if let (true, Some(last)) = (more, rows.last()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# there are more: after={}", last.id);
    }
    text
}

fn tunnel_cells(row: &TunnelRow) -> Vec<String> {
    vec![
        row.id.to_string(),
        row.session.to_string(),
        row.shard.0.to_string(),
        row.observed.to_string(),
        row.age_s.to_string(),
        row.idle_s.to_string(),
        row.ports.to_string(),
        row.terminals.to_string(),
        format!("{}/{}", row.udp_channels_live, row.udp_channels),
        row.udp_period_s.to_string(),
        row.rtt_us.map_or_else(|| "-".to_owned(), |rtt| rtt.to_string()),
        row.bytes_in.to_string(),
        row.bytes_out.to_string(),
        row.datagrams_in.to_string(),
        row.datagrams_out.to_string(),
        row.oversize.to_string(),
        word(&row.report.version),
        word(&row.report.hostname),
        phrase(&row.report.service),
    ]
}

/// Every published port, in the order of protocol and address.
pub(super) async fn publishes(plane: &Plane, format: Format) -> Result<String, String> {
    let mut rows = ask_all(plane, |reply| Command::Publishes { reply }).await?;
    rows.sort_by_key(|row: &PublishRow| (row.publish.proto, row.publish.listen, row.shard));
    match format {
        Format::Json => json(&json!({ "publishes": rows })),
        Format::Text => {
            let header =
                ["publish", "origin", "shard", "mediator", "visitors", "visitors_total", "flows", "flows_total"];
            let cells: Vec<Vec<String>> = rows.iter().map(publish_cells).collect();
            Ok(table(&header, &cells))
        }
    }
}

fn publish_cells(row: &PublishRow) -> Vec<String> {
    vec![
        row.publish.to_string(),
        if row.leaving { "leaving" } else { row.origin.word() }.to_owned(),
        row.shard.0.to_string(),
        if row.connected { "connected" } else { "away" }.to_owned(),
        row.visitors_live.to_string(),
        row.visitors_total.to_string(),
        row.flows_live.to_string(),
        row.flows_total.to_string(),
    ]
}

/// One mediator.
pub(super) async fn detail(plane: &Plane, mediator: MediatorId, format: Format) -> Result<String, String> {
    let detail = ask_detail(plane, mediator.clone()).await?.ok_or_else(|| format!("no tunnel of {mediator}"))?;
    match format {
        Format::Json => json(&json!({ "detail": detail })),
        Format::Text => Ok(detail_text(&detail)),
    }
}

/// What its shard knows of it; `None` if it is not connected.
pub(super) async fn ask_detail(plane: &Plane, mediator: MediatorId) -> Result<Option<Box<TunnelDetail>>, String> {
    let owner = usize::from(mediator.shard(plane.shards.len()).0);
    let (reply, answer) = oneshot::channel();
    plane.send(owner, Command::Detail { mediator, reply })?;
    answer_of(plane, owner, answer, plane.reply_deadline()).await
}

fn detail_text(detail: &TunnelDetail) -> String {
    let mut text = tunnel_table(std::slice::from_ref(&detail.tunnel), false);
    let report = &detail.tunnel.report;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "os: {}", phrase(&report.os));
    for interface in &report.interfaces {
        let addresses: Vec<String> = interface.addresses.iter().map(|address| word(&address.to_string())).collect();
        let _ = writeln!(text, "interface {}: {}", word(&interface.name), addresses.join(" "));
    }
    let policy: Vec<String> = report.policy.iter().map(|rule| word(&rule.to_string())).collect();
    let _ = writeln!(text, "allows: {}", policy.join(" "));
    for terminal in &detail.terminals {
        let from = terminal.observed.map_or_else(|| "-".to_owned(), |address| address.to_string());
        let _ = writeln!(text, "terminal {} from {from}", phrase(&terminal.name));
    }
    for port in &detail.ports {
        let _ = writeln!(text, "port {} {} of a {}", port.id, port.kind, port.of);
    }
    if detail.ports_more {
        let _ = writeln!(text, "# there are more ports than these");
    }
    text
}

/// Ends one tunnel, at the shard that owns it.
pub(super) async fn kill(plane: &Plane, mediator: MediatorId) -> Result<String, String> {
    let owner = usize::from(mediator.shard(plane.shards.len()).0);
    let (reply, answer) = oneshot::channel();
    plane.send(owner, Command::Kill { mediator: mediator.clone(), reply })?;
    if answer_of(plane, owner, answer, plane.reply_deadline()).await? {
        tracing::info!(%mediator, "tunnel killed by the operator");
        Ok(format!("tunnel of {mediator} killed\n"))
    } else {
        Err(format!("no tunnel of {mediator}"))
    }
}

/// How long a mediator may take to answer a check.
pub const CHECK_ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long `check tunnels` waits for a round's end: less than whoever asked waits for us.
const CHECK_MAX: Duration = Duration::from_secs(20);

/// Between two looks at the counters.
const CHECK_LOOK: Duration = Duration::from_millis(50);

/// What a round of checks comes to: answered, failed, without an answer, not asked.
const CHECK_ENDS: [Counter; 4] =
    [Counter::ChecksAnswered, Counter::ChecksFailed, Counter::ChecksUnanswered, Counter::ChecksSkipped];

/// Begins a round of checks on every shard, and waits for its end.
pub(super) async fn check(plane: &Plane) -> Result<String, String> {
    let end = Instant::now() + CHECK_MAX;
    let deadline = plane.reply_deadline();
    let counts = || CHECK_ENDS.map(|counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).sum::<u64>());
    let before = counts();
    let (mut count, mut busy) = (0, 0);
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, Command::Check { reply })?;
        match answer_of(plane, shard, answer, deadline).await? {
            Some(tunnels) => count += tunnels as u64,
            None => busy += 1,
        }
    }
    if busy > 0 {
        return Err(format!("{busy} shards are still at the round before, {count} tunnels of the others are asked"));
    }
    loop {
        let done = counts();
        let [answered, failed, unanswered, skipped] = std::array::from_fn(|n| done[n].saturating_sub(before[n]));
        let open = count.saturating_sub(answered + failed + unanswered + skipped);
        if open > 0 && Instant::now() < end {
            tokio::time::sleep(CHECK_LOOK).await;
            continue;
        }
        let mut text = format!("{count} tunnels are asked: {answered} answered");
        for (number, what) in [
            (failed, "refused or ended".to_owned()),
            (unanswered, format!("did not answer within {CHECK_ANSWER_MAX:?}")),
            (skipped, "were not asked in time".to_owned()),
            (open, "still to come, which 'show stat' counts".to_owned()),
        ] {
            if number > 0 {
                // Writing to a string cannot fail.
                let _ = write!(text, ", {number} {what}");
            }
        }
        text.push('\n');
        return if answered == count { Ok(text) } else { Err(text.trim_end().to_owned()) };
    }
}

/// Asks every shard at once, and puts the rows together.
pub(super) async fn ask_all<T>(
    plane: &Plane,
    command: impl Fn(oneshot::Sender<Vec<T>>) -> Command,
) -> Result<Vec<T>, String> {
    let deadline = plane.reply_deadline();
    let mut answers = Vec::with_capacity(plane.shards.len());
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, command(reply))?;
        answers.push(answer);
    }
    let mut rows = Vec::new();
    for (shard, answer) in answers.into_iter().enumerate() {
        rows.extend(answer_of(plane, shard, answer, deadline).await?);
    }
    Ok(rows)
}

/// A shard's answer; the error is a text for the operator.
pub(super) fn answer_of<T>(
    plane: &Plane,
    shard: usize,
    answer: oneshot::Receiver<T>,
    deadline: Instant,
) -> impl Future<Output = Result<T, String>> {
    let limit = plane.limits.reply;
    async move {
        match timeout_at(deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(format!("shard {shard} ended before it answered")),
            Err(_) => Err(format!("shard {shard} did not answer within {limit:?}")),
        }
    }
}
