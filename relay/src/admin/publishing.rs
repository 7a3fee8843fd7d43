//! Published ports at run time: `publish`, `unpublish`, and what comes back with the relay.
//!
//! Every socket is bound, and what is to be kept is written, before a shard hears of anything: of several ports all
//! are served or none.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::policy;
use tokio::sync::oneshot;

use super::asking;
use super::command::{Command, Unpublish, Unpublished};
use super::rows::PublishRow;
use super::serve::Plane;
use super::show::{answer_of, ask_all};
use crate::publish::Origin;
use crate::publish::{Bound, IN_USE_RETRIES, IN_USE_WAIT, Kept, Ports, Proto, Publish, PublishSpec, refusal};

/// A port that was unpublished a moment ago is in use until its shard's turn has ended.
const JUST_CLOSED_TRIES: u32 = 10;
const JUST_CLOSED_WAIT: Duration = Duration::from_millis(20);

/// Most names of one answer.
const SHOWN_MAX: usize = 100;

/// `publish SPEC [save]`.
pub(super) async fn publish(plane: &Plane, spec: &PublishSpec, save: bool) -> Result<String, String> {
    // One change at a time.
    let mut kept = plane.kept.lock().await;
    let (rules, save, congestion) = {
        let config = plane.config.borrow();
        (config.publish_allow.clone(), save || config.keep_publishes, config.congestion.clone())
    };
    for publish in spec.publishes() {
        if !rules.is_empty() && !policy::allows(&rules, publish.listen) {
            let (proto, listen) = (publish.proto, publish.listen);
            return Err(format!("{proto} {listen} is outside the policy; a --publish-allow rule has to cover it"));
        }
    }
    let origin = if save { Origin::Kept } else { Origin::Runtime };
    let ports = bind_all(plane, spec.publishes(), origin, congestion.as_deref()).await?;
    let publishes: Vec<Publish> = ports.iter().map(|bound| bound.publish.clone()).collect();
    if save {
        kept.change(&publishes, &[]).map_err(|error| format!("{error:#}"))?;
    }
    if let Err(error) = serve(plane, ports).await {
        if save {
            let ports: Vec<_> = publishes.iter().map(|publish| (publish.proto, publish.listen)).collect();
            // It is told together with why they are not served.
            if let Err(more) = kept.change(&[], &ports) {
                return Err(format!("{error}; and they come back with the next start: {more:#}"));
            }
        }
        return Err(error);
    }
    Ok(list("published", publishes.iter().map(ToString::to_string), if save { " (kept)" } else { "" }))
}

/// `unpublish PORTS [now]`.
pub(super) async fn unpublish(plane: &Plane, ports: &Ports, now: bool) -> Result<String, String> {
    let mut kept = plane.kept.lock().await;
    let ports: Vec<(Proto, SocketAddr)> = ports.iter().collect();
    kept.change(&[], &ports).map_err(|error| format!("{error:#}"))?;
    let how = if now { Unpublish::Now } else { Unpublish::Gently };
    let gone = take_away(plane, ports, how).await?;
    asking::withdraw(plane, &gone);
    if gone.is_empty() {
        return Err("nothing is published there; 'show publishes' lists what is".into());
    }
    let line = |gone: &Unpublished| {
        let row = &gone.row;
        match (how, row.visitors_live + row.flows_live) {
            (_, 0) => row.publish.to_string(),
            (Unpublish::Now, live) => format!("{} ({live} visitors were cut off)", row.publish),
            (_, live) => format!("{} ({live} visitors stay; 'now' cuts them off)", row.publish),
        }
    };
    Ok(list("unpublished", gone.iter().map(line), ""))
}

/// Brings back what was kept, at the relay's start. What cannot be had is told in the log and stays kept.
pub(super) async fn restore(plane: &Plane) {
    let kept = plane.kept.lock().await;
    let (congestion, configured) = {
        let config = plane.config.borrow();
        (config.congestion.clone(), config.publishes().cloned().collect::<Vec<_>>())
    };
    let is_configured =
        |publish: &Publish| configured.iter().any(|c| (c.proto, c.listen) == (publish.proto, publish.listen));
    let mut left: Vec<Publish> = kept.publishes().iter().filter(|publish| !is_configured(publish)).cloned().collect();
    let mut ports = Vec::new();
    for attempt in 0..=IN_USE_RETRIES {
        left.retain(|publish| match Bound::bind(publish, Origin::Kept, congestion.as_deref()) {
            Ok(bound) => {
                ports.push(bound);
                false
            }
            // A relay that was killed may still be on its way out.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < IN_USE_RETRIES => true,
            Err(error) => {
                tracing::warn!(%publish, "a kept port is not published: {}", refusal(publish, &error));
                false
            }
        });
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(IN_USE_WAIT).await;
    }
    if let Err(error) = serve(plane, ports).await {
        tracing::warn!(error, "kept ports are not published");
    }
}

