//! The web page and what it asks for: an overview with its history, mediators, one mediator, shards, events as they come.
//!
//! The page is embedded and asks nobody else; everything that it shows comes from here, a page at a time.

mod answers;
mod assets;
mod events;
mod history;

use std::rc::Rc;

use hyper::StatusCode;

use super::answer;
use super::serve::Plane;
use crate::http::{Access, Asked, Reply, Router, json, text};
use history::{History, Span};

/// Adds the page and its questions.
pub(super) fn pages(router: Router, plane: &Rc<Plane>) -> Router {
    let history = Rc::new(History::default());
    // It ends with the management plane's runtime.
    tokio::task::spawn_local(look(plane.clone(), history.clone()));
    let router = assets::pages(router);
    let (overview, tunnels, tunnel, shards, events) =
        (plane.clone(), plane.clone(), plane.clone(), plane.clone(), plane.clone());
    let past = history.clone();
    router
        .page("/api/v1/overview", Access::Token, move |_| {
            let reply = answered(answers::overview(&overview));
            async move { reply }
        })
        .page("/api/v1/history", Access::Token, move |asked| {
            let reply = span(&asked).map(|span| answer::json(&past.columns(span)));
            async move { reply.map_or_else(bad, answered) }
        })
        .page("/api/v1/tunnels", Access::Token, move |asked| {
            let plane = tunnels.clone();
            async move {
                match answers::filter(&asked) {
                    Ok(filter) => answered(answers::tunnels(&plane, filter).await),
                    Err(error) => bad(error),
                }
            }
        })
        .page("/api/v1/tunnels/*", Access::Token, move |asked| {
            let plane = tunnel.clone();
            async move {
                let Ok(id) = asked.rest.parse() else { return bad("that is no mediator's name".into()) };
                match answers::tunnel(&plane, id).await {
                    Ok(None) => text(StatusCode::NOT_FOUND, "this mediator is not connected\n"),
                    Ok(Some(answer)) => json(StatusCode::OK, answer),
                    Err(error) => answered(Err(error)),
                }
            }
        })
        .page("/api/v1/shards", Access::Token, move |_| {
            let reply = answered(answers::shards(&shards));
            async move { reply }
        })
        .page("/api/v1/events", Access::Token, move |asked| {
            let reply = events::stream(&events, &asked).unwrap_or_else(bad);
            async move { reply }
        })
}

fn span(asked: &Asked) -> Result<Span, String> {
    match asked.query("span") {
        None | Some("minutes") => Ok(Span::Minutes),
        Some("day") => Ok(Span::Day),
        Some(_) => Err("span is minutes or day".into()),
    }
}

/// Looks at the shards once a second.
async fn look(plane: Rc<Plane>, history: Rc<History>) {
    let mut ticks = tokio::time::interval(history::STEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let shards: Vec<_> = plane.shards.iter().map(|shard| &*shard.counters).collect();
        history.look(&shards, history::cpu_of_shards(shards.len()));
    }
}

fn answered(answer: Result<String, String>) -> Reply {
    match answer {
        Ok(answer) => json(StatusCode::OK, answer),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn bad(why: String) -> Reply {
    text(StatusCode::BAD_REQUEST, format!("{why}\n"))
}
