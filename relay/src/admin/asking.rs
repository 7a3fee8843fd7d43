//! What mediators ask for: their asks are held against the policy, ports are bound and given to the shards, and each
//! mediator is told what became of it.
//!
//! All of it happens on this thread, behind the lock that makes one change of ports wait for another; a shard only hands
//! over who has to be looked at ([`Command::Asks`]). Whoever has a port first keeps it, but for operators, who always win.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::MediatorId;
use isthmus_proto::ask::{Ask, AskRefusal};
use isthmus_proto::hello::{Outcome, Outcomes};
use isthmus_proto::limits::ASKS_MAX;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::answer::{json, phrase, table};
use super::command::{Asking, Command, Told, Unpublish, Unpublished};
use super::dispatch::Format;
use super::naming;
use super::publishing::{bind, serve, take_away};
use super::serve::Plane;
use super::show::answer_of;
use crate::asked::{AllowName, AllowPublish, NAMES_TOTAL_MAX, PORTS_TOTAL_MAX, permits_name, permitted};
use crate::names::{NameRoute, Names};
use crate::publish::{Bound, Origin, Publish};

mod table;

pub(super) use table::Asked;
use table::{Asker, Entry, Port, State, overlap};

/// What was refused and may be had later is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Between two rounds: mediators whose asks change without end do not keep this thread for themselves.
const PAUSE: Duration = Duration::from_millis(50);

/// A shard that is too busy to be asked to close ports is asked again.
const TAKE_TRIES: u32 = 5;

/// Most characters of an ask that are kept: more than any that is understood has.
const TEXT_MAX: usize = 300;

/// Most rows of one answer.
const SHOWN_MAX: usize = 10_000;

/// What of the settings counts here.
struct Policy {
    ports: Vec<AllowPublish>,
    names: Vec<AllowName>,
    congestion: Option<String>,
}

impl Policy {
    fn of(plane: &Plane) -> Self {
        let config = plane.config.borrow();
        let (ports, names) = (config.allow_publish.clone(), config.allow_name.clone());
        Self { ports, names, congestion: config.congestion.clone() }
    }
}

/// Looks after what mediators ask for, without end.
pub(super) async fn run(plane: Rc<Plane>) {
    let asking = plane.asking.clone();
    let mut complete = true;
    let mut retry = Instant::now() + RETRY;
    loop {
        let waits = !complete || plane.asked.borrow().waits();
        if waits {
            // Either way there is something to do.
            let _ = timeout_at(retry, asking.notified()).await;
        } else {
            asking.notified().await;
        }
        complete = take_changes(&plane).await;
        if Instant::now() >= retry {
            retry = Instant::now() + RETRY;
            let _change = plane.kept.lock().await;
            let waiting = ids(&plane, Asker::waits);
            settle_again(&plane, waiting).await;
        }
        sleep(PAUSE).await;
    }
}

/// Takes over what has changed on every shard; whether all of it could be had.
async fn take_changes(plane: &Plane) -> bool {
    let mut complete = true;
    for shard in 0..plane.shards.len() {
        loop {
            let (reply, answer) = oneshot::channel();
            let taken = match plane.send(shard, Command::Asks { reply }) {
                Ok(()) => answer_of(plane, shard, answer, plane.reply_deadline()).await,
                Err(error) => Err(error),
            };
            let (list, more) = match taken {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::debug!(error, "what mediators ask for is looked at later");
                    complete = false;
                    break;
                }
            };
            let _change = plane.kept.lock().await;
            for asking in list {
                settle(plane, asking).await;
            }
            give_names(plane).await;
            if !more {
                break;
            }
        }
    }
    complete
}

/// Holds what these mediators ask for against policy and ports anew. The caller has the lock.
pub(super) async fn resettle(plane: &Plane, mediators: Vec<MediatorId>) {
    settle_again(plane, mediators).await;
    // Some of them may wait from now on.
    plane.asking.notify_one();
}

async fn settle_again(plane: &Plane, mediators: Vec<MediatorId>) {
    for mediator in mediators {
        let asking = plane.asked.borrow().by.get(&mediator).map(|asker| asker.asking(&mediator));
        if let Some(asking) = asking {
            settle(plane, asking).await;
        }
    }
    give_names(plane).await;
}

/// The same for all.
pub(super) async fn resettle_all(plane: &Plane) {
    let all = ids(plane, |_| true);
    resettle(plane, all).await;
}

fn ids(plane: &Plane, which: impl Fn(&Asker) -> bool) -> Vec<MediatorId> {
    plane.asked.borrow().by.iter().filter(|(_, asker)| which(asker)).map(|(id, _)| id.clone()).collect()
}

