//! The two things that a terminal attaches to: a mediator, or the relay alone.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Query, QueryAnswer, Report};
use isthmus_proto::wire::OpenFlags;
use isthmus_proto::{Code, MediatorId};

use crate::handle::{Handle, gone};
use crate::port::{OpenOptions, Port};
use crate::{Config, Error, Importance, TcpListener, TcpStream, UdpSocket, dial, driver};

/// One mediator, by way of its relay. Cheap to clone; the clones share one connection, which ends when
/// they and all their sockets are dropped.
#[derive(Clone)]
pub struct Mediator {
    id: MediatorId,
    handle: Handle,
}

/// The relay alone, for asking it what it knows. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    handle: Handle,
}

/// Figures of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Payload bytes sent over the TCP channel.
    pub bytes_out: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Live ports.
    pub ports: usize,
    /// Smoothed round trip to the relay, once measured.
    pub rtt: Option<Duration>,
    /// UDP channels, and how many of them answer.
    pub udp_channels: usize,
    /// See [`Stats::udp_channels`].
    pub udp_channels_live: usize,
    /// Received datagrams dropped since their socket's reader was too slow.
    pub datagrams_dropped: u64,
    /// Datagrams of redirected ports that went over TCP: too long for a channel, or none worked.
    pub datagrams_by_tcp: u64,
    /// Received datagrams without a sender's address or longer than UDP's limit.
    pub datagrams_refused: u64,
    /// Accepted connections that were reset since too many waited.
    pub accepts_dropped: u64,
}

impl Relay {
    /// Connects to a relay without choosing a mediator.
    ///
    /// # Errors
    /// Each text says cause and cure; see [`Error`].
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        Ok(Self { handle: driver::start(config, dial::dial(config, None).await?).await? })
    }

    /// The mediators that the token names and that are connected now, in the order of names.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NotPermitted`], or the connection's end.
    pub async fn list(&self) -> Result<Vec<MediatorSummary>, Error> {
        list(&self.handle).await
    }

    /// The relay's version.
    pub fn version(&self) -> &str {
        &self.handle.shared().relay_version
    }
}

impl Mediator {
    /// Connects to the relay and attaches to one mediator.
    ///
    /// # Errors
    /// Each text says cause and cure; see [`Error`]. [`Code::MediatorAway`] when it is not connected.
    pub async fn attach(config: &Config, id: MediatorId) -> Result<Self, Error> {
        let dialled = dial::dial(config, Some(id.clone())).await?;
        Ok(Self { id, handle: driver::start(config, dialled).await? })
    }

    /// Its name.
    pub fn id(&self) -> &MediatorId {
        &self.id
    }

    /// What it reported last of its state and environment, where the relay told.
    pub fn report(&self) -> Option<Report> {
        self.handle.shared().with(|state| state.report.as_deref().cloned())
    }

    /// Our own address as the relay sees it.
    pub fn observed(&self) -> SocketAddr {
        self.handle.shared().observed
    }

    /// The relay's number of this session, for comparing logs.
    pub fn session(&self) -> u64 {
        self.handle.shared().session
    }

    /// All that the relay knows about the mediator.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NotPermitted`] or [`Code::MediatorAway`], or the connection's end.
    pub async fn info(&self) -> Result<MediatorInfo, Error> {
        match ask(&self.handle, &Query::Info).await? {
            QueryAnswer::Info(info) => Ok(*info),
            QueryAnswer::Error { code } => Err(refused(&code)),
            QueryAnswer::List { .. } => Err(Error::Refused(Code::ProtocolError)),
        }
    }

    /// See [`Relay::list`].
    ///
    /// # Errors
    /// As there.
    pub async fn list(&self) -> Result<Vec<MediatorSummary>, Error> {
        list(&self.handle).await
    }

