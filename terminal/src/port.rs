//! The requests one by one: open, connect, make server, switch, close.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::link::{PortKind, UNSPECIFIED};
use isthmus_proto::wire::OpenFlags;
use isthmus_proto::{Code, PortId};
use tokio::sync::oneshot;

use crate::handle::{Handle, Held};
use crate::line::Subscription;
use crate::mediator::timeout_ms;
use crate::state::Body;
use crate::{Error, Importance, TcpListener, TcpStream, UdpSocket};

/// What to open.
///
/// ```
/// use isthmus_terminal::{Importance, OpenOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // DNS questions to one server, from whatever port of the mediator is free, over UDP channels or else TCP.
/// let dns = OpenOptions::udp().redirect(true).peer("10.0.0.1:53".parse()?);
/// // Exactly that port number of that address, or an error.
/// let server = OpenOptions::tcp().local("10.0.0.2:8080".parse()?).importance(Importance::Obligatory);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    flags: u8,
    local: SocketAddr,
    peer: Option<SocketAddr>,
}

impl OpenOptions {
    /// A TCP port, at any address and number.
    pub fn tcp() -> Self {
        Self { flags: 0, local: UNSPECIFIED, peer: None }
    }

    /// A UDP port, at any address and number.
    pub fn udp() -> Self {
        Self { flags: OpenFlags::UDP, ..Self::tcp() }
    }

    /// At this address of the mediator (unspecified for any) and port number (0 for any).
    #[must_use]
    pub fn local(self, local: SocketAddr) -> Self {
        Self { local, ..self }
    }

    /// Whether exactly that number will do; [`Importance::Desired`] at first.
    #[must_use]
    pub fn importance(self, importance: Importance) -> Self {
        match importance {
            Importance::Desired => Self { flags: self.flags & !OpenFlags::OBLIGATORY, ..self },
            Importance::Obligatory => Self { flags: self.flags | OpenFlags::OBLIGATORY, ..self },
        }
    }

    /// UDP: datagrams travel over UDP channels; with `fallback` over TCP while none works.
    #[must_use]
    pub fn redirect(self, fallback: bool) -> Self {
        let fallback = if fallback { OpenFlags::FALLBACK } else { 0 };
        Self { flags: self.flags & !OpenFlags::FALLBACK | OpenFlags::REDIRECT | fallback, ..self }
    }