/// Gives a mediator what it asks for, takes away what it does not any more, and tells it.
async fn settle(plane: &Plane, asking: Asking) {
    let Asking { mediator, session, asks } = asking;
    let before = plane.asked.borrow_mut().take(&mediator);
    let policy = Policy::of(plane);
    let wishes = match session {
        Some(session) => wishes(&policy, &mediator, &before, session, &asks),
        None => Vec::new(),
    };
    let beyond = asks.len().saturating_sub(ASKS_MAX) as u64;
    let mut after = Asker { session: session.unwrap_or_default(), entries: wishes };
    settle_ports(plane, &policy, &before, &mut after).await;
    settle_names(plane, &mediator, &before, &mut after).await;
    if session.is_some() {
        tell(plane, &mediator, &before, &after, beyond);
    }
    if !after.entries.is_empty() {
        plane.asked.borrow_mut().put(mediator, after);
    }
}

/// What a mediator would have by the policy: its asks as entries that are granted, or refused already.
fn wishes(policy: &Policy, mediator: &MediatorId, before: &Asker, session: u64, asks: &[String]) -> Vec<Entry> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut wish = |text: &String| {
        let text: String = text.chars().take(TEXT_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
        let state = match text.parse::<Ask>() {
            Err(_) => State::Refused(AskRefusal::NotUnderstood),
            Ok(Ask::Port(port)) => match permitted(&policy.ports, mediator, &port) {
                Some(publish) if seen.insert(format!("{}:{}", publish.proto, publish.listen)) => State::Port(publish),
                Some(_) => State::Refused(AskRefusal::Taken),
                None => State::Refused(AskRefusal::NotAllowed),
            },
            Ok(Ask::Name(name)) if !permits_name(&policy.names, mediator, &name) => {
                State::Refused(AskRefusal::NotAllowed)
            }
            Ok(Ask::Name(name)) if seen.insert(name.as_str().to_owned()) => State::Name(name),
            Ok(Ask::Name(_)) => State::Refused(AskRefusal::Taken),
        };
        let withdrawn = State::Refused(AskRefusal::Withdrawn);
        // What an operator took away stays away for as long as the mediator stays.
        let stays = before.session == session
            && before.entries.iter().any(|entry| entry.text == text && entry.state == withdrawn);
        Entry { text, state: if stays { withdrawn } else { state } }
    };
    asks.iter().take(ASKS_MAX).map(&mut wish).collect()
}

/// Closes the ports that are not wished any more, and opens those that are new; an entry that cannot be had says why.
async fn settle_ports(plane: &Plane, policy: &Policy, before: &Asker, after: &mut Asker) {
    let had: Vec<Publish> = before.ports().cloned().collect();
    let lost: Vec<Port> =
        had.iter().filter(|had| after.ports().all(|wish| wish != *had)).map(|had| (had.proto, had.listen)).collect();
    let freed = !lost.is_empty();
    // A port that leads elsewhere keeps its socket, so that nobody who comes in between is refused.
    let mut sockets: HashMap<Port, Unpublished> = close(plane, lost)
        .await
        .into_iter()
        .map(|gone| ((gone.row.publish.proto, gone.row.publish.listen), gone))
        .collect();
    let wished: BTreeSet<Port> = after.ports().map(|publish| (publish.proto, publish.listen)).collect();
    sockets.retain(|port, _| wished.contains(port));
    let mut room = PORTS_TOTAL_MAX.saturating_sub(plane.asked.borrow().ports);
    let mut bound = Vec::new();
    for entry in &mut after.entries {
        let State::Port(publish) = &entry.state else { continue };
        if room == 0 {
            entry.state = State::Refused(AskRefusal::Limit);
            continue;
        }
        if !had.contains(publish) {
            let port = (publish.proto, publish.listen);
            let socket = sockets.remove(&port).and_then(|gone| gone.socket);
            match open(publish, socket, freed, policy.congestion.as_deref()).await {
                Ok(port) => bound.push(port),
                Err(error) => {
                    entry.state = State::Refused(reason(publish, &error));
                    continue;
                }
            }
        }
        room -= 1;
    }
    let opened: Vec<Publish> = bound.iter().map(|bound| bound.publish.clone()).collect();
    if let Err(error) = serve(plane, bound).await {
        tracing::warn!(error, "what a mediator asks for is not published");
        let failed = |entry: &&mut Entry| matches!(&entry.state, State::Port(p) if opened.contains(p));
        for entry in after.entries.iter_mut().filter(failed) {
            entry.state = State::Refused(AskRefusal::Failed);
        }
    }
}

