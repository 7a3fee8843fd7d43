//! A server port of the mediator.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_proto::Code;

use crate::Error;
use crate::handle::{Held, gone};
use crate::line::Subscription;
use crate::state::Body;
use crate::tcp::TcpStream;

/// Takes connections of hosts in the private network. Dropping it closes the port; connections that
/// nobody took are reset.
///
/// A listener of [`crate::Mediator::listen`] outlives a lost connection to the relay: as soon as that is
/// back, the same port number is asked for again. [`Importance::Obligatory`](crate::Importance::Obligatory)
/// waits up to 90 s for a number that is still taken (by the lost connection, most likely);
/// [`Importance::Desired`](crate::Importance::Desired) takes the next free one then, which
/// [`TcpListener::local_addr`] tells. Connections that nobody had taken are lost with their connection.
///
/// ```no_run
/// use isthmus_terminal::{Importance, Mediator};
///
/// async fn serve(mediator: &Mediator) -> Result<(), Box<dyn std::error::Error>> {
///     let listener = mediator.listen("0.0.0.0:8080".parse()?, Importance::Obligatory).await?;
///     loop {
///         let (mut stream, host) = listener.accept().await?;
///         tokio::spawn(async move {
///             let (mut read, mut write) = stream.split();
///             if let Err(error) = tokio::io::copy(&mut read, &mut write).await {
///                 tracing::info!(%host, %error, "cut");
///             }
///         });
///     }
/// }
/// ```
pub struct TcpListener {
    subscription: Arc<Subscription>,
}

impl TcpListener {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        Self { subscription }
    }

    /// The next connection, and the host's address. While the connection to the relay is lost it just
    /// waits on.
    ///
    /// # Cancel safety
    /// A dropped future loses no connection: the next call takes it. Several may wait at once; each
    /// connection goes to one of them.
    ///
    /// # Errors
    /// [`Error::Refused`]: the port was closed ([`Code::UnknownPort`]), or the mediator did not open it
    /// again, which is tried anew after the next loss only. Else why the connection to the relay is over
    /// for good; it will give no other answer.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr), Error> {
        loop {
            let held = self.subscription.port().await?;
            match accept_on(&held).await {
                Err(_) if self.subscription.survives(&held) => {}
                result => return result,
            }
        }
    }

    /// Its address and assigned number on the mediator; the last ones while the connection is lost.
    pub fn local_addr(&self) -> SocketAddr {
        self.subscription.local_addr()
    }

    /// Waits until [`TcpListener::local_addr`] is another one than `known`, and gives it: a listener that
    /// wanted any number moved after a lost connection.
    ///
    /// # Cancel safety
    /// Nothing is lost: it compares addresses.
    pub async fn moved_from(&self, known: SocketAddr) -> SocketAddr {
        self.subscription.moved_from(known).await
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

async fn accept_on(held: &Held) -> Result<(TcpStream, SocketAddr), Error> {
    let Some(arrived) = held.with(|state, key| match state.entries.get(key).map(|entry| &entry.body) {
        Some(Body::Server(server)) => Some(server.arrived.clone()),
        _ => None,
    }) else {
        return Err(gone(held.shared()));
    };
    let mut notified = std::pin::pin!(arrived.notified());
    loop {
        notified.as_mut().enable();
        if let Some(taken) = take(held)? {
            return Ok(taken);
        }
        notified.as_mut().await;
        notified.set(arrived.notified());
    }
}

fn take(held: &Held) -> Result<Option<(TcpStream, SocketAddr)>, Error> {
    let taken = held.with(|state, key| {
        // What waits on a lost connection is lost with it.
        state.check()?;
        let Some(entry) = state.entries.get_mut(key) else { return Err(Error::Refused(Code::UnknownPort)) };
        let live = entry.live;
        let Body::Server(server) = &mut entry.body else { return Err(Error::Refused(Code::UnknownPort)) };
        let taken = server.waiting.pop_front();
        // Several may wait, and a notification is remembered once only.
        if !server.waiting.is_empty() {
            server.arrived.notify_one();
        }
        match taken {
            Some(taken) => Ok(Some(taken)),
            None if live => Ok(None),
            None => Err(Error::Refused(Code::UnknownPort)),
        }
    })?;
    Ok(taken.map(|key| {
        let stream = TcpStream::new(Held::new(held.handle().clone(), key));
        let peer = stream.peer_addr();
        (stream, peer)
    }))
}
