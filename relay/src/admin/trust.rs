//! Whom to trust, changed while the relay runs: `reload trust`, `revoke`, `show trust`.
//!
//! Files are read on this thread, which nobody's traffic waits for. All shards get the same new [`Trust`], or, where
//! anything of it cannot be read, none does.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::oneshot;

use super::answer::json;
use super::command::Command;
use super::dispatch::Format;
use super::serve::Plane;
use super::show::answer_of;
use crate::trust::{Entry, State, Target, Trust, TrustSource, unix_now};

/// Reads keys, issuer, authorities and revocations again, and gives them to every shard.
pub(super) async fn reload(plane: &Plane) -> Result<String, String> {
    let source = source(plane)?;
    let trust = source.load().map_err(|error| format!("nothing is changed: {error:#}"))?;
    give(plane, source, trust).await
}

/// Adds to the revocation list, and ends what it covers.
pub(super) async fn revoke(plane: &Plane, target: Target, until: Option<u64>) -> Result<String, String> {
    let source = source(plane)?;
    let entry = Entry { target: target.clone(), at: unix_now(), until };
    State::revoke(source.state(), entry).map_err(|error| format!("{error:#}"))?;
    tracing::info!(%target, "revoked by the operator");
    Ok(format!("{target} revoked\n{}", reload(plane).await?))
}

/// What is trusted, in numbers, and the revocations.
pub(super) fn show(plane: &Plane, format: Format) -> Result<String, String> {
    let trust = source(plane)?.current();
    let [keys, issuers, authorities, revoked] = trust.sizes();
    match format {
        Format::Json => json(&json!({
            "token_keys": trust.kids(), "issuer_keys": issuers, "client_authorities": authorities,
            "revoked": trust.revoked().entries(),
        })),
        Format::Text => Ok(format!(
            "token_keys {keys}: {}\nissuer_keys {issuers}\nclient_authorities {authorities}\nrevoked {revoked}\n",
            trust.kids().join(" ")
        )),
    }
}

/// Makes this what every shard goes by.
pub(super) async fn give(plane: &Plane, source: &TrustSource, trust: Arc<Trust>) -> Result<String, String> {
    let deadline = plane.reply_deadline();
    // From here on it is what holds: a shard that is too busy now gets it by the next reload.
    source.set(trust.clone());
    let mut answers = Vec::with_capacity(plane.shards.len());
    for shard in 0..plane.shards.len() {
        let (reply, answer) = oneshot::channel();
        let sent = plane.send(shard, Command::Trust { trust: trust.clone(), reply });
        answers.push((shard, sent.map(|()| answer)));
    }
    let (mut ended, mut failed) = (0, Vec::new());
    for (shard, answer) in answers {
        match answer {
            Ok(answer) => match answer_of(plane, shard, answer, deadline).await {
                Ok(count) => ended += count,
                Err(error) => failed.push(error),
            },
            Err(error) => failed.push(error),
        }
    }
    let [keys, issuers, authorities, revoked] = trust.sizes();
    tracing::info!(keys, issuers, authorities, revoked, ended, "trust reloaded");
    match failed.first() {
        None => Ok(format!("trust reloaded, {ended} sessions ended\n")),
        Some(error) => Err(format!("{error}; not every shard has the new trust: reload trust again")),
    }
}

fn source(plane: &Plane) -> Result<&TrustSource, String> {
    plane.trust.as_ref().ok_or_else(|| "this relay has no keys to read again".to_owned())
}