/// Opens a port, with the socket that it had before or with one of its own.
async fn open(
    publish: &Publish,
    socket: Option<isthmus_ring::Socket>,
    freed: bool,
    congestion: Option<&str>,
) -> io::Result<Bound> {
    match socket {
        Some(socket) => {
            let (publish, asked) = (publish.clone(), publish.listen);
            Ok(Bound { publish, asked, origin: Origin::Asked, socket })
        }
        // It may be in use by what has just been closed.
        None if freed => bind(publish, Origin::Asked, congestion).await,
        None => Bound::bind(publish, Origin::Asked, congestion),
    }
}

fn reason(publish: &Publish, error: &io::Error) -> AskRefusal {
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::AddrInUse, _) => AskRefusal::Taken,
        (io::ErrorKind::AddrNotAvailable, _) => AskRefusal::NoAddress,
        (_, Some(EPERM | EACCES)) if publish.listen.port() < 1024 => AskRefusal::Privileged,
        (_, Some(EMFILE | ENFILE)) => AskRefusal::Limit,
        _ => {
            tracing::warn!(%publish, %error, "what a mediator asks for cannot be published");
            AskRefusal::Failed
        }
    }
}

/// Closes ports: TCP visitors stay until they end, UDP flows end, so that the port is free at once.
async fn close(plane: &Plane, ports: Vec<Port>) -> Vec<Unpublished> {
    if ports.is_empty() {
        return Vec::new();
    }
    for _ in 0..TAKE_TRIES {
        match take_away(plane, ports.clone(), Unpublish::HandOut).await {
            Ok(gone) => return gone,
            Err(error) => {
                tracing::warn!(error, "ports that a mediator has no more are not closed yet");
                sleep(PAUSE).await;
            }
        }
    }
    tracing::error!(?ports, "a shard does not close ports that a mediator has no more; unpublish them");
    Vec::new()
}

/// Gives back names that are not wished any more, and takes those that are.
async fn settle_names(plane: &Plane, mediator: &MediatorId, before: &Asker, after: &mut Asker) {
    if before.names().chain(after.names()).next().is_none() {
        return;
    }
    {
        let mut asked = plane.asked.borrow_mut();
        for name in before.names().filter(|name| after.names().all(|wish| wish != *name)) {
            asked.names.remove(name);
            asked.names_changed = true;
        }
    }
    // Without a table, operators' routes count more when the shards get theirs.
    let operators = match after.names().next() {
        Some(_) => naming::table(plane).await.unwrap_or_default(),
        None => Arc::default(),
    };
    let mut asked = plane.asked.borrow_mut();
    let asked = &mut *asked;
    for entry in &mut after.entries {
        let State::Name(name) = &entry.state else { continue };
        let has = asked.names.get(name).map(|owner| owner == mediator);
        let refused = match has {
            _ if operators.has_own(name) => Some(AskRefusal::Taken),
            Some(true) => None,
            Some(false) => Some(AskRefusal::Taken),
            None if plane.config.borrow().names.is_empty() => Some(AskRefusal::NotAllowed),
            None if asked.names.len() >= NAMES_TOTAL_MAX => Some(AskRefusal::Limit),
            None => None,
        };
        match refused {
            None if has.is_none() => {
                asked.names.insert(name.clone(), mediator.clone());
                asked.names_changed = true;
            }
            None => {}
            Some(why) => {
                if has == Some(true) {
                    asked.names.remove(name);
                    asked.names_changed = true;
                }
                entry.state = State::Refused(why);
            }
        }
    }
}

/// Has the shards lead by the names that mediators have now, if they have changed.
async fn give_names(plane: &Plane) {
    if !plane.asked.borrow().names_changed {
        return;
    }
    let given = match naming::table(plane).await {
        Ok(names) => naming::set(plane, names.routes().to_vec()).await,
        Err(error) => Err(error),
    };
    match given {
        Ok(()) => plane.asked.borrow_mut().names_changed = false,
        // The next change tries again.
        Err(error) => tracing::warn!(error, "not every shard leads by the names that mediators ask for"),
    }
}

/// The routes of the names that mediators have.
pub(super) fn routes(plane: &Plane) -> Vec<NameRoute> {
    let asked = plane.asked.borrow();
    asked.names.iter().map(|(name, mediator)| NameRoute::asked(name.clone(), mediator.clone())).collect()
}

