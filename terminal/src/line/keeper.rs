//! The task that brings a lost connection back.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

use isthmus_proto::MediatorId;
use isthmus_proto::dialer::Dialer;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Inner, Line, Link, Status};
use crate::handle::Handle;
use crate::shared::Shared;
use crate::{Backoff, Config, Error};

/// A connection that lasted this long was a good one: the next wait is a short one again. One that the relay
/// ends as soon as it stands must not be dialled in a tight circle.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Runs until the line is gone, or over.
pub(super) async fn run(line: Weak<Inner>, first: Arc<Shared>, mut gone: oneshot::Receiver<()>) {
    let end = EndOnDrop(line.clone());
    tokio::select! {
        error = keep(&line, first) => end.with(error),
        // Never sent to: an error tells that the line was dropped.
        _ = &mut gone => {}
    }
}

/// Gives the error that waiting does not cure.
async fn keep(line: &Weak<Inner>, mut link: Arc<Shared>) -> Error {
    let Some((config, mediator)) = line.upgrade().map(|inner| (inner.config.clone(), inner.mediator.clone())) else {
        return Error::Closed;
    };
    let Backoff { base, cap } = config.reconnect.unwrap_or_default();
    let mut dialer = dialer(base, cap);
    loop {
        let since = Instant::now();
        let error = link.ended().await;
        if config.reconnect.is_none() || !error.is_transient() {
            return error;
        }
        if since.elapsed() >= GOOD_AFTER {
            dialer.succeeded();
        }
        let handle = match come_back(line, &config, &mediator, &mut dialer, error, link.generation + 1).await {
            Ok(handle) => handle,
            Err(error) => return error,
        };
        link = handle.watch();
        let Some(inner) = line.upgrade() else { return Error::Closed };
        inner.status.send_replace(Status { link: Link::Up(handle), last: link.clone() });
        Line(inner).renew();
    }
}

/// Dials until it works.
///
/// # Errors
/// What waiting does not cure.
async fn come_back(
    line: &Weak<Inner>,
    config: &Config,
    mediator: &Option<MediatorId>,
    dialer: &mut Dialer,
    mut error: Error,
    generation: u64,
) -> Result<Handle, Error> {
    let name = mediator.as_ref().map_or("none", MediatorId::as_str);
    loop {
        if !error.is_transient() {
            return Err(error);
        }
        if !error.retry_after().is_zero() {
            dialer.told_to_wait(error.retry_after());
        }
        let wait = dialer.next_delay();
        tracing::warn!(mediator = name, %error, ?wait, "not connected to the relay; trying again");
        set(line, Link::Down(error));
        tokio::time::sleep(wait).await;
        match super::connect(config, mediator.clone(), generation).await {
            Ok(handle) => {
                tracing::info!(mediator = name, "connected to the relay again");
                return Ok(handle);
            }
            Err(failed) => error = failed,
        }
    }
}

/// Waits with full jitter; each line has a seed of its own.
pub(super) fn dialer(base: Duration, cap: Duration) -> Dialer {
    Dialer::new(base, cap, RandomState::new().build_hasher().finish())
}

fn set(line: &Weak<Inner>, link: Link) {
    if let Some(inner) = line.upgrade() {
        inner.status.send_modify(|status| status.link = link);
    }
}

/// Tells whoever waits that nobody keeps the line any more, even when the runtime drops the keeper.
struct EndOnDrop(Weak<Inner>);

impl EndOnDrop {
    fn with(&self, error: Error) {
        let Some(inner) = self.0.upgrade() else { return };
        tracing::debug!(%error, "not connected to the relay; not trying again");
        inner.status.send_modify(|status| {
            if !matches!(status.link, Link::Over(_)) {
                status.link = Link::Over(error);
            }
        });
        Line(inner).renew();
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.with(Error::Closed);
    }
}
