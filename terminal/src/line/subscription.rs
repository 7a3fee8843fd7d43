//! A port that is opened again on each new connection: what listeners and UDP sockets hold.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use isthmus_proto::Code;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Line, keeper};
use crate::Error;
use crate::handle::{Handle, Held, gone};
use crate::port::{OpenOptions, open_on};

/// Waits between tries to open a port again that is refused for now.
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(5);

/// How long it is tried. A relay that was not told of a connection's end holds the old port until it
/// notices, which takes its dead time: 30 s by default.
const RETRY_FOR: Duration = Duration::from_secs(90);

/// See the module's text.
pub(crate) struct Subscription {
    /// How it is opened again; `None` for a port that ends with its connection.
    home: Option<Home>,
    place: watch::Sender<Place>,
}

struct Home {
    line: Line,
    key: usize,
    options: Mutex<OpenOptions>,
    /// The last connection that it was, or is being, opened on.
    generation: AtomicU64,
}

/// Where it is now. A port whose connection has ended waits for the next one.
struct Place {
    port: Result<Arc<Held>, Error>,
    /// Its address on the mediator, the last one that was known.
    local: SocketAddr,
}

impl Subscription {
    pub(super) fn new(line: Line, key: usize, options: OpenOptions, held: Held, generation: u64) -> Self {
        let home = Home { line, key, options: Mutex::new(options), generation: AtomicU64::new(generation) };
        Self { home: Some(home), place: watch::Sender::new(Place::at(held)) }
    }

    /// For a port of one connection only.
    pub(crate) fn fixed(held: Held) -> Arc<Self> {
        Arc::new(Self { home: None, place: watch::Sender::new(Place::at(held)) })
    }

    /// The port; waits as long as there is none.
    ///
    /// # Errors
    /// There will be none: the line is over, or the mediator refused to open it again.
    pub(crate) async fn port(&self) -> Result<Arc<Held>, Error> {
        let mut place = self.place.subscribe();
        loop {
            if let Some(found) = self.usable(&place.borrow_and_update()) {
                return found;
            }
            // The sender is ours.
            let _ = place.changed().await;
        }
    }

    /// The same, for no longer than the configuration lets a request wait.
    ///
    /// # Errors
    /// [`Error::NotConnected`] as well.
    pub(crate) async fn port_soon(&self) -> Result<Arc<Held>, Error> {
        if let Some(found) = self.usable(&self.place.borrow()) {
            return found;
        }
        let waited = self.home.as_ref().map_or(Duration::ZERO, |home| home.line.0.config.link_timeout);
        tokio::time::timeout(waited, self.port()).await.unwrap_or_else(|_| {
            let cause = self.home.as_ref().map_or(Error::Closed, |home| home.line.0.status.borrow().why_down());
            Err(Error::NotConnected { waited, cause: Box::new(cause) })
        })
    }

    /// Whether this port's end is not the socket's, since it is opened again.
    pub(crate) fn survives(&self, held: &Held) -> bool {
        self.home.is_some() && held.shared().is_ended()
    }

    /// Works on the port as it is, if it ever was.
    pub(crate) fn now(&self) -> Option<Arc<Held>> {
        self.place.borrow().port.as_ref().ok().cloned()
    }

    /// Its address on the mediator.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.place.borrow().local
    }

    /// Until its address is another one.
    pub(crate) async fn moved_from(&self, known: SocketAddr) -> SocketAddr {
        let mut place = self.place.subscribe();
        loop {
            let local = place.borrow_and_update().local;
            if local != known {
                return local;
            }
            let _ = place.changed().await;
        }
    }

    /// From now on it is opened again in this mode.
    pub(crate) fn remember_redirect(&self, redirect: bool, fallback: bool) {
        if let Some(home) = &self.home {
            let mut options = home.options.lock().unwrap_or_else(PoisonError::into_inner);
            *options = options.switched(redirect, fallback);
        }
    }

    fn usable(&self, place: &Place) -> Option<Result<Arc<Held>, Error>> {
        match &place.port {
            Ok(held) if !held.shared().is_ended() => Some(Ok(held.clone())),
            Ok(held) if self.home.is_none() => Some(Err(gone(held.shared()))),
            Ok(_) => None,
            Err(error) => Some(Err(error.clone())),
        }
    }

    /// What is asked next time: the number that was assigned, so that whoever knows it finds the port again.
    fn options_again(&self) -> Option<OpenOptions> {
        let options = *self.home.as_ref()?.options.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match self.local_addr().port() {
            0 => options,
            number => options.numbered(number),
        })
    }

    pub(super) fn fail(&self, error: Error) {
        self.place.send_modify(|place| place.port = Err(error));
    }

    /// Opens it on a new connection, once.
    pub(super) fn renew(self: Arc<Self>, generation: u64) {
        let Some(home) = &self.home else { return };
        if home.generation.fetch_max(generation, Ordering::AcqRel) < generation {
            tokio::spawn(reopen(Arc::downgrade(&self), generation));
        }
    }

    /// A share of that connection while it is the line's and the port is wanted.
    fn task(&self, generation: u64) -> Option<(Handle, OpenOptions)> {
        let handle = self.home.as_ref()?.line.link_of(generation)?;
        Some((handle, self.options_again()?))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.line.unsubscribe(home.key);
        }
    }
}

impl Place {
    fn at(held: Held) -> Self {
        let local = crate::port::local_addr(&held);
        Self { port: Ok(Arc::new(held)), local }
    }
}

/// Opens a port again. Holds neither the port nor the connection between tries, so that both can go.
async fn reopen(subscription: Weak<Subscription>, generation: u64) {
    let mut waits = keeper::dialer(RETRY_BASE, RETRY_CAP);
    let deadline = Instant::now() + RETRY_FOR;
    loop {
        let Some((handle, options)) = subscription.upgrade().and_then(|found| found.task(generation)) else { return };
        let opened = again(&handle, &options).await;
        let Some(found) = subscription.upgrade() else { return };
        match opened {
            Ok(held) => {
                let place = Place::at(held);
                tracing::info!(local = %place.local, "a port was opened again");
                found.place.send_replace(place);
                return;
            }
            // The next connection's turn.
            Err(_) if handle.is_ended() => return,
            Err(error) if may_pass(&error) && Instant::now() < deadline => {
                tracing::debug!(%error, "a port cannot be opened again yet");
            }
            Err(error) => {
                tracing::warn!(local = %found.local_addr(), %error, "a port cannot be opened again");
                found.fail(error);
                return;
            }
        }
        drop((handle, found));
        tokio::time::sleep(waits.next_delay()).await;
    }
}

async fn again(handle: &Handle, options: &OpenOptions) -> Result<Held, Error> {
    let port = open_on(handle, options).await?;
    if !options.is_udp() {
        port.make_server().await?;
    }
    Ok(port.into_held())
}

/// What a later try may find otherwise.
fn may_pass(error: &Error) -> bool {
    let Error::Refused(code) = error else { return false };
    matches!(code, Code::AddressInUse | Code::NoResources | Code::TooManyPorts | Code::NoUdpChannel)
        || matches!(code, Code::AddressNotLocal | Code::MediatorAway | Code::Overloaded | Code::Failed)
}