/// Tells a mediator what became of its asks, if that is news.
fn tell(plane: &Plane, mediator: &MediatorId, before: &Asker, after: &Asker, beyond: u64) {
    let same_session = before.session == after.session;
    let states = |asker: &Asker| asker.entries.iter().map(|e| (e.text.clone(), e.state.clone())).collect::<Vec<_>>();
    if same_session && states(before) == states(after) {
        return;
    }
    let is_new = |entry: &&Entry| {
        !(same_session && before.entries.iter().any(|old| old.text == entry.text && old.state == entry.state))
    };
    let (mut granted, mut refused) = (0, beyond);
    for entry in after.entries.iter().filter(is_new) {
        match &entry.state {
            State::Port(_) | State::Name(_) => granted += 1,
            State::Refused(why) => {
                refused += 1;
                tracing::info!(%mediator, ask = entry.text, reason = why.word(), "what a mediator asks for is refused");
            }
        }
    }
    let outcomes = Outcomes { outcomes: after.entries.iter().map(Entry::outcome).collect() };
    // Plain data: it always serialises.
    let json = serde_json::to_vec(&outcomes).unwrap_or_default();
    let told = Told { mediator: mediator.clone(), session: after.session, json, granted, refused };
    let shard = usize::from(mediator.shard(plane.shards.len()).0);
    if let Err(error) = plane.send(shard, Command::Outcomes(told)) {
        tracing::warn!(%mediator, error, "a mediator is not told what became of what it asks for");
    }
}

/// Whether a port that a mediator has by asking is in the way of this one.
pub(super) fn is_in_the_way(plane: &Plane, publish: &Publish) -> bool {
    plane.asked.borrow().by.values().any(|asker| asker.ports().any(|port| overlap(port, publish)))
}

/// Takes away the ports that are in the way of an operator's; gives those whose they were.
pub(super) async fn make_way(plane: &Plane, publishes: &[&Publish]) -> Vec<MediatorId> {
    let in_the_way = |port: &Publish| publishes.iter().any(|publish| overlap(port, publish));
    refuse(plane, AskRefusal::Taken, in_the_way).await
}

/// An operator unpublished these: they are not given again while their mediators stay.
pub(super) fn withdraw(plane: &Plane, gone: &[Unpublished]) {
    let gone: BTreeSet<Port> = gone
        .iter()
        .filter(|gone| gone.row.origin == Origin::Asked)
        .map(|gone| (gone.row.publish.proto, gone.row.publish.listen))
        .collect();
    mark(plane, AskRefusal::Withdrawn, |port| gone.contains(&(port.proto, port.listen)));
}

async fn refuse(plane: &Plane, why: AskRefusal, which: impl Fn(&Publish) -> bool) -> Vec<MediatorId> {
    let marked = mark(plane, why, which);
    let (mediators, ports): (BTreeSet<MediatorId>, Vec<Port>) =
        marked.into_iter().map(|port| (port.mediator, (port.proto, port.listen))).unzip();
    // The sockets are closed here.
    drop(close(plane, ports).await);
    mediators.into_iter().collect()
}

/// Notes that ports are had no more, and tells their mediators; gives the ports.
fn mark(plane: &Plane, why: AskRefusal, which: impl Fn(&Publish) -> bool) -> Vec<Publish> {
    let mut marked = Vec::new();
    for mediator in ids(plane, |asker| asker.ports().any(&which)) {
        let before = plane.asked.borrow_mut().take(&mediator);
        let mut after = before.clone();
        for entry in &mut after.entries {
            if let State::Port(port) = &entry.state
                && which(port)
            {
                marked.push(port.clone());
                entry.state = State::Refused(why);
            }
        }
        tell(plane, &mediator, &before, &after, 0);
        // It waits from now on.
        plane.asking.notify_one();
        plane.asked.borrow_mut().put(mediator, after);
    }
    marked
}

/// The mediators that have names which operators lead elsewhere from now on.
pub(super) fn holders(plane: &Plane, names: &Names) -> Vec<MediatorId> {
    ids(plane, |asker| asker.names().any(|name| names.has_own(name)))
}

/// `show asks`.
pub(super) fn show(plane: &Plane, format: Format) -> Result<String, String> {
    let asked = plane.asked.borrow();
    let rows = || asked.by.iter().flat_map(|(id, asker)| asker.entries.iter().map(move |entry| (id, entry.outcome())));
    match format {
        Format::Json => {
            let rows: Vec<_> = rows().map(|(id, outcome)| json!({ "mediator": id, "outcome": outcome })).collect();
            json(&json!({ "asks": rows }))
        }
        Format::Text => {
            let cells = |(id, outcome): (&MediatorId, Outcome)| {
                let state = outcome.refused.map_or_else(|| "granted".to_owned(), |why| format!("refused:{why}"));
                let listen = outcome.granted.unwrap_or_else(|| "-".to_owned());
                vec![id.to_string(), state, listen, phrase(&outcome.ask)]
            };
            let cells: Vec<Vec<String>> = rows().take(SHOWN_MAX).map(cells).collect();
            Ok(table(&["mediator", "state", "at", "ask"], &cells))
        }
    }
}
