//! `reload` and SIGHUP: the configuration is read and checked again as at a start, every new port is bound, and only then
//! does anything change; what fails leaves all as it was. What the new configuration does not remove goes on undisturbed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::asking;
use super::command::{Command, NotSent, Unpublish};
use super::exposing;
use super::manager;
use super::publishing::{self, take_away};
use super::rows::PublishRow;
use super::serve::Plane;
use super::show::answer_of;
use crate::config::{self, Config, Invocation};
use crate::log;
use crate::names::Names;
use crate::publish::{Bound, Origin, Proto, Publish};
use crate::records::Records;
use crate::run::Shared;
use crate::trust::State;

/// A shard whose queue is full has emptied it a moment later.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// Reads everything again and applies all of it or nothing; the answer tells what changed. The service manager is told
/// when it begins and when it is over.
pub(super) async fn reload(plane: &Plane) -> Result<String, String> {
    plane.manager.reloading();
    let done = read_and_apply(plane).await;
    match &done {
        Ok(_) => plane.manager.ready(&manager::status(plane)),
        Err(error) => plane.manager.ready(&format!("runs with the settings from before: {error}")),
    }
    done
}

async fn read_and_apply(plane: &Plane) -> Result<String, String> {
    let old = plane.config.borrow().clone();
    let refused = |why: String| format!("nothing is changed: {why}");
    let new = read(&old).map_err(refused)?;
    let mut changes = old.changes(&new);
    let fixed: Vec<_> =
        changes.iter().filter(|change| change.needs_restart).map(|c| format!("{} ({})", c.name, c.text)).collect();
    if !fixed.is_empty() {
        return Err(refused(format!("this needs a restart: {}", fixed.join(", "))));
    }
    let state = State::open(&new.state).map_err(|error| refused(format!("{error:#}")))?;
    let before = plane.trust.as_ref().map(|source| source.current());
    let mut shared =
        Shared::new(new.clone(), &state, before.as_deref()).map_err(|error| refused(format!("{error:#}")))?;
    let certificate = (state.fingerprint() != plane.info.borrow().fingerprint).then(|| state.fingerprint());

    // One change of ports at a time.
    let _kept = plane.kept.lock().await;
    let plan = Plan::new(&new, &publishing::rows(plane).await?).map_err(refused)?;
    let exposes = exposing::Plan::new(&new, exposing::rows(plane).await?).map_err(refused)?;
    shared.names = Arc::new(Names::clone(&shared.names).with_asked(asking::routes(plane)));
    let added =
        publishing::bind_all(plane, &plan.added, Origin::Config, new.congestion.as_deref()).await.map_err(refused)?;

    // From here on nothing can be refused but by a shard that is stuck, and that is told.
    if let Some(source) = &plane.trust {
        source.set_with(new.trust(), shared.trust.clone());
    }
    tell_all(plane, &Arc::new(shared)).await?;
    let mut lines = apply(plane, plan, added).await?;
    lines.extend(exposes.apply(plane).await?);
    log::set(&new.log)?;
    changes.retain(|change| !["publish", "expose"].contains(&change.name));
    lines.extend(changes.iter().map(|change| match change.text.as_str() {
        "" => format!("changed {}", change.name),
        text => format!("changed {}: {text}", change.name),
    }));
    if let Some(fingerprint) = certificate {
        plane.info.borrow_mut().fingerprint = fingerprint;
        lines.push(format!("changed certificate: new connections see {fingerprint}"));
    }
    *plane.config.borrow_mut() = new;
    // Whoever has moved the file away tells so by a reload.
    plane.records.iter().for_each(Records::reopen);
    // The policy may be another one.
    asking::resettle_all(plane).await;
    tracing::info!(changes = lines.len(), "configuration reloaded");
    if lines.is_empty() {
        lines.push("no setting differs; keys and tokens are read again".into());
    }
    Ok(lines.join("\n") + "\n")
}

/// Reads what the relay's command line, environment and file say now.
fn read(old: &Config) -> Result<Config, String> {
    match config::parse(old.source.iter()) {
        Ok(Invocation::Run(config)) => Ok(*config),
        Ok(_) => Err("the command line is none of a running relay".into()),
        Err(error) => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let text = text.split("\n\n").next().unwrap_or(text);
            Err(text.split_whitespace().collect::<Vec<_>>().join(" "))
        }
    }
}

