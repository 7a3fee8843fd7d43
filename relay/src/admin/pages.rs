//! What is served over HTTP.

use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::{Mutex, oneshot};

use super::command::Command;
use super::metrics;
use super::serve::Plane;
use super::show::answer_of;
use super::web;
use crate::http::{Access, Reply, Router, text};

/// An answer to `/readyz` is good for this long: whoever asks faster wakes no shard by it.
const READY_FRESH: Duration = Duration::from_secs(1);

/// All pages.
pub(super) fn router(plane: &Rc<Plane>) -> Router {
    let ready = Rc::new(Readiness::default());
    let (at, metered) = (plane.clone(), plane.clone());
    web::pages(Router::default(), plane)
        // That it answers is the answer.
        .page("/healthz", Access::Open, |_| async { text(StatusCode::OK, "ok\n") })
        .page("/readyz", Access::Open, move |_| {
            let (plane, ready) = (at.clone(), ready.clone());
            async move { ready.answer(&plane).await }
        })
        .page("/metrics", Access::Token, move |_| {
            let mut reply = text(StatusCode::OK, metrics::render(&metered));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            async { reply }
        })
}

/// Whether every shard answers, asked by one at a time.
#[derive(Default)]
struct Readiness(Mutex<Option<(Instant, Result<(), String>)>>);

impl Readiness {
    async fn answer(&self, plane: &Plane) -> Reply {
        let mut last = self.0.lock().await;
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < READY_FRESH).map(|(_, result)| result.clone());
        let result = match fresh {
            Some(result) => result,
            None => {
                let result = ask_shards(plane).await;
                *last = Some((Instant::now(), result.clone()));
                result
            }
        };
        match result {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }
}

/// Has each shard look at its queue; what it answers does not matter.
async fn ask_shards(plane: &Plane) -> Result<(), String> {
    let deadline = plane.reply_deadline();
    let mut answers = Vec::with_capacity(plane.shards.len());
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        plane.send(shard, Command::Names { reply })?;
        answers.push(answer);
    }
    for (shard, answer) in answers.into_iter().enumerate() {
        answer_of(plane, shard, answer, deadline).await?;
    }
    Ok(())
}
