//! A line to a relay: one connection after the other, so that handles outlive each of them.
//!
//! A line has a keeper task (see `keeper`), which dials again when the present connection is lost, and a
//! table of subscriptions: the ports that the keeper opens again then. Streams are not on the line but
//! on their connection, and end with it.

mod keeper;
mod subscription;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use isthmus_proto::MediatorId;
use slab::Slab;
use tokio::sync::{oneshot, watch};

use crate::handle::{Handle, Held};
use crate::port::OpenOptions;
use crate::shared::Shared;
use crate::{Config, Error, dial, driver};
pub(crate) use subscription::Subscription;

/// A share of a line. When the last one is dropped, the keeper stops, and the connection ends unless streams
/// are still on it.
#[derive(Clone)]
pub(crate) struct Line(Arc<Inner>);

struct Inner {
    config: Config,
    mediator: Option<MediatorId>,
    status: watch::Sender<Status>,
    subscriptions: Mutex<Slab<Weak<Subscription>>>,
    /// Its drop tells the keeper that the line is gone.
    _alive: oneshot::Sender<()>,
}

/// What a line is now.
struct Status {
    link: Link,
    /// The present connection, or the last one.
    last: Arc<Shared>,
}

enum Link {
    Up(Handle),
    /// Lost for this reason, or a try to come back failed for it.
    Down(Error),
    /// Lost for good.
    Over(Error),
}

impl Line {
    /// The first connection. It is tried once, so that a wrong setting shows at once.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn start(config: &Config, mediator: Option<MediatorId>) -> Result<Self, Error> {
        let handle = connect(config, mediator.clone(), 0).await?;
        let (alive, gone) = oneshot::channel();
        let last = handle.watch();
        let line = Self(Arc::new(Inner {
            config: config.clone(),
            mediator,
            status: watch::Sender::new(Status { link: Link::Up(handle), last: last.clone() }),
            subscriptions: Mutex::default(),
            _alive: alive,
        }));
        tokio::spawn(keeper::run(Arc::downgrade(&line.0), last, gone));
        Ok(line)
    }

    /// A share of the present connection; waits for it if it was lost, as long as the configuration allows.
    ///
    /// # Errors
    /// [`Error::NotConnected`], or why the line is over.
    pub(crate) async fn link(&self) -> Result<Handle, Error> {
        // Most requests find a connection and need no timer.
        if let Some(found) = self.0.status.borrow().usable() {
            return found;
        }
        let waited = self.0.config.link_timeout;
        tokio::time::timeout(waited, self.until(Status::usable)).await.unwrap_or_else(|_| {
            let cause = Box::new(self.0.status.borrow().why_down());
            Err(Error::NotConnected { waited, cause })
        })
    }

    /// The same without a bound.
    pub(crate) async fn connected(&self) -> Result<(), Error> {
        self.until(|status| status.usable().map(|found| found.map(drop))).await
    }

    /// Until the present connection is lost; at once if none stands. Gives why.
    pub(crate) async fn disconnected(&self) -> Error {
        let last = self.last();
        last.ended().await
    }

    /// Until the line is over; gives why.
    pub(crate) async fn over(&self) -> Error {
        self.until(|status| if let Link::Over(error) = &status.link { Some(error.clone()) } else { None }).await
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.0.status.borrow().link, Link::Over(_))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.status.borrow().usable().is_some_and(|found| found.is_ok())
    }

    /// The present connection, or the last one.
    pub(crate) fn last(&self) -> Arc<Shared> {
        self.0.status.borrow().last.clone()
    }

    /// Gives this share back and waits for the connection's end.
    pub(crate) async fn close(self) {
        let last = self.last();
        drop(self);
        last.finished().await;
    }

    /// Keeps a port that was opened with these options: it is opened again on every later connection.
    pub(crate) fn subscribe(&self, options: OpenOptions, held: Held) -> Arc<Subscription> {
        let generation = held.shared().generation;
        let mut all = self.0.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let place = all.vacant_entry();
        let subscription = Arc::new(Subscription::new(self.clone(), place.key(), options, held, generation));
        place.insert(Arc::downgrade(&subscription));
        drop(all);
        // The line may have changed its connection, or ended, since the port was opened.
        if generation != self.last().generation || self.is_over() {
            self.renew();
        }
        subscription
    }

    fn unsubscribe(&self, key: usize) {
        self.0.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).try_remove(key);
    }

    /// Lets all subscriptions follow to the present connection; or tells them that there will be none.
    fn renew(&self) {
        let found: Vec<Arc<Subscription>> = {
            let all = self.0.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(|(_, weak)| weak.upgrade()).collect()
        };
        let over = match &self.0.status.borrow().link {
            Link::Over(error) => Some(error.clone()),
            Link::Up(_) | Link::Down(_) => None,
        };
        let generation = self.last().generation;
        for subscription in found {
            match &over {
                Some(error) => subscription.fail(error.clone()),
                None => subscription.renew(generation),
            }
        }
    }

    /// A share of the present connection if it still is that one.
    fn link_of(&self, generation: u64) -> Option<Handle> {
        match &self.0.status.borrow().link {
            Link::Up(handle) if handle.shared().generation == generation => Some(handle.clone()),
            _ => None,
        }
    }

    async fn until<T>(&self, mut look: impl FnMut(&Status) -> Option<T>) -> T {
        let mut status = self.0.status.subscribe();
        loop {
            if let Some(found) = look(&status.borrow_and_update()) {
                return found;
            }
            // The line has the sender, so it lives as long as we do.
            let _ = status.changed().await;
        }
    }
}

impl Status {
    fn usable(&self) -> Option<Result<Handle, Error>> {
        match &self.link {
            // The keeper may not have noticed yet that it ended.
            Link::Up(handle) => (!handle.is_ended()).then(|| Ok(handle.clone())),
            Link::Down(_) => None,
            Link::Over(error) => Some(Err(error.clone())),
        }
    }

    fn why_down(&self) -> Error {
        match &self.link {
            Link::Up(handle) => handle.shared().with(|state| state.ended.clone()).unwrap_or(Error::Closed),
            Link::Down(error) | Link::Over(error) => error.clone(),
        }
    }
}

async fn connect(config: &Config, mediator: Option<MediatorId>, generation: u64) -> Result<Handle, Error> {
    let dialled = dial::dial(config, mediator).await?;
    driver::start(config, dialled, generation).await
}