/// Every published port, leaving ones too.
pub(super) async fn rows(plane: &Plane) -> Result<Vec<PublishRow>, String> {
    ask_all(plane, |reply| Command::Publishes { reply }).await
}

/// Has bound ports served, each by the shard that owns its mediator.
pub(super) async fn serve(plane: &Plane, ports: Vec<Bound>) -> Result<(), String> {
    let mut lists: BTreeMap<usize, Vec<Bound>> = BTreeMap::new();
    for bound in ports {
        lists.entry(usize::from(bound.publish.mediator.shard(plane.shards.len()).0)).or_default().push(bound);
    }
    let deadline = plane.reply_deadline();
    let mut answers = Vec::new();
    let mut served: Vec<(Proto, SocketAddr)> = Vec::new();
    let mut failed = None;
    for (shard, ports) in lists {
        let names: Vec<_> = ports.iter().map(|bound| (bound.publish.proto, bound.publish.listen)).collect();
        let (reply, answer) = oneshot::channel();
        match plane.send(shard, Command::Publish { ports, reply }) {
            Ok(()) => {
                answers.push((shard, answer));
                served.extend(names);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    for (shard, answer) in answers {
        if let Err(error) = answer_of(plane, shard, answer, deadline).await.and_then(|result| result) {
            failed = failed.or(Some(error));
        }
    }
    match failed {
        None => Ok(()),
        Some(error) => {
            // All or none.
            let _ = take_away(plane, served, Unpublish::Now).await;
            Err(error)
        }
    }
}

/// Has ports served no more, whoever serves them.
pub(super) async fn take_away(
    plane: &Plane,
    ports: Vec<(Proto, SocketAddr)>,
    how: Unpublish,
) -> Result<Vec<Unpublished>, String> {
    ask_all(plane, |reply| Command::Unpublish { ports: ports.clone(), how, reply }).await
}

/// Binds an operator's ports, all or none. Those that mediators have by asking make way, last of all.
pub(super) async fn bind_all(
    plane: &Plane,
    publishes: &[Publish],
    origin: Origin,
    congestion: Option<&str>,
) -> Result<Vec<Bound>, String> {
    let (contested, free): (Vec<&Publish>, Vec<&Publish>) =
        publishes.iter().partition(|publish| asking::is_in_the_way(plane, publish));
    let mut ports = Vec::with_capacity(publishes.len());
    for publish in free {
        match bind(publish, origin, congestion).await {
            Ok(bound) => ports.push(bound),
            Err(error) => return Err(why_taken(plane, publish, &error).await),
        }
    }
    let gone = asking::make_way(plane, &contested).await;
    for publish in contested {
        match bind(publish, origin, congestion).await {
            Ok(bound) => ports.push(bound),
            Err(error) => {
                let why = why_taken(plane, publish, &error).await;
                drop(ports);
                asking::resettle(plane, gone).await;
                return Err(why);
            }
        }
    }
    Ok(ports)
}

/// Binds a port that may be in use by what a shard closes at this very moment.
pub(super) async fn bind(publish: &Publish, origin: Origin, congestion: Option<&str>) -> io::Result<Bound> {
    for _ in 0..JUST_CLOSED_TRIES {
        match Bound::bind(publish, origin, congestion) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::time::sleep(JUST_CLOSED_WAIT).await,
            result => return result,
        }
    }
    Bound::bind(publish, origin, congestion)
}

/// The refusal of a port; if it is taken by ourselves, by what.
async fn why_taken(plane: &Plane, publish: &Publish, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse
        && let Ok(rows) = rows(plane).await
        && let Some(row) =
            rows.iter().find(|row| (row.publish.proto, row.publish.listen) == (publish.proto, publish.listen))
    {
        let (proto, listen) = (publish.proto, publish.listen);
        return match row.leaving {
            true => format!("flows of an earlier publish still use it; 'unpublish {proto}:{listen} now' ends them"),
            false => format!("it is published already, as {}; unpublish it first", row.publish),
        };
    }
    refusal(publish, error)
}

/// One line per port, of the first ones.
fn list(word: &str, ports: impl ExactSizeIterator<Item = String>, tail: &str) -> String {
    let count = ports.len();
    let mut text: String = ports.take(SHOWN_MAX).map(|port| format!("{word} {port}{tail}\n")).collect();
    if count > SHOWN_MAX {
        text.push_str(&format!("… and {} more\n", count - SHOWN_MAX));
    }
    text
}

/// The file of what is kept, behind the lock that makes one change of ports wait for another.
pub(super) type KeptLock = tokio::sync::Mutex<Kept>;
