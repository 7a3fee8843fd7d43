//! The state behind its lock, and the ways to wake who waits for it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use isthmus_proto::Instant;
use isthmus_proto::hello::Welcome;
use tokio::sync::Notify;

use crate::Error;
use crate::channel::Channels;
use crate::state::State;

/// One connection to a relay: what its driver and all its handles and sockets share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver.
    wake: Notify,
    /// Told when the connection ended, and when its driver did.
    ended: Notify,
    origin: tokio::time::Instant,
    pub(crate) channels: Channels,
    pub(crate) connect_timeout: Duration,
    /// How many connections of the same line came before.
    pub(crate) generation: u64,
    /// The relay's session number.
    pub(crate) session: u64,
    /// Our address as the relay sees it.
    pub(crate) observed: SocketAddr,
    /// The relay's version.
    pub(crate) relay_version: String,
}

impl Shared {
    pub(crate) fn new(
        state: State,
        origin: tokio::time::Instant,
        channels: Channels,
        connect_timeout: Duration,
        generation: u64,
        welcome: &Welcome,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            ended: Notify::new(),
            origin,
            channels,
            connect_timeout,
            generation,
            session: welcome.session,
            observed: welcome.observed,
            relay_version: welcome.version.clone(),
        }
    }

    /// The machines' time.
    pub(crate) fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The timers' time.
    pub(crate) fn time_of(&self, instant: Instant) -> tokio::time::Instant {
        self.origin + instant.since(Instant::ZERO)
    }

    /// Works on the state; wakes the driver if there is something to send for it, and whoever the work
    /// made ready, after the lock is given back.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        // A panic elsewhere while the lock was held leaves a state that may be wrong for one port but not
        // dangerous; to pass it on would hide the first one.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        let wake_driver = !state.driver_awake && state.link.wants_to_send();
        state.driver_awake |= wake_driver;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        if wake_driver {
            self.wake.notify_one();
        }
        for waker in wakers {
            waker.wake();
        }
        result
    }

    /// Until [`Shared::with`] or [`Shared::abandon`] needs the driver.
    pub(crate) async fn driver_wanted(&self) {
        self.wake.notified().await;
    }

    /// The last handle is gone.
    pub(crate) fn abandon(&self) {
        self.with(|state| state.abandoned = true);
        self.wake.notify_one();
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.with(|state| state.ended.is_some())
    }

    /// The connection is gone.
    pub(crate) fn end(&self, error: Error) {
        self.with(|state| state.end(error));
        self.channels.changed.notify_waiters();
        self.ended.notify_waiters();
    }

    /// The driver has done its last.
    pub(crate) fn finish(&self) {
        self.with(|state| state.finished = true);
        self.ended.notify_waiters();
    }

    /// Until the connection is gone; gives why.
    pub(crate) async fn ended(&self) -> Error {
        self.until(|state| state.ended.clone()).await
    }

    /// Until the driver has done its last.
    pub(crate) async fn finished(&self) {
        self.until(|state| state.finished.then_some(())).await;
    }

    async fn until<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut notified = std::pin::pin!(self.ended.notified());
        loop {
            // Enabled before the look, so that an end in between is not missed.
            notified.as_mut().enable();
            if let Some(found) = self.with(|state| look(state)) {
                return found;
            }
            notified.as_mut().await;
            notified.set(self.ended.notified());
        }
    }
}
