//! One operator's connection: lines in, answers out, in order.
//!
//! While an answer is on its way nothing more is read, so that what a connection holds is one line and one
//! answer. Every wait is bounded.

use std::future::Future;
use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_uring::net::UnixStream;

use super::answer::ERROR;
use super::answer::phrase;
use super::dispatch::{self, HELP, Request};
use super::level::Level;
use super::serve::{Plane, Tally};
use super::{asking, events, exposing, metrics, naming, publishing, reload, show, state, stats, trust, tunnels};
use crate::journal::What;

/// Serves one connection to its end.
pub(super) async fn serve(plane: Rc<Plane>, stream: UnixStream, level: Level) {
    let stream = Rc::new(stream);
    Tally::count(&plane.tally.connections);
    if plane.streams.borrow().len() >= plane.limits.connections_max {
        Tally::count(&plane.tally.refused);
        let text = format!("{ERROR}there are {} connections already; try later\n\n", plane.limits.connections_max);
        // Its end is near in any case.
        let _ = write(&plane, &stream, text).await;
        return;
    }
    let key = plane.streams.borrow_mut().insert(stream.clone());
    // Whatever ends it, the operator sees it at his end: not worth a log line.
    converse(&plane, &stream, level).await;
    // The descriptor's own close comes some time later.
    let _ = stream.shutdown(Shutdown::Both);
    plane.streams.borrow_mut().remove(key);
}

/// The session is over: the operator said so or closed, a limit was hit (and counted), or the connection broke.
pub(super) struct End;

/// What a connection is.
struct Manner {
    level: Level,
    prompt: bool,
}

/// Shown before each command where that is asked for.
const PROMPT: &str = "> ";

async fn converse(plane: &Plane, stream: &UnixStream, level: Level) -> End {
    let mut manner = Manner { level, prompt: false };
    let mut pending: Vec<u8> = Vec::new();
    let mut chunk = Vec::with_capacity(plane.limits.line_max);
    loop {
        while let Some(at) = pending.iter().position(|&byte| byte == b'\n') {
            if at > plane.limits.line_max {
                break;
            }
            let rest = pending.split_off(at + 1);
            let line = std::mem::replace(&mut pending, rest);
            if let Err(end) = answer_line(plane, stream, &line, &mut manner).await {
                return end;
            }
        }
        if pending.len() > plane.limits.line_max {
            Tally::count(&plane.tally.lines_oversize);
            let text = format!("{ERROR}a line is longer than {} bytes\n\n", plane.limits.line_max);
            return write(plane, stream, text).await.err().unwrap_or(End);
        }
        chunk.clear();
        let Some((result, read)) = bounded(stream, plane.limits.idle, stream.read(chunk)).await else {
            Tally::count(&plane.tally.idle_timeouts);
            return End;
        };
        match result {
            Ok(0) => {
                // The last command needs no line's end.
                return answer_line(plane, stream, &pending, &mut manner).await.err().unwrap_or(End);
            }
            Ok(_) => pending.extend_from_slice(&read),
            Err(_) => return End,
        }
        chunk = read;
    }
}

/// Answers the commands of one line. Empty ones have no answer.
async fn answer_line(plane: &Plane, stream: &UnixStream, line: &[u8], manner: &mut Manner) -> Result<(), End> {
    let line = String::from_utf8_lossy(line);
    for command in line.split(';').filter(|command| !command.trim().is_empty()) {
        Tally::count(&plane.tally.commands);
        let answer = match dispatch::parse(command) {
            Ok(Request::Quit) => return Err(End),
            Ok(request) if request.level() > manner.level => {
                Tally::count(&plane.tally.refused_level);
                let (word, needed, level) = (phrase(command.trim()), request.level(), manner.level);
                Err(format!(
                    "'{word}' needs the level {needed}, and this socket's is {level}; use the relay's --stats-socket"
                ))
            }
            Ok(Request::Prompt) => {
                manner.prompt = true;
                continue;
            }
            Ok(Request::Events { filter, watch: true, format }) => {
                events::watch(plane, stream, &filter, format).await?;
                Ok("# the watch ends\n".to_owned())
            }
            Ok(request) => {
                let changing = request.level() > Level::User;
                let answer = execute(plane, request).await;
                if changing && answer.is_ok() {
                    plane.recorder.record(What::Operator, None, command.trim());
                }
                answer
            }
            Err(error) => Err(error),
        };
        let mut text = answer.unwrap_or_else(|error| {
            Tally::count(&plane.tally.errors);
            format!("{ERROR}{error}\n")
        });
        text.push('\n');
        write(plane, stream, text).await?;
    }
    if manner.prompt {
        write(plane, stream, PROMPT.to_owned()).await?;
    }
    Ok(())
}

