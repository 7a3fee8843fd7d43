//! What the shards are asked for: `show publishes`, `show tunnel`, `kill tunnel`, `check tunnels`.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use isthmus_proto::MediatorId;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::answer::{json, phrase, table, word};
use super::command::Command;
use super::counters::Counter;
use super::dispatch::Format;
use super::rows::{PublishRow, TunnelDetail};
use super::serve::Plane;
use super::tunnels;

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
    let mut text = tunnels::table_of(&detail.tunnel);
    let report = detail.tunnel.report.unpack();
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

/// Sends all mediators away.
pub(super) async fn drain(plane: &Plane, over: Duration) -> Result<String, String> {
    let tunnels: usize = ask_each(plane, |reply| Command::Drain { over, reply }).await?.into_iter().sum();
    tracing::info!(tunnels, ?over, "the relay is drained by the operator");
    Ok(format!("{tunnels} tunnels go within {over:?}; 'undrain' lets mediators in again\n"))
}

/// Lets mediators in again.
pub(super) async fn undrain(plane: &Plane) -> Result<String, String> {
    let drained = ask_each(plane, |reply| Command::Undrain { reply }).await?;
    if !drained.contains(&true) {
        return Err("the relay is not drained".to_owned());
    }
    tracing::info!("mediators are let in again by the operator");
    Ok("mediators are let in again\n".to_owned())
}

/// How long `check tunnels` waits for a round's end: less than whoever asked waits for us.
const CHECK_MAX: Duration = Duration::from_secs(20);

/// Between two looks at the counters.
const CHECK_LOOK: Duration = Duration::from_millis(50);

/// What a round of checks comes to: answered, failed, without an answer, not asked.
const CHECK_ENDS: [Counter; 4] =
    [Counter::ChecksAnswered, Counter::ChecksFailed, Counter::ChecksUnanswered, Counter::ChecksSkipped];

/// Begins a round of checks on every shard, and waits for its end. Each mediator may take `within` to answer.
pub(super) async fn check(plane: &Plane, within: Duration) -> Result<String, String> {
    let end = Instant::now() + CHECK_MAX;
    let deadline = plane.reply_deadline();
    let counts = || CHECK_ENDS.map(|counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).sum::<u64>());
    let before = counts();
    let (mut count, mut busy) = (0, 0);
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, Command::Check { within, reply })?;
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
            (unanswered, format!("did not answer within {within:?}")),
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
    Ok(ask_each(plane, command).await?.into_iter().flatten().collect())
}

/// What each shard answers, in their order.
pub(super) async fn ask_each<T>(
    plane: &Plane,
    command: impl Fn(oneshot::Sender<T>) -> Command,
) -> Result<Vec<T>, String> {
    let deadline = plane.reply_deadline();
    let mut answers = Vec::with_capacity(plane.shards.len());
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, command(reply))?;
        answers.push(answer);
    }
    let mut values = Vec::with_capacity(answers.len());
    for (shard, answer) in answers.into_iter().enumerate() {
        values.push(answer_of(plane, shard, answer, deadline).await?);
    }
    Ok(values)
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
