//! Keeps a mediator attached: comes back when the connection to the relay is lost.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use isthmus_proto::dialer::Dialer;
use isthmus_terminal::{Config, Error, Mediator, MediatorId};
use tokio::sync::watch;

/// Bounds of the waits between tries.
const BASE: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(30);

/// The mediator while it is attached; `None` in between.
pub(crate) type Attached = watch::Receiver<Option<Mediator>>;

/// See the module's text.
pub(crate) struct Keeper {
    config: Config,
    id: MediatorId,
    first: Mediator,
    tell: watch::Sender<Option<Mediator>>,
}

impl Keeper {
    /// Attaches. The first try is not repeated: a wrong setting should show at once.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn attach(config: Config, id: MediatorId) -> Result<(Self, Attached), Error> {
        let first = Mediator::attach(&config, id.clone()).await?;
        let (tell, attached) = watch::channel(Some(first.clone()));
        Ok((Self { config, id, first, tell }, attached))
    }

    /// Runs until an error that waiting does not cure.
    pub(crate) async fn run(self) -> Error {
        let Self { config, id, first, tell } = self;
        // Random enough to spread terminals that lost the same relay at the same moment.
        let mut dialer = Dialer::new(BASE, CAP, RandomState::new().build_hasher().finish());
        let mut error = first.closed().await;
        drop(first);
        loop {
            tell.send_replace(None);
            if !error.is_transient() {
                return error;
            }
            if !error.retry_after().is_zero() {
                dialer.told_to_wait(error.retry_after());
            }
            let wait = dialer.next_delay();
            tracing::warn!(%error, ?wait, "not connected to the relay; trying again");
            tokio::time::sleep(wait).await;
            error = match Mediator::attach(&config, id.clone()).await {
                Ok(mediator) => {
                    tracing::info!(mediator = %id, "connected to the relay again");
                    dialer.succeeded();
                    tell.send_replace(Some(mediator.clone()));
                    mediator.closed().await
                }
                Err(error) => error,
            };
        }
    }
}