async fn execute(plane: &Plane, request: Request) -> Result<String, String> {
    match request {
        Request::Help(None) | Request::Prompt | Request::Quit => Ok(HELP.to_owned()),
        Request::Help(Some(words)) => dispatch::help(&words),
        Request::Detail(id, format) => show::detail(plane, id, format).await,
        Request::Events { filter, format, .. } => events::show(plane, &filter, format),
        Request::Info(format) => stats::info(plane, format),
        Request::Stat(format) => stats::stat(plane, format),
        Request::Shards(format) => state::shards(plane, format).await,
        Request::Pools(format) => state::pools(plane, format).await,
        Request::Flows { glob, limit, format } => state::flows(plane, &glob, limit, format).await,
        Request::Limits(format) => state::limits(plane, format).await,
        Request::Errors(format) => stats::errors(plane, format),
        Request::Config(format) => state::config(plane, format),
        Request::Metrics => Ok(metrics::render(plane)),
        Request::Tunnels(query, format) => tunnels::show(plane, query, format).await,
        Request::Publishes(format) => show::publishes(plane, format).await,
        Request::Publish { spec, save } => publishing::publish(plane, &spec, save).await,
        Request::Unpublish { ports, now } => publishing::unpublish(plane, &ports, now).await,
        Request::Asks(format) => asking::show(plane, format),
        Request::Exposes(format) => exposing::show(plane, format).await,
        Request::Expose(expose) => exposing::expose(plane, expose).await,
        Request::Unexpose { server, now } => exposing::unexpose(plane, server, now).await,
        Request::Names(format) => naming::show(plane, format).await,
        Request::Name(route) => naming::add(plane, route).await,
        Request::Unname(pattern) => naming::remove(plane, &pattern).await,
        Request::Reload => reload::reload(plane).await,
        Request::SetLog(filter) => reload::set_log(plane, &filter),
        Request::Check(within) => show::check(plane, within).await,
        Request::Trust(format) => trust::show(plane, format),
        Request::ReloadTrust => trust::reload(plane).await,
        Request::Revoke(target, until) => trust::revoke(plane, target, until).await,
        Request::Drain(over) => show::drain(plane, over).await,
        Request::Undrain => show::undrain(plane).await,
        Request::Kill(mediator) => show::kill(plane, mediator).await,
    }
}

pub(super) async fn write(plane: &Plane, stream: &UnixStream, text: String) -> Result<(), End> {
    match bounded(stream, plane.limits.write, stream.write_all(text.into_bytes())).await {
        Some((Ok(()), _)) => Ok(()),
        Some((Err(_), _)) => Err(End),
        None => {
            Tally::count(&plane.tally.write_timeouts);
            Err(End)
        }
    }
}

/// Waits for a socket's operation for at most `limit`; `None` after that, and the connection is shut down.
///
/// The kernel owns the operation's buffer until it completes: the shut-down makes it complete, and only then is
/// the wait over, so that no operation outlives its session.
async fn bounded<T>(stream: &UnixStream, limit: Duration, operation: impl Future<Output = T>) -> Option<T> {
    let mut operation = pin!(operation);
    if let Ok(done) = timeout(limit, &mut operation).await {
        return Some(done);
    }
    // It fails only where the other end has gone already, which completes the operation as well.
    let _ = stream.shutdown(Shutdown::Both);
    operation.await;
    None
}