/// What has to happen to the published ports.
struct Plan {
    added: Vec<Publish>,
    removed: Vec<(Proto, SocketAddr)>,
    /// The same port leads elsewhere.
    moved: Vec<Publish>,
}

impl Plan {
    /// # Errors
    /// A port is an operator's already, and leads elsewhere.
    fn new(config: &Config, rows: &[PublishRow]) -> Result<Self, String> {
        let (mut added, mut moved) = (Vec::new(), Vec::new());
        // What a mediator asked for makes way.
        let live = |row: &&PublishRow| !row.leaving && row.origin != Origin::Asked;
        for wanted in config.publishes() {
            let same_port = |row: &&PublishRow| {
                row.publish.proto == wanted.proto && [row.asked, row.publish.listen].contains(&wanted.listen)
            };
            match rows.iter().filter(live).find(same_port) {
                None => added.push(wanted.clone()),
                Some(row) if (Publish { listen: row.publish.listen, ..wanted.clone() }) == row.publish => {}
                Some(row) if row.origin == Origin::Config => moved.push(wanted.clone()),
                Some(row) => {
                    return Err(format!("{} is published at run time already; unpublish it first", row.publish));
                }
            }
        }
        let is_wanted = |row: &PublishRow| {
            config
                .publishes()
                .any(|w| w.proto == row.publish.proto && [row.asked, row.publish.listen].contains(&w.listen))
        };
        let removed = rows
            .iter()
            .filter(live)
            .filter(|row| row.origin == Origin::Config && !is_wanted(row))
            .map(|row| (row.publish.proto, row.publish.listen))
            .collect();
        Ok(Self { added, removed, moved })
    }
}

/// Gives every shard the new settings.
async fn tell_all(plane: &Plane, shared: &Arc<Shared>) -> Result<(), String> {
    let deadline = plane.reply_deadline();
    let mut answers = Vec::new();
    for (shard, handle) in plane.shards.iter().enumerate() {
        let answer = loop {
            let (reply, answer) = oneshot::channel();
            match handle.send(Command::Reload { shared: shared.clone(), reply }) {
                Ok(()) => break answer,
                Err(NotSent::Busy) if tokio::time::Instant::now() < deadline => tokio::time::sleep(BUSY_WAIT).await,
                Err(error) => return Err(format!("shard {shard}: {error}; reload again when it is well")),
            }
        };
        answers.push((shard, answer));
    }
    for (shard, answer) in answers {
        answer_of(plane, shard, answer, deadline)
            .await
            .map_err(|error| format!("{error}; reload again when it is well"))?;
    }
    Ok(())
}

/// Serves what is new before it takes away what is old.
async fn apply(plane: &Plane, plan: Plan, added: Vec<Bound>) -> Result<Vec<String>, String> {
    let mut lines: Vec<String> = added.iter().map(|bound| format!("published {}", bound.publish)).collect();
    publishing::serve(plane, added).await?;
    if !plan.removed.is_empty() {
        let gone = take_away(plane, plan.removed, Unpublish::Gently).await?;
        lines.extend(gone.iter().map(|gone| format!("unpublished {}", gone.row.publish)));
    }
    if !plan.moved.is_empty() {
        // The sockets change hands and are never closed: who comes in between waits in them.
        let ports = plan.moved.iter().map(|publish| (publish.proto, publish.listen)).collect();
        let mut moved = Vec::new();
        for gone in take_away(plane, ports, Unpublish::HandOut).await? {
            let same = |publish: &&Publish| {
                publish.proto == gone.row.publish.proto
                    && [gone.asked, gone.row.publish.listen].contains(&publish.listen)
            };
            if let (Some(socket), Some(publish)) = (gone.socket, plan.moved.iter().find(same)) {
                let publish = Publish { listen: gone.row.publish.listen, ..publish.clone() };
                lines.push(format!("changed {} to {publish}", gone.row.publish));
                moved.push(Bound { publish, asked: gone.asked, origin: Origin::Config, socket });
            }
        }
        publishing::serve(plane, moved).await?;
    }
    Ok(lines)
}

/// `set log FILTER`, until the next reload.
pub(super) fn set_log(plane: &Plane, filter: &str) -> Result<String, String> {
    log::set(filter)?;
    for setting in plane.config.borrow_mut().told.iter_mut().filter(|setting| setting.name == "log") {
        (setting.values, setting.from) = (vec![filter.to_owned()], "set log".to_owned());
    }
    tracing::info!(filter, "log filter set by the operator");
    Ok(format!("log filter is {filter}\n"))
}
