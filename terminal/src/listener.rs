//! A server port of the mediator.

use std::net::SocketAddr;

use isthmus_proto::Code;

use crate::Error;
use crate::handle::{Held, gone};
use crate::port::local_addr;
use crate::state::Body;
use crate::tcp::TcpStream;

/// Takes connections of hosts in the private network. Dropping it closes the port; connections that
/// nobody took are reset.
pub struct TcpListener {
    held: Held,
}

impl TcpListener {
    pub(crate) fn new(held: Held) -> Self {
        Self { held }
    }

    /// The next connection, and the host's address.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::UnknownPort`] when the port was closed; or the connection's end.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr), Error> {
        let Some(arrived) = self.held.with(|state, key| match state.entries.get(key).map(|entry| &entry.body) {
            Some(Body::Server(server)) => Some(server.arrived.clone()),
            _ => None,
        }) else {
            return Err(gone(self.held.shared()));
        };
        let mut notified = std::pin::pin!(arrived.notified());
        loop {
            notified.as_mut().enable();
            if let Some(taken) = self.take()? {
                return Ok(taken);
            }
            notified.as_mut().await;
            notified.set(arrived.notified());
        }
    }

    fn take(&self) -> Result<Option<(TcpStream, SocketAddr)>, Error> {
        let taken = self.held.with(|state, key| {
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
                None => state.check().and(Err(Error::Refused(Code::UnknownPort))),
            }
        })?;
        Ok(taken.map(|key| {
            let stream = TcpStream::new(Held::new(self.held.handle().clone(), key));
            let peer = stream.peer_addr();
            (stream, peer)
        }))
    }

    /// Its address and assigned number on the mediator.
    pub fn local_addr(&self) -> SocketAddr {
        local_addr(&self.held)
    }
}