    /// UDP: talk to this party only, as a connected socket does.
    #[must_use]
    pub fn peer(self, peer: SocketAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// In another mode of a UDP port.
    pub(crate) fn switched(self, redirect: bool, fallback: bool) -> Self {
        let flags = self.flags & !(OpenFlags::REDIRECT | OpenFlags::FALLBACK);
        let fallback = if fallback { OpenFlags::FALLBACK } else { 0 };
        Self { flags: flags | fallback | if redirect { OpenFlags::REDIRECT } else { 0 }, ..self }
    }

    /// At another number of the same address.
    pub(crate) fn numbered(self, number: u16) -> Self {
        Self { local: SocketAddr::new(self.local.ip(), number), ..self }
    }

    pub(crate) fn is_udp(&self) -> bool {
        self.flags & OpenFlags::UDP != 0
    }

    pub(crate) fn is_redirect(&self) -> bool {
        self.is_udp() && self.flags & OpenFlags::REDIRECT != 0
    }

    pub(crate) fn allows_fallback(&self) -> bool {
        self.flags & OpenFlags::FALLBACK != 0
    }
}

/// A port of the mediator, as the request *open* made it. It is closed when it and all sockets that were
/// made of it are dropped.
///
/// The methods send the request whatever the port is by now, so that the answer is the mediator's: a
/// second connect gives [`Code::Dedicated`], a connect of a UDP port [`Code::NotTcp`].
///
/// A port belongs to the connection that it was opened on: it, and listeners and sockets that are made of
/// it, are **not** opened again after that was lost, other than those of [`crate::Mediator::listen`] and
/// [`crate::Mediator::udp`].
///
/// Requests may be dropped while they wait for their answer; whether they were carried out is then not
/// known, but the port is as usable as that leaves it.
pub struct Port {
    held: Held,
}

impl Port {
    /// Sends the request; the reply never comes with [`OpenFlags::QUIET`].
    pub(crate) fn request(
        handle: &Handle,
        options: &OpenOptions,
        more_flags: u8,
    ) -> Result<(Self, oneshot::Receiver<Code>), Error> {
        let shared = handle.shared();
        let flags = OpenFlags(options.flags | more_flags);
        let now = shared.now();
        let (key, reply) = shared.with(|state| state.open(flags, options.local, options.peer, now))?;
        Ok((Self { held: Held::new(handle.clone(), key) }, reply))
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    pub(crate) fn into_held(self) -> Held {
        self.held
    }

    /// Its identifier on this connection.
    pub fn id(&self) -> PortId {
        self.held.with(|state, key| state.entries.get(key).map(|entry| entry.slot.id())).unwrap_or_default()
    }

    /// Its address and assigned number on the mediator.
    pub fn local_addr(&self) -> SocketAddr {
        local_addr(&self.held)
    }

    /// Connects it to a host of the private network. `timeout`: the configuration's if `None`.
    ///
    /// # Errors
    /// As [`crate::Mediator::connect`], and [`Code::UnknownPort`], [`Code::NotTcp`], [`Code::Dedicated`].
    pub async fn connect(&self, to: SocketAddr, timeout: Option<Duration>) -> Result<TcpStream, Error> {
        let timeout_ms = timeout_ms(timeout.unwrap_or(self.held.shared().connect_timeout));
        let reply = self.held.with(|state, key| state.connect(key, to, timeout_ms))?;
        self.held.answered(reply).await?;
        Ok(TcpStream::new(self.held.clone()))
    }

    /// Makes a server of it.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::UnknownPort`], [`Code::NotTcp`], [`Code::Dedicated`],
    /// [`Code::NotPermitted`]; or the connection's end.
    pub async fn serve(&self) -> Result<TcpListener, Error> {
        self.make_server().await?;
        Ok(TcpListener::new(Subscription::fixed(self.held.clone())))
    }

    pub(crate) async fn make_server(&self) -> Result<(), Error> {
        let reply = self.held.with(|state, key| state.serve(key))?;
        self.held.answered(reply).await
    }

    /// Switches a UDP port to redirect, or back.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::UnknownPort`], [`Code::NotUdp`], [`Code::NoUdpChannel`]; or the
    /// connection's end.
    pub async fn switch(&self, redirect: bool, fallback: bool) -> Result<(), Error> {
        switch(&self.held, redirect, fallback).await
    }

    /// A socket of a UDP port.
    ///
    /// # Errors
    /// [`Code::NotUdp`].
    pub fn udp_socket(&self) -> Result<UdpSocket, Error> {
        let kind = self.held.with(|state, key| state.entries.get(key).map(|entry| entry.kind));
        if kind == Some(PortKind::Udp) {
            Ok(UdpSocket::new(Subscription::fixed(self.held.clone())))
        } else {
            Err(Error::Refused(Code::NotUdp))
        }
    }

    /// Closes it, and waits until that is done. Sockets made of it are cut.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::UnknownPort`] when it is closed already; or the connection's end.
    pub async fn close(&self) -> Result<(), Error> {
        let reply = self.held.with(|state, key| state.close(key))?;
        self.held.answered(reply).await
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("id", &self.id()).field("local_addr", &self.local_addr()).finish()
    }
}

/// The request *open* on one connection.
pub(crate) async fn open_on(handle: &Handle, options: &OpenOptions) -> Result<Port, Error> {
    if options.is_redirect() {
        crate::udp::channel_works(handle.shared(), options.allows_fallback()).await?;
    }
    let (port, reply) = Port::request(handle, options, 0)?;
    port.held().answered(reply).await?;
    Ok(port)
}

pub(crate) async fn switch(held: &Held, redirect: bool, fallback: bool) -> Result<(), Error> {
    if redirect && held.with(|state, key| state.entries.get(key).is_some_and(|e| matches!(e.body, Body::Udp(_)))) {
        crate::udp::channel_works(held.shared(), fallback).await?;
    }
    let bits = if redirect { OpenFlags::REDIRECT } else { 0 } | if fallback { OpenFlags::FALLBACK } else { 0 };
    let reply = held.with(|state, key| state.switch(key, OpenFlags(OpenFlags::UDP | bits)))?;
    held.answered(reply).await
}

pub(crate) fn local_addr(held: &Held) -> SocketAddr {
    held.with(|state, key| state.entries.get(key).map_or(UNSPECIFIED, |entry| entry.local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_give_the_flags_of_the_requests() {
        assert_eq!(OpenOptions::tcp().flags, 0);
        let options = OpenOptions::udp().importance(Importance::Obligatory).redirect(true);
        assert_eq!(options.flags, OpenFlags::UDP | OpenFlags::OBLIGATORY | OpenFlags::REDIRECT | OpenFlags::FALLBACK);
        let options = options.importance(Importance::Desired).redirect(false);
        assert_eq!(options.flags, OpenFlags::UDP | OpenFlags::REDIRECT);
        assert!(options.is_redirect() && !options.allows_fallback());
        assert_eq!(options.switched(false, true).flags, OpenFlags::UDP | OpenFlags::FALLBACK);
        assert_eq!(options.switched(true, true), options.redirect(true));
    }
}