    /// Connects to a host of the private network, from any of the mediator's addresses.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason: [`Code::Refused`], [`Code::HostUnreachable`],
    /// [`Code::TimedOut`], [`Code::Denied`], [`Code::NotPermitted`] …; or the connection's end.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream, Error> {
        self.connect_with(to, &OpenOptions::tcp(), None).await
    }

    /// As [`Mediator::connect`], from a chosen address or port number of the mediator, or with another
    /// time to wait than the configuration's.
    ///
    /// # Errors
    /// Those of [`Mediator::connect`], and [`Code::AddressInUse`], [`Code::AddressNotLocal`] ….
    pub async fn connect_with(
        &self,
        to: SocketAddr,
        from: &OpenOptions,
        timeout: Option<Duration>,
    ) -> Result<TcpStream, Error> {
        let timeout_ms = timeout_ms(timeout.unwrap_or(self.handle.shared().connect_timeout));
        // One round trip for both: the answer to the connect tells of the open as well.
        let (port, _) = Port::request(&self.handle, from, OpenFlags::QUIET)?;
        let reply = port.held().with(|state, key| state.connect(key, to, timeout_ms))?;
        port.held().answered(reply).await?;
        Ok(TcpStream::new(port.into_held()))
    }

    /// Makes a server of one of the mediator's ports: hosts of the private network connect to it.
    ///
    /// `local`'s address may be unspecified for any, its number 0 for any.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::AddressInUse`], [`Code::AddressNotLocal`], [`Code::Privileged`],
    /// [`Code::NoFreePort`], [`Code::NotPermitted`] …; or the connection's end.
    pub async fn listen(&self, local: SocketAddr, importance: Importance) -> Result<TcpListener, Error> {
        let port = self.open(&OpenOptions::tcp().local(local).importance(importance)).await?;
        port.serve().await
    }

    /// Opens a UDP port of the mediator whose datagrams travel over the TCP channel: reliable and in
    /// order, with TCP's delays.
    ///
    /// # Errors
    /// As [`Mediator::listen`].
    pub async fn udp_bind(&self, local: SocketAddr, importance: Importance) -> Result<UdpSocket, Error> {
        self.udp(&OpenOptions::udp().local(local).importance(importance)).await
    }

    /// Redirects a UDP port of the mediator: its datagrams travel over UDP channels, with UDP's delay.
    /// With `fallback`, they may travel over TCP while no UDP channel works.
    ///
    /// # Errors
    /// As [`Mediator::listen`], and [`Code::NoUdpChannel`].
    pub async fn udp_redirect(
        &self,
        local: SocketAddr,
        importance: Importance,
        fallback: bool,
    ) -> Result<UdpSocket, Error> {
        self.udp(&OpenOptions::udp().local(local).importance(importance).redirect(fallback)).await
    }

    /// Opens a UDP port with all options.
    ///
    /// # Errors
    /// As [`Mediator::udp_redirect`]; [`Code::NotUdp`] when the options are TCP's.
    pub async fn udp(&self, options: &OpenOptions) -> Result<UdpSocket, Error> {
        if !options.is_udp() {
            return Err(Error::Refused(Code::NotUdp));
        }
        Ok(UdpSocket::new(self.open(options).await?.into_held()))
    }

    /// The single request *open* (or *redirect*, by the options): a port that is not dedicated yet.
    ///
    /// # Errors
    /// As [`Mediator::udp_redirect`].
    pub async fn open(&self, options: &OpenOptions) -> Result<Port, Error> {
        if options.is_redirect() {
            crate::udp::channel_works(self.handle.shared(), options.allows_fallback()).await?;
        }
        let (port, reply) = Port::request(&self.handle, options, 0)?;
        port.held().answered(reply).await?;
        Ok(port)
    }

    /// Figures of this connection.
    pub fn stats(&self) -> Stats {
        let shared = self.handle.shared();
        let now = shared.now();
        let (udp_channels, udp_channels_live) = (shared.channels.len(), shared.channels.live(now));
        shared.with(|state| {
            let (link, counts) = (state.link.stats(), state.counts);
            Stats {
                bytes_out: link.bytes_out,
                bytes_in: link.bytes_in,
                ports: state.link.ports(),
                rtt: state.link.rtt(),
                udp_channels,
                udp_channels_live,
                datagrams_dropped: counts.datagrams_dropped,
                datagrams_by_tcp: counts.datagrams_by_tcp,
                datagrams_refused: counts.datagrams_refused,
                accepts_dropped: counts.accepts_dropped,
            }
        })
    }

    /// Drops this handle and waits until the connection has ended in order: everything written has arrived at
    /// the relay. Waits for the other clones and all sockets to be dropped; a program calls it before it ends.
    pub async fn close(self) {
        self.handle.close().await;
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.handle.shared().with(|state| state.ended.is_some())
    }

    /// Waits until the connection is gone, and tells why.
    pub async fn closed(&self) -> Error {
        self.handle.shared().ended().await
    }
}

async fn list(handle: &Handle) -> Result<Vec<MediatorSummary>, Error> {
    let mut all: Vec<MediatorSummary> = Vec::new();
    loop {
        let after = all.last().map(|last| last.id.clone());
        match ask(handle, &Query::List { after: after.clone() }).await? {
            QueryAnswer::List { mediators, more } => {
                // A page that does not go on would be asked for again for ever.
                let ahead = mediators.last().map(|last| &last.id) > after.as_ref();
                all.extend(mediators);
                if !more || !ahead {
                    return Ok(all);
                }
            }
            QueryAnswer::Error { code } => return Err(refused(&code)),
            QueryAnswer::Info(_) => return Err(Error::Refused(Code::ProtocolError)),
        }
    }
}

async fn ask(handle: &Handle, query: &Query) -> Result<QueryAnswer, Error> {
    let shared = handle.shared();
    let answer = shared.with(|state| state.query(query))?;
    answer.await.map_err(|_| gone(shared))
}

fn refused(word: &str) -> Error {
    Error::Refused(Code::ALL.iter().copied().find(|code| code.word() == word).unwrap_or(Code::Failed))
}

/// 0 would mean the mediator's default.
pub(crate) fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1)
}
