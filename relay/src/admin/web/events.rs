//! Events as they come: server-sent events (HTML Living Standard, 9.2), by whose numbers a browser goes on where it was.

use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admin::answer;
use crate::admin::serve::Plane;
use crate::http::{Asked, Body, Reply};
use crate::journal::Event;
use crate::trust::Glob;

/// Events that a newcomer is told of what was before.
const BEFORE: usize = 100;

/// Most events of one piece; of more than that, the newest are told, and how many were left out.
const PIECE: usize = 200;

/// Without an event for this long, a comment shows whether anybody reads.
const QUIET: Duration = Duration::from_secs(5);

/// Between two pieces, so that a storm of events is told in few of them.
const PAUSE: Duration = Duration::from_millis(200);

/// Begins a stream of events, of the mediators that `id` (a pattern) fits if it is given.
pub(super) fn stream(plane: &Rc<Plane>, asked: &Asked) -> Result<Reply, String> {
    let glob = asked.query("id").map(str::parse::<Glob>).transpose().map_err(|error| format!("id: {error}"))?;
    // A browser that comes back tells what it had.
    let last = asked.parts.headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let (pieces, body) = Body::stream();
    tokio::task::spawn_local(tell(plane.clone(), glob, last.unwrap_or(0), pieces));
    let mut reply = Reply::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(reply)
}

async fn tell(plane: Rc<Plane>, glob: Option<Glob>, mut after: u64, pieces: mpsc::Sender<Bytes>) {
    let passes = |event: &Event| match (&glob, &event.mediator) {
        (None, _) => true,
        (Some(glob), Some(id)) => glob.matches(id),
        (Some(_), None) => false,
    };
    let mut newest = plane.journal.newest();
    let mut limit = BEFORE;
    let mut piece = "retry: 2000\n\n".to_owned();
    loop {
        let end = *newest.borrow_and_update();
        // It starts at one again when the relay does.
        after = if after > end { 0 } else { after };
        for (number, event) in plane.journal.since(after, limit, passes) {
            piece.push_str(&line(number, &event));
        }
        (after, limit) = (end, PIECE);
        // The only wait for a slow reader; the journal forgets meanwhile what he cannot take.
        if !piece.is_empty() && pieces.send(std::mem::take(&mut piece).into()).await.is_err() {
            return;
        }
        tokio::select! {
            _ = pieces.closed() => return,
            changed = timeout(QUIET, newest.changed()) => match changed {
                Ok(Ok(())) => tokio::time::sleep(PAUSE).await,
                Ok(Err(_)) => return,
                Err(_) => piece.push_str(":\n\n"),
            }
        }
    }
}

fn line(number: u64, event: &Event) -> String {
    let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let value = json!({ "at_ms": at, "what": event.what, "mediator": event.mediator, "text": event.text });
    // One line, whatever was in the text.
    let json = answer::json(&value).unwrap_or_default();
    format!("id: {number}\ndata: {json}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::What;

    #[test]
    fn event_is_one_block_whatever_its_text_has() {
        let text = "silent\n\ndata: {\"forged\":1}\u{2028}\u{85}".to_owned();
        let event =
            Event { at: UNIX_EPOCH + Duration::from_millis(1500), what: What::TunnelDown, mediator: None, text };
        let block = line(7, &event);
        assert_eq!(block.lines().count(), 3, "{block}");
        assert!(block.starts_with("id: 7\ndata: {") && block.ends_with("}\n\n"), "{block}");
        let value: serde_json::Value =
            serde_json::from_str(block.lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(
            (&value["what"], &value["at_ms"], &value["text"]),
            (&json!("tunnel-down"), &json!(1500), &json!(event.text))
        );
    }
}
