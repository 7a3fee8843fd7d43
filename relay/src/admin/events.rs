//! `show events`: what happened, and with `-w` what happens.

use std::pin::pin;
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio_uring::net::UnixStream;

use super::answer::{self, phrase};
use super::dispatch::{EventsFilter, Format};
use super::serve::Plane;
use super::session::{End, write};
use crate::journal::Event;

/// Most events that a watcher is told at once; of more, the newest.
const PIECE: usize = 500;

/// The last ones.
pub(super) fn show(plane: &Plane, filter: &EventsFilter, format: Format) -> Result<String, String> {
    plane.journal.take();
    let events = plane.journal.since(0, filter.limit, |event| filter.passes(event));
    match format {
        // An answer without a line could not be told from a blank one.
        Format::Text if events.is_empty() => Ok("# none\n".to_owned()),
        Format::Text => Ok(events.iter().map(|(_, event)| line(event)).collect()),
        Format::Json => {
            let rows: Vec<Value> = events.iter().map(|(number, event)| row(*number, event)).collect();
            answer::json(&json!({ "events": rows, "lost": plane.journal.lost() }))
        }
    }
}

/// The last ones, and those that come, until the operator sends something or goes.
pub(super) async fn watch(
    plane: &Plane,
    stream: &UnixStream,
    filter: &EventsFilter,
    format: Format,
) -> Result<(), End> {
    plane.journal.take();
    let mut newest = plane.journal.newest();
    let (mut after, mut limit) = (0, filter.limit);
    // The kernel owns its buffer until it ends, so it is never dropped half-way: every way out ends it first.
    let mut heard = pin!(stream.read(Vec::with_capacity(1)));
    let result = loop {
        let end = *newest.borrow_and_update();
        let events = plane.journal.since(after, limit, |event| filter.passes(event));
        (after, limit) = (end, PIECE);
        let text: String = match format {
            Format::Text => events.iter().map(|(_, event)| line(event)).collect(),
            Format::Json => {
                events.iter().filter_map(|(number, event)| answer::json(&row(*number, event)).ok()).collect()
            }
        };
        if !text.is_empty()
            && let Err(end) = write(plane, stream, text).await
        {
            break Err(end);
        }
        tokio::select! {
            _ = &mut heard => return Ok(()),
            changed = newest.changed() => if changed.is_err() { break Err(End) },
        }
    };
    // It fails only where the other end has gone already, which ends the wait as well.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = heard.await;
    result
}

fn line(event: &Event) -> String {
    let mediator = event.mediator.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let what = serde_json::to_value(event.what).unwrap_or_default();
    format!("{} {} {mediator} {}\n", time(event.at), what.as_str().unwrap_or("-"), phrase(&event.text))
}

fn row(number: u64, event: &Event) -> Value {
    json!({
        "n": number, "time": time(event.at), "what": event.what, "mediator": event.mediator, "text": event.text,
    })
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
