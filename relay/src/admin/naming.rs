//! Named routes at run time: `show names`, `name`, `unname`. They last until the relay ends or reloads.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::oneshot;

use super::answer::json;
use super::asking;
use super::command::Command;
use super::dispatch::Format;
use super::serve::Plane;
use super::show::answer_of;
use crate::names::{NameRoute, Names, Pattern};

/// Most lines of one answer.
const SHOWN_MAX: usize = 10_000;

/// `show names`.
pub(super) async fn show(plane: &Plane, format: Format) -> Result<String, String> {
    let names = table(plane).await?;
    match format {
        Format::Json => json(&json!({ "names": names.routes(), "asked": names.asked() })),
        Format::Text => {
            let mut text: String = names.routes().iter().take(SHOWN_MAX).map(|route| format!("{route}\n")).collect();
            if names.routes().len() > SHOWN_MAX {
                text.push_str(&format!(
                    "# … and {} more; 'show names json' has all\n",
                    names.routes().len() - SHOWN_MAX
                ));
            }
            for route in names.asked().iter().take(SHOWN_MAX) {
                text.push_str(&format!("{route} # asked\n"));
            }
            Ok(text)
        }
    }
}

/// `name ROUTE`: a new route, or another one for the same names.
pub(super) async fn add(plane: &Plane, route: NameRoute) -> Result<String, String> {
    // One change at a time.
    let _change = plane.kept.lock().await;
    if plane.config.borrow().names.is_empty() {
        return Err("no port leads by name; start the relay with --names ADDR:PORT".into());
    }
    let (mut routes, place) = find(plane, &route.pattern).await?;
    let word = match place {
        Some(place) => {
            routes[place] = route.clone();
            "replaced by"
        }
        None => {
            routes.push(route.clone());
            "added"
        }
    };
    set(plane, routes).await?;
    // An operator's route goes before one that a mediator asked for: that one is told.
    let names = table(plane).await?;
    let holders = asking::holders(plane, &names);
    asking::resettle(plane, holders).await;
    tracing::info!(%route, "named route {word}");
    Ok(format!("{word} {route}\n"))
}

/// `unname PATTERN`. Visitors who are in stay.
pub(super) async fn remove(plane: &Plane, pattern: &Pattern) -> Result<String, String> {
    let _change = plane.kept.lock().await;
    let (mut routes, place) = find(plane, pattern).await?;
    let place = place.ok_or_else(|| format!("no route is for {pattern}; 'show names' lists them"))?;
    let route = routes.remove(place);
    set(plane, routes).await?;
    tracing::info!(%route, "named route removed");
    Ok(format!("removed {route}\n"))
}

/// Has all shards lead by this table, from their next turns on.
///
/// # Errors
/// A shard does not take it: the others may have it.
pub(super) async fn set(plane: &Plane, routes: Vec<NameRoute>) -> Result<(), String> {
    let names = Arc::new(Names::new(routes)?.with_asked(asking::routes(plane)));
    let mut result = Ok(());
    for shard in 0..plane.shards.len() {
        result = result.and(plane.send(shard, Command::SetNames(names.clone())));
    }
    result
}

async fn find(plane: &Plane, pattern: &Pattern) -> Result<(Vec<NameRoute>, Option<usize>), String> {
    let routes = table(plane).await?.routes().to_vec();
    let place = routes.iter().position(|route| route.pattern == *pattern);
    Ok((routes, place))
}

/// The table; all shards have the same.
pub(super) async fn table(plane: &Plane) -> Result<Arc<Names>, String> {
    let (reply, answer) = oneshot::channel();
    plane.send(0, Command::Names { reply })?;
    answer_of(plane, 0, answer, plane.reply_deadline()).await
}
