//! Exposed services at run time: `expose`, `unexpose`, `show exposes`, and what a reload changes.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;
use tokio::sync::oneshot;

use super::answer::{json, table};
use super::command::Command;
use super::dispatch::Format;
use super::rows::ExposeRow;
use super::serve::Plane;
use super::show::{answer_of, ask_all};
use crate::config::Config;
use crate::expose::{Expose, ServerPort};
use crate::publish::{Origin, Proto};

/// `show exposes`, in the order of mediator and address.
pub(super) async fn show(plane: &Plane, format: Format) -> Result<String, String> {
    let mut rows = rows(plane).await?;
    rows.sort_by(|a, b| a.expose.server.cmp(&b.expose.server));
    match format {
        Format::Json => json(&json!({ "exposes": rows })),
        Format::Text => {
            let header =
                ["expose", "origin", "shard", "state", "bound", "connections", "total", "failed", "retry_s", "reason"];
            Ok(table(&header, &rows.iter().map(cells).collect::<Vec<_>>()))
        }
    }
}

fn cells(row: &ExposeRow) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let reason = row.reason.as_ref().zip(row.cure.as_ref()).map(|(word, text)| format!("{word}: {text}"));
    vec![
        row.expose.to_string(),
        row.origin.word().to_owned(),
        row.shard.0.to_string(),
        row.state.word().to_owned(),
        or_dash(row.bound.map(|bound| bound.to_string())),
        row.connections_live.to_string(),
        row.connections_total.to_string(),
        row.connections_failed.to_string(),
        or_dash(row.retry_s.map(|seconds| seconds.to_string())),
        or_dash(reason),
    ]
}

/// `expose SERVICE`.
pub(super) async fn expose(plane: &Plane, expose: Expose) -> Result<String, String> {
    // One change at a time.
    let _change = plane.kept.lock().await;
    if let Some(row) = rows(plane).await?.into_iter().find(|row| row.expose.server == expose.server) {
        return Err(format!("it is exposed already, as {}; unexpose it first", row.expose));
    }
    let line = format!("exposed {expose}; 'show exposes' tells whether the mediator opened the port\n");
    set(plane, vec![(expose, Origin::Runtime)]).await?;
    Ok(line)
}

/// `unexpose SERVER [now]`.
pub(super) async fn unexpose(plane: &Plane, server: ServerPort, now: bool) -> Result<String, String> {
    let _change = plane.kept.lock().await;
    let gone = take_away(plane, vec![server], now).await?;
    let [row] = gone.as_slice() else {
        return Err("nothing is exposed there; 'show exposes' lists what is".into());
    };
    Ok(match (now, row.connections_live) {
        (_, 0) => format!("unexposed {}\n", row.expose),
        (_, live) if row.expose.server.proto == Proto::Udp => {
            format!("unexposed {} ({live} flows ended)\n", row.expose)
        }
        (true, live) => format!("unexposed {} ({live} connections were cut off)\n", row.expose),
        (false, live) => format!("unexposed {} ({live} connections stay)\n", row.expose),
    })
}

/// Every exposed service.
pub(super) async fn rows(plane: &Plane) -> Result<Vec<ExposeRow>, String> {
    ask_all(plane, |reply| Command::Exposes { reply }).await
}

/// What a reload has to do.
pub(super) struct Plan {
    /// New ones, and those that lead elsewhere.
    set: Vec<Expose>,
    removed: Vec<ServerPort>,
    lines: Vec<String>,
}

impl Plan {
    /// # Errors
    /// A server port is an operator's already, and leads elsewhere.
    pub(super) fn new(config: &Config, mut rows: Vec<ExposeRow>) -> Result<Self, String> {
        rows.sort_by(|a, b| a.expose.server.cmp(&b.expose.server));
        let (mut set, mut lines) = (Vec::new(), Vec::new());
        let by_server: HashMap<_, _> = rows.iter().map(|row| (&row.expose.server, row)).collect();
        for wanted in &config.expose {
            match by_server.get(&wanted.server) {
                None => lines.push(format!("exposed {wanted}")),
                Some(row) if row.expose == *wanted => continue,
                Some(row) if row.origin == Origin::Config => lines.push(format!("changed {} to {wanted}", row.expose)),
                Some(row) => return Err(format!("{} is exposed at run time already; unexpose it first", row.expose)),
            }
            set.push(wanted.clone());
        }
        let wanted: HashSet<_> = config.expose.iter().map(|wanted| &wanted.server).collect();
        let mut removed = Vec::new();
        for row in rows.into_iter().filter(|row| row.origin == Origin::Config && !wanted.contains(&row.expose.server)) {
            lines.push(format!("unexposed {}", row.expose));
            removed.push(row.expose.server);
        }
        Ok(Self { set, removed, lines })
    }

    /// Does it; gives a line for each change.
    pub(super) async fn apply(self, plane: &Plane) -> Result<Vec<String>, String> {
        if !self.removed.is_empty() {
            take_away(plane, self.removed, false).await?;
        }
        set(plane, self.set.into_iter().map(|expose| (expose, Origin::Config)).collect()).await?;
        Ok(self.lines)
    }
}

/// Has services exposed, each by the shard that owns its mediator.
async fn set(plane: &Plane, services: Vec<(Expose, Origin)>) -> Result<(), String> {
    let mut lists: BTreeMap<usize, Vec<(Expose, Origin)>> = BTreeMap::new();
    for service in services {
        let owner = usize::from(service.0.server.mediator.shard(plane.shards.len()).0);
        lists.entry(owner).or_default().push(service);
    }
    let deadline = plane.reply_deadline();
    for (shard, services) in lists {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, Command::Expose { services, reply })?;
        answer_of(plane, shard, answer, deadline).await??;
    }
    Ok(())
}

async fn take_away(plane: &Plane, servers: Vec<ServerPort>, now: bool) -> Result<Vec<ExposeRow>, String> {
    ask_all(plane, |reply| Command::Unexpose { servers: servers.clone(), now, reply }).await
}
